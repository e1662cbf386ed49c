"""Which node next: rotation, pauses, hints; all without a clock."""

from __future__ import annotations

import random

import pytest

from kvnode.client.endpoints import Endpoints, RetryPolicy

NODES = ["a:1", "b:1", "c:1"]


def endpoints(seed: int = 1) -> Endpoints:
    return Endpoints(NODES, random.Random(seed), RetryPolicy(base_ms=10, cap_ms=100))


def test_clients_start_at_different_nodes():
    assert {endpoints(seed).choose(0) for seed in range(30)} == set(NODES)


def test_it_stays_with_the_node_that_answers():
    known = endpoints()
    first = known.choose(0)
    known.on_answer(first)
    assert {known.choose(now) for now in range(100)} == {first}


def test_a_failed_node_is_passed_over_and_asked_again_later():
    known = endpoints()
    first = known.choose(0)
    known.on_failure(first, 0)
    second = known.choose(1)
    assert second != first
    known.on_failure(second, 1)
    third = known.choose(2)
    assert {first, second, third} == set(NODES)
    known.on_failure(third, 2)
    assert known.choose(10_000) in NODES


def test_when_all_failed_the_first_to_end_its_pause_is_asked():
    known = endpoints()
    for now, node in [(0, "a:1"), (500, "b:1"), (600, "c:1")]:
        known.on_failure(node, now)
    assert known.choose(19) in {"a:1", "b:1", "c:1"}
    for _ in range(5):
        known.on_failure("b:1", 600)
        known.on_failure("c:1", 600)
    assert known.choose(601) == "a:1"


def test_a_leader_hint_is_followed_only_to_a_node_we_were_told_of():
    known = endpoints()
    known.on_leader_hint("c:1", 0)
    assert known.choose(0) == "c:1"
    known.on_leader_hint("evil:1", 0)
    assert known.choose(0) == "c:1"
    known.on_failure("b:1", 0)
    known.on_leader_hint("b:1", 1)
    assert known.choose(1) == "c:1"


def test_whom_a_member_calls_dead_is_asked_last_until_it_answers():
    known = endpoints()
    for address in NODES:
        known.on_round_trip(address, 5.0)
    known.on_round_trip("b:1", 0.1)
    known.on_leader_hint("b:1", 0)
    known.on_hearsay("b:1", 0)
    known.on_hearsay("evil:1", 0)
    assert {known.choose(1)} | {known.choose_nearest(1) for _ in range(200)} == {"a:1", "c:1"}
    assert known.choose(101) in NODES  # the pause is bounded
    known.on_hearsay("b:1", 1000)
    known.on_answer("b:1")
    known.on_leader_hint("b:1", 1001)
    assert known.choose(1001) == "b:1"


def test_pauses_are_jittered_and_bounded():
    policy, rng = RetryPolicy(base_ms=10, cap_ms=100), random.Random(3)
    for attempt in range(1, 50):
        assert 0 <= policy.delay_ms(attempt, rng) <= min(100, 10 << attempt)
    assert len({policy.delay_ms(4, rng) for _ in range(50)}) > 10
    with pytest.raises(ValueError, match="base_ms"):
        RetryPolicy(base_ms=100, cap_ms=10)


def test_fr6_what_a_node_answers_by_itself_goes_to_the_nearest():
    known = endpoints()
    delays = {"a:1": 30.0, "b:1": 2.0, "c:1": 9.0}
    first = [known.choose_nearest(0) for _ in range(1)]
    for _ in range(3):  # each is measured before any is compared
        address = known.choose_nearest(0)
        known.on_round_trip(address, delays[address])
    assert first[0] in NODES
    chosen = [known.choose_nearest(0) for _ in range(320)]
    assert 0.9 < chosen.count("b:1") / 320 < 1.0, "now and then another, so that it would be noticed if it came nearer"
    delays["b:1"] = 100.0
    for _ in range(400):
        address = known.choose_nearest(0)
        known.on_round_trip(address, delays[address])
    assert [known.choose_nearest(0) for _ in range(100)].count("c:1") > 80
    known.on_failure("c:1", 0)
    assert "c:1" not in {known.choose_nearest(1) for _ in range(50)}


def test_one_slow_answer_does_not_move_the_choice():
    known = endpoints()
    for address, took_ms in (("a:1", 1.0), ("b:1", 3.0), ("c:1", 4.0)):
        known.on_round_trip(address, took_ms)
    known.on_round_trip("a:1", 9.0)
    assert [known.choose_nearest(0) for _ in range(100)].count("a:1") > 80
