"""Driver: batch of causes → raft → output, executed in its fixed order. It decides nothing.

Whatever arrives during one turn of the event loop is drained together at its end, stepped through the core, and
leaves as one output: that is where request batch, group commit and pipelining meet. Order of execution:

1. facts, for the operator's log;
2. the write goes to the log's thread, so that the disk starts as early as possible;
3. messages: at once, or held until the write they depend on is durable;
4. the fate of proposals and reads, to those who wait;
5. a snapshot that has become durable takes the state's place, and snapshots for followers are begun;
6. committed and durable entries, to the state machine; after a write one turn later, as the log's thread needs
   the interpreter to start the disk;
7. log reads for followers that are behind the memory.

One timer is armed for the core's next deadline. An exception anywhere in here ends the node: a half-alive node
is worse than a dead one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import msgspec

from kvnode import errors
from kvnode.clocks.clock import Clock
from kvnode.config import StorageSection
from kvnode.errors import KvnodeError, NoLeader, NoSpace, NotReady, Overloaded, Rejected, StorageFailed, TryAgain
from kvnode.ids import Index, NodeId, WriteNumber
from kvnode.node.admission import SpaceGuard
from kvnode.node.applier import Applier
from kvnode.node.lease_calls import LeaseCalls
from kvnode.node.log_writer import LogWriter
from kvnode.node.ports import LogStore, SnapshotSink, Transport
from kvnode.node.reads import Reads
from kvnode.node.snapshots import Snapshots
from kvnode.node.state_checks import StateChecks
from kvnode.node.update_queue import RETRY_AFTER_MS, UpdateQueue
from kvnode.node.waiting_list import SWEEP_MS, WaitingList
from kvnode.node.worker import Worker
from kvnode.observe.log import get_logger
from kvnode.observe.metrics import Histogram
from kvnode.raft.core import Raft
from kvnode.raft.messages import (
    AppendEntries,
    DiskRecovered,
    DiskStalled,
    Entry,
    Fetched,
    ForwardProposals,
    KeepAlive,
    KeepAliveReply,
    PeerConnected,
    PeerDisconnected,
    PeerMessage,
    PeerRefused,
    Persisted,
    Proposals,
    QuarantineLifted,
    ReadRequest,
    StateHash,
    Tick,
    TurnedAway,
)
from kvnode.raft.output import Fact, Fetch, Output, Send

STALL_CHECK_MS = 100

log = get_logger("driver")


class Driver:
    """The node's one consumer of causes. Lives on the node's loop; also the transport's `Receiver`."""

    def __init__(
        self,
        *,
        raft: Raft,
        transport: Transport,
        log: LogStore,
        log_reader: Worker,
        waiting: WaitingList,
        space: SpaceGuard,
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
        settings: StorageSection,
        heartbeat_ms: int,
        queue_items_max: int,
        queue_bytes_max: int,
        first_read: int,
        on_fact: Callable[[Fact], None],
        on_peer_up: Callable[[], None],
        on_failed: Callable[[BaseException], None],
    ) -> None:
        self._raft = raft
        self._transport = transport
        self._log = log
        self._log_reader = log_reader
        self._waiting = waiting
        self._space = space
        self._loop = loop
        self._clock = clock
        self._settings = settings
        self._heartbeat_ms = heartbeat_ms
        self._on_fact = on_fact
        self._on_peer_up = on_peer_up
        self._on_failed = on_failed
        self.queue = UpdateQueue(items_max=queue_items_max, bytes_max=queue_bytes_max, wake=self.wake)
        self.reads = Reads(loop, self.wake, clock.elapsed_ns, clock.monotonic_ms, first_read)
        self.loop_lag_seconds = Histogram()
        self.heartbeats_late = 0
        self._scheduled = False
        self._stopped = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due_ms = 0
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._stalled = False
        self.connected: dict[NodeId, None] = {}  # peers whose links are up
        self._writer: LogWriter
        self._applier: Applier
        self._lease_calls: LeaseCalls
        self._state_checks: StateChecks
        self._snapshots: Snapshots

    def connect(
        self,
        writer: LogWriter,
        applier: Applier,
        lease_calls: LeaseCalls,
        state_checks: StateChecks,
        snapshots: Snapshots,
    ) -> None:
        """Complete the circle: the writer and the applier report back here."""
        self._writer = writer
        self._applier = applier
        self._lease_calls = lease_calls
        self._state_checks = state_checks
        self._snapshots = snapshots

    def start(self) -> None:
        """Begin to consume causes."""
        self._watch_disk()
        self.queue.put_control(Tick())

    def stop(self) -> None:
        """Consume nothing more."""
        self._stopped = True
        for timer in (self._timer, self._sweep_timer, self._stall_timer):
            if timer is not None:
                timer.cancel()

    def wake(self) -> None:
        """Drain the queue at the end of this turn of the loop."""
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._run)

    # ── causes from the transport and the disk ──────────────────────────────────────────────────────

    def on_message(self, message: PeerMessage, size: int) -> None:
        if isinstance(message, AppendEntries):
            self.queue.put_append(message, size)
        elif isinstance(message, ForwardProposals):
            self._on_forwarded(message, size)
        elif isinstance(message, KeepAlive | KeepAliveReply):
            self._lease_calls.on_message(message)
        elif isinstance(message, StateHash):
            self._state_checks.on_message(message)
        else:
            self.queue.put_control(message)

    def _on_forwarded(self, message: ForwardProposals, size: int) -> None:
        """Into the queue, but for what would grow the store of a leader whose disk is at its limit."""
        no_room = self._space.refused(message.batch) if self._raft.role == "leader" else frozenset()
        if no_room:
            ids = tuple(proposal.id for proposal in message.batch if proposal.id in no_room)
            self.queue.put_control(TurnedAway(message.sender, ids, NoSpace.code, self._space.alarm))
            batch = tuple(proposal for proposal in message.batch if proposal.id not in no_room)
            message = msgspec.structs.replace(message, batch=batch)
        if message.batch and not self.queue.put_forwarded(message, size):
            ids = tuple(proposal.id for proposal in message.batch)
            self.queue.put_control(TurnedAway(message.sender, ids))

    def on_connected(self, peer: NodeId) -> None:
        self.connected[peer] = None
        self._snapshots.sender.on_connected(peer)
        self.queue.put_control(PeerConnected(peer))
        self._on_peer_up()

    def on_disconnected(self, peer: NodeId) -> None:
        self.connected.pop(peer, None)
        self._waiting.leader_lost(peer)
        self._lease_calls.leader_lost(peer)
        self.queue.put_control(PeerDisconnected(peer))

    def on_refused(self, peer: NodeId) -> None:
        self.queue.put_control(PeerRefused(peer))

    @property
    def snapshot_sink(self) -> SnapshotSink | None:
        return None if self._stopped else self._snapshots.receiver

    def on_persisted(self, number: WriteNumber) -> None:
        self.queue.put_control(Persisted(number))

    # ── the loop ────────────────────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        self._scheduled = False
        if self._stopped:
            return
        try:
            self._turn()
        except BaseException as error:  # noqa: BLE001 - the core or its shell is broken: end the node
            self._on_failed(error)

    def _turn(self) -> None:
        raft, clock = self._raft, self._clock
        now_ms, wall_ms = clock.monotonic_ms(), clock.wall_ms()
        batch = self.queue.drain()
        for cause in batch.control:
            raft.step(now_ms, wall_ms, cause)
        for message in batch.forwarded:
            raft.step(now_ms, wall_ms, message)
        if batch.proposals:
            raft.step(now_ms, wall_ms, Proposals(batch.proposals))
        if self._sweep_timer is None and self._waiting.has_deadlines:  # of requests, or of what a duty has proposed
            self._sweep_timer = self._loop.call_later(SWEEP_MS / 1e3, self._sweep)
        if number := self.reads.take_request():
            raft.step(now_ms, wall_ms, ReadRequest(number))
        if raft.next_deadline_ms() <= now_ms:
            raft.step(now_ms, wall_ms, Tick())
        self._execute(raft.take_output())
        self._arm(now_ms)

    def _execute(self, output: Output) -> None:
        for fact in output.facts:
            self._on_fact(fact)
        if output.persist is not None:
            if output.persist.install is not None:
                self._applier.pause()
                self._snapshots.accepted()
            self._writer.submit(output.persist)
        for send in output.sends:
            if send.after:
                self._writer.send_when_durable(send)
            else:
                self._transport.send(send.to, send.message)
        for forwarded in output.forwarded:
            if forwarded.leader in self.connected:
                self._waiting.forwarded(forwarded)
            else:  # the link went down before the message was handed to it: it has certainly not left
                self._waiting.refused(forwarded.id, _refusal(NoLeader.code))
        for placed in output.placed:
            self._waiting.placed(placed)
        for refused in output.refused:
            self._waiting.refused(refused.id, _refusal(refused.code, refused.message))
        for ready in output.reads_ready:
            self.reads.ready(ready.number, ready.index)
        for failed in output.reads_failed:
            self.reads.failed(failed.number)
        if output.installed is not None:
            self._snapshots.installed(output.installed)
        for wanted in output.snapshots:
            self._snapshots.send(wanted)
        if output.persist is None:
            self._applier.advance(output.apply_to)
        elif output.apply_to > self._applier.target:
            self._loop.call_soon(self._apply, output.apply_to)  # the log's thread needs the interpreter first
        for fetch in output.fetches:
            self._fetch(fetch)
        if output.lift_quarantine:
            self._writer.lift_quarantine(lambda: self.queue.put_control(QuarantineLifted()))

    def _apply(self, apply_to: Index) -> None:
        if self._stopped:
            return
        try:
            self._applier.advance(apply_to)
        except BaseException as error:  # noqa: BLE001 - as in `_run`
            self._on_failed(error)

    def _fetch(self, fetch: Fetch) -> None:
        def done(entries: Sequence[Entry]) -> None:
            self.queue.put_control(Fetched(fetch.peer, tuple(entries)))

        log = self._log
        self._log_reader.submit(lambda: log.read(fetch.first, fetch.last, fetch.bytes_max), done, self._on_failed)

    def send(self, send: Send) -> None:
        """Let a message go whose write is durable (called by the log writer)."""
        self._transport.send(send.to, send.message)

    # ── timers ──────────────────────────────────────────────────────────────────────────────────────

    def _arm(self, now_ms: int) -> None:
        """One timer, re-armed only when it would be late: waking early costs less than re-arming every turn."""
        due_ms = self._raft.next_deadline_ms()
        if self._timer is not None:
            if self._timer_due_ms <= due_ms:
                return
            self._timer.cancel()
        self._timer_due_ms = due_ms
        self._timer = self._loop.call_later(max(0, due_ms - now_ms) / 1e3, self._due)

    def _due(self) -> None:
        self._timer = None
        late_ms = max(0, self._clock.monotonic_ms() - self._timer_due_ms)
        self.loop_lag_seconds.observe(late_ms / 1e3)
        if late_ms >= self._heartbeat_ms:  # the loop was busy: the one cause of a late heartbeat that is ours
            log.warning("loop.lagged", node=self._raft.node, lag_ms=late_ms)
            if self._raft.role == "leader" and late_ms >= 2 * self._heartbeat_ms:
                self.heartbeats_late += 1
                log.warning("heartbeat.late", node=self._raft.node, late_ms=late_ms, cause="loop")
        self.wake()

    def _sweep(self) -> None:
        try:
            more = self._waiting.sweep(self._clock.monotonic_ms())
        except BaseException as error:  # noqa: BLE001 - a node that keeps no deadlines must not go on
            self._on_failed(error)
            return
        self._sweep_timer = self._loop.call_later(SWEEP_MS / 1e3, self._sweep) if more else None

    def _watch_disk(self) -> None:
        """A write that hangs: stop leading after `stall_ms`, end the process after `abort_ms` (trap HB6)."""
        self._stall_timer = self._loop.call_later(STALL_CHECK_MS / 1e3, self._watch_disk)
        now_ms = self._clock.monotonic_ms()
        in_flight_ms = self._writer.in_flight_ms(now_ms)
        if in_flight_ms > self._settings.abort_ms:
            self._on_failed(StorageFailed(f"a write to the log has not finished within {in_flight_ms} ms"))
        if (flush_ms := self._applier.flush_ms(now_ms)) > self._settings.abort_ms:
            self._on_failed(StorageFailed(f"a commit to the store has not finished within {flush_ms} ms"))
        stalled = in_flight_ms > self._settings.stall_ms
        if stalled != self._stalled:
            self._stalled = stalled
            log.warning(
                "disk.stalled" if stalled else "disk.recovered", node=self._raft.node, in_flight_ms=in_flight_ms
            )
            self.queue.put_control(DiskStalled() if stalled else DiskRecovered())

    @property
    def disk_stalled(self) -> bool:
        """Whether a write has been at the disk for longer than `storage.stall_ms`."""
        return self._stalled


def _refusal(code: str, sentence: str = "") -> KvnodeError:
    """What a proposer is told, who may be of another version: an unknown code is as good as "try again"."""
    if code == Overloaded.code:
        return Overloaded("the leader holds too much that is not committed yet", retry_after_ms=RETRY_AFTER_MS)
    if code == NoLeader.code:
        return NoLeader("the node that was asked does not lead")
    known = errors.by_code().get(code, NotReady)
    return known(sentence) if issubclass(known, Rejected | TryAgain) else NotReady(sentence)
