"""What answers look like in JSON: the types are encoded as they stand and described by `/openapi.json`.

Keys and values are bytes. In JSON they are text when they are valid UTF-8; otherwise the same field holds
base64 and ``key_encoding`` or ``encoding`` says so.
"""

from __future__ import annotations

import binascii
from functools import lru_cache
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from kvnode.api.errors import ErrorWords
from kvnode.clocks import hybrid
from kvnode.kv.available import ApRead, TimelineEvent
from kvnode.kv.requests import DeleteReply, KeyValue, PutReply, RangeReply


class Item(msgspec.Struct, kw_only=True, frozen=True, gc=False):
    """One version of a key."""

    key: str
    key_encoding: str | UnsetType = UNSET
    value: str | UnsetType = UNSET  # left out by keys_only
    encoding: str | UnsetType = UNSET
    create_revision: int
    mod_revision: int
    version: int
    lease: int
    time: str
    deleted: bool | UnsetType = UNSET  # true for a deletion, in a history only


class KeyName(msgspec.Struct, kw_only=True, frozen=True, gc=False):
    """A key without its value."""

    key: str
    key_encoding: str | UnsetType = UNSET


class Listing(msgspec.Struct, kw_only=True, frozen=True):
    """One page of keys, or of the versions of one."""

    revision: int
    count: int
    more: bool
    cursor: str | None
    items: list[Item]


class WatchLine(msgspec.Struct, kw_only=True):
    """One line of a watch: a change, an item of the list that comes first, a mark, or the end."""

    type: Literal["put", "delete", "progress", "synced", "cancelled"]
    revision: int | UnsetType = UNSET  # of the change; of a mark: everything up to it has come
    key: str | UnsetType = UNSET
    key_encoding: str | UnsetType = UNSET
    value: str | UnsetType = UNSET
    encoding: str | UnsetType = UNSET
    create_revision: int | UnsetType = UNSET
    version: int | UnsetType = UNSET
    lease: int | UnsetType = UNSET
    time: str | UnsetType = UNSET
    prev: Item | UnsetType | None = UNSET  # what it replaced, if asked for
    more: Literal[True] | UnsetType = UNSET  # another line of this revision follows
    code: Literal["slow", "compacted", "stopping"] | UnsetType = UNSET  # why it was cancelled
    resume_rev: int | UnsetType = UNSET  # `from_rev` of the stream that goes on; 0: begin again
    compact_revision: int | UnsetType = UNSET


class PutResult(msgspec.Struct, kw_only=True, frozen=True):
    """A put inside a transaction or batch."""

    status: int | UnsetType = UNSET  # in a batch only
    revision: int
    created: bool
    create_revision: int
    version: int
    time: str
    prev: Item | UnsetType | None = UNSET


class GetResult(msgspec.Struct, kw_only=True, frozen=True):
    """A get inside a transaction or batch; a missing key is an empty list."""

    status: int | UnsetType = UNSET
    revision: int
    count: int
    more: bool
    items: list[Item]


class DeleteResult(msgspec.Struct, kw_only=True, frozen=True):
    """A delete; `prev` is one item (or null) for one key, a list for a range."""

    status: int | UnsetType = UNSET
    revision: int
    deleted: int
    prev: Item | list[Item] | UnsetType | None = UNSET


class FailedResult(msgspec.Struct, kw_only=True, frozen=True):
    """An operation of a batch that failed."""

    status: int
    error: ErrorWords
    outcome: str


class PutAnswer(msgspec.Struct, kw_only=True, frozen=True):
    """What a plain PUT answers."""

    revision: int
    created: bool
    prev: Item | UnsetType | None = UNSET


class Sibling(msgspec.Struct, kw_only=True, frozen=True, gc=False):
    """One of several values that were written to a key without knowing of each other."""

    value: str
    encoding: str | UnsetType = UNSET
    time: str


class ApItem(msgspec.Struct, kw_only=True, frozen=True):
    """A key of the always-writable keyspace: one value, or siblings."""

    key: str
    key_encoding: str | UnsetType = UNSET
    context: str  # goes back, as Kv-Context, with the write that replaces this
    value: str | UnsetType = UNSET  # if there is one; with its encoding and time
    encoding: str | UnsetType = UNSET
    time: str | UnsetType = UNSET
    siblings: list[Sibling] | UnsetType = UNSET  # if there are several; in an order that is the same on all nodes


class ApListing(msgspec.Struct, kw_only=True, frozen=True):
    """One page of the always-writable keyspace."""

    more: bool
    cursor: str | None
    items: list[ApItem]


class EventLine(msgspec.Struct, kw_only=True):
    """An event of the timeline; in a stream also a mark, or the end."""

    type: Literal["event", "progress", "cancelled"] | UnsetType = UNSET  # in a stream only
    id: str | UnsetType = UNSET
    lamport: int | UnsetType = UNSET
    time: str | UnsetType = UNSET  # by the clock of the member that recorded it
    member: int | UnsetType = UNSET
    node: str | UnsetType = UNSET  # its name
    kind: str | UnsetType = UNSET
    fields: msgspec.Raw | UnsetType = UNSET  # a JSON object
    incarnation: str | UnsetType = UNSET  # of the member's store; 16 hexadecimal digits
    boot: int | UnsetType = UNSET
    seq: int | UnsetType = UNSET
    late: Literal[True] | UnsetType = UNSET  # it came below a time that had been final
    gap: int | UnsetType = UNSET  # so many events of this member just before it are no longer kept
    cursor: str | UnsetType = UNSET  # in a stream, where it can be resumed
    watermark: int | UnsetType = UNSET  # with it
    code: str | UnsetType = UNSET  # why it was cancelled


class Events(msgspec.Struct, kw_only=True):
    """One page of the timeline, in causal order."""

    watermark: int
    more: bool
    cursor: str
    events: list[EventLine]


class SessionOpened(msgspec.Struct, kw_only=True, frozen=True):
    """A session to number writes under, and how long it lives without a use."""

    session: int
    ttl_ms: int


class SessionEnded(msgspec.Struct, kw_only=True, frozen=True):
    """`ended` is 0 if there was no such session."""

    session: int
    ended: int


class TxnAnswer(msgspec.Struct, kw_only=True, frozen=True):
    """What a transaction answers: the results of the branch that ran, in order."""

    revision: int
    succeeded: bool
    results: list[Any]  # PutResult | GetResult | DeleteResult; msgspec describes no such union, `openapi` does


class BatchAnswer(msgspec.Struct, kw_only=True, frozen=True):
    """What a batch answers: one result an operation, in order."""

    results: list[Any]  # PutResult | GetResult | DeleteResult | FailedResult


encode = msgspec.json.Encoder(enc_hook=repr).encode


@lru_cache(maxsize=64)
def _second_text(second: int) -> str:
    return hybrid.to_text(second * 1_000 << hybrid.COUNTER_BITS)[:19]


_MS_TEXT = tuple(f".{ms:03d}Z." for ms in range(1_000))


def time_text(stamp: int) -> str:
    """`hybrid.to_text`, with the date of each second rendered once."""
    second, ms = divmod(stamp >> hybrid.COUNTER_BITS, 1_000)
    counter = stamp & 0xFFFF
    return _second_text(second) + _MS_TEXT[ms] + (f"{counter:04d}" if counter else "0000")


def as_text(raw: bytes) -> tuple[str, str | UnsetType]:
    """(text, UNSET) for valid UTF-8, else (base64, "base64")."""
    try:
        return raw.decode(), UNSET
    except UnicodeDecodeError:
        return binascii.b2a_base64(raw, newline=False).decode(), "base64"


def key_name(key: bytes) -> KeyName:
    text, encoding = as_text(key)
    return KeyName(key=text, key_encoding=encoding)


def item_of(kv: KeyValue, *, keys_only: bool = False) -> Item:
    key, key_encoding = as_text(kv.key)
    is_tombstone = not kv.version
    value, encoding = (UNSET, UNSET) if keys_only or is_tombstone else as_text(kv.value)
    return Item(
        key=key,
        key_encoding=key_encoding,
        value=value,
        encoding=encoding,
        create_revision=kv.create_revision,
        mod_revision=kv.mod_revision,
        version=kv.version,
        lease=kv.lease,
        time=time_text(kv.time),
        deleted=True if is_tombstone else UNSET,
    )


def watch_line(kv: KeyValue, *, more: bool = False) -> WatchLine:
    """The line of a change, or of an item in the list that comes first."""
    key, key_encoding = as_text(kv.key)
    line = WatchLine(
        type="put" if kv.version else "delete",
        revision=kv.mod_revision,
        key=key,
        key_encoding=key_encoding,
        time=time_text(kv.time),
        more=True if more else UNSET,
    )
    if kv.version:
        line.value, line.encoding = as_text(kv.value)
        line.create_revision, line.version = kv.create_revision, kv.version
        line.lease = kv.lease or UNSET
    return line


def put_result(reply: PutReply, *, prev: bool, status: int | UnsetType = UNSET) -> PutResult:
    return PutResult(
        status=status,
        revision=reply.revision,
        created=reply.created,
        create_revision=reply.create_revision,
        version=reply.version,
        time=time_text(reply.time),
        prev=previous_of(reply.previous) if prev else UNSET,
    )


def previous_of(kv: KeyValue | None) -> Item | None:
    return None if kv is None else item_of(kv)


def get_result(reply: RangeReply, *, keys_only: bool, status: int | UnsetType = UNSET) -> GetResult:
    return GetResult(
        status=status,
        revision=reply.revision,
        count=reply.count,
        more=reply.more,
        items=[item_of(kv, keys_only=keys_only) for kv in reply.items],
    )


def delete_result(reply: DeleteReply, *, prev: bool, one_key: bool, status: int | UnsetType = UNSET) -> DeleteResult:
    previous: Item | list[Item] | UnsetType | None = UNSET
    if prev and one_key:
        previous = previous_of(reply.previous[0] if reply.previous else None)
    elif prev:
        previous = [item_of(kv) for kv in reply.previous]
    return DeleteResult(status=status, revision=reply.revision, deleted=reply.deleted, prev=previous)


def ap_item(read: ApRead) -> ApItem:
    """A key that has a value, or several."""
    key, key_encoding = as_text(read.key)
    if len(read.values) == 1:
        value, encoding = as_text(read.values[0])
        return ApItem(
            key=key,
            key_encoding=key_encoding,
            context=read.context,
            value=value,
            encoding=encoding,
            time=time_text(read.times[0]),
        )
    siblings = [_sibling(value, time) for value, time in zip(read.values, read.times, strict=True)]
    return ApItem(key=key, key_encoding=key_encoding, context=read.context, siblings=siblings)


def _sibling(raw: bytes, time: int) -> Sibling:
    value, encoding = as_text(raw)
    return Sibling(value=value, encoding=encoding, time=time_text(time))


def wall_text(wall_ms: int) -> str:
    """``2026-11-22T10:00:00.123Z``: RFC 3339, of a clock that has no logical part."""
    return time_text(wall_ms << hybrid.COUNTER_BITS).rpartition(".")[0]


def event_line(event: TimelineEvent, *, in_stream: bool = False) -> EventLine:
    return EventLine(
        type="event" if in_stream else UNSET,
        id=event.id,
        lamport=event.lamport,
        time=wall_text(event.wall_ms),
        member=event.member,
        node=event.node,
        kind=event.kind,
        fields=msgspec.Raw(event.fields),
        incarnation=f"{event.incarnation:016x}",
        boot=event.boot,
        seq=event.seq,
        late=True if event.late else UNSET,
        gap=event.gap or UNSET,
    )
