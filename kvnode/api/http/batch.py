"""``POST /v1/batch``: many operations in one request, each its own transaction, revision and outcome.

Neighbouring writes are handed to the node in order before the first is answered, so they share its group
commit and take effect in the order given; so do neighbouring reads. Where the two meet, the later waits for the
earlier: a get sees the puts before it and none of those after it. Nothing is atomic: each result has its status.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from kvnode.api import errors, shapes, strict_json
from kvnode.api.answer import Answer
from kvnode.api.call import Call
from kvnode.api.http.operations import OperationParser, Result, items_max, result_of
from kvnode.api.http.plain_puts import puts_of_batch
from kvnode.api.http.sessions import fence_of
from kvnode.errors import KvnodeError
from kvnode.kv.requests import Command, DeleteReply, Fence, Operation, PutReply, Range, RangeReply, Reply


async def execute_batch(call: Call) -> Answer:
    limits = call.app.config.limits
    options = call.options()
    body = await call.body(limits.request_bytes_max)
    parser = OperationParser(limits, conditions=True)
    parsed: Sequence[Operation] = puts_of_batch(body, parser) or _parse(body, parser)
    fence = fence_of(call)
    results: list[Result | shapes.FailedResult] = []
    for _, neighbours in groupby(parsed, key=_is_read):
        together = list(neighbours)
        requests = together if fence is None else [_fenced(operation, fence) for operation in together]
        found = await call.app.kv.execute_all(requests, options)
        results += map(_result, together, found)
    return call.json(200, shapes.BatchAnswer(results=results))


def _parse(body: bytes, parser: OperationParser) -> list[Operation]:
    limits = parser.limits
    value = strict_json.loads(body, depth_max=limits.json_depth_max, items_max=items_max(limits))
    operations = strict_json.expect_list(value, "the body", limits.batch_operations_max)
    return [parser.parse(operation, f"[{n}]") for n, operation in enumerate(operations)]


def _is_read(operation: Operation) -> bool:
    return isinstance(operation, Range)


def _fenced(operation: Operation, fence: Fence) -> Operation | Command:
    return operation if isinstance(operation, Range) else Command(operation, fence=fence)


def _result(operation: Operation, found: Reply | KvnodeError) -> Result | shapes.FailedResult:
    if isinstance(found, KvnodeError):
        body = errors.body_of(found, errors.outcome_of(found, has_effect=not _is_read(operation)))
        return shapes.FailedResult(status=errors.status_of(found), error=body.error, outcome=body.outcome)
    assert isinstance(found, PutReply | DeleteReply | RangeReply), found
    return result_of(operation, found, status=200)
