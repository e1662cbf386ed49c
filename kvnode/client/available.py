"""What needs no quorum over HTTP: the calls of ``/v1/ap`` and ``/v1/events``.

Any node answers from what it has, so the nearest is asked. A write whose answer is lost is not sent again: a second
sending would leave a sibling, or a second event.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from kvnode.client.exchange import Exchange
from kvnode.client.http import key_path
from kvnode.clocks import hybrid
from kvnode.errors import BadEncoding, ConnectionLost, KeyNotFound
from kvnode.ids import NodeId
from kvnode.kv.available import NOTHING_SEEN, ApPage, ApRead, ApWritten, DotRow, EventPage, Seen, TimelineEvent
from kvnode.kv.available_calls import ApDelete, ApGet, ApList, ApPut, AvailableRequest, EventPost, EventsRead
from kvnode.wire.token import encode_ap_cursor, encode_token, read_token

T = TypeVar("T")


async def execute(sender: Exchange, request: AvailableRequest) -> Any:
    match request:
        case ApGet():
            return await _get(sender, request)
        case ApPut(key=key, value=value, context=context, seen=seen):
            path, headers = key_path(key, "ap"), {**_token(seen), **_context(context)}
            return _written(await sender.send("PUT", path, {}, value, headers), seen)
        case ApDelete(key=key, context=context, seen=seen):
            path, headers = key_path(key, "ap"), {**_token(seen), **_context(context)}
            return _written(await sender.send("DELETE", path, {}, None, headers), seen)
        case ApList():
            return await _list(sender, request)
        case EventPost(fields=fields, seen=seen):
            _, _, body = await sender.send("POST", "/v1/events", {}, fields, _token(seen))
            return _event(_as(_Event, body))
        case EventsRead():
            return await _events(sender, request)


def is_repeatable(request: AvailableRequest) -> bool:
    """Sending it twice does what sending it once does."""
    return not isinstance(request, ApPut | ApDelete | EventPost)


async def _get(sender: Exchange, request: ApGet) -> ApRead:
    query = {"meta": b"1"}
    if request.resolve is not None:
        query["resolve"] = request.resolve.encode()
    try:
        path = key_path(request.key, "ap")
        _, headers, body = await sender.send("GET", path, query, None, _token(request.seen))
    except KeyNotFound as error:
        return ApRead(request.key, (), (), error.detail["context"], _dots(error.detail["token"]))
    return _read(_as(_Item, body), _dots(headers.get("Kv-Token", "")))


async def _list(sender: Exchange, request: ApList) -> ApPage:
    query = {"prefix": request.prefix, "limit": b"%d" % request.limit}
    if request.after is not None:
        query["cursor"] = encode_ap_cursor(request.prefix, request.after).encode()
    _, headers, body = await sender.send("GET", "/v1/ap", query, None, _token(request.seen))
    page = _as(_Page, body)
    dots = _dots(headers.get("Kv-Token", ""))
    return ApPage(tuple(_read(item, dots) for item in page.items), page.more)


async def _events(sender: Exchange, request: EventsRead) -> EventPage:
    query = {"limit": b"%d" % request.limit}
    given = {
        "cursor": request.cursor.encode(),
        "stable": b"1" * request.stable,
        "allow_late": b"1" * request.allow_late,
    }
    query |= {name: value for name, value in given.items() if value}
    if request.wait_ms:
        query["wait"] = b"%dms" % request.wait_ms
    _, _, body = await sender.get("/v1/events", query, wait_ms=request.wait_ms)
    page = _as(_Events, body)
    return EventPage(tuple(map(_event, page.events)), page.cursor, page.watermark, page.more)


class _Sibling(msgspec.Struct):
    value: str
    time: str
    encoding: str = ""


class _Item(msgspec.Struct):
    key: str
    context: str
    key_encoding: str = ""
    value: str | None = None
    encoding: str = ""
    time: str = ""
    siblings: tuple[_Sibling, ...] = ()


class _Page(msgspec.Struct):
    items: tuple[_Item, ...]
    more: bool


class _Event(msgspec.Struct):
    lamport: int
    time: str
    member: int
    node: str
    kind: str
    fields: msgspec.Raw
    incarnation: str
    boot: int
    seq: int
    late: bool = False
    gap: int = 0


class _Events(msgspec.Struct):
    events: tuple[_Event, ...]
    cursor: str
    watermark: int
    more: bool


def _as(kind: type[T], body: bytes) -> T:
    """Fields that a newer node adds are skipped. Raises: ConnectionLost if whoever answered is no node."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.MsgspecError as error:
        raise ConnectionLost(f"the answer is not kvnode's: {error}") from error


def _read(item: _Item, dots: tuple[DotRow, ...]) -> ApRead:
    found = item.siblings
    if item.value is not None:
        found = (_Sibling(item.value, item.time, item.encoding),)
    return ApRead(
        _bytes(item.key, item.key_encoding),
        tuple(_bytes(each.value, each.encoding) for each in found),
        tuple(hybrid.from_text(each.time) for each in found),
        item.context,
        dots,
    )


def _written(answer: tuple[int, Mapping[str, str], bytes], seen: Seen) -> ApWritten:
    _, headers, _ = answer
    dots = _dots(headers.get("Kv-Token", ""))
    dot = dots[-1] if dots and dots[-1] not in seen.dots else None  # what was seen last stands last
    time = hybrid.from_text(headers["Kv-Time"]) if "Kv-Time" in headers else 0
    return ApWritten(headers.get("Kv-Context", ""), dot, time)


def _event(event: _Event) -> TimelineEvent:
    return TimelineEvent(
        member=NodeId(event.member),
        incarnation=int(event.incarnation, 16),
        seq=event.seq,
        boot=event.boot,
        lamport=event.lamport,
        wall_ms=hybrid.from_text(f"{event.time}.0") >> hybrid.COUNTER_BITS,
        kind=event.kind,
        node=event.node,
        fields=bytes(event.fields),
        late=event.late,
        gap=event.gap,
    )


def _bytes(text: str, encoding: str) -> bytes:
    return base64.b64decode(text, validate=True) if encoding == "base64" else text.encode()


def _token(seen: Seen) -> dict[str, str]:
    return {} if seen == NOTHING_SEEN else {"Kv-Token": encode_token(0, 0, seen)}


def _context(context: str | None) -> dict[str, str]:
    return {"Kv-Context": context} if context else {}


def _dots(token: str) -> tuple[DotRow, ...]:
    """What an answer's token has seen: what was shown, and what its caller had seen before."""
    try:
        return read_token(token).seen.dots
    except BadEncoding as error:
        raise ConnectionLost(f"the answer is not kvnode's: {error.message}") from error
