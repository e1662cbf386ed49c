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
from kvnode.errors import Conflict, Fatal, KvnodeError, Rejected, StorageFailed
from kvnode.ids import NOBODY, Index, NodeId
from kvnode.join import taken_in
from kvnode.kv.interface import KV, MembersChanged, Options
from kvnode.kv.members import AddMember, MemberChange
from kvnode.node.node import Node
from kvnode.node.roster import derive_cluster_id
from kvnode.raft.messages import Configuration
from kvnode.sim.choices import RandomChoices
from kvnode.sim.disk import FakeDisk, SimulatedCrash
from kvnode.sim.runtime.applied import AppliedLog
from kvnode.sim.runtime.clock import NodeClock
from kvnode.sim.runtime.dots import Dots
from kvnode.sim.runtime.gossip_net import GossipWays
from kvnode.sim.runtime.member import DATA_DIR, AskedFromOutside, Member
from kvnode.sim.runtime.network import Network
from kvnode.sim.runtime.node_loop import NodeLoop
from kvnode.sim.runtime.observer import Observer, StrayObserver
from kvnode.sim.trace import Trace
from kvnode.storage.datadir import DataDir, MemberIdentity
from kvnode.storage.environments import MemoryEnvironments

LOG_DIRECTORY = f"{DATA_DIR}/wal"

CHANGE_MS = 2_000
CHANGE_AGAIN_S = 0.2
"""How long a change of members is waited for, and after which pause it is asked for again."""

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
        has_plane: bool = False,
        trace: Trace | None = None,
    ) -> None:
        """`has_plane`: members take part in gossip, and serve what needs no quorum; for members with processes."""
        self._seed = seed
        self.loop = asyncio.get_running_loop()
        self.has_processes = has_processes
        self.ids = [NodeId(number) for number in range(1, size + 1)]
        self.trace = trace or Trace()
        self.observer = Observer.of(self.ids)
        self.network = Network(self.loop, self.fork("network"), self.note)
        self.ways = GossipWays(self.network, self.fork("gossip-network")) if has_plane else None
        self.dots = Dots()
        self.plane_damages = 0.0  # share of starts that find the plane's store damaged
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
        self._joined = 0
        self._killed: list[NodeLoop] = []
        self.removed: dict[NodeId, Index] = {}  # who is no member any more, by which entry
        self.applied.on_configured = self._on_configured
        self.applied.on_checked = lambda: self.observer.mark("state_checked")
        self.applied.on_new_form = lambda: self.observer.mark("new_form_applied")
        self.strays: set[NodeId] = set()  # members whose disk is not theirs: no log of the cluster is on it
        self.met_boots: dict[NodeId, int] = {}  # of members with old backups: a start that all peers have met
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

    @property
    def has_finished_spawned(self) -> bool:
        return all(task.done() for task in self._tasks)

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

    async def join(
        self, through: Callable[[], NodeId], *, replaces: NodeId = NOBODY, address: str = "", promote: bool = True
    ) -> NodeId:
        """A machine with an empty directory becomes a member, as `kvnode.join` has it, and starts.

        It asks whom `through` names, again and again. Raises: Rejected when the answer is final.
        """
        self._joined += 1
        address = address or f"127.0.0.1:{7600 + self._joined}"
        disk, rng = FakeDisk(self.fork(f"disk-joined-{self._joined}")), self.fork(f"joined-{self._joined}")
        data = DataDir.open(
            disk,
            DATA_DIR,
            member=NOBODY,
            cluster_name=self.configs[self.ids[0]].cluster.name,
            random_u64=partial(rng.getrandbits, 64),
            allow_unsafe_filesystem=False,
        )
        change = AddMember(address, "", data.identity.incarnation, promote=promote, replaces=replaces)
        answer = await self.change_members(through, change)
        data.save_identity(taken_in(data.identity, answer))
        data.close()
        member = answer.id
        self.note(f"joined {member}")
        self.disks[member] = disk
        self.configs[member] = self.reconfigured(member, {"cluster.members": (f"{member}={address}",)})
        self.observer.admit(member)
        if member not in self.removed:
            self.ids.append(member)
            self.begin(member)
        return member

    async def change_members(self, through: Callable[[], NodeId], change: MemberChange) -> MembersChanged:
        """Ask until there is an answer. Raises: Rejected when it is final."""
        while True:
            found = self.members.get(through())
            if found is not None and found.own_loop is not None:
                try:
                    return await found.change_members(change, Options(timeout_ms=CHANGE_MS))
                except (Rejected, Fatal) as error:
                    if not isinstance(error, Conflict):
                        raise
                except (KvnodeError, ConnectionError):
                    pass
            await asyncio.sleep(CHANGE_AGAIN_S)

    def _on_configured(self, index: Index, configuration: Configuration) -> None:
        """The first node has applied it, so it stays."""
        configurations = self.applied.configurations
        if len(configurations) > 1:
            self._note_change(configurations[-2][1], configuration)
        there = {member.id for member in configuration.members}
        for member in [member for member in self.ids if member not in there]:
            self.note(f"removed {member}")
            ghost = self.observer.ghost
            leader = ghost.leaders[ghost.committed[index - 1].term]
            self.observer.mark("leader_removed" if member == leader else "member_removed")
            self.ids.remove(member)
            self.removed[member] = index

    def _note_change(self, before: Configuration, after: Configuration) -> None:
        gone = {member.id for member in before.members} - {member.id for member in after.members}
        if set(before.learners) & set(after.voters):
            self.observer.mark("learner_promoted")
        if any(member.replaces in gone for member in before.members):
            self.observer.mark("member_replaced")
        if after.feature_level > before.feature_level:
            self.observer.mark("feature_level_raised")

    @property
    def configuration(self) -> Configuration:
        """The newest that is applied; empty: still the initial one."""
        return self.applied.configurations[-1][1] if self.applied.configurations else Configuration(tuple(self.ids))

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
        self.environments_of(member).lose_power()

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
        gone = self.members.pop(member)
        gone.die(silently=silently)
        if gone.own_loop is not None:
            self._killed.append(gone.own_loop)  # a coroutine that is collected runs its `finally`

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
        for loop in self._killed:
            loop.forget()

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
