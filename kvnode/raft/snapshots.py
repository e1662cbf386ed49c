"""Snapshots: a follower that needs entries which the leader's log holds no more gets the state instead (thesis §5).

Leader: where `replication` finds that the logs cannot meet, the follower's progress becomes *snapshot*: the shell is
asked to send one, no entries go until it has reported back, heartbeats go on. Then the follower is probed after it.

Follower: the shell reports a snapshot that has come whole, was verified, and stands ready beside the store. What it
contains is committed, for its sender had applied it, so it does not matter whether that one still leads. It is of no
use if it shows nothing new (scenario S56), and one at a time is installed (S57). Then, by I17:

- the log holds the snapshot's last entry: what follows stays, and with it whatever configurations stand there;
- it does not: all of it goes, and with it its configurations, whatever their indexes (S45, openraft #1808).

The commit index moves at once, and everything that leaves waits until the new state is durable (`writes`). Applying
stands still until then: `Output.installed` tells when it goes on from there.
"""

from __future__ import annotations

from kvnode.raft import reconfiguration
from kvnode.raft.messages import AppendReply, LogTrimmed, SnapshotReceived, SnapshotSent
from kvnode.raft.output import Install, SnapshotIgnored, SnapshotInstalled
from kvnode.raft.state import RaftState


def on_trimmed(state: RaftState, message: LogTrimmed) -> None:
    """The log on disk is shorter at its beginning; only what is committed and durable goes there."""
    position = message.position
    if position.index > min(state.commit_index, state.writes.durable_index):
        return  # of the log before a snapshot took its place
    state.log.drop_prefix(position)


# ── leader ──────────────────────────────────────────────────────────────────────────────────────────


def on_sent(state: RaftState, message: SnapshotSent) -> None:
    """An attempt is over: look where the follower stands, which asks for another if that was in vain."""
    leadership = state.leadership
    progress = leadership.progress.get(message.peer) if leadership is not None else None
    if progress is not None and progress.state == "snapshot":
        progress.on_snapshot_sent(min(message.index, state.log.last_index))


# ── follower ────────────────────────────────────────────────────────────────────────────────────────


def on_received(state: RaftState, message: SnapshotReceived) -> None:
    """Install it, or say why not; its sender, if it leads, is told where we stand either way."""
    reason = _why_not(state, message)
    if reason:
        state.output.facts.append(SnapshotIgnored(message.sender, message.position, reason))
    else:
        _install(state, message)
    if message.sender == state.leader:
        held = state.commit_index
        reply = AppendReply(
            term=state.term,
            sender=state.node,
            accepted=True,
            index=held,
            last_index=state.log.last_index,
            life=state.life,
            quarantined=state.is_quarantined,
        )
        state.send(message.sender, reply, holds=held)


def _why_not(state: RaftState, message: SnapshotReceived) -> str:
    if state.writes.is_installing:
        return "another one is being installed"
    if message.position.index <= state.commit_index:
        return f"entry {state.commit_index} is committed here already"
    if state.leadership is not None:
        return "this node leads"
    return ""


def _install(state: RaftState, message: SnapshotReceived) -> None:
    log, position = state.log, message.position
    keeps_log = log.term_at(position.index) == position.term
    if not keeps_log:
        log.restart(position, message.time, message.configuration, message.configuration_index)
        state.clock.rewind(log.last_time)
    state.commit_index = position.index
    state.writes.on_install(Install(position, message.time, keeps_log))
    state.installing = SnapshotInstalled(message.sender, position)
    reconfiguration.on_changed(state)


def on_installed(state: RaftState) -> None:
    """It is durable: this node is what the snapshot says, and applies what follows."""
    fact = state.installing
    assert fact is not None, "nobody asked for it"
    state.installing = None
    state.output.facts.append(fact)
    state.output.installed = fact.position
