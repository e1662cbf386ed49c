"""Leadership transfer: hand office to a voter that has everything, without waiting for a timeout.

The leader stops taking proposals, brings the target level, and tells it to campaign at once; voters then do not
mind that they still hear a leader. It resumes if that has not worked within T. A TimeoutNow that comes late is void:
its term, its sender or the end of the log it names is not the current one (scenarios S15, S16). Source: thesis §3.10.
"""

from __future__ import annotations

from kvnode.ids import NOBODY, NodeId
from kvnode.raft import clock_drift, election, leader_lease
from kvnode.raft.messages import TimeoutNow
from kvnode.raft.output import TransferAborted, TransferBegan
from kvnode.raft.state import Leadership, RaftState, Role


def on_transfer_requested(state: RaftState, to: NodeId) -> None:
    """Begin handing over to `to`, or to the voter that holds most; refused with a fact that says why."""
    leadership = state.leadership
    if leadership is None:
        _refuse(state, to, "not the leader")
        return
    if leadership.transfer_to != NOBODY:
        if to != leadership.transfer_to:
            _refuse(state, to, "another transfer is under way")
        return
    target = to if to != NOBODY else best_target(state, leadership)
    if target == state.node or not state.log.membership.is_voter(target):
        _refuse(state, to, "no such voter beside the leader")
        return
    if leadership.progress[target].is_quarantined:
        _refuse(state, to, "it is in quarantine and may not stand")
        return
    leadership.transfer_to = target
    leadership.transfer_deadline_ms = state.now_ms + state.settings.election_timeout_ms
    leadership.transfer_sent = False
    leadership.progress[target].is_paused = False
    state.output.facts.append(TransferBegan(target))


def _refuse(state: RaftState, to: NodeId, reason: str) -> None:
    state.output.facts.append(TransferAborted(to, reason))


def best_target(state: RaftState, leadership: Leadership) -> NodeId:
    """The voter with the highest match among those heard within T and out of quarantine; NOBODY if there is none."""
    since = state.now_ms - state.settings.election_timeout_ms
    best, best_match = NOBODY, -1
    for peer, progress in leadership.progress.items():
        is_here = progress.has_answered and progress.contact_ms >= since and not progress.is_quarantined
        if is_here and state.log.membership.is_voter(peer) and progress.match_index > best_match:
            best, best_match = peer, progress.match_index
    return best


def push(state: RaftState, leadership: Leadership) -> None:
    """Tell the target to campaign once it is level; again after each heartbeat, in case the message was lost."""
    target = leadership.transfer_to
    if target == NOBODY or leadership.transfer_sent:
        return
    progress = leadership.progress.get(target)
    if progress is not None and progress.match_index == state.log.last_index:
        leadership.transfer_sent = True
        leader_lease.on_order(state, leadership)
        state.send(target, TimeoutNow(state.term, state.node, state.log.last_index))


def on_transfer_timeout(state: RaftState, leadership: Leadership) -> None:
    """It did not work within T: take proposals again."""
    state.output.facts.append(TransferAborted(leadership.transfer_to, "timeout"))
    leadership.transfer_to = NOBODY


def on_timeout_now(state: RaftState, message: TimeoutNow) -> None:
    """Campaign at once, if the current leader really means now."""
    is_current = message.sender == state.leader and state.role is Role.FOLLOWER
    is_same_log = message.last_index in (0, state.log.last_index)
    is_fit = not state.is_stalled and not state.is_quarantined and not clock_drift.abstains(state)
    if is_current and is_same_log and state.is_voter and is_fit:
        election.campaign_at_once(state)
