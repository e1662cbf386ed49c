"""The conditions of a transaction: what each target and operator says, of keys that exist, that do not, and of many."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from tests.etcd.operations import compare, nested
from tests.etcd.target import INVALID_ARGUMENT, Target
from tests.etcd.words import EVERYTHING_FROM, b64, prefix_end, revision_of

RESULTS = ("EQUAL", "GREATER", "LESS", "NOT_EQUAL")
UNIONS = {
    "VERSION": "version",
    "CREATE": "create_revision",
    "MOD": "mod_revision",
    "VALUE": "value",
    "LEASE": "lease",
}


def holds(target: Target, *compares: dict[str, Any]) -> bool:
    succeeded = target.txn(compare=list(compares)).get("succeeded", False)
    assert isinstance(succeeded, bool)
    return succeeded


def verdicts(target: Target, compares: list[dict[str, Any]]) -> list[bool]:
    """Of each one alone: as many as a request may hold are asked at once, each in a nested transaction."""
    found: list[bool] = []
    for begin in range(0, len(compares), 100):
        asked = [nested([compare]) for compare in compares[begin : begin + 100]]
        responses = target.txn(success=asked)["responses"]
        found += [response["response_txn"].get("succeeded", False) for response in responses]
    return found


def assert_verdicts(target: Target, cases: list[tuple[dict[str, Any], bool]]) -> None:
    found = verdicts(target, [asked for asked, _ in cases])
    wrong = [asked for (asked, right), is_held in zip(cases, found, strict=True) if is_held is not right]
    assert not wrong


def expected(stored: Any, result: str, given: Any) -> bool:
    """`<stored> <result> <given>`."""
    outcomes: dict[str, bool] = {
        "EQUAL": stored == given,
        "GREATER": stored > given,
        "LESS": stored < given,
        "NOT_EQUAL": stored != given,
    }
    return outcomes[result]


@pytest.mark.parametrize("of", ["VERSION", "CREATE", "MOD", "LEASE"])
def test_numbers_of_a_key(target: Target, own: bytes, of: str) -> None:
    lease = target.ok("lease/grant", {"TTL": 60})["ID"]
    target.put(b64(own), b64("1"))
    target.put(b64(own), b64("2"), lease=lease)
    [kv] = target.range(key=b64(own))["kvs"]
    stored = int(kv["lease" if of == "LEASE" else UNIONS[of]])
    cases = []
    for result, given in itertools.product(RESULTS, (stored - 1, stored, stored + 1)):
        asked = compare(own, of, result, **{UNIONS[of]: given})
        assert holds(target, asked) is expected(stored, result, given), asked
        cases.append(({**asked, UNIONS[of]: str(given)}, expected(stored, result, given)))
    assert_verdicts(target, cases)
    target.ok("lease/revoke", {"ID": lease})


def test_values_are_compared_by_bytes(target: Target, own: bytes) -> None:
    others = (b"", b"\0", b"l", b"m", b"m\0", b"ma", b"n", b"M", b"\xff", b"\xff\xff")
    cases = []
    for number, stored in enumerate((b"m", b"", b"\0", b"m\xff", b"\xff\xff")):
        key = own + b"%d" % number
        target.put(b64(key), b64(stored))
        for result, given in itertools.product(RESULTS, others):
            cases.append((compare(key, "VALUE", result, value=b64(given)), expected(stored, result, given)))
    assert_verdicts(target, cases)


@pytest.mark.parametrize("of", ["VERSION", "CREATE", "MOD", "LEASE"])
def test_a_missing_key_counts_as_zero(target: Target, own: bytes, of: str) -> None:
    cases = [
        (compare(own, of, result, **{UNIONS[of]: given}), expected(0, result, given))
        for result, given in itertools.product(RESULTS, (-1, 0, 1))
    ]
    assert_verdicts(target, cases)


def test_a_deleted_key_counts_as_missing(target: Target, own: bytes) -> None:
    target.put(b64(own), b64("1"))
    target.delete(key=b64(own))
    assert holds(target, compare(own, "VERSION", "EQUAL", version=0), compare(own, "MOD", "EQUAL", mod_revision=0))
    assert not holds(target, compare(own, "VALUE", "NOT_EQUAL", value=b64("1")))


@pytest.mark.parametrize("result", RESULTS)
def test_the_value_of_a_missing_key_compares_false(target: Target, own: bytes, result: str) -> None:
    for given in ("", b64("x")):
        assert not holds(target, compare(own, "VALUE", result, value=given))
    assert not holds(target, compare(own, "VALUE", result))


def test_a_key_without_lease_has_lease_zero(target: Target, own: bytes) -> None:
    target.put(b64(own), b64("1"))
    assert holds(target, compare(own, "LEASE", "EQUAL", lease=0), compare(own, "LEASE", "LESS", lease=1))


def test_what_is_not_given_is_the_default(target: Target, own: bytes) -> None:
    key = b64(own)
    assert holds(target, {"key": key}), "version = 0"
    assert holds(target, {"key": key, "target": 0, "result": 0, "version": None})
    target.put(key)
    assert not holds(target, {"key": key})
    assert holds(target, {"key": key, "result": "GREATER"})
    assert holds(target, {"key": key, "version": "1"})
    assert holds(target, {"key": key, "target": "VALUE"}), "the empty value"
    assert holds(target, {"key": key, "target": "LEASE"})
    assert holds(target, {"key": key, "target": "MOD", "result": "GREATER"})


def test_by_number(target: Target, own: bytes) -> None:
    revision = revision_of(target.put(b64(own), b64("m")))
    for asked in (
        {"target": 0, "result": 0, "version": 1},
        {"target": 1, "result": 0, "create_revision": revision},
        {"target": 2, "result": 1, "mod_revision": revision - 1},
        {"target": 3, "result": 2, "value": b64("n")},
        {"target": 4, "result": 3, "lease": 7},
    ):
        assert holds(target, {"key": b64(own), **asked}), asked


def test_a_field_of_another_target_counts_as_not_given(target: Target, own: bytes) -> None:
    target.put(b64(own), b64("x"))
    target.put(b64(own), b64("x"))
    assert not holds(target, compare(own, "VALUE", "EQUAL", version=2)), "x = nothing"
    assert holds(target, compare(own, "VALUE", "NOT_EQUAL", version=2))
    assert not holds(target, compare(own, "VERSION", "EQUAL", create_revision=2)), "2 = 0"
    assert holds(target, compare(own, "VERSION", "GREATER", value=b64("x"))), "2 > 0"
    assert holds(target, compare(own + b"none", "MOD", "EQUAL", version=7)), "0 = 0"


def test_all_must_hold_and_none_always_holds(target: Target, own: bytes) -> None:
    target.put(b64(own), b64("1"))
    yes = compare(own, "VERSION", "EQUAL", version=1)
    no = compare(own, "VERSION", "EQUAL", version=2)
    assert holds(target)
    assert holds(target, yes, yes)
    for compares in ((no,), (yes, no), (no, yes), (no, no)):
        assert not holds(target, *compares)


# ── of an interval ──────────────────────────────────────────────────────────────────────────────────


def test_an_interval_holds_if_every_key_does(target: Target, own: bytes) -> None:
    for name, value in ((b"a", "5"), (b"b", "5"), (b"c", "7")):
        target.put(b64(own + name), b64(value))
    target.put(b64(own + b"c"), b64("7"))
    every = {"range_end": b64(prefix_end(own))}
    first_two = {"range_end": b64(own + b"c")}
    assert holds(target, compare(own, "VALUE", "EQUAL", value=b64("5"), **first_two))
    assert not holds(target, compare(own, "VALUE", "EQUAL", value=b64("5"), **every))
    assert not holds(target, compare(own, "VALUE", "NOT_EQUAL", value=b64("5"), **every))
    assert holds(target, compare(own, "VALUE", "NOT_EQUAL", value=b64("6"), **every))
    assert holds(target, compare(own, "VALUE", "GREATER", value=b64("4"), **every))
    assert holds(target, compare(own, "VERSION", "EQUAL", version=1, **first_two))
    assert not holds(target, compare(own, "VERSION", "EQUAL", version=1, **every))
    assert holds(target, compare(own, "VERSION", "LESS", version=3, **every))
    assert not holds(target, compare(own, "CREATE", "EQUAL", create_revision=0, **every))
    assert holds(target, compare(own, "LEASE", "EQUAL", lease=0, rangeEnd=b64(prefix_end(own))))


def test_an_empty_interval_is_like_a_missing_key(target: Target, own: bytes) -> None:
    target.put(b64(own + b"m"), b64("1"))
    cases = []
    for end, result in itertools.product((b"c", b"b", b"a"), RESULTS):  # nothing in it; nothing can be in it
        bounds = {"range_end": b64(own + end)}
        cases.append((compare(own + b"b", "VALUE", result, value=b64("1"), **bounds), False))
        for of, given in itertools.product(("VERSION", "CREATE", "MOD", "LEASE"), (0, 1)):
            asked = compare(own + b"b", of, result, **{UNIONS[of]: given}, **bounds)
            cases.append((asked, expected(0, result, given)))
    assert_verdicts(target, cases)


def test_an_interval_to_the_last_key(target: Target, own: bytes) -> None:
    high = b"\xff" * 60 + own
    for name in (b"a", b"b"):
        target.put(b64(high + name), b64("5"))
    everything = {"range_end": EVERYTHING_FROM}
    assert holds(target, compare(high, "VALUE", "EQUAL", value=b64("5"), **everything))
    assert holds(target, compare(high + b"c", "VERSION", "EQUAL", version=0, **everything))
    target.put(b64(high + b"b"), b64("6"))
    assert not holds(target, compare(high, "VALUE", "EQUAL", value=b64("5"), **everything))
    target.delete(key=b64(high), range_end=EVERYTHING_FROM)


# ── refused ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_compare_needs_a_key(target: Target) -> None:
    for asked in ({}, {"key": ""}, {"target": "VALUE", "value": "YQ=="}, {"key": "", "range_end": "AA=="}):
        target.refused("kv/txn", {"compare": [asked]}, INVALID_ARGUMENT, "etcdserver: key is not provided")


@pytest.mark.parametrize(
    "asked",
    [
        *('"target":"value"', '"target":"NOPE"', '"target":"3"', '"target":true', '"result":"equal"', '"result":"="'),
        *('"result":1.5', '"result":[]', '"version":"x"', '"version":1.5', '"version":true', '"value":"x"'),
        *('"value":1', '"range_end":"!"', '"lease":"0x1"', '"mod_revision":9223372036854775808'),
    ],
)
def test_a_malformed_compare_is_refused(target: Target, asked: str) -> None:
    target.refused("kv/txn", f'{{"compare":[{{"key":"YQ==",{asked}}}]}}'.encode(), INVALID_ARGUMENT)
