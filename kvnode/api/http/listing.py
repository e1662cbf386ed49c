"""Many keys: ``GET /v1/kv`` lists a range page by page, ``DELETE /v1/kv`` deletes one at one revision.

A range is ``prefix=P``, or ``start=A&end=B`` with either end left out for "from the first" or "to the last".
The first page pins its revision in the cursor, so all pages show one state however long the walk takes.
"""

from __future__ import annotations

from functools import partial

import msgspec

from kvnode.api import query, shapes
from kvnode.api.answer import Answer
from kvnode.api.call import Call
from kvnode.api.http.page import encode_page
from kvnode.api.http.sessions import once
from kvnode.errors import BadRequest, TooLarge
from kvnode.kv import keys
from kvnode.kv.requests import Delete, Range, RangeReply
from kvnode.wire.token import Cursor, decode_cursor, encode_cursor


def parse_range(prefix: bytes | None, start: bytes | None, end: bytes | None, size_max: int) -> tuple[bytes, bytes]:
    """(start, end) as `kvnode.kv.keys` means them. Never `ONE_KEY`."""
    if any(part is not None and len(part) > size_max for part in (prefix, start, end)):
        raise TooLarge(f"prefix, start and end are at most {size_max} bytes long", limit=size_max)
    if prefix is not None:
        if start is not None or end is not None:
            raise BadRequest("give prefix, or start and end, not both")
        return prefix, keys.prefix_end(prefix)
    if end == b"":
        raise BadRequest("end must not be empty; leave it out to go to the last key")
    return start or b"", keys.TO_THE_END if end is None else end


def _range_of(call: Call) -> tuple[bytes, bytes]:
    given = call.parameters.get
    return parse_range(given("prefix"), given("start"), given("end"), call.app.config.limits.key_bytes_max)


async def list_keys(call: Call) -> Answer:
    request = _parse_listing(call)
    options = call.options()
    call.refuse_body()
    start, end = _range_of(call)
    reply = await call.app.kv.execute(request, options)
    cursor = None
    if reply.more and reply.items:
        pinned = Cursor(reply.revision, reply.items[-1].key)
        cursor = encode_cursor(pinned, _fingerprint(start, end, request.descending))
    body = await encode_listing(reply, cursor, keys_only=request.keys_only)
    extra = call.app.staleness_line(options)
    return call.answer(200, body, revision=reply.revision, extra=extra)


async def encode_listing(reply: RangeReply, cursor: str | None, *, keys_only: bool = False) -> bytes:
    head = shapes.Listing(revision=reply.revision, count=reply.count, more=reply.more, cursor=cursor, items=[])
    return await encode_page(head, reply.items, partial(shapes.item_of, keys_only=keys_only))


def _parse_listing(call: Call) -> Range:
    given, limits = call.parameters, call.app.config.limits
    start, end = _range_of(call)
    limit = limits.page_items
    if "limit" in given:
        limit = query.parse_integer(given["limit"], "limit", least=1, most=limits.page_items_max)
    descending = "order" in given and query.parse_choice(given["order"], "order", ("asc", "desc")) == "desc"
    request = Range(
        start,
        end,
        limit=limit,
        revision=call.revision_asked(),
        descending=descending,
        keys_only=call.flag("keys_only"),
        count_only=call.flag("count_only"),
    )
    if "cursor" not in given:
        return request
    if request.count_only:
        raise BadRequest("count_only counts the whole range: a cursor has no place there")
    return _continue_after(request, decode_cursor(given["cursor"], _fingerprint(start, end, descending)))


def _continue_after(request: Range, cursor: Cursor) -> Range:
    if request.revision not in (0, cursor.revision):
        raise BadRequest("the cursor belongs to another revision than at_rev names")
    if not keys.contains(request.start, request.end, cursor.last_key):
        raise BadRequest("the cursor points outside the range")
    if request.descending:
        return msgspec.structs.replace(request, end=cursor.last_key, revision=cursor.revision)
    return msgspec.structs.replace(request, start=cursor.last_key + b"\x00", revision=cursor.revision)


def _fingerprint(start: bytes, end: bytes, descending: bool) -> bytes:
    return msgspec.msgpack.encode((start, end, descending))


async def delete_range(call: Call) -> Answer:
    if not call.parameters.keys() & {"prefix", "start", "end"}:
        raise BadRequest("name what to delete: prefix=, or start= and end= (prefix= alone means every key)")
    start, end = _range_of(call)
    prev = call.flag("prev")
    options = call.options()
    call.refuse_body()
    reply = await call.app.kv.execute(once(call, Delete(start, end, return_previous=prev)), options)
    return call.json(200, shapes.delete_result(reply, prev=prev, one_key=False), revision=reply.revision)
