"""The table of requests the log stores: tag, type, and the ranges their numbers keep.

What a request *means* is the state machine's business, which answers a bad one with a deterministic refusal; here
only that no field leaves the range the store and other readers of the format can hold.
"""

from __future__ import annotations

from itertools import chain
from typing import assert_never

from kvnode.kv.requests import (
    ANY_REVISION,
    MUST_EXIST,
    TXN_DEPTH_MAX,
    Campaign,
    Command,
    Compact,
    Delete,
    LeaseGrant,
    LeaseRenew,
    LeaseRevoke,
    LeaseUpkeep,
    Put,
    Range,
    SessionEnd,
    SessionOpen,
    StateCheck,
    Sweep,
    Txn,
    WriteRequest,
)
from kvnode.wire.limits import INTEGER_MAX, CodecError, check_range, check_signed

REQUESTS: dict[int, type[WriteRequest | Range]] = {
    1: Put,
    2: Delete,
    3: Range,
    4: Txn,
    7: Compact,
    8: Sweep,
    9: LeaseGrant,
    10: LeaseRevoke,
    11: LeaseUpkeep,
    12: LeaseRenew,
    14: Campaign,
    15: SessionOpen,
    16: SessionEnd,
    17: Command,
    18: StateCheck,
}
"""Tag → type. `Range` stands in the log inside transactions only."""


def check_request(request: WriteRequest) -> None:
    """Raises CodecError for a number out of range."""
    if type(request) is Put and not request.lease and request.if_revision == ANY_REVISION:  # nearly all there are
        return
    match request:
        case Put() | Delete():
            _check_operation(request)
        case Txn():
            _check_txn(request, 1)
        case Compact():
            check_range(request.revision)
        case Sweep():
            check_range(request.before, request.changes_max)
        case LeaseGrant():
            check_signed(request.id)
            check_range(request.ttl_ms)
            if request.put is not None:
                _check_operation(request.put)
        case LeaseRevoke() | LeaseRenew():
            check_signed(request.id)
        case LeaseUpkeep():
            for lease, *numbers in (*request.expired, *request.checkpoints):
                check_signed(lease)
                check_range(*numbers)
        case Campaign():
            check_range(request.ttl_ms)
        case StateCheck():
            pass
        case SessionOpen():
            check_range(request.ttl_ms)
        case SessionEnd():
            check_range(request.keys_through, *chain.from_iterable(request.sessions))
        case Command():
            check_range(request.session, request.sequence, request.acknowledged)
            if request.fence is not None:
                check_range(request.fence.token)
            check_request(request.request)
        case _:
            assert_never(request)


def _check_txn(txn: Txn, depth: int) -> None:
    if depth > TXN_DEPTH_MAX:
        raise CodecError(f"transactions are nested more than {TXN_DEPTH_MAX} deep")
    for compare in txn.compare:
        if isinstance(compare.value, int):
            check_signed(compare.value)
    for operation in (*txn.success, *txn.failure):
        if isinstance(operation, Txn):
            _check_txn(operation, depth + 1)
        else:
            _check_operation(operation)


def _check_operation(operation: Put | Delete | Range) -> None:
    if isinstance(operation, Range):
        check_range(operation.limit, operation.revision)
        return
    if not MUST_EXIST <= operation.if_revision <= INTEGER_MAX:
        raise CodecError(f"if_revision {operation.if_revision} is out of range")
    if isinstance(operation, Put):
        check_signed(operation.lease)
