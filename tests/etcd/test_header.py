"""The response header: who answered, at which revision, in which term."""

from __future__ import annotations

from typing import Any

import pytest

from tests.etcd.operations import put
from tests.etcd.target import Target
from tests.etcd.words import b64, prefix, revision_of


def test_a_fresh_store_is_at_revision_1_and_the_first_write_makes_2(target: Target) -> None:
    empty, written = target.first
    assert revision_of(empty) == 1
    assert set(empty) == {"header"}
    assert revision_of(written) == 2


def test_the_header_names_cluster_member_revision_and_term(target: Target, own: bytes) -> None:
    header = target.range(key=b64(own))["header"]
    assert set(header) == {"cluster_id", "member_id", "revision", "raft_term"}
    assert all(isinstance(number, str) for number in header.values()), header
    assert all(0 < int(number) < 1 << 64 for number in header.values()), header


def test_every_kv_call_has_the_same_header(target: Target, own: bytes) -> None:
    first = target.range(key=b64(own))["header"]
    calls: list[tuple[str, dict[str, Any], int]] = [
        ("kv/put", {"key": b64(own)}, 1),
        ("kv/range", {"key": b64(own)}, 1),
        ("kv/range", {"key": b64(own), "revision": first["revision"], "serializable": True}, 1),
        ("kv/txn", {}, 1),
        ("kv/txn", {"success": [put(own)]}, 2),
        ("kv/deleterange", {"key": b64(own)}, 3),
        ("kv/deleterange", {"key": b64(own)}, 3),
        ("kv/compaction", {"revision": int(first["revision"]) + 1}, 3),
    ]
    for path, body, revisions in calls:
        header = target.ok(path, body)["header"]
        assert int(header.pop("raft_term")) >= int(first["raft_term"])
        assert header == {
            "cluster_id": first["cluster_id"],
            "member_id": first["member_id"],
            "revision": str(int(first["revision"]) + revisions),
        }, path


def test_lease_calls_carry_the_current_revision(target: Target, own: bytes) -> None:
    revision = revision_of(target.put(b64(own), b64("1")))
    lease = target.ok("lease/grant", {"TTL": 60})
    assert revision_of(lease) == revision
    assert revision_of(target.ok("lease/timetolive", {"ID": lease["ID"]})) == revision
    assert revision_of(target.ok("lease/revoke", {"ID": lease["ID"]})) == revision


def test_members_of_one_cluster(request: pytest.FixtureRequest, own: bytes) -> None:
    """The cluster's name is the same everywhere, each member has one of its own, and all tell the same revision."""
    members: dict[str, Target] = request.getfixturevalue("kvnode_targets")
    revision = revision_of(members["kvnode-leader"].put(b64(own), b64("1")))
    headers = [member.range(**prefix(own))["header"] for member in members.values()]
    assert len({header["cluster_id"] for header in headers}) == 1
    assert len({header["member_id"] for header in headers}) == len(members)
    assert {header["revision"] for header in headers} == {str(revision)}
    assert len({header["raft_term"] for header in headers}) == 1
