"""The KV service: range, put, deleterange, compaction. Transactions: `txn`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack

import msgspec

from kvnode.api.etcd import ranges
from kvnode.api.etcd.context import Context
from kvnode.api.etcd.errors import COMPACTED, REQUEST_TIMED_OUT, Code, EtcdError, invalid
from kvnode.api.etcd.kv_messages import (
    NO_KVS,
    DeleteRangeRequest,
    DeleteRangeResponse,
    KeyValue,
    PutRequest,
    PutResponse,
    RangeRequest,
    RangeResponse,
    interval,
    key_value,
)
from kvnode.api.etcd.method import Method, Unary
from kvnode.api.etcd.proto_json import Request, Response, decimal
from kvnode.kv import requests
from kvnode.kv.requests import Compact, Delete, Put

AT_ONCE = 1_000
"""Items made ready for the answer without letting others have their turn."""

AT_ONCE_BYTES = 1 << 20
"""As `AT_ONCE`, of their values."""

SWEPT_LOOK_S = 0.02


class CompactionRequest(Request):
    revision: int = 0
    physical: bool = False


class CompactionResponse(Response):
    header: msgspec.Raw


async def range_(context: Context, request: RangeRequest) -> RangeResponse:
    ranges.check_order(request)
    bounds = interval(request.key, request.range_end)
    options = context.options(serializable=request.serializable)
    page_items = context.config.limits.page_items_max
    if bounds is None:  # nothing lies there; whether it may be asked for at that revision is judged all the same
        bounds, request = (request.key, b""), msgspec.structs.replace(request, count_only=True, range_end=b"")
        found = await ranges.read(context.kv, request, bounds, options, page_items)
        return RangeResponse(header=_header(context, request, found.revision))
    async with AsyncExitStack() as stack:  # a long answer has its place until it is rendered

        async def take_place() -> None:
            await stack.enter_async_context(context.gateway.long_answers)

        found = await ranges.read(context.kv, request, bounds, options, page_items, on_long=take_place)
        kvs = await shown(found.items, keys_only=request.keys_only)
    header = _header(context, request, found.revision)
    return RangeResponse(header=header, kvs=kvs, more=found.more, count=decimal(found.total))


def _header(context: Context, request: RangeRequest, revision: int) -> msgspec.Raw:
    """Of what is current just the revision it was read at: who watches from the next one on must miss nothing."""
    return context.header(revision) if request.revision > 0 else context.header_at(revision)


async def shown(items: Sequence[requests.KeyValue], *, keys_only: bool = False) -> msgspec.Raw:
    """Rendered bit by bit: a whole answer of `ranges.BYTES_MAX` would take longer than others may wait."""
    if not items:
        return NO_KVS
    parts: list[bytes] = []
    part: list[KeyValue] = []
    size = 0
    for kv in items:
        if len(part) >= AT_ONCE or size > AT_ONCE_BYTES:
            parts.append(msgspec.json.encode(part)[1:-1])
            part, size = [], 0
            await asyncio.sleep(0)
        part.append(key_value(kv, keys_only=keys_only))
        size += len(kv.value)
    parts.append(msgspec.json.encode(part)[1:])
    parts[0] = b"[" + parts[0]
    return msgspec.Raw(b",".join(parts))


def put_of(request: PutRequest) -> Put:
    """Raises: EtcdError."""
    if not request.key:
        raise invalid("key is not provided")
    if request.ignore_value and request.value:
        raise invalid("value is provided")
    if request.ignore_lease and request.lease:
        raise invalid("lease is provided")
    return Put(
        request.key,
        request.value,
        request.lease,
        return_previous=request.prev_kv,
        keep_value=request.ignore_value,
        keep_lease=request.ignore_lease,
    )


def put_response(header: msgspec.Raw, reply: requests.PutReply) -> PutResponse:
    return PutResponse(header=header, prev_kv=None if reply.previous is None else key_value(reply.previous))


async def put(context: Context, request: PutRequest) -> PutResponse:
    reply = await context.kv.execute(put_of(request), context.options())
    return put_response(context.header_at(reply.revision), reply)


async def delete_response(
    header: msgspec.Raw, deleted: int, previous: Sequence[requests.KeyValue]
) -> DeleteRangeResponse:
    return DeleteRangeResponse(header=header, deleted=decimal(deleted), prev_kvs=await shown(previous))


async def delete_range(context: Context, request: DeleteRangeRequest) -> DeleteRangeResponse:
    bounds = interval(request.key, request.range_end)
    if bounds is None:
        return await delete_response(context.header(), 0, ())
    reply = await context.kv.execute(Delete(*bounds, return_previous=request.prev_kv), context.options())
    return await delete_response(context.header_at(reply.revision), reply.deleted, reply.previous)


async def compact(context: Context, request: CompactionRequest) -> CompactionResponse:
    """Compacting again, or below what is compacted, is refused, as far as this node knows it."""
    if request.revision <= context.admin.status().compact_revision:
        raise EtcdError(Code.OUT_OF_RANGE, COMPACTED)
    options = context.options()
    reply = await context.kv.execute(Compact(request.revision), options)
    if request.physical:
        try:
            async with asyncio.timeout(options.timeout_ms / 1_000):
                while context.admin.status().swept_revision < request.revision:  # noqa: ASYNC110 - nobody tells
                    await asyncio.sleep(SWEPT_LOOK_S)
        except TimeoutError:
            raise EtcdError(Code.UNAVAILABLE, REQUEST_TIMED_OUT) from None
    return CompactionResponse(header=context.header(reply.revision))


METHODS: dict[str, Method] = {
    "kv/range": Unary(RangeRequest, range_),
    "kv/put": Unary(PutRequest, put),
    "kv/deleterange": Unary(DeleteRangeRequest, delete_range),
    "kv/compaction": Unary(CompactionRequest, compact),
}
