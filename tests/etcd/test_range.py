"""KV.Range: intervals, the past, sorting, filters, limits, and how they combine."""

from __future__ import annotations

from typing import Any

import pytest

from tests.etcd.target import OUT_OF_RANGE, Target
from tests.etcd.words import (
    EVERYTHING_FROM,
    FAR_AHEAD,
    b64,
    interval,
    keys_of,
    pairs_of,
    prefix,
    prefix_end,
    revision_of,
    unb64,
    values_of,
)

FUTURE = "etcdserver: mvcc: required revision is a future revision"


class Letters:
    """Keys a to e under a prefix: created in the order c, a, e, b, d; then a and c were put again."""

    def __init__(self, target: Target, own: bytes) -> None:
        self.own = own
        self.before = target.revision()
        self.at: dict[bytes, int] = {}  # mod revisions
        self.created: dict[bytes, int] = {}
        for letter, value in zip(b"caebdac", b"5137246", strict=True):
            name = bytes([letter])
            revision = revision_of(target.put(b64(own + name), b64(bytes([value]))))
            self.created.setdefault(name, revision)
            self.at[name] = revision
        self.now = max(self.at.values())
        self.all = prefix(own)

    def of(self, answer: dict[str, Any]) -> bytes:
        """The letters of an answer, in its order."""
        return b"".join(key.removeprefix(self.own) for key in keys_of(answer))


@pytest.fixture
def letters(target: Target, own: bytes) -> Letters:
    return Letters(target, own)


def test_one_key(target: Target, letters: Letters) -> None:
    found = target.range(key=b64(letters.own + b"a"))
    assert found["kvs"] == [
        {
            "key": b64(letters.own + b"a"),
            "create_revision": str(letters.created[b"a"]),
            "mod_revision": str(letters.at[b"a"]),
            "version": "2",
            "value": b64("4"),
        }
    ]
    assert found["count"] == "1"
    assert "more" not in found
    assert revision_of(found) == letters.now


def test_a_missing_key_and_a_mere_prefix(target: Target, letters: Letters) -> None:
    for key in (letters.own + b"x", letters.own, letters.own + b"a\0", letters.own[:-1]):
        assert set(target.range(key=b64(key))) == {"header"}


def test_an_interval_is_half_open(target: Target, letters: Letters) -> None:
    own = letters.own
    found = target.range(**interval(own + b"b", own + b"d"))
    assert (letters.of(found), found["count"]) == (b"bc", "2")
    found = target.range(**interval(own + b"b\0", own + b"d\0"))
    assert letters.of(found) == b"cd"


def test_all_keys_with_a_prefix(target: Target, letters: Letters) -> None:
    found = target.range(**letters.all)
    assert (letters.of(found), values_of(found), found["count"]) == (b"abcde", [b"4", b"7", b"6", b"2", b"3"], "5")


def test_prefixes_that_end_in_the_last_byte(target: Target, own: bytes) -> None:
    for name in (b"\xfe", b"\xff", b"\xff\xff", b"\xffa"):
        target.put(b64(own + name))
    assert prefix_end(own + b"\xff\xff") == prefix_end(own)
    assert keys_of(target.range(**prefix(own + b"\xff"))) == [own + b"\xff", own + b"\xffa", own + b"\xff\xff"]
    # A client may raise the last byte below 0xff and keep what follows.
    found = target.range(**interval(own + b"\xff", prefix_end(own) + b"\xff"))
    assert keys_of(found)[:3] == [own + b"\xff", own + b"\xffa", own + b"\xff\xff"]


@pytest.mark.parametrize("end", [b"b", b"a", b"a\0", b"", b"\x01"])
def test_an_interval_that_ends_before_it_begins_has_nothing(target: Target, letters: Letters, end: bytes) -> None:
    found = target.range(**interval(letters.own + b"b", letters.own + end))
    assert set(found) == {"header"}
    assert set(target.range(**interval(letters.own + b"b", b"\x01"))) == {"header"}


def test_a_zero_byte_as_end_means_to_the_last_key(target: Target, letters: Letters) -> None:
    found = target.range(key=b64(letters.own + b"c"), range_end=EVERYTHING_FROM)
    assert letters.of(found)[:3] == b"cde"
    last = b"\xff" * 20 + letters.own
    target.put(b64(last), b64("last"))
    found = target.range(key=b64(letters.own + b"c"), range_end=EVERYTHING_FROM)
    assert keys_of(found)[-1] == last
    assert keys_of(found) == sorted(keys_of(found))
    everything = target.range(key="AA==", range_end="AA==")
    assert {letters.own + b"a", last} <= set(keys_of(everything))
    assert int(everything["count"]) == len(everything["kvs"])
    assert pairs_of(target.range(key=b64(b"\xff" * 20), range_end=EVERYTHING_FROM))[-1] == (last, b"last")
    target.delete(key=b64(last))


def test_two_zero_bytes_as_end_are_an_ordinary_end(target: Target, letters: Letters) -> None:
    assert set(target.range(**interval(letters.own, b"\0\0"))) == {"header"}


# ── limit, count, keys ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("limit", "shown", "more"),
    [
        *((1, b"a", True), (4, b"abcd", True)),
        *((number, b"abcde", False) for number in (5, 6, 0, -1)),
    ],
)
def test_limit(target: Target, letters: Letters, limit: int, shown: bytes, more: bool) -> None:
    found = target.range(**letters.all, limit=limit)
    assert (letters.of(found), found["count"]) == (shown, "5"), "the count ignores the limit"
    assert found.get("more") is (True if more else None)


def test_count_only(target: Target, letters: Letters) -> None:
    assert target.range(**letters.all, count_only=True)["count"] == "5"
    for more in ({"limit": 2}, {"sort_order": "DESCEND", "sort_target": "MOD"}, {"keys_only": True}):
        found = target.range(**letters.all, count_only=True, **more)
        assert set(found) == {"header", "count"}
        assert found["count"] == "5"
    assert target.range(key=b64(letters.own + b"a"), count_only=True)["count"] == "1"
    assert set(target.range(key=b64(letters.own), count_only=True)) == {"header"}
    found = target.range(**letters.all, count_only=True, min_mod_revision=letters.now)
    assert (set(found), found["count"]) == ({"header", "count"}, "5"), "filters do not change the count"


def test_keys_only(target: Target, letters: Letters) -> None:
    whole = target.range(**letters.all)
    found = target.range(**letters.all, keys_only=True)
    assert found["count"] == "5"
    for kv, shown in zip(whole["kvs"], found["kvs"], strict=True):
        assert {name: text for name, text in kv.items() if name != "value"} == shown


def test_keys_only_sorts_by_values_all_the_same(target: Target, letters: Letters) -> None:
    found = target.range(**letters.all, keys_only=True, sort_target="VALUE")
    assert letters.of(found) == b"deacb"
    assert not any("value" in kv for kv in found["kvs"])


def test_a_key_with_a_lease_shows_it(target: Target, own: bytes) -> None:
    lease = target.ok("lease/grant", {"TTL": 60})["ID"]
    target.put(b64(own), lease=lease)
    [kv] = target.range(key=b64(own), keys_only=True)["kvs"]
    assert kv["lease"] == lease
    target.ok("lease/revoke", {"ID": lease})


# ── sorting ─────────────────────────────────────────────────────────────────────────────────────────

SORTED = {"KEY": b"abcde", "CREATE": b"caebd", "MOD": b"ebdac", "VALUE": b"deacb"}


@pytest.mark.parametrize("sort_target", list(SORTED))
@pytest.mark.parametrize("order", ["NONE", "ASCEND", "DESCEND"])
def test_sorting(target: Target, letters: Letters, sort_target: str, order: str) -> None:
    """Without an order, etcd sorts what the limit leaves and one key more, and cuts again: either is right then."""
    expected = SORTED[sort_target]
    if order == "DESCEND":
        expected = expected[::-1]
    found = target.range(**letters.all, sort_target=sort_target, sort_order=order)
    assert (letters.of(found), found["count"]) == (expected, "5")
    for limit in (1, 3, 5):
        found = target.range(**letters.all, sort_target=sort_target, sort_order=order, limit=limit)
        left = bytes(letter for letter in expected if order != "NONE" or letter in b"abcde"[: limit + 1])
        assert letters.of(found) in {expected[:limit], left[:limit]}, "sorted first, cut then"
        assert (found.get("more"), found["count"]) == (True if limit < 5 else None, "5")


def test_sorting_by_version(target: Target, letters: Letters) -> None:
    target.put(b64(letters.own + b"d"))
    target.put(b64(letters.own + b"d"))
    found = target.range(**letters.all, sort_target="VERSION", sort_order="DESCEND")
    assert [kv["version"] for kv in found["kvs"]] == ["3", "2", "2", "1", "1"]
    assert letters.of(found)[:1] == b"d"
    found = target.range(**letters.all, sort_target="VERSION", sort_order="ASCEND", limit=2)
    assert sorted(letters.of(found)) == sorted(b"be")


def test_sorting_by_value_is_by_bytes(target: Target, own: bytes) -> None:
    values = [b"b", b"", b"aa", b"a", b"\xff", b"B", b"a\0"]
    for number, value in enumerate(values):
        target.put(b64(own + b"%d" % number), b64(value))
    found = target.range(**prefix(own), sort_target="VALUE", sort_order="ASCEND")
    assert values_of(found) == sorted(values)


# ── filters ─────────────────────────────────────────────────────────────────────────────────────────


def test_filters_keep_their_bounds(target: Target, letters: Letters) -> None:
    at, created = letters.at, letters.created
    b, d = at[b"b"], at[b"d"]
    assert letters.of(target.range(**letters.all, min_mod_revision=d)) == b"acd"
    assert letters.of(target.range(**letters.all, max_mod_revision=b)) == b"be"
    assert letters.of(target.range(**letters.all, min_mod_revision=b, max_mod_revision=d)) == b"bd"
    assert letters.of(target.range(**letters.all, min_create_revision=created[b"e"])) == b"bde"
    assert letters.of(target.range(**letters.all, max_create_revision=created[b"a"])) == b"ac"
    both = target.range(**letters.all, min_mod_revision=at[b"a"], max_create_revision=created[b"c"])
    assert letters.of(both) == b"c"
    none = target.range(**letters.all, min_mod_revision=d, max_mod_revision=b)
    assert (none.get("kvs"), none["count"]) == (None, "5"), "the count ignores filters"


def test_a_filter_of_zero_is_none(target: Target, letters: Letters) -> None:
    zeros = dict.fromkeys(("min_mod_revision", "max_mod_revision", "min_create_revision", "max_create_revision"), 0)
    assert letters.of(target.range(**letters.all, **zeros)) == b"abcde"


def test_filters_come_before_the_limit(target: Target, letters: Letters) -> None:
    found = target.range(**letters.all, min_mod_revision=letters.at[b"d"], limit=2)
    assert (letters.of(found), found.get("more"), found["count"]) == (b"ac", True, "5")
    found = target.range(**letters.all, min_mod_revision=letters.at[b"d"], limit=3)
    assert (letters.of(found), found.get("more"), found["count"]) == (b"acd", None, "5")


def test_filters_sort_and_limit_together(target: Target, letters: Letters) -> None:
    sort = {"sort_target": "VALUE", "sort_order": "DESCEND"}
    found = target.range(**letters.all, **sort, min_mod_revision=letters.at[b"b"], limit=2)
    assert (letters.of(found), found.get("more")) == (b"bc", True)
    found = target.range(**letters.all, **sort, min_mod_revision=letters.at[b"b"], limit=4, keys_only=True)
    assert (letters.of(found), found.get("more")) == (b"bcad", None)


def test_filters_on_one_key(target: Target, letters: Letters) -> None:
    found = target.range(key=b64(letters.own + b"a"), max_mod_revision=letters.at[b"a"] - 1)
    assert (set(found), found["count"]) == ({"header", "count"}, "1")


# ── the past ────────────────────────────────────────────────────────────────────────────────────────


def test_a_revision_shows_the_state_as_of_it(target: Target, letters: Letters) -> None:
    own = letters.own
    shown = {
        letters.before: b"",
        letters.before + 1: b"c",
        letters.before + 3: b"ace",
        letters.before + 5: b"abcde",
    }
    for revision, expected in shown.items():
        found = target.range(**letters.all, revision=revision)
        assert letters.of(found) == expected
        assert revision_of(found) == letters.now, "the header tells the current one"
        assert int(found.get("count", 0)) == len(expected)
    [kv] = target.range(key=b64(own + b"a"), revision=letters.at[b"a"] - 1)["kvs"]
    assert (kv["version"], kv["value"], kv["mod_revision"]) == ("1", b64("1"), str(letters.created[b"a"]))


def test_the_past_with_every_option(target: Target, letters: Letters) -> None:
    past = {**letters.all, "revision": letters.before + 5}
    assert letters.of(target.range(**past, sort_target="VALUE")) == b"adecb"
    found = target.range(**past, sort_target="MOD", sort_order="DESCEND", limit=2)
    assert (letters.of(found), found["more"], found["count"]) == (b"db", True, "5")
    assert letters.of(target.range(**past, max_mod_revision=letters.before + 2)) == b"ac"
    assert target.range(**{**past, "revision": letters.before + 2}, count_only=True)["count"] == "2"
    assert "value" not in target.range(**past, keys_only=True, serializable=True)["kvs"][0]


def test_deleted_keys_are_there_in_the_past(target: Target, letters: Letters) -> None:
    gone = revision_of(target.delete(**letters.all))
    assert set(target.range(**letters.all)) == {"header"}
    assert set(target.range(**letters.all, revision=gone)) == {"header"}
    assert letters.of(target.range(**letters.all, revision=gone - 1)) == b"abcde"


@pytest.mark.parametrize("revision", [0, -1, "-9223372036854775808"])
def test_no_revision_is_the_current_one(target: Target, letters: Letters, revision: Any) -> None:
    assert letters.of(target.range(**letters.all, revision=revision)) == b"abcde"


def test_a_revision_of_the_future_is_refused(target: Target, letters: Letters) -> None:
    for revision in (letters.now + 1, FAR_AHEAD, (1 << 63) - 1):
        target.refused("kv/range", {**letters.all, "revision": revision}, OUT_OF_RANGE, FUTURE)
        target.refused("kv/range", {"key": "YQ==", "revision": str(revision), "count_only": True}, OUT_OF_RANGE, FUTURE)


# ── consistency ─────────────────────────────────────────────────────────────────────────────────────


def test_a_read_sees_every_write_before_it(target: Target, own: bytes) -> None:
    for number in range(20):
        revision = revision_of(target.put(b64(own), b64(b"%d" % number)))
        found = target.range(key=b64(own))
        assert values_of(found) == [b"%d" % number]
        assert revision_of(found) == revision


def test_serializable_reads_have_the_same_form(target: Target, letters: Letters) -> None:
    target.range(**letters.all)  # linearizable: the member that answers has applied the writes
    for more in ({}, {"limit": 2}, {"sort_target": "MOD", "sort_order": "DESCEND"}, {"revision": letters.now - 1}):
        plain = target.range(**letters.all, **more)
        found = target.range(**letters.all, **more, serializable=True)
        assert found == plain


# ── many ────────────────────────────────────────────────────────────────────────────────────────────


def test_many_keys(target: Target, own: bytes) -> None:
    """More than fit into a page of any store; in transactions of a hundred."""
    names = [own + b"%04d" % number for number in range(1200)]
    for hundred in (names[at : at + 100] for at in range(0, len(names), 100)):
        target.txn(success=[{"request_put": {"key": b64(name), "value": b64(name)}} for name in hundred])
    found = target.range(**prefix(own))
    assert (keys_of(found), found["count"], found.get("more")) == (names, "1200", None)
    found = target.range(**prefix(own), limit=1100)
    assert (keys_of(found), found["count"], found.get("more")) == (names[:1100], "1200", True)
    found = target.range(**prefix(own), limit=3, sort_order="DESCEND")
    assert (keys_of(found), found["count"], found["more"]) == (names[:-4:-1], "1200", True)
    assert target.range(**prefix(own), count_only=True)["count"] == "1200"
    inside = target.txn(success=[{"request_range": prefix(own)}])["responses"][0]["response_range"]
    assert (len(inside["kvs"]), inside["count"], inside.get("more")) == (1200, "1200", None)
    deleted = target.delete(**prefix(own), prev_kv=True)
    assert (deleted["deleted"], [unb64(kv["key"]) for kv in deleted["prev_kvs"]]) == ("1200", names)
