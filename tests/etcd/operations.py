"""The parts of a transaction, as a client writes them. Keys and values: bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.etcd.words import b64

Operation = dict[str, Any]


def compare(key: bytes, target: str, result: str, **given: Any) -> dict[str, Any]:
    return {"key": b64(key), "target": target, "result": result, **given}


def put(key: bytes, value: bytes = b"", **more: Any) -> Operation:
    return {"request_put": {"key": b64(key), "value": b64(value), **more}}


def get(key: bytes, **more: Any) -> Operation:
    return {"request_range": {"key": b64(key), **more}}


def get_all(bounds: dict[str, Any], **more: Any) -> Operation:
    """`bounds`: a `key` and a `range_end`."""
    return {"request_range": {**bounds, **more}}


def delete(key: bytes, **more: Any) -> Operation:
    return {"request_delete_range": {"key": b64(key), **more}}


def delete_all(bounds: dict[str, Any], **more: Any) -> Operation:
    return {"request_delete_range": {**bounds, **more}}


def nested(
    compare: Sequence[dict[str, Any]] = (), success: Sequence[Operation] = (), failure: Sequence[Operation] = ()
) -> Operation:
    return {"request_txn": {"compare": list(compare), "success": list(success), "failure": list(failure)}}


NEVER = compare(b"no key is called this", "VERSION", "GREATER", version=0)
"""Does not hold."""
