"""The table of requests the log stores: tag, type, and the ranges their numbers keep.

What a request *means* is the state machine's business, which answers a bad one with a deterministic refusal; here
only that no field leaves the range the store and other readers of the format can hold.
"""

from __future__ import annotations

from kvnode.kv.requests import MUST_EXIST, Delete, Put, Range, Txn, WriteRequest
from kvnode.wire.limits import INTEGER_MAX, CodecError, check_range

REQUESTS: dict[int, type[Put | Delete | Range | Txn]] = {1: Put, 2: Delete, 3: Range, 4: Txn}
"""Tag → type. `Range` stands in the log inside transactions only."""


def check_request(request: WriteRequest) -> None:
    """Raises CodecError for a number out of range."""
    if isinstance(request, Txn):
        for compare in request.compare:
            if isinstance(compare.value, int):
                check_range(compare.value)
        for operation in (*request.success, *request.failure):
            _check_operation(operation)
    else:
        _check_operation(request)


def _check_operation(operation: Put | Delete | Range) -> None:
    if isinstance(operation, Range):
        check_range(operation.limit, operation.revision)
        return
    if not MUST_EXIST <= operation.if_revision <= INTEGER_MAX:
        raise CodecError(f"if_revision {operation.if_revision} is out of range")
    if isinstance(operation, Put):
        check_range(operation.lease)
