"""The operations that stand inside ``/v1/txn`` and ``/v1/batch``: JSON in, typed requests out, results back.

``{"put": {"key", "value"}}``, ``{"get": {"key"} or {"prefix"} or {"start", "end"}}``, ``{"delete": …}``.
"""

from __future__ import annotations

from typing import Any, assert_never

import msgspec
from msgspec import UNSET, UnsetType

from kvnode.api import shapes
from kvnode.api.http.listing import parse_range
from kvnode.api.http.path import check_key
from kvnode.api.strict_json import (
    JsonObject,
    expect_bytes,
    expect_choice,
    expect_flag,
    expect_integer,
    expect_lease,
    expect_object,
)
from kvnode.config import LimitsSection
from kvnode.errors import BadRequest, TooLarge
from kvnode.kv.keys import ONE_KEY
from kvnode.kv.requests import (
    ANY_REVISION,
    Delete,
    DeleteReply,
    Operation,
    OperationReply,
    Put,
    PutReply,
    Range,
    RangeReply,
    Txn,
)

_RANGE = {"key", "prefix", "start", "end", "key_encoding"}
PUT_FIELDS = frozenset({"key", "key_encoding", "value", "encoding", "lease", "prev"})
GET_FIELDS = frozenset({*_RANGE, "limit", "order", "keys_only", "count_only"})
DELETE_FIELDS = frozenset({*_RANGE, "prev"})
_CONDITION = frozenset({"if_rev"})  # in a batch, where each operation is a request of its own
_VERBS = frozenset({"put", "get", "delete"})

Result = shapes.PutResult | shapes.GetResult | shapes.DeleteResult


class OperationParser(msgspec.Struct, frozen=True):
    """Reads operations under one set of limits; `conditions` allows ``if_rev``."""

    limits: LimitsSection
    conditions: bool

    def parse(self, value: Any, place: str) -> Operation:
        operation = expect_object(value, place, _VERBS)
        if len(operation) != 1:
            raise BadRequest(f"{place} must hold exactly one of put, get, delete")
        [(verb, fields)] = operation.items()
        place = f"{place}.{verb}"
        if verb == "put":
            return self._parse_put(expect_object(fields, place, self._with_condition(PUT_FIELDS)), place)
        if verb == "get":
            return self._parse_get(expect_object(fields, place, GET_FIELDS), place)
        return self._parse_delete(expect_object(fields, place, self._with_condition(DELETE_FIELDS)), place)

    def key(self, fields: JsonObject, place: str) -> bytes:
        if "key" not in fields:
            raise BadRequest(f"{place} needs a key")
        key = expect_bytes(fields["key"], fields.get("key_encoding"), f"{place}.key")
        return self.checked_key(key)

    def checked_key(self, key: bytes) -> bytes:
        """Raises: BadKey, TooLarge."""
        return check_key(key, self.limits.key_bytes_max)

    def value(self, fields: JsonObject, place: str) -> bytes:
        if "value" not in fields:
            raise BadRequest(f"{place} needs a value")
        return self.checked_value(expect_bytes(fields["value"], fields.get("encoding"), f"{place}.value"), place)

    def checked_value(self, value: bytes, place: str) -> bytes:
        """Raises: TooLarge."""
        size_max = self.limits.value_bytes_max
        if len(value) > size_max:
            raise TooLarge(f"{place}.value is over the limit of {size_max} bytes", limit=size_max)
        return value

    def _parse_put(self, fields: JsonObject, place: str) -> Put:
        return Put(
            self.key(fields, place),
            self.value(fields, place),
            lease=expect_lease(fields["lease"], f"{place}.lease") if "lease" in fields else 0,
            if_revision=_condition(fields, place),
            return_previous=_flag(fields, "prev", place),
        )

    def _parse_get(self, fields: JsonObject, place: str) -> Range:
        start, end = self._range(fields, place)
        limits = self.limits
        limit = expect_integer(
            fields.get("limit", limits.page_items), f"{place}.limit", least=1, most=limits.page_items_max
        )
        return Range(
            start,
            end,
            limit=limit,
            descending=expect_choice(fields.get("order", "asc"), f"{place}.order", ("asc", "desc")) == "desc",
            keys_only=_flag(fields, "keys_only", place),
            count_only=_flag(fields, "count_only", place),
        )

    def _parse_delete(self, fields: JsonObject, place: str) -> Delete:
        start, end = self._range(fields, place)
        condition = _condition(fields, place)
        if condition != ANY_REVISION and end != ONE_KEY:
            raise BadRequest(f"{place}.if_rev is for a single key")
        return Delete(start, end, if_revision=condition, return_previous=_flag(fields, "prev", place))

    def _range(self, fields: JsonObject, place: str) -> tuple[bytes, bytes]:
        parts = {name: self._part(fields, name, place) for name in ("prefix", "start", "end")}
        if "key" in fields:
            if any(part is not None for part in parts.values()):
                raise BadRequest(f"{place} takes a key, a prefix, or start and end")
            return self.key(fields, place), ONE_KEY
        if all(part is None for part in parts.values()):
            raise BadRequest(f"{place} needs a key, a prefix, or start and end")
        return parse_range(parts["prefix"], parts["start"], parts["end"], self.limits.key_bytes_max)

    def _part(self, fields: JsonObject, name: str, place: str) -> bytes | None:
        if name not in fields:
            return None
        return expect_bytes(fields[name], fields.get("key_encoding"), f"{place}.{name}")

    def _with_condition(self, fields: frozenset[str]) -> frozenset[str]:
        return fields | _CONDITION if self.conditions else fields


def _condition(fields: JsonObject, place: str) -> int:
    return expect_integer(fields["if_rev"], f"{place}.if_rev") if "if_rev" in fields else ANY_REVISION


def _flag(fields: JsonObject, name: str, place: str) -> bool:
    return name in fields and expect_flag(fields[name], f"{place}.{name}")


def result_of(operation: Operation, reply: OperationReply, *, status: int | UnsetType = UNSET) -> Result:
    """The JSON result of one operation. Asserts that the reply answers the request."""
    match operation:
        case Put():
            assert isinstance(reply, PutReply), reply
            return shapes.put_result(reply, prev=operation.return_previous, status=status)
        case Range():
            assert isinstance(reply, RangeReply), reply
            return shapes.get_result(reply, keys_only=operation.keys_only, status=status)
        case Delete():
            assert isinstance(reply, DeleteReply), reply
            one_key = operation.end == ONE_KEY
            return shapes.delete_result(reply, prev=operation.return_previous, one_key=one_key, status=status)
        case Txn():
            raise AssertionError("this API has no transaction inside another")
        case _:
            assert_never(operation)


def items_max(limits: LimitsSection) -> int:
    """More JSON values than any body within its limits can need."""
    return 64 + 16 * max(limits.batch_operations_max, 3 * limits.txn_operations_max)
