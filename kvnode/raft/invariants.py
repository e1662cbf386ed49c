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

_NO_MATCHES: dict[NodeId, Index] = {}  # shared, and never changed


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
    leadership, log, commit = state.leadership, state.log, state.commit_index
    return Observed(
        state.term,
        state.vote,
        state.role,
        state.leader,
        commit,
        state.apply_to,
        log.last_index,
        state.read_round,
        log.term_at(commit),
        _NO_MATCHES
        if leadership is None
        else {
            peer: p.match_index
            for peer, p in leadership.progress.items()
            if not p.is_quarantined and p.match_life == p.life
        },
    )


def check(state: RaftState) -> None:
    """What holds after every step."""
    log, writes, role, leadership = state.log, state.writes, state.role, state.leadership
    commit, last = state.commit_index, log.last_index
    is_leader = role is Role.LEADER
    assert (leadership is not None) == is_leader, role
    assert (state.candidacy is not None) == (role is Role.CANDIDATE or role is Role.PRE_CANDIDATE), role
    if is_leader or role is Role.CANDIDATE:
        assert state.vote == state.node, ("I2", state.term, state.vote)
        assert not state.is_stalled, "a stalled disk and an office"
    if state.candidacy is not None:
        assert state.may_stand, ("I16: a campaign of one who is no voter", state.node)
    if role is not Role.FOLLOWER:
        assert not state.is_quarantined, ("I16: a campaign in quarantine", role)
    assert is_leader == (state.leader == state.node), ("I1", role, state.leader)
    assert log.last_term <= state.term, ("I3", log.last_term, state.term)
    assert log.base.index <= commit <= last, ("I8", commit, last)
    durable = writes.durable_index
    assert durable <= last, ("I11", durable, last)
    assert state.apply_to <= min(commit, durable), ("I11", state.apply_to)
    saved = commit if state.installing is not None else min(commit, durable)
    assert log.first_in_memory <= saved + 1, ("I19", log.first_in_memory)
    is_known = log.membership.index <= last or state.is_quarantined  # from a store that is ahead of its log
    assert is_known, ("I15", log.membership.index, last)
    if state.installing is not None:
        assert state.apply_to < state.installing.position.index <= commit, ("I17", state.apply_to, state.installing)
    assert state.clock.last >= log.last_time, ("I22", state.clock.last, log.last_time)
    if leadership is not None:
        members = [member for member in log.membership.members if member != state.node]
        assert list(leadership.progress) == members, ("I15", members)
        for progress in leadership.progress.values():
            assert 0 <= progress.match_index < progress.next_index <= last + 1, ("I18", progress, last)
            assert progress.state != "snapshot" or progress.match_index < log.base.index, ("I18", progress, log.base)
            if progress.window:
                _check_window(progress, state.settings.window_messages_max)
            else:
                assert progress.window_bytes == 0, ("I28", progress)


def _check_window(progress: Progress, messages_max: int) -> None:
    assert len(progress.window) <= messages_max, ("I28", progress)
    assert progress.state == "replicate", ("I18", progress)
    before, size = progress.match_index, 0
    for last, bytes_ in progress.window:
        assert before <= last, ("I18", progress)
        before = last
        size += bytes_
    assert progress.match_index < progress.window[0][0] <= before < progress.next_index, ("I18", progress)
    assert progress.window_bytes == size, ("I28", progress)


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
