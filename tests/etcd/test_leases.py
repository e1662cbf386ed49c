"""Leases: grant, keepalive, what is left and attached, revocation, expiry."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.etcd.holding import revoke_all
from tests.etcd.operations import put
from tests.etcd.target import FAILED_PRECONDITION, INVALID_ARGUMENT, NOT_FOUND, OUT_OF_RANGE, UNKNOWN, Target
from tests.etcd.watching import seen, watching
from tests.etcd.words import b64, keys_of, prefix, revision_of, unb64

NOT_GRANTED = "etcdserver: requested lease not found"
LONGEST_TTL = 9_000_000_000
_ids = itertools.count(770_001)


@pytest.fixture
def lease() -> int:
    """An id that nobody else has used."""
    return next(_ids)


@pytest.fixture(autouse=True)
def _end_leases(target: Target) -> Iterator[None]:
    """Those that a test has left behind are revoked."""
    yield from revoke_all(target)


def left(target: Target, lease: int | str, path: str = "lease/timetolive", **more: Any) -> dict[str, Any]:
    """What timetolive says, without its header."""
    answer = target.ok(path, {"ID": lease, **more})
    assert set(answer.pop("header")) == {"cluster_id", "member_id", "revision", "raft_term"}
    return answer


def listed(target: Target, path: str = "lease/leases") -> set[str]:
    return {each["ID"] for each in target.ok(path, {}).get("leases", [])}


def test_the_server_picks_an_id(target: Target) -> None:
    for body in ({"TTL": 60}, {"TTL": "60", "ID": 0}, {"TTL": 60, "ID": "0"}, {"TTL": 60, "ID": None}):
        granted = target.ok("lease/grant", body)
        assert set(granted) == {"header", "ID", "TTL"}
        assert granted["TTL"] == "60"
        assert 0 < int(granted["ID"]) < 1 << 63
        assert granted["ID"] in listed(target)


@pytest.mark.parametrize("given", [12, "13", -12, "-13", (1 << 63) - 1, str((1 << 63) - 2), -(1 << 63)])
def test_an_id_of_ones_own(target: Target, given: int | str) -> None:
    granted = target.ok("lease/grant", {"TTL": 60, "ID": given})
    granted.pop("header")
    assert granted == {"ID": str(given), "TTL": "60"}
    assert left(target, given)["grantedTTL"] == "60"
    target.put(b64(f"of lease {given}"), lease=given)
    [kv] = target.range(key=b64(f"of lease {given}"))["kvs"]
    assert kv["lease"] == str(given)
    target.ok("lease/revoke", {"ID": given})
    assert "kvs" not in target.range(key=b64(f"of lease {given}"))


@pytest.mark.parametrize("body", [{}, {"TTL": 0}, {"TTL": 1}, {"TTL": -5}, {"TTL": "-9223372036854775808"}])
def test_a_ttl_has_a_minimum(target: Target, body: dict[str, Any]) -> None:
    granted = target.ok("lease/grant", body)
    shortest = int(granted["TTL"])
    assert 1 <= shortest <= 10  # by the election timeout: 2 at etcd's default
    assert int(left(target, granted["ID"])["grantedTTL"]) == shortest
    assert int(target.ok("lease/grant", {"TTL": shortest})["TTL"]) == shortest


def test_a_ttl_has_a_maximum(target: Target) -> None:
    granted = target.ok("lease/grant", {"TTL": LONGEST_TTL})
    assert granted["TTL"] == str(LONGEST_TTL)
    assert left(target, granted["ID"])["grantedTTL"] == str(LONGEST_TTL)
    for ttl in (LONGEST_TTL + 1, (1 << 63) - 1):
        target.refused("lease/grant", {"TTL": ttl}, OUT_OF_RANGE, "etcdserver: too large lease TTL")


def test_an_id_that_is_taken(target: Target, lease: int) -> None:
    target.ok("lease/grant", {"TTL": 60, "ID": lease})
    for ttl in (60, 70):
        taken = {"TTL": ttl, "ID": lease}
        target.refused("lease/grant", taken, FAILED_PRECONDITION, "etcdserver: lease already exists")
    assert left(target, lease)["grantedTTL"] == "60"
    target.ok("lease/revoke", {"ID": lease})
    target.ok("lease/grant", {"TTL": 70, "ID": lease})
    assert left(target, lease)["grantedTTL"] == "70"


@pytest.mark.parametrize(
    "body", [b'{"TTL": "x"}', b'{"TTL": 1.5}', b'{"ID": 9223372036854775808}', b'{"TTL": []}', b"["]
)
def test_a_grant_that_cannot_be_read(target: Target, body: bytes) -> None:
    target.refused("lease/grant", body, INVALID_ARGUMENT)


def test_granting_makes_no_revision(target: Target, own: bytes) -> None:
    revision = revision_of(target.put(b64(own)))
    assert revision_of(target.ok("lease/grant", {"TTL": 60})) == revision
    assert target.revision() == revision


def test_what_is_left(target: Target, lease: int) -> None:
    target.ok("lease/grant", {"TTL": 60, "ID": lease})
    answer = left(target, lease)
    assert set(answer) == {"ID", "TTL", "grantedTTL"}
    assert (answer["ID"], answer["grantedTTL"]) == (str(lease), "60")
    assert 0 < int(answer["TTL"]) <= 60


@pytest.mark.parametrize("path", ["lease/timetolive", "kv/lease/timetolive"])
def test_the_keys_of_a_lease(target: Target, own: bytes, lease: int, path: str) -> None:
    target.ok("lease/grant", {"TTL": 60, "ID": lease})
    assert "keys" not in left(target, lease, path, keys=True)
    names = [own + b"%d" % number for number in range(5)]
    for name in names:
        target.put(b64(name), lease=lease)
    assert "keys" not in left(target, lease, path)
    assert sorted(map(unb64, left(target, str(lease), path, keys=True)["keys"])) == names
    target.delete(key=b64(names[0]))
    target.put(b64(names[1]))  # without a lease: detached
    other = target.ok("lease/grant", {"TTL": 60})["ID"]
    target.put(b64(names[2]), lease=other)
    assert sorted(map(unb64, left(target, lease, path, keys=True)["keys"])) == names[3:]
    assert left(target, other, path, keys=True)["keys"] == [b64(names[2])]


def test_ignore_lease_keeps_the_key_attached(target: Target, own: bytes, lease: int) -> None:
    target.ok("lease/grant", {"TTL": 60, "ID": lease})
    target.put(b64(own), b64("1"), lease=lease)
    target.put(b64(own), b64("2"), ignore_lease=True)
    assert left(target, lease, keys=True)["keys"] == [b64(own)]
    target.txn(success=[put(own, b"3", lease=str(lease))])
    assert left(target, lease, keys=True)["keys"] == [b64(own)]


@pytest.mark.parametrize("path", ["lease/timetolive", "kv/lease/timetolive"])
@pytest.mark.parametrize("unknown", [1, "999999", -7, 0])
def test_an_unknown_lease_has_minus_one_left(target: Target, path: str, unknown: int | str) -> None:
    answer = left(target, unknown, path, keys=True)
    assert answer.pop("ID", "0") == str(unknown)
    assert answer == {"TTL": "-1"}


@pytest.mark.parametrize("path", ["lease/revoke", "kv/lease/revoke"])
def test_revocation_deletes_the_keys_in_one_revision(target: Target, own: bytes, lease: int, path: str) -> None:
    target.ok("lease/grant", {"TTL": 60, "ID": lease})
    for number in range(4):
        target.put(b64(own + b"%d" % number), lease=lease)
    revision = revision_of(target.put(b64(own + b"stays")))
    revoked = target.ok(path, {"ID": str(lease)})
    assert set(revoked) == {"header"}
    assert revision_of(revoked) == revision + 1
    answer = target.range(**prefix(own))
    assert keys_of(answer) == [own + b"stays"]
    assert revision_of(answer) == revision + 1
    assert left(target, lease) == {"ID": str(lease), "TTL": "-1"}
    assert str(lease) not in listed(target)
    target.refused(path, {"ID": lease}, NOT_FOUND, NOT_GRANTED)


def test_revocation_without_keys_makes_no_revision(target: Target, own: bytes, lease: int) -> None:
    revision = revision_of(target.put(b64(own)))
    target.ok("lease/grant", {"TTL": 60, "ID": lease})
    assert revision_of(target.ok("lease/revoke", {"ID": lease})) == revision
    assert target.revision() == revision


@pytest.mark.parametrize("path", ["lease/revoke", "kv/lease/revoke"])
@pytest.mark.parametrize("body", [{"ID": 1}, {"ID": "-7"}, {"ID": 0}, {}, b""])
def test_revoking_an_unknown_lease(target: Target, path: str, body: dict[str, Any] | bytes) -> None:
    target.refused(path, body, NOT_FOUND, NOT_GRANTED)


def test_deleting_the_last_key_leaves_the_lease(target: Target, own: bytes, lease: int) -> None:
    target.ok("lease/grant", {"TTL": 60, "ID": lease})
    target.put(b64(own), lease=lease)
    target.delete(key=b64(own))
    assert left(target, lease)["grantedTTL"] == "60"


@pytest.mark.parametrize("path", ["lease/leases", "kv/lease/leases"])
def test_the_list(target: Target, lease: int, path: str) -> None:
    assert set(target.ok(path, {})) == {"header"}
    ids = {lease, -lease}
    for each in ids:
        target.ok("lease/grant", {"TTL": 60, "ID": each})
    answer = target.ok(path, {})
    assert set(answer) == {"header", "leases"}
    assert sorted(each["ID"] for each in answer["leases"]) == sorted(map(str, ids))
    assert all(set(each) == {"ID"} for each in answer["leases"])
    assert revision_of(answer) == target.revision()


def test_the_fields_in_camel_case_have_no_other_name(target: Target, lease: int) -> None:
    """ID and TTL are written as they stand."""
    target.ok("lease/grant", {"TTL": 60, "ID": lease, "unheard": {"of": []}})
    assert left(target, lease)["grantedTTL"] == "60"


def test_keepalive(target: Target, lease: int) -> None:
    target.ok("lease/grant", {"TTL": 60, "ID": lease})
    with target.stream("lease/keepalive", {"ID": lease}) as stream:
        renewed = stream.result()
        assert (stream.head().status, stream.head().headers["content-type"]) == (200, "application/json")
        assert set(renewed.pop("header")) == {"cluster_id", "member_id", "revision", "raft_term"}
        assert renewed == {"ID": str(lease), "TTL": "60"}
        stream.assert_end()


def test_keepalive_of_several_in_one_body(target: Target, lease: int) -> None:
    target.ok("lease/grant", {"TTL": 60, "ID": lease})
    target.ok("lease/grant", {"TTL": 70, "ID": -lease})
    bodies = [json.dumps({"ID": each}).encode() for each in (lease, str(-lease), 5, lease)]
    with target.stream("lease/keepalive", bodies[0] + bodies[1] + b"\n \t" + bodies[2], bodies[3], b"\n") as stream:
        answers = [stream.result() for _ in range(4)]
        stream.assert_end()
    assert [(answer["ID"], answer.get("TTL")) for answer in answers] == [
        *((str(lease), "60"), (str(-lease), "70"), ("5", None), (str(lease), "60")),
    ]


@pytest.mark.parametrize("unknown", [1, "999999", -7])
def test_keepalive_of_an_unknown_lease_has_no_ttl(target: Target, unknown: int | str) -> None:
    with target.stream("lease/keepalive", {"ID": unknown}) as stream:
        answer = stream.result()
        answer.pop("header")
        assert answer == {"ID": str(unknown)}
        stream.assert_end()


def test_keepalive_of_a_revoked_lease_has_no_ttl(target: Target, lease: int) -> None:
    target.ok("lease/grant", {"TTL": 60, "ID": lease})
    target.ok("lease/revoke", {"ID": lease})
    with target.stream("lease/keepalive", {"ID": lease}) as stream:
        assert "TTL" not in stream.result()


def test_keepalive_that_cannot_be_read(target: Target) -> None:
    assert target.refusal(target.post("lease/keepalive", b"nonsense")).code == UNKNOWN


def test_a_put_with_an_unknown_lease_changes_nothing(target: Target, own: bytes) -> None:
    revision = target.revision()
    target.refused("kv/put", {"key": b64(own), "lease": 1}, NOT_FOUND, NOT_GRANTED)
    several = {"success": [put(own), put(own + b"a", lease=1)]}
    target.refused("kv/txn", several, NOT_FOUND, NOT_GRANTED)
    assert target.revision() == revision


def test_an_expired_lease_deletes_its_keys_in_one_revision(target: Target, own: bytes, lease: int) -> None:
    """A lease beside it that is kept alive stays; a key never goes before its time."""
    granted = target.ok("lease/grant", {"TTL": 1, "ID": lease})
    begun = time.monotonic()
    kept = target.ok("lease/grant", {"TTL": 1, "ID": -lease})
    for name in (b"c", b"a", b"b"):
        target.put(b64(own + name), lease=lease)
    revision = revision_of(target.put(b64(own + b"kept"), lease=kept["ID"]))
    with watching(target, prefix(own)) as stream:
        deadline = begun + 15
        while str(lease) in listed(target):
            assert time.monotonic() < deadline, "the lease does not expire"
            with target.stream("lease/keepalive", {"ID": -lease}) as keepalive:
                assert keepalive.result()["TTL"] == kept["TTL"]
            time.sleep(0.05)
        assert time.monotonic() - begun >= int(granted["TTL"]), "never before its time"
        message = stream.result()
        assert seen(message["events"]) == [("DELETE", own + name) for name in (b"a", b"b", b"c")]
        assert {event["kv"]["mod_revision"] for event in message["events"]} == {str(revision + 1)}
    assert keys_of(target.range(**prefix(own))) == [own + b"kept"]
    assert left(target, lease) == {"ID": str(lease), "TTL": "-1"}
    with target.stream("lease/keepalive", {"ID": lease}) as keepalive:
        assert "TTL" not in keepalive.result()
    target.refused("kv/put", {"key": b64(own), "lease": lease}, NOT_FOUND, NOT_GRANTED)
    target.refused("lease/revoke", {"ID": lease}, NOT_FOUND, NOT_GRANTED)
