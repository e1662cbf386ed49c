"""Maintenance: status, hashes, alarms, defragmentation, the stream of a snapshot, handing leadership over."""

from __future__ import annotations

import hashlib
import itertools
import re
from typing import Any

import pytest

from tests.etcd.connection import Stream
from tests.etcd.target import FAILED_PRECONDITION, INVALID_ARGUMENT, OUT_OF_RANGE, UNKNOWN, Target
from tests.etcd.words import b64, revision_of, unb64

HEADER = {"cluster_id", "member_id", "revision", "raft_term"}


def test_status(target: Target, own: bytes) -> None:
    revision = revision_of(target.put(b64(own)))
    status = target.ok("maintenance/status", {})
    header = status["header"]
    assert set(header) == HEADER
    assert revision_of(status) == revision
    numbers = ("dbSize", "leader", "raftIndex", "raftTerm", "raftAppliedIndex", "dbSizeInUse")
    for field in numbers:
        assert isinstance(status[field], str), field
        assert int(status[field]) > 0, field
    assert re.fullmatch(r"\d+\.\d+\.\d+", status["version"])
    assert status["raftTerm"] == header["raft_term"]
    assert int(status["raftAppliedIndex"]) <= int(status["raftIndex"])
    later = {"storageVersion", "dbSizeQuota", "downgradeInfo"}
    assert set(status) - later == {"header", "version", *numbers}
    members = target.ok("cluster/member/list", {})["members"]
    assert header["member_id"] in {member["ID"] for member in members}
    assert status["leader"] in {member["ID"] for member in members}


def test_status_is_of_the_member_that_answers(request: pytest.FixtureRequest) -> None:
    members: dict[str, Target] = request.getfixturevalue("kvnode_targets")
    told = {name: member.ok("maintenance/status", {}) for name, member in members.items()}
    leader = told["kvnode-leader"]["header"]["member_id"]
    assert {status["leader"] for status in told.values()} == {leader}
    assert told["kvnode-follower"]["header"]["member_id"] != leader


def test_status_and_version_agree(target: Target) -> None:
    version = target.http("GET", "/version").json()
    assert target.ok("maintenance/status", {})["version"] == version["etcdserver"]


def test_the_raft_index_grows_with_every_write(target: Target, own: bytes) -> None:
    before = target.ok("maintenance/status", {})
    target.put(b64(own))
    after = target.ok("maintenance/status", {})
    assert int(after["raftIndex"]) > int(before["raftIndex"])


def test_hash(target: Target, own: bytes) -> None:
    target.put(b64(own))
    answer = target.ok("maintenance/hash", {})
    assert set(answer) == {"header", "hash"}
    assert set(answer["header"]) == HEADER
    assert isinstance(answer["hash"], int)
    assert 0 < answer["hash"] < 1 << 32


def has_hashkv(target: Target) -> bool:
    """The path exists from late 3.5 on: before, it collided with `hash`."""
    answer = target.post("maintenance/hashkv", {})
    if answer.status == 404 and not target.is_kvnode:
        return False
    assert answer.status == 200, answer
    return True


def test_hashkv(target: Target, own: bytes) -> None:
    revision = revision_of(target.put(b64(own), b64("1")))
    if not has_hashkv(target):
        pytest.skip(f"etcd {target.version} has no maintenance/hashkv")
    answer = target.ok("maintenance/hashkv", {})
    assert set(answer) - {"compact_revision", "hash_revision"} == {"header", "hash"}
    assert isinstance(answer["hash"], int)
    assert revision_of(answer) == revision
    assert target.ok("maintenance/hashkv", {"revision": revision})["hash"] == answer["hash"]
    target.put(b64(own), b64("2"))
    assert target.ok("maintenance/hashkv", {"revision": str(revision)})["hash"] == answer["hash"]
    assert target.ok("maintenance/hashkv", {})["hash"] != answer["hash"]


def test_hashkv_of_the_future_and_of_what_is_compacted(target: Target, own: bytes) -> None:
    if not has_hashkv(target):
        pytest.skip(f"etcd {target.version} has no maintenance/hashkv")
    old = revision_of(target.put(b64(own)))
    revision = revision_of(target.put(b64(own)))
    target.refused("maintenance/hashkv", {"revision": revision + 5}, OUT_OF_RANGE)
    target.ok("kv/compaction", {"revision": revision})
    target.refused("maintenance/hashkv", {"revision": old}, OUT_OF_RANGE)
    assert target.ok("maintenance/hashkv", {})["compact_revision"] == str(revision)


def test_hashkv_is_equal_on_all_members(request: pytest.FixtureRequest, own: bytes) -> None:
    members: dict[str, Target] = request.getfixturevalue("kvnode_targets")
    revision = revision_of(members["kvnode-leader"].put(b64(own)))
    for member in members.values():
        member.range(key=b64(own))  # linearizable: it has applied the put
    hashes = [member.ok("maintenance/hashkv", {"revision": revision})["hash"] for member in members.values()]
    assert len(set(hashes)) == 1


@pytest.mark.parametrize(
    "body",
    [
        *({}, {"action": "GET"}, {"action": 0, "alarm": 0}, {"action": "GET", "alarm": "NOSPACE"}, b""),
        *({"action": "DEACTIVATE", "alarm": "NOSPACE"}, {"action": 2, "alarm": "CORRUPT", "memberID": "1"}),
    ],
)
def test_no_alarms(target: Target, body: dict[str, Any] | bytes) -> None:
    """Nothing is listed, and nothing is there to be ended. (No header in 3.4.)"""
    assert set(target.ok("maintenance/alarm", body)) <= {"header"}


@pytest.mark.parametrize("body", [{"action": "get"}, {"action": "1"}, {"alarm": "nospace"}, {"memberID": -1}, b"["])
def test_an_alarm_that_cannot_be_read(target: Target, body: dict[str, Any] | bytes) -> None:
    target.refused("maintenance/alarm", body, INVALID_ARGUMENT)


def test_defragment(target: Target, own: bytes) -> None:
    revision = revision_of(target.put(b64(own), b64("1")))
    for _ in range(2):
        assert target.ok("maintenance/defragment", {}) == {}
    answer = target.range(key=b64(own))
    assert revision_of(answer) == revision
    assert answer["kvs"][0]["value"] == b64("1")


def all_of(stream: Stream) -> list[dict[str, Any]]:
    """The results, up to the end."""
    found: list[dict[str, Any]] = []
    while True:
        try:
            found.append(stream.result())
        except EOFError:
            return found


def test_a_snapshot_is_a_stream_of_pieces_and_their_digest(target: Target, own: bytes) -> None:
    """What the pieces hold is the server's own business. The last message is their SHA-256."""
    for number in range(4):
        target.put(b64(own + b"%d" % number), b64(b"x" * 20_000))
    with target.stream("maintenance/snapshot", {}) as stream:
        messages = all_of(stream)
        assert (stream.head().status, stream.head().headers["content-type"]) == (200, "application/json")
    *pieces, last = [unb64(message["blob"]) for message in messages]
    assert all(0 < len(piece) <= 1 << 15 for piece in pieces)
    assert last == hashlib.sha256(b"".join(pieces)).digest()
    assert "remaining_bytes" not in messages[-1]
    remaining = [int(message.get("remaining_bytes", "0")) for message in messages[:-1]]
    assert remaining == sorted(remaining, reverse=True)
    assert remaining[-1] == 0
    if not target.is_kvnode:  # which learns how long its backup is only at the end, and estimates until then
        sent = list(itertools.accumulate(map(len, pieces)))
        assert remaining == [sent[-1] - each for each in sent]


def test_a_snapshot_may_be_left_in_the_middle(target: Target, own: bytes) -> None:
    for _ in range(3):
        with target.stream("maintenance/snapshot", {}) as stream:
            assert "blob" in stream.result()
    target.put(b64(own))


@pytest.mark.parametrize("body", [{"targetID": 5}, {"targetID": "5"}, {}, b""])
def test_leadership_goes_to_members_only(target: Target, body: dict[str, Any] | bytes) -> None:
    refusal = target.refused("maintenance/transfer-leadership", body, FAILED_PRECONDITION)
    expected = "not leader" if target.name == "kvnode-follower" else "bad leader transferee"
    assert refusal.message == f"etcdserver: {expected}"


def test_leadership_that_stays_where_it_is(target: Target) -> None:
    """A leader may be told to lead: nothing changes."""
    before = target.ok("maintenance/status", {})
    order = {"targetID": before["leader"]}
    if target.name == "kvnode-follower":
        target.refused("maintenance/transfer-leadership", order, FAILED_PRECONDITION, "etcdserver: not leader")
    else:
        assert target.ok("maintenance/transfer-leadership", order) == {}
    after = target.ok("maintenance/status", {})
    assert (after["leader"], after["raftTerm"]) == (before["leader"], before["raftTerm"])


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("maintenance/transfer-leadership", b'{"targetID": "x"}'),
        ("maintenance/hash", b"["),
        ("maintenance/status", b"nonsense"),
        ("maintenance/defragment", b'"text"'),
    ],
)
def test_what_cannot_be_read(target: Target, path: str, body: bytes) -> None:
    target.refused(path, body, INVALID_ARGUMENT)


def test_a_snapshot_that_cannot_be_asked_for(target: Target) -> None:
    refusal = target.refusal(target.post("maintenance/snapshot", b"nonsense"))
    assert refusal.code in {INVALID_ARGUMENT, UNKNOWN}
