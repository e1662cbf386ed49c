"""The response header: who answered, and at which revision."""

from __future__ import annotations

from tests.etcd.target import Target
from tests.etcd.words import b64, revision_of


def test_a_fresh_store_is_at_revision_1_and_the_first_write_makes_2(target: Target) -> None:
    empty, put = target.first
    assert revision_of(empty) == 1
    assert set(empty) == {"header"}
    assert revision_of(put) == 2


def test_the_header_names_cluster_member_revision_and_term(target: Target, own: bytes) -> None:
    header = target.range(key=b64(own))["header"]
    assert set(header) == {"cluster_id", "member_id", "revision", "raft_term"}
    assert all(isinstance(number, str) for number in header.values()), header
    assert all(0 < int(number) < 1 << 64 for number in header.values()), header
