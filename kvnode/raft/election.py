"""Leader election: pre-vote, campaign, counting, the voting rule, and when a leader must go.

A candidate first asks whether it *could* win (pre-vote, changes nothing on either side), then campaigns in the next
term. A voter grants one candidate per term, whose log must be at least as complete as its own, last term first
(traps S1, C1), repeats a grant when asked again (trap S2), and ignores everybody, term included, while it hears a
leader, unless that leader asked for the election (trap S7, R6). A vote is durable before it leaves or counts: the
candidate's own as well (traps S3, S11). A leader that has not heard a majority for T goes (check-quorum).

Source: Raft thesis §3.4, §3.6.1, §4.2.3, §6.2, §9.6.
"""

from __future__ import annotations

from kvnode.ids import NOBODY, NodeId, Term, WriteNumber
from kvnode.raft import (
    clock_drift,
    generation,
    high_water_mark,
    leader_lease,
    quarantine,
    quorum,
    replication,
    snapshots,
    timers,
)
from kvnode.raft.membership import is_removed
from kvnode.raft.messages import LogPosition, VoteReply, VoteRequest
from kvnode.raft.output import BecameCandidate, BecameLeader, BecamePreCandidate, VoteGranted
from kvnode.raft.state import Candidacy, Leadership, RaftState, Role

# ── candidate ───────────────────────────────────────────────────────────────────────────────────────


def campaign(state: RaftState, reason: str) -> None:
    """The election timer fired: ask whether we could win, if we may stand at all."""
    timers.reset_election(state)
    if state.role is Role.CANDIDATE and not state.writes.is_hard_state_durable:
        return  # our requests have not even left: a slow disk must not raise one term after another
    generation.forget_leader(state)
    if state.is_stalled or not state.may_stand or state.is_quarantined or clock_drift.abstains(state):
        return
    if leader_lease.is_promised(state):
        return
    state.change_role(Role.PRE_CANDIDATE)
    state.candidacy = Candidacy(Term(state.term + 1), state.now_ms)
    state.output.facts.append(BecamePreCandidate(state.term, reason))
    _ask(state, state.candidacy, pre=True)
    _count(state, state.candidacy, state.node)


def campaign_at_once(state: RaftState) -> None:
    """The leader told us to: no pre-vote, and voters are not to mind that they hear a leader."""
    generation.forget_leader(state)
    _stand(state, Candidacy(Term(state.term + 1), state.now_ms, is_transfer=True), "transfer")


def _stand(state: RaftState, candidacy: Candidacy, reason: str) -> None:
    """Campaign in a new term. Our own vote counts when its write is durable (`on_persisted`)."""
    timers.reset_election(state)
    state.change_role(Role.CANDIDATE)
    state.term = candidacy.term
    state.vote = state.node
    state.writes.on_hard_state_changed()
    candidacy.granted = {}
    candidacy.refused = {}
    state.candidacy = candidacy
    state.output.facts.append(BecameCandidate(state.term, reason))
    _ask(state, candidacy, pre=False)


def _ask(state: RaftState, candidacy: Candidacy, *, pre: bool) -> None:
    last = state.log.last_position
    request = VoteRequest(candidacy.term, state.node, last.term, last.index, pre=pre, transfer=candidacy.is_transfer)
    for voter in state.configuration.voters:
        if voter != state.node:
            state.send(voter, request)


def on_vote_reply(state: RaftState, message: VoteReply) -> None:
    """Count an answer to the question we are asking now; any other is void (trap S10)."""
    candidacy = state.candidacy
    if candidacy is None or message.pre != (state.role is Role.PRE_CANDIDATE):
        return
    if not message.granted:
        candidacy.refused[message.sender] = True
        if quorum.is_lost(state.configuration, candidacy.refused):
            generation.become_follower(state, "election lost")
    elif message.term == candidacy.term:
        _count(state, candidacy, message.sender)


def _count(state: RaftState, candidacy: Candidacy, voter: NodeId) -> None:
    candidacy.granted[voter] = True
    if not quorum.has_majority(state.configuration, candidacy.granted):
        return
    if state.role is Role.PRE_CANDIDATE:
        _stand(state, candidacy, "pre-vote won")
    else:
        become_leader(state, candidacy)


def on_own_vote_durable(state: RaftState) -> None:
    """A write finished: if it was the one with our vote for ourselves, the vote counts now."""
    candidacy = state.candidacy
    if candidacy is not None and state.role is Role.CANDIDATE and state.writes.is_hard_state_durable:
        _count(state, candidacy, state.node)


def become_leader(state: RaftState, candidacy: Candidacy) -> None:
    """Take office: everybody is probed, and a no-op of the new term goes first."""
    settings, now_ms = state.settings, state.now_ms
    state.change_role(Role.LEADER)
    state.leader = state.node
    state.candidacy = None
    state.has_heard_leader = True
    progress = replication.track_members(state, {})
    replication.append_no_op(state)
    state.leadership = Leadership(
        progress=progress,
        first_index=state.log.last_index,
        lease_index=state.log.last_index,
        heartbeat_deadline_ms=now_ms + settings.heartbeat_ms,
        quorum_deadline_ms=now_ms + settings.election_timeout_ms,
    )
    state.output.facts.append(BecameLeader(state.term, now_ms - candidacy.began_ms))


# ── voter ───────────────────────────────────────────────────────────────────────────────────────────


def on_vote_request(state: RaftState, message: VoteRequest) -> None:
    """Judge a candidate. Members in quarantine grant nothing, nor does who still hears a leader.

    Whether this node's vote counts is the candidate's to know: a learner may have been promoted by an entry that has
    not come yet, and be needed. But a removed member votes no more, and nobody votes for one.
    """
    if state.is_quarantined or state.is_removed or is_removed(state.committed_configuration, message.sender):
        return
    if not message.transfer and (timers.hears_leader(state) or leader_lease.is_promised(state)):
        return
    is_granted = _may_grant_pre(state, message) if message.pre else _may_grant(state, message)
    if is_granted and not message.pre:
        _grant(state, message.sender)
    term = message.term if is_granted else state.term
    state.send(message.sender, VoteReply(term, state.node, is_granted, message.pre))


def _is_log_complete(state: RaftState, message: VoteRequest) -> bool:
    return LogPosition(message.last_term, message.last_index) >= state.log.last_position


def _may_grant_pre(state: RaftState, message: VoteRequest) -> bool:
    """Would the sender get our vote in that term? Neither side changes anything (LF4)."""
    is_open = message.term > state.term or (
        message.term == state.term
        and (state.vote == message.sender or (state.vote == NOBODY and state.leader == NOBODY))
    )
    return is_open and _is_log_complete(state, message)


def _may_grant(state: RaftState, message: VoteRequest) -> bool:
    """The voting rule. A newer term is adopted first; that alone grants nothing (openraft #1220)."""
    if message.term > state.term:
        generation.become_follower(state, "newer term", term=message.term)
    if message.term < state.term:
        return False
    if state.vote == message.sender:
        return True
    return state.vote == NOBODY and state.leader == NOBODY and _is_log_complete(state, message)


def _grant(state: RaftState, candidate: NodeId) -> None:
    if state.vote != candidate:
        state.vote = candidate
        state.writes.on_hard_state_changed()
        state.output.facts.append(VoteGranted(state.term, candidate))
    if state.role is not Role.FOLLOWER:
        generation.become_follower(state, "vote granted")
    timers.reset_election(state)


# ── reasons to go ───────────────────────────────────────────────────────────────────────────────────


def check_quorum(state: RaftState, leadership: Leadership) -> None:
    """Step down if no majority of voters has answered within T; else note until when that holds (LF6)."""

    def heard_ms(voter: NodeId) -> int:
        return state.now_ms if voter == state.node else leadership.progress[voter].contact_ms

    timeout = state.settings.election_timeout_ms
    leadership.quorum_deadline_ms = quorum.majority_value(state.configuration, heard_ms) + timeout
    if leadership.quorum_deadline_ms <= state.now_ms:
        generation.become_follower(state, "no quorum contact")


def on_disk_changed(state: RaftState, *, is_stalled: bool) -> None:
    """Heartbeats need no disk, so a leader with a hung one would reign for ever: it goes (HB6, trap R6)."""
    state.is_stalled = is_stalled
    if is_stalled and state.role is not Role.FOLLOWER:
        generation.become_follower(state, "disk stalled")
    elif not is_stalled and state.leadership is None:
        timers.reset_election(state)


def on_persisted(state: RaftState, number: WriteNumber) -> None:
    """Our own write is durable: now it counts, for a vote or for a commit (traps R1, S22)."""
    state.writes.on_persisted(number)
    snapshots.on_persisted(state)
    quarantine.consider_lifting(state)
    on_own_vote_durable(state)
    if state.leadership is not None:
        high_water_mark.advance_leader(state, state.leadership)
