"""Roles and recovery: the table of legal role changes; a node restarts as what its disk says (trap S15, C3)."""

from __future__ import annotations

import random

import pytest

from kvnode.config import RaftSection
from kvnode.ids import Index, NodeId, Term
from kvnode.raft.core import Raft
from kvnode.raft.messages import Configuration, HardState, LogPosition
from kvnode.raft.state import Restored, Role
from tests.raft.cluster import Cluster, made_entry


def test_a_leader_never_becomes_a_candidate_and_a_follower_never_a_leader() -> None:
    state = Cluster(3)[1].state
    for role, illegal in (
        (Role.LEADER, (Role.LEADER, Role.CANDIDATE, Role.PRE_CANDIDATE)),
        (Role.FOLLOWER, (Role.LEADER,)),
        (Role.PRE_CANDIDATE, (Role.LEADER,)),
        (Role.CANDIDATE, (Role.CANDIDATE,)),
    ):
        for to in illegal:
            state.role = role
            with pytest.raises(AssertionError):
                state.change_role(to)


def test_a_restart_continues_from_the_disk() -> None:
    """Term, vote, log and applied index; everything restored counts as durable; the clock does not go back."""
    restored = Restored(
        hard_state=HardState(Term(4), NodeId(2), Index(1)),
        configuration=Configuration((NodeId(1), NodeId(2), NodeId(3))),
        base=LogPosition(Term(0), Index(0)),
        term_runs=((Index(1), Term(1)), (Index(3), Term(3))),
        last_index=Index(4),
        tail=(made_entry(1, 2), made_entry(3, 3), made_entry(3, 4)),
        applied_index=Index(1),
        applied_time=1 << 60,
    )
    raft = Raft(node=NodeId(1), settings=RaftSection(), rng=random.Random(1), restored=restored, now_ms=5)
    assert (raft.term, raft.state.vote, raft.role, raft.leader) == (4, 2, "follower", 0)
    assert (raft.last_index, raft.durable_index, raft.commit_index) == (4, 4, 1)
    assert raft.state.clock.next(0) > 1 << 60
    output = raft.take_output()
    assert (output.persist, output.sends, output.apply_to) == (None, [], 1)
    assert raft.entries(Index(1), Index(4), 1 << 20) is None
    assert [e.index for e in raft.entries(Index(2), Index(4), 1 << 20) or ()] == [2, 3, 4]


def test_a_log_beyond_the_term_is_not_accepted() -> None:
    restored = Restored(
        hard_state=HardState(Term(1)),
        configuration=Configuration((NodeId(1),)),
        base=LogPosition(Term(0), Index(0)),
        term_runs=((Index(1), Term(2)),),
        last_index=Index(1),
        tail=(made_entry(2, 1),),
        applied_index=Index(0),
        applied_time=0,
    )
    with pytest.raises(AssertionError):
        Raft(node=NodeId(1), settings=RaftSection(), rng=random.Random(1), restored=restored, now_ms=0)
