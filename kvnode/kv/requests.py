"""What a client may ask, and what it gets back: one type from the front door to the disk.

Every front end builds these, the log stores the writing ones, the state machine applies them. They are
frozen msgspec Structs, arrays on the wire: append fields with defaults, never reorder, never reuse a tag.

Writes (stored in the log): Put, Delete, Txn, Compact, Sweep, StateCheck, those about leases and sessions, and Command,
which says under what one is carried out. Reads (never in the log): Range, History, Await, LeaseRead, LeaseList,
QueueRead, Watch.
`LeaseKeepAlive` is neither: the leader's clock takes it, and mostly no log.
`Batch` is a front-door convenience: its operations are proposed one by one and answered one by one.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from kvnode.kv.keys import ONE_KEY

ANY_REVISION = -1
"""`if_revision` value meaning "no condition"."""

MUST_EXIST = -2
"""`if_revision` value meaning "the key must exist, at whatever revision" (HTTP's ``If-Match: *``)."""


class KeyValue(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One version of a key, live or deleted."""

    key: bytes
    value: bytes
    create_revision: int  # revision of the put that created this life of the key
    mod_revision: int  # revision of this version
    version: int  # 1 for the creating put, +1 for each later put; 0 in a tombstone
    lease: int = 0  # 0 = none
    time: int = 0  # hybrid timestamp of the write: 48 bits of Unix milliseconds, 16 bits of counter


class Put(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """Set `key` to `value`. A put of the same value counts as a change.

    What it keeps of the key's current version needs a key that exists: in a transaction, before all of it.
    """

    key: bytes
    value: bytes
    lease: int = 0
    if_revision: int = ANY_REVISION  # 0 = must not exist; N = mod revision must be N; or the constants above
    return_previous: bool = False
    keep_value: bool = False  # keep the current value; then `value` is empty. Needs feature level 4
    keep_lease: bool = False  # keep the current lease; then `lease` is 0. Needs feature level 4


class Delete(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """Delete one key, or every key of the range. Deleting nothing changes nothing and makes no revision."""

    start: bytes
    end: bytes = ONE_KEY
    if_revision: int = ANY_REVISION  # only with a single key
    return_previous: bool = False


class Range(msgspec.Struct, frozen=True, array_like=True, tag=3, gc=False):
    """Read one key or a range of keys at one revision."""

    start: bytes
    end: bytes = ONE_KEY
    limit: int = 0  # 0 = the server's page size
    revision: int = 0  # 0 = the newest; a cursor pins one
    descending: bool = False
    keys_only: bool = False
    count_only: bool = False
    counted: bool = False  # count the whole range whatever `limit` is. Inside a transaction: needs feature level 4


class History(msgspec.Struct, frozen=True, array_like=True, tag=5, gc=False):
    """Read the versions of one key that are still kept, newest first, tombstones among them."""

    key: bytes
    limit: int = 0  # 0 = the server's page size
    revision: int = 0  # only versions that this revision shows or could have shown; 0 = the newest
    before: int = 0  # only versions older than this mod revision: where a cursor goes on; 0 = from the newest


NEWEST = -1
"""`after_revision` meaning "the version that is the newest when the request is read"."""


WAIT_MS_MAX = 600_000


class Await(msgspec.Struct, frozen=True, array_like=True, tag=6, gc=False):
    """Wait until a key has a version newer than one that is known: a long poll.

    Answered with that version, a tombstone if it was deleted, or with none if nothing newer came within `wait_ms`.
    """

    key: bytes
    after_revision: int = NEWEST  # a mod revision; 0 = any version at all
    wait_ms: int = 0


PROGRESS_MS_MIN = 100
PROGRESS_MS_MAX = 3_600_000


class Watch(msgspec.Struct, frozen=True, array_like=True, tag=20, gc=False):
    """Be told of every change of a key or range, from one revision on. Carried out by `KV.watch`, not `execute`."""

    start: bytes
    end: bytes = ONE_KEY
    from_revision: int = 0  # inclusive, may lie in the future; 0 = what comes after the stream has begun
    list_first: bool = False  # begin with what is there; then `from_revision` is 0
    previous: bool = False  # tell what each change replaced
    puts: bool = True
    deletes: bool = True
    progress_ms: int = 0  # a sign of life and place to resume after so long without one; 0 = none


CompareTarget = Literal["value", "version", "create_revision", "mod_revision", "lease", "exists"]
CompareOp = Literal["=", "!=", "<", ">"]


class Compare(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One condition of a transaction. An absent key has version, revisions and lease 0, and no value.

    Of a range it holds if it does for each key; a range without any counts as an absent key.
    """

    key: bytes
    target: CompareTarget
    op: CompareOp
    value: int | bytes  # bytes for target "value", 0/1 for "exists", else an integer
    end: bytes = ONE_KEY  # a range needs feature level 4


class Txn(msgspec.Struct, frozen=True, array_like=True, tag=4, gc=False):
    """If every compare holds apply `success`, else `failure`: one revision, all or nothing.

    Inside another one it shares that one's revision, and its compares see the state before all of it.
    """

    compare: tuple[Compare, ...]
    success: tuple[Operation, ...]
    failure: tuple[Operation, ...] = ()


class Compact(msgspec.Struct, frozen=True, array_like=True, tag=7, gc=False):
    """Give up what lies below a revision: it cannot be read any more from then on, and is removed by and by."""

    revision: int


class Sweep(msgspec.Struct, frozen=True, array_like=True, tag=8, gc=False):
    """Remove what compaction has given up, of the next revisions in line. The leader's own; no client sends it."""

    before: int  # revisions below this one …
    changes_max: int  # … until they have made so many changes; whole revisions, at least one


class StateCheck(msgspec.Struct, frozen=True, array_like=True, tag=18, gc=False):
    """Changes nothing: each node tells the others its rolling digest before this entry. Needs feature level 2."""


Operation = Put | Delete | Range | Txn
"""What may stand inside a transaction. A transaction inside another needs feature level 4."""

TXN_DEPTH_MAX = 32
"""Transactions inside one another, the outermost among them."""

TXN_TOTAL_FACTOR = 8
"""Compares and operations of a transaction and all inside it: so many times `limits.txn_operations_max`."""


TTL_MS_MIN = 1_000
TTL_MS_MAX = 366 * 86_400_000
LEASE_TTL_MS_MAX = 9_000_000_000_000
"""A lease may be begun for longer than a lock, a session or a key: as long as in etcd."""

LEASE_IDS = range(-(1 << 63), 1 << 63)
"""0 is none of them. They are ordered as unsigned numbers: negative ones, which only a client gives, come last."""


class LeaseGrant(msgspec.Struct, frozen=True, array_like=True, tag=9, gc=False):
    """Begin a lease. With a `put` the lease is that key's own: it ends when the key is deleted or taken from it."""

    ttl_ms: int
    id: int = 0  # 0: the index of the entry, or the next free number. A negative one needs feature level 4
    put: Put | None = None


class LeaseRevoke(msgspec.Struct, frozen=True, array_like=True, tag=10, gc=False):
    """End a lease: all its keys are deleted, in one revision."""

    id: int


class LeaseUpkeep(msgspec.Struct, frozen=True, array_like=True, tag=11, gc=False):
    """What the leader has found by its own clock. Each part holds only while the count of logged renewals is that."""

    expired: tuple[tuple[int, int], ...]  # (lease, renewals): over; all their keys go in one revision
    checkpoints: tuple[tuple[int, int, int], ...] = ()  # (lease, renewals, ms that remain): for the leaders after it


class LeaseRenew(msgspec.Struct, frozen=True, array_like=True, tag=12, gc=False):
    """A renewal that has to be logged: it takes back a checkpoint, and voids an expiry that was decided before it."""

    id: int


class Campaign(msgspec.Struct, frozen=True, array_like=True, tag=14, gc=False):
    """Stand in the queue for `name`: begin a lease, and under it the key ``name/<lease in hex>`` with this value.

    Of the keys of that form the one with the lowest create revision holds the name; that revision is its fencing token.
    """

    name: bytes
    ttl_ms: int
    value: bytes = b""


class LeaseKeepAlive(msgspec.Struct, frozen=True, array_like=True, tag=21, gc=False):
    """Let a lease live for its whole TTL from now on."""

    id: int


class LeaseRead(msgspec.Struct, frozen=True, array_like=True, tag=22, gc=False):
    """A lease's remaining time, by the leader's clock, and its keys."""

    id: int
    after: bytes = b""  # only keys greater than this: where the next page goes on
    count_only: bool = False  # no keys


class LeaseList(msgspec.Struct, frozen=True, array_like=True, tag=23, gc=False):
    """Leases in order of their ids."""

    after: int = 0  # only ids after this in the order of `LEASE_IDS`: where the next page goes on
    limit: int = 0  # 0 = the server's page size


class QueueRead(msgspec.Struct, frozen=True, array_like=True, tag=24, gc=False):
    """Who holds a name and who waits for it, first come first."""

    name: bytes
    limit: int = 0  # 0, or more than that: the server's page size
    lease: int = 0  # not 0: only the one before this lease in the queue (none if it is the first), and this one
    token: int = 0  # not 0: only the one with this create revision


StoreWrite = Put | Delete | Txn | LeaseGrant | LeaseRevoke | Campaign
"""What a client may have carried out once."""


class SessionOpen(msgspec.Struct, frozen=True, array_like=True, tag=15, gc=False):
    """Grant a session: writes numbered under it take effect once. Its id is the index of this entry."""

    ttl_ms: int  # it ends when it was not used for so long, by the leader's clock


class SessionEnd(msgspec.Struct, frozen=True, array_like=True, tag=16, gc=False):
    """Forget sessions and the answers of Idempotency-Keys: asked for by a client, or decided by the leader's clock."""

    sessions: tuple[tuple[int, int], ...] = ()  # (id, index of its last use when this was decided; 0: end it anyway)
    keys_through: int = 0  # keys first used at or before this index; 0: none


class Fence(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Carry the write out only if the lock `name` is held under this token."""

    name: bytes
    token: int


class Command(msgspec.Struct, frozen=True, array_like=True, tag=17, gc=False):
    """A write and what it is carried out under. A (session, sequence) or a key makes it happen once.

    Plain writes stand in the log as they are: who asks for none of this pays for none of it.
    """

    request: StoreWrite
    session: int = 0  # 0 = none
    sequence: int = 0  # from 1, chosen by the client, one for each write of the session
    acknowledged: int = 0  # the client needs no answer up to this sequence any more
    key: bytes = b""  # Idempotency-Key; not together with a session
    fence: Fence | None = None


WriteRequest = StoreWrite | Compact | Sweep | StateCheck | LeaseUpkeep | LeaseRenew | SessionOpen | SessionEnd | Command
"""What the log stores as a client command."""

ReadRequest = Range | History
"""What is answered from the versions of the applied state."""

TableRequest = LeaseList | QueueRead
"""What is answered from the leases of the applied state."""

Request = WriteRequest | ReadRequest | TableRequest | Await | LeaseKeepAlive | LeaseRead


class PutReply(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    revision: int
    created: bool
    create_revision: int
    version: int
    time: int
    previous: KeyValue | None = None


class DeleteReply(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    revision: int  # the store's revision after the request, changed or not
    deleted: int
    previous: tuple[KeyValue, ...] = ()


class RangeReply(msgspec.Struct, frozen=True, array_like=True, tag=3, gc=False):
    revision: int  # the revision the answer was read at
    items: tuple[KeyValue, ...]
    count: int  # keys in the whole range at that revision if `count_only` or `counted`; else len(items)
    more: bool = False  # keys beyond `items` exist


class TxnReply(msgspec.Struct, frozen=True, array_like=True, tag=4, gc=False):
    revision: int
    succeeded: bool
    results: tuple[OperationReply, ...]


class CompactReply(msgspec.Struct, frozen=True, array_like=True, tag=7, gc=False):
    revision: int
    compact_revision: int  # the oldest that can be read: the one asked for, or a higher one


class SweepReply(msgspec.Struct, frozen=True, array_like=True, tag=8, gc=False):
    revision: int
    swept_revision: int  # everything given up below it has been removed
    versions: int  # removed
    bytes: int  # logical ones, removed with them


class StateCheckReply(msgspec.Struct, frozen=True, array_like=True, tag=18, gc=False):
    revision: int
    index: int  # of the entry
    digest: bytes  # of everything before it


class LeaseReply(msgspec.Struct, frozen=True, array_like=True, tag=20, gc=False):
    """A lease that has begun, or goes on."""

    id: int
    ttl_ms: int
    revision: int
    put: PutReply | None = None  # its first key's, whose create revision is the token of a campaign


class LeaseEnded(msgspec.Struct, frozen=True, array_like=True, tag=21, gc=False):
    """What became of a `LeaseRevoke` or `LeaseUpkeep`."""

    revision: int
    leases: tuple[int, ...]  # those that ended, ascending
    deleted: int  # keys
    noted: int = 0  # checkpoints


class LeaseView(msgspec.Struct, frozen=True, array_like=True, gc=False):
    id: int
    ttl_ms: int
    keys: int  # how many
    remaining_ms: int = -1  # where the leader answers; elsewhere it is not known


class LeaseReadReply(msgspec.Struct, frozen=True, array_like=True, tag=22, gc=False):
    id: int
    ttl_ms: int
    remaining_ms: int
    revision: int
    keys: tuple[bytes, ...]  # ascending; at most a page of them
    count: int  # of all of them


class LeaseListReply(msgspec.Struct, frozen=True, array_like=True, tag=23, gc=False):
    revision: int
    leases: tuple[LeaseView, ...]
    more: bool


class QueueReply(msgspec.Struct, frozen=True, array_like=True, tag=24, gc=False):
    revision: int
    waiting: tuple[KeyValue, ...]  # the first holds the name; its create revision is the token
    more: bool


class SessionReply(msgspec.Struct, frozen=True, array_like=True, tag=15, gc=False):
    session: int
    ttl_ms: int


class SessionsEnded(msgspec.Struct, frozen=True, array_like=True, tag=16, gc=False):
    sessions: int  # how many there were of those named
    keys: int


class ConfigurationReply(msgspec.Struct, frozen=True, array_like=True, tag=25, gc=False):
    """A change of members is applied: from entry `index` on the cluster has this configuration."""

    revision: int  # the store's, unchanged by it
    index: int
    configuration: bytes  # as the entry holds it: `kvnode.wire.codec` decodes it


class Refusal(msgspec.Struct, frozen=True, array_like=True, tag=9, gc=False):
    """A deterministic refusal by the state machine: code of an error that is certain to have no effect, and its words.

    A value, not an exception: every node applies the same entry and must reach the same result, byte for byte.
    """

    code: str
    message: str
    revision: int  # the store's revision, unchanged by the refused request
    found: int = 0  # for compare_failed: the key's mod revision, 0 = absent


class HashReply(msgspec.Struct, frozen=True, gc=False):
    """What a revision shows, hashed: equal on all nodes (`kvnode.machine.state_hash`)."""

    revision: int
    items: int  # keys that exist there
    hash: str  # 32 hex digits


OperationReply = PutReply | DeleteReply | RangeReply | TxnReply
WriteReply = (
    PutReply
    | DeleteReply
    | TxnReply
    | CompactReply
    | SweepReply
    | StateCheckReply
    | LeaseReply
    | LeaseEnded
    | SessionReply
    | SessionsEnded
    | ConfigurationReply
)
Reply = WriteReply | RangeReply | LeaseReadReply | LeaseListReply | QueueReply
ApplyResult = WriteReply | Refusal
