"""The order that revisions claim: small histories by hand, one for each rule and each kind of missing evidence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kvnode.check import witness
from kvnode.check.claims import account, keys_of
from kvnode.check.history import Operation, Seen


def put(value: str, call: int, ret: int | None, rev: int = 0, **more: Any) -> Operation:
    given = {"client": call, "key": "k", "status": "ok" if ret is not None else "info"} | more
    return Operation(op="put", arg=value, call=call, ret=ret, rev=rev, **given)


def get(value: str | None, mod: int, call: int, ret: int, rev: int, **more: Any) -> Operation:
    given = {"client": call, "key": "k"} | more
    return Operation(op="get", out=value, mod=mod, call=call, ret=ret, rev=rev, **given)


def delete(call: int, ret: int | None, rev: int = 0, count: int = 0, **more: Any) -> Operation:
    given = {"client": call, "key": "k", "status": "ok" if ret is not None else "info"} | more
    return Operation(op="delete", call=call, ret=ret, rev=rev, count=count, **given)


def txn(call: int, ret: int | None, rev: int, *parts: Operation, held: bool = True) -> Operation:
    status = "ok" if ret is not None else "info"
    return Operation(client=call, op="txn", call=call, ret=ret, rev=rev, parts=parts, held=held, status=status)


def check(
    operations: Sequence[Operation], final: dict[str, Seen] | None = None, *, sole_writer: bool = True
) -> witness.Testimony:
    keys = sorted({*keys_of(operations), *(final or {})})
    return witness.check([account(one, keys) for one in operations], keys, final, sole_writer=sole_writer)


def rules(operations: Sequence[Operation], final: dict[str, Seen] | None = None) -> list[str]:
    return [problem.rule for problem in check(operations, final).problems]


def test_a_whole_history_is_a_proof():
    testimony = check([put("a", 1, 2, 2), get("a", 2, 3, 4, 2), delete(5, 6, 3, 1), get(None, 0, 7, 8, 3)])
    assert testimony == witness.Testimony((), 4, ())


def test_a_revision_is_made_once():
    assert "made-twice" in rules([put("a", 1, 2, 2), put("b", 3, 4, 2)])


def test_the_first_write_makes_revision_two():
    assert "wrong-answer" in rules([put("a", 1, 2, 1)])


def test_writes_are_in_the_order_of_time():
    assert rules([put("a", 1, 2, 3), put("b", 3, 4, 2)]) == ["real-time"]
    assert rules([put("a", 1, 4, 3), put("b", 3, 5, 2)]) == []  # they overlap


def test_a_read_is_not_older_than_what_had_returned():
    writes = [put("a", 1, 2, 2), put("b", 3, 4, 3)]
    assert rules([*writes, get("a", 2, 5, 6, 2)]) == ["real-time"]
    assert rules([*writes, get("a", 2, 3, 6, 2)]) == []
    assert rules([*writes, get("b", 3, 5, 6, 3), get("b", 3, 7, 8, 2)]) == ["real-time", "wrong-answer"]


def test_a_write_called_after_a_read_makes_a_newer_revision():
    assert rules([put("a", 1, 9, 2), get("a", 2, 3, 4, 2), put("b", 5, 6, 3)]) == []
    assert rules([put("a", 1, 9, 2), put("b", 2, 10, 3), get("b", 3, 3, 4, 3), delete(5, 6, 3, 1, key="m")])


def test_an_answer_is_what_the_model_gives_at_its_revision():
    a = put("a", 1, 2, 2)
    assert rules([a, get("a", 2, 3, 4, 2)]) == []
    assert rules([a, get(None, 0, 3, 4, 2)]) == ["wrong-answer"]
    assert rules([a, delete(3, 4, 2, 0)]) == ["wrong-answer"]
    assert rules([a, delete(3, 4, 3, 1), delete(5, 6, 4, 1)]) == ["wrong-answer"]
    assert rules([a, put("b", 3, 4, 3, exp=2)]) == []
    assert rules([a, put("b", 3, 4, 3, exp=0)]) == ["wrong-answer"]
    assert rules([a, put("b", 3, 4, 2, exp=0, held=False, mod=2)]) == []
    assert rules([a, put("b", 3, 4, 2, exp=5, held=False, mod=0)]) == ["wrong-answer"]
    assert rules([a, put("b", 3, 4, 2, exp=2, held=False, mod=2)]) == ["wrong-answer"]


def test_a_range_is_one_state():
    a, b, c = put("a", 1, 2, 2), put("b", 3, 4, 3, key="m"), put("c", 5, 6, 4)

    def ranged(*items: Seen, rev: int) -> list[Operation]:
        return [a, b, c, Operation(client=9, op="range", call=3, ret=9, items=items, rev=rev)]

    assert rules(ranged(Seen("k", "c", 4), Seen("m", "b", 3), rev=4)) == []
    assert rules(ranged(Seen("k", "a", 2), Seen("m", "b", 3), rev=3)) == []
    assert rules(ranged(Seen("k", "c", 4), rev=4)) == ["wrong-answer"]
    assert rules(ranged(Seen("k", "a", 2), Seen("m", "b", 3), rev=4)) == ["wrong-answer"]
    assert rules(ranged(Seen("k", "c", 4, 2), Seen("m", "b", 3, 1), rev=4)) == []
    assert rules(ranged(Seen("k", "c", 4, 3), Seen("m", "b", 3, 1), rev=4)) == ["wrong-answer"]


def test_a_transaction_is_all_or_nothing():
    a = put("a", 1, 2, 2)
    both = txn(3, 4, 3, put("b", 3, None, exp=2), put("c", 3, None, key="m"))
    assert rules([a, both, get("b", 3, 5, 6, 3), get("c", 3, 7, 8, 3, key="m")]) == []
    assert rules([a, both, get("a", 2, 5, 6, 3)]) == ["wrong-answer"]
    assert rules([a, txn(3, 4, 2, put("b", 3, None, exp=0), held=False)]) == []
    assert rules([a, txn(3, 4, 2, put("b", 3, None, exp=2), held=False)]) == ["wrong-answer"]
    assert rules([a, txn(3, 4, 2, get("a", 2, 3, 4, 0))]) == []
    assert rules([a, txn(3, 4, 2, get(None, 0, 3, 4, 0))]) == ["wrong-answer"]


def test_one_mistake_is_told_once():
    lost = [put("a", 1, 2, 2, exp=7), get("a", 2, 3, 4, 2), get("a", 2, 5, 6, 2)]
    assert rules(lost) == ["wrong-answer", "orphan"]  # revision 7 is named, and nobody can have made it


def test_stale_reads_are_old_but_true_and_never_go_back_at_one_node():
    writes = [put("a", 1, 2, 2), put("b", 3, 4, 3)]

    def stale(value: str, mod: int, call: int, rev: int, client: int = 9, node: int = 1) -> Operation:
        return get(value, mod, call, call + 1, rev, client=client, node=node, consistency="stale")

    assert rules([*writes, stale("a", 2, 5, 2)]) == []
    assert rules([*writes, stale("a", 2, 5, 3)]) == ["wrong-answer"]
    assert rules([*writes, stale("b", 3, 5, 3), stale("a", 2, 7, 2)]) == ["went-back"]
    assert rules([*writes, stale("b", 3, 5, 3), stale("a", 2, 7, 2, node=2)]) == []
    assert rules([*writes, stale("b", 3, 5, 3), stale("a", 2, 7, 2, client=8)]) == []
    # What was shown was there, so that whoever asks afterwards must not see less.
    assert rules([put("a", 1, 20, 2), put("b", 2, 21, 3), stale("b", 3, 5, 3), get("a", 2, 7, 8, 2)]) == ["real-time"]


def test_an_unanswered_write_is_placed_where_its_value_was_seen():
    unanswered = put("b", 3, None)
    testimony = check([put("a", 1, 2, 2), unanswered, get("b", 3, 5, 6, 3)])
    assert testimony == witness.Testimony((), 3, ())
    assert rules([put("a", 1, 2, 2), unanswered, get("b", 3, 5, 6, 3), get("a", 2, 7, 8, 3)]) == ["wrong-answer"]
    assert rules([put("a", 1, 2, 2), put("b", 5, None), get("b", 2, 3, 4, 2)])  # revision 2 is another's
    assert rules([put("a", 1, 2, 2), put("b", 3, None, exp=1), get("b", 3, 5, 6, 3)]) == ["wrong-answer"]


def test_what_an_unanswered_delete_may_have_done_is_believed_and_told():
    a = put("a", 1, 2, 2)
    gone = get(None, 0, 5, 6, 3)
    testimony = check([a, delete(3, None), gone])
    assert testimony.problems == ()
    assert len(testimony.gaps) == 2
    assert rules([a, delete(7, None), gone]) == ["wrong-answer", "orphan"]  # it was called too late
    assert rules([a, delete(3, None), get(None, 0, 5, 6, 2)]) == ["wrong-answer"]  # there is no revision for it
    assert rules([a, delete(3, None, key="m"), gone]) == ["wrong-answer"]


def test_what_an_unanswered_write_may_have_done_unseen():
    unanswered = put("b", 3, None)
    assert rules([unanswered, delete(4, 5, 3, 1)]) == []
    assert rules([delete(4, 5, 3, 1)]) == ["wrong-answer", "orphan"]
    assert rules([unanswered, put("c", 4, 5, 2, exp=0, held=False, mod=2)]) == []
    assert rules([put("c", 4, 5, 2, exp=0, held=False, mod=2)]) == ["wrong-answer", "orphan"]
    refused = txn(4, 5, 3, put("c", 4, None, exp=2), held=False)
    assert rules([put("a", 1, 2, 2), unanswered, refused]) == []
    assert rules([put("a", 1, 2, 2), put("b", 6, None), refused]) == ["wrong-answer", "orphan"]  # called too late


def test_who_is_called_at_the_moment_of_a_return_may_come_before_it():
    assert rules([put("b", 1, 2, 3), put("a", 2, 3, 2)]) == []
    assert rules([put("b", 1, 2, 3), put("a", 3, 4, 2)]) == ["real-time"]


def test_every_revision_has_a_maker():
    a = put("a", 1, 2, 3)
    assert rules([a]) == ["orphan"]
    assert rules([put("b", 1, None, key="m"), a]) == []
    assert rules([put("b", 3, None, key="m"), a]) == ["orphan"]  # called after revision 3 was known
    assert rules([put("b", 1, None, key="m"), put("a", 1, 2, 4)]) == ["orphan"]  # one write, two revisions
    testimony = check([a], sole_writer=False)
    assert testimony.problems == ()
    assert testimony.gaps == ("1 revisions were made by somebody that nobody saw",)


def test_answers_without_a_revision_are_told():
    testimony = check([put("a", 1, 2), get("a", 0, 3, 4, 0)])
    assert testimony.problems == ()
    assert testimony.gaps == ("2 answers name no revision",)


def test_the_final_state_is_where_the_writes_lead():
    a, b = put("a", 1, 2, 2), put("b", 3, 4, 3)
    assert rules([a, b], {"k": Seen("k", "b", 3)}) == []
    assert rules([a, b], {"k": Seen("k", "a", 2)}) == ["wrong-answer"]
    assert rules([a, b], {}) == ["wrong-answer"]
    assert rules([a, b, delete(5, None)], {}) == []
    assert rules([a, put("b", 3, None)], {"k": Seen("k", "b", 3)}) == []
    assert rules([a], {"k": Seen("k", "a", 2), "m": Seen("m", "x", 3)}) == ["wrong-answer", "orphan"]
