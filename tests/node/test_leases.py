"""Leases in virtual time: never early, late by little, whoever leads, however often that changes (LE1–LE8)."""

from __future__ import annotations

import asyncio

import pytest

from kvnode.errors import LeaseNotFound, TryAgain, Unknown
from kvnode.ids import NodeId
from kvnode.kv.requests import LeaseGrant, LeaseKeepAlive, LeaseRead, LeaseRevoke, Put
from kvnode.sim.runtime.cluster import Cluster
from tests.node.scenario import simulate

TTL_MS = 10_000


async def grant(cluster: Cluster, member: int = 1, ttl_ms: int = TTL_MS) -> int:
    reply = await cluster.kv(member).execute(LeaseGrant(ttl_ms))
    return reply.id


async def put(cluster: Cluster, key: bytes, lease: int, member: int = 1) -> None:
    await cluster.kv(member).execute(Put(key, b"v", lease=lease))


async def is_there(cluster: Cluster, key: bytes, member: int = 1) -> bool:
    return await cluster.kv(member).get(key) is not None


async def gone_at(cluster: Cluster, key: bytes, member: int = 1) -> float:
    while await is_there(cluster, key, member):
        await asyncio.sleep(0.05)
    return cluster.loop.time()


def test_a_lease_that_nobody_renews_ends_in_time_and_its_keys_go_in_one_revision() -> None:
    """LE-T1."""

    async def scenario(cluster: Cluster) -> None:
        began = cluster.loop.time()
        lease = await grant(cluster)
        for key in (b"a", b"b", b"c"):
            await put(cluster, key, lease, member=2)
        revision = (await cluster.kv(1).range_prefix(b"")).revision
        lasted = await gone_at(cluster, b"a") - began
        assert TTL_MS / 1e3 <= lasted < TTL_MS / 1e3 + 1.3
        await cluster.settle()
        for member in cluster.ids:
            found = await cluster.kv(member).history(b"a")
            assert [kv.version for kv in found.items] == [0, 1]
            assert (await cluster.kv(member).range_prefix(b"")).revision == revision + 1, "one revision"
            assert not await is_there(cluster, b"c", member)
        with pytest.raises(LeaseNotFound):
            await cluster.kv(3).execute(LeaseKeepAlive(lease))

    simulate(scenario)


def test_renewals_on_any_node_keep_it_and_are_not_logged() -> None:
    async def scenario(cluster: Cluster) -> None:
        await asyncio.sleep(0.5)  # a new leader checkpoints what it has taken over
        lease = await grant(cluster)
        await put(cluster, b"k", lease)
        last = cluster.members[NodeId(1)].node.status().last_index
        for turn in range(20):
            await asyncio.sleep(TTL_MS / 3e3)
            reply = await cluster.kv(1 + turn % 3).execute(LeaseKeepAlive(lease))
            assert reply.ttl_ms == TTL_MS
        assert await is_there(cluster, b"k")
        assert cluster.members[NodeId(1)].node.status().last_index == last
        told = await cluster.kv(2).execute(LeaseRead(lease))
        assert told.keys == (b"k",)
        assert TTL_MS - 1_000 < told.remaining_ms <= TTL_MS
        await cluster.kv(3).execute(LeaseRevoke(lease))
        assert not await is_there(cluster, b"k", 2)

    simulate(scenario)


def test_a_dead_holders_lease_ends_though_leaders_die_every_half_of_its_ttl_and_a_living_ones_never() -> None:
    """LE-T2: what was left is checkpointed, and the checkpoint is taken back by the next renewal."""

    async def scenario(cluster: Cluster) -> None:
        dead, living = await grant(cluster), await grant(cluster)
        await put(cluster, b"dead", dead)
        await put(cluster, b"living", living)
        gone = asyncio.ensure_future(gone_at(cluster, b"dead"))
        is_over = False

        async def renew() -> None:
            while not is_over:
                for member in cluster.ids:
                    try:
                        await cluster.kv(member).execute(LeaseKeepAlive(living))
                    except (TryAgain, Unknown, KeyError):  # it is down
                        continue
                    break
                await asyncio.sleep(TTL_MS / 3e3)

        renewing = asyncio.ensure_future(renew())
        began = cluster.loop.time()
        for _ in range(20):
            await asyncio.sleep(TTL_MS / 2e3)
            leader = (await cluster.elect()).id
            if leader == 1:  # who asks lives
                await cluster.members[leader].node.transfer_leadership(NodeId(2))
                continue
            cluster.kill(leader)
            await cluster.start(leader)
        assert await gone - began < 3.5 * TTL_MS / 1e3
        assert await is_there(cluster, b"living")
        is_over = True
        await renewing

    simulate(scenario)
