"""One key: ``PUT GET HEAD DELETE /v1/kv/{key}``. The hot path of the front door."""

from __future__ import annotations

from kvnode.api import query, shapes
from kvnode.api.answer import KIND_NONE, KIND_RAW, Answer
from kvnode.api.call import Call, key_lines, version_lines
from kvnode.api.http.conditions import is_known_to_caller, is_unwanted, write_condition
from kvnode.api.http.leases import ttl_of
from kvnode.api.http.path import path_key
from kvnode.api.http.sessions import once
from kvnode.errors import BadRequest, CompareFailed, KeyNotFound
from kvnode.kv.interface import Options
from kvnode.kv.requests import NEWEST, WAIT_MS_MAX, Await, Delete, History, LeaseGrant, Put, Range, RangeReply

PIECE_MS = 5_000
"""A long poll looks this often whether its client is still there."""


async def put_key(call: Call) -> Answer:
    key = path_key(call)
    condition = write_condition(call)
    prev = call.flag("prev")
    lease = ttl_ms = 0
    if call.parameters and call.parameters.keys() & {"lease", "ttl"}:
        lease, ttl_ms = _lease_or_ttl(call)
    options = call.options()
    value = await call.body(call.app.config.limits.value_bytes_max)
    put = Put(key, value, lease, condition, prev)
    if ttl_ms:
        granted = await call.app.kv.execute(once(call, LeaseGrant(ttl_ms, put=put)), options)
        assert granted.put is not None
        reply, lease = granted.put, granted.id
    else:
        reply = await call.app.kv.execute(once(call, put), options)
    extra = version_lines(reply.revision, reply.create_revision, reply.version, reply.time)
    if lease:
        extra += f"Kv-Lease: {lease}\r\n"
    if prev:
        answer = shapes.PutAnswer(
            revision=reply.revision, created=reply.created, prev=shapes.previous_of(reply.previous)
        )
        return call.json(200, answer, revision=reply.revision, extra=extra)
    created = b"true" if reply.created else b"false"
    body = b'{"revision": %d, "created": %b}\n' % (reply.revision, created)
    return call.answer(200, body, revision=reply.revision, extra=extra)


def _lease_or_ttl(call: Call) -> tuple[int, int]:
    given = call.parameters
    if "ttl" not in given:
        return query.parse_lease(given["lease"], "lease"), 0
    if "lease" in given:
        raise BadRequest("give lease=, or ttl= for a lease of the key's own, not both", parameter="ttl")
    return 0, ttl_of(call)


async def get_key(call: Call) -> Answer:
    """GET and HEAD: HEAD has the same headers and no body."""
    key = path_key(call)
    meta = call.flag("meta")
    revision = call.revision_asked() if call.parameters else 0
    options = call.options()
    call.refuse_body()
    if call.parameters and call.parameters.keys() & {"wait", "after_rev"}:
        reply = await _await_newer(call, key, options)
        if not reply.items:
            return call.answer(304, b"", kind=KIND_NONE, revision=reply.revision)
    else:
        reply = await call.app.kv.execute(Range(key, revision=revision), options)
    staleness = call.app.staleness_line(options)
    if not reply.items or not reply.items[0].version:
        if reply.items:  # deleted: the version to go on waiting after
            staleness += f"Kv-Mod-Revision: {reply.items[0].mod_revision}\r\n"
        when = f" at revision {reply.revision}" if revision or options.at_time else ""
        missing = KeyNotFound(f"there is no key {shapes.as_text(key)[0][:128]!r}{when}")
        return call.refuse(missing, revision=reply.revision, extra=staleness)
    kv = reply.items[0]
    if is_unwanted(call, kv.mod_revision):
        unwanted = CompareFailed("the key is at another revision than If-Match names", revision=kv.mod_revision)
        return call.refuse(unwanted, revision=reply.revision, extra=staleness)
    if is_known_to_caller(call, kv.mod_revision):
        return call.not_modified(kv, reply.revision, extra=staleness)
    extra = key_lines(kv) + staleness
    if meta:
        return call.json(200, shapes.item_of(kv), revision=reply.revision, extra=extra)
    return call.answer(200, kv.value, kind=KIND_RAW, revision=reply.revision, extra=extra)


async def _await_newer(call: Call, key: bytes, options: Options) -> RangeReply:
    """The long poll: `wait=` with `after_rev=`. In pieces, so that a client who has left is not waited for."""
    given = call.parameters
    if "wait" not in given:
        raise BadRequest("after_rev= and wait= go together", parameter="after_rev")
    for past in given.keys() & {"at_rev", "at_time"}:
        raise BadRequest(f"the past does not change: {past} cannot be waited for", parameter=past)
    left_ms = query.parse_duration_ms(given["wait"], "wait", most_ms=WAIT_MS_MAX)
    after = query.parse_integer(given["after_rev"], "after_rev") if "after_rev" in given else NEWEST
    if after == NEWEST:
        now = await call.app.kv.execute(History(key, limit=1), options)
        after = now.items[0].mod_revision if now.items else 0
    while True:
        piece_ms = min(left_ms, PIECE_MS)
        reply = await call.app.kv.execute(Await(key, after, piece_ms), options)
        left_ms -= piece_ms
        if reply.items or left_ms <= 0 or call.request.transport is None:
            return reply


async def delete_key(call: Call) -> Answer:
    key = path_key(call)
    condition = write_condition(call)
    prev = call.flag("prev")
    options = call.options()
    call.refuse_body()
    request = Delete(key, if_revision=condition, return_previous=prev)
    reply = await call.app.kv.execute(once(call, request), options)
    if prev:
        return call.json(200, shapes.delete_result(reply, prev=True, one_key=True), revision=reply.revision)
    body = b'{"revision": %d, "deleted": %d}\n' % (reply.revision, reply.deleted)
    return call.answer(200, body, revision=reply.revision)
