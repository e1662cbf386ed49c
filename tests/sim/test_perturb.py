"""Perturbation points: off in production, each one somewhere in the code, and what a node does at them is harmless."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

from kvnode import perturb
from kvnode.errors import Overloaded
from kvnode.ids import RequestId
from kvnode.node.update_queue import UpdateQueue
from kvnode.raft.messages import Proposed, Tick
from kvnode.sim.runtime.life import Life
from kvnode.sim.runtime.run import run_seed

SOURCE = Path(perturb.__file__).parent


def points_in(path: Path) -> list[str]:
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return [ast.literal_eval(call.args[0]) for call in calls if ast.unparse(call.func) == "perturb.at"]


def test_every_point_is_somewhere_and_has_its_row() -> None:
    found = Counter(point for path in SOURCE.rglob("*.py") for point in points_in(path))
    assert set(found) == set(perturb.POINTS)


def test_nothing_happens_unless_somebody_listens() -> None:
    assert not any(perturb.at(point) for point in perturb.POINTS)
    with perturb.listening(lambda point: point == "queue-full"):
        assert perturb.at("queue-full")
        assert not perturb.at("drain-one")
    assert not perturb.at("queue-full")


def test_a_queue_that_is_full_by_chance_refuses_and_keeps_nothing() -> None:
    queue = UpdateQueue(items_max=10, bytes_max=10_000, wake=lambda: None)
    with perturb.listening(lambda _: True), pytest.raises(Overloaded):
        queue.put_proposal(Proposed(RequestId(1), b"x"))
    assert (queue.length, queue.bytes_used) == (0, 0)


def test_what_a_short_drain_leaves_comes_next_and_in_order() -> None:
    woken = 0

    def wake() -> None:
        nonlocal woken
        woken += 1

    queue = UpdateQueue(items_max=10, bytes_max=10_000, wake=wake)
    causes = [Tick(), Tick(), Tick()]
    for cause in causes:
        queue.put_control(cause)
    with perturb.listening(lambda point: point == "drain-one"):
        taken = []
        for turn in range(3):
            assert woken >= 3 + turn
            taken += queue.drain().control
    assert [id(cause) for cause in taken] == [id(cause) for cause in causes]


def test_worlds_differ_in_what_is_on_and_half_of_them_are_as_in_production() -> None:
    worlds = [Life(seed).world.perturbed for seed in range(200)]
    assert 60 < sum(not on for on in worlds) < 140
    assert {point for on in worlds for point in on} == set(perturb.POINTS)


def test_a_run_says_where_it_struck() -> None:
    seed = next(seed for seed in range(100) if Life(seed).world.perturbed.get("batch-of-one", 0) >= 0.1)
    report = run_seed(seed)
    assert report.verdict == "passed", report.failure
    assert report.marks["perturbed_batch-of-one"] > 0
