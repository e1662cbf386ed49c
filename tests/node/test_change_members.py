"""Changes of members through the running node: judged by the leader wherever one asks, and honest."""

from __future__ import annotations

import asyncio

import pytest

from kvnode.errors import (
    BadRequest,
    Conflict,
    LeadershipLost,
    MemberNotFound,
    MemberRemoved,
    NoLeader,
    NotReady,
    Timeout,
)
from kvnode.ids import NodeId
from kvnode.kv.interface import Options
from kvnode.kv.members import AddMember, MemberChange, PromoteMember, RaiseFeatureLevel, RemoveMember, UpdateMember
from kvnode.node.node import Node
from kvnode.sim.runtime.cluster import Cluster
from tests.node.scenario import simulate

PEER = "10.0.0.4:7501"


def a_follower(cluster: Cluster, leader: Node) -> Node:
    return next(node for id_, node in cluster.nodes().items() if id_ != leader.id)


def test_a_member_is_added_moved_and_removed_from_any_node() -> None:
    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.elect()
        await asyncio.sleep(1.0)
        follower = a_follower(cluster, leader)
        for node in (leader, follower):
            added = await node.change_members(AddMember(PEER, "four"))
            four = added.members[-1]
            assert (added.id, four.id, four.role, four.name) == (added.last_id, added.id, "learner", "four")
            assert node.members().configuration_index == added.configuration_index, "applied where it was asked for"
            moved = await node.change_members(UpdateMember(added.id, "10.0.0.9:7501"))
            assert (moved.id, moved.members[-1].peer_address) == (added.id, "10.0.0.9:7501")
            removed = await node.change_members(RemoveMember(added.id))
            assert (removed.id, len(removed.members)) == (added.id, 3)
            again = await node.change_members(RemoveMember(added.id))
            assert (again.id, len(again.members)) == (added.id, 3), "who asks again is answered the same"
        assert removed.last_id == 5, "an id is never given again"
        assert (await cluster.kv(leader.id).put("k", "v")).created

    simulate(scenario)


def test_asking_again_with_the_same_directory_is_the_same_member() -> None:
    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.elect()
        change = AddMember(PEER, incarnation=0xAB, promote=True)
        first = await leader.change_members(change)
        again = await a_follower(cluster, leader).change_members(change)
        assert (first.id, again.id, len(again.members)) == (4, 4, 4)

    simulate(scenario)


def test_a_new_member_may_have_the_address_of_the_one_it_replaces() -> None:
    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.elect()
        old = a_follower(cluster, leader)
        address = leader.members().members[old.id - 1].peer_address
        with pytest.raises(Conflict, match=f"the address of member {old.id}"):
            await leader.change_members(AddMember(address, incarnation=7))
        added = await leader.change_members(AddMember(address, incarnation=7, promote=True, replaces=old.id))
        assert added.id == 4

    simulate(scenario)


def test_refusals_say_why_wherever_one_asks() -> None:
    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.elect()
        for node in (leader, a_follower(cluster, leader)):
            with pytest.raises(MemberNotFound, match="there is no member 9: it never was one"):
                await node.change_members(RemoveMember(NodeId(9)))
            added = await node.change_members(AddMember(PEER))
            with pytest.raises(Conflict, match="has not caught up"):
                await node.change_members(PromoteMember(added.id))
            with pytest.raises(Conflict, match="has not joined yet"):  # nobody knows whose vote it would be
                await node.change_members(PromoteMember(added.id, force=True))
            await node.change_members(RemoveMember(added.id))
            with pytest.raises(MemberNotFound, match="was removed"):
                await node.change_members(PromoteMember(added.id))
        follower = a_follower(cluster, leader)
        with pytest.raises(NoLeader) as refused:
            await follower.change_members(RemoveMember(NodeId(1)), Options(forward=False))
        assert refused.value.detail["leader"] == leader.id

    simulate(scenario)


@pytest.mark.parametrize(
    "change",
    [
        AddMember(PEER, "n" * 300),
        AddMember(PEER, incarnation=-5),
        AddMember(PEER, incarnation=1 << 64),
        AddMember(PEER, replaces=NodeId(-1)),
        AddMember("nowhere"),
        UpdateMember(NodeId(1), "0.0.0.0:7501"),
        UpdateMember(NodeId(1), "h" * 300 + ":1"),
        RemoveMember(NodeId(-1)),
        RaiseFeatureLevel(1_000),
    ],
)
def test_what_would_end_every_node_is_refused_where_it_is_asked(change: MemberChange) -> None:
    """A configuration that cannot be read ends whoever applies it; a level nobody knows parts all members for ever."""

    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.elect()
        for node in (leader, a_follower(cluster, leader)):
            with pytest.raises(BadRequest):
                await node.change_members(change)
        await asyncio.sleep(1.0)
        assert leader.members().configuration_index == 0
        assert (await cluster.kv(leader.id).put("k", "v")).created

    simulate(scenario)


def test_a_change_that_would_cost_the_majority_is_refused_and_may_be_forced() -> None:
    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.elect()
        await asyncio.sleep(1.0)
        lost, here = (node.id for node in cluster.nodes().values() if node is not leader)
        cluster.network.isolate(lost)
        await asyncio.sleep(1.0)
        with pytest.raises(Conflict, match="the others are no majority"):
            await leader.change_members(RemoveMember(here))
        removed = await leader.change_members(RemoveMember(lost))
        assert [member.id for member in removed.members] == sorted((leader.id, here))
        assert any("there are 2 voters" in alarm for alarm in await alarms_of(leader))

    async def alarms_of(node: Node) -> tuple[str, ...]:
        await asyncio.sleep(2.0)
        return node.status().alarms

    simulate(scenario)


def test_the_leader_may_be_removed_and_the_others_go_on() -> None:
    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.elect()
        await asyncio.sleep(1.0)
        follower = a_follower(cluster, leader)
        removed = await follower.change_members(RemoveMember(leader.id))
        assert leader.id not in {member.id for member in removed.members}
        await asyncio.sleep(2.0)
        new = next(node for node in cluster.nodes().values() if node._raft.role == "leader")
        assert new is not leader
        assert (await cluster.kv(new.id).put("k", "v")).created
        assert isinstance(cluster.failures.pop(leader.id), MemberRemoved)

    simulate(scenario)


def test_what_a_leader_that_is_cut_off_was_asked_is_unknown() -> None:
    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.elect()
        await asyncio.sleep(1.0)
        cluster.network.isolate(leader.id)
        with pytest.raises((Timeout, LeadershipLost)):
            await leader.change_members(AddMember(PEER), Options(timeout_ms=1_000))
        cluster.network.heal()
        await asyncio.sleep(3.0)
        everybody = [node.members() for node in cluster.nodes().values()]
        assert len({(found.configuration_index, found.members[-1].id) for found in everybody}) == 1

    simulate(scenario)


def test_a_new_leader_is_given_the_time_to_commit_its_first_entry() -> None:
    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.elect()
        seen: list[object] = []
        put = leader._driver.queue.put_proposal

        def refuse_twice(proposed: object) -> None:
            seen.append(proposed)
            if len(seen) <= 2:
                request = proposed.id  # type: ignore[attr-defined]
                error = NotReady("another change of members is not committed yet: ask again")
                asyncio.get_running_loop().call_soon(leader._waiting.refused, request, error)
            else:
                put(proposed)  # type: ignore[arg-type]

        leader._driver.queue.put_proposal = refuse_twice  # type: ignore[method-assign]
        await leader.change_members(AddMember(PEER))
        assert len(seen) == 3
        seen.clear()
        patience_ms = leader._config.limits.no_leader_ms
        leader._driver.queue.put_proposal = lambda proposed: leader._waiting.refused(  # type: ignore[method-assign]
            proposed.id, NotReady("another change of members is not committed yet: ask again")
        )
        began = asyncio.get_running_loop().time()
        with pytest.raises(NotReady, match="another change"):
            await leader.change_members(AddMember(PEER))
        assert asyncio.get_running_loop().time() - began >= patience_ms / 1e3

    simulate(scenario)


def test_a_cluster_without_a_secret_takes_nobody_in() -> None:
    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.elect()
        with pytest.raises(Conflict, match=r"cluster\.secret_file"):
            await leader.change_members(AddMember(PEER))

    simulate(scenario, size=1, cluster__secret_file="")
