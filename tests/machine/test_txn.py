"""Transactions: what decides, what happens, and that it happens at one revision or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from kvnode.kv.keys import TO_THE_END
from kvnode.kv.requests import (
    TXN_DEPTH_MAX,
    Compact,
    Compare,
    Delete,
    DeleteReply,
    LeaseGrant,
    LeaseReply,
    LeaseRevoke,
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


# ── transactions inside transactions ────────────────────────────────────────────────────────────────


def test_a_transaction_inside_shares_the_revision(store: Store) -> None:
    inner = Txn((Compare(b"a", "exists", "=", 0),), (Put(b"x", b"1"),), (Put(b"y", b"2"), Range(b"x")))
    applied = store.apply(Txn((), (Range(b"x"), Put(b"x", b"0"), inner, Put(b"z", b"3"))), time=1_000)
    put = PutReply(6, True, 6, 1, 1_000)
    assert isinstance(applied.result, Refusal), "either branch may be the one that runs"
    inner = msgspec.structs.replace(inner, success=())
    applied = store.apply(Txn((), (Range(b"x"), Put(b"x", b"0"), inner, Put(b"z", b"3"))), time=1_000)
    assert isinstance(applied.result, TxnReply)
    before, first, (revision, succeeded, (second, seen)), last = (
        applied.result.results[0],
        applied.result.results[1],
        msgspec.structs.astuple(applied.result.results[2]),
        applied.result.results[3],
    )
    assert before == RangeReply(5, (), 0)
    assert (first, second, last, revision, succeeded) == (put, put, put, 6, False)
    assert [kv.value for kv in seen.items] == [b"0"], "it sees what was done around it"
    assert [(event.kv.key, event.kv.mod_revision) for event in applied.events] == [(b"x", 6), (b"y", 6), (b"z", 6)]
    assert store.machine.revision == 6


def test_compares_inside_see_the_state_before_all_of_it(store: Store) -> None:
    unchanged = Txn(
        (
            Compare(b"a", "mod_revision", "=", 2),
            Compare(b"x", "exists", "=", 0),
            Compare(b"b", "version", "=", 1, b"z"),
        ),
        (),
        (Put(b"wrong", b""),),
    )
    result = run(store, Put(b"x", b"1"), Delete(b"a"), Txn((), (Txn((), (unchanged,)),)))
    assert isinstance(result, TxnReply)
    assert store.get(b"wrong") is None
    assert store.get(b"x") is not None


def test_a_refusal_inside_refuses_all_of_it(store: Store) -> None:
    result = run(store, Put(b"x", b"1"), Txn((), (Put(b"y", b"2"), Put(b"a", b"", if_revision=9))), Put(b"z", b"3"))
    assert isinstance(result, Refusal)
    assert (result.code, result.found, result.revision) == ("compare_failed", 2, 5)
    assert store.list() == [b"a", b"b"]
    assert store.put(b"x") == 6, "the machine goes on"


TWICE: list[tuple[bool, tuple[Operation, ...]]] = [
    (True, (Put(b"x", b""), Txn((), (Put(b"x", b""),)))),
    (True, (Txn((), (), (Put(b"x", b""),)), Put(b"x", b""))),  # though that one does not run
    (True, (Txn((), (Txn((), (), (Put(b"x", b""),)),)), Put(b"x", b""))),
    (True, (Txn((), (Put(b"x", b""),)), Txn((), (), (Put(b"x", b""),)))),
    (True, (Txn((), (Put(b"x", b""), Put(b"x", b""))),)),
    (True, (Txn((), (), (Put(b"x", b""), Delete(b"x"))),)),
    (True, (Txn((), (Put(b"x", b""),)), Delete(b"w", b"z"))),
    (True, (Put(b"x", b""), Txn((), (Delete(b"w", TO_THE_END),)))),
    (True, (Txn((), (Delete(b"x"),)), Txn((), (Put(b"x", b""),)))),
    (True, (Txn((), (Put(b"x", b""),)), Txn((), (Delete(b"x"),)))),
    (False, (Txn((), (Put(b"x", b""),), (Put(b"x", b"2"),)), Put(b"y", b""))),
    (False, (Txn((), (Put(b"x", b""),), (Delete(b"w", b"y"),)), Put(b"y", b""))),
    (False, (Txn((), (Put(b"x", b""), Txn((), ()))), Delete(b"y", b"z"), Delete(b"x\x00", TO_THE_END))),
    (False, (Txn((), (Delete(b"a"),)), Delete(b"a", b"c"), Txn((), (Delete(b"b"),)))),
]


@pytest.mark.parametrize(("is_refused", "operations"), TWICE)
def test_what_one_operation_may_put_no_other_may_change(
    store: Store, is_refused: bool, operations: tuple[Operation, ...]
) -> None:
    result = run(store, *operations)
    assert isinstance(result, Refusal) is is_refused, result
    if isinstance(result, Refusal):
        assert result.code == "bad_request"


def test_only_the_chosen_branch_is_judged_by_the_state(store: Store) -> None:
    impossible = (Put(b"x", b"", lease=99), Put(b"absent", b"", keep_value=True), Range(b"a", revision=99))
    result = run(store, Txn((), (Put(b"y", b""),), impossible))
    assert isinstance(result, TxnReply)


@pytest.mark.parametrize(
    ("code", "operations"),
    [
        ("key_not_found", (Range(b"a", revision=99), Delete(b"b"), Put(b"absent", b"", keep_value=True))),
        ("key_not_found", (Txn((), (Put(b"absent", b"", keep_lease=True),)), Put(b"x", b"", lease=99))),
        ("lease_not_found", (Put(b"x", b"", lease=99), Txn((), (Put(b"absent", b"", keep_lease=True),)))),
        ("lease_not_found", (Put(b"a", b"", if_revision=9), Range(b"a", revision=99), Txn((), (Put(b"x", b"", 99),)))),
        ("future_revision", (Put(b"a", b"", if_revision=9), Txn((), (Range(b"a", revision=99),)))),
        ("compacted", (Put(b"a", b"", if_revision=9), Txn((), (Range(b"a", revision=2),)))),
    ],
)
def test_what_the_state_does_not_allow_is_found_before_any_change(
    store: Store, code: str, operations: tuple[Operation, ...]
) -> None:
    """In etcd's order: of all that would be refused it tells the puts first, then the reads."""
    store.apply(Compact(4))
    result = run(store, *operations)
    assert isinstance(result, Refusal)
    assert result.code == code


def plain_refusals() -> list[tuple[str, tuple[Operation, ...]]]:
    return [
        ("compare_failed", (Put(b"a", b"", if_revision=9), Range(b"a", revision=99))),
        ("future_revision", (Range(b"a", revision=99), Put(b"x", b"", lease=99))),
        ("lease_not_found", (Put(b"x", b"", lease=99), Range(b"a", revision=99))),
    ]


@pytest.mark.parametrize(("code", "operations"), plain_refusals())
def test_a_plain_transaction_is_refused_as_older_versions_refuse_it(
    store: Store, code: str, operations: tuple[Operation, ...]
) -> None:
    """One after the other: members of two versions apply it, and the digest covers the code (I21)."""
    result = run(store, *operations)
    assert isinstance(result, Refusal)
    assert result.code == code


def nested(depth: int, *innermost: Operation) -> Txn:
    return Txn((), innermost if depth == 1 else (nested(depth - 1, *innermost),))


def test_the_depth_is_bounded(store: Store) -> None:
    assert isinstance(store.apply(nested(TXN_DEPTH_MAX, Put(b"x", b"1"))).result, TxnReply)
    assert store.get(b"x") is not None
    for depth in (TXN_DEPTH_MAX + 1, 120):
        result = store.apply(nested(depth, Put(b"x", b"2"))).result
        assert isinstance(result, Refusal)
        assert result.code == "too_large"


def some_puts(count: int, name: bytes = b"x") -> tuple[Put, ...]:
    return tuple(Put(b"%s%d" % (name, number), b"") for number in range(count))


READS = (Range(b"a"), Range(b"b"))


@pytest.mark.parametrize(
    ("is_refused", "success"),
    [
        (False, some_puts(8)),
        (True, some_puts(9)),
        (False, (*some_puts(3), Txn((), some_puts(4, b"y")))),  # 8 less the 4 around it
        (True, (*some_puts(3), Txn((), some_puts(5, b"y")))),
        (True, (*some_puts(3), Txn((), (), some_puts(5, b"y")))),
        (True, (*some_puts(3), Txn(tuple([Compare(b"a", "exists", "=", 1)] * 5), ()))),
        (False, (*some_puts(3), Txn((), (*some_puts(1, b"y"), Txn((), some_puts(2, b"z")))))),
        (True, (*some_puts(3), Txn((), (*some_puts(1, b"y"), Txn((), some_puts(3, b"z")))))),
        (False, tuple(Txn((), tuple(Txn((), some_puts(2, b"%d%d" % (n, m))) for m in range(2))) for n in range(4))),
        (False, (Txn((), (Txn((), READS, READS),) * 2, (Txn((), READS),)),) * 4),  # 4, 12 and 40 of them
        (True, (Txn((), (Txn((), READS, READS),) * 2, (Txn((), READS),) * 2),) * 4),  # 4, 16 and 48
    ],
)
def test_the_number_of_operations_is_bounded(tmp_path: Path, is_refused: bool, success: tuple[Operation, ...]) -> None:
    """A list inside has what the longest around it leaves, and all of it together eight times the limit."""
    store = Store(opener("memory", tmp_path), txn_operations_max=8)
    result = store.apply(Txn((), success)).result
    assert isinstance(result, Refusal) is is_refused, result
    if isinstance(result, Refusal):
        assert result.code == "too_large"


def test_deletes_inside_are_held_to_the_limit_of_one(tmp_path: Path) -> None:
    store = Store(opener("memory", tmp_path), delete_keys_max=4)
    for put in some_puts(6):
        store.apply(put)
    one, other = Delete(b"x0", b"x3"), Delete(b"x3", b"x5")
    assert isinstance(run(store, one, Txn((), (other,))), Refusal)
    assert isinstance(run(store, one, Txn((), (Delete(b"x3"),))), TxnReply)


def test_answers_inside_count_towards_the_bound(tmp_path: Path) -> None:
    store = Store(opener("memory", tmp_path), page_bytes_max=64 << 10)
    store.put(b"a", bytes(40 << 10))
    assert isinstance(run(store, Txn((), (Txn((), (Range(b"a"),)),))), TxnReply), "counted once, however deep"
    result = run(store, Range(b"a"), Txn((), (Range(b"a"),)))
    assert isinstance(result, Refusal)
    assert result.code == "too_large"


# ── compares of ranges, counted ranges, puts that keep ──────────────────────────────────────────────


@pytest.mark.parametrize(
    ("compare", "expected"),
    [
        (Compare(b"a", "version", "=", 1, TO_THE_END), True),
        (Compare(b"a", "mod_revision", "<", 3, TO_THE_END), False),
        (Compare(b"a", "mod_revision", "<", 3, b"b"), True),
        (Compare(b"a", "mod_revision", ">", 2, b"c"), False),
        (Compare(b"b", "value", "=", b"w", TO_THE_END), True),
        (Compare(b"a", "value", "=", b"w", TO_THE_END), False),
        (Compare(b"", "exists", "=", 1, TO_THE_END), True),
        (Compare(b"gone", "exists", "=", 0, TO_THE_END), True),  # nothing there is as a missing key
        (Compare(b"gone", "version", "=", 0, TO_THE_END), True),
        (Compare(b"gone", "version", ">", 0, TO_THE_END), False),
        (Compare(b"gone", "value", "!=", b"x", TO_THE_END), False),
        (Compare(b"b", "version", "=", 0, b"a"), True),  # no key can lie there
        (Compare(b"b", "version", "=", 1, b"a"), False),
    ],
)
def test_compares_of_a_range(store: Store, compare: Compare, expected: bool) -> None:
    result = store.apply(Txn((compare,), (Put(b"then", b""),), (Put(b"else", b""),))).result
    assert isinstance(result, TxnReply)
    assert result.succeeded is expected


def test_a_compare_of_a_range_across_types_is_refused(store: Store) -> None:
    for start in (b"a", b"gone"):
        result = store.apply(Txn((Compare(start, "value", "=", 1, TO_THE_END),), ())).result
        assert isinstance(result, Refusal)
        assert result.code == "bad_request"


def test_the_keys_that_compares_look_at_are_bounded(tmp_path: Path) -> None:
    """All of them together, and none beyond the first that does not hold."""
    store = Store(opener("memory", tmp_path), delete_keys_max=8)
    for put in some_puts(6):
        store.apply(put)
    all_hold, none_holds = (Compare(b"x", "version", op, 1, TO_THE_END) for op in ("=", ">"))
    assert isinstance(store.apply(Txn((all_hold,), ())).result, TxnReply)
    assert isinstance(store.apply(Txn((none_holds,) * 8, ())).result, TxnReply)
    for txn in (Txn((all_hold, all_hold), ()), Txn((all_hold,), (Txn((all_hold,), ()),))):
        result = store.apply(txn).result
        assert isinstance(result, Refusal)
        assert result.code == "too_large"


@pytest.mark.parametrize("is_descending", [False, True])
def test_a_counted_page_tells_how_many_there_are(store: Store, is_descending: bool) -> None:
    for put in some_puts(7):
        store.apply(put)
    for limit, count_only in ((0, False), (1, False), (7, False), (3, False), (3, True)):
        request = Range(b"x", b"y", limit, 0, is_descending, False, count_only, counted=True)
        page = store.machine.range(request)
        assert (page.count, page.more) == (7, not count_only and 0 < limit < 7)
        assert page.items == store.machine.range(msgspec.structs.replace(request, counted=False)).items
        result = run(store, request)
        assert isinstance(result, TxnReply)
        assert result.results == (page,)
    past = store.machine.range(Range(b"a", TO_THE_END, 1, 5, is_descending, counted=True))
    assert (past.revision, past.count, past.more) == (5, 2, True), "at its own revision"
    inside = run(store, Delete(b"x2", b"x5"), Put(b"xx", b""), Range(b"x", b"y", 1, 0, is_descending, counted=True))
    assert isinstance(inside, TxnReply)
    page = inside.results[2]  # type: ignore[assignment]
    assert (page.count, page.more) == (5, True), "as the transaction has left it"
    assert store.machine.range(Range(b"a", counted=True)).count == 1
    assert store.machine.range(Range(b"zz", counted=True)).count == 0


def test_a_put_keeps_what_it_says(store: Store) -> None:
    store.apply(LeaseGrant(60_000))
    lease = store.machine.applied_index
    store.apply(Put(b"b", b"w", lease=lease))
    store.apply(Put(b"b", b"", keep_value=True))
    kv = store.get(b"b")
    assert kv is not None
    assert (kv.value, kv.lease, kv.version, kv.mod_revision) == (b"w", 0, 3, 7)
    store.apply(Put(b"b", b"", lease, keep_value=True))
    applied = store.apply(Put(b"b", b"new", keep_lease=True, return_previous=True))
    kv = store.get(b"b")
    assert kv is not None
    assert (kv.value, kv.lease, kv.version) == (b"new", lease, 5)
    assert applied.events[0].kv == kv
    assert isinstance(applied.result, PutReply)
    assert applied.result.previous is not None
    assert applied.result.previous.value == b"w"
    store.apply(Put(b"b", b"", keep_value=True, keep_lease=True))
    found = store.machine.leases.get(lease)
    assert found is not None
    assert list(found.keys) == [b"b"]
    store.apply(LeaseRevoke(lease))
    assert store.get(b"b") is None, "it was kept on its lease"


@pytest.mark.parametrize(
    ("code", "put"),
    [
        ("key_not_found", Put(b"absent", b"", keep_value=True)),
        ("key_not_found", Put(b"gone", b"v", keep_lease=True)),
        ("key_not_found", Put(b"absent", b"", 99, keep_value=True)),
        ("lease_not_found", Put(b"a", b"", 99, keep_value=True)),
        ("compare_failed", Put(b"a", b"", if_revision=0, keep_value=True)),
        ("bad_request", Put(b"a", b"v", keep_value=True)),
        ("bad_request", Put(b"a", b"", 99, keep_lease=True)),
        ("bad_key", Put(b"", b"", keep_lease=True)),
    ],
)
def test_a_put_that_cannot_keep_is_refused(store: Store, code: str, put: Put) -> None:
    for request in (put, Txn((), (put,)), Txn((), (Txn((), (put,)),))):
        applied = store.apply(request)
        assert isinstance(applied.result, Refusal)
        assert (applied.result.code, applied.result.revision, applied.events) == (code, 5, ())


def test_a_put_that_comes_with_a_lease_keeps_no_other(store: Store) -> None:
    result = store.apply(LeaseGrant(60_000, put=Put(b"a", b"", keep_lease=True))).result
    assert isinstance(result, Refusal)
    assert result.code == "bad_request"
    assert not store.machine.leases
    assert isinstance(store.apply(LeaseGrant(60_000, put=Put(b"a", b"", keep_value=True))).result, LeaseReply)
    kv = store.get(b"a")
    assert kv is not None
    assert (kv.value, kv.lease) == (b"v", store.machine.applied_index)
