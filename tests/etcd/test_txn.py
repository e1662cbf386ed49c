"""KV.Txn: what runs, in which order, at which revision, and what refuses it whole."""

from __future__ import annotations

from typing import Any

import pytest

from tests.etcd.operations import NEVER, Operation, compare, delete, delete_all, get, get_all, nested, put
from tests.etcd.target import INVALID_ARGUMENT, NOT_FOUND, OUT_OF_RANGE, Target
from tests.etcd.words import FAR_AHEAD, b64, interval, keys_of, pairs_of, prefix, revision_of, values_of

DUPLICATE = "etcdserver: duplicate key given in txn request"
KEY_NOT_FOUND = "etcdserver: key not found"
KEY_NOT_PROVIDED = "etcdserver: key is not provided"
FUTURE = "etcdserver: mvcc: required revision is a future revision"
NO_LEASE = 7654321


def refused(target: Target, body: dict[str, Any], code: int, message: str) -> None:
    """And nothing has changed."""
    before = target.revision()
    target.refused("kv/txn", body, code, message)
    assert target.revision() == before


# ── which branch ────────────────────────────────────────────────────────────────────────────────────


def test_the_branch_that_runs(target: Target, own: bytes) -> None:
    yes = compare(own, "VERSION", "EQUAL", version=0)
    found = target.txn(compare=[yes], success=[put(own, b"then")], failure=[put(own, b"else")])
    assert (found["succeeded"], list(found["responses"][0])) == (True, ["response_put"])
    assert values_of(target.range(key=b64(own))) == [b"then"]
    found = target.txn(compare=[yes], success=[put(own, b"then")], failure=[put(own, b"else"), get(own)])
    assert "succeeded" not in found, "a compare that fails is no error"
    assert [list(response) for response in found["responses"]] == [["response_put"], ["response_range"]]
    assert values_of(target.range(key=b64(own))) == [b"else"]


def test_a_branch_may_be_empty(target: Target, own: bytes) -> None:
    before = target.revision()
    found = target.txn(compare=[NEVER], success=[put(own)])
    assert (set(found), revision_of(found)) == ({"header"}, before)
    found = target.txn(failure=[put(own)])
    assert (set(found), revision_of(found)) == ({"header", "succeeded"}, before)
    assert set(target.range(key=b64(own))) == {"header"}


def test_create_if_absent_then_swap(target: Target, own: bytes) -> None:
    """What most clients do with transactions."""
    absent = compare(own, "CREATE", "EQUAL", create_revision="0")
    assert target.txn(compare=[absent], success=[put(own, b"1")])["succeeded"] is True
    found = target.txn(compare=[absent], success=[put(own, b"2")], failure=[get(own)])
    [kv] = found["responses"][0]["response_range"]["kvs"]
    unchanged = compare(own, "MOD", "EQUAL", mod_revision=kv["mod_revision"])
    assert target.txn(compare=[unchanged], success=[put(own, b"3")])["succeeded"] is True
    assert "succeeded" not in target.txn(compare=[unchanged], success=[put(own, b"4")])
    mine = compare(own, "VALUE", "EQUAL", value=b64("3"))
    assert target.txn(compare=[mine], success=[delete(own)])["succeeded"] is True


# ── order and effects ───────────────────────────────────────────────────────────────────────────────


def test_operations_see_what_those_before_them_did(target: Target, own: bytes) -> None:
    a, b, c = own + b"a", own + b"b", own + b"c"
    target.put(b64(a), b64("old"))
    target.put(b64(c), b64("old"))
    look = get_all(prefix(own))
    found = target.txn(success=[look, put(a, b"new"), look, put(b, b"1"), look, delete(c), look, delete(c), look])
    shown = [pairs_of(response["response_range"]) for response in found["responses"][::2]]
    assert shown == [
        [(a, b"old"), (c, b"old")],
        [(a, b"new"), (c, b"old")],
        [(a, b"new"), (b, b"1"), (c, b"old")],
        [(a, b"new"), (b, b"1")],
        [(a, b"new"), (b, b"1")],
    ]
    assert found["responses"][5]["response_delete_range"]["deleted"] == "1"
    assert set(found["responses"][7]["response_delete_range"]) == {"header"}, "it is gone already"


def test_answers_come_in_the_order_of_the_operations(target: Target, own: bytes) -> None:
    found = target.txn(success=[get(own), delete(own + b"d"), nested(), put(own), put(own + b"1"), get(own)])
    assert [list(response) for response in found["responses"]] == [
        ["response_range"],
        ["response_delete_range"],
        ["response_txn"],
        ["response_put"],
        ["response_put"],
        ["response_range"],
    ]


def test_all_changes_share_one_revision(target: Target, own: bytes) -> None:
    target.put(b64(own + b"d"), b64("1"))
    before = target.revision()
    names = [own + b"%d" % number for number in range(5)]
    found = target.txn(success=[*(put(name, name) for name in names), delete(own + b"d"), nested(success=[put(own)])])
    assert revision_of(found) == before + 1
    kvs = target.range(**prefix(own))["kvs"]
    assert {kv["mod_revision"] for kv in kvs} == {kv["create_revision"] for kv in kvs} == {str(before + 1)}
    assert len(kvs) == 6
    assert len(target.range(**prefix(own), revision=before)["kvs"]) == 1


def test_what_changes_nothing_makes_no_revision(target: Target, own: bytes) -> None:
    before = revision_of(target.put(b64(own), b64("1")))
    for operations in ([], [get(own)], [delete(own + b"none")], [delete_all(prefix(own + b"none"))], [nested()]):
        assert revision_of(target.txn(success=operations)) == before
    assert revision_of(target.txn(compare=[NEVER], success=[put(own)], failure=[get(own)])) == before
    assert target.revision() == before


def test_headers_inside_carry_the_revision_at_that_point(target: Target, own: bytes) -> None:
    before = revision_of(target.put(b64(own + b"d"), b64("1")))
    found = target.txn(
        success=[
            *(get(own), delete(own + b"none"), put(own + b"1"), get(own), delete(own + b"none")),
            *(delete(own + b"d"), put(own + b"2"), get(own), nested(success=[get(own), put(own + b"3")])),
        ]
    )
    *flat, deep = found["responses"]
    headers = [inner["header"] for response in flat for inner in response.values()]
    assert headers == [{"revision": str(before)}] * 2 + [{"revision": str(before + 1)}] * 6
    assert deep["response_txn"]["header"] == {}
    headers = [inner["header"] for response in deep["response_txn"]["responses"] for inner in response.values()]
    assert headers == [{"revision": str(before + 1)}] * 2


def test_previous_values_are_those_just_before(target: Target, own: bytes) -> None:
    target.put(b64(own + b"1"), b64("a"))
    target.put(b64(own + b"2"), b64("b"))
    [first, second] = target.range(**prefix(own))["kvs"]
    found = target.txn(
        success=[
            put(own + b"1", b"x", prev_kv=True),
            put(own + b"3", b"y", prev_kv=True),
            delete(own + b"2", prev_kv=True),
            delete(own + b"2", prev_kv=True),
        ]
    )
    assert found["responses"][0]["response_put"]["prev_kv"] == first
    assert "prev_kv" not in found["responses"][1]["response_put"]
    assert found["responses"][2]["response_delete_range"]["prev_kvs"] == [second]
    assert "prev_kvs" not in found["responses"][3]["response_delete_range"]


def test_ranges_inside_have_every_option(target: Target, own: bytes) -> None:
    for name, value in ((b"a", "2"), (b"b", "3"), (b"c", "1")):
        last = revision_of(target.put(b64(own + name), b64(value)))
    every = prefix(own)

    def inside(**options: Any) -> dict[str, Any]:
        [response] = target.txn(success=[get_all(every, **options)])["responses"]
        found: dict[str, Any] = response["response_range"]
        assert found.pop("header") == {"revision": str(last)}
        return found

    for options in (
        {},
        {"limit": 2},
        {"limit": 3},
        {"limit": 1, "sort_target": "VALUE", "sort_order": "DESCEND"},
        {"sort_target": "MOD", "sort_order": "DESCEND", "keys_only": True},
        {"count_only": True},
        {"count_only": True, "limit": 1},
        {"min_mod_revision": last, "serializable": True},
        {"max_create_revision": last - 1, "limit": 1},
        {"revision": last - 1},
        {"revision": last - 2, "limit": 5, "sort_order": "DESCEND"},
    ):
        plain = target.range(**every, **options)
        del plain["header"]
        assert inside(**options) == plain, options


def test_a_lease_inside(target: Target, own: bytes) -> None:
    lease = target.ok("lease/grant", {"TTL": 60})["ID"]
    target.txn(success=[put(own + b"1", b"x", lease=lease), nested(success=[put(own + b"2", b"y", lease=lease)])])
    assert [kv["lease"] for kv in target.range(**prefix(own))["kvs"]] == [lease, lease]
    target.txn(success=[put(own + b"1", b"z", ignore_lease=True), put(own + b"2", ignore_value=True)])
    first, second = target.range(**prefix(own))["kvs"]
    assert (first["lease"], first["value"]) == (lease, b64("z"))
    assert ("lease" in second, second["value"]) == (False, b64("y"))
    target.ok("lease/revoke", {"ID": lease})
    assert keys_of(target.range(**prefix(own))) == [own + b"2"]


# ── nested ──────────────────────────────────────────────────────────────────────────────────────────


def test_nested_branches_run_where_they_stand(target: Target, own: bytes) -> None:
    target.put(b64(own), b64("1"))
    one = compare(own, "VALUE", "EQUAL", value=b64("1"))
    found = target.txn(
        success=[
            get(own),
            nested([one], [put(own, b"2")], [put(own, b"3")]),
            get(own),
            nested([NEVER], [put(own + b"x")], [get(own), nested(success=[put(own + b"y"), get(own + b"y")])]),
        ]
    )
    first, second, third, fourth = found["responses"]
    assert values_of(first["response_range"]) == [b"1"]
    assert second["response_txn"]["succeeded"] is True
    assert list(second["response_txn"]["responses"][0]) == ["response_put"]
    assert values_of(third["response_range"]) == [b"2"]
    assert "succeeded" not in fourth["response_txn"]
    inner, deepest = fourth["response_txn"]["responses"]
    assert values_of(inner["response_range"]) == [b"2"]
    assert deepest["response_txn"]["succeeded"] is True
    assert keys_of(deepest["response_txn"]["responses"][1]["response_range"]) == [own + b"y"]


def test_all_compares_see_the_state_before_the_txn(target: Target, own: bytes) -> None:
    target.put(b64(own), b64("old"))
    old = compare(own, "VALUE", "EQUAL", value=b64("old"))
    new = compare(own, "VALUE", "EQUAL", value=b64("new"))
    there = compare(own + b"1", "VERSION", "GREATER", version=0)
    found = target.txn(
        compare=[old],
        success=[put(own, b"new"), put(own + b"1"), nested([old]), nested([new]), nested([there])],
    )
    assert [response["response_txn"].get("succeeded") for response in found["responses"][2:]] == [True, None, None]


def test_a_nested_txn_may_be_empty(target: Target) -> None:
    found = target.txn(success=[{"request_txn": {}}, nested([NEVER])])
    assert found["responses"] == [{"response_txn": {"header": {}, "succeeded": True}}, {"response_txn": {"header": {}}}]


@pytest.mark.parametrize("depth", [2, 10, 25])
def test_nesting_deeply(target: Target, own: bytes, depth: int) -> None:
    operation = put(own, b"deep")
    for _ in range(depth):
        operation = nested([compare(own, "VERSION", "EQUAL", version=0)], [operation])
    found = target.txn(success=[operation])
    for _ in range(depth):
        found = found["responses"][0]["response_txn"]
        assert found["succeeded"] is True
    assert list(found["responses"][0]) == ["response_put"]
    assert values_of(target.range(key=b64(own))) == [b"deep"]


# ── duplicates ──────────────────────────────────────────────────────────────────────────────────────


def duplicates(a: bytes) -> list[list[Operation]]:
    b = a + b"b"
    around = interval(a, a + b"c")
    return [
        [put(a), put(a)],
        [put(a, b"1"), get(a), put(a, b"1")],
        [put(a), delete(a)],
        [delete(a), put(a)],
        [delete_all(around), put(b)],
        [put(b), delete_all(around)],
        [put(a), nested(success=[put(a)])],
        [nested(success=[put(a)]), put(a)],
        [nested(failure=[put(a)]), put(a)],
        [nested(success=[put(a)]), nested(success=[put(a)])],
        [nested(success=[put(a)]), nested(failure=[put(a)])],
        [delete_all(around), nested(success=[put(b)])],
        [nested(failure=[put(b)]), delete_all(around)],
        [put(b), nested(success=[delete_all(around)])],
        [nested(success=[nested(failure=[put(a)])]), put(a)],
        [nested(success=[put(a), put(a)])],
        [nested(failure=[put(a), delete(a)])],
    ]


@pytest.mark.parametrize("number", range(len(duplicates(b""))))
def test_a_key_is_put_once_and_not_deleted_too(target: Target, own: bytes, number: int) -> None:
    operations = duplicates(own)[number]
    refused(target, {"success": operations}, INVALID_ARGUMENT, DUPLICATE)
    refused(target, {"failure": operations}, INVALID_ARGUMENT, DUPLICATE)
    refused(target, {"success": [put(own + b"x")], "failure": operations}, INVALID_ARGUMENT, DUPLICATE)


def test_what_is_no_duplicate(target: Target, own: bytes) -> None:
    a, b = own + b"a", own + b"b"
    around = interval(own, own + b"b")
    for operations in (
        [delete_all(around), delete_all(around), delete(a)],
        [put(a), get(a), get(a)],
        [put(b), delete_all(around)],
        [nested([NEVER], [put(a)], [put(a, b"else")])],
        [nested([NEVER], [put(a)], [delete(a)])],
        [nested(success=[put(a)], failure=[delete_all(around)])],
        [nested(success=[put(a)]), put(b)],
        [nested(success=[delete_all(around)]), nested(success=[delete_all(around)])],
        [put(a), put(a + b"\0"), delete(a + b"\0\0")],
    ):
        target.txn(success=operations)
    target.txn(success=[put(a)], failure=[put(a), delete(b)])
    target.txn(compare=[NEVER], success=[put(a)], failure=[delete(a)])
    assert keys_of(target.range(key=b64(a))) == []


# ── what refuses it whole ───────────────────────────────────────────────────────────────────────────


def test_an_operation_without_anything(target: Target, own: bytes) -> None:
    empties: list[Operation] = [{}, {"nope": {}}]
    for empty in empties:
        for operations in ([empty], [put(own), empty], [nested(success=[empty])]):
            refused(target, {"success": operations}, INVALID_ARGUMENT, KEY_NOT_FOUND)
            refused(target, {"failure": operations}, INVALID_ARGUMENT, KEY_NOT_FOUND)


@pytest.mark.parametrize("name", ["request_range", "request_put", "request_delete_range"])
def test_a_key_is_needed_in_both_branches(target: Target, own: bytes, name: str) -> None:
    for body in ({}, {"key": ""}):
        for branch in ("success", "failure"):
            refused(target, {branch: [put(own), {name: body}]}, INVALID_ARGUMENT, KEY_NOT_PROVIDED)
            refused(target, {branch: [nested(failure=[{name: body}])]}, INVALID_ARGUMENT, KEY_NOT_PROVIDED)


def test_flags_are_checked_in_both_branches(target: Target, own: bytes) -> None:
    for operation, message in (
        (put(own, b"x", ignore_value=True), "etcdserver: value is provided"),
        (put(own, ignore_lease=True, lease=NO_LEASE), "etcdserver: lease is provided"),
    ):
        for branch in ("success", "failure"):
            refused(target, {branch: [put(own + b"1"), operation]}, INVALID_ARGUMENT, message)
            refused(target, {branch: [nested(success=[operation])]}, INVALID_ARGUMENT, message)


def test_a_nested_compare_needs_a_key(target: Target) -> None:
    refused(target, {"failure": [nested([{"target": "MOD"}])]}, INVALID_ARGUMENT, KEY_NOT_PROVIDED)


STATE = [
    (put(b"?", lease=NO_LEASE), NOT_FOUND, "etcdserver: requested lease not found"),
    (put(b"?", ignore_value=True), INVALID_ARGUMENT, KEY_NOT_FOUND),
    (put(b"?", ignore_lease=True), INVALID_ARGUMENT, KEY_NOT_FOUND),
    (get(b"?", revision=FAR_AHEAD), OUT_OF_RANGE, FUTURE),
]


@pytest.mark.parametrize("number", range(len(STATE)))
def test_what_depends_on_the_state_is_checked_where_it_runs(target: Target, own: bytes, number: int) -> None:
    template, code, message = STATE[number]
    [(name, body)] = template.items()
    operation = {name: {**body, "key": b64(own)}}
    other = put(own + b"1", b"must not come")
    refused(target, {"success": [other, operation]}, code, message)
    refused(target, {"compare": [NEVER], "failure": [other, operation]}, code, message)
    refused(target, {"success": [other, nested(success=[operation])]}, code, message)
    assert set(target.range(**prefix(own))) == {"header"}
    assert target.txn(success=[other], failure=[operation])["succeeded"] is True
    assert target.txn(success=[nested([NEVER], [operation])])["succeeded"] is True
    assert "succeeded" not in target.txn(compare=[NEVER], success=[operation], failure=[other])


def test_a_range_may_not_look_at_the_revision_being_made(target: Target, own: bytes) -> None:
    now = target.revision()
    refused(target, {"success": [put(own), get(own, revision=now + 1)]}, OUT_OF_RANGE, FUTURE)
    found = target.txn(success=[put(own), get(own, revision=now)])
    assert set(found["responses"][1]["response_range"]) == {"header"}


def test_what_is_kept_must_exist_before_the_txn(target: Target, own: bytes) -> None:
    target.put(b64(own), b64("1"))
    found = target.txn(success=[put(own, ignore_value=True, prev_kv=True), get(own)])
    assert values_of(found["responses"][1]["response_range"]) == [b"1"]
    target.delete(key=b64(own))
    refused(target, {"success": [put(own, ignore_value=True)]}, INVALID_ARGUMENT, KEY_NOT_FOUND)


# ── limits ──────────────────────────────────────────────────────────────────────────────────────────

TOO_MANY = "etcdserver: too many operations in txn request"


def test_at_most_128_of_each(target: Target, own: bytes) -> None:
    names = [own + b"%03d" % number for number in range(129)]
    compares = [compare(name, "VERSION", "EQUAL", version=0) for name in names]
    puts, gets = list(map(put, names)), list(map(get, names))
    refused(target, {"compare": compares}, INVALID_ARGUMENT, TOO_MANY)
    refused(target, {"success": puts}, INVALID_ARGUMENT, TOO_MANY)
    refused(target, {"success": gets}, INVALID_ARGUMENT, TOO_MANY)
    refused(target, {"failure": puts}, INVALID_ARGUMENT, TOO_MANY)
    found = target.txn(compare=compares[:128], success=puts[:128], failure=gets[:128])
    assert (found["succeeded"], len(found["responses"])) == (True, 128)
    found = target.txn(compare=compares[:128], success=puts[:128], failure=gets[:128])
    assert [keys_of(response["response_range"]) for response in found["responses"]] == [[name] for name in names[:128]]


def test_a_nested_txn_has_what_its_parent_leaves(target: Target, own: bytes) -> None:
    gets = [get(own + b"%03d" % number) for number in range(128)]
    assert target.txn(success=[nested(success=gets[:127])])["succeeded"] is True
    refused(target, {"success": [nested(success=gets)]}, INVALID_ARGUMENT, TOO_MANY)
    parent = [*gets[:99], nested(success=gets[:28], failure=gets[:28])]
    assert target.txn(success=parent)["succeeded"] is True
    refused(target, {"success": [*gets[:99], nested(failure=gets[:29])]}, INVALID_ARGUMENT, TOO_MANY)
    refused(target, {"success": [nested(success=gets[:29])], "failure": gets[:100]}, INVALID_ARGUMENT, TOO_MANY)
    deeper = [nested(success=[*gets[:27], nested(success=gets[:99])])]
    assert target.txn(success=deeper)["responses"][0]["response_txn"]["succeeded"] is True
    refused(target, {"success": [nested(success=[*gets[:27], nested(success=gets[:100])])]}, INVALID_ARGUMENT, TOO_MANY)


# ── reads only ──────────────────────────────────────────────────────────────────────────────────────


def test_reads_see_one_state(target: Target, own: bytes) -> None:
    revision = revision_of(target.put(b64(own), b64("1")))
    for options in ({}, {"serializable": True}):
        found = target.txn(
            compare=[compare(own, "VERSION", "EQUAL", version=1)],
            success=[get(own, **options), get_all(prefix(own), **options)],
            failure=[get(own, **options)],
        )
        assert (found["succeeded"], revision_of(found)) == (True, revision)
        first, second = (response["response_range"] for response in found["responses"])
        assert first == second
