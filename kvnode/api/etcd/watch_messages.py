"""The messages of the Watch service, and what changes look like in them.

A message holds events of one watch. Events of one revision are rendered once for all who watch it alike and kept with
it (`ChangeSet.rendered`); around them every stream puts its own header and watch id.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from enum import IntEnum
from itertools import islice

import msgspec

from kvnode.api.etcd.kv_messages import KeyValue, key_value
from kvnode.api.etcd.proto_json import Request, Response
from kvnode.kv.events import ChangeSet, Event

AT_ONCE = 128
"""Events rendered without letting others have their turn."""

EVENT_BYTES = 32
"""What an event is counted as beside its keys and values."""


class FilterType(IntEnum):
    NOPUT = 0
    NODELETE = 1


class WatchCreateRequest(Request):
    key: bytes = b""
    range_end: bytes = b""
    start_revision: int = 0
    progress_notify: bool = False
    filters: list[FilterType] = msgspec.field(default_factory=list)
    prev_kv: bool = False
    watch_id: int = 0
    fragment: bool = False


class WatchCancelRequest(Request):
    watch_id: int = 0


class WatchProgressRequest(Request):
    pass


class WatchRequest(Request):
    """One of them; with none nothing is asked."""

    create_request: WatchCreateRequest | None = None
    cancel_request: WatchCancelRequest | None = None
    progress_request: WatchProgressRequest | None = None


NO_EVENTS = msgspec.Raw(b"")


class WatchResponse(Response):
    header: msgspec.Raw
    watch_id: str = "0"
    created: bool = False
    canceled: bool = False
    compact_revision: str = "0"
    cancel_reason: str = ""
    fragment: bool = False
    events: msgspec.Raw = NO_EVENTS  # JSON


class _Event(Response):
    type: str = "PUT"
    kv: KeyValue | None = None
    prev_kv: KeyValue | None = None


def _rendered(event: Event, *, previous: bool) -> _Event:
    kv, before = event.kv, event.previous if previous else None
    return _Event(
        type="PUT" if kv.version else "DELETE",
        kv=key_value(kv) if kv.version else KeyValue(key=kv.key, mod_revision=str(kv.mod_revision)),
        prev_kv=None if before is None else key_value(before),
    )


def _encoded(events: Iterable[Event], *, previous: bool) -> bytes:
    """With commas between, without the brackets."""
    return msgspec.json.encode([_rendered(event, previous=previous) for event in events])[1:-1]


async def events_json(changes: ChangeSet, *, previous: bool) -> bytes:
    """The events of one revision, with commas between; kept, unless they are very many."""
    if len(changes.events) > AT_ONCE:
        return await in_pieces(changes.events, previous=previous)
    form = f"etcd{previous:d}"
    found = changes.rendered.get(form)
    if found is None:
        found = changes.rendered[form] = _encoded(changes.events, previous=previous)
    return found


async def in_pieces(events: Iterable[Event], *, previous: bool) -> bytes:
    """As `events_json` renders them; others have their turn in between."""
    pieces = []
    left = iter(events)
    while some := list(islice(left, AT_ONCE)):
        pieces.append(_encoded(some, previous=previous))
        await asyncio.sleep(0)
    return b",".join(pieces)


def fragments(sets: Iterable[ChangeSet], bytes_max: int) -> list[list[Event]]:
    """The events of these revisions in parts of at most `bytes_max`, by their keys and values, or of one event."""
    parts: list[list[Event]] = [[]]
    size = 0
    for changes in sets:
        for event in changes.events:
            more = _size(event)
            if parts[-1] and size + more > bytes_max:
                parts.append([])
                size = 0
            parts[-1].append(event)
            size += more
    return parts


def _size(event: Event) -> int:
    kv, previous = event.kv, event.previous
    size = EVENT_BYTES + len(kv.key) + len(kv.value)
    return size if previous is None else size + len(previous.key) + len(previous.value)
