"""Generation clock: the term, and with it the vote, that tell a deposed leader from the present one.

Every message is compared before it is processed. Newer term: adopt it (no vote, no leader, follower), then process
the message (traps S4, S13). Older term: refuse with our own, so the sender learns (trap S14). Term and vote are made
durable before anything that mentions them leaves: `RaftState.send` sees to that (traps S3, S15, C3).

Two messages carry a term that is not their sender's generation and are never adopted: a pre-vote request, and the
grant that answers it. A real vote request is first shown to vote stickiness (`election`), which may ignore it whole.
"""

from __future__ import annotations

from kvnode.ids import NOBODY, NodeId, Term
from kvnode.raft import read_index, timers
from kvnode.raft.messages import AppendEntries, AppendReply, HardState, RaftMessage, TimeoutNow, VoteReply, VoteRequest
from kvnode.raft.output import BecameFollower, LeaderKnown
from kvnode.raft.state import RaftState, Role


def hard_state(state: RaftState) -> HardState:
    return HardState(state.term, state.vote, state.commit_index)


def admit(state: RaftState, message: RaftMessage) -> bool:
    """Adopt a newer term, answer or drop what is of an older one. Whether the message goes on to its rule."""
    match message:
        case VoteRequest():
            return True
        case VoteReply(pre=True, granted=True):
            return True
        case _ if message.term > state.term:
            become_follower(state, "newer term", term=message.term)
            return True
        case AppendEntries() if message.term < state.term:
            reply = AppendReply(
                term=state.term,
                sender=state.node,
                accepted=False,
                index=message.prev_index,
                life=state.life,
                quarantined=state.is_quarantined,
            )
            state.send(message.sender, reply)
            return False
        case AppendReply() | VoteReply() | TimeoutNow():
            return message.term == state.term
        case _:
            return True  # forwarded requests and their answers are facts of whatever term they name


def become_follower(state: RaftState, reason: str, *, term: Term | None = None) -> None:
    """Leave office, and adopt `term` if it is newer. Truncates nothing (invariant I4)."""
    is_newer = term is not None and term > state.term
    if term is not None and is_newer:
        state.term = term
        state.vote = NOBODY
        state.writes.on_hard_state_changed()
        forget_leader(state)
    was = state.role
    if was is Role.LEADER:
        read_index.fail_led(state)
        state.leadership = None
        forget_leader(state)
        timers.reset_election(state)
    state.candidacy = None
    state.change_role(Role.FOLLOWER)
    if is_newer or was is not Role.FOLLOWER:
        state.output.facts.append(BecameFollower(state.term, state.leader, reason))


def forget_leader(state: RaftState) -> None:
    """On every term change and every election start (trap S5); reads asked of the leader fail with it."""
    state.leader = NOBODY
    state.leader_contact_ms = None
    read_index.fail_forwarded(state)


def follow(state: RaftState, leader: NodeId) -> None:
    """A leader of our own term spoke: concede if we were campaigning, and remember who it is."""
    assert state.role is not Role.LEADER, ("two leaders in one term", state.term, state.node, leader)
    if state.role is not Role.FOLLOWER:
        become_follower(state, "leader found")
    if state.leader != leader:
        assert state.leader == NOBODY, ("two leaders in one term", state.term, state.leader, leader)
        state.leader = leader
        state.output.facts.append(LeaderKnown(state.term, leader))
    timers.on_leader_contact(state)
