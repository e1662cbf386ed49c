"""A simulated cluster: the real node runtime, log, codec and store over virtual time, network and disk.

Nodes crash (what was not synced may be gone), are killed (the page cache survives), restart from their disks and
are partitioned by the network. Everything random comes from one seed, forked by label.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from kvnode.config import Config, LimitsSection, RaftSection, StorageSection, load
from kvnode.errors import Fatal
from kvnode.ids import Index, NodeId
from kvnode.kv.interface import KV
from kvnode.machine.machine import StateMachine
from kvnode.node.node import Node, Workers
from kvnode.node.recovery import restore
from kvnode.node.status import NodeIdentity
from kvnode.raft.core import Raft
from kvnode.sim.choices import RandomChoices
from kvnode.sim.disk import FakeDisk
from kvnode.sim.loop import VirtualClock, VirtualWorker
from kvnode.sim.runtime.network import Network, VirtualTransport
from kvnode.storage.memory_backend import MemoryBackend
from kvnode.storage.wal import Stamp
from kvnode.storage.wal_salvage import open_log

CLUSTER_ID = 0x5EED
LOG_DIRECTORY = "/wal"


class Cluster:
    """`size` members, all down at first."""

    def __init__(self, seed: int, size: int = 3, settings: dict[str, object] | None = None) -> None:
        self._seed = seed
        self.loop = asyncio.get_running_loop()
        self.network = Network(self.loop, self.fork("network"))
        self.ids = [NodeId(number) for number in range(1, size + 1)]
        members = tuple(f"{number}=127.0.0.1:{7500 + number}" for number in self.ids)
        common: dict[str, object] = {
            "cluster.members": members,
            "cluster.secret_file": "secret",
            "storage.segment_bytes": 64 << 10,  # small: the fake disk pays for every byte, and rolls are exercised
        }
        self._config = load(None, environment={}, overrides={**common, **(settings or {})})
        self._disks = {member: FakeDisk(self.fork(f"disk-{member}")) for member in self.ids}
        self._starts: dict[NodeId, int] = {}
        self.disk_delay_s = 0.0005  # how long a write with its fsync takes, on members started from now on
        self.members: dict[NodeId, Member] = {}
        self.failures: dict[NodeId, BaseException] = {}

    def fork(self, label: str) -> random.Random:
        """A generator of its own for one subsystem, so that a draw in one does not shift the others."""
        return random.Random(f"{self._seed}/{label}")

    async def start_all(self) -> None:
        for member in self.ids:
            await self.start(member)

    async def start(self, member: NodeId) -> Member:
        """Start a member from what its disk holds."""
        assert member not in self.members, member
        self._starts[member] = self._starts.get(member, 0) + 1
        found = Member(self, member, self._disks[member], self._config, boot=self._starts[member])
        self.members[member] = found
        await found.start()
        return found

    def crash(self, member: NodeId) -> None:
        """Power loss of one machine: any subset of what was not synced survives."""
        self._end(member)
        self._disks[member] = self._disks[member].crash(RandomChoices(self.fork(f"crash-{self.loop.time()}-{member}")))

    def kill(self, member: NodeId) -> None:
        """The process ends at once; what it wrote is still there."""
        self._end(member)
        self._disks[member] = self._disks[member].kill()

    def disk_of(self, member: NodeId) -> FakeDisk:
        """To be damaged while the member is down."""
        return self._disks[member]

    def _end(self, member: NodeId) -> None:
        self.members.pop(member).die()

    def leader(self) -> Node | None:
        """The leader of the newest term, if one is up."""
        leading = [m.node for m in self.members.values() if m.node.status().role == "leader"]
        return max(leading, key=lambda node: node.term) if leading else None

    async def until(self, condition: Callable[[], object], within_s: float = 10.0) -> None:
        """Let virtual time pass until `condition()`; fails the test otherwise."""
        deadline = self.loop.time() + within_s
        while not condition():
            assert self.loop.time() < deadline, f"not within {within_s} virtual seconds"
            await asyncio.sleep(0.005)

    async def elect(self) -> Node:
        """Wait until somebody leads and is ready."""
        await self.until(lambda: (found := self.leader()) is not None and found.is_ready())
        leader = self.leader()
        assert leader is not None
        return leader

    async def settle(self) -> None:
        """Wait until every member up has applied the same entries, and check that their states are equal."""
        await self.until(lambda: len({m.node.status().applied_index for m in self.members.values()}) == 1)
        hashes = {m.node.status().state_hash for m in self.members.values()}
        assert len(hashes) == 1, hashes

    def kv(self, member: int) -> KV:
        return self.members[NodeId(member)].node


class Member:
    """One process life of one member."""

    def __init__(self, cluster: Cluster, member: NodeId, disk: FakeDisk, config: Config, *, boot: int) -> None:
        loop = cluster.loop
        self.id = member
        self.disk = disk
        self.clock = VirtualClock(loop)
        self._cluster = cluster
        self.transport: VirtualTransport = cluster.network.transport(member)
        self.workers = {name: VirtualWorker(loop, cluster.disk_delay_s) for name in ("log", "log-reader", "flusher")}
        backend = MemoryBackend()
        limits: LimitsSection = config.limits
        storage: StorageSection = config.storage
        raft_settings: RaftSection = config.raft
        machine = StateMachine(backend, limits)
        if boot == 1:
            disk.mkdir(LOG_DIRECTORY)
            disk.fsync_dir("/")
        self.wal, recovered, _ = open_log(
            disk,
            LOG_DIRECTORY,
            Stamp(cluster_id=CLUSTER_ID, member=member, incarnation=1000 + member),
            applied_index=Index(machine.applied_index),
            segment_bytes=storage.segment_bytes,
            batch_bytes_max=storage.batch_bytes_max,
            create=boot == 1,
            may_salvage=len(cluster.ids) > 1,
        )
        self.raft = Raft(
            node=member,
            settings=raft_settings,
            rng=cluster.fork(f"raft-{member}-{loop.time()}"),
            restored=restore(
                hard_state=recovered.hard_state,
                base=recovered.base,
                term_runs=recovered.term_runs,
                last_index=recovered.last_index,
                tail=recovered.tail,
                last_time=recovered.last_time,
                voters=cluster.ids,
                machine=machine,
                committed=recovered.committed,
                life=boot,
                is_quarantined=recovered.quarantine is not None,
            ),
            now_ms=self.clock.monotonic_ms(),
        )
        self.node = Node(
            config=config,
            raft=self.raft,
            machine=machine,
            backend=backend,
            log_store=self.wal,
            transport=self.transport,
            workers=Workers(self.workers.__getitem__),
            clock=self.clock,
            loop=loop,
            identity=NodeIdentity(
                cluster_id=CLUSTER_ID,
                peer_addresses={other: f"127.0.0.1:{7500 + other}" for other in cluster.ids},
                client_url=f"http://node-{member}",
                free_bytes=lambda: 1 << 40,
                alarms=lambda: (),
                boot=boot,
            ),
            on_failed=self._failed,
            lost=recovered.quarantine.what if recovered.quarantine else "",
        )

    async def start(self) -> None:
        self.node.start()
        await self.transport.start(self.node.receiver)

    def die(self) -> None:
        """End at once: no more jobs, messages or timers."""
        for worker in self.workers.values():
            worker.die()
        self.node.abandon()
        self.transport.closed = True
        self._cluster.network.leave(self.transport)

    def _failed(self, error: BaseException) -> None:
        self._cluster.failures[self.id] = error
        if not isinstance(error, Fatal):
            raise error
