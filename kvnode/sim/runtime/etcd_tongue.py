"""A node asked in etcd's words: requests and answers go through the etcd API's JSON, both ways.

So the workload that is judged against the log judges the translation, too. What etcd has no words for (reads at a time,
bounded or causal ones) is asked directly.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import msgspec

from kvnode.api.etcd import kv as kv_service
from kvnode.api.etcd import txn as txn_service
from kvnode.api.etcd.context import Context, Gateway
from kvnode.api.etcd.errors import Code, EtcdError, translated
from kvnode.api.etcd.method import Unary
from kvnode.api.etcd.proto_json import decode
from kvnode.config import Config
from kvnode.errors import BadRequest, Compacted, CompareFailed, KvnodeError, NoLeader, NoSpace, Overloaded, Unknown
from kvnode.kv.interface import KV, Admin, Options
from kvnode.kv.keys import ONE_KEY
from kvnode.kv.requests import (
    ANY_REVISION,
    Compare,
    Delete,
    DeleteReply,
    KeyValue,
    Operation,
    OperationReply,
    Put,
    PutReply,
    Range,
    RangeReply,
    Request,
    Txn,
    TxnReply,
)

_OPS = {"=": "EQUAL", "!=": "NOT_EQUAL", "<": "LESS", ">": "GREATER"}
_TARGETS = {
    "value": "VALUE",
    "version": "VERSION",
    "create_revision": "CREATE",
    "mod_revision": "MOD",
    "lease": "LEASE",
}

Json = dict[str, Any]


class EtcdTongue:
    """One node's store. Replies lack what etcd does not tell: times, and whether a put created its key."""

    def __init__(self, kv: KV, admin: Admin, config: Config) -> None:
        self._gateway = Gateway(kv, admin, config)
        self._kv = kv

    @staticmethod
    def knows(request: Request, options: Options) -> bool:
        """Whether etcd has words for it."""
        if options.at_time or options.consistency not in {"linearizable", "stale"} or not options.forward:
            return False
        if isinstance(request, Put | Delete) and request.if_revision < ANY_REVISION:
            return False
        return isinstance(request, Put | Delete | Range | Txn)

    async def execute(self, request: Request, options: Options) -> Any:
        """Raises: a `KvnodeError`; where etcd's words leave the outcome of a write open, `Unknown`."""
        match request:
            case Put(if_revision=expected) | Delete(if_revision=expected) if expected != ANY_REVISION:
                return await self._conditional(request, expected, options)
            case Put():
                return _put_reply(request, await self._ask("kv/put", _put(request), options))
            case Delete():
                return _delete_reply(await self._ask("kv/deleterange", _delete(request), options))
            case Range():
                asked = _range(request) | {"serializable": options.consistency == "stale"}
                return _range_reply(request, await self._ask("kv/range", asked, options, write=False))
            case Txn():
                return _txn_reply(request, await self._ask("kv/txn", _txn(request), options))
        raise AssertionError(request)

    async def _conditional(self, request: Put | Delete, expected: int, options: Options) -> OperationReply:
        plain = msgspec.structs.replace(request, if_revision=ANY_REVISION)
        key = request.key if isinstance(request, Put) else request.start
        reply = _txn_reply(
            guarded := Txn((Compare(key, "mod_revision", "=", expected),), (plain,), (Range(key),)),
            await self._ask("kv/txn", _txn(guarded), options),
        )
        (result,) = reply.results
        if reply.succeeded:
            return result
        assert isinstance(result, RangeReply), result
        raise CompareFailed("as etcd's client found", revision=result.items[0].mod_revision if result.items else 0)

    async def _ask(self, path: str, body: Json, options: Options, *, write: bool = True) -> Json:
        method = (kv_service.METHODS | txn_service.METHODS)[path]
        assert isinstance(method, Unary)
        context = _Patient(self._gateway, options.timeout_ms)
        try:
            response = await method.handler(context, decode(method.request, json.dumps(body).encode()))
        except Compacted:
            raise  # with the floor, which etcd does not tell
        except KvnodeError as error:
            raise _from_etcd(translated(error), write=write) from error
        except EtcdError as error:
            raise _from_etcd(error, write=write) from error
        found: Json = json.loads(msgspec.json.encode(response))
        return found


class _Patient(Context):
    """With the deadline that the caller has."""

    __slots__ = ("_timeout_ms",)

    def __init__(self, gateway: Gateway, timeout_ms: int) -> None:
        super().__init__(gateway)
        self._timeout_ms = timeout_ms

    def options(self, *, serializable: bool = False) -> Options:
        return msgspec.structs.replace(super().options(serializable=serializable), timeout_ms=self._timeout_ms)


def _from_etcd(error: EtcdError, *, write: bool) -> KvnodeError:
    """What a client makes of it."""
    if error.code == Code.RESOURCE_EXHAUSTED:
        return (NoSpace if "space" in error.message else Overloaded)(error.message)
    if error.code in {Code.UNAVAILABLE, Code.DATA_LOSS, Code.INTERNAL}:
        is_certain = error.message == "etcdserver: no leader" or not write
        return (NoLeader if is_certain else Unknown)(error.message)
    return BadRequest(error.message)


# ── to etcd ─────────────────────────────────────────────────────────────────────────────────────────


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _put(request: Put) -> Json:
    return {
        "key": _base64(request.key),
        "value": _base64(request.value),
        "lease": str(request.lease),
        "prev_kv": request.return_previous,
        "ignore_value": request.keep_value,
        "ignoreLease": request.keep_lease,
    }


def _delete(request: Delete) -> Json:
    return {
        "key": _base64(request.start),
        "rangeEnd": _base64(request.end),
        "prev_kv": request.return_previous,
    }


def _range(request: Range) -> Json:
    return {
        "key": _base64(request.start),
        "range_end": _base64(request.end),
        "limit": request.limit,
        "revision": str(request.revision),
        "sort_order": "DESCEND" if request.descending else "NONE",
        "keys_only": request.keys_only,
        "count_only": request.count_only,
    }


def _txn(request: Txn) -> Json:
    return {
        "compare": [_compare(compare) for compare in request.compare],
        "success": [_operation(operation) for operation in request.success],
        "failure": [_operation(operation) for operation in request.failure],
    }


def _operation(operation: Operation) -> Json:
    match operation:
        case Put():
            return {"request_put": _put(operation)}
        case Delete():
            return {"requestDeleteRange": _delete(operation)}
        case Range():
            return {"request_range": _range(operation)}
        case Txn():
            return {"request_txn": _txn(operation)}


def _compare(compare: Compare) -> Json:
    asked: Json = {"key": _base64(compare.key), "result": _OPS[compare.op], "range_end": _base64(compare.end)}
    if compare.target == "exists":  # a key that exists has been created
        is_there = (compare.op == "=") == bool(compare.value)
        return asked | {"target": "CREATE", "result": "GREATER" if is_there else "EQUAL", "create_revision": "0"}
    value = compare.value
    given = _base64(value) if isinstance(value, bytes) else str(value)
    return asked | {"target": _TARGETS[compare.target], compare.target: given}


# ── and back ────────────────────────────────────────────────────────────────────────────────────────


def _revision(found: Json) -> int:
    return int(found["header"]["revision"])


def _key_value(found: Json) -> KeyValue:
    numbers = [int(found.get(name, 0)) for name in ("create_revision", "mod_revision", "version", "lease")]
    return KeyValue(base64.b64decode(found["key"]), base64.b64decode(found.get("value", "")), *numbers)


def _put_reply(request: Put, found: Json) -> PutReply:
    previous = _key_value(found["prev_kv"]) if "prev_kv" in found else None
    assert previous is None or request.return_previous, found
    return PutReply(_revision(found), created=False, create_revision=0, version=0, time=0, previous=previous)


def _delete_reply(found: Json) -> DeleteReply:
    previous = tuple(map(_key_value, found.get("prev_kvs", ())))
    return DeleteReply(_revision(found), int(found.get("deleted", 0)), previous)


def _range_reply(request: Range, found: Json) -> RangeReply:
    items = tuple(map(_key_value, found.get("kvs", ())))
    count = int(found.get("count", 0))
    assert request.end != ONE_KEY or count <= 1, found
    assert count >= len(items), found
    assert found.get("more", False) or request.count_only or count == len(items), found
    revision = _revision(found)
    if request.revision:  # etcd tells the store's revision, not the one that was asked for
        assert revision >= request.revision, found
        revision = request.revision
    return RangeReply(revision, items, count if request.count_only else len(items), found.get("more", False))


def _txn_reply(request: Txn, found: Json) -> TxnReply:
    succeeded = found.get("succeeded", False)
    branch = request.success if succeeded else request.failure
    return TxnReply(_revision(found), succeeded, tuple(_results(branch, found, _revision(found))))


def _results(branch: tuple[Operation, ...], found: Json, revision: int) -> Iterator[OperationReply]:
    responses = found.get("responses", [])
    for operation, response in zip(branch, responses, strict=True):
        ((kind, inner),) = response.items()
        match operation, kind:
            case Put(), "response_put":
                yield _put_reply(operation, inner)
            case Delete(), "response_delete_range":
                yield _delete_reply(inner)
            case Range(), "response_range":
                yield _range_reply(operation, inner)
            case Txn(), "response_txn":
                yield _txn_reply(operation, inner | {"header": {"revision": revision}})
            case _:
                raise AssertionError((operation, response))
