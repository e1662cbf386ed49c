"""What no correct recorder writes is refused, with the operation's name."""

from __future__ import annotations

from typing import Any

import pytest

from kvnode.check.history import Operation, Seen
from kvnode.check.judge import judge
from kvnode.check.well_formed import MalformedHistory


def op(kind: str, call: int, ret: int | None, **more: Any) -> Operation:
    given = {"client": 1, "key": "k"} | more
    if kind == "put":
        given = {"arg": f"v{call}"} | given
    return Operation(op=kind, call=call, ret=ret, **given)


PUT = op("put", 1, 2, rev=2)
PART = op("put", 5, 6, arg="w")

MALFORMED = {
    "without an answer, but with a time": ([op("put", 1, 2, status="info")], "time of return"),
    "answered, but without a time": ([op("put", 1, None)], "without a time"),
    "refused, but without a time": ([op("put", 1, None, status="fail")], "without a time"),
    "backwards": ([op("put", 3, 2)], "before it was called"),
    "two at a time": ([PUT, op("get", 1, 3)], "open"),
    "two at a time, later": ([PUT, op("get", 3, 9), op("get", 5, 6)], "open"),
    "goes on without an answer": ([op("put", 1, None, status="info"), op("get", 3, 4)], "goes on"),
    "a value twice": ([PUT, op("put", 3, 4, arg="v1")], "value v1"),
    "a value twice, in a transaction": ([PUT, op("txn", 5, 6, key="", parts=(op("put", 5, 6, arg="v1"),))], "value v1"),
    "a value twice, refused": ([PUT, op("put", 3, 4, arg="v1", status="fail")], "value v1"),
    "a put without a value": ([op("put", 1, 2, arg=None)], "needs a value"),
    "a get with a value to write": ([op("get", 1, 2, arg="x")], "needs a value"),
    "a put that read": ([op("put", 1, 2, out="x")], "only a get"),
    "a revision of nothing": ([op("get", 1, 2, mod=3)], "no value"),
    "no key": ([op("get", 1, 2, key="")], "no key"),
    "a stale write": ([op("put", 1, 2, consistency="stale")], "stale"),
    "a read with a condition": ([op("get", 1, 2, exp=3)], "no condition"),
    "no such condition": ([op("put", 1, 2, exp=-3)], "no condition"),
    "a failed condition that was not asked": ([op("put", 1, 2, held=False)], "none was asked"),
    "two deleted": ([op("delete", 1, 2, count=2)], "2 deleted"),
    "a put that deleted": ([op("put", 1, 2, count=1)], "1 deleted"),
    "items of a get": ([op("get", 1, 2, items=(Seen("k", "v", 2),))], "with items"),
    "items out of order": ([op("range", 1, 2, items=(Seen("kb", "v", 2), Seen("ka", "w", 3)))], "order"),
    "items of elsewhere": ([op("range", 1, 2, items=(Seen("x", "v", 2),))], "outside"),
    "parts of a put": ([op("put", 1, 2, parts=(PART,))], "with parts"),
    "no parts": ([op("txn", 1, 2, key="")], "without parts"),
    "a range in a transaction": ([op("txn", 1, 2, key="", parts=(op("range", 1, 2),))], "inside"),
    "a key changed twice": ([op("txn", 5, 6, key="", parts=(PART, op("put", 5, 6, arg="x")))], "twice"),
    "a key put and deleted": ([op("txn", 5, 6, key="", parts=(PART, op("delete", 5, 6)))], "twice"),
    "a negative revision": ([op("put", 1, 2, rev=-1)], "negative"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_history_is_no_verdict(name: str):
    operations, why = MALFORMED[name]
    with pytest.raises(MalformedHistory, match=why) as caught:
        judge(operations)
    assert f"operation {len(operations)}: " in str(caught.value)


def test_touching_operations_of_one_client_are_in_order():
    assert judge([PUT, op("get", 2, 3, out="v1", mod=2, rev=2)]).result == "ok"
