"""Requests as JSON bodies, JSON answers as replies: the client's half of the HTTP API's shapes. Pure.

A key or value travels as text when it is valid UTF-8 and does not grow by escaping, else as base64 with the marker
``key_encoding`` or ``encoding`` beside it.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, assert_never

import msgspec

from kvnode.clocks import hybrid
from kvnode.errors import BadRequest, ConnectionLost
from kvnode.kv.keys import ONE_KEY, TO_THE_END
from kvnode.kv.requests import (
    ANY_REVISION,
    MUST_EXIST,
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
    Txn,
    TxnReply,
)

Json = dict[str, Any]

encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder().decode


def json_of(status: int, body: bytes) -> Any:
    """Raises: ConnectionLost if it is none: whoever answered is no node."""
    try:
        return decode(body)
    except msgspec.DecodeError as error:
        raise ConnectionLost(f"answer {status} is not JSON: {body[:200]!r}") from error


def operation_body(operation: Operation, *, condition: bool) -> Json:
    """``{"put": {…}}`` and so on. `condition`: ``if_rev`` may stand in it (a batch), else refused (a transaction)."""
    match operation:
        case Put():
            check_put(operation)
            fields = {**_key(operation.key), **_text("value", "encoding", operation.value)}
            if operation.lease:
                fields["lease"] = operation.lease
            return {"put": fields | _condition(operation, allowed=condition)}
        case Delete():
            return {"delete": _span(operation.start, operation.end) | _condition(operation, allowed=condition)}
        case Range():
            if operation.counted:
                raise _not_over_http("a page with the count of the whole range")
            fields = _span(operation.start, operation.end)
            flags = {"keys_only": operation.keys_only, "count_only": operation.count_only}
            fields |= {name: True for name, given in flags.items() if given}
            if operation.limit:
                fields["limit"] = operation.limit
            if operation.revision:
                fields["at_rev"] = operation.revision
            if operation.descending:
                fields["order"] = "desc"
            return {"get": fields}
        case Txn():
            raise _not_over_http("a transaction inside another")
        case _:
            assert_never(operation)


def check_put(put: Put) -> None:
    """Raises: BadRequest for what the HTTP API does not offer."""
    if put.keep_value or put.keep_lease:
        raise _not_over_http("a put that keeps the value or the lease")


def _not_over_http(what: str) -> BadRequest:
    return BadRequest(f"the HTTP API does not offer {what}")


def txn_body(txn: Txn) -> Json:
    return {
        "compare": [_compare(compare) for compare in txn.compare],
        "success": [operation_body(operation, condition=False) for operation in txn.success],
        "failure": [operation_body(operation, condition=False) for operation in txn.failure],
    }


def txn_reply(txn: Txn, answer: Json) -> TxnReply:
    branch = txn.success if answer["succeeded"] else txn.failure
    results = zip(branch, answer["results"], strict=True)
    return TxnReply(
        answer["revision"], answer["succeeded"], tuple(operation_reply(operation, one) for operation, one in results)
    )


def operation_reply(operation: Operation, answer: Json) -> OperationReply:
    """The typed reply of one operation, from its result in a transaction or batch."""
    match operation:
        case Put():
            return PutReply(
                revision=answer["revision"],
                created=answer["created"],
                create_revision=answer["create_revision"],
                version=answer["version"],
                time=hybrid.from_text(answer["time"]),
                previous=None if answer.get("prev") is None else key_value(answer["prev"]),
            )
        case Delete():
            previous = answer.get("prev") or []
            items = [previous] if isinstance(previous, dict) else previous
            return DeleteReply(answer["revision"], answer["deleted"], tuple(map(key_value, items)))
        case Range():
            return range_reply(answer)
        case Txn():
            return txn_reply(operation, answer)
        case _:
            assert_never(operation)


def range_reply(answer: Json) -> RangeReply:
    items = tuple(map(key_value, answer["items"]))
    return RangeReply(answer["revision"], items, answer["count"], answer["more"])


def range_query(request: Range) -> dict[str, bytes]:
    """The parameters of ``GET /v1/kv`` for a range; a single key is the range that holds just it."""
    if request.counted:
        raise _not_over_http("a page with the count of the whole range")
    end = request.start + b"\x00" if request.end == ONE_KEY else request.end
    query = {"start": request.start}
    if end != TO_THE_END:
        query["end"] = end
    if request.limit:
        query["limit"] = b"%d" % request.limit
    if request.revision:
        query["at_rev"] = b"%d" % request.revision
    if request.descending:
        query["order"] = b"desc"
    flags = {"keys_only": request.keys_only, "count_only": request.count_only}
    return query | {name: b"1" for name, given in flags.items() if given}


def key_of(item: Json) -> bytes:
    return _bytes(item, "key", "key_encoding")


def key_value(item: Json) -> KeyValue:
    return KeyValue(
        key=_bytes(item, "key", "key_encoding"),
        value=_bytes(item, "value", "encoding"),
        create_revision=item["create_revision"],
        mod_revision=item["mod_revision"],
        version=item["version"],
        lease=item["lease"],
        time=hybrid.from_text(item["time"]),
    )


def key_value_from_headers(key: bytes, value: bytes, headers: Mapping[str, str]) -> KeyValue:
    """One version from a plain GET: the body is the value, the rest stands in headers."""
    return KeyValue(
        key=key,
        value=value,
        create_revision=int(headers["Kv-Create-Revision"]),
        mod_revision=int(headers["Kv-Mod-Revision"]),
        version=int(headers["Kv-Version"]),
        lease=int(headers.get("Kv-Lease", "0")),
        time=hybrid.from_text(headers["Kv-Time"]),
    )


def _condition(operation: Put | Delete, *, allowed: bool) -> Json:
    fields: Json = {"prev": True} if operation.return_previous else {}
    if operation.if_revision == ANY_REVISION:
        return fields
    if not allowed or operation.if_revision == MUST_EXIST:
        raise BadRequest("a condition inside a transaction is written as a compare")
    return fields | {"if_rev": operation.if_revision}


def _compare(compare: Compare) -> Json:
    if compare.end != ONE_KEY:
        raise _not_over_http("a compare of a range")
    fields = {**_key(compare.key), "target": compare.target, "op": compare.op}
    if compare.target == "value":
        if not isinstance(compare.value, bytes):
            raise BadRequest("a compare of a value takes bytes")
        return fields | _text("value", "encoding", compare.value)
    if isinstance(compare.value, bytes):
        raise BadRequest(f"a compare of {compare.target} takes an integer")
    return fields | {"value": bool(compare.value) if compare.target == "exists" else compare.value}


def _span(start: bytes, end: bytes) -> Json:
    if end == ONE_KEY:
        return _key(start)
    ends = {"start": start} if end == TO_THE_END else {"start": start, "end": end}
    fields: Json = {}
    try:
        fields = {name: part.decode() for name, part in ends.items()}
    except UnicodeDecodeError:  # one marker stands for both
        fields = {name: base64.b64encode(part).decode() for name, part in ends.items()}
        fields["key_encoding"] = "base64"
    return fields


def _key(key: bytes) -> Json:
    return _text("key", "key_encoding", key)


def _text(name: str, marker: str, raw: bytes) -> Json:
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        pass
    else:
        if len(encode(text)) - 2 <= len(raw) * 4 // 3:
            return {name: text}
    return {name: base64.b64encode(raw).decode(), marker: "base64"}


def _bytes(item: Json, name: str, marker: str) -> bytes:
    text: str = item.get(name) or ""  # keys_only leaves the value out
    return base64.b64decode(text, validate=True) if item.get(marker) == "base64" else text.encode()
