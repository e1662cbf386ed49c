"""``GET /v1/history/{key}``: the versions of a key that are still kept, newest first.

The first page pins its revision, so all pages show the history up to one moment, however many versions are made
while the walk goes on.
"""

from __future__ import annotations

from kvnode.api import query, shapes
from kvnode.api.answer import Answer
from kvnode.api.call import Call
from kvnode.api.http.listing import encode_listing
from kvnode.api.http.path import path_key
from kvnode.errors import BadRequest, KeyNotFound
from kvnode.kv.requests import History
from kvnode.wire.token import Cursor, decode_cursor, encode_cursor

_REVISION_BYTES = 8


async def list_versions(call: Call) -> Answer:
    key = path_key(call)
    request = _parse(call, key)
    options = call.options()
    call.refuse_body()
    reply = await call.app.kv.execute(request, options)
    extra = call.app.staleness_line(options)
    if not reply.items and not request.before:
        missing = KeyNotFound(f"no version of the key {shapes.as_text(key)[0][:128]!r} is kept")
        return call.refuse(missing, revision=reply.revision, extra=extra)
    cursor = None
    if reply.more:
        oldest = reply.items[-1].mod_revision.to_bytes(_REVISION_BYTES, "big")
        cursor = encode_cursor(Cursor(reply.revision, oldest), _fingerprint(key))
    body = await encode_listing(reply, cursor)
    return call.answer(200, body, revision=reply.revision, extra=extra)


def _parse(call: Call, key: bytes) -> History:
    given, limits = call.parameters, call.app.config.limits
    limit = limits.page_items
    if "limit" in given:
        limit = query.parse_integer(given["limit"], "limit", least=1, most=limits.page_items_max)
    revision = call.revision_asked()
    if "before" in given:
        if "cursor" in given:
            raise BadRequest("give before, or a cursor, not both")
        return History(key, limit, revision, query.parse_integer(given["before"], "before", least=1))
    if "cursor" not in given:
        return History(key, limit, revision)
    cursor = decode_cursor(given["cursor"], _fingerprint(key))
    if revision not in (0, cursor.revision):
        raise BadRequest("the cursor belongs to another revision than at_rev names")
    return History(key, limit, cursor.revision, int.from_bytes(cursor.last_key, "big"))


def _fingerprint(key: bytes) -> bytes:
    return b"history " + key
