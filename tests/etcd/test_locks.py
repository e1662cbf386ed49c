"""The lock service: a thin layer over keys and leases, whose keys other clients make and read by themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.etcd.holding import granted, key_of, queue, revoke_all, wait_until, waiting
from tests.etcd.operations import compare, put
from tests.etcd.target import INVALID_ARGUMENT, UNKNOWN, Target
from tests.etcd.words import b64, prefix, revision_of, unb64


@pytest.fixture
def name(own: bytes) -> bytes:
    """Of a lock."""
    return own + b"lock"


@pytest.fixture(autouse=True)
def _end_leases(target: Target) -> Iterator[None]:
    yield from revoke_all(target)


def locked(target: Target, name: bytes, lease: int | str) -> bytes:
    """Take it at once → its key."""
    answer = target.ok("lock/lock", {"name": b64(name), "lease": lease})
    assert set(answer) == {"header", "key"}
    return unb64(answer["key"])


def unlock(target: Target, key: bytes) -> dict[str, Any]:
    return target.ok("lock/unlock", {"key": b64(key)})


def test_the_key_is_the_name_and_the_lease_in_hex(target: Target, name: bytes) -> None:
    for lease in (778, 0xABCDEF0123, -5):
        target.ok("lease/grant", {"TTL": 60, "ID": lease})
        mine = name + b"%d" % lease
        key = locked(target, mine, lease if lease > 0 else str(lease))
        [kv] = target.range(**prefix(mine))["kvs"]
        assert unb64(kv["key"]) == key
        if lease > 0:
            assert key == mine + b"/" + f"{lease:x}".encode()
        assert "value" not in kv
        assert (kv["lease"], kv["version"]) == (str(lease), "1")


def test_one_revision_a_lock(target: Target, name: bytes) -> None:
    lease = granted(target)
    revision = target.revision()
    answer = target.ok("lock/lock", {"name": b64(name), "lease": lease})
    assert set(answer["header"]) == {"cluster_id", "member_id", "revision", "raft_term"}
    assert revision_of(answer) == revision + 1
    assert target.revision() == revision + 1
    assert revision_of(unlock(target, unb64(answer["key"]))) == revision + 2


def test_the_same_lease_again_has_the_same_key(target: Target, name: bytes) -> None:
    lease = granted(target)
    key = locked(target, name, lease)
    revision = target.revision()
    assert locked(target, name, str(lease)) == key
    assert target.revision() == revision
    assert queue(target, name) == [key]


def test_unlock(target: Target, name: bytes) -> None:
    key = locked(target, name, granted(target))
    assert set(unlock(target, key)) == {"header"}
    assert queue(target, name) == []
    revision = target.revision()
    assert revision_of(unlock(target, key)) == revision  # gone already: no error
    assert revision_of(unlock(target, name + b"/never")) == revision
    assert target.revision() == revision


def test_the_lease_outlives_the_lock(target: Target, name: bytes) -> None:
    lease = granted(target)
    unlock(target, locked(target, name, lease))
    assert target.ok("lease/timetolive", {"ID": lease})["grantedTTL"] == "60"


@pytest.mark.parametrize("lease", [None, 0, "0"])
def test_no_lease_makes_one_of_60_seconds(target: Target, name: bytes, lease: Any) -> None:
    key = unb64(target.ok("lock/lock", {"name": b64(name), "lease": lease})["key"])
    [kv] = target.range(key=b64(key))["kvs"]
    assert key == key_of(name, int(kv["lease"]))
    assert target.ok("lease/timetolive", {"ID": kv["lease"]})["grantedTTL"] == "60"


def test_an_unknown_lease(target: Target, name: bytes) -> None:
    body = {"name": b64(name), "lease": 4}
    target.refused("lock/lock", body, UNKNOWN, "etcdserver: requested lease not found")
    assert queue(target, name) == []


@pytest.mark.parametrize("body", [b'{"name": 1}', b'{"name": "?"}', b'{"lease": "x"}', b"["])
def test_a_lock_that_cannot_be_read(target: Target, body: bytes) -> None:
    target.refused("lock/lock", body, INVALID_ARGUMENT)


@pytest.mark.parametrize("body", [{}, b"", {"key": ""}])
def test_unlock_without_a_key(target: Target, body: dict[str, Any] | bytes) -> None:
    refusal = target.refused("lock/unlock", body, UNKNOWN)
    assert refusal.message == "etcdserver: key is not provided"


def test_a_second_one_waits_until_the_first_unlocks(target: Target, name: bytes) -> None:
    first, second, third = (granted(target) for _ in range(3))
    key = locked(target, name, first)
    next_one = waiting(target, "lock/lock", name, second)
    last = waiting(target, "lock/lock", name, third)
    assert queue(target, name) == [key_of(name, lease) for lease in (first, second, third)]
    assert not next_one.has_more(0.05)
    unlock(target, key)
    answer = next_one.answer()
    assert (answer.status, unb64(answer.json()["key"])) == (200, key_of(name, second))
    assert revision_of(answer.json()) >= target.revision()
    assert not last.has_more(0.05)
    unlock(target, key_of(name, second))
    answer = last.answer()
    assert (answer.status, unb64(answer.json()["key"])) == (200, key_of(name, third))
    next_one.close()
    last.close()


def test_a_lock_goes_on_when_the_lease_of_its_holder_ends(target: Target, name: bytes) -> None:
    first, second = granted(target), granted(target)
    locked(target, name, first)
    connection = waiting(target, "lock/lock", name, second)
    target.ok("lease/revoke", {"ID": first})
    assert unb64(connection.answer().json()["key"]) == key_of(name, second)
    connection.close()


def test_a_client_that_goes_away_loses_its_place(target: Target, name: bytes) -> None:
    first, second, third = (granted(target) for _ in range(3))
    key = locked(target, name, first)
    gone = waiting(target, "lock/lock", name, second)
    last = waiting(target, "lock/lock", name, third)
    gone.close()
    wait_until(lambda: key_of(name, second) not in queue(target, name), "the place is given up")
    assert queue(target, name) == [key_of(name, lease) for lease in (first, third)]
    unlock(target, key)
    assert unb64(last.answer().json()["key"]) == key_of(name, third)
    last.close()


def test_a_holder_that_goes_away_keeps_its_lock(target: Target, name: bytes) -> None:
    lease = granted(target)
    connection = waiting(target, "lock/lock", name, lease)
    assert connection.answer().status == 200
    connection.close()
    target.put(b64(name))  # something in between
    assert queue(target, name) == [key_of(name, lease)]


def test_a_lease_that_ends_while_waiting(target: Target, name: bytes) -> None:
    """Whoever waits with it gets no lock: an error at the latest when its turn comes. (etcd 3.4 said it had one.)"""
    first, second = granted(target), granted(target)
    key = locked(target, name, first)
    connection = waiting(target, "lock/lock", name, second)
    target.ok("lease/revoke", {"ID": second})
    unlock(target, key)
    answer = connection.answer()
    connection.close()
    assert queue(target, name) == []
    if target.version < (3, 5) and answer.status == 200:
        return
    assert target.refusal(answer).code == UNKNOWN
    assert target.refusal(answer).message in {"mutex: session is expired", "etcdserver: requested lease not found"}


def test_a_key_that_another_client_made_holds_the_lock(target: Target, name: bytes) -> None:
    """Clients with a lock of their own over kv and leases contend for the same one."""
    other, lease = granted(target), granted(target)
    its_key = key_of(name, other)
    free = compare(its_key, "CREATE", "EQUAL", create_revision=0)
    assert target.txn(compare=[free], success=[put(its_key, b"", lease=str(other))])["succeeded"] is True
    connection = waiting(target, "lock/lock", name, lease)
    assert not connection.has_more(0.05)
    target.delete(key=b64(its_key))
    assert unb64(connection.answer().json()["key"]) == key_of(name, lease)
    connection.close()


def test_names_that_begin_alike_are_different_locks(target: Target, name: bytes) -> None:
    for suffix in (b"", b"s", b"0", b"/in"):
        locked(target, name + suffix, granted(target))


def test_ownership_is_asserted_in_a_transaction(target: Target, name: bytes) -> None:
    lease = granted(target)
    key = locked(target, name, lease)
    [kv] = target.range(key=b64(key))["kvs"]
    held = compare(key, "CREATE", "EQUAL", create_revision=kv["create_revision"])
    assert target.txn(compare=[held], success=[put(name + b"data", b"1")])["succeeded"] is True
    unlock(target, key)
    assert "succeeded" not in target.txn(compare=[held], success=[put(name + b"data", b"2")])
    locked(target, name, lease)  # the same key again, of a later revision
    assert "succeeded" not in target.txn(compare=[held], success=[put(name + b"data", b"2")])


def test_a_lock_without_a_name(target: Target) -> None:
    lease = granted(target)
    assert locked(target, b"", lease) == key_of(b"", lease)
    unlock(target, key_of(b"", lease))


def test_any_bytes_are_a_name(target: Target, name: bytes) -> None:
    """A name may end where the last byte cannot be raised, and hold the byte that parts it from the lease."""
    for suffix in (b"\xff", b"\0", b"/", b"\xff\xff/\xff"):
        lease, other = granted(target), granted(target)
        key = locked(target, name + suffix, lease)
        assert key == key_of(name + suffix, lease)
        connection = waiting(target, "lock/lock", name + suffix, other)
        unlock(target, key)
        assert unb64(connection.answer().json()["key"]) == key_of(name + suffix, other)
        connection.close()
