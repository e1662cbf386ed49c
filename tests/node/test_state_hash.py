"""The hash of a state through the running node: the same everywhere, at the newest revision and in the past."""

from __future__ import annotations

import asyncio

import pytest

from kvnode.errors import Compacted, FutureRevision, TryAgain, Unknown
from kvnode.kv.interface import Options
from kvnode.sim.runtime.cluster import Cluster
from tests.node.scenario import simulate


def test_it_is_the_same_on_every_node() -> None:
    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.elect()
        kv = cluster.kv(leader.id)
        for number in range(50):
            await kv.put(f"k{number % 20}", str(number))
        newest = [await node.state_hash() for node in cluster.nodes().values()]
        assert {(found.revision, found.items) for found in newest} == {(51, 20)}, "linearizable on followers, too"
        assert len({found.hash for found in newest}) == 1
        earlier = [await node.state_hash(11) for node in cluster.nodes().values()]
        assert {(found.revision, found.items) for found in earlier} == {(11, 10)}
        assert {found.hash for found in earlier}.isdisjoint(found.hash for found in newest)
        with pytest.raises(FutureRevision):
            await leader.state_hash(52)
        await kv.compact(40)
        with pytest.raises(Compacted):
            await leader.state_hash(11)

    simulate(scenario)


def test_a_node_that_cannot_know_what_is_newest_does_not_say() -> None:
    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.elect()
        follower = next(node for id_, node in cluster.nodes().items() if id_ != leader.id)
        cluster.network.isolate(follower.id)
        await asyncio.sleep(1.0)
        with pytest.raises((TryAgain, Unknown)):
            await follower.state_hash(0, Options(timeout_ms=500))

    simulate(scenario)
