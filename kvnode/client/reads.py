"""Reads over HTTP: keys, ranges, histories and long polls, as calls of ``/v1/kv`` and ``/v1/history``."""

from __future__ import annotations

from http import HTTPStatus

from kvnode.client import bodies
from kvnode.client.exchange import Exchange
from kvnode.client.http import key_path
from kvnode.clocks import hybrid
from kvnode.errors import KeyNotFound
from kvnode.kv.interface import Options
from kvnode.kv.keys import ONE_KEY
from kvnode.kv.requests import NEWEST, Await, History, KeyValue, Range, RangeReply


async def execute(sender: Exchange, request: Range | History | Await, options: Options) -> RangeReply:
    match request:
        case Range():
            return await _read(sender, request, options)
        case History():
            return await _read_history(sender, request, options)
        case Await():
            return await _await(sender, request, options)


async def _read(sender: Exchange, request: Range, options: Options) -> RangeReply:
    query = read_query(options)
    if request.end != ONE_KEY or request.keys_only or request.count_only or request.revision:
        status, _, body = await sender.get("/v1/kv", {**query, **bodies.range_query(request)})
        return bodies.range_reply(bodies.json_of(status, body))
    try:
        _, headers, body = await sender.get(key_path(request.start), query)
    except KeyNotFound as error:
        return RangeReply(error.detail["revision"], (), 0)
    item = bodies.key_value_from_headers(request.start, body, headers)
    return RangeReply(int(headers["Kv-Revision"]), (item,), 1)


async def _await(sender: Exchange, request: Await, options: Options) -> RangeReply:
    query = {**read_query(options), "wait": b"%dms" % max(1, request.wait_ms)}
    if request.after_revision != NEWEST:
        query["after_rev"] = b"%d" % request.after_revision
    try:
        status, headers, body = await sender.get(key_path(request.key), query, wait_ms=request.wait_ms)
    except KeyNotFound as error:
        tombstone = KeyValue(request.key, b"", 0, error.detail["mod_revision"], 0)
        return RangeReply(error.detail["revision"], (tombstone,), 1)
    revision = int(headers["Kv-Revision"])
    if status == HTTPStatus.NOT_MODIFIED:
        return RangeReply(revision, (), 0)
    return RangeReply(revision, (bodies.key_value_from_headers(request.key, body, headers),), 1)


def read_query(options: Options) -> dict[str, bytes]:
    """The parameters of a read that come from its options."""
    query = {} if options.consistency == "linearizable" else {"consistency": options.consistency.encode()}
    if options.max_staleness_ms:
        query["max_staleness"] = b"%dms" % options.max_staleness_ms
    if options.at_time:
        query["at_time"] = hybrid.to_text(options.at_time).encode()
    return query


async def _read_history(sender: Exchange, request: History, options: Options) -> RangeReply:
    query = read_query(options)
    given = {"limit": request.limit, "at_rev": request.revision, "before": request.before}
    query |= {name: b"%d" % number for name, number in given.items() if number}
    try:
        status, _, body = await sender.get(key_path(request.key, "history"), query)
    except KeyNotFound as error:
        return RangeReply(error.detail["revision"], (), 0)
    return bodies.range_reply(bodies.json_of(status, body))
