"""Faults that other systems' watches had, as tests of ours: each bears the number it has there."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from kvnode.errors import Compacted
from kvnode.ids import NodeId
from kvnode.kv.events import Changes, Event, Progress, Started
from kvnode.kv.interface import Options, WatchStream
from kvnode.kv.keys import TO_THE_END, prefix_end
from kvnode.kv.requests import Compare, Delete, Put, Range, Txn, Watch
from kvnode.sim.runtime.cluster import Cluster
from tests.machine.floor import give_up_below
from tests.node.scenario import simulate

STALE = Options(consistency="stale")


async def events(stream: WatchStream, count: int) -> list[Event]:
    found: list[Event] = []
    async with asyncio.timeout(10):
        while len(found) < count:
            part = await anext(stream)
            assert isinstance(part, Changes), part
            found += part.events
    return found


def revisions(found: list[Event]) -> list[int]:
    return [event.kv.mod_revision for event in found]


async def with_a_laggard(cluster: Cluster) -> tuple[NodeId, NodeId]:
    """The leader, and a member that is cut off."""
    leader = (await cluster.elect()).id
    laggard = next(member for member in cluster.ids if member != leader)
    await cluster.kv(leader).put("k", "0")
    await cluster.settle()
    cluster.network.isolate(laggard)
    return leader, laggard


def test_etcd_15271_no_time_travel_on_a_member_that_lags() -> None:
    """A watcher that resumes at a member that is behind waits there; it is not shown the past again."""

    async def scenario(cluster: Cluster) -> None:
        leader, laggard = await with_a_laggard(cluster)
        async with aclosing(cluster.kv(leader).watch(Watch(b"k"))) as ahead:
            await anext(ahead)
            for value in "12345":
                await cluster.kv(leader).put("k", value)
            seen = await events(ahead, 5)
        async with aclosing(cluster.kv(laggard).watch(Watch(b"k", from_revision=8, progress_ms=100), STALE)) as resumed:
            assert await anext(resumed) == Started(2, 8)
            reading = asyncio.ensure_future(anext(resumed))
            await asyncio.sleep(1.0)
            assert not reading.done()
            cluster.network.heal()
            await cluster.kv(leader).put("k", "6")
            part = await reading
            if isinstance(part, Progress):  # everything before the start is known by now
                assert part == Progress(7)
                part = await anext(resumed)
            assert isinstance(part, Changes)
            seen += part.events
        assert revisions(seen) == [3, 4, 5, 6, 7, 8]

    simulate(scenario)


def test_a_new_stream_begins_no_older_than_it_was_asked_for() -> None:
    """From now on, on a member that has not heard of the last write yet: that write does not come as if it were new."""

    async def scenario(cluster: Cluster) -> None:
        leader, laggard = await with_a_laggard(cluster)
        put = await cluster.kv(leader).put("k", "1")
        cluster.network.heal()
        async with aclosing(cluster.kv(laggard).watch(Watch(b"k"))) as stream:
            started = await anext(stream)
            assert isinstance(started, Started)
            assert started.from_revision > put.revision

    simulate(scenario)


def test_etcd_17529_events_are_not_lost_while_a_reader_starves() -> None:
    async def scenario(cluster: Cluster) -> None:
        leader = (await cluster.elect()).id
        async with aclosing(cluster.kv(leader).watch(Watch(b"", TO_THE_END))) as stream:
            await anext(stream)
            for first in range(0, 20_000, 100):
                puts = tuple(Put(b"k%d" % number, b"") for number in range(first, first + 100))
                await cluster.kv(leader).execute(Txn((), puts))
            found = await events(stream, 20_000)
        assert revisions(found) == [2 + number // 100 for number in range(20_000)]

    simulate(scenario)


def test_etcd_15220_a_bookmark_is_not_ahead_of_what_the_member_has_shown() -> None:
    async def scenario(cluster: Cluster) -> None:
        leader, laggard = await with_a_laggard(cluster)
        async with aclosing(cluster.kv(laggard).watch(Watch(b"k", progress_ms=100), STALE)) as stream:
            await anext(stream)
            for value in "123":
                await cluster.kv(leader).put("k", value)
            assert [await anext(stream) for _ in range(3)] == [Progress(2)] * 3
            cluster.network.heal()
            found: list[int] = []
            while len(found) < 3:
                part = await anext(stream)
                if isinstance(part, Progress):
                    assert part.revision == (found or [2])[-1]
                else:
                    assert isinstance(part, Changes)
                    found += revisions(part.events)
            assert found == [3, 4, 5]

    simulate(scenario)


def test_etcd_20221_a_future_start_shows_nothing_older_on_any_member() -> None:
    async def scenario(cluster: Cluster) -> None:
        streams = [cluster.kv(member).watch(Watch(b"k", from_revision=6)) for member in cluster.ids]
        for stream in streams:
            assert await anext(stream) == Started(1, 6)
        reading = [asyncio.ensure_future(events(stream, 2)) for stream in streams]
        for number in range(6):
            await cluster.kv(1).put("k", f"{number}")
            await asyncio.sleep(0.1)
        assert [revisions(found) for found in await asyncio.gather(*reading)] == [[6, 7]] * 3
        for stream in streams:
            await stream.aclose()

    simulate(scenario)


@pytest.mark.parametrize("flushed", [False, True])
def test_etcd_18089_19179_a_deletion_at_the_compacted_revision_is_told(flushed: bool) -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.kv(1).put("k", "1")
        deleted = (await cluster.kv(1).delete("k")).revision
        await cluster.kv(1).put("other", "1")
        await cluster.settle()
        if flushed:
            await asyncio.sleep(2.0)
        for member in cluster.ids:
            give_up_below(cluster.members[member].node._machine, deleted)
            async with aclosing(cluster.kv(member).watch(Watch(b"k", from_revision=deleted))) as stream:
                await anext(stream)
                [event] = await events(stream, 1)
                assert (event.kv.mod_revision, event.kv.version) == (deleted, 0)
            with pytest.raises(Compacted):
                await anext(cluster.kv(member).watch(Watch(b"k", from_revision=deleted - 1)))

    simulate(scenario)


def test_etcd_17247_a_transaction_is_told_once_and_whole() -> None:
    """With reads in it, a branch not taken, and keys that it touches and does not change; on every member alike."""

    async def scenario(cluster: Cluster) -> None:
        streams = [cluster.kv(member).watch(Watch(b"k", prefix_end(b"k"))) for member in cluster.ids]
        for stream in streams:
            await anext(stream)
        await cluster.kv(2).execute(
            Txn(
                (Compare(b"k1", "exists", "=", 0),),
                (Range(b"k1"), Put(b"k1", b"1"), Range(b"k1"), Put(b"k2", b"1"), Delete(b"k3"), Put(b"x", b"1")),
                (Put(b"k9", b"1"),),
            )
        )
        await cluster.kv(3).execute(Txn((Compare(b"k1", "exists", "=", 0),), (Put(b"k1", b"2"),), (Range(b"k1"),)))
        await cluster.kv(3).put("k4", "last")
        for stream in streams:
            found = await events(stream, 3)
            assert [(event.kv.key, event.kv.mod_revision) for event in found] == [(b"k1", 2), (b"k2", 2), (b"k4", 3)]
            await stream.aclose()

    simulate(scenario)
