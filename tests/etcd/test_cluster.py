"""The members: their list, and changes that are refused. Changes that succeed would end the other tests' cluster."""

from __future__ import annotations

from typing import Any

import pytest

from tests.etcd.connection import Connection
from tests.etcd.target import FAILED_PRECONDITION, INVALID_ARGUMENT, NOT_FOUND, Target
from tests.etcd.words import b64

NO_SUCH_MEMBER = "etcdserver: member not found"
BAD_URLS = "etcdserver: given member URLs are invalid"


def members_of(target: Target, **request: Any) -> list[dict[str, Any]]:
    answer = target.ok("cluster/member/list", request)
    assert set(answer) == {"header", "members"}
    assert set(answer["header"]) == {"cluster_id", "member_id", "raft_term"}, "no revision"
    members: list[dict[str, Any]] = answer["members"]
    return members


@pytest.mark.parametrize("request_", [{}, {"linearizable": True}, {"linearizable": False}])
def test_the_list(target: Target, request_: dict[str, Any]) -> None:
    members = members_of(target, **request_)
    assert len(members) == (3 if target.is_kvnode else 1)
    for member in members:
        assert set(member) == {"ID", "name", "peerURLs", "clientURLs"}
        assert 0 < int(member["ID"]) < 1 << 64
        assert member["name"]
        for url in member["peerURLs"] + member["clientURLs"]:
            assert url.startswith(("http://", "https://"))
    ids = [int(member["ID"]) for member in members]
    assert ids == sorted(set(ids))
    assert len({member["name"] for member in members}) == len(members)


def test_client_urls_reach_their_members(target: Target) -> None:
    for member in members_of(target):
        for url in member["clientURLs"]:
            host, port = url.removeprefix("http://").split(":")
            connection = Connection((host, int(port)))
            connection.send("POST", "/v3/kv/range", b'{"key": "AA==", "serializable": true}')
            header = connection.answer().json()["header"]
            connection.close()
            assert header["member_id"] == member["ID"]
            assert header["cluster_id"] == target.ok("cluster/member/list", {})["header"]["cluster_id"]


def test_every_member_lists_the_same(request: pytest.FixtureRequest) -> None:
    targets: dict[str, Target] = request.getfixturevalue("kvnode_targets")
    first, *others = [members_of(target) for target in targets.values()]
    assert all(other == first for other in others)


@pytest.mark.parametrize(
    "urls",
    [
        *([], None, [""], ["nonsense"], ["127.0.0.1:2380"], ["http://127.0.0.1"], ["http://127.0.0.1:1/path"]),
        *(["ftp://127.0.0.1:1"], ["http://127.0.0.1:1", "nonsense"]),
    ],
)
@pytest.mark.parametrize("is_learner", [False, True])
def test_adding_needs_urls(target: Target, urls: list[str] | None, is_learner: bool) -> None:
    body = {"peerURLs": urls, "isLearner": is_learner}
    target.refused("cluster/member/add", body, INVALID_ARGUMENT, BAD_URLS)


def test_adding_a_url_that_is_taken(target: Target) -> None:
    before = members_of(target)
    body = {"peerURLs": before[0]["peerURLs"]}
    target.refused("cluster/member/add", body, FAILED_PRECONDITION, "etcdserver: Peer URLs already exists")
    assert members_of(target) == before


@pytest.mark.parametrize("path", ["remove", "promote", "update"])
@pytest.mark.parametrize("member", [5_000_000, "18446744073709551615", 0, None])
def test_a_member_that_is_not_there(target: Target, path: str, member: int | str | None) -> None:
    before = members_of(target)
    body = {"ID": member, "peerURLs": ["http://127.0.0.1:1"]}
    target.refused(f"cluster/member/{path}", body, NOT_FOUND, NO_SUCH_MEMBER)
    assert members_of(target) == before


def test_promoting_a_voter(target: Target) -> None:
    for member in members_of(target):
        refusal = target.refused("cluster/member/promote", {"ID": member["ID"]}, FAILED_PRECONDITION)
        assert refusal.message == "etcdserver: can only promote a learner member"


@pytest.mark.parametrize("path", ["add", "remove", "update", "promote"])
@pytest.mark.parametrize("body", [b'{"ID": "x", "peerURLs": 1}', b"[", b'{"ID": -1, "peerURLs": {}}'])
def test_what_cannot_be_read(target: Target, path: str, body: bytes) -> None:
    target.refused(f"cluster/member/{path}", body, INVALID_ARGUMENT)


def test_a_list_that_cannot_be_asked_for(target: Target) -> None:
    target.refused("cluster/member/list", b"[", INVALID_ARGUMENT)


def test_the_cluster_goes_on(target: Target, own: bytes) -> None:
    target.put(b64(own))
