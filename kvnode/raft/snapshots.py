"""Snapshots: a follower whose leader's log begins too late gets the state itself, and its log goes on behind that.

Leader: a trimmed log (`LogTrimmed`) keeps its base and the configuration in force there. A follower that needs what is
before the base is asked for once (`Output.snapshots`) and gets no entries until the attempt is over (`progress`); who
sends it, and how, is the shell's business.

Follower: a snapshot that is verified and stands ready (`SnapshotReceived`) is used if it contains something that is not
committed here. If the log holds the very entry it ends with, the log stays. Otherwise all of the log goes, and with it
every configuration it held: the snapshot's is in force, or a dropped one would rule on (scenario S45; openraft #1808).
Everything up to it is committed, for somebody applied it; so it does not matter whether the sender still leads. The
install goes to the disk as part of the next write; until that is durable `apply_to` stands still, nothing is
acknowledged by it, and another snapshot is ignored. Then, once, `Output.installed`. What is ignored is answered with
where this node stands, so that the leader can go on.

Source: Raft thesis §5; installs as part of the ordered writes: openraft's storage commands.
"""

from __future__ import annotations

from kvnode.ids import NOBODY, Index, NodeId
from kvnode.raft import generation
from kvnode.raft.messages import AppendReply, LogTrimmed, SnapshotReceived, SnapshotSent
from kvnode.raft.output import Install, SnapshotIgnored, SnapshotInstalled
from kvnode.raft.state import RaftState, Role

# ── leader ──────────────────────────────────────────────────────────────────────────────────────────


def on_log_trimmed(state: RaftState, message: LogTrimmed) -> None:
    """The log on disk begins later now; late news of what an install has dropped since is void."""
    position = message.position
    if position.index > state.log.base.index:
        known = min(state.commit_index, state.writes.durable_index)
        assert position.index <= known, ("trimmed beyond what is committed and durable", position, known)
        state.log.drop_prefix(position)


def on_snapshot_sent(state: RaftState, message: SnapshotSent) -> None:
    """Probe behind it; if it failed ask anew, with the next beat at the earliest."""
    leadership = state.leadership
    progress = leadership.progress.get(message.peer) if leadership is not None else None
    if progress is not None:
        progress.on_snapshot_over(min(message.index, state.log.last_index))


# ── follower ────────────────────────────────────────────────────────────────────────────────────────


def on_snapshot_received(state: RaftState, message: SnapshotReceived) -> None:
    """Install it, or say why not."""
    if message.term > state.term:
        generation.become_follower(state, "newer term", term=message.term)
    reason = _why_not(state, message)
    if reason:
        state.output.facts.append(SnapshotIgnored(message.sender, message.position, reason))
        _tell_where_we_stand(state, message.sender)
        return
    if state.role is not Role.FOLLOWER:
        generation.become_follower(state, "leader found")
    state.promised_ms = state.now_ms  # the leader may count on what this acknowledges (`leader_lease`)
    _install(state, message)
    _tell_where_we_stand(state, message.sender)


def _why_not(state: RaftState, message: SnapshotReceived) -> str:
    if message.term < state.term:
        return "its sender's term is over"
    if message.position.term > message.term:
        return "it ends in a later term than its sender's"
    if state.role is Role.LEADER or state.leader not in (NOBODY, message.sender):
        return "its sender does not lead"
    if state.writes.is_installing:
        return "another one is being installed"
    if message.position.index <= state.commit_index:
        return "it contains nothing that is not committed here"
    return ""


def _install(state: RaftState, message: SnapshotReceived) -> None:
    position, log = message.position, state.log
    keeps_log = log.term_at(position.index) == position.term
    state.writes.on_install(Install(position, message.time, keeps_log), state.apply_to)
    state.installing = SnapshotInstalled(message.sender, position)
    if not keeps_log:
        log.reset(position, message.time, message.configuration, message.configuration_index)
        state.clock.rewind(message.time)
    state.commit_index = position.index


def _tell_where_we_stand(state: RaftState, leader: NodeId) -> None:
    """An answer like that to a heartbeat; it waits until what it says is durable."""
    commit = state.commit_index
    reply = AppendReply(
        term=state.term,
        sender=state.node,
        accepted=True,
        index=commit,
        last_index=state.log.last_index,
        life=state.life,
        quarantined=state.is_quarantined,
    )
    state.send(leader, reply, holds=commit)


def on_persisted(state: RaftState) -> None:
    """A write finished: if an install was in it, apply goes on from there."""
    installing = state.installing
    if installing is not None and not state.writes.is_installing:
        state.installing = None
        state.output.installed = installing.position
        state.output.facts.append(installing)


def apply_to(state: RaftState) -> Index:
    """Up to where entries may be applied: committed and durable here, and standing still during an install."""
    if state.installing is not None:
        return state.apply_to
    return max(state.apply_to, min(state.commit_index, state.writes.durable_index))
