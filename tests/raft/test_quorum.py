"""Majority quorum: traps S9–S11, S22, C2, C13."""

from __future__ import annotations

import itertools
import random

import pytest

from kvnode.ids import NodeId
from kvnode.raft import quorum
from kvnode.raft.messages import Configuration


def voters(count: int, *learners: int) -> Configuration:
    return Configuration(tuple(NodeId(i) for i in range(1, count + 1)), tuple(NodeId(i) for i in learners))


@pytest.mark.parametrize(("size", "needed"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (6, 4), (7, 4), (9, 5)])
def test_majority_of_the_configured_voters(size: int, needed: int) -> None:
    """Trap C2: four voters need three; trap C13: the threshold for even sizes."""
    assert quorum.majority(size) == needed
    ids = list(range(1, size + 1))
    assert quorum.has_majority(voters(size), ids[:needed])
    assert not quorum.has_majority(voters(size), ids[: needed - 1])
    assert quorum.is_lost(voters(size), ids[: size - needed + 1])
    assert not quorum.is_lost(voters(size), ids[: size - needed])


def test_learners_and_strangers_do_not_count() -> None:
    """Trap S11: whoever answers, only configured voters decide."""
    assert not quorum.has_majority(voters(3, 4, 5), [1, 4, 5, 77])
    assert quorum.has_majority(voters(3, 4, 5), [1, 3])


def test_any_two_quorums_share_a_voter() -> None:
    for size in range(1, 8):
        ids = range(1, size + 1)
        quorums = [set(some) for some in itertools.combinations(ids, quorum.majority(size))]
        assert all(a & b for a in quorums for b in quorums)


def test_majority_value_equals_brute_force() -> None:
    """Traps S22, C2: MQ's property for 1 to 9 voters and random match vectors."""
    rng = random.Random(7)
    for _ in range(2_000):
        size = rng.randint(1, 9)
        held = {NodeId(i): rng.randint(0, 12) for i in range(1, size + 1)}
        brute = max(n for n in range(13) if quorum.has_majority(voters(size), [i for i, v in held.items() if v >= n]))
        assert quorum.majority_value(voters(size), held.__getitem__) == brute
