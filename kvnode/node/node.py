"""Node: the consistent core of one member, as the `KV` and `Admin` that front ends and programs use.

A write goes down once and up once: limits → payload → waiting list → update queue → driver → raft → log and
peers → applier → waiting list → reply. A read asks for an index it may be served at, then reads the applied
state. Everything here runs on the node's loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from kvnode import errors
from kvnode.clocks.clock import Clock
from kvnode.config import Config
from kvnode.errors import (
    ConnectionLost,
    KvnodeError,
    LogCorrupted,
    MemberNotFound,
    NoLeader,
    NotReady,
    Overloaded,
    StorageFailed,
    Timeout,
)
from kvnode.ids import NOBODY, NodeId, Revision, Term
from kvnode.kv.interface import DEFAULT_OPTIONS, KV, Admin, Options, Status
from kvnode.kv.keys import ONE_KEY
from kvnode.kv.requests import ApplyResult, Range, RangeReply, Refusal, Request, WriteRequest
from kvnode.machine.backend import Backend
from kvnode.machine.machine import StateMachine
from kvnode.node import admission, status
from kvnode.node.applier import Applier
from kvnode.node.driver import Driver
from kvnode.node.facts import FactLog
from kvnode.node.log_writer import LogWriter
from kvnode.node.ports import LogStore, Transport
from kvnode.node.range_reads import RangeReads
from kvnode.node.reads import RoundFailed
from kvnode.node.scrubber import LogScrubber
from kvnode.node.update_queue import RETRY_AFTER_MS
from kvnode.node.waiting_list import WaitingList
from kvnode.node.worker import Worker
from kvnode.observe.log import get_logger
from kvnode.raft.core import Raft
from kvnode.raft.messages import Proposed, TransferLeadership

NO_LEADER_RETRY_MS = 20
"""Pause before asking again after a refusal that no change of leader announced."""

HANDOVER_MS = 1_000
"""A clean shutdown waits this long for another node to take over."""

DRAIN_MS = 2_000
"""… and this long for requests in flight to be answered."""

log = get_logger("node")


class Workers:
    """The node's threads: one for the log, one that reads old log entries, one that flushes the store."""

    def __init__(self, make: Callable[[str], Worker]) -> None:
        self.log_writer = make("log")
        self.log_reader = make("log-reader")
        self.flusher = make("flusher")

    async def close(self) -> None:
        for worker in (self.log_writer, self.log_reader, self.flusher):
            await worker.close()


class Node(KV, Admin):
    """One running member. `start` begins to take part, `stop` hands over and ends; `failed` tells of a crash."""

    def __init__(
        self,
        *,
        config: Config,
        raft: Raft,
        machine: StateMachine,
        backend: Backend,
        log_store: LogStore,
        transport: Transport,
        workers: Workers,
        clock: Clock,
        loop: asyncio.AbstractEventLoop,
        identity: status.NodeIdentity,
        on_failed: Callable[[BaseException], None],
        lost: str = "",
    ) -> None:
        """`lost`: the damage for which this node starts in quarantine."""
        self._config = config
        self._raft = raft
        self._machine = machine
        self._backend = backend
        self._transport = transport
        self._workers = workers
        self._clock = clock
        self._loop = loop
        self._identity = identity
        self._report_failed = on_failed
        self._started_ms = clock.monotonic_ms()
        self._stopping = False
        self._closed = False  # nothing is consumed any more: what comes now is refused
        self.has_ended = False  # nothing of this node runs any more: its directory may be given up
        self._failure: BaseException | None = None
        self._caught_up = False
        self._catch_up: asyncio.Task[None] | None = None
        self._proposals = self._proposals_failed = 0
        self._facts = FactLog(node=raft.node)
        self._waiting = WaitingList(loop, first_id=identity.boot << 32)
        self._range_reads = RangeReads(machine, loop)
        self._space = admission.SpaceGuard(config.storage, machine, identity.free_bytes, clock)
        self._driver = Driver(
            raft=raft,
            transport=transport,
            log=log_store,
            log_reader=workers.log_reader,
            waiting=self._waiting,
            loop=loop,
            clock=clock,
            settings=config.storage,
            heartbeat_ms=config.raft.heartbeat_ms,
            queue_items_max=config.limits.queue_items_max,
            queue_bytes_max=config.limits.queue_bytes_max,
            first_read=identity.boot << 32,
            on_fact=self._facts.record,
            on_peer_up=self._facts.wake_all,
            on_failed=self._fail,
        )
        self._writer = LogWriter(
            log_store,
            workers.log_writer,
            loop=loop,
            clock=clock,
            batch_bytes_max=config.storage.batch_bytes_max,
            on_persisted=self._driver.on_persisted,
            on_failed=self._fail,
            send=self._driver.send,
        )
        self._applier = Applier(
            raft=raft,
            machine=machine,
            backend=backend,
            log=log_store,
            log_reader=workers.log_reader,
            flusher=workers.flusher,
            waiting=self._waiting,
            reads=self._driver.reads,
            loop=loop,
            clock=clock,
            settings=config.storage,
            on_failed=self._fail,
        )
        self._driver.connect(self._writer, self._applier)
        self._scrubber = LogScrubber(
            log_store,
            workers.log_reader,
            loop=loop,
            settings=config.storage,
            on_failed=self._on_scrub_failed,
        )
        self._log_store = log_store
        self._lost = lost
        self._rotten = ""  # found by the scrubber of a node without peers

    # ── life ────────────────────────────────────────────────────────────────────────────────────────

    @property
    def receiver(self) -> Driver:
        """The side of this node that the transport delivers to."""
        return self._driver

    def start(self) -> None:
        """Take part: elections, replication, requests."""
        self._driver.start()
        self._scrubber.start()
        self._catch_up = self._loop.create_task(self._note_caught_up(), name="catch-up")
        self._catch_up.add_done_callback(self._on_catch_up_done)

    async def stop(self) -> None:
        """Hand leadership over, let requests in flight finish or fail honestly, make everything durable, end.

        Bounded by `HANDOVER_MS` + `DRAIN_MS` plus the disk, which gets `storage.abort_ms`; `has_ended` tells whether
        that was enough. Never raises for what is in flight.
        """
        if self._stopping:
            return
        self._stopping = True
        log.info("node.stopping", node=self._raft.node, waiting=len(self._waiting))
        self._scrubber.stop()
        if self._catch_up is not None:
            self._catch_up.cancel()
        if self._failure is None:
            if self._raft.role == "leader" and len(self._raft.configuration.voters) > 1:
                self._driver.queue.put_control(TransferLeadership(NOBODY))
                await self._until(lambda: self._raft.role != "leader", HANDOVER_MS)
            await self._until(lambda: not self._waiting, DRAIN_MS)
        self._closed = True
        self._driver.stop()
        self._fail_waiting(ConnectionLost("the node is stopping; the request may still take effect"))
        await self._transport.close()
        self.has_ended = await self._end_workers()
        if self.has_ended:
            self._backend.close()

    async def _end_workers(self) -> bool:
        """Let the jobs at the disk end. False: one hangs, so what it may still touch must not be given up."""
        has_failed = self._failure is not None
        try:
            async with asyncio.timeout((DRAIN_MS if has_failed else self._config.storage.abort_ms) / 1e3):
                if not has_failed:
                    self._applier.close()
                await self._writer.close(abandon=has_failed)
                await self._workers.close()
        except TimeoutError:
            return False
        return True

    def abandon(self) -> None:
        """Stop at once and answer everybody "unknown": what a killed process does, for tests and the simulator."""
        self._stopping = self._closed = True
        self._scrubber.stop()
        if self._catch_up is not None:
            self._catch_up.cancel()
        self._driver.stop()
        self._applier.halt()
        self._fail_waiting(ConnectionLost("the node was killed"))

    async def _until(self, condition: Callable[[], bool], within_ms: int) -> None:
        deadline = self._clock.monotonic_ms() + within_ms
        # Polled: roles and waiting lists change on hot paths that should not carry an event for a shutdown.
        while not condition() and self._clock.monotonic_ms() < deadline and self._failure is None:  # noqa: ASYNC110
            await asyncio.sleep(0.005)

    def _fail(self, error: BaseException) -> None:
        """Something that must not break broke: nothing more is acknowledged, the owner ends the process."""
        if self._failure is not None:
            return
        self._failure = error
        self._scrubber.stop()
        self._driver.stop()
        self._applier.halt()
        self._fail_waiting(ConnectionLost(f"the node failed: {error}"))
        if isinstance(error, LogCorrupted) and error.repairable and not self._is_alone:
            error = self._note_damage(error)
        self._report_failed(error)

    @property
    def _is_alone(self) -> bool:
        return self._raft.configuration.voters == (self._raft.node,)

    def _note_damage(self, damage: LogCorrupted) -> BaseException:
        """What nobody would look at when the node starts again must not be forgotten until then.

        Returns what the node fails of: without the note it must not start again by itself.
        """
        try:
            self._log_store.note_damage(damage)
        except StorageFailed as error:
            error.add_note(damage.message)
            return error
        return damage

    def _on_scrub_failed(self, error: BaseException) -> None:
        """Damage in old entries: a node with peers has them restored, one without can go on and must say so."""
        if not (isinstance(error, LogCorrupted) and self._is_alone):
            self._fail(error)
            return
        self._rotten = error.what
        log.error("wal.damaged", node=self._raft.node, what=error.what, **error.detail)

    def _fail_waiting(self, error: KvnodeError) -> None:
        self._waiting.fail_all(error)
        self._driver.reads.fail_all(error)
        self._range_reads.fail_all(error)
        self._facts.wake_all()

    def _on_catch_up_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    async def _note_caught_up(self) -> None:
        """Ready means: has answered one linearizable read of its own since it started."""
        while not self._caught_up and self._failure is None and not self._closed:
            try:
                await self._reach_read_index(self._deadline(self._config.limits.timeout_ms), DEFAULT_OPTIONS)
            except (errors.TryAgain, errors.Unknown):
                await asyncio.sleep(NO_LEADER_RETRY_MS / 1e3)  # some refusals come at once: the loop must go on
            else:
                self._caught_up = True

    # ── KV ──────────────────────────────────────────────────────────────────────────────────────────

    def execute(self, request: Request, options: Options = DEFAULT_OPTIONS) -> Coroutine[Any, Any, Any]:
        """Carry out one request; see `KV.execute`."""
        return self._read(request, options) if isinstance(request, Range) else self._write(request, options)

    async def _write(self, request: WriteRequest, options: Options) -> ApplyResult:
        admission.check_write(request, self._config.limits)
        self._space.check(request)
        if self._applier.is_held_back:
            raise Overloaded("the store is behind the log", retry_after_ms=RETRY_AFTER_MS)
        payload = admission.payload_of(request, self._config.limits)
        deadline_ms = self._deadline(options.timeout_ms)
        self._proposals += 1
        patience_ms = min(deadline_ms, self._clock.monotonic_ms() + self._config.limits.no_leader_ms)
        refusals = 0
        while True:
            await self._leader(patience_ms, options)
            request_id, answer = self._waiting.add(deadline_ms, self._clock.elapsed_ns())
            try:
                self._driver.queue.put_proposal(Proposed(request_id, payload))
                result = await answer
            except NoLeader:
                # Refused before any log had it: safe to propose again, as long as our patience lasts.
                await self._pause(patience_ms, refusals)
                refusals += 1
                continue
            except BaseException:
                self._waiting.discard(request_id)
                self._proposals_failed += 1
                raise
            if type(result) is Refusal:
                raise _refused(result)
            return result

    async def _read(self, request: Range, options: Options) -> RangeReply:
        admission.check_read(request, self._config.limits)
        deadline_ms = self._deadline(options.timeout_ms)
        if options.consistency == "linearizable":
            await self._reach_read_index(deadline_ms, options)
        if self._failure is not None or self._closed:
            raise NotReady("the node is stopping")
        if request.end == ONE_KEY:
            return self._machine.range(request)
        return await self._read_range(request, deadline_ms)

    async def _read_range(self, request: Range, deadline_ms: int) -> RangeReply:
        answer = self._range_reads.read(request)
        if answer.done():
            return answer.result()
        try:
            async with asyncio.timeout(max(0, deadline_ms - self._clock.monotonic_ms()) / 1e3):
                return await answer
        except TimeoutError as error:
            if isinstance(error, KvnodeError):
                raise
            raise Timeout("the range was not read within its deadline") from None

    async def _reach_read_index(self, deadline_ms: int, options: Options) -> None:
        """Wait until the applied state holds everything that was committed when this was called (thesis §6.4)."""
        patience_ms = min(deadline_ms, self._clock.monotonic_ms() + self._config.limits.no_leader_ms)
        refusals = 0
        while True:
            await self._leader(patience_ms, options)
            try:
                async with asyncio.timeout(max(0, deadline_ms - self._clock.monotonic_ms()) / 1e3):
                    await self._driver.reads.wait()
            except RoundFailed:
                await self._pause(patience_ms, refusals)
                refusals += 1
            except TimeoutError as error:
                if isinstance(error, KvnodeError):
                    raise
                raise Timeout("the read was not confirmed within its deadline") from None
            else:
                return

    # ── leader ──────────────────────────────────────────────────────────────────────────────────────

    async def _leader(self, patience_ms: int, options: Options) -> None:
        """Return once a leader is known and reachable; at once in the common case.

        Raises: NoLeader when none is found in time, or when the caller wants no forwarding and we do not lead.
        """
        while True:
            if self._failure is not None or self._closed:
                raise NotReady("the node is stopping")
            leader = self._raft.leader
            if leader == self._raft.node:
                return
            if leader != NOBODY and leader in self._driver.connected:
                if options.forward:
                    return
                raise NoLeader(f"node {leader} leads", leader=leader, leader_url=self.leader_client_url())
            left_ms = patience_ms - self._clock.monotonic_ms()
            if left_ms <= 0:
                raise NoLeader("no leader is known to this node")
            await self._facts.leader_changed(
                left_ms
            )  # not polled: thousands may wait while the election needs the loop

    async def _pause(self, patience_ms: int, refusals: int) -> None:
        """After a refusal: wait for news of the leader, or a moment that grows with each."""
        left_ms = patience_ms - self._clock.monotonic_ms()
        if left_ms <= 0:
            raise NoLeader("no leader accepted the request")
        await self._facts.leader_changed(min(left_ms, NO_LEADER_RETRY_MS << min(refusals, 4)))

    def _deadline(self, timeout_ms: int) -> int:
        return self._clock.monotonic_ms() + min(timeout_ms, self._config.limits.timeout_ms_max)

    # ── Admin ───────────────────────────────────────────────────────────────────────────────────────

    @property
    def id(self) -> NodeId:
        return self._raft.node

    @property
    def term(self) -> Term:
        return self._raft.term

    @property
    def revision(self) -> Revision:
        return self._machine.revision

    @property
    def applied_time(self) -> int:
        return self._machine.applied_time

    def is_ready(self) -> bool:
        leader = self._raft.leader
        reachable = leader == self._raft.node or leader in self._driver.connected
        return (
            self._caught_up
            and reachable
            and not self._raft.is_quarantined
            and not self._stopping
            and self._failure is None
        )

    def leader_client_url(self) -> str:
        leader = self._raft.leader
        if leader == self._raft.node:
            return self._identity.client_url
        link = self._transport.links().get(leader)
        return link.client_url if link is not None else ""

    async def transfer_leadership(self, to: NodeId) -> None:
        if self._raft.role != "leader":
            raise NoLeader("only the leader can hand over", leader_url=self.leader_client_url())
        if to not in self._raft.configuration.voters:
            raise MemberNotFound(f"node {to} is not a voter of this cluster")
        if to == self._raft.node:
            return
        self._driver.queue.put_control(TransferLeadership(to))
        await self._until(lambda: self._raft.role != "leader", 2 * self._config.raft.election_timeout_ms)
        if self._raft.role == "leader":
            raise Timeout(f"node {to} did not take over in time")

    def status(self) -> Status:
        return status.build(
            config=self._config,
            identity=self._identity,
            raft=self._raft,
            machine=self._machine,
            backend=self._backend,
            driver=self._driver,
            transport=self._transport,
            log_bytes=self._log_store.bytes_used,
            ready=self.is_ready(),
            now_ms=self._clock.monotonic_ms(),
            started_ms=self._started_ms,
            space_alarm=self._space.alarm,
            lost=self._lost,
            rotten=self._rotten,
        )

    def counters(self) -> dict[str, Any]:
        return status.counters(
            raft=self._raft,
            machine=self._machine,
            backend=self._backend,
            driver=self._driver,
            writer=self._writer,
            applier=self._applier,
            waiting=self._waiting,
            facts=self._facts,
            scrub_passes=self._scrubber.passes,
            traffic=self._transport.counters,
            log_bytes=self._log_store.bytes_used,
            proposals=self._proposals,
            proposals_failed=self._proposals_failed,
        )


def _refused(refusal: Refusal) -> KvnodeError:
    """The state machine's deterministic refusal, as the exception its code names."""
    detail: dict[str, Any] = {"revision": refusal.found} if refusal.code == errors.CompareFailed.code else {}
    return errors.by_code()[refusal.code](refusal.message, **detail)
