"""The messages about keys: what stands in requests and answers of several services."""

from __future__ import annotations

from enum import IntEnum

import msgspec

from kvnode.api.etcd.errors import KEY_NOT_PROVIDED, invalid
from kvnode.api.etcd.proto_json import Request, Response, decimal
from kvnode.kv import requests
from kvnode.kv.keys import TO_THE_END


class KeyValue(Response):
    key: bytes = b""
    create_revision: str = "0"
    mod_revision: str = "0"
    version: str = "0"
    value: bytes = b""
    lease: str = "0"


def key_value(kv: requests.KeyValue, *, keys_only: bool = False) -> KeyValue:
    return KeyValue(
        key=kv.key,
        create_revision=decimal(kv.create_revision),
        mod_revision=decimal(kv.mod_revision),
        version=decimal(kv.version),
        value=b"" if keys_only else kv.value,
        lease=decimal(kv.lease),
    )


def interval(key: bytes, range_end: bytes) -> tuple[bytes, bytes] | None:
    """Start and end of a range as `kvnode.kv.keys` has them, or None where it is empty. Raises: EtcdError."""
    if not key:
        raise invalid(KEY_NOT_PROVIDED)
    if range_end and range_end != TO_THE_END and range_end <= key:
        return None
    return key, range_end


class SortOrder(IntEnum):
    NONE = 0
    ASCEND = 1
    DESCEND = 2


class SortTarget(IntEnum):
    KEY = 0
    VERSION = 1
    CREATE = 2
    MOD = 3
    VALUE = 4


class RangeRequest(Request):
    key: bytes = b""
    range_end: bytes = b""
    limit: int = 0
    revision: int = 0
    sort_order: SortOrder = SortOrder.NONE
    sort_target: SortTarget = SortTarget.KEY
    serializable: bool = False
    keys_only: bool = False
    count_only: bool = False
    min_mod_revision: int = 0
    max_mod_revision: int = 0
    min_create_revision: int = 0
    max_create_revision: int = 0


NO_KVS = msgspec.Raw(b"")


class RangeResponse(Response):
    header: msgspec.Raw = msgspec.Raw(b"")
    kvs: msgspec.Raw = NO_KVS  # JSON, see `kv.shown`
    more: bool = False
    count: str = "0"


class PutRequest(Request):
    key: bytes = b""
    value: bytes = b""
    lease: int = 0
    prev_kv: bool = False
    ignore_value: bool = False
    ignore_lease: bool = False


class PutResponse(Response):
    header: msgspec.Raw = msgspec.Raw(b"")
    prev_kv: KeyValue | None = None


class DeleteRangeRequest(Request):
    key: bytes = b""
    range_end: bytes = b""
    prev_kv: bool = False


class DeleteRangeResponse(Response):
    header: msgspec.Raw = msgspec.Raw(b"")
    deleted: str = "0"
    prev_kvs: msgspec.Raw = NO_KVS  # JSON
