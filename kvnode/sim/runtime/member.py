"""One process life of one member: what `kvnode.server` builds of a node, over simulated disk, network and time.

Data directory (lock, identity, boot counter) → roster and handshakes → bootstrap, at the very first start → log and
store → core → requests. With a loop of its own the member is a process: it can be paused, and `die` ends it anywhere.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any

from kvnode.config import Config
from kvnode.errors import Fatal, MemberRemoved, NotReady, StateDiverged
from kvnode.ids import Index, NodeId
from kvnode.kv.events import WatchPart
from kvnode.kv.interface import DEFAULT_OPTIONS, KV, MembersChanged, Options, WatchStream
from kvnode.kv.members import MemberChange
from kvnode.kv.requests import Request, Watch
from kvnode.machine.backend import Backend
from kvnode.node.available import AvailablePlane
from kvnode.node.node import Node, Workers
from kvnode.node.recovery import restore
from kvnode.node.roster import Roster, base_configuration
from kvnode.node.status import NodeIdentity
from kvnode.open_storage import open_log_of, open_snapshots
from kvnode.plane import describe, open_plane
from kvnode.raft.messages import Configuration
from kvnode.raft.output import Fact
from kvnode.server import REMOVED_GRACE_S, Switchboard, make_roster
from kvnode.sim.available_shelf import FileShelf
from kvnode.sim.disk import FakeDisk, SimulatedCrash
from kvnode.sim.loop import VirtualWorker
from kvnode.sim.runtime.applied import AppliedLog, StrayLog, WatchedMachine
from kvnode.sim.runtime.etcd_tongue import EtcdTongue
from kvnode.sim.runtime.gossip_net import VirtualGossipNet
from kvnode.sim.runtime.node_loop import NodeLoop
from kvnode.sim.runtime.observer import Observer, StrayObserver, WatchedRaft, watch
from kvnode.sim.runtime.transport import VirtualTransport
from kvnode.storage.available_store import NAME as AVAILABLE
from kvnode.storage.datadir import DataDir
from kvnode.storage.memory_backend import MemoryBackend
from kvnode.storage.snapshots import SnapshotFiles
from kvnode.storage.store_pointer import StorePointer
from kvnode.storage.wal import Wal
from kvnode.wire.frames import FEATURE_LEVEL_TIMES

if TYPE_CHECKING:
    from kvnode.sim.runtime.cluster import Cluster

DATA_DIR = "/data"
BOOTSTRAP_LOOK_S = 0.05
WORKERS = ("log", "log-reader", "snapshots", "flusher", "available")


class Member:
    """See the module docstring. `node` is there once the member takes part."""

    def __init__(
        self, cluster: Cluster, member: NodeId, disk: FakeDisk, config: Config, *, observer: Observer, life: int
    ) -> None:
        self.id = member
        self.disk = disk
        self.life = life
        self.own_loop: NodeLoop | None = None
        self.clock = cluster.make_clock(member)
        if cluster.has_processes:
            self.own_loop = NodeLoop(  # type: ignore[abstract]  # sockets, signals, processes: raise
                cluster.loop, self.clock, rng=cluster.fork(f"turns-{member}-{life}"), on_error=self._on_loop_error
            )
        self.loop: asyncio.AbstractEventLoop = self.own_loop or cluster.loop
        self.workers = {name: VirtualWorker(self.loop, cluster.disk_delay_s) for name in WORKERS}
        self.is_dead = False
        self.raft: WatchedRaft
        self.wal: Wal
        self.data: DataDir
        self.plane: AvailablePlane | None = None  # once it takes part, in clusters that have one
        self._gossip_net: VirtualGossipNet | None = None
        self._roster: Roster
        self._transport: VirtualTransport | None = None
        self._node: Node | None = None
        self._cluster = cluster
        self._observer = observer
        self._is_stray = isinstance(observer, StrayObserver)
        self._config = config
        self._rng = cluster.fork(f"process-{member}-{life}")
        self._switchboard = Switchboard()

    @property
    def node(self) -> Node:
        assert self._node is not None, f"member {self.id} does not take part yet"
        return self._node

    @property
    def transport(self) -> VirtualTransport:
        assert self._transport is not None, f"member {self.id} is not on the network yet"
        return self._transport

    @property
    def connections(self) -> list[NodeId]:
        """Peers this member is connected to."""
        return sorted(self._transport.connected) if self._transport is not None else []

    @property
    def refusals(self) -> list[str]:
        """Codes with which it was refused, or refused others, last."""
        return sorted(set(self._transport.refusals.values())) if self._transport is not None else []

    @property
    def takes_part(self) -> bool:
        return self._node is not None

    # ── its life ────────────────────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        """Begin; on a loop of its own this goes on by itself."""
        if self.own_loop is None:
            self._open()
            assert self._roster.is_bootstrapped, "without processes the cluster has met before"
            self._take_part()
        else:
            self.own_loop.submit(self._live()).add_done_callback(self._on_started)

    async def _live(self) -> None:
        self._open()
        while not self._roster.is_bootstrapped:  # noqa: ASYNC110 - as `kvnode.server` waits
            await asyncio.sleep(BOOTSTRAP_LOOK_S)
        self._take_part()
        if self.plane is not None:
            await self.plane.start()

    def _on_started(self, answer: asyncio.Future[Any]) -> None:
        error = answer.exception()
        if error is not None and not self.is_dead:
            self.failed(error)

    def _open(self) -> None:
        config, cluster = self._config, self._cluster
        self.data = DataDir.open(
            self.disk,
            DATA_DIR,
            member=self.id,
            cluster_name=config.cluster.name,
            random_u64=partial(self._rng.getrandbits, 64),
            allow_unsafe_filesystem=False,
        )
        self._roster = make_roster(config, self.data, f"http://node-{self.id}")
        self._transport = VirtualTransport(
            cluster.network,
            self.id,
            roster=self._roster,
            loop=self.own_loop,
            on_failed=self.failed,
            on_left=self._observer.on_left,
            on_come_up=self._observer.on_come_up,
            settings=config.peer,
        )
        self._roster.on_removed = self._on_removed
        if self._roster.was_removed:
            raise MemberRemoved(self._roster.was_removed)
        self.transport.open(self._switchboard)

    def _on_removed(self, sentence: str) -> None:
        """As `kvnode.server`: who led may have to tell the others first."""
        self.loop.call_later(REMOVED_GRACE_S, self.failed, MemberRemoved(sentence))

    def _take_part(self) -> None:
        config, cluster, data = self._config, self._cluster, self.data
        if self._is_stray:
            applied: AppliedLog = StrayLog()
        else:
            applied = cluster.applied
            cluster.bootstrapped[self.id] = True
        # By its gossip alone nobody can tell a copy that has been started more often than its original.
        is_passing = self._is_stray and data.boot.counter > cluster.met_boots.get(self.id, 0)
        if cluster.ways is not None and self._roster.feature_level >= FEATURE_LEVEL_TIMES and not is_passing:
            self.plane = self._open_plane()
            self.transport.lamport = self.plane.clock_hook
        pointer: StorePointer | None = None
        backend: Backend = MemoryBackend()
        if config.storage.backend == "lmdb":
            pointer = StorePointer(self.disk, data.store_dir, cluster.environments_of(self.id))
            backend = pointer.open()
        machine = WatchedMachine(backend, config.limits, node=self.id, log=applied)
        random_u64 = partial(self._rng.getrandbits, 64)
        self._observer.on_opening(self.id)
        wal, recovered, salvaged = open_log_of(config, data, self.disk, machine, random_u64=random_u64)
        watch(wal, partial(self._observer.on_written, self.id), self._observer.on_rolled, self._observer.on_trimmed)
        self._observer.on_recovered(
            self.id,
            wal,
            recovered,
            was_salvaged=salvaged is not None,
            was_lied_to=self.disk.has_lied,
            has_rotted=self.disk.has_rotted,
        )
        if salvaged is not None:
            self._observer.mark("quarantine_entered")
        self.wal = wal
        initial = base_configuration(data.identity)
        self.raft = WatchedRaft(
            node=self.id,
            settings=config.raft,
            rng=cluster.fork(f"raft-{self.id}-{cluster.loop.time()}"),
            restored=restore(recovered, initial=initial, machine=machine, life=data.boot.counter),
            now_ms=self.clock.monotonic_ms(),
            observer=self._observer,
        )
        self._node = Node(
            config=config,
            raft=self.raft,
            machine=machine,
            log_store=wal,
            snapshot_store=self._watched(open_snapshots(config, data, self.disk, pointer, machine)),
            transport=self.transport,
            workers=Workers(self.workers.__getitem__),
            clock=self.clock,
            loop=self.loop,
            identity=NodeIdentity(
                cluster_id=data.identity.cluster_id,
                initial=initial,
                client_url=f"http://node-{self.id}",
                free_bytes=lambda: self.disk.free_bytes(DATA_DIR),
                alarms=lambda: tuple(self._roster.alarms),
                feature_level=self._roster.feature_level,
                boot=data.boot.counter,
            ),
            on_members=self._on_members,
            on_fact=self._on_fact,
            on_event=self._on_event,
            on_failed=self.failed,
            lost=recovered.quarantine.what if recovered.quarantine else "",
        )
        self._node.start()
        self._switchboard.attach(self._node.receiver)

    def _open_plane(self) -> AvailablePlane:
        """As `kvnode.server` does, on the simulated disk and network."""
        cluster, data = self._cluster, self.data
        assert cluster.ways is not None
        rng = cluster.fork(f"plane-{self.id}-{self.life}")
        self._damage_plane(rng)
        self._gossip_net = VirtualGossipNet(
            cluster.ways,
            node=self.id,
            loop=self.loop,
            data=data,
            roster=self._roster,
            clock=self.clock,
            on_failed=self.failed,
        )
        plane = open_plane(
            config=self._config,
            data=data,
            shelf=FileShelf(self.disk, data.path),
            transport=self._gossip_net,
            worker=self.workers["available"],
            clock=self.clock,
            loop=self.loop,
            rng=rng,
            address=f"node-{self.id}:7500",
            describe=lambda: describe(self.node, f"http://node-{self.id}"),
            on_failed=self.failed,
            free_bytes=lambda: self.disk.free_bytes(DATA_DIR),
            feature_level=self._roster.feature_level,
            feature_levels=lambda: {peer: link.feature_level for peer, link in self.transport.links().items()},
            reaches_quorum=lambda: self.node.reaches_quorum,
        )
        if not self._is_stray:
            cluster.dots.watch(plane, self.id, was_lied_to=self.disk.has_lied)
        return plane

    def _damage_plane(self, rng: random.Random) -> None:
        """Now and then the plane's store is found damaged; the log knows nothing of it."""
        cluster, disk, path = self._cluster, self.disk, f"{DATA_DIR}/{AVAILABLE}"
        if self._is_stray or rng.random() >= cluster.plane_damages or path not in disk.files():
            return
        content, has_rotted = disk.content(path), disk.has_rotted
        if not content or disk._file(path).pending:
            return  # what is not synced may be gone anyway
        disk.flip_bit(path, rng.randrange(len(content)), rng.randrange(8))
        disk.has_rotted = has_rotted
        cluster.dots.damaged(self.id)
        self._observer.mark("plane_store_damaged")

    def _on_fact(self, fact: Fact) -> None:
        if self.plane is not None:
            self.plane.on_raft_fact(fact)

    def _on_event(self, kind: str, fields: dict[str, Any]) -> None:
        if self.plane is not None:
            self.plane.record(kind, fields)

    def _watched(self, store: SnapshotFiles) -> SnapshotFiles:
        begin = store.begin

        def watched(header: bytes) -> int:
            first = begin(header)
            if first:
                self._observer.mark("snapshot_resumed")
            return first

        store.begin = watched  # type: ignore[method-assign]
        return store

    def _on_members(self, applied: Configuration, applied_index: Index, in_force: Configuration) -> None:
        self._roster.on_configuration(applied, applied_index, in_force)
        self.transport.set_members(self._roster.members)
        if self.plane is not None:
            self.plane.set_members(in_force, self._roster.committed, self._roster.configuration_index)

    def die(self, *, silently: bool = False) -> None:
        """End at once: no more jobs, messages or timers. `silently`: nobody's connection is closed by it."""
        self.is_dead = True
        for worker in self.workers.values():
            worker.die()
        if self.own_loop is not None:
            self.own_loop.kill()
        elif self._node is not None:
            self._node.abandon()
        self.leave(silently=silently)
        self._observer.on_ended(self.id)

    def leave(self, *, silently: bool = False) -> None:
        """Off the network."""
        if self._transport is not None:
            self._transport.closed = True
            self._cluster.network.leave(self._transport, silently=silently)
        if self._gossip_net is not None:
            self._gossip_net.end.end(silently=silently)

    async def stop(self) -> list[str]:
        """End as a process that was asked to: returns what it left behind."""
        assert self.own_loop is not None
        await self.own_loop.submit(self.shut_down())
        left = self.own_loop.leftovers()
        self.data.close()
        return left

    async def shut_down(self) -> None:
        """In the process: all of it ends, in the order of `kvnode.server`."""
        if self.plane is not None:
            await self.plane.leave()
        if self._node is not None:
            await self._node.stop()
        if self.plane is not None:
            await self.plane.stop()

    async def change_members(self, change: MemberChange, options: Options = DEFAULT_OPTIONS) -> MembersChanged:
        """As `Admin` does, in the member's process."""

        async def serve() -> MembersChanged:
            if self._node is None:
                raise NotReady("the member does not take part yet")
            return await self._node.change_members(change, options)

        assert self.own_loop is not None
        answer: MembersChanged = await self.own_loop.submit(serve())
        return answer

    def ask_plane(self, ask: Callable[[AvailablePlane], Awaitable[Any]]) -> asyncio.Future[Any]:
        """A request of the plane that needs no quorum, in the member's process."""

        async def serve() -> Any:
            if self.plane is None:
                raise NotReady("the member does not take part yet")
            return await ask(self.plane)

        assert self.own_loop is not None
        return self.own_loop.submit(serve())

    def ask(
        self, request: Request, options: Options = DEFAULT_OPTIONS, *, in_etcds_words: bool = False
    ) -> Coroutine[Any, Any, Any]:
        """Carry out one request, as the HTTP layer of the process would."""
        return self._ask(request, options, in_etcds_words=in_etcds_words)

    async def _ask(self, request: Request, options: Options, *, in_etcds_words: bool) -> Any:
        if self.own_loop is None:
            return await self.node.execute(request, options)
        return await self.own_loop.submit(self._serve(request, options, in_etcds_words=in_etcds_words))

    async def _serve(self, request: Request, options: Options, *, in_etcds_words: bool) -> Any:
        if self._node is None:
            raise NotReady("the member does not take part yet")
        if in_etcds_words:
            return await EtcdTongue(self._node, self._node, self._cluster.configs[self.id]).execute(request, options)
        return await self._node.execute(request, options)

    def watch(self, request: Watch, options: Options, on_part: Callable[[WatchPart], bool]) -> asyncio.Future[None]:
        """Hand over the parts of a stream as they come, until `on_part` has enough of it, it ends, or is cancelled."""
        own_loop = self.own_loop
        assert own_loop is not None
        begun: list[asyncio.Task[None]] = []

        async def serve() -> None:
            if self._node is None:
                raise NotReady("the member does not take part yet")
            task = asyncio.current_task()
            assert task is not None
            begun.append(task)
            async with aclosing(self._node.watch(request, options)) as stream:
                async for part in stream:
                    if not on_part(part):
                        return

        def leave(answer: asyncio.Future[None]) -> None:
            """As a client whose connection ends: `kvnode.api.streaming`."""
            if answer.cancelled() and begun:
                own_loop.call_soon(begun[0].cancel)

        answer: asyncio.Future[None] = own_loop.submit(serve())
        answer.add_done_callback(leave)
        return answer

    def describe(self) -> str:
        if self._node is None:
            return f"life {self.life}, does not take part yet"
        raft, state = self.raft, self.raft.state
        flags = [
            "paused" if self.own_loop is not None and self.own_loop.is_paused else "",
            "quarantined" if state.is_quarantined else "",
            "stalled" if state.is_stalled else "",
            *(f"{name} hung" for name, worker in self.workers.items() if worker.is_hung),
        ]
        return (
            f"life {self.life}, {raft.role} of term {raft.term}, leader {raft.leader}, commit {raft.commit_index}, "
            f"durable {raft.durable_index}, last {raft.last_index}, links {self.connections} "
            + " ".join(flag for flag in flags if flag)
        )

    # ── what ends it ────────────────────────────────────────────────────────────────────────────────

    def failed(self, error: BaseException) -> None:
        """The node cannot go on: the process exits, or is gone already."""
        if self.is_dead:
            return
        if isinstance(error, SimulatedCrash):
            self._cluster.on_power_lost(self)
            return
        if isinstance(error, StateDiverged) and self.takes_part:
            self.data.note_diverged(error.message)  # as `kvnode.server`
        self._cluster.on_failed(self, error)
        if self.own_loop is None and not isinstance(error, Fatal):
            raise error

    def _on_loop_error(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, SimulatedCrash):
            self.failed(error)
        else:
            self._cluster.errors.append(context)


class AskedFromOutside(KV):
    """A member's store for callers that do not live on its loop."""

    def __init__(self, member: Member) -> None:
        self._member = member

    def execute(self, request: Request, options: Options = DEFAULT_OPTIONS) -> Coroutine[Any, Any, Any]:
        return self._member.ask(request, options)

    def watch(self, request: Watch, options: Options = DEFAULT_OPTIONS) -> WatchStream:
        raise NotImplementedError("see Member.watch")
