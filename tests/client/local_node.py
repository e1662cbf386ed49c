"""A node for clients to talk to: the real front door over a state machine in memory, without consensus.

`refuse_next` makes the next requests fail as a real node's would.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from kvnode import errors
from kvnode.api.app import ClientServer, build_app
from kvnode.clocks.hybrid import HybridClock
from kvnode.clocks.system import SystemClock
from kvnode.config import ClientSection, Config
from kvnode.ids import NOBODY, Index, NodeId, Revision, Term
from kvnode.kv.interface import KV, Admin, Backup, MemberInfo, Members, MembersChanged, Options, Status, WatchStream
from kvnode.kv.members import AddMember, MemberChange, PromoteMember, RemoveMember, UpdateMember
from kvnode.kv.requests import (
    Await,
    HashReply,
    History,
    LeaseKeepAlive,
    LeaseList,
    LeaseRead,
    LeaseReadReply,
    LeaseReply,
    QueueRead,
    RangeReply,
    ReadRequest,
    Refusal,
    Watch,
)
from kvnode.machine.machine import StateMachine
from kvnode.machine.pace import Pace, in_one_go
from kvnode.machine.snapshot import SnapshotReader
from kvnode.node.range_reads import RangeReads
from kvnode.node.watch_stream import NodeStream
from kvnode.node.watches import Watches
from kvnode.raft.messages import Configuration, Member
from kvnode.storage.memory_backend import MemoryBackend
from kvnode.wire.codec import encode_configuration
from tests.api.fake_available import FakeAvailable

WALL_MS = 1_790_000_000_000
POLL_MS = 5


class LocalBackup(Backup):
    """Of the state as it is; `broken_after` blocks it breaks off."""

    broken_after = 1 << 30

    def __init__(self, node: LocalNode) -> None:
        machine = node.machine
        cut = machine.cut(Term(1))
        if cut is not None:
            machine.backend.commit(cut)
            machine.evict(cut)
        configuration = Configuration(
            (NodeId(1),), members=(Member(NodeId(1), 0xA1, "127.0.0.1:7501"),), last_id=NodeId(1)
        )
        self._reader = SnapshotReader(
            machine.backend.pin(), cluster_id=0xAA, initial=encode_configuration(configuration)
        )
        self.index = Index(machine.applied_index)
        self.revision = Revision(machine.revision)
        self.header = self._reader.header
        self.logical_bytes = machine.logical_bytes

    async def block(self, number: int) -> bytes | None:
        if number >= self.broken_after:
            raise ConnectionAbortedError("broken off")
        return self._reader.block(number)

    def close(self) -> None:
        self._reader.close()


class LocalNode(KV, Admin):
    """Applies at once what it is asked."""

    watches_max = 10_000

    def __init__(self) -> None:
        self.machine = StateMachine(MemoryBackend(), Config().limits)
        self.clock = HybridClock()
        self.refusals: deque[errors.KvnodeError] = deque()
        self.executed: list[Any] = []
        self.options: list[Options] = []
        self.ready = True
        self.newest_led = Term(1)
        self.changes: list[MemberChange] = []
        self.configuration = Members(
            cluster_id="00000000000000aa",
            cluster_name="local",
            leader=NodeId(1),
            configuration_index=0,
            last_id=NodeId(1),
            feature_level=1,
            members=(
                MemberInfo(
                    id=NodeId(1),
                    name="one",
                    role="voter",
                    peer_address="127.0.0.1:7501",
                    client_url="",
                    incarnation="00000000000000a1",
                    version="0",
                    connected=True,
                    match_index=100,
                    lag=0,
                ),
            ),
        )
        self.plane = FakeAvailable()
        self._watches: Watches | None = None

    @property
    def watches(self) -> Watches:
        """Of the loop that is running."""
        if self._watches is None:
            loop = asyncio.get_running_loop()
            reads = RangeReads(self.machine, loop)
            self._watches = Watches(self.machine, reads, watches_max=self.watches_max, loop=loop, clock=SystemClock())
        return self._watches

    def refuse_next(self, *refusals: errors.KvnodeError) -> None:
        self.refusals.extend(refusals)

    async def execute(self, request: Any, options: Options = Options()) -> Any:  # noqa: B008
        self.options.append(options)
        if self.refusals:
            raise self.refusals.popleft()
        self.executed.append(request)
        if isinstance(request, Await):
            for _ in range(1 + request.wait_ms // POLL_MS):
                found = (await self.execute(History(request.key, 1))).items
                if found and found[0].mod_revision > max(request.after_revision, 0):
                    return RangeReply(self.machine.revision, found, 1)
                await asyncio.sleep(POLL_MS / 1e3)
            return RangeReply(self.machine.revision, (), 1)
        if isinstance(request, LeaseList | QueueRead):
            return self.machine.look_up(request)
        if isinstance(request, LeaseKeepAlive | LeaseRead):
            return self._lease(request)
        if isinstance(request, ReadRequest):
            pace = Pace()
            if options.at_time:
                request = msgspec.structs.replace(request, revision=self.machine.revision_at(options.at_time))
            return in_one_go(self.machine.read(request, pace), pace)
        index = Index(self.machine.applied_index + 1)
        applied = self.machine.apply(index, self.clock.next(WALL_MS + index), request)
        if self._watches is not None and self._watches.is_watched:
            self._watches.applied(applied.events)
        if isinstance(applied.result, Refusal):
            raise errors.by_code()[applied.result.code](applied.result.message, revision=applied.result.found)
        return applied.result

    def watch(self, request: Watch, options: Options = Options()) -> WatchStream:  # noqa: B008
        async def reach() -> None:
            self.options.append(options)
            if self.refusals:
                raise self.refusals.popleft()

        return NodeStream(self.watches, request, reach)

    def _lease(self, request: LeaseKeepAlive | LeaseRead) -> LeaseReply | LeaseReadReply:
        """Leases end here when a test ends them."""
        lease = self.machine.leases.get(request.id)
        if lease is None:
            raise errors.LeaseNotFound(f"lease {request.id} does not exist")
        if isinstance(request, LeaseKeepAlive):
            return LeaseReply(lease.id, lease.ttl_ms, self.revision)
        keys = tuple(sorted(lease.keys))
        return LeaseReadReply(lease.id, lease.ttl_ms, lease.ttl_ms, self.revision, keys, len(keys))

    @property
    def id(self) -> NodeId:
        return NodeId(1)

    @property
    def term(self) -> Term:
        return Term(1)

    @property
    def led_term(self) -> Term:
        return self.newest_led

    @property
    def revision(self) -> Revision:
        return Revision(self.machine.revision)

    @property
    def applied_time(self) -> int:
        return self.machine.applied_time

    @property
    def staleness_ms(self) -> int:
        return 0

    def status(self) -> Status:
        return Status(
            id=self.id,
            name="node-1",
            cluster_id="00000000000000aa",
            role="leader",
            term=self.term,
            leader=self.id,
            commit_index=self.machine.applied_index,
            applied_index=self.machine.applied_index,
            durable_index=self.machine.applied_index,
            last_index=self.machine.applied_index,
            revision=self.revision,
            compact_revision=0,
            hybrid_time="1970-01-01T00:00:00.000Z.0000",
            swept_revision=0,
            logical_bytes=0,
            history_bytes=0,
            state_hash="",
            members=self.members().members,
            configuration_index=self.members().configuration_index,
            peers=(),
            quorum={"voters": 1, "needed": 1, "reachable": 1},
            wal_bytes=0,
            store_bytes=0,
            free_bytes=1 << 40,
            queue_length=0,
            alarms=(),
            ready=self.ready,
            quarantined=False,
            version="0",
            uptime_ms=1,
        )

    def is_ready(self) -> bool:
        return self.ready

    def leader_client_url(self) -> str:
        return ""

    async def transfer_leadership(self, to: NodeId = NOBODY) -> NodeId:
        if to not in (NOBODY, *(member.id for member in self.configuration.members)):
            raise errors.MemberNotFound(f"no member {to}")
        if to == NOBODY:
            raise errors.Conflict("there is no other voter that leadership could be handed to")
        return to

    async def state_hash(self, revision: int = 0, options: Options = Options()) -> HashReply:  # noqa: B008
        pace = Pace()
        return in_one_go(self.machine.state_hash(revision, pace), pace)

    async def backup(self, options: Options = Options()) -> Backup:  # noqa: B008
        if self.refusals:
            raise self.refusals.popleft()
        return LocalBackup(self)

    def members(self) -> Members:
        return self.configuration

    async def change_members(self, change: MemberChange, options: Options = Options()) -> MembersChanged:  # noqa: B008
        """As a cluster does of which every change is committed at once."""
        if self.refusals:
            raise self.refusals.popleft()
        self.changes.append(change)
        before = {member.id: member for member in self.configuration.members}
        last_id = self.configuration.last_id
        match change:
            case AddMember():
                last_id = id_ = NodeId(last_id + 1)
                before[id_] = MemberInfo(
                    id=id_,
                    name=change.name,
                    role="learner",
                    peer_address=change.address,
                    client_url="",
                    incarnation=f"{change.incarnation:016x}" if change.incarnation else "",
                    wants_vote=change.promote,
                    replaces=change.replaces or None,
                    match_index=0,
                    lag=100,
                )
            case PromoteMember() | RemoveMember() | UpdateMember():
                id_ = change.id
                is_done = isinstance(change, RemoveMember) and 0 < id_ <= last_id
                if id_ not in before and not is_done:
                    raise errors.MemberNotFound(f"there is no member {id_}")
                old = before.pop(id_, None)
                if isinstance(change, PromoteMember):
                    before[id_] = msgspec.structs.replace(old, role="voter", wants_vote=False, lag=0)
                elif isinstance(change, UpdateMember):
                    before[id_] = msgspec.structs.replace(old, peer_address=change.address)
            case _:
                raise AssertionError(change)
        self.configuration = msgspec.structs.replace(
            self.configuration,
            configuration_index=self.configuration.configuration_index + 1,
            last_id=last_id,
            members=tuple(before[id_] for id_ in sorted(before)),
        )
        return MembersChanged(id=id_, **msgspec.structs.asdict(self.configuration))

    def counters(self) -> dict[str, Any]:
        return {}


@asynccontextmanager
async def served(node: LocalNode) -> AsyncIterator[str]:
    """The node behind the real HTTP listener; yields its host:port."""
    config = Config(client=ClientSection(listen="127.0.0.1:0"))
    server = ClientServer(build_app(node, node, config, node.plane), config)
    await server.start()
    try:
        yield server.address
    finally:
        await server.close()
