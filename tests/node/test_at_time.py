"""Reads at a hybrid time: what they have shown once they show for ever, on every node, whatever comes afterwards."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kvnode.clocks import hybrid
from kvnode.errors import BadRequest, ClockDrift, NoSpace, Timeout
from kvnode.kv.interface import Options
from kvnode.kv.requests import Delete, History, Put, Range, Txn
from kvnode.sim.runtime.cluster import Cluster
from tests.node.scenario import simulate


def now(cluster: Cluster, member: int) -> int:
    return cluster.members[cluster.ids[member - 1]].clock.wall_ms() << hybrid.COUNTER_BITS | 0xFFFF


async def get(cluster: Cluster, member: int, at_time: int, **options: Any) -> tuple[int, bytes | None]:
    reply = await cluster.kv(member).execute(Range(b"k"), Options(at_time=at_time, **options))
    return reply.revision, reply.items[0].value if reply.items else None


def test_each_version_is_shown_from_its_own_time_on() -> None:
    async def scenario(cluster: Cluster) -> None:
        made = []
        for number in range(4):
            made.append(await cluster.kv(1 + number % 3).put("k", f"{number}"))
            await asyncio.sleep(0.05)
        for member in cluster.ids:
            assert await get(cluster, member, made[0].time - 1) == (1, None)
            for number, put in enumerate(made):
                assert await get(cluster, member, put.time) == (put.revision, b"%d" % number)
                if number:
                    assert await get(cluster, member, put.time - 1) == (put.revision - 1, b"%d" % (number - 1))
            history = await cluster.kv(member).execute(History(b"k"), Options(at_time=made[1].time))
            assert [kv.value for kv in history.items] == [b"1", b"0"]

    simulate(scenario)


def test_a_time_of_which_the_log_has_not_heard_is_marked_and_then_cannot_change() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.kv(1).put("k", "old")
        await asyncio.sleep(5.0)
        await cluster.settle()
        asked = now(cluster, 2)
        applied = cluster.nodes()[cluster.ids[1]].applied_time
        assert applied < asked
        before = await get(cluster, 2, asked)
        assert before[1] == b"old"
        assert cluster.nodes()[cluster.ids[1]].applied_time >= asked
        put = await cluster.kv(3).put("k", "new")
        assert put.time > asked
        assert put.revision == before[0] + 1, "a mark makes no revision"
        for member in cluster.ids:
            assert await get(cluster, member, asked) == before
            entries = cluster.nodes()[member].status().last_index
            assert await get(cluster, member, asked) == before
            assert cluster.nodes()[member].status().last_index == entries, "known times need no mark"

    simulate(scenario)


def test_hc_t2_an_answer_stays_through_failover_and_a_restart_of_all() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.kv(1).put("k", "old")
        await asyncio.sleep(2.0)
        asked = now(cluster, 2)
        before = await get(cluster, 2, asked)
        leader = (await cluster.elect()).id
        for member in cluster.ids:
            cluster.members[member].clock.wall_offset_ms -= 0 if member == leader else 10_000
        cluster.kill(leader)  # its successors' clocks are behind what was asked
        await cluster.elect()
        for member in sorted(cluster.members):
            await cluster.kv(member).put("k", f"by {member}")
            assert await get(cluster, member, asked) == before
        for member in list(cluster.members):
            cluster.crash(member)
        await cluster.start_all()
        await cluster.elect()
        await cluster.kv(1).put("k", "new")
        for member in cluster.ids:
            assert await get(cluster, member, asked) == before

    simulate(scenario)


def test_a_leader_whose_clock_is_behind_is_waited_for() -> None:
    async def scenario(cluster: Cluster) -> None:
        leader = (await cluster.elect()).id
        other = next(member for member in cluster.ids if member != leader)
        cluster.members[other].clock.wall_offset_ms += 400
        asked = now(cluster, other)
        began = cluster.loop.time()
        assert (await get(cluster, other, asked))[1] is None
        assert 0.35 < cluster.loop.time() - began < 1.0
        assert (await cluster.kv(leader).put("k", "v")).time > asked
        cluster.members[other].clock.wall_offset_ms += 60_000
        with pytest.raises(Timeout, match="at_time"):
            await get(cluster, other, now(cluster, other), timeout_ms=500)

    simulate(scenario)


def test_the_present_of_a_clock_that_is_a_little_ahead_is_waited_for() -> None:
    """CB2: an answer never says that there was nothing at a time which is still to come."""

    async def scenario(cluster: Cluster) -> None:
        asked = now(cluster, 2) + (300 << hybrid.COUNTER_BITS)
        began = cluster.loop.time()
        reading = asyncio.ensure_future(get(cluster, 2, asked))
        await asyncio.sleep(0.1)
        put = await cluster.kv(1).put("k", "in between")
        assert put.time < asked
        assert await reading == (put.revision, b"in between")
        assert 0.3 <= cluster.loop.time() - began < 0.4
        with pytest.raises(Timeout, match="at_time"):
            await get(cluster, 2, now(cluster, 2) + (300 << hybrid.COUNTER_BITS), timeout_ms=200)

    simulate(scenario)


def test_the_future_and_contradictions_are_refused() -> None:
    async def scenario(cluster: Cluster) -> None:
        with pytest.raises(ClockDrift, match="in the future") as refusal:
            await get(cluster, 1, now(cluster, 1) + (550 << hybrid.COUNTER_BITS))
        assert 500 < refusal.value.detail["ahead_ms"] <= 550
        with pytest.raises(BadRequest, match="not both"):
            await cluster.kv(1).execute(Range(b"k", revision=1), Options(at_time=1))
        for wrong in (-1, 1 << 64):
            with pytest.raises(BadRequest, match="64-bit"):
                await get(cluster, 1, wrong)

    simulate(scenario)


def test_a_stale_read_asks_nobody() -> None:
    async def scenario(cluster: Cluster) -> None:
        put = await cluster.kv(1).put("k", "v")
        await cluster.settle()
        entries = cluster.nodes()[cluster.ids[0]].status().last_index
        await asyncio.sleep(1.0)
        for member in cluster.ids:
            assert await get(cluster, member, now(cluster, member), consistency="stale") == (put.revision, b"v")
        assert cluster.nodes()[cluster.ids[0]].status().last_index == entries

    simulate(scenario)


def test_times_are_looked_up_before_and_after_a_flush() -> None:
    async def scenario(cluster: Cluster) -> None:
        puts = [await cluster.kv(1).execute(Put(b"k", b"%d" % number)) for number in range(300)]
        for wait_s in (0.0, 30.0):
            await asyncio.sleep(wait_s)
            for put in (puts[0], puts[1], puts[150], puts[-1]):
                assert (await get(cluster, 1, put.time))[0] == put.revision

    simulate(scenario)


def test_a_full_store_still_tells_of_the_present_time_and_takes_transactions_that_only_delete() -> None:
    async def scenario(cluster: Cluster) -> None:
        kv = cluster.kv(1)
        await kv.put("k", b"v" * 600_000)
        await kv.put("k", b"v" * 600_000)
        await asyncio.sleep(2)
        with pytest.raises(NoSpace):
            await kv.put("k", b"w")
        with pytest.raises(NoSpace):
            await kv.execute(Txn((), (Put(b"k", b"w"),)))
        reply = await kv.execute(Range(b"k"), Options(at_time=now(cluster, 1)))
        assert [item.key for item in reply.items] == [b"k"]
        assert (await kv.execute(Txn((), (Delete(b"k"),)))).results[0].deleted == 1

    simulate(scenario, storage__quota_bytes=1 << 20)
