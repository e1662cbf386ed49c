"""``/v1/events``: the cluster's causally ordered timeline, in pages or as it goes on; any node serves it, always.

A cursor says how much of each member's events its holder has seen, so that it continues on any node without losing one
or showing one twice, also where an event with a smaller Lamport time arrives later. In a stream the last event of each
page carries it, as a field, and as the id of server-sent events: a browser that reconnects resumes there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import msgspec
from msgspec import UNSET

from kvnode.api import query, shapes, strict_json
from kvnode.api.answer import Answer
from kvnode.api.call import Call
from kvnode.api.http.page import encode_page
from kvnode.api.http.watches import AT_ONCE, KIND_EVENTS, KIND_LINES
from kvnode.api.streaming import Outlet, TooSlow
from kvnode.errors import BadRequest, KvnodeError
from kvnode.kv.available import EVENT_BYTES_MAX, PAGE_ITEMS, WAIT_MS_MAX, EventPage

PIECE_MS = 5_000
"""Who waits for an event looks this often whether its client is still there; in a stream it then gets a mark."""


class _Asked(msgspec.Struct, frozen=True):
    cursor: str
    stable: bool
    allow_late: bool
    limit: int
    wait_ms: int
    follow: bool


async def show_events(call: Call) -> Answer:
    asked = _parse(call)
    call.seen()
    call.options()  # checked like everywhere
    call.refuse_body()
    if not asked.follow:
        page = await _await_page(call, asked)
        head = shapes.Events(watermark=page.watermark, more=page.more, cursor=page.cursor, events=[])
        return call.answer(200, await encode_page(head, page.events, shapes.event_line))
    page = await _page(call, asked, asked.cursor, 0)  # what is refused is refused with a status
    as_events = "text/event-stream" in call.headers.get("Accept", "")
    kind = KIND_EVENTS if as_events else KIND_LINES
    revision = call.app.admin.revision
    if call.is_head:
        return call.answer(200, b"", kind=kind, revision=revision, length=False)

    async def produce(outlet: Outlet) -> None:
        await _tell(call, asked, page, outlet, as_events=as_events)

    return call.stream(produce, kind=kind, revision=revision)


def _parse(call: Call) -> _Asked:
    given = call.parameters
    limit, wait_ms = PAGE_ITEMS, 0
    if "limit" in given:
        limit = query.parse_integer(given["limit"], "limit", least=1, most=PAGE_ITEMS)
    follow = call.flag("follow")
    if "wait" in given:
        if follow:
            raise BadRequest("follow=1 waits by itself: leave wait= out", parameter="wait")
        wait_ms = query.parse_duration_ms(given["wait"], "wait", most_ms=WAIT_MS_MAX)
    cursor = given.get("cursor", b"").decode("utf-8", "surrogateescape")
    if follow:  # a browser comes back, with the parameters it began with
        cursor = call.headers.get("Last-Event-ID") or cursor
    return _Asked(cursor, call.flag("stable"), call.flag("allow_late"), limit, wait_ms, follow)


async def _page(call: Call, asked: _Asked, cursor: str, wait_ms: int) -> EventPage:
    return await call.app.available.events(
        cursor, stable=asked.stable, allow_late=asked.allow_late, limit=asked.limit, wait_ms=wait_ms
    )


async def _await_page(call: Call, asked: _Asked) -> EventPage:
    """In pieces, so that a client who has left is not waited for."""
    cursor, left_ms = asked.cursor, asked.wait_ms
    while True:
        piece_ms = min(left_ms, PIECE_MS)
        page = await _page(call, asked, cursor, piece_ms)
        left_ms -= piece_ms
        if page.events or left_ms <= 0 or call.request.transport is None:
            return page
        cursor = page.cursor


async def _tell(call: Call, asked: _Asked, page: EventPage, outlet: Outlet, *, as_events: bool) -> None:
    """The body: page after page, a mark where nothing happens, until the node or the client's patience ends."""
    cursor = asked.cursor
    try:
        while True:
            for framed in _render(page, outlet, as_events=as_events):
                await outlet.write(framed)
                await asyncio.sleep(0)  # others have their turn
            cursor = page.cursor
            page = await _page(call, asked, cursor, PIECE_MS)
    except TooSlow:
        outlet.end(outlet.frame(_last_words("slow", cursor, as_events=as_events)))
        outlet.linger()
    except KvnodeError as error:  # the node stops
        code = "stopping" if call.app.is_draining else error.code
        outlet.end(outlet.frame(_last_words(code, cursor, as_events=as_events)))


def _render(page: EventPage, outlet: Outlet, *, as_events: bool) -> Iterator[bytes]:
    """A page in pieces that are not long in the making; a mark if it holds nothing."""
    if not page.events:
        mark = shapes.EventLine(type="progress", cursor=page.cursor, watermark=page.watermark)
        yield outlet.frame(_say(mark, as_events=as_events))
    for first in range(0, len(page.events), AT_ONCE):
        lines = [shapes.event_line(event, in_stream=True) for event in page.events[first : first + AT_ONCE]]
        if first + AT_ONCE >= len(page.events):
            lines[-1].cursor, lines[-1].watermark = page.cursor, page.watermark
        yield outlet.frame(b"".join(_say(line, as_events=as_events) for line in lines))


def _last_words(code: str, cursor: str, *, as_events: bool) -> bytes:
    line = shapes.EventLine(type="cancelled", code=code, cursor=cursor or UNSET)
    return _say(line, as_events=as_events)


def _say(line: shapes.EventLine, *, as_events: bool) -> bytes:
    """One line, or one event; its id says that one can resume after it."""
    data = shapes.encode(line)
    if not as_events:
        return data + b"\n"
    if line.cursor:
        return b"id: %b\ndata: %b\n\n" % (line.cursor.encode(), data)
    return b"data: %b\n\n" % data


async def post_event(call: Call) -> Answer:
    """201 with the event as it stands in the timeline."""
    seen, timeout_ms = call.seen(), call.options().timeout_ms
    fields = _checked(await call.body(EVENT_BYTES_MAX), call.app.config.limits.json_depth_max)
    event = await call.app.available.post_event(fields, seen=seen, timeout_ms=timeout_ms)
    return call.json(201, shapes.event_line(event))


def _checked(body: bytes, depth_max: int) -> bytes:
    """The object without white space: whoever shows an event puts it on one line. Raises: BadRequest."""
    value = strict_json.loads(body, depth_max=depth_max, items_max=EVENT_BYTES_MAX, fractions=True)
    if not isinstance(value, dict):
        raise BadRequest("an event is a JSON object, with any fields")
    try:
        msgspec.json.decode(body)  # what Python's own parser lets pass: lone surrogates, numbers beyond all range
        return msgspec.json.format(body, indent=-1)
    except msgspec.DecodeError as error:
        raise BadRequest(f"the event holds half a surrogate pair, or a number beyond all range: {error}") from None
