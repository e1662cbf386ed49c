"""What the store's rows hold, and how a cut of the recent table becomes rows.

Values are MessagePack arrays (append fields with defaults, never reorder); keys are `keycode`'s.

    table      value
    ---------  -------------------------------------------------------------------------------------------
    meta       `Meta`: format, applied index and time, revision, compact revision, digest, logical bytes,
               swept revision, live bytes, applied term, configuration and its index, installed position,
               restored revision and time
    versions   `VersionRow`: value, create revision, version (0 = deleted), lease, time, user key if long
    leases     `LeaseRow`: TTL, logged renewals, checkpointed remainder, whether it is its key's own
    keys of leases  `LeaseKeyRow`: user key, its create revision, whether it only looks like a place in a queue
    revisions  `RevisionRow`: time, kind (1 put, 2 delete), user key
    the others: beside the table in memory that they are the rows of (`side_rows`)
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from enum import IntEnum
from itertools import chain
from typing import TypeVar

import msgspec

from kvnode.errors import StorageFailed
from kvnode.ids import Index, Revision, Term
from kvnode.kv.requests import KeyValue
from kvnode.machine import keycode
from kvnode.machine.backend import Row

FORMAT = 2
"""Version of the store's layout. A store of another format is refused, never guessed at. 1 was never released."""

SORTED_AT_ONCE = 8_192
"""Rows that take a few milliseconds to sort."""

MERGED_AT_ONCE = 2
"""Runs of so many rows each that merge in about that time."""

EMPTY_DIGEST = bytes(16)

VERSION_OVERHEAD_BYTES = 64
"""What a version is counted as beside its key and value, for quota and budget. Equal on all nodes, for ever."""


class Meta(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Exactly what the rows beside it are the result of. Committed with them in one transaction (I19)."""

    format: int = FORMAT
    applied_index: Index = Index(0)
    applied_time: int = 0
    revision: Revision = Revision(1)  # an empty store is at 1
    compact_revision: int = 0
    digest: bytes = EMPTY_DIGEST
    logical_bytes: int = 0
    swept_revision: int = 0
    live_bytes: int = 0
    applied_term: Term = Term(0)
    configuration: bytes = b""  # payload of the newest configuration entry applied; empty: the initial one still holds
    configuration_index: Index = Index(0)  # of that entry
    installed: tuple[Index, Term] | None = None  # the entry a snapshot ended with, if this store began as one
    restored: tuple[Revision, int] | None = (
        None  # what a restored cluster began at, and since which hybrid time it holds
    )


class VersionRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    value: bytes
    create_revision: int
    version: int
    lease: int
    time: int
    key: bytes = b""  # the user key, where the row's own key does not hold all of it


class LeaseRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    ttl_ms: int
    renewals: int  # that were logged, from the index of the entry that began the lease
    remaining_ms: int  # by the last checkpoint; 0: none since the last logged renewal
    is_own: bool  # ends with its key


class LeaseKeyRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    key: bytes
    create_revision: int
    is_outside: bool = False  # it has the form of a place in a queue and is none


class ChangeKind(IntEnum):
    PUT = 1
    DELETE = 2


class RevisionRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    time: int
    kind: int  # ChangeKind
    key: bytes


_PUT, _DELETE = ChangeKind.PUT.value, ChangeKind.DELETE.value

_meta_decoder = msgspec.msgpack.Decoder(Meta)
_version_decoder = msgspec.msgpack.Decoder(VersionRow)
_lease_decoder = msgspec.msgpack.Decoder(LeaseRow)
_lease_key_decoder = msgspec.msgpack.Decoder(LeaseKeyRow)
_revision_decoder = msgspec.msgpack.Decoder(RevisionRow)


def decode_meta(value: bytes) -> Meta:
    """Raises: StorageFailed for a store this program does not know how to read."""
    try:
        meta = _meta_decoder.decode(value)
    except msgspec.MsgspecError as error:
        raise StorageFailed(f"the store's meta row is damaged: {error}") from error
    if meta.format != FORMAT:
        raise StorageFailed(
            f"the store has format {meta.format}; this program reads format {FORMAT} and converts no other: "
            "start with an empty data directory, or with the version that wrote this one"
        )
    return meta


def decode_version(row: Row) -> KeyValue:
    row_key, value = row
    found = _version_decoder.decode(value)
    return KeyValue(
        found.key or keycode.short_user_key(row_key),
        found.value,
        found.create_revision,
        keycode.revision_of(row_key),
        found.version,
        found.lease,
        found.time,
    )


def decode_lease(row: Row) -> tuple[int, LeaseRow]:
    return keycode.lease_of(row[0]), _lease_decoder.decode(row[1])


def decode_lease_key(row: Row) -> tuple[int, LeaseKeyRow]:
    return keycode.lease_of(row[0]), _lease_key_decoder.decode(row[1])


def decode_revision(row: Row) -> tuple[int, int, RevisionRow]:
    """Revision, number within it, and what changed."""
    revision, number = keycode.split_revision_row_key(row[0])
    return revision, number, _revision_decoder.decode(row[1])


def logical_bytes(kv: KeyValue) -> int:
    """What a version counts against the quota, history and deletions included."""
    return len(kv.key) + len(kv.value) + VERSION_OVERHEAD_BYTES


RowKey = bytes
SideChanges = Mapping[RowKey, msgspec.Struct | None]


class Cut(msgspec.Struct, frozen=True):
    """Everything applied since the previous cut, frozen between two entries: what one commit writes."""

    meta: Meta
    changes: Sequence[KeyValue]  # in the order they were made; never changed any more
    bytes: int  # of the recent table
    side: SideChanges = {}  # changed rows beside them, by row key; None: removed
    generation: int = 0  # of the machine it was taken from

    @property
    def applied_index(self) -> Index:
        return self.meta.applied_index

    def rows(self) -> list[Row]:
        """The rows to commit, ascending. Called in the flush thread: it is the costly part."""
        encode = msgspec.msgpack.Encoder().encode
        versions: list[Row] = []
        revisions: list[Row] = []  # ascending as they come
        revision, number = 0, 0
        for kv in self.changes:
            revision, number = kv.mod_revision, number + 1 if kv.mod_revision == revision else 0
            row_key = keycode.version_row_key(kv.key, revision)
            full_key = kv.key if keycode.is_long(row_key) else b""
            # Tuples are the same bytes as `VersionRow` and `RevisionRow`, made in a third of the time.
            value = encode((kv.value, kv.create_revision, kv.version, kv.lease, kv.time, full_key))
            versions.append((row_key, value))
            change = encode((kv.time, _PUT if kv.version else _DELETE, kv.key))
            revisions.append((keycode.revision_row_key(revision, number), change))
        side = sorted((key, encode(row)) for key, row in self.side.items() if row is not None)
        assert all(keycode.VERSIONS_END <= key < keycode.REVISIONS for key, _ in side), "or the whole is not sorted"
        return [(keycode.META_KEY, encode(self.meta)), *_sorted_in_pieces(versions), *side, *revisions]

    def removed(self) -> list[RowKey]:
        """Rows to remove once the others are written, ascending: neighbours share pages."""
        return _sorted_in_pieces([key for key, row in self.side.items() if row is None])


Sortable = TypeVar("Sortable", RowKey, Row)


def _sorted_in_pieces(items: list[Sortable]) -> list[Sortable]:
    """One call of `sort` keeps the interpreter to itself until it is done: a long one would stall the loop."""
    pieces = [sorted(items[first : first + SORTED_AT_ONCE]) for first in range(0, len(items), SORTED_AT_ONCE)]
    if len(pieces) <= MERGED_AT_ONCE:
        return sorted(chain.from_iterable(pieces))  # of runs that are sorted: a comparison or two an item
    return list(heapq.merge(*pieces))
