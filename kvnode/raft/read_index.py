"""Read index: linearizable reads without a log entry, by proving after the question that we still lead.

All reads that arrived since the last output share one round with a fresh number, never used before by this process.
The round notes the commit index and goes out with a heartbeat; when a majority of voters has echoed its number *or a
later one* in this term, the reads may be served at that index. A late echo of an older round proves nothing about a
newer read, and no round opens before an entry of the leader's own term is committed (trap R4; scenarios S31–S36).

A follower asks the leader for an index. Everything pending fails when the leader, the term or the connection to the
leader changes, or after an election timeout; who asked asks again under a fresh number. Source: thesis §6.4.
"""

from __future__ import annotations

from kvnode.ids import NOBODY, Index, NodeId
from kvnode.raft import leader_lease, quorum
from kvnode.raft.messages import ReadIndexReply, ReadIndexRequest
from kvnode.raft.output import ReadFailed, ReadReady
from kvnode.raft.state import Leadership, RaftState, ReadRound

READS_PENDING_MAX = 16_384
"""Read requests waiting at one node (each stands for all reads of one batch); further ones fail at once."""

_REFUSED = Index(0)


def on_read_request(state: RaftState, number: int) -> None:
    """Reads of this node's clients: open a round soon, or ask the leader."""
    if state.leadership is not None:
        _enqueue(state, state.leadership, state.node, number)
    elif (
        state.leader == NOBODY or state.leader in state.disconnected or len(state.forwarded_reads) >= READS_PENDING_MAX
    ):
        state.output.reads_failed.append(ReadFailed(number))
    else:
        state.forwarded_reads[number] = state.now_ms + state.settings.election_timeout_ms
        state.send(state.leader, ReadIndexRequest(state.term, state.node, number))


def on_read_index_request(state: RaftState, message: ReadIndexRequest) -> None:
    if state.leadership is None:
        state.send(message.sender, ReadIndexReply(state.term, state.node, message.number, _REFUSED))
    else:
        _enqueue(state, state.leadership, message.sender, message.number)


def _enqueue(state: RaftState, leadership: Leadership, origin: NodeId, number: int) -> None:
    if leadership.reads_count >= READS_PENDING_MAX:
        _answer(state, origin, number, _REFUSED)
        return
    leadership.reads_count += 1
    leadership.reads_waiting.append((origin, number))


def open_round(state: RaftState, leadership: Leadership) -> None:
    """Start one round for all reads that wait, if this term's no-op is committed. Called once per output."""
    if not leadership.reads_waiting or state.commit_index < leadership.first_index:
        return
    state.read_round += 1
    leadership.read_rounds.append(ReadRound(state.read_round, state.commit_index, leadership.reads_waiting))
    leadership.reads_waiting = []
    leadership.heartbeat_due = True
    if state.settings.leader_lease_reads:
        leader_lease.on_round(state, leadership)
    confirm(state, leadership)


def confirm(state: RaftState, leadership: Leadership) -> None:
    """Answer the reads of every round that a majority of voters has echoed."""
    rounds = leadership.read_rounds
    if not (rounds or leadership.lease_rounds):
        return

    def echoed(voter: NodeId) -> int:
        return state.read_round if voter == state.node else leadership.progress[voter].read_round

    confirmed = quorum.majority_value(state.configuration, echoed)
    leader_lease.on_confirmed(leadership, confirmed)
    while rounds and rounds[0].number <= confirmed:
        done = rounds.popleft()
        leadership.reads_count -= len(done.reads)
        for origin, number in done.reads:
            _answer(state, origin, number, done.index)


def _answer(state: RaftState, origin: NodeId, number: int, index: Index) -> None:
    if origin != state.node:
        asker = state.leadership.progress.get(origin) if state.leadership is not None else None
        if asker is not None and index != _REFUSED:
            asker.commit_wanted = index
        state.send(origin, ReadIndexReply(state.term, state.node, number, index))
    elif index == _REFUSED:
        state.output.reads_failed.append(ReadFailed(number))
    else:
        state.output.reads_ready.append(ReadReady(number, index))


def on_read_index_reply(state: RaftState, message: ReadIndexReply) -> None:
    """The leader's answer; one that nobody waits for any more (late, duplicate) is dropped."""
    if state.forwarded_reads.pop(message.number, None) is None:
        return
    if message.index == _REFUSED:
        state.output.reads_failed.append(ReadFailed(message.number))
    else:
        state.output.reads_ready.append(ReadReady(message.number, message.index))


def fail_led(state: RaftState) -> None:
    """Leadership is over: no round can be confirmed any more."""
    leadership = state.leadership
    assert leadership is not None
    pending = [read for waiting in leadership.read_rounds for read in waiting.reads] + leadership.reads_waiting
    for origin, number in pending:
        _answer(state, origin, number, _REFUSED)


def fail_forwarded(state: RaftState) -> None:
    """Whom we asked is not our leader any more, or cannot answer."""
    for number in state.forwarded_reads:
        state.output.reads_failed.append(ReadFailed(number))
    state.forwarded_reads.clear()


def expire_forwarded(state: RaftState) -> None:
    """Fail what the leader has not answered within an election timeout."""
    overdue = [number for number, expires in state.forwarded_reads.items() if expires <= state.now_ms]
    for number in overdue:
        del state.forwarded_reads[number]
        state.output.reads_failed.append(ReadFailed(number))
