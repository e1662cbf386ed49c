"""KV.Txn: etcd's transaction as one of the store's, and the store's answer in etcd's words.

What can be judged without the state is judged here, for both branches: keys, flags, counts, keys put twice. The rest is
the state machine's. Source: etcd's `Txn`, and the order in which it checks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from enum import IntEnum

import msgspec

from kvnode.api.etcd import ranges
from kvnode.api.etcd.context import Context, ResponseHeader
from kvnode.api.etcd.errors import KEY_NOT_FOUND, KEY_NOT_PROVIDED, invalid
from kvnode.api.etcd.kv import delete_response, put_of, put_response, shown
from kvnode.api.etcd.kv_messages import (
    DeleteRangeRequest,
    DeleteRangeResponse,
    PutRequest,
    PutResponse,
    RangeRequest,
    RangeResponse,
    interval,
)
from kvnode.api.etcd.method import Method, Unary
from kvnode.api.etcd.proto_json import Request, Response, decimal
from kvnode.config import LimitsSection
from kvnode.ids import Revision
from kvnode.kv import requests
from kvnode.kv.keys import ONE_KEY
from kvnode.kv.requests import CompareOp, CompareTarget, Delete, Operation, Range
from kvnode.machine import txn as machine


class Result(IntEnum):
    EQUAL = 0
    GREATER = 1
    LESS = 2
    NOT_EQUAL = 3


class Target(IntEnum):
    VERSION = 0
    CREATE = 1
    MOD = 2
    VALUE = 3
    LEASE = 4


class Compare(Request):
    """Of the fields after `key` the one that `target` names counts."""

    result: Result = Result.EQUAL
    target: Target = Target.VERSION
    key: bytes = b""
    version: int = 0
    create_revision: int = 0
    mod_revision: int = 0
    value: bytes = b""
    lease: int = 0
    range_end: bytes = b""


class RequestOp(Request):
    """One of them."""

    request_range: RangeRequest | None = None
    request_put: PutRequest | None = None
    request_delete_range: DeleteRangeRequest | None = None
    request_txn: TxnRequest | None = None


class TxnRequest(Request):
    compare: list[Compare] = msgspec.field(default_factory=list)
    success: list[RequestOp] = msgspec.field(default_factory=list)
    failure: list[RequestOp] = msgspec.field(default_factory=list)


class ResponseOp(Response):
    response_range: RangeResponse | None = None
    response_put: PutResponse | None = None
    response_delete_range: DeleteRangeResponse | None = None
    response_txn: TxnResponse | None = None


class TxnResponse(Response):
    header: msgspec.Raw = msgspec.Raw(b"")
    succeeded: bool = False
    responses: Sequence[ResponseOp] = ()


_OPS: dict[Result, CompareOp] = {Result.EQUAL: "=", Result.GREATER: ">", Result.LESS: "<", Result.NOT_EQUAL: "!="}
_TARGETS: dict[Target, CompareTarget] = {
    Target.VERSION: "version",
    Target.CREATE: "create_revision",
    Target.MOD: "mod_revision",
    Target.VALUE: "value",
    Target.LEASE: "lease",
}
FEW_ITEMS = 16
"""Of so few the ranges of one transaction are shown without letting others have their turn."""

_NO_IDS = msgspec.Raw(b"{}")


async def transact(context: Context, request: TxnRequest) -> TxnResponse:
    limits = context.config.limits
    check(request)
    txn = _Translator(limits.page_items_max).txn(request)
    check_shape(txn, limits)
    reply = await context.kv.execute(txn, context.options())
    has_changed = any(_changes(result) for result in reply.results)
    at = _Progress(reply.revision - has_changed)
    return await _response(request, reply, context.header_at(reply.revision), at)


# ── what needs no state ─────────────────────────────────────────────────────────────────────────────


def check(request: TxnRequest) -> None:
    """Keys, flags and orders of both branches. Raises: EtcdError."""
    if not all(compare.key for compare in request.compare):
        raise invalid(KEY_NOT_PROVIDED)
    for operation in (*request.success, *request.failure):
        if operation.request_range is not None:
            ranges.check_order(operation.request_range)
            interval(operation.request_range.key, operation.request_range.range_end)
        elif operation.request_put is not None:
            put_of(operation.request_put)
        elif operation.request_delete_range is not None:
            interval(operation.request_delete_range.key, operation.request_delete_range.range_end)
        elif operation.request_txn is not None:
            check(operation.request_txn)
        else:
            raise invalid(KEY_NOT_FOUND)


def check_shape(txn: requests.Txn, limits: LimitsSection) -> None:
    """Counts, and keys that a list would change twice, of both branches. Raises: EtcdError."""
    if machine.check_shape(txn, limits, Revision(0)) is not None:
        raise invalid("too many operations in txn request")
    if machine.changes_twice(txn.success) or machine.changes_twice(txn.failure):
        raise invalid("duplicate key given in txn request")


# ── the store's form ────────────────────────────────────────────────────────────────────────────────


class _Translator:
    """`page_items`: the most that a range inside a transaction shows."""

    def __init__(self, page_items: int) -> None:
        self._page_items = page_items

    def txn(self, request: TxnRequest) -> requests.Txn:
        return requests.Txn(
            tuple(map(_compare, request.compare)),
            tuple(map(self._operation, request.success)),
            tuple(map(self._operation, request.failure)),
        )

    def _operation(self, operation: RequestOp) -> Operation:
        if operation.request_range is not None:
            return self._range(operation.request_range)
        if operation.request_put is not None:
            return put_of(operation.request_put)
        if operation.request_delete_range is not None:
            deletion = operation.request_delete_range
            bounds = interval(deletion.key, deletion.range_end) or _nowhere(deletion.key)
            return Delete(*bounds, return_previous=deletion.prev_kv)
        assert operation.request_txn is not None, "checked before"
        return self.txn(operation.request_txn)

    def _range(self, request: RangeRequest) -> Range:
        start, end = interval(request.key, request.range_end) or _nowhere(request.key)
        limit = self._page_items
        if request.limit > 0 and not ranges.needs_all(request):
            limit = min(request.limit, limit)
        return Range(
            start,
            end,
            limit,
            max(request.revision, 0),
            keys_only=ranges.reads_keys_only(request),
            count_only=request.count_only,
            counted=end != ONE_KEY and not request.count_only,
        )


def _nowhere(key: bytes) -> tuple[bytes, bytes]:
    """A range in which no key lies."""
    return key + b"\x00", key


def _compare(compare: Compare) -> requests.Compare:
    if type(compare.result) is not Result or type(compare.target) is not Target:
        raise invalid("invalid compare")
    value: int | bytes
    match compare.target:
        case Target.VERSION:
            value = compare.version
        case Target.CREATE:
            value = compare.create_revision
        case Target.MOD:
            value = compare.mod_revision
        case Target.VALUE:
            value = compare.value
        case Target.LEASE:
            value = compare.lease
    key, end = interval(compare.key, compare.range_end) or _nowhere(compare.key)
    return requests.Compare(key, _TARGETS[compare.target], _OPS[compare.result], value, end)


# ── etcd's answer ───────────────────────────────────────────────────────────────────────────────────


class _Progress:
    """The store's revision as the operations of a transaction come to see it."""

    def __init__(self, revision: int) -> None:
        self._revision = revision
        self._has_changed = False

    def after(self, reply: requests.OperationReply) -> msgspec.Raw:
        """The header of an inner answer."""
        self._has_changed = self._has_changed or _changes(reply)
        return msgspec.Raw(msgspec.json.encode(ResponseHeader(revision=decimal(self._revision + self._has_changed))))


def _changes(reply: requests.OperationReply) -> bool:
    match reply:
        case requests.PutReply():
            return True
        case requests.DeleteReply():
            return reply.deleted > 0
        case requests.TxnReply():
            return any(map(_changes, reply.results))
    return False


async def _response(request: TxnRequest, reply: requests.TxnReply, header: msgspec.Raw, at: _Progress) -> TxnResponse:
    branch = request.success if reply.succeeded else request.failure
    responses = [await _operation(asked, found, at) for asked, found in zip(branch, reply.results, strict=True)]
    return TxnResponse(header=header, succeeded=reply.succeeded, responses=responses or ())


async def _operation(asked: RequestOp, found: requests.OperationReply, at: _Progress) -> ResponseOp:
    match found:
        case requests.RangeReply():
            assert asked.request_range is not None
            return ResponseOp(response_range=await _range_response(asked.request_range, found, at.after(found)))
        case requests.PutReply():
            return ResponseOp(response_put=put_response(at.after(found), found))
        case requests.DeleteReply():
            deletion = await delete_response(at.after(found), found.deleted, found.previous)
            return ResponseOp(response_delete_range=deletion)
        case requests.TxnReply():
            assert asked.request_txn is not None
            return ResponseOp(response_txn=await _response(asked.request_txn, found, _NO_IDS, at))


async def _range_response(asked: RangeRequest, found: requests.RangeReply, header: msgspec.Raw) -> RangeResponse:
    items, is_cut = await ranges.chosen_in_turns(asked, list(found.items))
    kvs = await shown(items, keys_only=asked.keys_only)
    if len(found.items) > FEW_ITEMS:
        await asyncio.sleep(0)  # there may be many of its kind
    return RangeResponse(header=header, kvs=kvs, more=is_cut or found.more, count=decimal(found.count))


METHODS: dict[str, Method] = {"kv/txn": Unary(TxnRequest, transact)}
