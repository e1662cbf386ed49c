"""A node may end for what was done to it; an exit that nothing explains is a finding, and each is told once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scripts.scripted import Scripted


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Scripted]:
    Scripted.scripts = {}
    made = Scripted(tmp_path / "cluster", 3)
    yield made
    made.stop()


def test_an_exit_without_a_reason_is_noted_once(cluster: Scripted):
    Scripted.scripts = {2: "echo broken; exit 7"}
    cluster.start_all()
    cluster.processes[2].wait()
    assert cluster.bury() == cluster.bury() == [2]
    assert cluster.exits == {"7": 1}
    (problem,) = cluster.unexpected
    assert problem.startswith("node 2 ended by itself with 7")
    assert "broken" in problem


def test_what_was_killed_or_excused_is_no_finding_until_it_starts_again(cluster: Scripted):
    Scripted.scripts = {3: "exit 5"}
    cluster.start_all()
    cluster.kill(1)
    cluster.excuse(3, "io error")
    cluster.processes[3].wait()
    assert cluster.revive() == [1, 3]
    assert cluster.unexpected == []
    assert cluster.restarts == 2
    cluster.processes[3].wait()
    cluster.bury()
    assert len(cluster.unexpected) == 1


def test_the_network_comes_before_the_tracer_and_both_before_the_node(cluster: Scripted):
    cluster.prefixes = {1: ["env", "NETWORK=1"]}
    Scripted.scripts = {1: 'echo "$NETWORK $TRACER"'}
    cluster.start(1, under=["env", "TRACER=2"]).wait()
    assert cluster.output(1).read_text(encoding="utf-8") == "1 2\n"
