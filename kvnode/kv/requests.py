"""What a client may ask, and what it gets back: one type from the front door to the disk.

Every front end builds these, the log stores the writing ones, the state machine applies them. They are
frozen msgspec Structs, arrays on the wire: append fields with defaults, never reorder, never reuse a tag.

Writes (stored in the log): Put, Delete, Txn. Reads (never in the log): Range, History, Await.
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
    """Set `key` to `value`. A put of the same value counts as a change."""

    key: bytes
    value: bytes
    lease: int = 0
    if_revision: int = ANY_REVISION  # 0 = must not exist; N = mod revision must be N; or the constants above
    return_previous: bool = False


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


CompareTarget = Literal["value", "version", "create_revision", "mod_revision", "lease", "exists"]
CompareOp = Literal["=", "!=", "<", ">"]


class Compare(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One condition of a transaction. An absent key has version, revisions and lease 0, and no value."""

    key: bytes
    target: CompareTarget
    op: CompareOp
    value: int | bytes  # bytes for target "value", 0/1 for "exists", else an integer


class Txn(msgspec.Struct, frozen=True, array_like=True, tag=4, gc=False):
    """If every compare holds apply `success`, else `failure`: one revision, all or nothing."""

    compare: tuple[Compare, ...]
    success: tuple[Operation, ...]
    failure: tuple[Operation, ...] = ()


Operation = Put | Delete | Range
"""What may stand inside a transaction. Nested transactions are not offered."""

WriteRequest = Put | Delete | Txn
"""What the log stores as a client command."""

ReadRequest = Range | History
"""What is answered from the applied state."""

Request = Put | Delete | Txn | ReadRequest | Await


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
    count: int  # keys in the whole range at that revision if `count_only` or counted; else len(items)
    more: bool = False  # keys beyond `items` exist


class TxnReply(msgspec.Struct, frozen=True, array_like=True, tag=4, gc=False):
    revision: int
    succeeded: bool
    results: tuple[OperationReply, ...]


class Refusal(msgspec.Struct, frozen=True, array_like=True, tag=9, gc=False):
    """A deterministic refusal by the state machine: code of a `Rejected` error, and its words.

    A value, not an exception: every node applies the same entry and must reach the same result, byte for byte.
    """

    code: str
    message: str
    revision: int  # the store's revision, unchanged by the refused request
    found: int = 0  # for compare_failed: the key's mod revision, 0 = absent


OperationReply = PutReply | DeleteReply | RangeReply
Reply = PutReply | DeleteReply | RangeReply | TxnReply
ApplyResult = PutReply | DeleteReply | RangeReply | TxnReply | Refusal
