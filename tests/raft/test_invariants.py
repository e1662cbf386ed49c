"""The checker itself: a broken state is noticed (a checker that never fires proves nothing)."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from kvnode.ids import NOBODY, Index, NodeId, Term
from kvnode.raft import invariants
from kvnode.raft.state import RaftState, Role
from tests.raft.cluster import Cluster


def led() -> RaftState:
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.propose(1, b"x")
    return cluster[1].state


def progress_of(state: RaftState) -> invariants.Progress:
    assert state.leadership is not None
    return state.leadership.progress[NodeId(2)]


BREAKS: list[Callable[[RaftState], object]] = [
    lambda s: setattr(s, "vote", NodeId(2)),
    lambda s: setattr(s, "role", Role.FOLLOWER),
    lambda s: setattr(s, "leader", NOBODY),
    lambda s: setattr(s, "term", Term(0)),
    lambda s: setattr(s, "is_stalled", True),
    lambda s: setattr(s, "commit_index", Index(99)),
    lambda s: setattr(s, "apply_to", Index(99)),
    lambda s: setattr(s.writes, "durable_index", Index(99)),
    lambda s: setattr(progress_of(s), "match_index", Index(50)),
    lambda s: setattr(progress_of(s), "next_index", Index(50)),
    lambda s: setattr(progress_of(s), "window_bytes", 1),
    lambda s: setattr(progress_of(s), "state", "probe"),
    lambda s: progress_of(s).window.append((Index(1), 0)),
]


@pytest.mark.parametrize("spoil", BREAKS)
def test_a_broken_state_is_noticed(spoil: Callable[[RaftState], object]) -> None:
    state = led()
    invariants.check(state)
    spoil(state)
    with pytest.raises(AssertionError):
        invariants.check(state)


@pytest.mark.parametrize(
    "change",
    [
        {"term": Term(0)},
        {"vote": NodeId(3)},
        {"commit_index": Index(0)},
        {"apply_to": Index(0)},
        {"last_index": Index(1)},
        {"read_round": -1},
        {"leader": NodeId(3)},
        {"matches": {NodeId(2): Index(0), NodeId(3): Index(0)}},
        {"commit_index": Index(2), "term_at_commit": Term(0)},
    ],
    ids=str,
)
def test_a_step_back_is_noticed(change: dict[str, object]) -> None:
    before = invariants.observe(led())
    invariants.check_step(before, before)
    with pytest.raises(AssertionError):
        invariants.check_step(before, msgspec.structs.replace(before, **change))


def test_nobody_becomes_leader_without_standing() -> None:
    after = invariants.observe(led())
    before = msgspec.structs.replace(after, role=Role.FOLLOWER)
    with pytest.raises(AssertionError):
        invariants.check_step(before, after)
