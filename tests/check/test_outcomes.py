"""Promises of single answers, without any order: acknowledged is there, refused is nowhere, once is once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kvnode.check import outcomes
from kvnode.check.claims import account, keys_of
from kvnode.check.history import Operation, Seen


def put(value: str, call: int, rev: int = 0, key: str = "k", **more: Any) -> Operation:
    given = {"client": call, "ret": call + 5, "rev": rev} | more
    return Operation(op="put", key=key, arg=value, call=call, **given)


def get(value: str | None, call: int, mod: int = 0, key: str = "k", **more: Any) -> Operation:
    return Operation(op="get", key=key, out=value, mod=mod, call=call, ret=call + 5, client=call, **more)


def rules(operations: Sequence[Operation], final: dict[str, Seen] | None = None) -> list[str]:
    keys = keys_of(operations)
    return [problem.rule for problem in outcomes.check([account(one, keys) for one in operations], final)]


def seen(value: str, mod: int, key: str = "k") -> dict[str, Seen]:
    return {key: Seen(key, value, mod)}


def test_what_was_written_may_be_seen():
    assert rules([put("a", 1, 2), get("a", 10, 2), get("a", 20)], seen("a", 2)) == []


def test_a_value_that_nobody_wrote():
    assert rules([get("x", 1, 2)]) == ["unexpected"]
    assert rules([put("a", 1, 2, key="other"), get("a", 10, 2)]) == ["unexpected"]
    assert rules([put("a", 1, 2)], seen("x", 3)) == ["unexpected"]


def test_a_refused_write_is_seen_by_nobody():
    refused = put("a", 1, status="fail")
    assert rules([refused, get("b", 10), put("b", 2, 2)]) == []
    assert rules([refused, get("a", 10, 2)]) == ["refused-but-seen"]
    assert rules([refused, get("a", 10, 2, consistency="stale")]) == ["refused-but-seen"]
    assert rules([refused], seen("a", 2)) == ["refused-but-seen"]
    ranged = Operation(client=9, op="range", key="", call=9, ret=10, items=(Seen("k", "a", 2),))
    assert rules([refused, ranged]) == ["refused-but-seen"]
    part = Operation(client=9, op="get", key="k", call=9, out="a", mod=2)
    assert rules([refused, Operation(client=9, op="txn", call=9, ret=10, parts=(part,))]) == ["refused-but-seen"]


def test_a_value_is_not_seen_before_it_was_asked_for():
    assert rules([get("a", 1, 2), put("a", 10, 2)]) == ["early"]
    assert rules([get("a", 6, 2), put("a", 10, 2)]) == []  # they overlap


def test_a_write_has_one_revision():
    assert rules([put("a", 1, 2), get("a", 10, 3)]) == ["applied-twice"]
    unanswered = put("a", 1, status="info", ret=None)
    assert rules([unanswered, get("a", 10, 2), get("a", 20, 2)]) == []
    assert rules([unanswered, get("a", 10, 2), get("a", 20, 5)]) == ["applied-twice"]
    assert rules([unanswered, get("a", 10, 2)], seen("a", 5)) == ["applied-twice"]


def test_what_was_acknowledged_last_is_there_in_the_end():
    assert rules([put("a", 1, 2), put("b", 10, 3)], seen("b", 3)) == []
    assert rules([put("a", 1, 2), put("b", 10, 3)], seen("a", 2)) == ["lost"]
    assert rules([put("a", 1, 2)], {}) == ["lost"]
    assert rules([put("a", 1, 2)]) == []  # nobody looked
    delete = Operation(client=9, op="delete", key="k", call=10, ret=11, count=1, rev=3)
    assert rules([put("a", 1, 2), delete], {}) == []
    assert rules([put("a", 1, 2), delete], seen("a", 2)) == ["lost"]


def test_an_unanswered_write_may_have_replaced_it():
    unanswered = put("b", 10, status="info", ret=None)
    assert rules([put("a", 1, 2), unanswered], seen("b", 3)) == []
    assert rules([put("a", 1, 2), unanswered], {}) == ["lost"]  # a put does not delete
    delete = Operation(client=9, op="delete", key="k", call=10, status="info")
    assert rules([put("a", 1, 2), delete], {}) == []
    assert rules([put("a", 1, 2), delete], seen("a", 2)) == []


def test_a_set_of_unique_keys_with_many_clients():
    """Write unique keys, read all in the end: lost and unexpected are found without any search."""
    writes = [put(f"v{n}", n, n + 2, key=f"k{n}") for n in range(2000)]
    final = {f"k{n}": Seen(f"k{n}", f"v{n}", n + 2) for n in range(2000)}
    assert rules(writes, final) == []
    del final["k77"]
    final["k9999"] = Seen("k9999", "v9999", 5000)
    assert sorted(rules(writes, final)) == ["lost", "unexpected"]
