"""``POST /v1/batch``: many operations in one request, each its own transaction, revision and outcome.

Neighbouring writes are handed to the node in order before the first is answered, so they share its group
commit and take effect in the order given; so do neighbouring reads. Where the two meet, the later waits for the
earlier: a get sees the puts before it and none of those after it. Nothing is atomic: each result has its status.
"""

from __future__ import annotations

import asyncio
from itertools import groupby

from kvnode.api import errors, shapes, strict_json
from kvnode.api.answer import Answer
from kvnode.api.call import Call
from kvnode.api.http.operations import OperationParser, Result, items_max, result_of
from kvnode.api.http.sessions import fence_of
from kvnode.errors import KvnodeError
from kvnode.kv.interface import KV, Options
from kvnode.kv.requests import Command, Fence, Operation, Range


async def execute_batch(call: Call) -> Answer:
    limits = call.app.config.limits
    options = call.options()
    body = await call.body(limits.request_bytes_max)
    value = strict_json.loads(body, depth_max=limits.json_depth_max, items_max=items_max(limits))
    operations = strict_json.expect_list(value, "the body", limits.batch_operations_max)
    parser = OperationParser(limits, conditions=True)
    parsed = [parser.parse(operation, f"[{n}]") for n, operation in enumerate(operations)]
    fence = fence_of(call)
    results: list[Result | shapes.FailedResult] = []
    for _, neighbours in groupby(parsed, key=_is_read):
        results += await asyncio.gather(*(_execute(call.app.kv, operation, fence, options) for operation in neighbours))
    return call.json(200, shapes.BatchAnswer(results=results))


def _is_read(operation: Operation) -> bool:
    return isinstance(operation, Range)


async def _execute(kv: KV, operation: Operation, fence: Fence | None, options: Options) -> Result | shapes.FailedResult:
    fenced = operation if fence is None or isinstance(operation, Range) else Command(operation, fence=fence)
    try:
        return result_of(operation, await kv.execute(fenced, options), status=200)
    except KvnodeError as error:
        body = errors.body_of(error, errors.outcome_of(error, has_effect=not _is_read(operation)))
        return shapes.FailedResult(status=errors.status_of(error), error=body.error, outcome=body.outcome)
