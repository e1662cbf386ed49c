"""Invariants of one member: what always holds, and what never goes backwards.

`check(state)` looks at one state, `check_step(before, after)` at two observations with any number of steps between.
Tests and the simulator call both after every step. What spans several nodes (one leader in a term, equal logs,
leader completeness) needs an observer of all of them and is checked there.
The names I1 … I18 are those of the list of invariants in docs/testing.md.
"""

from __future__ import annotations

import msgspec

from kvnode.ids import NOBODY, Index, NodeId, Term
from kvnode.raft.progress import Progress
from kvnode.raft.state import RaftState, Role


class Observed(msgspec.Struct, frozen=True):
    """What `check_step` compares."""

    term: Term
    vote: NodeId
    role: Role
    leader: NodeId
    commit_index: Index
    apply_to: Index
    last_index: Index
    read_round: int
    term_at_commit: Term | None
    matches: dict[NodeId, Index]


def observe(state: RaftState) -> Observed:
    leadership = state.leadership
    return Observed(
        term=state.term,
        vote=state.vote,
        role=state.role,
        leader=state.leader,
        commit_index=state.commit_index,
        apply_to=state.apply_to,
        last_index=state.log.last_index,
        read_round=state.read_round,
        term_at_commit=state.log.term_at(state.commit_index),
        matches={}
        if leadership is None
        else {
            peer: p.match_index
            for peer, p in leadership.progress.items()
            if not p.is_quarantined and p.match_life == p.life
        },
    )


def check(state: RaftState) -> None:
    """What holds after every step."""
    log, writes = state.log, state.writes
    assert (state.leadership is not None) == (state.role is Role.LEADER), state.role
    assert (state.candidacy is not None) == (state.role in (Role.PRE_CANDIDATE, Role.CANDIDATE)), state.role
    if state.role in (Role.CANDIDATE, Role.LEADER):
        assert state.vote == state.node, ("I2", state.term, state.vote)
        assert not state.is_stalled, "a stalled disk and an office"
    if state.role is not Role.FOLLOWER:
        assert not state.is_quarantined, ("I16: a campaign in quarantine", state.role)
    assert (state.role is Role.LEADER) == (state.leader == state.node), ("I1", state.role, state.leader)
    assert log.last_term <= state.term, ("I3", log.last_term, state.term)
    assert log.base.index <= state.commit_index <= log.last_index, ("I8", state.commit_index, log.last_index)
    assert writes.durable_index <= log.last_index, ("I11", writes.durable_index, log.last_index)
    assert state.apply_to <= min(state.commit_index, writes.durable_index), ("I11", state.apply_to)
    assert log.first_in_memory <= min(writes.durable_index, state.commit_index) + 1, ("I19", log.first_in_memory)
    if state.leadership is not None:
        members = [member for member in log.membership.members if member != state.node]
        assert list(state.leadership.progress) == members, ("I15", members)
        for progress in state.leadership.progress.values():
            _check_progress(state, progress)


def _check_progress(state: RaftState, progress: Progress) -> None:
    assert 0 <= progress.match_index < progress.next_index, ("I18", progress)
    assert progress.next_index <= state.log.last_index + 1, ("I18", progress, state.log.last_index)
    assert progress.window_bytes == sum(size for _, size in progress.window), ("I28", progress)
    assert len(progress.window) <= state.settings.window_messages_max, ("I28", progress)
    assert progress.state == "replicate" or not progress.window, ("I18", progress)
    lasts = [last for last, _ in progress.window]
    assert lasts == sorted(lasts), ("I18", progress)
    assert all(progress.match_index < last < progress.next_index for last in lasts), ("I18", progress)


def check_step(before: Observed, after: Observed) -> None:
    """What never goes backwards in one process life."""
    assert after.term >= before.term, ("I3", before.term, after.term)
    assert after.commit_index >= before.commit_index, ("I8", before.commit_index, after.commit_index)
    assert after.apply_to >= before.apply_to, ("I11", before.apply_to, after.apply_to)
    assert after.last_index >= before.commit_index, ("I4", before.commit_index, after.last_index)
    assert after.read_round >= before.read_round, ("I13", before.read_round, after.read_round)
    if after.term == before.term:
        assert before.vote in (NOBODY, after.vote), ("I2", before.vote, after.vote)
        assert NOBODY in (before.leader, after.leader) or before.leader == after.leader, ("I1", before, after)
        if before.role is Role.LEADER and after.role is Role.LEADER:
            _check_reign(before, after)
    assert after.role is not Role.LEADER or before.role in (Role.LEADER, Role.CANDIDATE), (before.role, after.role)


def _check_reign(before: Observed, after: Observed) -> None:
    """Two moments of the same leadership."""
    assert after.last_index >= before.last_index, ("I4", before.last_index, after.last_index)
    if after.commit_index > before.commit_index:
        assert after.term_at_commit == after.term, ("I8", after.commit_index, after.term_at_commit, after.term)
    for peer, match in before.matches.items():
        assert after.matches.get(peer, match) >= match, ("I18", peer, match)
