"""``POST /v1/txn``: compares, then one of two lists of operations, all or nothing, at one revision."""

from __future__ import annotations

from typing import Any, get_args

from kvnode.api import shapes, strict_json
from kvnode.api.answer import Answer
from kvnode.api.call import Call
from kvnode.api.http.operations import OperationParser, items_max, result_of
from kvnode.api.http.plain_puts import puts_of_transaction
from kvnode.api.http.sessions import once
from kvnode.api.strict_json import expect_choice, expect_flag, expect_integer, expect_list, expect_object
from kvnode.config import LimitsSection
from kvnode.errors import BadRequest
from kvnode.kv.requests import Compare, CompareOp, CompareTarget, Range, Txn

_TXN_FIELDS = frozenset({"compare", "success", "failure"})
COMPARE_FIELDS = frozenset({"key", "key_encoding", "target", "op", "value", "encoding"})
TARGETS: tuple[CompareTarget, ...] = get_args(CompareTarget)
OPS: tuple[CompareOp, ...] = get_args(CompareOp)


async def transact(call: Call) -> Answer:
    limits = call.app.config.limits
    options = call.options()
    body = await call.body(limits.request_bytes_max)
    txn = _parse(body, limits)
    call.has_effect = any(not isinstance(operation, Range) for operation in (*txn.success, *txn.failure))
    reply = await call.app.kv.execute(once(call, txn), options)
    branch = txn.success if reply.succeeded else txn.failure
    answer = shapes.TxnAnswer(
        revision=reply.revision,
        succeeded=reply.succeeded,
        results=[result_of(operation, result) for operation, result in zip(branch, reply.results, strict=True)],
    )
    return call.json(200, answer, revision=reply.revision)


def _parse(body: bytes, limits: LimitsSection) -> Txn:
    puts = puts_of_transaction(body, OperationParser(limits, conditions=False))
    if puts:
        return Txn((), tuple(puts))
    return parse_txn(strict_json.loads(body, depth_max=limits.json_depth_max, items_max=items_max(limits)), limits)


def parse_txn(value: Any, limits: LimitsSection) -> Txn:
    fields = expect_object(value, "the body", _TXN_FIELDS)
    parser = OperationParser(limits, conditions=False)
    compare, success, failure = (
        expect_list(fields.get(name, []), name, limits.txn_operations_max) for name in ("compare", "success", "failure")
    )
    return Txn(
        tuple(_parse_compare(item, f"compare[{n}]", parser) for n, item in enumerate(compare)),
        tuple(parser.parse(item, f"success[{n}]") for n, item in enumerate(success)),
        tuple(parser.parse(item, f"failure[{n}]") for n, item in enumerate(failure)),
    )


def _parse_compare(item: Any, place: str, parser: OperationParser) -> Compare:
    fields = expect_object(item, place, COMPARE_FIELDS)
    key = parser.key(fields, place)
    target: CompareTarget = expect_choice(fields.get("target"), f"{place}.target", TARGETS)  # type: ignore[assignment]
    op: CompareOp = expect_choice(fields.get("op", "="), f"{place}.op", OPS)  # type: ignore[assignment]
    if target == "value":
        return Compare(key, target, op, parser.value(fields, place))
    if "encoding" in fields:
        raise BadRequest(f"{place}.encoding belongs to the target value")
    if target == "exists":
        if op not in {"=", "!="}:
            raise BadRequest(f"{place}: exists takes = or !=")
        return Compare(key, target, op, int(expect_flag(fields.get("value", True), f"{place}.value")))
    if "value" not in fields:
        raise BadRequest(f"{place} needs a value")
    return Compare(key, target, op, expect_integer(fields["value"], f"{place}.value"))
