"""Available planes of one cluster over virtual time, network and disks: nothing of the consistent core.

A plane is what `kvnode.plane.open_plane` builds; the network delivers datagrams and exchanges after a millisecond, but
for what a test cuts, drops, or makes itself.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

import msgspec

from kvnode.config import Config, load
from kvnode.ids import Index, NodeId
from kvnode.kv.available import TimelineEvent
from kvnode.node.available import AvailablePlane
from kvnode.node.ports import GossipReceiver
from kvnode.node.roster import base_configuration, derive_cluster_id
from kvnode.plane import open_plane
from kvnode.sim.available_shelf import FileShelf
from kvnode.sim.disk import FakeDisk
from kvnode.sim.loop import VirtualClock, VirtualWorker, run_virtual
from kvnode.storage.datadir import DataDir, MemberIdentity
from kvnode.wire.frames import FEATURE_LEVEL
from kvnode.wire.limits import CodecError

DATA_DIR = "/data"
DELAY_S = 0.001


class Wire:
    """A `GossipTransport` of one start of a member."""

    def __init__(self, world: World, member: NodeId) -> None:
        self.counters: dict[str, int] = {"datagrams_sent": 0, "gossip_bad": 0, "exchanges_failed": 0}
        self.receiver: GossipReceiver | None = None
        self.addresses: Mapping[NodeId, str] = {}
        self.closed = False
        self.exchanges: list[tuple[NodeId, bytes]] = []
        self._world = world
        self._member = member

    async def start(self, receiver: GossipReceiver) -> None:
        self.receiver = receiver

    def send(self, to: NodeId, packet: bytes) -> None:
        if to in self.addresses:
            self.counters["datagrams_sent"] += 1
            if self._world.reaches(self._member, to) and not self._world.drops_datagrams:
                self._world.loop.call_later(DELAY_S, self._world.deliver, self._member, to, packet)

    async def exchange(self, to: NodeId, request: bytes) -> bytes:
        self.exchanges.append((to, request))
        await asyncio.sleep(DELAY_S)
        await self._world.gate.wait()
        receiver = self._world.receiver(to)
        if self.closed or to not in self.addresses or receiver is None or not self._world.reaches(self._member, to):
            self.counters["exchanges_failed"] += 1
            raise ConnectionAbortedError("404")
        try:
            answer = receiver.on_exchange(self._member, request)
        except CodecError as error:
            self.counters["exchanges_failed"] += 1
            raise ConnectionAbortedError("403") from error
        return self._world.tamper(answer)

    def set_addresses(self, members: Mapping[NodeId, str]) -> None:
        self.addresses = dict(members)

    async def close(self) -> None:
        self.closed = True


class World:
    """`size` members, all down at first. `planes`, `wires`, `workers`, `data` of those that are up."""

    def __init__(self, size: int = 3, settings: Mapping[str, object] | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        self.ids = [NodeId(number) for number in range(1, size + 1)]
        self.clock = VirtualClock(self.loop)
        self.disks = {member: FakeDisk(random.Random(int(member))) for member in self.ids}
        self.planes: dict[NodeId, AvailablePlane] = {}
        self.wires: dict[NodeId, Wire] = {}
        self.workers: dict[NodeId, VirtualWorker] = {}
        self.data: dict[NodeId, DataDir] = {}
        self.failures: list[BaseException] = []
        self.cut: set[frozenset[NodeId]] = set()  # asked for membership only
        self.drops_datagrams = False
        self.gate = asyncio.Event()  # exchanges wait for it
        self.gate.set()
        self.tamper: Callable[[bytes], bytes] = lambda answer: answer
        self.free_bytes = 1 << 40
        self.levels: dict[NodeId, int] = {}
        self.quorum = False
        self.opens = 0
        self._rng = random.Random(1)
        addresses = {member: f"127.0.0.1:{7500 + member}" for member in self.ids}
        self._settings: dict[str, object] = {
            "cluster.members": tuple(f"{member}={address}" for member, address in addresses.items()),
            "cluster.secret_file": "secret",
            **(settings or {}),
        }
        self._introduce(addresses)

    def config(self, member: NodeId) -> Config:
        return load(None, environment={}, overrides={**self._settings, "node.id": int(member)})

    def reaches(self, one: NodeId, other: NodeId) -> bool:
        return frozenset((one, other)) not in self.cut

    def receiver(self, member: NodeId) -> GossipReceiver | None:
        wire = self.wires.get(member)
        return wire.receiver if wire is not None and not wire.closed else None

    def deliver(self, sender: NodeId, to: NodeId, packet: bytes) -> None:
        receiver = self.receiver(to)
        if receiver is not None:
            try:
                receiver.on_packet(sender, packet)
            except CodecError:
                self.wires[to].counters["gossip_bad"] += 1

    def isolate(self, member: NodeId) -> None:
        self.cut |= {frozenset((member, other)) for other in self.ids if other != member}

    # ── members ─────────────────────────────────────────────────────────────────────────────────────

    def open(self, member: NodeId, **changes: Any) -> AvailablePlane:
        """A start of it, as `kvnode.server` makes one."""
        self.opens += 1
        data = self.data[member] = self._open_data(member)
        worker = self.workers[member] = VirtualWorker(self.loop)
        wire = self.wires[member] = Wire(self, member)
        plane = open_plane(
            **{
                "config": self.config(member),
                "data": data,
                "shelf": FileShelf(self.disks[member], data.path),
                "transport": wire,
                "worker": worker,
                "clock": self.clock,
                "loop": self.loop,
                "rng": random.Random(f"{member}-{self.opens}"),
                "address": f"127.0.0.1:{7500 + member}",
                "describe": lambda: {"role": "follower", "version": "1"},
                "on_failed": self.failures.append,
                "free_bytes": lambda: self.free_bytes,
                "feature_level": FEATURE_LEVEL,
                "feature_levels": lambda: self.levels,
                "reaches_quorum": lambda: self.quorum,
                **changes,
            }
        )
        self.planes[member] = plane
        return plane

    async def start(self, *members: int, **changes: Any) -> None:
        for member in map(NodeId, members or self.ids):
            plane = self.open(member, **changes)
            configuration = base_configuration(self.data[member].identity)
            plane.set_members(configuration, configuration, Index(0))
            await plane.start()

    async def stop(self, *members: int, leave: bool = False) -> None:
        for member in map(NodeId, members or list(self.planes)):
            plane = self.planes.pop(member)
            if leave:
                await plane.leave()
            await plane.stop()
            self.data.pop(member).close()

    def kill(self, member: int) -> None:
        """What was synced stays."""
        id_ = NodeId(member)
        self.planes.pop(id_).halt()
        self.workers[id_].die()
        self.wires[id_].closed = True
        self.data.pop(id_).close()
        self.disks[id_] = self.disks[id_].kill()

    async def until(self, condition: Callable[[], object], within_s: float = 10.0) -> None:
        deadline_s = self.loop.time() + within_s
        while not condition():
            assert self.loop.time() < deadline_s, f"not within {within_s} virtual seconds"
            await asyncio.sleep(0.005)

    async def level(self, within_s: float = 10.0) -> None:
        """All that are up hold the same keys and events."""

        def is_level() -> bool:
            found = {
                (plane._eventual.keyspace.digest(), plane._story.timeline.digest()) for plane in self.planes.values()
            }
            return len(found) == 1

        await self.until(is_level, within_s)

    def _open_data(self, member: NodeId) -> DataDir:
        return DataDir.open(
            self.disks[member],
            DATA_DIR,
            member=member,
            cluster_name="test",
            random_u64=partial(self._rng.getrandbits, 64),
            allow_unsafe_filesystem=False,
        )

    def _introduce(self, addresses: Mapping[NodeId, str]) -> None:
        """They have met before the story begins."""
        opened = {member: self._open_data(member) for member in self.ids}
        known = {member: (data.identity.incarnation, addresses[member]) for member, data in opened.items()}
        cluster_id = derive_cluster_id(known)
        members = {member: MemberIdentity(*found) for member, found in known.items()}
        for member, data in opened.items():
            data.save_identity(msgspec.structs.replace(data.identity, cluster_id=cluster_id, members=members))
            data.close()
            self.disks[member] = self.disks[member].kill()


def play(scenario: Callable[[World], Awaitable[None]], *, size: int = 3, fails: bool = False, **settings: Any) -> None:
    """Run it; two underscores in `settings` stand for the dot. Nothing is left behind at its end, nothing failed."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        errors: list[dict[str, Any]] = []
        loop.set_exception_handler(lambda _, context: errors.append(context))
        world = World(size, {name.replace("__", "."): value for name, value in settings.items()})
        await scenario(world)
        await world.stop()
        assert fails or not world.failures, world.failures
        assert not errors, errors
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        assert not tasks, tasks

    run_virtual(main())


async def kinds(plane: AvailablePlane) -> list[str]:
    """Of all events that it shows, in their order."""
    return [event.kind for event in await all_events(plane)]


async def all_events(plane: AvailablePlane) -> tuple[TimelineEvent, ...]:
    return (await plane.events()).events
