"""Reads that a follower answers by itself: bounded ones by its own clock, causal ones by what their caller has seen."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kvnode.errors import BadRequest, StaleBoundUnmet
from kvnode.ids import NodeId
from kvnode.kv.interface import Options
from kvnode.kv.requests import Range
from kvnode.sim.runtime.cluster import Cluster
from tests.node.scenario import simulate


async def a_follower(cluster: Cluster) -> NodeId:
    leader = (await cluster.elect()).id
    return next(member for member in cluster.ids if member != leader)


def bounded(max_staleness_ms: int, **options: Any) -> Options:
    return Options(consistency="bounded", max_staleness_ms=max_staleness_ms, **options)


async def read(cluster: Cluster, member: NodeId, options: Options) -> bytes | None:
    reply = await cluster.kv(member).execute(Range(b"k"), options)
    return reply.items[0].value if reply.items else None


def test_a_bounded_read_is_local_while_a_confirmation_is_young_enough() -> None:
    async def scenario(cluster: Cluster) -> None:
        follower = await a_follower(cluster)
        await cluster.kv(follower).put("k", "1")
        assert await read(cluster, follower, bounded(1_000)) == b"1"
        sent = cluster.network.delivered
        for _ in range(20):
            assert await read(cluster, follower, bounded(10_000)) == b"1"
        assert cluster.network.delivered == sent, "nobody was asked"

    simulate(scenario)


def test_fr_t1_a_follower_that_is_cut_off_is_never_older_than_the_bound_and_then_refuses() -> None:
    """A clock key is written every 10 ms; 500 ms of staleness are allowed."""

    async def scenario(cluster: Cluster) -> None:
        follower = await a_follower(cluster)
        leader = (await cluster.elect()).id
        started = cluster.loop.time()

        async def tick() -> None:
            while True:
                await cluster.kv(leader).put("k", f"{(cluster.loop.time() - started) * 1e3:.0f}")
                await asyncio.sleep(0.01)

        ticking = asyncio.ensure_future(tick())
        await asyncio.sleep(0.5)
        refused_after: list[float] = []
        cut_at = 0.0
        for step in range(100):
            asked = (cluster.loop.time() - started) * 1e3
            try:
                value = await read(cluster, follower, bounded(500))
            except StaleBoundUnmet:
                refused_after.append(cluster.loop.time() - cut_at)
            else:
                assert value is not None
                assert asked - int(value) <= 500 + 20, "older than the bound (and a tick on its way)"
                assert not refused_after or cut_at == 0.0, "it came back without its leader"
            if step == 30:
                cluster.network.isolate(follower)
                cut_at = cluster.loop.time()
            await asyncio.sleep(0.02)
        assert refused_after
        assert refused_after[0] <= 0.5 + 0.3, "within the bound and a little"
        assert await read(cluster, follower, Options(consistency="stale")) is not None
        cluster.network.heal()
        await asyncio.sleep(1.0)
        assert await read(cluster, follower, bounded(500)) is not None
        ticking.cancel()

    simulate(scenario)


def test_young_confirmations_are_renewed_before_a_read_has_to_wait() -> None:
    async def scenario(cluster: Cluster) -> None:
        follower = await a_follower(cluster)
        await cluster.kv(follower).put("k", "1")
        cluster.network.delay_s = (0.02, 0.02)
        await read(cluster, follower, bounded(400))
        for _ in range(100):
            began = cluster.loop.time()
            await read(cluster, follower, bounded(400))
            assert cluster.loop.time() == began, "answered at once"
            await asyncio.sleep(0.05)

    simulate(scenario)


def test_fr_t2_a_causal_read_on_the_slowest_follower_sees_the_write() -> None:
    async def scenario(cluster: Cluster) -> None:
        follower = await a_follower(cluster)
        leader = (await cluster.elect()).id
        for number in range(5):
            cluster.network.clog(leader, follower)
            put = await cluster.kv(leader).put("k", f"{number}")
            causal = Options(consistency="causal", least_revision=put.revision)
            pending = asyncio.ensure_future(read(cluster, follower, causal))
            await asyncio.sleep(0.2)
            assert not pending.done()
            cluster.network.unclog(leader, follower)
            assert await pending == b"%d" % number

    simulate(scenario)


def test_a_causal_read_of_what_never_comes_is_refused_at_its_deadline() -> None:
    async def scenario(cluster: Cluster) -> None:
        follower = await a_follower(cluster)
        began = cluster.loop.time()
        with pytest.raises(StaleBoundUnmet, match="revision 99") as refusal:
            await read(cluster, follower, Options(consistency="causal", least_revision=99, timeout_ms=300))
        assert "leader_url" in refusal.value.detail
        assert cluster.loop.time() - began < 0.4
        assert cluster.nodes()[follower]._driver.reads._unseen.count == 0, "it leaves nothing behind"

    simulate(scenario)


def test_half_said_options_are_refused() -> None:
    async def scenario(cluster: Cluster) -> None:
        for options in (
            Options(consistency="bounded"),
            Options(consistency="causal"),
            Options(consistency="eventual"),
        ):
            with pytest.raises(BadRequest):
                await read(cluster, cluster.ids[0], options)

    simulate(scenario)
