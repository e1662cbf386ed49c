"""A simulated cluster: the real node runtime, log, codec and store over virtual time, network and disk.

Nodes crash (what was not synced may be gone), are killed (the page cache survives), restart from their disks and
are partitioned by the network. Everything random comes from one seed, forked by label. The observer looks at every
step of every member.

Scripted tests hold the members' nodes in their hands: then all live on one loop, have met before the story begins, and
what is not a message happens at once. With `has_processes` each member has a loop of its own and begins at an empty
directory.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import msgspec

from kvnode.config import Config, load
from kvnode.errors import Fatal, StorageFailed
from kvnode.ids import NodeId
from kvnode.kv.interface import KV
from kvnode.node.node import Node
from kvnode.node.roster import derive_cluster_id
from kvnode.sim.choices import RandomChoices
from kvnode.sim.disk import FakeDisk, SimulatedCrash
from kvnode.sim.runtime.applied import AppliedLog
from kvnode.sim.runtime.clock import NodeClock
from kvnode.sim.runtime.member import DATA_DIR, AskedFromOutside, Member
from kvnode.sim.runtime.network import Network
from kvnode.sim.runtime.observer import Observer, StrayObserver
from kvnode.sim.trace import Trace
from kvnode.storage.datadir import DataDir, MemberIdentity
from kvnode.storage.environments import MemoryEnvironments

LOG_DIRECTORY = f"{DATA_DIR}/wal"

UNDER_WAY_MAX = 6
"""A power loss strikes somewhere in the first so many disk operations of the write that is under way."""


class Cluster:
    """`size` members, all down at first."""

    def __init__(
        self,
        seed: int,
        size: int = 3,
        settings: dict[str, object] | None = None,
        *,
        has_processes: bool = False,
        trace: Trace | None = None,
    ) -> None:
        self._seed = seed
        self.loop = asyncio.get_running_loop()
        self.has_processes = has_processes
        self.ids = [NodeId(number) for number in range(1, size + 1)]
        self.trace = trace or Trace()
        self.observer = Observer.of(self.ids)
        self.network = Network(self.loop, self.fork("network"), self.note)
        addresses = {number: f"127.0.0.1:{7500 + number}" for number in self.ids}
        common: dict[str, object] = {
            "cluster.members": tuple(f"{number}={address}" for number, address in addresses.items()),
            "cluster.secret_file": "secret",
            "storage.segment_bytes": 64 << 10,  # small: the fake disk pays for every byte, and rolls are exercised
            "storage.free_bytes_min": 0,
        }
        self._settings = {**common, **(settings or {})}
        self.configs: dict[NodeId, Config] = {number: self.reconfigured(number, {}) for number in self.ids}
        self.disks = {member: FakeDisk(self.fork(f"disk-{member}")) for member in self.ids}
        self.stores: dict[NodeId, MemoryEnvironments] = {}
        self.disk_delay_s = 0.0005  # how long a write with its fsync takes, on members started from now on
        self.members: dict[NodeId, Member] = {}
        self.failures: dict[NodeId, BaseException] = {}
        self.errors: list[dict[str, Any]] = []  # what no callback may do, and did
        self.applied = AppliedLog(now_s=self.loop.time)
        self.bootstrapped: dict[NodeId, bool] = {}  # members that have met all others once
        self.clocks: dict[NodeId, NodeClock] = {}
        self.draw_clock: Callable[[NodeId], NodeClock] = lambda _: NodeClock(self.loop.time, start_s=self.loop.time())
        self.lives: dict[NodeId, int] = {}
        self.strays: set[NodeId] = set()  # members whose disk is not theirs: no log of the cluster is on it
        self._tasks: list[asyncio.Task[None]] = []
        if not has_processes:
            self._introduce(addresses)

    def reconfigured(self, member: NodeId, settings: dict[str, object]) -> Config:
        """The cluster's configuration, as this member would have it with other settings."""
        return load(None, environment={}, overrides={**self._settings, **settings, "node.id": int(member)})

    def fork(self, label: str) -> random.Random:
        """A generator of its own for one subsystem, so that a draw in one does not shift the others."""
        return random.Random(f"{self._seed}/{label}")

    def note(self, *event: object) -> None:
        """One more event of the run's trace, with its time in microseconds."""
        self.trace.add(round(self.loop.time() * 1e6), *event)

    def make_clock(self, member: NodeId) -> NodeClock:
        """The machine's clock: it goes on while no process runs."""
        if member not in self.clocks:
            self.clocks[member] = self.draw_clock(member)
        return self.clocks[member]

    def environments_of(self, member: NodeId) -> MemoryEnvironments:
        """The stores in its directory: what a commit wrote outlives the process."""
        return self.stores.setdefault(member, MemoryEnvironments())

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Something that goes on beside the scenario."""
        self._tasks.append(self.loop.create_task(work))

    async def finish_spawned(self) -> None:
        await asyncio.gather(*self._tasks)

    # ── members ─────────────────────────────────────────────────────────────────────────────────────

    async def start_all(self) -> None:
        for member in self.ids:
            await self.start(member)

    async def start(self, member: NodeId) -> Member:
        """Start a member from what its disk holds."""
        return self.begin(member)

    def begin(self, member: NodeId) -> Member:
        assert member not in self.members, member
        life = self.lives[member] = self.lives.get(member, 0) + 1
        self.note(f"start {member}")
        observer = StrayObserver.of(self.ids) if member in self.strays else self.observer
        found = Member(self, member, self.disks[member], self.configs[member], observer=observer, life=life)
        self.members[member] = found
        found.start()
        return found

    @property
    def starts(self) -> int:
        return sum(self.lives.values())

    def crash(self, member: NodeId, *, silently: bool = False) -> None:
        """Power loss of one machine: any subset of what was not synced survives.

        A write that is at the disk is cut anywhere, so that there is something unsynced to lose.
        """
        self.note(f"crash {member}")
        gone = self.members[member]
        rng = self.fork(f"crash-{self.loop.time()}-{member}")
        self._end(member, silently=silently)
        if not gone.disk.crashed:
            gone.disk.crash_at(gone.disk.changes + rng.randint(1, UNDER_WAY_MAX))
            for worker in gone.workers.values():
                _interrupt(worker.under_way)
        self.disks[member] = gone.disk.crash(RandomChoices(rng))

    def disk_of(self, member: NodeId) -> FakeDisk:
        """To be damaged while the member is down."""
        return self.disks[member]

    def kill(self, member: NodeId) -> None:
        """The process ends at once; what it wrote is still there."""
        self.note(f"kill {member}")
        gone = self.members[member]
        self._end(member)
        self.disks[member] = gone.disk.kill()

    def _end(self, member: NodeId, *, silently: bool = False) -> None:
        self.failures.pop(member, None)
        self.members.pop(member).die(silently=silently)

    def describe(self) -> str:
        """A line for each member, for whoever reads a failure."""
        return "\n".join(
            f"member {member}: {self.members[member].describe() if member in self.members else 'down'}"
            + (f", failed: {self.failures[member]}" if member in self.failures else "")
            for member in self.ids
        )

    def end_all(self) -> None:
        """The run is over; what is still there goes without a word."""
        for member in list(self.members):
            self._end(member)

    def on_power_lost(self, member: Member) -> None:
        """The disk has reached the operation at which its machine was to lose power."""
        if self.members.get(member.id) is member:
            self.crash(member.id)

    def on_failed(self, member: Member, error: BaseException) -> None:
        """The node gave up. Its process is still there, for whoever buries it."""
        self.note(f"failed {member.id} {type(error).__name__}")
        self.failures[member.id] = error
        if member.own_loop is None:
            return
        if not isinstance(error, Fatal):
            self.errors.append({"message": f"member {member.id} failed", "exception": error})
        member.leave()

    # ── what scenarios wait for ─────────────────────────────────────────────────────────────────────

    def nodes(self) -> dict[NodeId, Node]:
        """Of those who take part."""
        return {member: found.node for member, found in self.members.items() if found.takes_part}

    def leader(self) -> Node | None:
        """The leader of the newest term, if one is up."""
        leading = [node for node in self.nodes().values() if node.status().role == "leader"]
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
        await self.until(lambda: len({node.status().applied_index for node in self.nodes().values()}) == 1)
        hashes = {node.status().state_hash for node in self.nodes().values()}
        assert len(hashes) == 1, hashes

    def kv(self, member: int) -> KV:
        found = self.members[NodeId(member)]
        return AskedFromOutside(found) if self.has_processes else found.node

    def _introduce(self, addresses: dict[NodeId, str]) -> None:
        """Give every member a directory on which the bootstrap has finished."""
        opened = {
            member: DataDir.open(
                self.disks[member],
                DATA_DIR,
                member=member,
                cluster_name=self.configs[member].cluster.name,
                random_u64=partial(int, 1000 + member),
                allow_unsafe_filesystem=False,
            )
            for member in self.ids
        }
        known = {member: (data.identity.incarnation, addresses[member]) for member, data in opened.items()}
        cluster_id = derive_cluster_id(known)
        members = {member: MemberIdentity(*found) for member, found in known.items()}
        for data in opened.values():
            data.save_identity(msgspec.structs.replace(data.identity, cluster_id=cluster_id, members=members))
            data.close()


def _interrupt(job: Callable[[], Any] | None) -> None:
    """Let a job that was at the disk get as far as the power lasts."""
    if job is not None:
        try:
            job()
        except (SimulatedCrash, StorageFailed):  # the error that was planned for this write and the end coincide
            return
