"""Timers: every wait of the core as the instant it ends. Nothing ticks; the shell wakes us at `next_deadline_ms`.

Election: T drawn anew from [T, 2T) each time; a process that has not heard a leader yet takes [T/3, 2T/3); the only
voter of a cluster waits 1 ms. A deadline that fires more than T late tells of a pause of this process, not of the
leader: it is forgiven once (trap S41, S42; CASSANDRA-9183 is the field report).
All instants are of the monotonic clock that counts suspended time.
"""

from __future__ import annotations

from kvnode.ids import NodeId
from kvnode.raft.state import Leadership, RaftState, Role

_SOLE_VOTER_WAIT_MS = 1


def reset_election(state: RaftState) -> None:
    """Wait for a whole new election timeout from now."""
    timeout = state.settings.election_timeout_ms
    is_alone = state.configuration.voters == (state.node,)
    # Short only to begin: once it stands it waits for its vote's fsync, which takes longer than a millisecond.
    if is_alone and state.role is Role.FOLLOWER and not state.is_stalled:
        wait = _SOLE_VOTER_WAIT_MS
    elif state.has_heard_leader:
        wait = timeout + int(state.rng.random() * timeout)
    else:
        wait = _short_wait(state)
    state.election_deadline_ms = state.now_ms + wait
    state.grace_given = False


def _short_wait(state: RaftState) -> int:
    third = state.settings.election_timeout_ms // 3
    return third + int(state.rng.random() * third)


def on_leader_contact(state: RaftState) -> None:
    """The current term's leader lives (the only news, besides granting a vote, that resets the timer; trap S6)."""
    state.leader_contact_ms = state.promised_ms = state.now_ms
    state.has_heard_leader = True
    reset_election(state)


def on_leader_gone(state: RaftState) -> None:
    """The leader's process is gone: forget the stickiness for it and campaign after a few milliseconds."""
    settings = state.settings
    state.leader_contact_ms = None
    wait = state.rng.randrange(settings.leader_lost_ms_min, settings.leader_lost_ms_max)
    state.election_deadline_ms = min(state.election_deadline_ms, state.now_ms + wait)


def is_election_due(state: RaftState) -> bool:
    """Whether to campaign now; a deadline missed by more than T is moved instead, once."""
    late = state.now_ms - state.election_deadline_ms
    if state.leadership is not None or late < 0:
        return False
    if late > state.settings.election_timeout_ms and not state.grace_given:
        state.election_deadline_ms = state.now_ms + _short_wait(state)
        state.grace_given = True
        return False
    return True


def hears_leader(state: RaftState) -> bool:
    """Vote stickiness: a current leader was heard within T. A leader hears itself (thesis §4.2.3)."""
    if state.leadership is not None:
        return True
    contact = state.leader_contact_ms
    return contact is not None and state.now_ms - contact < state.settings.election_timeout_ms


def next_deadline_ms(state: RaftState) -> int:
    """When the shell should send the next Tick at the latest."""
    leadership = state.leadership
    deadline = state.election_deadline_ms if leadership is None else _leader_deadline_ms(leadership)
    for expires in state.forwarded_reads.values():
        return min(deadline, expires)  # they all wait equally long, so the oldest ends first
    return deadline


def _leader_deadline_ms(leadership: Leadership) -> int:
    deadline = min(leadership.heartbeat_deadline_ms, leadership.quorum_deadline_ms)
    if leadership.note_deadline_ms:
        deadline = min(deadline, leadership.note_deadline_ms)
    return min(deadline, leadership.transfer_deadline_ms) if leadership.transfer_to else deadline


def since_contact_ms(state: RaftState, peer: NodeId, now_ms: int) -> int:
    """Milliseconds since the last message of `peer`; -1 if there never was one."""
    contact = state.contacts.get(peer)
    return -1 if contact is None else max(0, now_ms - contact)
