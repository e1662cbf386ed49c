"""Hybrid time of a cluster whose wall clocks are wrong: HC-T1, HC-T3, HC-T4 of the hybrid clock."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from kvnode.clocks import hybrid
from kvnode.errors import ClockDrift, KvnodeError
from kvnode.ids import NodeId
from kvnode.kv.interface import Options
from kvnode.kv.requests import Put, Range
from kvnode.raft.messages import Entry
from kvnode.sim.runtime.clock import WALL_START_MS
from kvnode.sim.runtime.cluster import Cluster
from tests.node.scenario import simulate

T_S = 0.3
LIMIT_MS = 500
TEN_MINUTES_MS = 600_000
HOUR_MS = 3_600_000


def log_of(cluster: Cluster, member: int) -> list[Entry]:
    return cluster.observer.disks[NodeId(member)].entries


def assert_stamps_grow(cluster: Cluster) -> None:
    for member in cluster.ids:
        times = [entry.time for entry in log_of(cluster, member)]
        assert all(one < other for one, other in pairwise(times))


async def put(cluster: Cluster, member: int, value: str, *, within_s: float = 5.0) -> int:
    """A write that is tried until it is done; its stamp."""
    deadline = cluster.loop.time() + within_s
    while True:
        try:
            reply = await cluster.kv(member).execute(Put(b"k", value.encode()), Options(timeout_ms=200))
        except KvnodeError:
            assert cluster.loop.time() < deadline, f"no write within {within_s} s"
            await asyncio.sleep(0.005)
        else:
            return reply.time


def test_hc_t1_a_stamps_grow_across_leaders_whose_clocks_differ() -> None:
    async def scenario(cluster: Cluster) -> None:
        for _ in range(2):
            leader = (await cluster.elect()).id
            cluster.members[leader].clock.wall_offset_ms += 300
            before = await put(cluster, leader, "by a fast clock")
            cluster.kill(leader)
            after = await put(cluster, next(iter(cluster.members)), "by its successor")
            assert after > before
            await cluster.start(leader)
            await cluster.settle()
        assert_stamps_grow(cluster)

    simulate(scenario)


def test_hc_t1_b_a_leader_whose_clock_leaps_is_replaced_and_no_log_hears_of_its_time() -> None:
    async def scenario(cluster: Cluster) -> None:
        leader = (await cluster.elect()).id
        others = [member for member in cluster.ids if member != leader]
        await put(cluster, leader, "before")
        cluster.members[leader].clock.wall_offset_ms += TEN_MINUTES_MS
        began = cluster.loop.time()
        await put(cluster, others[0], "during")
        assert cluster.loop.time() - began < 2 * T_S + 0.1
        assert (await cluster.elect()).id in others
        for number in range(50):
            await put(cluster, cluster.ids[number % 3], f"{number}")
            await asyncio.sleep(0.02)
        await cluster.settle()
        assert_stamps_grow(cluster)
        most = hybrid.latest_at(WALL_START_MS + int(cluster.loop.time() * 1e3) + LIMIT_MS)
        assert all(entry.time <= most for member in cluster.ids for entry in log_of(cluster, member))
        assert (await cluster.elect()).id in others
        for member in others:
            assert any(f"the clock of node {leader} is" in alarm for alarm in cluster.nodes()[member].status().alarms)
            assert cluster.nodes()[member].counters()["kvnode_stamps_refused_total"] > 0
        assert cluster.nodes()[leader].counters()["kvnode_clock_jumps_total"] == 1

    simulate(scenario)


def test_a_fast_clock_that_is_put_right_may_lead_again() -> None:
    async def scenario(cluster: Cluster) -> None:
        leader = (await cluster.elect()).id
        clock = cluster.members[leader].clock
        clock.wall_offset_ms += TEN_MINUTES_MS
        await put(cluster, leader, "x")
        clock.wall_offset_ms -= TEN_MINUTES_MS
        await asyncio.sleep(1.0)
        await (await cluster.elect()).transfer_leadership(leader)
        await put(cluster, leader, "y")
        assert (await cluster.elect()).id == leader

    simulate(scenario)


def test_hc_t3_a_token_from_tomorrow_is_refused_and_moves_no_clock() -> None:
    async def scenario(cluster: Cluster) -> None:
        made = await cluster.kv(1).put("k", "v")
        await cluster.settle()
        node = cluster.nodes()[NodeId(2)]
        before = node.status().hybrid_time
        tomorrow = made.time + (86_400_000 << hybrid.COUNTER_BITS)
        for revision in (made.revision, made.revision + 1):
            options = Options(consistency="causal", least_revision=revision, seen_time=tomorrow)
            with pytest.raises(ClockDrift, match="token"):
                await node.execute(Range(b"k"), options)
        assert node.status().hybrid_time == before
        assert (await cluster.kv(2).put("k", "w")).time < tomorrow
        options = Options(consistency="causal", least_revision=made.revision, seen_time=made.time)
        assert (await node.execute(Range(b"k"), options)).items

    simulate(scenario)


def test_a_token_of_this_cluster_is_taken_also_by_a_node_whose_clock_is_behind() -> None:
    """What is applied here is proof enough; what is not is measured by the wall clock, within the limit."""

    async def scenario(cluster: Cluster) -> None:
        cluster.members[NodeId(2)].clock.wall_offset_ms -= 400
        made = await cluster.kv(1).put("k", "v")
        options = Options(consistency="causal", least_revision=made.revision, seen_time=made.time)
        assert (await cluster.kv(2).execute(Range(b"k"), options)).items
        cluster.members[NodeId(2)].clock.wall_offset_ms -= HOUR_MS
        assert (await cluster.kv(2).execute(Range(b"k"), options)).items

    simulate(scenario)


def test_hc_t4_stamps_grow_after_a_restart_with_the_clock_set_back() -> None:
    """HC4: the log is the durable bound. A stamp is seen only once its entry is durable; a start begins above it."""

    async def scenario(cluster: Cluster) -> None:
        before = [await put(cluster, 1, f"{number}") for number in range(3)]
        await cluster.settle()
        for member in cluster.ids:
            cluster.crash(member)
            cluster.clocks[member].wall_offset_ms -= HOUR_MS
        await cluster.start_all()
        await cluster.elect()
        after = [await put(cluster, 1, f"{number}") for number in range(3)]
        times = before + after
        assert times == sorted(set(times))
        assert after[0] - before[-1] < 1 << hybrid.COUNTER_BITS, "and not one step more than they must"
        await cluster.settle()
        assert_stamps_grow(cluster)

    simulate(scenario)


def test_all_clocks_corrected_at_once_cost_no_leader() -> None:
    async def scenario(cluster: Cluster) -> None:
        leader = (await cluster.elect()).id
        for by_ms in (HOUR_MS, -2 * HOUR_MS, HOUR_MS):
            for member in cluster.ids:
                cluster.members[member].clock.wall_offset_ms += by_ms
            for number in range(20):
                await put(cluster, 1 + number % 3, f"{number}", within_s=0.5)
                await asyncio.sleep(0.02)
        assert (await cluster.elect()).id == leader
        assert_stamps_grow(cluster)

    simulate(scenario)
