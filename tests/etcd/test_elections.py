"""The election service: campaign, proclaim, who leads, resign, and the stream of leaders."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.etcd.holding import granted, key_of, queue, revoke_all, wait_until, waiting
from tests.etcd.target import INVALID_ARGUMENT, UNKNOWN, Target
from tests.etcd.watching import open_watches
from tests.etcd.words import b64, prefix, revision_of, unb64

NOT_LEADER = "election: not leader"
NO_LEADER = "election: no leader"
NO_FIELD = '"leader" field must be provided'


@pytest.fixture
def name(own: bytes) -> bytes:
    """Of an election."""
    return own + b"election"


@pytest.fixture(autouse=True)
def _end_leases(target: Target) -> Iterator[None]:
    yield from revoke_all(target)


def elected(target: Target, name: bytes, lease: int, value: bytes = b"v") -> dict[str, Any]:
    """Win at once → the leader's key, as proclaim and resign take it."""
    answer = target.ok("election/campaign", {"name": b64(name), "lease": lease, "value": b64(value)})
    assert set(answer) == {"header", "leader"}
    leader: dict[str, Any] = answer["leader"]
    return leader


def leader_of(target: Target, name: bytes) -> dict[str, Any]:
    answer = target.ok("election/leader", {"name": b64(name)})
    assert set(answer) == {"header", "kv"}
    kv: dict[str, Any] = answer["kv"]
    return kv


def test_campaign(target: Target, name: bytes) -> None:
    lease = granted(target)
    revision = target.revision()
    leader = elected(target, name, lease)
    assert leader == {
        "name": b64(name),
        "key": b64(name + b"/" + f"{lease:x}".encode()),
        "rev": str(revision + 1),
        "lease": str(lease),
    }
    [kv] = target.range(**prefix(name))["kvs"]
    assert kv == {
        "key": leader["key"],
        "create_revision": leader["rev"],
        "mod_revision": leader["rev"],
        "version": "1",
        "value": b64(b"v"),
        "lease": str(lease),
    }
    assert leader_of(target, name) == kv


def test_campaign_again_with_another_value_proclaims_it(target: Target, name: bytes) -> None:
    lease = granted(target)
    leader = elected(target, name, lease, b"1")
    assert elected(target, name, lease, b"2") == leader
    kv = leader_of(target, name)
    assert (kv["value"], kv["create_revision"], kv["version"]) == (b64(b"2"), leader["rev"], "2")
    revision = target.revision()
    assert elected(target, name, lease, b"2") == leader
    assert target.revision() == revision


def test_campaign_without_a_value(target: Target, name: bytes) -> None:
    lease = granted(target)
    answer = target.ok("election/campaign", {"name": b64(name), "lease": lease})
    assert unb64(answer["leader"]["key"]) == key_of(name, lease)
    assert "value" not in leader_of(target, name)


def test_campaign_with_an_unknown_lease(target: Target, name: bytes) -> None:
    body = {"name": b64(name), "lease": 4, "value": b64("v")}
    target.refused("election/campaign", body, UNKNOWN, "etcdserver: requested lease not found")
    assert queue(target, name) == []


def test_nobody_leads(target: Target, name: bytes) -> None:
    target.refused("election/leader", {"name": b64(name)}, UNKNOWN, NO_LEADER)
    target.put(b64(name + b"alike/1"))
    target.refused("election/leader", {"name": b64(name)}, UNKNOWN, NO_LEADER)


def test_proclaim(target: Target, name: bytes) -> None:
    leader = elected(target, name, granted(target))
    revision = target.revision()
    answer = target.ok("election/proclaim", {"leader": leader, "value": b64("new")})
    assert set(answer) == {"header"}
    assert revision_of(answer) == revision + 1
    kv = leader_of(target, name)
    assert (kv["value"], kv["create_revision"], kv["lease"]) == (b64("new"), leader["rev"], leader["lease"])


def test_proclaim_by_another(target: Target, name: bytes) -> None:
    leader = elected(target, name, granted(target))
    for wrong in ({"rev": str(int(leader["rev"]) + 1)}, {"rev": "0"}, {"key": b64(name + b"/1")}):
        target.refused("election/proclaim", {"leader": {**leader, **wrong}, "value": b64("x")}, UNKNOWN, NOT_LEADER)
    assert leader_of(target, name)["value"] == b64("v")


def test_resign(target: Target, name: bytes) -> None:
    leader = elected(target, name, granted(target))
    revision = target.revision()
    answer = target.ok("election/resign", {"leader": leader})
    assert set(answer) == {"header"}
    assert revision_of(answer) == revision + 1
    target.refused("election/leader", {"name": b64(name)}, UNKNOWN, NO_LEADER)
    target.refused("election/proclaim", {"leader": leader, "value": b64("x")}, UNKNOWN, NOT_LEADER)
    assert target.ok("election/resign", {"leader": leader})["header"]["revision"] == str(revision + 1)


def test_resign_of_an_earlier_term_changes_nothing(target: Target, name: bytes) -> None:
    lease = granted(target)
    old = elected(target, name, lease)
    target.ok("election/resign", {"leader": old})
    new = elected(target, name, lease)
    assert new["key"] == old["key"]
    assert int(new["rev"]) > int(old["rev"])
    target.post("election/resign", {"leader": old})
    assert leader_of(target, name)["create_revision"] == new["rev"]


@pytest.mark.parametrize("path", ["election/proclaim", "election/resign"])
@pytest.mark.parametrize("body", [{}, b"", {"value": "eA=="}, {"leader": None}])
def test_the_leader_must_be_given(target: Target, path: str, body: dict[str, Any] | bytes) -> None:
    target.refused(path, body, UNKNOWN, NO_FIELD)


@pytest.mark.parametrize("path", ["election/campaign", "election/proclaim", "election/leader", "election/resign"])
@pytest.mark.parametrize("body", [b'{"name": 1, "leader": 1}', b'{"name": "?", "leader": "?"}', b"["])
def test_what_cannot_be_read(target: Target, path: str, body: bytes) -> None:
    target.refused(path, body, INVALID_ARGUMENT)


def test_a_second_candidate_waits_and_follows(target: Target, name: bytes) -> None:
    first, second = granted(target), granted(target)
    leader = elected(target, name, first, b"1")
    connection = waiting(target, "election/campaign", name, second, value=b64("2"))
    assert not connection.has_more(0.05)
    assert leader_of(target, name)["value"] == b64("1")
    target.ok("election/resign", {"leader": leader})
    answer = connection.answer()
    assert answer.status == 200
    won = answer.json()["leader"]
    assert unb64(won["key"]) == key_of(name, second)
    assert (won["lease"], won["name"]) == (str(second), b64(name))
    assert leader_of(target, name)["value"] == b64("2")
    assert leader_of(target, name)["create_revision"] == won["rev"]
    connection.close()


def test_a_candidate_follows_when_the_lease_of_the_leader_ends(target: Target, name: bytes) -> None:
    first, second = granted(target), granted(target)
    elected(target, name, first)
    connection = waiting(target, "election/campaign", name, second, value=b64("2"))
    target.ok("lease/revoke", {"ID": first})
    assert unb64(connection.answer().json()["leader"]["key"]) == key_of(name, second)
    connection.close()


def test_a_candidate_that_goes_away_loses_its_place(target: Target, name: bytes) -> None:
    first, second = granted(target), granted(target)
    elected(target, name, first)
    waiting(target, "election/campaign", name, second, value=b64("2")).close()
    wait_until(lambda: queue(target, name) == [key_of(name, first)], "the place is given up")


def test_observe_tells_the_leader_and_each_change(target: Target, name: bytes) -> None:
    first, second = granted(target), granted(target)
    leader = elected(target, name, first, b"1")
    with target.stream("election/observe", {"name": b64(name)}) as stream:
        told = stream.result()
        assert set(told) == {"header", "kv"}
        assert told["kv"] == leader_of(target, name)
        assert (stream.head().status, stream.head().headers["content-type"]) == (200, "application/json")
        target.ok("election/proclaim", {"leader": leader, "value": b64("1b")})
        assert stream.result()["kv"] == leader_of(target, name)
        connection = waiting(target, "election/campaign", name, second, value=b64("2"))
        target.ok("election/resign", {"leader": leader})
        assert connection.answer().status == 200
        told = stream.result()["kv"]
        assert (unb64(told["key"]), told["value"]) == (key_of(name, second), b64("2"))
        connection.close()


def test_observe_waits_for_a_leader(target: Target, name: bytes) -> None:
    with target.stream("election/observe", {"name": b64(name)}) as stream:
        if target.is_kvnode:
            stream.head()
        leader = elected(target, name, granted(target), b"late")
        told = stream.result()["kv"]
        assert (told["key"], told["value"]) == (leader["key"], b64("late"))


def test_a_key_that_another_client_made_leads(target: Target, name: bytes) -> None:
    lease = granted(target)
    target.put(b64(key_of(name, lease)), b64("by hand"), lease=lease)
    assert leader_of(target, name)["value"] == b64("by hand")


def test_proclaim_and_resign_look_at_key_and_revision_alone(target: Target, name: bytes) -> None:
    """Name and lease of the leader's key are not asked for; a proclaimed value keeps the lease that was given."""
    leader = elected(target, name, granted(target))
    short = {"key": leader["key"], "rev": leader["rev"], "lease": leader["lease"]}
    target.ok("election/proclaim", {"leader": short, "value": b64("2")})
    assert leader_of(target, name)["value"] == b64("2")
    target.ok("election/resign", {"leader": {"key": leader["key"], "rev": int(leader["rev"])}})
    assert queue(target, name) == []


def test_resign_of_a_key_that_is_not_there(target: Target, name: bytes) -> None:
    leader = {"name": b64(name), "key": b64(name + b"/1"), "rev": "5", "lease": "1"}
    revision = target.revision()
    assert set(target.ok("election/resign", {"leader": leader})) == {"header"}
    assert target.revision() == revision


def test_observe_ends_with_its_client(target: Target, name: bytes) -> None:
    lease = granted(target)
    leader = elected(target, name, lease)
    for _ in range(3):
        with target.stream("election/observe", {"name": b64(name)}) as stream:
            assert stream.result()["kv"]["key"] == leader["key"]
    target.ok("election/proclaim", {"leader": leader, "value": b64("2")})
    wait_until(lambda: open_watches(target) == 0, "the watches of those who observed are freed")
