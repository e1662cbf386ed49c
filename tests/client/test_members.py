"""Members by the client, over the real front door: changes arrive as they were asked for; what may be repeated."""

from __future__ import annotations

from collections.abc import AsyncIterator
from unittest.mock import patch

import msgspec
import pytest

from kvnode import errors
from kvnode.client import members
from kvnode.client.client import Client, _now_ms
from kvnode.client.endpoints import RetryPolicy
from kvnode.client.members import MembersRead, Transfer
from kvnode.config import Config
from kvnode.ids import NodeId
from kvnode.kv.members import AddMember, MemberChange, PromoteMember, RaiseFeatureLevel, RemoveMember, UpdateMember
from tests.client.local_node import LocalNode, served

PEER = "10.0.0.4:7501"


@pytest.fixture
async def node() -> LocalNode:
    return LocalNode()


@pytest.fixture
async def kv(node: LocalNode) -> AsyncIterator[Client]:
    async with served(node) as address, Client(address, retry=RetryPolicy(base_ms=1, cap_ms=4)) as client:
        yield client


async def test_whom_gossip_takes_for_dead_is_asked_after_the_others(node: LocalNode) -> None:
    async with served(node) as address, served(LocalNode()) as other, Client([address, other]) as client:
        [one] = node.members().members
        dead = msgspec.structs.replace(one, client_url=f"http://{other}", status="dead")
        seen = msgspec.structs.replace(node.members(), members=(dead,))
        client._endpoints.on_leader_hint(address, 0)
        with patch.object(node, "members", lambda: seen):
            assert await client.members() == seen
        now_ms, endpoints = _now_ms(), client._endpoints
        assert {endpoints.choose(now_ms)} | {endpoints.choose_nearest(now_ms) for _ in range(100)} == {address}


async def test_members_come_as_the_node_sees_them(node: LocalNode, kv: Client) -> None:
    assert await kv.members() == node.members()
    assert (await kv.members(settings=True)).settings == Config().cluster_scope()


async def test_a_member_from_its_joining_to_its_end(node: LocalNode, kv: Client) -> None:
    wanted: list[MemberChange] = [
        AddMember(PEER, "four", 0xAB, promote=True, replaces=NodeId(1)),
        PromoteMember(NodeId(2)),
        PromoteMember(NodeId(2), force=True),
        UpdateMember(NodeId(2), "10.0.0.9:7501"),
        RemoveMember(NodeId(1), force=True),
        RemoveMember(NodeId(2)),
    ]
    for change in wanted:
        changed = await kv.change_members(change)
        assert changed.members == node.members().members
        assert changed.id == getattr(change, "id", 2)
    assert node.changes == wanted
    await kv.change_members(AddMember(PEER))
    assert node.changes[-1] == AddMember(PEER), "what is left out arrives as left out"


async def test_refusals_are_the_classes_of_the_tree(kv: Client) -> None:
    with pytest.raises(errors.MemberNotFound):
        await kv.change_members(RemoveMember(NodeId(9)))
    with pytest.raises(errors.BadRequest):
        await kv.change_members(AddMember("nowhere"))
    with pytest.raises(errors.BadRequest, match="by themselves"):
        await kv.change_members(RaiseFeatureLevel(2))
    with pytest.raises(errors.MemberNotFound):
        await kv.transfer_leadership(9)
    with pytest.raises(errors.Conflict):
        await kv.transfer_leadership()
    assert await kv.transfer_leadership(1) == 1


async def test_what_a_new_leader_cannot_do_yet_is_asked_for_again(node: LocalNode, kv: Client) -> None:
    node.refuse_next(errors.NotReady("no entry of its own term is committed yet"), errors.NoLeader("nobody leads"))
    await kv.change_members(AddMember(PEER))
    assert len(node.changes) == 1


@pytest.mark.parametrize(
    ("request_", "again"),
    [
        (AddMember(PEER, incarnation=7), True),
        (AddMember(PEER), False),
        (UpdateMember(NodeId(2), PEER), True),
        (RemoveMember(NodeId(2)), False),
        (PromoteMember(NodeId(2)), False),
        (MembersRead(), True),
        (Transfer(NodeId(2)), False),
    ],
)
def test_only_what_does_the_same_twice_may_be_repeated(request_: members.MemberRequest, *, again: bool) -> None:
    assert members.is_repeatable(request_) is again


async def test_a_joiner_asks_again_after_an_unknown_outcome_and_nobody_else(node: LocalNode, kv: Client) -> None:
    lost = errors.LeadershipLost("it may or may not have been added")
    node.refuse_next(lost)
    await kv.change_members(AddMember(PEER, incarnation=7))
    assert len(node.changes) == 1
    node.refuse_next(lost)
    with pytest.raises(errors.Unknown):
        await kv.change_members(AddMember(PEER))
