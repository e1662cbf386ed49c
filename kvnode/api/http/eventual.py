"""``/v1/ap``: the keyspace that always takes writes, on any node, with or without a leader.

Writes that did not know of each other stand side by side: a read of several values is 300, with all of them. Whoever
writes sends back, as ``Kv-Context``, what came with the answer that it has read, and so replaces exactly that. A write
without it replaces nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from kvnode.api import query, shapes
from kvnode.api.answer import KIND_NONE, KIND_RAW, Answer
from kvnode.api.call import Call
from kvnode.api.http.page import encode_page
from kvnode.api.http.path import path_key
from kvnode.errors import BadRequest, KeyNotFound, TooLarge
from kvnode.kv.available import (
    PAGE_BYTES_MAX,
    PAGE_ITEMS,
    PAGE_ITEMS_MAX,
    RESOLUTIONS,
    VALUE_BYTES_MAX,
    ApRead,
    ApWritten,
    DotRow,
    Resolve,
)
from kvnode.wire.token import decode_ap_cursor, encode_ap_cursor

_CONDITIONS = ("If-Match", "If-None-Match")


async def get_ap(call: Call) -> Answer:
    """GET and HEAD."""
    key = path_key(call)
    meta = call.flag("meta")
    resolve = _resolve(call)
    seen, timeout_ms = call.seen(), call.options().timeout_ms
    _refuse_conditions(call)
    call.refuse_body()
    read = await call.app.available.ap_get(key, resolve=resolve, seen=seen, timeout_ms=timeout_ms)
    call.shown = read.dots
    extra = _context_line(read.context)
    if not read.values:
        missing = KeyNotFound(f"there is no key {shapes.as_text(key)[0][:128]!r} in the always-writable keyspace")
        return call.refuse(missing, extra=extra)
    if len(read.values) > 1:
        return call.json(300, shapes.ap_item(read), extra=extra)
    extra += f"Kv-Time: {shapes.time_text(read.times[0])}\r\n"
    if meta:
        return call.json(200, shapes.ap_item(read), extra=extra)
    return call.answer(200, read.values[0], kind=KIND_RAW, extra=extra)


async def put_ap(call: Call) -> Answer:
    key = path_key(call)
    seen, timeout_ms = call.seen(), call.options().timeout_ms
    _refuse_conditions(call)
    value = await call.body(min(VALUE_BYTES_MAX, call.app.config.limits.value_bytes_max))
    written = await call.app.available.ap_put(key, value, context=_context(call), seen=seen, timeout_ms=timeout_ms)
    return _done(call, written)


async def delete_ap(call: Call) -> Answer:
    key = path_key(call)
    seen, timeout_ms = call.seen(), call.options().timeout_ms
    _refuse_conditions(call)
    call.refuse_body()
    written = await call.app.available.ap_delete(key, context=_context(call), seen=seen, timeout_ms=timeout_ms)
    return _done(call, written)


async def list_ap(call: Call) -> Answer:
    """A page of keys, in byte order; those that come or go while it is walked may or may not be seen."""
    given = call.parameters
    prefix = given.get("prefix", b"")
    size_max = call.app.config.limits.key_bytes_max
    if len(prefix) > size_max:
        raise TooLarge(f"prefix is at most {size_max} bytes long", limit=size_max)
    limit = PAGE_ITEMS
    if "limit" in given:
        limit = query.parse_integer(given["limit"], "limit", least=1, most=PAGE_ITEMS_MAX)
    after = decode_ap_cursor(given["cursor"], prefix) if "cursor" in given else None
    seen, timeout_ms = call.seen(), call.options().timeout_ms
    call.refuse_body()
    page = await call.app.available.ap_list(prefix, after=after, limit=limit, seen=seen, timeout_ms=timeout_ms)
    items = page.items[: _fitting(page.items)]
    more = page.more or len(items) < len(page.items)
    cursor = encode_ap_cursor(prefix, items[-1].key) if more and items else None
    call.shown = _newest_of_each(items)
    head = shapes.ApListing(more=more, cursor=cursor, items=[])
    return call.answer(200, await encode_page(head, items, shapes.ap_item))


def _fitting(items: Sequence[ApRead]) -> int:
    """How many of these make up a page; at least one."""
    left = PAGE_BYTES_MAX
    for count, read in enumerate(items):
        left -= len(read.key) + sum(map(len, read.values))
        if left < 0:
            return max(1, count)
    return len(items)


def _newest_of_each(items: Sequence[ApRead]) -> tuple[DotRow, ...]:
    """The last dot of each origin among what is shown: dots of an origin arrive in order."""
    newest: dict[tuple[int, int], int] = {}
    for read in items:
        for member, incarnation, n in read.dots:
            newest[member, incarnation] = max(n, newest.get((member, incarnation), 0))
    return tuple((member, incarnation, n) for (member, incarnation), n in newest.items())


def _done(call: Call, written: ApWritten) -> Answer:
    call.shown = (written.token_dot,) if written.token_dot is not None else ()
    extra = _context_line(written.context)
    if written.time:
        extra += f"Kv-Time: {shapes.time_text(written.time)}\r\n"
    return call.answer(204, b"", kind=KIND_NONE, extra=extra, length=False)


def _context(call: Call) -> str | None:
    """What the write replaces; None: nothing."""
    given = call.headers.getall("Kv-Context", ())
    if len(given) > 1:
        raise BadRequest("give one Kv-Context: that of the newest answer covers what earlier ones did")
    return given[0].strip() or None if given else None


def _context_line(context: str) -> str:
    return f"Kv-Context: {context}\r\n" if context else ""


def _resolve(call: Call) -> Resolve | None:
    given = call.parameters.get("resolve")
    return None if given is None else cast("Resolve", query.parse_choice(given, "resolve", RESOLUTIONS))


def _refuse_conditions(call: Call) -> None:
    """Nobody can hold a condition true where everybody may write: a caller who relies on one must learn it."""
    for name in _CONDITIONS:
        if name in call.headers:
            raise BadRequest(f"{name} needs a quorum, so it is for /v1/kv; here Kv-Context says what a write replaces")
