"""KV.Put and KV.DeleteRange: revisions, versions, previous values, leases kept, moved and lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.etcd.target import INVALID_ARGUMENT, NOT_FOUND, Target
from tests.etcd.words import (
    EVERYTHING_FROM,
    b64,
    interval,
    keys_of,
    pairs_of,
    prefix,
    revision_of,
    values_of,
)

KEY_NOT_PROVIDED = "etcdserver: key is not provided"
KEY_NOT_FOUND = "etcdserver: key not found"
LEASE_NOT_FOUND = "etcdserver: requested lease not found"
NO_LEASE = 1234567

Grant = Callable[[], str]


@pytest.fixture
def grant(target: Target) -> Iterator[Grant]:
    """Grants leases, which end with the test."""
    granted: list[str] = []

    def make() -> str:
        granted.append(target.ok("lease/grant", {"TTL": 120})["ID"])
        return granted[-1]

    yield make
    for lease in granted:
        target.post("lease/revoke", {"ID": lease})


def one(target: Target, key: bytes) -> dict[str, Any]:
    [kv] = target.range(key=b64(key))["kvs"]
    assert isinstance(kv, dict)
    return kv


# ── put ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_put_makes_one_revision_and_one_version(target: Target, own: bytes) -> None:
    before = target.revision()
    for version in (1, 2, 3):
        answer = target.put(b64(own), b64(b"%d" % version))
        assert revision_of(answer) == before + version
        assert one(target, own) == {
            "key": b64(own),
            "create_revision": str(before + 1),
            "mod_revision": str(before + version),
            "version": str(version),
            "value": b64(b"%d" % version),
        }


def test_the_same_value_again_is_a_new_revision(target: Target, own: bytes) -> None:
    first = revision_of(target.put(b64(own), b64("same")))
    assert revision_of(target.put(b64(own), b64("same"))) == first + 1
    assert (one(target, own)["version"], one(target, own)["mod_revision"]) == ("2", str(first + 1))


def test_a_put_without_value_sets_an_empty_one(target: Target, own: bytes) -> None:
    target.put(b64(own), b64("full"))
    target.ok("kv/put", {"key": b64(own)})
    assert "value" not in one(target, own)
    assert one(target, own)["version"] == "2"


def test_prev_kv(target: Target, own: bytes) -> None:
    assert "prev_kv" not in target.put(b64(own), b64("1"), prev_kv=True)
    assert "prev_kv" not in target.put(b64(own), b64("2"))
    whole = one(target, own)
    assert target.put(b64(own), b64("3"), prev_kv=True)["prev_kv"] == whole
    target.delete(key=b64(own))
    assert "prev_kv" not in target.put(b64(own), b64("4"), prev_kv=True)


def test_after_a_deletion_a_key_begins_anew(target: Target, own: bytes) -> None:
    target.put(b64(own), b64("1"))
    target.put(b64(own), b64("2"))
    target.delete(key=b64(own))
    revision = revision_of(target.put(b64(own), b64("3")))
    kv = one(target, own)
    assert (kv["version"], kv["create_revision"], kv["mod_revision"]) == ("1", str(revision), str(revision))


def test_a_put_needs_a_key(target: Target) -> None:
    for body in ({}, {"key": ""}, {"value": "YQ=="}, {"key": "", "lease": NO_LEASE}):
        target.refused("kv/put", body, INVALID_ARGUMENT, KEY_NOT_PROVIDED)


# ── flags ───────────────────────────────────────────────────────────────────────────────────────────


def test_ignore_value_keeps_the_value(target: Target, own: bytes) -> None:
    first = revision_of(target.put(b64(own), b64("kept")))
    answer = target.ok("kv/put", {"key": b64(own), "ignore_value": True, "prev_kv": True})
    assert revision_of(answer) == first + 1
    assert values_of({"kvs": [answer["prev_kv"]]}) == [b"kept"]
    kv = one(target, own)
    assert (kv["value"], kv["version"], kv["mod_revision"]) == (b64("kept"), "2", str(first + 1))


def test_ignore_value_does_not_keep_the_lease(target: Target, own: bytes, grant: Grant) -> None:
    target.put(b64(own), b64("1"), lease=grant())
    target.ok("kv/put", {"key": b64(own), "ignore_value": True})
    assert "lease" not in one(target, own)
    lease = grant()
    target.ok("kv/put", {"key": b64(own), "ignore_value": True, "lease": lease})
    assert (one(target, own)["lease"], one(target, own)["value"]) == (lease, b64("1"))


def test_ignore_lease_keeps_the_lease(target: Target, own: bytes, grant: Grant) -> None:
    lease = grant()
    target.put(b64(own), b64("1"), lease=lease)
    target.put(b64(own), b64("2"), ignore_lease=True)
    kv = one(target, own)
    assert (kv["lease"], kv["value"], kv["version"]) == (lease, b64("2"), "2")
    target.ok("kv/put", {"key": b64(own), "ignore_lease": True, "ignore_value": True})
    kv = one(target, own)
    assert (kv["lease"], kv["value"], kv["version"]) == (lease, b64("2"), "3")


def test_ignore_lease_of_a_key_without(target: Target, own: bytes) -> None:
    target.put(b64(own), b64("1"))
    target.put(b64(own), b64("2"), ignore_lease=True)
    assert "lease" not in one(target, own)


@pytest.mark.parametrize("flags", [{"ignore_value": True}, {"ignore_lease": True}])
def test_what_is_to_be_kept_must_exist(target: Target, own: bytes, flags: dict[str, Any]) -> None:
    before = target.revision()
    target.refused("kv/put", {"key": b64(own), **flags}, INVALID_ARGUMENT, KEY_NOT_FOUND)
    assert target.revision() == before
    target.put(b64(own), b64("1"))
    target.delete(key=b64(own))
    target.refused("kv/put", {"key": b64(own), **flags}, INVALID_ARGUMENT, KEY_NOT_FOUND)


def test_what_is_kept_may_not_be_given(target: Target, own: bytes, grant: Grant) -> None:
    lease = grant()
    target.put(b64(own), b64("1"), lease=lease)
    before = one(target, own)
    for more, message in (
        ({"ignore_value": True, "value": b64("x")}, "etcdserver: value is provided"),
        ({"ignore_lease": True, "lease": lease}, "etcdserver: lease is provided"),
        ({"ignore_lease": True, "lease": NO_LEASE}, "etcdserver: lease is provided"),
        ({"ignore_lease": True, "ignore_value": True, "value": b64("x")}, "etcdserver: value is provided"),
    ):
        target.refused("kv/put", {"key": b64(own), **more}, INVALID_ARGUMENT, message)
        target.refused("kv/put", {"key": b64(own + b"none"), **more}, INVALID_ARGUMENT, message)
    assert one(target, own) == before


# ── leases ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_lease_must_exist(target: Target, own: bytes) -> None:
    before = target.revision()
    for lease in (NO_LEASE, -1, "9223372036854775807"):
        target.refused("kv/put", {"key": b64(own), "lease": lease}, NOT_FOUND, LEASE_NOT_FOUND)
    target.put(b64(own), b64("1"))
    target.refused("kv/put", {"key": b64(own), "value": b64("2"), "lease": NO_LEASE}, NOT_FOUND, LEASE_NOT_FOUND)
    assert (one(target, own)["value"], target.revision()) == (b64("1"), before + 1)


def test_a_put_moves_the_key_to_its_lease_and_without_one_off_it(target: Target, own: bytes, grant: Grant) -> None:
    first, second = grant(), grant()
    for lease in (first, second, None, first):
        target.put(b64(own), b64("1"), **({} if lease is None else {"lease": lease}))
        assert one(target, own).get("lease") == lease
    target.put(b64(own), b64("2"), lease=second)
    target.ok("lease/revoke", {"ID": first})
    assert one(target, own)["lease"] == second, "it went over to the other one"
    target.put(b64(own), b64("3"))
    target.ok("lease/revoke", {"ID": second})
    assert one(target, own)["value"] == b64("3"), "no lease holds it any more"


def test_a_key_goes_with_its_lease_and_returns_without(target: Target, own: bytes, grant: Grant) -> None:
    lease = grant()
    target.put(b64(own), b64("1"), lease=lease)
    revision = revision_of(target.ok("lease/revoke", {"ID": lease}))
    assert set(target.range(key=b64(own))) == {"header"}
    target.refused("kv/put", {"key": b64(own), "lease": lease}, NOT_FOUND, LEASE_NOT_FOUND)
    assert revision_of(target.put(b64(own), b64("2"))) == revision + 1
    assert one(target, own)["version"] == "1"


def test_a_deletion_takes_the_key_off_its_lease(target: Target, own: bytes, grant: Grant) -> None:
    lease = grant()
    target.put(b64(own), b64("1"), lease=lease)
    [kv] = target.delete(key=b64(own), prev_kv=True)["prev_kvs"]
    assert kv["lease"] == lease
    target.put(b64(own), b64("2"))
    assert "lease" not in one(target, own)
    target.ok("lease/revoke", {"ID": lease})
    assert one(target, own)["value"] == b64("2")


# ── delete ──────────────────────────────────────────────────────────────────────────────────────────


def test_deleting_one_key(target: Target, own: bytes) -> None:
    before = revision_of(target.put(b64(own), b64("1")))
    target.put(b64(own + b"1"), b64("stays"))
    answer = target.delete(key=b64(own))
    assert (answer["deleted"], revision_of(answer)) == ("1", before + 2)
    assert "prev_kvs" not in answer
    assert keys_of(target.range(**prefix(own))) == [own + b"1"]


def test_deleting_nothing_makes_no_revision(target: Target, own: bytes) -> None:
    before = target.revision()
    for bounds in ({"key": b64(own)}, prefix(own), interval(own, own), interval(own + b"b", own + b"a")):
        answer = target.delete(**bounds, prev_kv=True)
        assert (set(answer), revision_of(answer)) == ({"header"}, before)
    assert target.revision() == before


def test_deleting_twice(target: Target, own: bytes) -> None:
    target.put(b64(own), b64("1"))
    first = revision_of(target.delete(key=b64(own)))
    again = target.delete(key=b64(own))
    assert (set(again), revision_of(again)) == ({"header"}, first)


def test_deleting_many_is_one_revision(target: Target, own: bytes) -> None:
    for name in b"dbca":
        last = revision_of(target.put(b64(own + bytes([name])), b64(bytes([name]))))
    answer = target.delete(**interval(own + b"b", own + b"d"), prev_kv=True)
    assert (answer["deleted"], revision_of(answer)) == ("2", last + 1)
    assert pairs_of(answer, "prev_kvs") == [(own + b"b", b"b"), (own + b"c", b"c")]
    assert keys_of(target.range(**prefix(own))) == [own + b"a", own + b"d"]
    answer = target.delete(**prefix(own), prev_kv=True)
    assert (answer["deleted"], revision_of(answer)) == ("2", last + 2)
    assert keys_of(answer, "prev_kvs") == [own + b"a", own + b"d"]


def test_prev_kvs_are_whole(target: Target, own: bytes) -> None:
    target.put(b64(own), b64("1"))
    target.put(b64(own), b64("2"))
    whole = one(target, own)
    assert target.delete(key=b64(own), prev_kv=True)["prev_kvs"] == [whole]


def test_deleting_to_the_last_key(target: Target, own: bytes) -> None:
    high = b"\xff" * 40 + own
    for name in (b"a", b"b", b"c"):
        target.put(b64(high + name))
    answer = target.delete(key=b64(high + b"b"), range_end=EVERYTHING_FROM)
    assert answer["deleted"] == "2"
    assert keys_of(target.range(**prefix(high))) == [high + b"a"]
    target.delete(key=b64(high + b"a"))


def test_an_interval_without_keys_in_it(target: Target, own: bytes) -> None:
    target.put(b64(own), b64("1"))
    for bounds in (interval(own, own), interval(own + b"b", own + b"a"), interval(own + b"a", own + b"b")):
        assert set(target.delete(**bounds)) == {"header"}
    assert one(target, own)["value"] == b64("1")


def test_a_deletion_needs_a_key(target: Target) -> None:
    for body in ({}, {"key": ""}, {"range_end": "AA=="}, {"key": "", "range_end": "AA=="}):
        target.refused("kv/deleterange", body, INVALID_ARGUMENT, KEY_NOT_PROVIDED)
        target.refused("kv/range", body, INVALID_ARGUMENT, KEY_NOT_PROVIDED)
