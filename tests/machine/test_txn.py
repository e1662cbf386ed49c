"""Transactions: what decides, what happens, and that it happens at one revision or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kvnode.kv.keys import TO_THE_END
from kvnode.kv.requests import (
    Compact,
    Compare,
    Delete,
    DeleteReply,
    Operation,
    Put,
    PutReply,
    Range,
    RangeReply,
    Refusal,
    Txn,
    TxnReply,
)
from tests.machine.harness import Store, opener


@pytest.fixture(params=["recent", "flushed"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """Keys a (revision 2), b (3; value w), and gone, which was deleted at 5."""
    store = Store(opener("memory", tmp_path), request.param)
    store.put(b"a")
    store.put(b"b", b"w")
    store.put(b"gone")
    store.apply(Delete(b"gone"))
    store.settle()
    return store


def run(store: Store, *operations: Operation) -> TxnReply | Refusal:
    result = store.apply(Txn((), operations)).result
    assert isinstance(result, (TxnReply, Refusal))
    return result


@pytest.mark.parametrize(
    ("compare", "expected"),
    [
        (Compare(b"b", "value", "=", b"w"), True),
        (Compare(b"b", "value", "!=", b"w"), False),
        (Compare(b"b", "value", "<", b"x"), True),
        (Compare(b"b", "value", ">", b"x"), False),
        (Compare(b"absent", "value", "=", b""), False),
        (Compare(b"absent", "value", "!=", b"x"), False),
        (Compare(b"b", "version", "=", 1), True),
        (Compare(b"absent", "version", "=", 0), True),
        (Compare(b"gone", "version", "=", 0), True),
        (Compare(b"b", "create_revision", "<", 4), True),
        (Compare(b"gone", "create_revision", "=", 0), True),
        (Compare(b"b", "mod_revision", ">", 3), False),
        (Compare(b"b", "mod_revision", "=", 3), True),
        (Compare(b"b", "lease", "=", 0), True),
        (Compare(b"b", "exists", "=", 1), True),
        (Compare(b"gone", "exists", "=", 0), True),
        (Compare(b"gone", "exists", "!=", 0), False),
    ],
)
def test_compares(store: Store, compare: Compare, expected: bool) -> None:
    applied = store.apply(Txn((compare,), (Put(b"then", b""),), (Put(b"else", b""),)))
    assert isinstance(applied.result, TxnReply)
    assert applied.result.succeeded is expected
    assert (store.get(b"then") is not None) is expected
    assert (store.get(b"else") is None) is expected


def test_every_compare_must_hold(store: Store) -> None:
    held, failed = Compare(b"a", "exists", "=", 1), Compare(b"a", "exists", "=", 0)
    for compares, expected in (((), True), ((held, held), True), ((held, failed), False), ((failed, held), False)):
        result = store.apply(Txn(compares, ())).result
        assert result == TxnReply(5, expected, ())


def test_all_changes_share_one_revision(store: Store) -> None:
    applied = store.apply(Txn((), (Put(b"x", b"1"), Delete(b"a", b"c"), Put(b"y", b"2"))), time=1_000)
    assert applied.result == TxnReply(
        6, True, (PutReply(6, True, 6, 1, 1_000), DeleteReply(6, 2), PutReply(6, True, 6, 1, 1_000))
    )
    assert [(event.kv.key, event.kv.mod_revision) for event in applied.events] == [
        (b"x", 6),
        (b"a", 6),
        (b"b", 6),
        (b"y", 6),
    ]
    assert store.machine.revision == 6
    assert store.list() == [b"x", b"y"]
    assert store.list(revision=5) == [b"a", b"b"]


def test_a_transaction_that_changes_nothing_makes_no_revision(store: Store) -> None:
    result = run(store, Range(b"a"), Delete(b"absent"))
    assert isinstance(result, TxnReply)
    assert result.revision == store.machine.revision == 5


def test_operations_see_what_earlier_ones_did(store: Store) -> None:
    everything = Range(b"", TO_THE_END, keys_only=True)
    result = run(store, everything, Put(b"c", b"1"), Range(b"c"), Delete(b"a"), everything, Range(b"a", revision=5))
    assert isinstance(result, TxnReply)
    before, _, put, _, after, pinned = result.results
    assert isinstance(before, RangeReply)
    assert ([kv.key for kv in before.items], before.revision) == ([b"a", b"b"], 5)
    assert isinstance(put, RangeReply)
    assert [(kv.value, kv.mod_revision) for kv in put.items] == [(b"1", 6)]
    assert isinstance(after, RangeReply)
    assert ([kv.key for kv in after.items], after.revision) == ([b"b", b"c"], 6)
    assert isinstance(pinned, RangeReply)
    assert [kv.mod_revision for kv in pinned.items] == [2], "an explicit revision is that revision"


def test_compares_see_the_state_before(store: Store) -> None:
    result = store.apply(Txn((Compare(b"x", "exists", "=", 0),), (Put(b"x", b""),))).result
    assert isinstance(result, TxnReply)
    assert result.succeeded


REFUSED: list[tuple[str, tuple[Any, ...]]] = [
    ("bad_request", (Put(b"x", b"1"), Put(b"x", b"2"))),
    ("bad_request", (Put(b"x", b"1"), Delete(b"x"))),
    ("bad_request", (Delete(b"a", b"z"), Put(b"x", b"1"))),
    ("bad_request", (Put(b"x", b"1"), Delete(b"a", TO_THE_END))),
    ("compare_failed", (Put(b"x", b"1"), Put(b"a", b"2", if_revision=0))),
    ("compare_failed", (Delete(b"b"), Delete(b"a", if_revision=9))),
    ("future_revision", (Put(b"x", b"1"), Range(b"a", revision=6))),
    ("bad_request", (Put(b"x", b"1"), Range(b"a", revision=-1))),
    ("bad_key", (Put(b"x", b"1"), Put(b"", b""))),
    ("too_large", tuple(Put(b"x%d" % number, b"") for number in range(129))),
]


@pytest.mark.parametrize(("code", "operations"), REFUSED)
def test_a_refused_operation_refuses_all_of_it(store: Store, code: str, operations: tuple[Operation, ...]) -> None:
    before = [store.get(key) for key in (b"a", b"b", b"x")]
    applied = store.apply(Txn((), operations))
    assert isinstance(applied.result, Refusal)
    assert (applied.result.code, applied.result.revision, applied.events) == (code, 5, ())
    assert [store.get(key) for key in (b"a", b"b", b"x")] == before
    assert store.machine.revision == 5
    assert store.put(b"x") == 6, "the machine goes on"


def test_a_refusal_names_the_revision_found(store: Store) -> None:
    result = run(store, Put(b"b", b"", if_revision=1))
    assert isinstance(result, Refusal)
    assert result.found == 3


def test_compacted_revisions_cannot_be_read(store: Store) -> None:
    store.apply(Compact(4))
    result = run(store, Range(b"a", revision=3))
    assert isinstance(result, Refusal)
    assert result.code == "compacted"


def test_only_the_chosen_list_is_judged(store: Store) -> None:
    twice = (Put(b"x", b"1"), Put(b"x", b"2"))
    result = store.apply(Txn((), (Put(b"y", b""),), twice)).result
    assert isinstance(result, TxnReply)


def test_deletes_may_overlap(store: Store) -> None:
    result = run(store, Delete(b"a", b"c"), Delete(b"b"), Delete(b"a", TO_THE_END))
    assert isinstance(result, TxnReply)
    assert result.results == (DeleteReply(6, 2), DeleteReply(6, 0), DeleteReply(6, 0))


@pytest.mark.parametrize(
    "compare",
    [Compare(b"a", "value", "=", 1), Compare(b"a", "version", "=", b"1"), Compare(b"a", "exists", "=", b"")],
)
def test_compares_across_types_are_refused(store: Store, compare: Compare) -> None:
    result = store.apply(Txn((compare,), ())).result
    assert isinstance(result, Refusal)
    assert result.code == "bad_request"


def test_the_answer_is_bounded(tmp_path: Path) -> None:
    store = Store(opener("memory", tmp_path), page_bytes_max=64 << 10)
    store.put(b"a", bytes(40 << 10))
    assert isinstance(run(store, Range(b"a")), TxnReply)
    result = run(store, Put(b"b", b""), Range(b"a"), Range(b"a"))
    assert isinstance(result, Refusal)
    assert result.code == "too_large"
    assert store.get(b"b") is None
