"""The form in which a write is stored and sent to other members, and the feature level that all of them must know.

Fields that were appended to a request are left out for as long as they say nothing. So what an older version can say is
stored in the bytes it has always had: those of two versions keep the same log, and the fingerprint of a write that was
named under one (`kvnode.machine.answers`) is the one that its repeat has under the other. What says something in them
an older version would not refuse but misread, for it skips elements that it does not know. Therefore the level.
"""

from __future__ import annotations

from typing import Any

import msgspec

from kvnode.kv.keys import ONE_KEY
from kvnode.kv.requests import (
    TTL_MS_MAX,
    Command,
    Compare,
    CompareOp,
    CompareTarget,
    LeaseGrant,
    LeaseRenew,
    LeaseRevoke,
    Operation,
    Put,
    Range,
    Txn,
    WriteRequest,
)

NESTED_LEVEL = 4
"""Transactions inside transactions, compares of a range, counted ranges in a transaction, puts that keep something.
Negative numbers: as ids of leases, in compares. Leases of more than `TTL_MS_MAX`."""

_ALWAYS = 1


class _Put(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    key: bytes
    value: bytes
    lease: int
    if_revision: int
    return_previous: bool


class _Range(msgspec.Struct, frozen=True, array_like=True, tag=3, gc=False):
    start: bytes
    end: bytes
    limit: int
    revision: int
    descending: bool
    keys_only: bool
    count_only: bool


class _Compare(msgspec.Struct, frozen=True, array_like=True, gc=False):
    key: bytes
    target: CompareTarget
    op: CompareOp
    value: int | bytes


def level_of(request: WriteRequest | Operation) -> int:
    """The feature level that has what this write uses. Transactions are as deep as `TXN_DEPTH_MAX` allows."""
    match request:
        case Put():
            needs = request.keep_value or request.keep_lease or request.lease < 0
        case Range():
            needs = request.counted
        case Txn():
            needs = any(map(_is_new, request.compare)) or any(
                isinstance(operation, Txn) or level_of(operation) == NESTED_LEVEL
                for operation in (*request.success, *request.failure)
            )
        case LeaseGrant(put=put):
            needs = request.id < 0 or request.ttl_ms > TTL_MS_MAX
            needs = needs or (put is not None and level_of(put) == NESTED_LEVEL)
        case LeaseRevoke() | LeaseRenew():
            needs = request.id < 0
        case Command():
            return level_of(request.request)
        case _:
            return _ALWAYS
    return NESTED_LEVEL if needs else _ALWAYS


def _is_new(compare: Compare) -> bool:
    return compare.end != ONE_KEY or (isinstance(compare.value, int) and compare.value < 0)


def stored_form(request: WriteRequest | Operation) -> Any:
    """What is to be encoded in place of `request`; it decodes to an equal one."""
    match request:
        case Put():
            if request.keep_value or request.keep_lease:
                return request
            return _Put(request.key, request.value, request.lease, request.if_revision, request.return_previous)
        case Range():
            if request.counted:
                return request
            return _Range(
                request.start,
                request.end,
                request.limit,
                request.revision,
                request.descending,
                request.keys_only,
                request.count_only,
            )
        case Txn():
            return Txn(
                tuple(map(_stored_compare, request.compare)),
                tuple(map(stored_form, request.success)),
                tuple(map(stored_form, request.failure)),
            )
        case LeaseGrant(put=put) if put is not None:
            return LeaseGrant(request.ttl_ms, request.id, stored_form(put))
        case Command():
            return msgspec.structs.replace(request, request=stored_form(request.request))
    return request


def _stored_compare(compare: Compare) -> Any:
    if compare.end != ONE_KEY:
        return compare
    return _Compare(compare.key, compare.target, compare.op, compare.value)
