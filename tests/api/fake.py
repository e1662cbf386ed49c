"""A store in a dictionary behind the front door: revisions, compares and paging as the node does them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec

from kvnode.errors import CompareFailed, FutureRevision, KvnodeError, MemberNotFound
from kvnode.ids import NOBODY, Index, NodeId, Revision, Term
from kvnode.kv import keys
from kvnode.kv.interface import (
    DEFAULT_OPTIONS,
    KV,
    Admin,
    Backup,
    MemberInfo,
    Members,
    MembersChanged,
    Options,
    Status,
    WatchStream,
)
from kvnode.kv.members import MemberChange
from kvnode.kv.requests import (
    ANY_REVISION,
    MUST_EXIST,
    Await,
    Command,
    Compare,
    Delete,
    DeleteReply,
    HashReply,
    History,
    KeyValue,
    Put,
    PutReply,
    Range,
    RangeReply,
    SessionEnd,
    SessionOpen,
    SessionReply,
    SessionsEnded,
    Txn,
    TxnReply,
    Watch,
)
from kvnode.observe.metrics import Histogram

START_MS = 1_795_341_600_000  # 2026-11-22T10:00:00Z


class FakeKV(KV):
    """Answers at once. `fail` makes the next request raise; `seen` keeps what arrived; `gate` holds answers back."""

    def __init__(self) -> None:
        self.revision = 1
        self.states: dict[int, dict[bytes, KeyValue]] = {1: {}}
        self.seen: list[tuple[Any, Options]] = []
        self.fail: KvnodeError | Exception | None = None
        self.fail_if: Callable[[Any], KvnodeError | None] = lambda _: None
        self.gate: asyncio.Event | None = None
        self.wait_for: asyncio.Event | None = None  # a long poll looks again when this is set

    @property
    def live(self) -> dict[bytes, KeyValue]:
        return self.states[self.revision]

    @property
    def time(self) -> int:
        return (START_MS + self.revision) << 16

    async def execute_all(self, requests: Any, options: Options = DEFAULT_OPTIONS) -> list[Any]:
        return await asyncio.gather(*(self.execute(one, options) for one in requests), return_exceptions=True)

    async def execute(self, request: Any, options: Options = DEFAULT_OPTIONS) -> Any:
        self.seen.append((request, options))
        error = self.fail or self.fail_if(request)
        if error is not None:
            raise error
        if isinstance(request, Await):
            found = self._history(History(request.key, 1), self.revision).items
            while self.wait_for is not None and not (found and found[0].mod_revision > request.after_revision):
                await self.wait_for.wait()
                self.wait_for = None
                found = self._history(History(request.key, 1), self.revision).items
            newer = found and found[0].mod_revision > request.after_revision
            return RangeReply(self.revision, found if newer else (), len(found))
        if isinstance(request, SessionOpen):
            return SessionReply(42, request.ttl_ms)
        if isinstance(request, SessionEnd):
            return SessionsEnded(len(request.sessions), 0)
        reply = self._carry_out(request.request if isinstance(request, Command) else request, options)
        if self.gate is not None:
            await self.gate.wait()
        return reply

    def watch(self, request: Watch, options: Options = DEFAULT_OPTIONS) -> WatchStream:
        raise NotImplementedError("watches are tested over a real state machine")

    def _carry_out(self, request: Any, options: Options) -> Any:
        if isinstance(request, Range | History):
            revision = request.revision or self.revision
            if options.at_time:
                revision = max(1, min(self.revision, (options.at_time >> 16) - START_MS))
            if revision > self.revision:
                raise FutureRevision("that revision is yet to come", revision=self.revision)
            return self._history(request, revision) if isinstance(request, History) else self._range(request, revision)
        state = dict(self.live)
        revision = self.revision + 1
        if isinstance(request, Txn):
            succeeded = all(_holds(compare, state.get(compare.key)) for compare in request.compare)
            before = dict(state)
            results = tuple(
                self._operate(op, state, revision) for op in (request.success if succeeded else request.failure)
            )
            self._commit(state, before, revision)
            return TxnReply(self.revision, succeeded, results)
        before = dict(state)
        reply = self._operate(request, state, revision)
        self._commit(state, before, revision)
        return reply

    def _commit(self, state: dict[bytes, KeyValue], before: dict[bytes, KeyValue], revision: int) -> None:
        if state != before:
            self.revision = revision
            self.states[revision] = state

    def _operate(self, request: Any, state: dict[bytes, KeyValue], revision: int) -> Any:
        stamp = (START_MS + revision) << 16
        if isinstance(request, Put):
            old = state.get(request.key)
            _check(request.if_revision, old)
            new = KeyValue(
                request.key,
                request.value,
                old.create_revision if old else revision,
                revision,
                old.version + 1 if old else 1,
                0,
                stamp,
            )
            state[request.key] = new
            previous = old if request.return_previous else None
            return PutReply(revision, old is None, new.create_revision, new.version, stamp, previous)
        if isinstance(request, Delete):
            found = [kv for key, kv in sorted(state.items()) if keys.contains(request.start, request.end, key)]
            if request.if_revision != ANY_REVISION:
                _check(request.if_revision, found[0] if found else None)
            for kv in found:
                del state[kv.key]
            previous_all = tuple(found) if request.return_previous else ()
            return DeleteReply(revision if found else self.revision, len(found), previous_all)
        return _page(request, state, revision)

    def _history(self, request: History, revision: int) -> RangeReply:
        versions: list[KeyValue] = []
        for at in range(1, revision + 1):
            kv = self.states[at].get(request.key) if at in self.states else None
            if kv is not None and kv.mod_revision == at:
                versions.append(kv)
            elif kv is None and versions and versions[-1].version:
                versions.append(KeyValue(request.key, b"", 0, at, 0, 0, (START_MS + at) << 16))
        found = [kv for kv in reversed(versions) if not request.before or kv.mod_revision < request.before]
        limit = request.limit or 1_000
        return RangeReply(revision, tuple(found[:limit]), len(found[:limit]), len(found) > limit)

    def _range(self, request: Range, revision: int) -> RangeReply:
        return _page(request, self.states[revision], revision)


def _page(request: Range, state: dict[bytes, KeyValue], revision: int) -> RangeReply:
    found = [kv for key, kv in sorted(state.items()) if keys.contains(request.start, request.end, key)]
    if request.count_only:
        return RangeReply(revision, (), len(found), False)
    if request.descending:
        found.reverse()
    limit = request.limit or 1_000
    return RangeReply(revision, tuple(found[:limit]), len(found[:limit]), len(found) > limit)


def _check(condition: int, old: KeyValue | None) -> None:
    current = old.mod_revision if old else 0
    if condition in {ANY_REVISION, current} or (condition == MUST_EXIST and old):
        return
    raise CompareFailed("the key is at another revision", revision=current)


def _holds(compare: Compare, old: KeyValue | None) -> bool:
    actual: Any
    if compare.target == "exists":
        actual = int(old is not None)
    elif compare.target == "value":
        if old is None:
            return False
        actual = old.value
    else:
        actual = getattr(old, compare.target) if old else 0
    wanted: Any = compare.value
    return {"=": actual == wanted, "!=": actual != wanted, "<": actual < wanted, ">": actual > wanted}[compare.op]


class FakeBackup(Backup):
    """A header and the blocks given; a block that is an error is raised."""

    def __init__(
        self, revision: Revision, header: bytes, blocks: Sequence[bytes | Exception], logical_bytes: int
    ) -> None:
        self.index = Index(9)
        self.revision = revision
        self.header = header
        self.logical_bytes = logical_bytes
        self.closed = False
        self._blocks = blocks

    async def block(self, number: int) -> bytes | None:
        if number == len(self._blocks):
            return None
        block = self._blocks[number]
        if isinstance(block, Exception):
            raise block
        return block

    def close(self) -> None:
        self.closed = True


class FakeAdmin(Admin):
    """Node 1, leader of term 3, over a `FakeKV`."""

    def __init__(self, kv: FakeKV) -> None:
        self.kv = kv
        self.ready = True
        self.quarantined = False
        self.short_of_space = False
        self.corrupted = False
        self.role: Literal["leader", "follower", "learner"] = "leader"
        self.leader: NodeId | None = NodeId(1)
        self.staleness = -1
        self.transferred: list[int] = []
        self.configuration_index = 0
        self.changes: list[tuple[MemberChange, Options]] = []
        self.fail_change: KvnodeError | None = None
        self.options: list[Options] = []
        self.fail_backup: KvnodeError | None = None
        self.header = b"header"
        self.logical_bytes = 4096
        self.blocks: list[bytes | Exception] = [b"block 0", b"the end"]
        self.backups: list[FakeBackup] = []

    @property
    def id(self) -> NodeId:
        return NodeId(1)

    @property
    def term(self) -> Term:
        return Term(3)

    @property
    def led_term(self) -> Term:
        return Term(3)

    @property
    def revision(self) -> Revision:
        return Revision(self.kv.revision)

    @property
    def applied_time(self) -> int:
        return self.kv.time

    @property
    def staleness_ms(self) -> int:
        return self.staleness

    def status(self) -> Status:
        return Status(
            id=NodeId(1),
            name="node-1",
            cluster_id="00112233445566ff",
            role=self.role,
            term=Term(3),
            leader=self.leader,
            commit_index=9,
            applied_index=9,
            durable_index=9,
            last_index=9,
            revision=self.revision,
            compact_revision=0,
            hybrid_time="1970-01-01T00:00:00.000Z.0000",
            swept_revision=0,
            logical_bytes=0,
            history_bytes=0,
            state_hash="ab",
            members=self.members().members,
            configuration_index=self.configuration_index,
            peers=(),
            quorum={"voters": 1, "needed": 1, "reachable": 1},
            wal_bytes=4096,
            store_bytes=8192,
            free_bytes=1 << 40,
            queue_length=0,
            alarms=(),
            ready=self.ready,
            quarantined=self.quarantined,
            version="0",
            uptime_ms=1,
            short_of_space=self.short_of_space,
            corrupted=self.corrupted,
        )

    def is_ready(self) -> bool:
        return self.ready

    def leader_client_url(self) -> str:
        return "http://127.0.0.1:7402"

    async def transfer_leadership(self, to: NodeId = NOBODY) -> NodeId:
        if to > 3:
            raise MemberNotFound(f"there is no member {to}")
        self.transferred.append(to)
        return to or NodeId(2)

    async def state_hash(self, revision: int = 0, options: Options = DEFAULT_OPTIONS) -> HashReply:
        if revision > self.kv.revision:
            raise FutureRevision("that revision is yet to come", revision=self.kv.revision)
        return HashReply(revision or self.kv.revision, len(self.kv.live), "ab" * 16)

    async def backup(self, options: Options = DEFAULT_OPTIONS) -> Backup:
        self.options.append(options)
        if self.fail_backup is not None:
            raise self.fail_backup
        self.backups.append(FakeBackup(Revision(self.kv.revision), self.header, self.blocks, self.logical_bytes))
        return self.backups[-1]

    def members(self) -> Members:
        return Members(
            cluster_id="00112233445566ff",
            cluster_name="local",
            leader=self.leader,
            configuration_index=self.configuration_index,
            last_id=NodeId(3),
            feature_level=1,
            members=(
                MemberInfo(
                    id=NodeId(1),
                    name="one",
                    role="voter",
                    peer_address="127.0.0.1:7501",
                    client_url="127.0.0.1:7401",
                    incarnation="00000000000000a1",
                    version="0",
                    feature_level=1,
                    connected=True,
                    match_index=9,
                    lag=0,
                ),
                MemberInfo(
                    id=NodeId(3),
                    role="learner",
                    peer_address="127.0.0.1:7503",
                    client_url="",
                    wants_vote=True,
                    replaces=NodeId(2),
                    match_index=4,
                    lag=5,
                    progress="replicate",
                ),
            ),
        )

    async def change_members(self, change: MemberChange, options: Options = DEFAULT_OPTIONS) -> MembersChanged:
        self.changes.append((change, options))
        if self.fail_change is not None:
            raise self.fail_change
        self.configuration_index += 1
        id_ = getattr(change, "id", NodeId(3))
        return MembersChanged(id=id_, **msgspec.structs.asdict(self.members()))

    def counters(self) -> dict[str, Any]:
        return {"kvnode_term": 3, "kvnode_proposals_total": 7, "kvnode_commit_seconds": Histogram()}
