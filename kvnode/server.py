"""Composition root: builds every part of a node, starts them in order, stops them in order.

With `open_storage` and `plane` the only production file that knows all of row 3. Start order: data directory (lock,
identity, boot counter) → joining, if it is new and was told where → peer transport → bootstrap, at the very first
start → what needs no quorum → log and store → core → requests. Clients are let in last. Stop order is the reverse,
after leadership has been handed over and requests in flight have been answered.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import socket
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec

from kvnode.api.app import ClientServer, build_app
from kvnode.clocks.clock import Clock
from kvnode.clocks.system import SystemClock
from kvnode.config import Config, parse_address
from kvnode.errors import ConfigInvalid, KvnodeError, MemberRemoved, StateDiverged
from kvnode.ids import Index, NodeId
from kvnode.join import join, tell_progress
from kvnode.node.available import AvailablePlane
from kvnode.node.node import Node, Workers
from kvnode.node.own_events import of_damage
from kvnode.node.ports import Receiver, SnapshotSink
from kvnode.node.recovery import restore
from kvnode.node.roster import Roster, base_configuration
from kvnode.node.status import NodeIdentity
from kvnode.node.worker import ThreadWorker
from kvnode.observe.log import get_logger, set_node
from kvnode.open_storage import Storage, open_storage
from kvnode.plane import describe, open_plane
from kvnode.raft.core import Raft
from kvnode.raft.messages import Configuration, PeerMessage
from kvnode.storage.available_shelf import LmdbShelf, MemoryShelf
from kvnode.storage.datadir import DataDir, MemberIdentity, PeerBoot
from kvnode.storage.realdisk import RealDisk
from kvnode.transport.gossip_net import GossipNet
from kvnode.transport.peers import PeerTransport

REMOVED_GRACE_S = 1.0
"""A node that has learnt of its removal goes on so long."""

log = get_logger("server")


class Switchboard:
    """The transport's receiver from the first connection on; passes everything to the node once there is one.

    Before that messages are dropped (a node that has not bootstrapped does not vote); connections are remembered.
    """

    def __init__(self) -> None:
        self._node: Receiver | None = None
        self._connected: dict[NodeId, None] = {}

    def attach(self, node: Receiver) -> None:
        self._node = node
        for peer in self._connected:
            node.on_connected(peer)

    def on_message(self, message: PeerMessage, size: int) -> None:
        if self._node is not None:
            self._node.on_message(message, size)

    def on_connected(self, peer: NodeId) -> None:
        self._connected[peer] = None
        if self._node is not None:
            self._node.on_connected(peer)

    def on_disconnected(self, peer: NodeId) -> None:
        self._connected.pop(peer, None)
        if self._node is not None:
            self._node.on_disconnected(peer)

    def on_refused(self, peer: NodeId) -> None:
        if self._node is not None:
            self._node.on_refused(peer)

    @property
    def snapshot_sink(self) -> SnapshotSink | None:
        return self._node.snapshot_sink if self._node is not None else None


class RunningNode:
    """A started node and everything it owns. Made by `start`, ended by `stop`; `failed` is set when it broke."""

    def __init__(self, config: Config, clock: Clock) -> None:
        self.config = config
        self.failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        self.node: Node
        self._clock = clock
        self._data: DataDir | None = None
        self._roster: Roster
        self._transport: PeerTransport | None = None
        self._plane: AvailablePlane | None = None
        self._plane_worker: ThreadWorker | None = None
        self._client_socket: socket.socket | None = None
        self._client_url = ""
        self._server: ClientServer | None = None
        self._started_node = False
        self._progress: asyncio.Task[None] | None = None  # of a node that has just joined

    @property
    def available(self) -> AvailablePlane:
        """What needs no quorum; once the node has started."""
        assert self._plane is not None
        return self._plane

    @classmethod
    async def start(cls, config: Config, *, serve_clients: bool = True, clock: Clock | None = None) -> RunningNode:
        """Bring one node up as far as "takes part in its cluster and listens to clients".

        At the very first start this waits until all initial members have been met.
        Raises: Fatal (bad data, identity or configuration), OSError (an address that cannot be bound).
        """
        running = cls(config, clock or SystemClock())
        try:
            await running._start(serve_clients)
        except BaseException:
            await running.stop()
            raise
        return running

    async def _start(self, serve_clients: bool) -> None:
        config = self.config
        disk = RealDisk()
        if serve_clients:
            self._client_socket, self._client_url = _bind(config.client.listen, config.client.advertise)
        self._data = data = DataDir.open(
            disk,
            config.node.data_dir,
            member=config.node.id,
            cluster_name=config.cluster.name,
            random_u64=lambda: secrets.randbits(64),
            allow_unsafe_filesystem=config.storage.allow_unsafe_filesystem,
        )
        is_new = bool(config.cluster.join) and not data.identity.member
        self.config = config = await join(config, data, self._clock)
        set_node(config.node.id)
        switchboard = Switchboard()
        self._roster = make_roster(config, data, self._client_url)
        self._roster.on_removed = self._on_removed
        if self._roster.was_removed:
            raise MemberRemoved(self._roster.was_removed)
        self._transport = make_transport(config, self._roster, self._clock, self._on_failed)
        await self._transport.start(switchboard)
        await self._bootstrap()
        self._plane = self._open_plane(data, disk)
        self._transport.lamport = self.available.clock_hook
        storage = open_storage(config, data, disk)
        try:
            self.node = self._make_node(storage, disk)
        except BaseException:
            storage.close()
            raise
        self._started_node = True
        self.node.start()
        switchboard.attach(self.node.receiver)
        await self.available.start()
        if is_new:
            progress = tell_progress(self.node.leader_client_url, self.node.id)
            self._progress = asyncio.create_task(progress, name="join-progress")
            self._progress.add_done_callback(self._on_progress_told)
        if self._client_socket is not None:
            self._server = ClientServer(build_app(self.node, self.node, config, self.available), config)
            await self._server.start(self._client_socket)
        log.info(
            "node.started",
            node=config.node.id,
            cluster_id=f"{data.identity.cluster_id:016x}",
            client=self._client_url or None,
            peer=config.peer.listen,
            last_index=storage.recovered.last_index,
            applied_index=storage.machine.applied_index,
        )

    def _open_plane(self, data: DataDir, disk: RealDisk) -> AvailablePlane:
        """What needs no quorum; it takes part from its `start` on."""
        config, loop = self.config, asyncio.get_running_loop()
        assert self._transport is not None
        transport, rng = self._transport, random.Random(secrets.randbits(64))
        self._plane_worker = ThreadWorker(loop, "kvnode-available")
        return open_plane(
            config=config,
            data=data,
            shelf=LmdbShelf(disk, data.path) if config.storage.backend == "lmdb" else MemoryShelf(),
            transport=GossipNet(
                node=NodeId(config.node.id),
                incarnation=data.identity.incarnation,
                boot_counter=data.boot.counter,
                boot_nonce=data.boot.nonce,
                roster=self._roster,
                secret=read_secret(config),
                peers=self._transport,
                clock=self._clock,
                on_failed=self._on_failed,
            ),
            worker=self._plane_worker,
            clock=self._clock,
            loop=loop,
            rng=rng,
            address=self._transport.address,
            describe=lambda: describe(self.node, self._client_url),
            on_failed=self._on_failed,
            free_bytes=lambda: disk.free_bytes(config.node.data_dir),
            feature_level=self._roster.feature_level,
            feature_levels=lambda: {peer: link.feature_level for peer, link in transport.links().items()},
            reaches_quorum=lambda: self.node.reaches_quorum,
        )

    def _make_node(self, storage: Storage, disk: RealDisk) -> Node:
        """The core and the runtime on what was recovered. Raises: LogCorrupted when log and store do not meet."""
        config, clock, data, loop = self.config, self._clock, self._data, asyncio.get_running_loop()
        assert data is not None
        assert self._transport is not None
        quarantine = storage.recovered.quarantine
        if quarantine is not None:
            self.available.record(*of_damage(quarantine.what))
        initial = base_configuration(data.identity)
        raft = Raft(
            node=NodeId(config.node.id),
            settings=config.raft,
            rng=random.Random(secrets.randbits(64)),
            restored=restore(storage.recovered, initial=initial, machine=storage.machine, life=data.boot.counter),
            now_ms=clock.monotonic_ms(),
        )
        return Node(
            config=config,
            raft=raft,
            machine=storage.machine,
            log_store=storage.log_store,
            snapshot_store=storage.snapshots,
            transport=self._transport,
            workers=Workers(lambda name: ThreadWorker(loop, f"kvnode-{name}")),
            clock=clock,
            loop=loop,
            identity=NodeIdentity(
                cluster_id=data.identity.cluster_id,
                initial=initial,
                client_url=self._client_url,
                free_bytes=lambda: disk.free_bytes(config.node.data_dir),
                alarms=lambda: tuple(self._roster.alarms),
                feature_level=self._roster.feature_level,
                boot=data.boot.counter,
            ),
            on_members=self._on_members,
            on_fact=self.available.on_raft_fact,
            on_event=self.available.record,
            on_failed=self._on_failed,
            lost=quarantine.what if quarantine is not None else "",
        )

    def _on_members(self, applied: Configuration, applied_index: Index, in_force: Configuration) -> None:
        assert self._transport is not None
        self._roster.on_configuration(applied, applied_index, in_force)
        self._transport.set_members(self._roster.members)
        self.available.set_members(in_force, self._roster.committed, self._roster.configuration_index)

    def _on_removed(self, sentence: str) -> None:
        """Not at once: who led may have to tell the others that it is committed."""
        asyncio.get_running_loop().call_later(REMOVED_GRACE_S, self._on_failed, MemberRemoved(sentence))

    async def _bootstrap(self) -> None:
        """The very first start: wait until every initial member has been met and the cluster id is fixed."""
        waited = 0
        while not self._roster.is_bootstrapped:
            if self.failed.done():  # a disk that cannot keep who was met, or a bug: waiting on would be for ever
                raise self.failed.result()
            if waited % 100 == 0:
                log.info("bootstrap.waiting", node=self.config.node.id, missing=self._roster.missing())
            waited += 1
            await asyncio.sleep(0.05)
        if waited:
            log.info("bootstrap.finished", node=self.config.node.id)

    def _on_progress_told(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_failed(error)

    def _on_failed(self, error: BaseException) -> None:
        if not self.failed.done():
            code = error.code if isinstance(error, KvnodeError) else type(error).__name__
            if isinstance(error, StateDiverged) and self._data is not None:
                self._data.note_diverged(error.message)
            log.error("node.failed", node=self.config.node.id, code=code, message=str(error), exc_info=error)
            self.failed.set_result(error)

    async def stop(self) -> None:
        """Hand over, drain, make durable, release. Safe after a start that failed half-way."""
        async with AsyncExitStack() as steps:  # last in, first out; one that fails does not keep the others from it
            if self._data is not None:
                steps.callback(self._release, self._data)
            if self._plane is not None:
                steps.push_async_callback(self._plane.stop)
            elif self._plane_worker is not None:
                steps.push_async_callback(self._plane_worker.close)
            if self._transport is not None:
                steps.push_async_callback(self._transport.close)
            if self._server is not None:
                steps.push_async_callback(self._server.close)
            elif self._client_socket is not None:
                steps.callback(self._client_socket.close)
            if self._progress is not None:
                steps.callback(self._progress.cancel)
            if self._started_node:
                steps.push_async_callback(self.node.stop)
            if self._plane is not None:
                steps.push_async_callback(self._plane.leave)
            if self._server is not None:
                steps.push_async_callback(self._server.drain)
        log.info("node.stopped", node=self.config.node.id)

    def _release(self, data: DataDir) -> None:
        """Give the directory up, unless a thread hangs in it: what it writes late must not meet another life's log."""
        if not self._started_node or self.node.has_ended:
            data.close()


def make_roster(config: Config, data: DataDir, client_url: str) -> Roster:
    """Who is who, on top of what the data directory remembers."""

    def save_identity(cluster_id: int, members: Mapping[int, tuple[int, str]]) -> None:
        known = {member: MemberIdentity(incarnation, address) for member, (incarnation, address) in members.items()}
        data.save_identity(msgspec.structs.replace(data.identity, cluster_id=cluster_id, members=known))

    def save_configuration(configuration: Configuration, index: Index) -> None:
        data.save_identity(
            msgspec.structs.replace(data.identity, configuration=configuration, configuration_index=index)
        )

    return Roster(
        identity=data.identity,
        boot=data.boot,
        peer_boots=data.peer_boots,
        initial_members=config.initial_members(),
        cluster_scope=config.cluster_scope(),
        client_url=client_url,
        save_identity=save_identity,
        save_peer_boot=lambda member, counter, nonce: data.save_peer_boot(member, PeerBoot(counter, nonce)),
        save_configuration=save_configuration,
        feature_level_max=config.cluster.feature_level_max,
    )


def make_transport(
    config: Config, roster: Roster, clock: Clock, on_failed: Callable[[BaseException], None]
) -> PeerTransport:
    """The peer connections. Raises: ConfigInvalid when the secret cannot be read or the address is taken."""
    transport = PeerTransport(
        node=NodeId(config.node.id),
        roster=roster,
        secret=read_secret(config),
        listen=config.peer.listen,
        members=roster.members,
        settings=config.peer,
        clock=clock,
        rng=random.Random(secrets.randbits(64)),
        on_failed=on_failed,
    )
    try:
        transport.bind()
    except OSError as error:
        raise ConfigInvalid(f"peer.listen {config.peer.listen}: {error.strerror}") from error
    return transport


def read_secret(config: Config) -> bytes:
    """The 32 bytes that peers prove to each other; empty for a cluster of one without a secret file."""
    if not config.cluster.secret_file:
        return b""
    path = Path(config.cluster.secret_file)
    try:
        secret = path.read_bytes()
        mode = path.stat().st_mode
    except OSError as error:
        raise ConfigInvalid(f"cluster.secret_file {path}: {error.strerror}") from error
    if len(secret) != 32:
        raise ConfigInvalid(f"cluster.secret_file {path} has {len(secret)} bytes, not 32")
    if mode & 0o077:
        raise ConfigInvalid(f"cluster.secret_file {path} is readable by others: chmod 600 it")
    return secret


def _bind(listen: str, advertise: str) -> tuple[socket.socket, str]:
    """Take the client address before anything else, so that a port in use is found at once. Not listening yet."""
    host, port = parse_address(listen, "client.listen")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
    except OSError as error:
        found.close()
        raise ConfigInvalid(f"client.listen {listen}: {error.strerror}") from error
    bound_host, bound_port = found.getsockname()[:2]
    shown = f"[{bound_host}]" if ":" in bound_host else bound_host
    return found, f"http://{advertise or f'{shown}:{bound_port}'}"
