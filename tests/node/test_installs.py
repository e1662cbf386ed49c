"""Snapshots installed in running nodes: what else has to be told when the state is exchanged."""

from __future__ import annotations

import asyncio

from kvnode.ids import NodeId
from kvnode.kv.members import AddMember, RemoveMember
from kvnode.node.node import Node
from kvnode.sim.runtime.cluster import Cluster
from tests.node.scenario import simulate

SMALL = {"storage__tail_bytes": 128 << 10, "storage__flush_ms": 100}
PUTS = 300
VALUE = b"x" * 4_000


async def fall_behind(cluster: Cluster, leader: Node, lost: NodeId) -> None:
    """Until the leader's log begins after everything that `lost` has."""
    for number in range(PUTS):
        await leader.put(b"k%d" % (number % 20), VALUE)
    await cluster.until(lambda: leader._raft.base.index > cluster.nodes()[lost]._raft.last_index)


def test_members_that_came_with_a_snapshot_are_told_like_any_others() -> None:
    """Else the node shows peers an old list, and lets in whoever was removed meanwhile."""

    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.elect()
        await asyncio.sleep(1.0)
        lost = next(id_ for id_ in cluster.nodes() if id_ != leader.id)
        cluster.network.isolate(lost)
        await asyncio.sleep(1.0)
        added = await leader.change_members(AddMember("10.0.0.4:7501", incarnation=7))
        removed = await leader.change_members(RemoveMember(added.id))
        await fall_behind(cluster, leader, lost)
        cluster.network.heal()
        follower = cluster.nodes()[lost]
        await cluster.until(lambda: follower._snapshots.receiver.received == 1, 60.0)
        await cluster.settle()
        roster = cluster.members[lost]._roster
        assert roster.configuration_index == removed.configuration_index
        assert cluster.members[lost].data.identity.configuration_index == removed.configuration_index

    simulate(scenario, **SMALL)
