"""KV: the two verbs every embodiment of the store has, and the convenience methods written once on top.

`Node` (embedded), `Client` (remote) and the simulated client implement `execute` and `watch`; recipes and front ends
are written against `KV` and therefore run over any of them. `Admin` is what a front end may know of the node.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from typing import Any, Literal, cast, overload

import msgspec

from kvnode.errors import KvnodeError
from kvnode.ids import NOBODY, Index, NodeId, Revision, Term
from kvnode.kv import keys
from kvnode.kv.events import WatchPart
from kvnode.kv.members import MemberChange
from kvnode.kv.requests import (
    ANY_REVISION,
    NEWEST,
    Await,
    Campaign,
    Command,
    Compact,
    CompactReply,
    Compare,
    Delete,
    DeleteReply,
    HashReply,
    History,
    KeyValue,
    LeaseEnded,
    LeaseGrant,
    LeaseKeepAlive,
    LeaseList,
    LeaseListReply,
    LeaseRead,
    LeaseReadReply,
    LeaseRenew,
    LeaseReply,
    LeaseRevoke,
    LeaseUpkeep,
    Operation,
    Put,
    PutReply,
    QueueRead,
    QueueReply,
    Range,
    RangeReply,
    Reply,
    Request,
    SessionEnd,
    SessionOpen,
    SessionReply,
    SessionsEnded,
    Txn,
    TxnReply,
    Watch,
)

Consistency = Literal["linearizable", "causal", "bounded", "stale"]
"""Linearizable: everything committed before the read began. Causal: at least a revision that the caller names.
Bounded: everything committed longer ago than a bound. Stale: what is applied here."""

AliveStatus = Literal["alive", "suspect", "dead", "left", "unknown"]

TIMEOUT_MS_DEFAULT = 5_000


class Options(msgspec.Struct, frozen=True, gc=False):
    """How a request is to be carried out; never part of what the log stores."""

    timeout_ms: int = TIMEOUT_MS_DEFAULT
    consistency: Consistency = "linearizable"  # for reads
    request_id: str = ""  # for logs, echoed to the client
    at_time: int = 0  # for reads without a revision: the newest one made at or before this hybrid timestamp; 0: now
    least_revision: int = 0  # for causal reads
    max_staleness_ms: int = 0  # for bounded reads
    forward: bool = True  # False: refuse with NoLeader (detail `leader_url`) unless this node leads
    seen_time: int = 0  # hybrid time of the token that a causal read brings


DEFAULT_OPTIONS = Options()
LOCALLY = Options(consistency="stale")


def as_bytes(text: str | bytes) -> bytes:
    """Keys and values may be given as text; the store knows bytes only."""
    return text.encode() if isinstance(text, str) else text


class WatchStream(AsyncIterator[WatchPart]):
    """An open watch, to be iterated; `contextlib.aclosing` closes it when the block is left."""

    __slots__ = ()

    @abstractmethod
    async def aclose(self) -> None:
        """End it and give back what it holds. Idempotent."""

    @property
    def read_up_to(self) -> int:
        """Everything that matches up to this revision has been handed out; 0: something has not, or it is not known."""
        return 0


class KV(ABC):
    """A coordination store. Keys and values are bytes (text is encoded as UTF-8)."""

    @overload
    async def execute(self, request: Put, options: Options = ...) -> PutReply: ...
    @overload
    async def execute(self, request: Delete, options: Options = ...) -> DeleteReply: ...
    @overload
    async def execute(self, request: Range, options: Options = ...) -> RangeReply: ...
    @overload
    async def execute(self, request: History, options: Options = ...) -> RangeReply: ...
    @overload
    async def execute(self, request: Await, options: Options = ...) -> RangeReply: ...
    @overload
    async def execute(self, request: Txn, options: Options = ...) -> TxnReply: ...
    @overload
    async def execute(
        self, request: LeaseGrant | LeaseRenew | LeaseKeepAlive | Campaign, options: Options = ...
    ) -> LeaseReply: ...
    @overload
    async def execute(self, request: LeaseRevoke | LeaseUpkeep, options: Options = ...) -> LeaseEnded: ...
    @overload
    async def execute(self, request: LeaseRead, options: Options = ...) -> LeaseReadReply: ...
    @overload
    async def execute(self, request: LeaseList, options: Options = ...) -> LeaseListReply: ...
    @overload
    async def execute(self, request: QueueRead, options: Options = ...) -> QueueReply: ...
    @overload
    async def execute(self, request: SessionOpen, options: Options = ...) -> SessionReply: ...
    @overload
    async def execute(self, request: SessionEnd, options: Options = ...) -> SessionsEnded: ...
    @overload
    async def execute(self, request: Command, options: Options = ...) -> Any: ...
    @overload
    async def execute(self, request: Compact, options: Options = ...) -> CompactReply: ...
    @abstractmethod
    async def execute(self, request: Request, options: Options = DEFAULT_OPTIONS) -> Reply:
        """Carry out one request. A `Command` is answered as the request in it would be.

        Raises: a `KvnodeError`; its family says whether a write took effect (`kvnode.errors`).
        """

    async def execute_all(
        self, requests: Sequence[Request], options: Options = DEFAULT_OPTIONS
    ) -> list[Reply | KvnodeError]:
        """Carry out each on its own, in order; a node is handed all of them before it answers the first.

        Returns the replies in that order; where a request failed, its error, which `execute` would have raised.
        """
        found: list[Reply | KvnodeError] = []
        for request in requests:
            try:
                found.append(await self.execute(cast(Any, request), options))
            except KvnodeError as error:
                found.append(error)
        return found

    @abstractmethod
    def watch(self, request: Watch, options: Options = DEFAULT_OPTIONS) -> WatchStream:
        """Stream changes (`kvnode.kv.events`): ordered by revision, each once, none left out.

        `options` apply to the start: the stream begins at a state as new as a read with them would show. The first part
        is `Started`; once it has come no change is missed. It ends after `Cancelled`. Close it (`aclose`) when done.
        Raises: a `KvnodeError` before the first part; Compacted if the start has been dropped.
        """

    def watch_key(self, key: str | bytes, *, from_revision: int = 0, **more: Any) -> WatchStream:
        """Stream the changes of one key; `more`: other fields of `Watch`."""
        return self.watch(Watch(as_bytes(key), from_revision=from_revision, **more))

    def watch_prefix(self, prefix: str | bytes, *, from_revision: int = 0, **more: Any) -> WatchStream:
        """Stream the changes of all keys that start with `prefix`; `more`: other fields of `Watch`."""
        start = as_bytes(prefix)
        return self.watch(Watch(start, keys.prefix_end(start), from_revision, **more))

    async def put(
        self,
        key: str | bytes,
        value: str | bytes,
        *,
        expect_revision: int | None = None,
        lease: int = 0,
        ttl_ms: int = 0,
    ) -> PutReply:
        """Set a key. `expect_revision=0`: only if absent; N: only if its mod revision is N (else CompareFailed).

        The key goes when `lease` ends; with `ttl_ms` it gets a lease of its own, which `get` tells.
        """
        condition = ANY_REVISION if expect_revision is None else expect_revision
        put = Put(as_bytes(key), as_bytes(value), lease, if_revision=condition)
        if not ttl_ms:
            return await self.execute(put)
        granted = await self.execute(LeaseGrant(ttl_ms, put=put))
        assert granted.put is not None
        return granted.put

    async def grant(self, ttl_ms: int) -> LeaseReply:
        """Begin a lease; its `id` is for `put`. It ends `ttl_ms` after the last `keep_alive`, its keys with it."""
        return await self.execute(LeaseGrant(ttl_ms))

    async def keep_alive(self, lease: int) -> LeaseReply:
        """Let a lease live for its whole time from now on. Raises: LeaseNotFound if it has ended."""
        return await self.execute(LeaseKeepAlive(lease))

    async def revoke(self, lease: int) -> LeaseEnded:
        """End a lease now: its keys go in one revision."""
        return await self.execute(LeaseRevoke(lease))

    async def get(
        self, key: str | bytes, *, revision: int = 0, consistency: Consistency = "linearizable"
    ) -> KeyValue | None:
        """The newest version of a key, or the one that `revision` shows; None if there was none."""
        reply = await self.execute(Range(as_bytes(key), revision=revision), Options(consistency=consistency))
        return reply.items[0] if reply.items else None

    async def wait(self, key: str | bytes, *, after_revision: int = NEWEST, wait_ms: int = 30_000) -> KeyValue | None:
        """The next version of a key after that mod revision (of a deletion `version` is 0); None: none came in time.

        It is the newest by then: versions in between are in the history.
        """
        reply = await self.execute(Await(as_bytes(key), after_revision, wait_ms))
        return reply.items[0] if reply.items else None

    async def history(self, key: str | bytes, *, limit: int = 0, before: int = 0) -> RangeReply:
        """One page of the versions of a key that are still kept, newest first; a deletion has version 0."""
        return await self.execute(History(as_bytes(key), limit, before=before))

    async def delete(self, key: str | bytes, *, expect_revision: int | None = None) -> DeleteReply:
        """Delete one key. Deleting an absent key is not an error: `deleted` is 0."""
        condition = ANY_REVISION if expect_revision is None else expect_revision
        return await self.execute(Delete(as_bytes(key), if_revision=condition))

    async def delete_prefix(self, prefix: str | bytes) -> DeleteReply:
        """Delete every key that starts with `prefix`, in one revision."""
        start = as_bytes(prefix)
        return await self.execute(Delete(start, keys.prefix_end(start)))

    async def range(
        self, start: str | bytes, end: str | bytes = keys.ONE_KEY, *, limit: int = 0, revision: int = 0
    ) -> RangeReply:
        """One page of keys in ``[start, end)`` (see `kvnode.kv.keys`)."""
        return await self.execute(Range(as_bytes(start), as_bytes(end), limit=limit, revision=revision))

    async def range_prefix(self, prefix: str | bytes, *, limit: int = 0) -> RangeReply:
        """One page of the keys that start with `prefix`."""
        start = as_bytes(prefix)
        return await self.execute(Range(start, keys.prefix_end(start), limit=limit))

    async def txn(
        self,
        compare: list[Compare] | tuple[Compare, ...],
        success: list[Operation] | tuple[Operation, ...],
        failure: list[Operation] | tuple[Operation, ...] = (),
    ) -> TxnReply:
        """If every compare holds do `success`, else `failure`: atomically, at one revision."""
        return await self.execute(Txn(tuple(compare), tuple(success), tuple(failure)))

    async def compact(self, revision: int) -> CompactReply:
        """Give up the history below `revision`, on all nodes at once; the state at `revision` can still be read."""
        return await self.execute(Compact(revision))


class PeerProgress(msgspec.Struct, frozen=True):
    """How far one follower is, as the leader sees it (empty on other nodes)."""

    id: NodeId
    match_index: int
    next_index: int
    state: Literal["probe", "replicate", "snapshot"]
    in_flight: int
    last_contact_ms: int  # since the last answer; -1 = never
    connected: bool
    reconnects: int


class MemberInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One member as the configuration knows it and as this node sees it."""

    id: NodeId
    name: str = ""
    role: Literal["voter", "learner"]
    peer_address: str
    client_url: str  # "" until it has been met
    incarnation: str = ""  # of its data directory, 16 hex digits; "" until it is known
    version: str = ""  # of its software; "" until it has been met
    feature_level: int = 0  # what that software knows; 0 until it has been met
    connected: bool = False  # to this node; true for this node itself
    wants_vote: bool = False  # a learner that is given a vote once it has caught up
    replaces: NodeId | None = None  # … and this member is removed then
    match_index: int | None = None  # its log equals the leader's up to here; on the leader only, like the next two
    lag: int | None = None  # entries of the leader's log that it lacks
    progress: Literal["probe", "replicate", "snapshot"] | None = None
    status: AliveStatus = "unknown"  # by gossip, as this node hears it; so is what follows. It decides nothing
    number: int = 0  # that the member raises to refute a suspicion
    rtt_ms: float | None = None  # of the newest answer to a probe of this node
    since_ms: int | None = None  # it has had this status for so long
    last_heard_ms: int | None = None  # so long ago
    applied_index: int | None = None  # as it told last


class Members(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The configuration of the cluster that is in force on a node."""

    cluster_id: str  # 16 hex digits
    cluster_name: str
    leader: NodeId | None
    configuration_index: int  # of the log entry it came with; 0: the initial one
    last_id: NodeId  # the highest id ever given: one up to it that no member has was removed, for ever
    feature_level: int  # what all members know
    members: tuple[MemberInfo, ...]
    settings: dict[str, bool | int | float | str] = {}  # that all must agree on, by dotted name; when asked for


class MembersChanged(Members, frozen=True, kw_only=True, omit_defaults=True):
    """The configuration that a change led to. `id`: the member it was about."""

    id: NodeId


class Status(msgspec.Struct, frozen=True):
    """One read-only view of a node, for /v1/status, metrics and the command line."""

    id: NodeId
    name: str
    cluster_id: str  # 16 hex digits; "" before the first bootstrap has finished
    role: Literal["leader", "follower", "candidate", "learner", "bootstrapping"]
    term: Term
    leader: NodeId | None
    commit_index: int
    applied_index: int
    durable_index: int
    last_index: int
    revision: Revision
    compact_revision: int  # the oldest that can be read; 0: all can
    swept_revision: int  # what compaction gave up below it has been removed
    logical_bytes: int  # of all versions: what the quota limits
    history_bytes: int  # of those that only readers of the past see: what the budget limits
    hybrid_time: str  # of the newest entry applied
    state_hash: str  # rolling hash of everything applied, hex; equal on all nodes at equal applied_index
    members: tuple[MemberInfo, ...]
    configuration_index: int  # of the log entry that they came with; 0: the initial ones
    peers: tuple[PeerProgress, ...]
    quorum: dict[str, int]  # voters, needed, reachable
    wal_bytes: int
    store_bytes: int
    free_bytes: int  # of the data directory's file system
    queue_length: int
    alarms: tuple[str, ...]
    ready: bool  # has a leader, is caught up and not in quarantine
    quarantined: bool  # does not vote: acknowledged entries are lost, and peers have not restored all of them yet
    version: str
    uptime_ms: int
    short_of_space: bool = False  # writes that grow the store are refused: one of `alarms` says why
    corrupted: bool = False  # its log or its store is not what it was: one of `alarms` says what


class Backup(ABC):
    """The state of a node at `index`, as a snapshot: the `header`, then its blocks. To be closed.

    The node may close it itself: when it stops, when another state takes this one's place, or when nobody reads on.
    """

    index: Index
    revision: Revision
    header: bytes
    logical_bytes: int  # about what it takes

    @abstractmethod
    async def block(self, number: int) -> bytes | None:
        """Block `number`, from 0, in order; None after the last. Raises: ConnectionAbortedError, StorageFailed."""

    @abstractmethod
    def close(self) -> None:
        """Idempotent."""


class Admin(ABC):
    """What a front end may see and ask of the node beside `KV`."""

    @property
    @abstractmethod
    def id(self) -> NodeId: ...

    @property
    @abstractmethod
    def term(self) -> Term:
        """The current term; cheap, read for every answer."""

    @property
    @abstractmethod
    def led_term(self) -> Term:
        """The newest term of which this node knows that it has had a leader: not one in which somebody only stood."""

    @property
    @abstractmethod
    def revision(self) -> Revision:
        """The revision of this node's applied state; cheap."""

    @property
    @abstractmethod
    def applied_time(self) -> int:
        """Hybrid timestamp of the newest applied entry; cheap."""

    @property
    @abstractmethod
    def staleness_ms(self) -> int:
        """By this node's own clock: everything committed longer ago is applied here; -1: not known. Cheap."""

    @abstractmethod
    def status(self) -> Status: ...

    @abstractmethod
    def is_ready(self) -> bool:
        """Has a leader and has caught up with what was committed when it asked."""

    @abstractmethod
    def leader_client_url(self) -> str:
        """Client address of the current leader, "" if unknown. For redirects and hints."""

    @abstractmethod
    async def transfer_leadership(self, to: NodeId = NOBODY) -> NodeId:
        """Hand leadership to `to`, or to the voter that has most of the log; returns who leads then.

        Raises: NoLeader, MemberNotFound, Conflict if there is nobody to hand it to, Timeout.
        """

    @abstractmethod
    async def state_hash(self, revision: int = 0, options: Options = DEFAULT_OPTIONS) -> HashReply:
        """A hash of all items that `revision` shows (0: the newest), the same on every node.

        Raises: Compacted, FutureRevision, and what a read raises.
        """

    @abstractmethod
    async def backup(self, options: Options = DEFAULT_OPTIONS) -> Backup:
        """Everything that was committed before the call, and maybe more, as one consistent state.

        Raises: Overloaded when others are being read, and what a linearizable read raises.
        """

    @abstractmethod
    def members(self) -> Members:
        """The configuration in force here; never waits."""

    @abstractmethod
    async def change_members(self, change: MemberChange, options: Options = DEFAULT_OPTIONS) -> MembersChanged:
        """Carry out one change; answered once it is committed and applied here.

        Raises: Conflict, MemberNotFound, BadRequest (refused, with what to do about it), and what a write raises.
        """

    @abstractmethod
    def counters(self) -> dict[str, Any]:
        """Plain numbers the node counts on its hot path, by metric name (`kvnode.observe.metrics`)."""
