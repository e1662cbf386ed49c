"""The Cluster service at the door: members as etcd shows them, changes, and refusals in etcd's words."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from kvnode.errors import Conflict, KvnodeError, NoLeader
from kvnode.ids import NodeId
from kvnode.kv.available import AliveMember
from kvnode.kv.members import AddMember, MemberChange, PromoteMember, RemoveMember, UpdateMember
from tests.api.etcd.test_maintenance import ask, refusal
from tests.api.fake import FakeAdmin, FakeKV
from tests.api.fake_available import FakeAvailable
from tests.api.raw import Door

HEADER = {"cluster_id": str(0x00112233445566FF), "member_id": "1", "raft_term": "3"}
ONE = {"ID": "1", "name": "one", "peerURLs": ["http://127.0.0.1:7501"], "clientURLs": ["http://127.0.0.1:7401"]}
THREE = {"ID": "3", "peerURLs": ["http://127.0.0.1:7503"], "isLearner": True}
NEW = "http://10.0.0.4:7500"
INVALID = (400, 3, "etcdserver: given member URLs are invalid")
EXISTS = (400, 9, "etcdserver: Peer URLs already exists")
NOT_FOUND = (404, 5, "etcdserver: member not found")


async def test_members_are_listed_without_a_revision(door: Door, kv: FakeKV) -> None:
    assert (await ask(door, "cluster/member/list")).json == {"header": HEADER, "members": [ONE, THREE]}
    assert kv.seen == [], "nobody is asked"


async def test_members_as_the_leader_knows_them(door: Door, kv: FakeKV) -> None:
    await ask(door, "cluster/member/list", {"linearizable": True})
    assert [options.consistency for _, options in kv.seen] == ["linearizable"]
    kv.fail = NoLeader("nobody leads")
    no_leader = (503, 14, "etcdserver: no leader")
    assert await refusal(door, "cluster/member/list", {"linearizable": True}) == no_leader
    assert (await ask(door, "cluster/member/list")).status == 200


async def test_where_clients_reach_a_member_is_known_by_gossip_too(door: Door, plane: FakeAvailable) -> None:
    plane.members = (AliveMember(id=NodeId(3), status="alive", number=0, client_url="10.0.0.3:7400"),)
    found = (await ask(door, "cluster/member/list")).json
    assert found["members"][1]["clientURLs"] == ["http://10.0.0.3:7400"]
    assert found["members"][1]["name"] == "node-3", "who has none was never there, for clients"


@pytest.mark.parametrize("is_learner", [False, True])
async def test_a_member_is_added_as_a_learner_that_may_become_a_voter(
    door: Door, admin: FakeAdmin, is_learner: bool
) -> None:
    found = (await ask(door, "cluster/member/add", {"peerURLs": [NEW], "isLearner": is_learner})).json
    assert found == {"header": HEADER, "member": THREE, "members": [ONE, THREE]}
    assert [change for change, _ in admin.changes] == [AddMember("10.0.0.4:7500", promote=not is_learner)]


@pytest.mark.parametrize(
    "urls",
    [
        [], ["nope"], ["http://127.0.0.1"], ["http://x:1/path"], ["ftp://x:1"], ["http://x:y"], ["http://:7"],
        ["http://0.0.0.0:7500"], [NEW, "nope"], [""], ["http://x:70000"],
    ],
)  # fmt: skip
async def test_peer_urls_that_lead_nowhere(door: Door, admin: FakeAdmin, urls: list[str]) -> None:
    assert await refusal(door, "cluster/member/add", {"peerURLs": urls}) == INVALID
    assert await refusal(door, "cluster/member/update", {"ID": "3", "peerURLs": urls}) == INVALID
    assert admin.changes == []


async def test_peer_urls_of_kinds_that_etcd_takes(door: Door, admin: FakeAdmin) -> None:
    for urls in ([NEW, "http://10.0.0.5:7500"], ["https://10.0.0.4:7500"]):
        status, code, message = await refusal(door, "cluster/member/add", {"peerURLs": urls})
        assert (status, code) == (501, 12)
        assert "http://host:port" in message
    assert admin.changes == []


async def test_a_peer_url_belongs_to_one_member(door: Door, admin: FakeAdmin) -> None:
    for address in ("127.0.0.1:7501", "127.0.0.1:7503"):
        assert await refusal(door, "cluster/member/add", {"peerURLs": [f"http://{address}"]}) == EXISTS
    assert admin.changes == []
    admin.fail_change = Conflict("127.0.0.1:7501 is the address of member 1: replace it, or remove it first")
    assert await refusal(door, "cluster/member/update", {"ID": 3, "peerURLs": ["http://127.0.0.1:7501"]}) == EXISTS


async def test_one_that_another_took_meanwhile(door: Door, admin: FakeAdmin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looked before knew nothing of it."""
    before = admin.members()

    async def lose(*_: object) -> None:
        third = msgspec.structs.replace(before.members[1], id=NodeId(4), peer_address="10.0.0.4:7500")
        after = msgspec.structs.replace(before, members=(*before.members, third))
        monkeypatch.setattr(admin, "members", lambda: after)
        raise Conflict("10.0.0.4:7500 is the address of member 4")

    monkeypatch.setattr(admin, "change_members", lose)
    assert await refusal(door, "cluster/member/add", {"peerURLs": [NEW]}) == EXISTS


async def test_an_addition_that_is_refused_for_a_reason_of_ours(door: Door, admin: FakeAdmin) -> None:
    admin.fail_change = Conflict("there are 64 members already: remove one first")
    wanted = (400, 9, "etcdserver: there are 64 members already: remove one first")
    assert await refusal(door, "cluster/member/add", {"peerURLs": [NEW]}) == wanted


@pytest.mark.parametrize(
    ("path", "body", "change"),
    [
        ("remove", {"ID": "3"}, RemoveMember(NodeId(3))),
        ("update", {"ID": 3, "peerURLs": [NEW]}, UpdateMember(NodeId(3), "10.0.0.4:7500")),
        ("promote", {"ID": "3"}, PromoteMember(NodeId(3))),
    ],
)
async def test_changes_of_a_member(
    door: Door, admin: FakeAdmin, path: str, body: dict[str, Any], change: MemberChange
) -> None:
    found = (await ask(door, f"cluster/member/{path}", body)).json
    assert found == {"header": HEADER, "members": [ONE, THREE]}
    assert [made for made, _ in admin.changes] == [change]
    for id_ in ("2", 0, str(2**64 - 1)):  # member 2 was removed
        assert await refusal(door, f"cluster/member/{path}", {**body, "ID": id_}) == NOT_FOUND
    assert await refusal(door, f"cluster/member/{path}", {**body, "ID": None}) == NOT_FOUND
    assert len(admin.changes) == 1


@pytest.mark.parametrize(
    ("path", "id_", "error", "wanted"),
    [
        ("promote", 1, None, (400, 9, "etcdserver: can only promote a learner member")),
        (
            "promote", 3, Conflict("member 3 has not caught up: it lacks 9000 entries"),
            (400, 9, "etcdserver: can only promote a learner member which is in sync with leader"),
        ),
        (
            "remove", 1, Conflict("member 1 is the last voter: promote another one first"),
            (400, 9, "etcdserver: re-configuration failed due to not enough started members"),
        ),
        ("remove", 1, NoLeader("nobody leads"), (503, 14, "etcdserver: no leader")),
    ],
)  # fmt: skip
async def test_refusals(
    door: Door, admin: FakeAdmin, path: str, id_: int, error: KvnodeError | None, wanted: tuple[int, int, str]
) -> None:
    admin.fail_change = error
    assert await refusal(door, f"cluster/member/{path}", {"ID": id_}) == wanted
