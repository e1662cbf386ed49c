"""Members over HTTP: every change as the node is asked for it, refusals with code and sentence, odd bodies."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kvnode.config import Config
from kvnode.errors import Conflict, KvnodeError, MemberNotFound, NotReady, Timeout
from kvnode.ids import NodeId
from kvnode.kv.available import AliveMember
from kvnode.kv.members import AddMember, MemberChange, PromoteMember, RemoveMember, UpdateMember
from tests.api.fake import FakeAdmin
from tests.api.fake_available import FakeAvailable
from tests.api.raw import Door

PEER = "10.0.0.4:7501"


async def post(door: Door, **fields: Any) -> Any:
    return await door.ask("POST", "/v1/members", json.dumps(fields).encode())


async def test_the_members_as_this_node_sees_them(door: Door) -> None:
    answer = (await door.ask("GET", "/v1/members")).json
    assert (answer["cluster_id"], answer["cluster_name"]) == ("00112233445566ff", "local")
    assert (answer["leader"], answer["last_id"], answer["configuration_index"]) == (1, 3, 0)
    voter, learner = answer["members"]
    assert (voter["id"], voter["name"], voter["role"], voter["replaces"]) == (1, "one", "voter", None)
    assert (voter["peer_address"], voter["client_url"], voter["version"]) == ("127.0.0.1:7501", "127.0.0.1:7401", "0")
    assert (learner["role"], learner["wants_vote"], learner["replaces"]) == ("learner", True, 2)
    assert (learner["match_index"], learner["lag"], learner["connected"]) == (4, 5, False)
    assert "settings" not in answer
    with_settings = (await door.ask("GET", "/v1/members?settings=1")).json
    assert with_settings.pop("settings") == Config().cluster_scope()
    assert with_settings == answer
    status = (await door.ask("GET", "/v1/status")).json
    assert status["members"] == answer["members"]


async def test_what_gossip_says_of_them(door: Door, admin: FakeAdmin, plane: FakeAvailable) -> None:
    admin.ready = False
    plane.members = (
        AliveMember(id=NodeId(1), status="alive", number=4, rtt_ms=0.0, since_ms=9, last_heard_ms=0, applied_index=7),
        AliveMember(id=NodeId(3), status="dead", client_url="http://127.0.0.1:7403", since_ms=60_000),
    )
    answer = (await door.ask("GET", "/v1/members")).json
    one, three = answer["members"]
    assert (one["status"], one["number"], one["rtt_ms"], one["since_ms"]) == ("alive", 4, 0.0, 9)
    assert (one["last_heard_ms"], one["applied_index"], one["role"]) == (0, 7, "voter")
    assert (three["status"], three["rtt_ms"], three["since_ms"]) == ("dead", None, 60_000)
    assert three["client_url"] == "http://127.0.0.1:7403", "where the configuration knows none yet"
    assert (await door.ask("GET", "/v1/status")).json["members"] == answer["members"]
    refused = await door.ask("GET", "/readyz")
    assert refused.json["error"]["detail"]["unheard"] == [3]
    plane.members = ()
    assert {each["status"] for each in (await door.ask("GET", "/v1/members")).json["members"]} == {"unknown"}


@pytest.mark.parametrize(
    ("fields", "change"),
    [
        ({}, AddMember(PEER)),
        ({"name": "four"}, AddMember(PEER, "four")),
        ({"incarnation": "00000000000000Ff"}, AddMember(PEER, incarnation=255)),
        ({"promote": True}, AddMember(PEER, promote=True)),
        ({"replaces": 2}, AddMember(PEER, promote=True, replaces=NodeId(2))),
    ],
)
async def test_a_member_is_added(door: Door, admin: FakeAdmin, fields: dict[str, Any], change: AddMember) -> None:
    reply = await post(door, peer=PEER, **fields)
    assert reply.status == 200
    assert reply.json["id"] == 3
    assert {"cluster_id", "cluster_name", "members", "configuration_index", "feature_level"} <= reply.json.keys()
    assert admin.changes[-1][0] == change


@pytest.mark.parametrize(
    ("method", "path", "body", "change"),
    [
        ("POST", "/v1/members/3/promote", b"", PromoteMember(NodeId(3))),
        ("POST", "/v1/members/3/promote?force=1", b"", PromoteMember(NodeId(3), force=True)),
        ("DELETE", "/v1/members/2", b"", RemoveMember(NodeId(2))),
        ("DELETE", "/v1/members/2?force=1", b"", RemoveMember(NodeId(2), force=True)),
        ("PUT", "/v1/members/2", b'{"peer": "[::1]:7502"}', UpdateMember(NodeId(2), "[::1]:7502")),
    ],
)
async def test_a_member_is_changed(
    door: Door, admin: FakeAdmin, method: str, path: str, body: bytes, change: MemberChange
) -> None:
    reply = await door.ask(method, path, body)
    assert (reply.status, reply.json["id"]) == (200, change.id)  # type: ignore[union-attr]
    assert admin.changes[-1][0] == change


@pytest.mark.parametrize(
    ("error", "status", "outcome"),
    [
        (Conflict("member 3 has not caught up"), 409, "not-applied"),
        (MemberNotFound("there is no member 3"), 404, "not-applied"),
        (NotReady("another change is not committed yet"), 503, "not-applied"),
        (Timeout("no answer"), 504, "unknown"),
    ],
)
async def test_refusals_keep_code_sentence_and_outcome(
    door: Door, admin: FakeAdmin, error: KvnodeError, status: int, outcome: str
) -> None:
    admin.fail_change = error
    reply = await door.ask("POST", "/v1/members/3/promote?timeout=2s")
    assert (reply.status, reply.code) == (status, error.code)
    assert reply.json["error"]["message"] == error.message
    assert reply.headers["kv-outcome"] == outcome
    assert admin.changes[-1][1].timeout_ms == 2_000


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({}, "peer"),
        ({"peer": 7}, "peer"),
        ({"peer": "10.0.0.4"}, "host:port"),
        ({"peer": "10.0.0.4:0"}, "listen on"),
        ({"peer": "0.0.0.0:7501"}, "listen on"),
        ({"peer": "[::]:7501"}, "listen on"),
        ({"peer": "a" * 300 + ":1"}, "peer"),
        ({"peer": PEER, "name": "a\nb"}, "name"),
        ({"peer": PEER, "name": "x" * 65}, "name"),
        ({"peer": PEER, "incarnation": 7}, "incarnation"),
        ({"peer": PEER, "incarnation": "１" * 16}, "incarnation"),
        ({"peer": PEER, "promote": 1}, "promote"),
        ({"peer": PEER, "replaces": "2"}, "replaces"),
        ({"peer": PEER, "replaces": -1}, "replaces"),
        ({"peer": PEER, "replaces": 2, "promote": False}, "promote"),
    ],
)
async def test_odd_bodies_are_refused_by_name(door: Door, admin: FakeAdmin, fields: dict[str, Any], word: str) -> None:
    reply = await post(door, **fields)
    assert (reply.status, reply.code) == (400, "bad_request")
    assert word in reply.json["error"]["message"]
    assert admin.changes == []


async def test_what_is_not_known_is_refused(door: Door, admin: FakeAdmin) -> None:
    assert (await post(door, peer=PEER, vote=True)).code == "unknown_parameter"
    assert (await door.ask("PUT", "/v1/members/2", b'{"peer": "a:1", "name": "x"}')).code == "unknown_parameter"
    assert (await door.ask("DELETE", "/v1/members/2?sure=1")).code == "unknown_parameter"
    assert (await door.ask("DELETE", "/v1/members/two")).code == "bad_request"
    assert (await door.ask("DELETE", "/v1/members/0")).code == "bad_request"
    assert (await door.ask("DELETE", "/v1/members/2", b"{}")).code == "bad_request"
    assert (await door.ask("POST", "/v1/members", b"{" * 9_000)).code == "too_large"
    assert (await door.ask("POST", "/v1/members", b"[]")).code == "bad_request"
    assert (await door.ask("PATCH", "/v1/members/2")).status == 405
    assert (await door.ask("POST", "/v1/members/2", b"{}")).status == 405
    keyed = await door.ask("DELETE", "/v1/members/2", Idempotency_Key="k")
    assert keyed.code == "bad_request"
    assert admin.changes == []


async def test_a_change_need_not_be_forwarded(door: Door, admin: FakeAdmin) -> None:
    await door.ask("DELETE", "/v1/members/2", Kv_No_Forward="1")
    assert admin.changes[-1][1].forward is False
