"""Node: the consistent core of one member, as the `KV` and `Admin` that front ends and programs use.

Owns its parts from start to end; the way of a request through them is `request_path`'s. Everything here runs on the
node's loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from kvnode.clocks.clock import Clock
from kvnode.config import Config
from kvnode.errors import (
    Conflict,
    ConnectionLost,
    KvnodeError,
    MemberNotFound,
    NoLeader,
    StateDiverged,
    Timeout,
)
from kvnode.ids import NOBODY, Index, NodeId, Revision, Term
from kvnode.kv.interface import DEFAULT_OPTIONS, KV, Admin, Backup, Members, MembersChanged, Options, Status
from kvnode.kv.members import AddMember, MemberChange
from kvnode.kv.requests import HashReply, Reply, Request, Watch, WriteRequest
from kvnode.machine.machine import StateMachine
from kvnode.node import admission, status
from kvnode.node.applier import Applier
from kvnode.node.backups import Backups
from kvnode.node.changes import Changes
from kvnode.node.driver import Driver
from kvnode.node.duties import Duties
from kvnode.node.facts import FactLog
from kvnode.node.lease_calls import LeaseCalls
from kvnode.node.leases import Lessor
from kvnode.node.log_health import LogHealth
from kvnode.node.log_writer import LogWriter
from kvnode.node.low_water_mark import LowWaterMark
from kvnode.node.member_alarms import MemberAlarms
from kvnode.node.member_view import MemberView
from kvnode.node.members import MemberDuty
from kvnode.node.own_events import OnEvent, of_leases, tell_nobody
from kvnode.node.ports import LogStore, SnapshotStore, Transport
from kvnode.node.range_reads import RangeReads
from kvnode.node.request_path import RequestPath
from kvnode.node.retention import Retention
from kvnode.node.sessions import SessionDuty
from kvnode.node.snapshot_receiver import SnapshotReceiver
from kvnode.node.snapshot_sender import SnapshotSender
from kvnode.node.snapshots import Snapshots
from kvnode.node.state_checks import StateChecks
from kvnode.node.waiting_list import WaitingList
from kvnode.node.watch_stream import NodeStream
from kvnode.node.watches import Watches
from kvnode.node.worker import Worker
from kvnode.observe.log import get_logger
from kvnode.raft.core import Raft
from kvnode.raft.messages import Configuration, LogTrimmed, TransferLeadership
from kvnode.raft.output import ConfigurationChanged, Fact, SnapshotIgnored
from kvnode.wire.codec import decode_configuration

HANDOVER_MS = 1_000
"""A clean shutdown waits this long for another node to take over."""

DRAIN_MS = 2_000
"""… and this long for requests in flight to be answered."""

log = get_logger("node")


class Workers:
    """The node's threads: the log's, one that reads old log entries, one that flushes the store, one for snapshots."""

    def __init__(self, make: Callable[[str], Worker]) -> None:
        self.log_writer = make("log")
        self.log_reader = make("log-reader")
        self.snapshots = make("snapshots")
        self.flusher = make("flusher")

    async def close(self) -> None:
        for worker in (self.log_writer, self.log_reader, self.snapshots, self.flusher):
            await worker.close()


class Node(KV, Admin):
    """One running member. `start` begins to take part, `stop` hands over and ends; `failed` tells of a crash."""

    def __init__(
        self,
        *,
        config: Config,
        raft: Raft,
        machine: StateMachine,
        log_store: LogStore,
        snapshot_store: SnapshotStore,
        transport: Transport,
        workers: Workers,
        clock: Clock,
        loop: asyncio.AbstractEventLoop,
        identity: status.NodeIdentity,
        on_members: Callable[[Configuration, Index, Configuration], None],
        on_failed: Callable[[BaseException], None],
        on_fact: Callable[[Fact], None] | None = None,
        on_event: OnEvent = tell_nobody,
        lost: str = "",
    ) -> None:
        """`on_fact`: told of what happens in the core, for the timeline; `on_event`: of what else does.

        `on_members`: the members as applied, at which index, and as in force; told at the start and at each change.

        `lost`: the damage for which this node starts in quarantine.
        """
        self._config = config
        self._raft = raft
        self._led_term = Term(0)  # newest in which a leader was known when somebody asked
        self._machine = machine
        self._transport = transport
        self._workers = workers
        self._clock = clock
        self._loop = loop
        self._identity = identity
        self._on_members = on_members
        self._tell_fact = on_fact
        self._tell_event = on_event
        self._report_failed = on_failed
        self._started_ms = clock.monotonic_ms()
        self._stopping = False
        self.has_ended = False  # nothing of this node runs any more: its directory may be given up
        self._failure: BaseException | None = None
        self._catch_up: asyncio.Task[None] | None = None
        self._facts = FactLog(node=raft.node)
        self._waiting = WaitingList(loop, first_id=identity.boot << 32)
        self._space = admission.SpaceGuard(config.storage, machine, identity.free_bytes, clock)
        self._driver = self._make_driver(log_store)
        self._writer = LogWriter(
            log_store,
            workers.log_writer,
            loop=loop,
            clock=clock,
            batch_bytes_max=config.storage.batch_bytes_max,
            switch_store=snapshot_store.switch,
            on_persisted=self._driver.on_persisted,
            on_failed=self._fail,
            send=self._driver.send,
        )
        changes = Changes(loop)
        range_reads = RangeReads(machine, loop)
        self._watches = Watches(machine, range_reads, watches_max=config.limits.watches_max, loop=loop, clock=clock)
        self._state_checks = StateChecks(
            node=raft.node,
            settings=config.storage,
            configuration=lambda: raft.configuration,
            term=lambda: raft.term,
            send=transport.send,
            on_diverged=lambda sentence: self._fail(StateDiverged(sentence)),
        )
        self._applier = Applier(
            raft=raft,
            machine=machine,
            log=log_store,
            log_reader=workers.log_reader,
            flusher=workers.flusher,
            waiting=self._waiting,
            reads=self._driver.reads,
            changes=changes,
            watches=self._watches,
            state_checks=self._state_checks,
            loop=loop,
            clock=clock,
            settings=config.storage,
            on_configured=self._tell_members,
            on_flushed=self._on_flushed,
            on_failed=self._fail,
        )
        self._duties = Duties(
            raft=raft,
            machine=machine,
            driver=self._driver,
            waiting=self._waiting,
            loop=loop,
            clock=clock,
            on_failed=self._fail,
        )
        self._snapshots = self._make_snapshots(snapshot_store, changes)
        self._low_water_mark = LowWaterMark(
            log_store,
            self._writer,
            tail_bytes=config.storage.tail_bytes,
            segment_bytes=config.storage.segment_bytes,
            pinned_index=self._snapshots.sender.pinned_index,
            on_trimmed=lambda position: self._driver.queue.put_control(LogTrimmed(position)),
        )
        lease_calls = LeaseCalls(
            self._add_duties(),
            raft=raft,
            machine=machine,
            transport=transport,
            limits=config.limits,
            loop=loop,
            clock=clock,
            first_number=identity.boot << 32,
        )
        self._driver.connect(self._writer, self._applier, lease_calls, self._state_checks, self._snapshots)
        self._path = RequestPath(
            raft=raft,
            machine=machine,
            driver=self._driver,
            applier=self._applier,
            changes=changes,
            range_reads=range_reads,
            watches=self._watches,
            waiting=self._waiting,
            facts=self._facts,
            space=self._space,
            lease_calls=lease_calls,
            limits=config.limits,
            settings=config.raft,
            clock=clock,
            leader_client_url=self.leader_client_url,
        )
        self._backups = Backups(
            node=raft.node,
            machine=machine,
            applier=self._applier,
            reach_read_index=self._path.reach_read_index,
            worker=workers.snapshots,
            loop=loop,
            clock=clock,
            cluster_id=identity.cluster_id,
            initial=identity.initial,
            on_event=on_event,
        )
        self._snapshots.on_installing = lambda: self._backups.break_off("a snapshot takes this state's place")
        self._view = MemberView(
            raft=raft,
            transport=transport,
            cluster_id=f"{identity.cluster_id:016x}",
            cluster_name=config.cluster.name,
            client_url=identity.client_url,
            feature_level=identity.feature_level,
        )
        self._member_alarms = MemberAlarms(
            raft=raft,
            transport=transport,
            loop=loop,
            clock=clock,
            on_failed=self._fail,
        )
        self._log_store = log_store
        self._log_health = LogHealth(
            log_store,
            workers.log_reader,
            raft=raft,
            loop=loop,
            settings=config.storage,
            lost=lost,
            on_failed=self._fail,
        )

    def _make_driver(self, log_store: LogStore) -> Driver:
        return Driver(
            raft=self._raft,
            transport=self._transport,
            log=log_store,
            log_reader=self._workers.log_reader,
            waiting=self._waiting,
            space=self._space,
            loop=self._loop,
            clock=self._clock,
            settings=self._config.storage,
            heartbeat_ms=self._config.raft.heartbeat_ms,
            queue_items_max=self._config.limits.queue_items_max,
            queue_bytes_max=self._config.limits.queue_bytes_max,
            first_read=self._identity.boot << 32,
            on_fact=self._on_fact,
            on_peer_up=self._facts.wake_all,
            on_failed=self._fail,
        )

    def _make_snapshots(self, store: SnapshotStore, changes: Changes) -> Snapshots:
        put = self._driver.queue.put_control
        sender = SnapshotSender(
            raft=self._raft,
            machine=self._machine,
            transport=self._transport,
            worker=self._workers.snapshots,
            loop=self._loop,
            cluster_id=self._identity.cluster_id,
            initial=self._identity.initial,
            on_sent=put,
            on_failed=self._fail,
            on_event=self._tell_event,
        )
        receiver = SnapshotReceiver(
            store,
            self._workers.snapshots,
            raft=self._raft,
            machine=self._machine,
            limits=self._config.limits,
            loop=self._loop,
            cluster_id=self._identity.cluster_id,
            on_received=put,
            on_failed=self._fail,
        )
        return Snapshots(
            sender=sender,
            receiver=receiver,
            applier=self._applier,
            end_duties=self._duties.look,
            state_checks=self._state_checks,
            changes=changes,
            watches=self._watches,
            flusher=self._workers.flusher,
            on_failed=self._fail,
        )

    def _on_flushed(self, index: Index) -> None:
        if self._config.storage.backend == "lmdb":  # else the log is all there will be after a restart
            self._low_water_mark.flushed(index)

    def _on_fact(self, fact: Fact) -> None:
        self._facts.record(fact)
        if self._tell_fact is not None:
            self._tell_fact(fact)
        if isinstance(fact, ConfigurationChanged):
            self._tell_members()
        elif isinstance(fact, SnapshotIgnored):
            self._snapshots.receiver.ignored()

    def _tell_members(self) -> None:
        machine = self._machine
        applied = decode_configuration(machine.configuration) if machine.configuration else self._identity.initial
        self._on_members(applied, machine.configuration_index, self._raft.configuration)

    def _add_duties(self) -> Lessor:
        """What this node looks after while it leads; the lessor answers renewals, too."""
        lessor = Lessor(
            machine=self._machine,
            reads=self._driver.reads,
            clock=self._clock,
            margin_ms=self._config.raft.election_timeout_ms,
        )
        lessor.on_ended = self._on_leases_ended
        lessor.connect(self._duties)
        self._duties.add(lessor)
        self._duties.add(SessionDuty(self._machine, self._config.limits))
        self._duties.add(Retention(self._machine, self._config.history))
        self._duties.add(
            MemberDuty(
                raft=self._raft,
                links=self._transport.links,
                feature_level=self._identity.feature_level,
            )
        )
        self._duties.add(self._state_checks)
        return lessor

    def _on_leases_ended(self, count: int) -> None:
        told = of_leases(count)
        if told is not None:
            self._tell_event(*told)

    # ── life ────────────────────────────────────────────────────────────────────────────────────────

    @property
    def receiver(self) -> Driver:
        """The side of this node that the transport delivers to."""
        return self._driver

    @property
    def has_noted_damage(self) -> bool:
        """It failed of damage that the next start sets aside and peers make good."""
        return self._log_health.is_noted

    def start(self) -> None:
        """Take part: elections, replication, requests."""
        self._tell_members()
        self._driver.start()
        self._duties.start()
        self._log_health.start()
        self._member_alarms.start()
        self._catch_up = self._loop.create_task(self._path.catch_up(), name="catch-up")
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
        self._log_health.stop()
        self._member_alarms.stop()
        self._duties.stop()
        self._snapshots.stop()
        self._backups.stop()
        if self._catch_up is not None:
            self._catch_up.cancel()
        if self._failure is None:
            if self._raft.role == "leader" and len(self._raft.configuration.voters) > 1:
                self._driver.queue.put_control(TransferLeadership(NOBODY))
                await self._until(lambda: self._raft.role != "leader", HANDOVER_MS)
            await self._until(lambda: not self._waiting, DRAIN_MS)
        self._driver.stop()
        self._path.close(ConnectionLost("the node is stopping; the request may still take effect"))
        await self._transport.close()
        self.has_ended = await self._end_workers()
        if self.has_ended:
            self._machine.backend.close()

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
        self._stopping = True
        self._log_health.stop()
        self._member_alarms.stop()
        self._duties.stop()
        self._snapshots.stop()
        self._backups.stop()
        if self._catch_up is not None:
            self._catch_up.cancel()
        self._driver.stop()
        self._applier.halt()
        self._path.close(ConnectionLost("the node was killed"))

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
        self._log_health.stop()
        self._member_alarms.stop()
        self._duties.stop()
        self._snapshots.stop()
        self._backups.stop()
        self._driver.stop()
        self._applier.halt()
        self._path.close(ConnectionLost(f"the node failed: {error}"))
        self._report_failed(self._log_health.remember(error))

    def _on_catch_up_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    # ── KV ──────────────────────────────────────────────────────────────────────────────────────────

    def execute(self, request: Request, options: Options = DEFAULT_OPTIONS) -> Coroutine[Any, Any, Any]:
        """Carry out one request; see `KV.execute`."""
        return self._path.execute(request, options)

    async def execute_all(
        self, requests: Sequence[Request], options: Options = DEFAULT_OPTIONS
    ) -> list[Reply | KvnodeError]:
        """Carry out each on its own; see `KV.execute_all`. Writes need no task each."""
        writes = [request for request in requests if isinstance(request, WriteRequest)]
        if len(writes) == len(requests):
            return await self._path.write_all(writes, options)
        found: list[Any] = await asyncio.gather(
            *(self.execute(request, options) for request in requests), return_exceptions=True
        )
        for one in found:
            if isinstance(one, BaseException) and not isinstance(one, KvnodeError):
                raise one
        return found

    def watch(self, request: Watch, options: Options = DEFAULT_OPTIONS) -> NodeStream:
        """Stream changes; see `KV.watch`."""
        return self._path.watch(request, options)

    # ── Admin ───────────────────────────────────────────────────────────────────────────────────────

    @property
    def id(self) -> NodeId:
        return self._raft.node

    @property
    def term(self) -> Term:
        return self._raft.term

    @property
    def led_term(self) -> Term:
        if self._raft.leader != NOBODY:
            self._led_term = self._raft.term
        return max(self._led_term, self._applier.applied_term)

    @property
    def revision(self) -> Revision:
        return self._machine.revision

    @property
    def lease_count(self) -> int:
        """Of the applied state; cheap."""
        return len(self._machine.leases)

    @property
    def role(self) -> str:
        """As `/v1/status` has it."""
        return self._raft.role

    @property
    def applied_index(self) -> Index:
        return Index(self._machine.applied_index)

    @property
    def reaches_quorum(self) -> bool:
        """A majority of the voters is connected, this node among them if it is one."""
        voters = self._raft.configuration.voters
        here = sum(voter == self._raft.node or voter in self._driver.connected for voter in voters)
        return 2 * here > len(voters)

    @property
    def applied_time(self) -> int:
        return self._machine.applied_time

    @property
    def staleness_ms(self) -> int:
        return self._path.staleness_ms

    def is_ready(self) -> bool:
        leader = self._raft.leader
        reachable = leader == self._raft.node or leader in self._driver.connected
        return (
            self._path.is_caught_up
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

    async def transfer_leadership(self, to: NodeId = NOBODY) -> NodeId:
        raft = self._raft
        if raft.role != "leader":
            raise NoLeader("only the leader can hand over", leader_url=self.leader_client_url())
        if to not in (NOBODY, *raft.configuration.voters):
            raise MemberNotFound(f"node {to} is not a voter of this cluster")
        if to == raft.node:
            return to
        if raft.configuration.voters == (raft.node,):
            raise Conflict("there is no other voter that leadership could be handed to")
        self._driver.queue.put_control(TransferLeadership(to))
        within_ms = 2 * self._config.raft.election_timeout_ms
        await self._until(lambda: raft.role != "leader" and raft.leader != NOBODY, within_ms)
        if raft.leader in (raft.node, NOBODY):
            who = f"node {to}" if to != NOBODY else "another voter"
            raise Timeout(f"{who} did not take over in time")
        return raft.leader

    async def state_hash(self, revision: int = 0, options: Options = DEFAULT_OPTIONS) -> HashReply:
        return await self._path.state_hash(revision, options)

    async def backup(self, options: Options = DEFAULT_OPTIONS) -> Backup:
        return await self._backups.open(options)

    def members(self) -> Members:
        return self._view.members()

    async def change_members(self, change: MemberChange, options: Options = DEFAULT_OPTIONS) -> MembersChanged:
        if isinstance(change, AddMember) and not self._config.cluster.secret_file:
            raise Conflict(
                "a node without a secret talks to nobody: give this one a cluster.secret_file and start it again "
                "before others join"
            )
        return self._view.changed(change, await self._path.change_members(change, options))

    def status(self) -> Status:
        return status.build(
            config=self._config,
            identity=self._identity,
            view=self._view,
            raft=self._raft,
            machine=self._machine,
            driver=self._driver,
            transport=self._transport,
            log_bytes=self._log_store.bytes_used,
            ready=self.is_ready(),
            now_ms=self._clock.monotonic_ms(),
            started_ms=self._started_ms,
            alarms=self._alarms(),
            short_of_space=bool(self._space.alarm),
            corrupted=bool(self._state_checks.alarm or self._log_health.alarms()),
        )

    def _alarms(self) -> list[str]:
        told = (self._space.alarm, self._raft.clock_alarm, self._state_checks.alarm)
        return [*filter(None, told), *self._log_health.alarms(), *self._member_alarms.alarms]

    def counters(self) -> dict[str, Any]:
        return status.counters(
            raft=self._raft,
            machine=self._machine,
            driver=self._driver,
            writer=self._writer,
            applier=self._applier,
            waiting=self._waiting,
            watches=self._watches,
            facts=self._facts,
            snapshots=self._snapshots,
            free_bytes=self._identity.free_bytes(),
            scrub_passes=self._log_health.scrub_passes,
            traffic=self._transport.counters,
            wall_ms=self._clock.wall_ms(),
            log_bytes=self._log_store.bytes_used,
            proposals=self._path.proposals,
            proposals_failed=self._path.proposals_failed,
            lease_reads=self._path.lease_reads,
        )
