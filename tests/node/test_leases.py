"""Leases in virtual time: never early, late by little, whoever leads, however often that changes (LE1–LE8)."""

from __future__ import annotations

import asyncio

import pytest

from kvnode.errors import Conflict, LeaseNotFound, TryAgain, Unknown
from kvnode.ids import NodeId
from kvnode.kv.requests import (
    LEASE_IDS,
    LEASE_TTL_MS_MAX,
    LeaseGrant,
    LeaseKeepAlive,
    LeaseList,
    LeaseRead,
    LeaseRevoke,
    Put,
)
from kvnode.node.leases import Lessor
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


def test_etcd_17132_a_checkpoint_outlives_three_elections() -> None:
    """etcd #17132: at the third election what was left of a lease was forgotten, and it began anew."""

    async def scenario(cluster: Cluster) -> None:
        await asyncio.sleep(0.5)
        lease = await grant(cluster)
        await put(cluster, b"k", lease)
        began = cluster.loop.time()
        await asyncio.sleep(TTL_MS * 0.7 / 1e3)
        left_ms = cluster.members[NodeId(1)].node._machine.leases.get(lease).remaining_ms
        assert 0 < left_ms < TTL_MS * 0.65, "two checkpoints by now"
        for _ in range(3):
            leader = (await cluster.elect()).id
            successor = next(member for member in cluster.ids if member != leader)
            await cluster.members[leader].node.transfer_leadership(successor)
            assert (await cluster.elect()).id == successor
            assert cluster.members[successor].node._machine.leases.get(lease).remaining_ms == left_ms
        elected = cluster.loop.time()
        gone = await gone_at(cluster, b"k")
        assert gone - began >= TTL_MS / 1e3
        assert gone - elected < left_ms / 1e3 + 1.3, "not its whole TTL once more"

    simulate(scenario)


def test_etcd_9935_an_end_that_failed_is_tried_again() -> None:
    """etcd #9935, #10686: a leader that could not end a lease forgot it, and its keys stayed for ever."""

    async def scenario(cluster: Cluster) -> None:
        await asyncio.sleep(0.5)
        lease = await grant(cluster)
        await put(cluster, b"k", lease)
        leader = (await cluster.elect()).id
        await asyncio.sleep(TTL_MS / 1e3 - 0.15)
        for member in cluster.ids:  # the end is proposed, and goes nowhere
            if member != leader:
                cluster.network.silence(leader, member)
        await asyncio.sleep(0.25)
        duties = cluster.members[leader].node._duties._duties
        assert [duty.ended for duty in duties if isinstance(duty, Lessor)] == [1], "it was decided"
        tables = [cluster.members[member].node._machine.leases for member in cluster.ids if member != leader]
        assert all(table.get(lease) is not None for table in tables), "and nobody has heard of that"
        cluster.network.heal()
        await gone_at(cluster, b"k")
        await cluster.settle()
        assert all(cluster.members[member].node.lease_count == 0 for member in cluster.ids)

    simulate(scenario)


def test_a_lease_that_a_client_has_numbered_is_one_like_all_others() -> None:
    """Negative ids, the ends of the range: renewed on any node, taken over by another leader, ended in time."""

    async def scenario(cluster: Cluster) -> None:
        numbered = [-12, LEASE_IDS[0], LEASE_IDS[-1]]
        for lease in numbered:
            assert (await cluster.kv(2).execute(LeaseGrant(TTL_MS, lease))).id == lease
            await put(cluster, b"%d" % lease, lease, member=3)
        with pytest.raises(Conflict):
            await cluster.kv(1).execute(LeaseGrant(TTL_MS, -12))
        long = await cluster.kv(2).execute(LeaseGrant(LEASE_TTL_MS_MAX, 7))
        assert long.ttl_ms == LEASE_TTL_MS_MAX
        await asyncio.sleep(TTL_MS / 2e3)
        await cluster.kv(3).execute(LeaseKeepAlive(-12))
        await asyncio.sleep(TTL_MS * 0.6 / 1e3)
        assert await is_there(cluster, b"-12", 2)
        await gone_at(cluster, b"%d" % LEASE_IDS[0])
        await gone_at(cluster, b"%d" % LEASE_IDS[-1])
        leader = (await cluster.elect()).id
        successor, other = (member for member in cluster.ids if member != leader)
        await cluster.members[leader].node.transfer_leadership(NodeId(successor))
        await asyncio.sleep(0.5)  # it sets the deadlines of all that it has taken over
        listed = (await cluster.kv(successor).execute(LeaseList())).leases
        assert [view.id for view in listed] == [7, -12]
        assert listed[0].remaining_ms > listed[1].remaining_ms > 0, "told by the leader's clock"
        assert [view.remaining_ms for view in (await cluster.kv(other).execute(LeaseList())).leases] == [-1, -1]
        await cluster.kv(1).execute(LeaseRevoke(-12))
        assert not await is_there(cluster, b"-12")

    simulate(scenario, cluster__feature_level_max=4)


def test_keys_of_a_lease_come_in_pages() -> None:
    async def scenario(cluster: Cluster) -> None:
        lease = await grant(cluster)
        for key in (b"a", b"b", b"c"):
            await put(cluster, key, lease)
        assert (await cluster.kv(2).execute(LeaseRead(lease, b"a"))).keys == (b"b", b"c")
        counted = await cluster.kv(2).execute(LeaseRead(lease, count_only=True))
        assert (counted.keys, counted.count) == ((), 3)

    simulate(scenario)
