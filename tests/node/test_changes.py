"""Waiting for a newer version of a key: told once it can be read, missed by nobody, left behind by nobody."""

from __future__ import annotations

import asyncio
import time

import pytest

from kvnode.errors import BadRequest, KvnodeError, Overloaded, TryAgain, Unknown
from kvnode.ids import NodeId
from kvnode.kv.events import Event
from kvnode.kv.interface import Options
from kvnode.kv.requests import WAIT_MS_MAX, Await, KeyValue
from kvnode.node import changes as changes_module
from kvnode.node.changes import Changes
from kvnode.sim.runtime.cluster import Cluster
from tests.node.scenario import simulate


def waiting(cluster: Cluster, member: NodeId) -> int:
    return cluster.members[member].node._path._changes._count


def test_a_newer_version_is_told_on_every_node_at_once() -> None:
    async def scenario(cluster: Cluster) -> None:
        first = await cluster.kv(1).put("k", "1")
        for member in cluster.ids:
            found = await cluster.kv(member).wait("k", after_revision=first.revision - 1, wait_ms=0)
            assert found is not None
            assert found.value == b"1"
        began = cluster.loop.time()
        waits = [
            asyncio.ensure_future(cluster.kv(member).wait("k", after_revision=first.revision)) for member in cluster.ids
        ]
        newest = [asyncio.ensure_future(cluster.kv(member).wait("k")) for member in cluster.ids]
        await asyncio.sleep(1.0)
        await cluster.kv(2).put("other", "x")
        assert not any(wait.done() for wait in (*waits, *newest))
        second = await cluster.kv(3).put("k", "2")
        for found in await asyncio.gather(*waits, *newest):
            assert found is not None
            assert (found.value, found.mod_revision) == (b"2", second.revision)
        assert cluster.loop.time() - began < 1.5
        assert [waiting(cluster, member) for member in cluster.ids] == [0, 0, 0]

    simulate(scenario)


def test_creation_and_deletion_are_changes() -> None:
    async def scenario(cluster: Cluster) -> None:
        created = asyncio.ensure_future(cluster.kv(1).wait("k", after_revision=0))
        await asyncio.sleep(0.5)
        put = await cluster.kv(2).put("k", "1")
        found = await created
        assert found is not None
        assert found.mod_revision == put.revision
        deleted = asyncio.ensure_future(cluster.kv(1).wait("k"))
        await asyncio.sleep(0.5)
        await cluster.kv(2).delete_prefix("")
        found = await deleted
        assert found is not None
        assert (found.version, found.mod_revision) == (0, put.revision + 1)
        again = await cluster.kv(3).wait("k", after_revision=put.revision, wait_ms=0)
        assert again == found, "who comes later sees it, too"

    simulate(scenario)


def test_nothing_newer_is_said_after_one_more_look() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.kv(1).put("k", "1")
        began = cluster.loop.time()
        assert await cluster.kv(2).wait("k", wait_ms=700) is None
        assert 0.7 <= cluster.loop.time() - began < 0.8
        leader = (await cluster.elect()).id
        cut_off = next(member for member in cluster.ids if member != leader)
        waits = asyncio.ensure_future(
            cluster.kv(cut_off).execute(Await(b"k", wait_ms=2_000), Options(timeout_ms=1_000))
        )
        await asyncio.sleep(0.5)
        cluster.network.isolate(cut_off)
        await cluster.kv(leader).put("k", "2")
        with pytest.raises((TryAgain, Unknown)):
            await waits
        assert waiting(cluster, cut_off) == 0

    simulate(scenario)


def test_who_gives_up_leaves_nothing_behind_and_a_stopping_node_tells_everybody() -> None:
    async def scenario(cluster: Cluster) -> None:
        gone = asyncio.ensure_future(cluster.kv(1).wait("k", after_revision=0))
        stays = asyncio.ensure_future(cluster.kv(1).wait("k", after_revision=0))
        await asyncio.sleep(0.5)
        assert waiting(cluster, cluster.ids[0]) == 2
        gone.cancel()
        await asyncio.sleep(0.01)
        assert waiting(cluster, cluster.ids[0]) == 1
        await cluster.members[cluster.ids[0]].node.stop()
        with pytest.raises(KvnodeError):
            await stays

    simulate(scenario)


def test_what_cannot_be_waited_for() -> None:
    async def scenario(cluster: Cluster) -> None:
        for request, options in (
            (Await(b"k", after_revision=-2), Options()),
            (Await(b"k", wait_ms=WAIT_MS_MAX + 1), Options()),
            (Await(b"k", wait_ms=-1), Options()),
            (Await(b""), Options()),
            (Await(b"k"), Options(at_time=1)),
        ):
            with pytest.raises(BadRequest):
                await cluster.kv(1).execute(request, options)

    simulate(scenario)


async def test_the_registry_is_bounded_and_counts_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes_module, "WAITING_MAX", 3)
    changes = Changes(asyncio.get_running_loop())
    first, second, other = changes.wait(b"a"), changes.wait(b"a"), changes.wait(b"b")
    with pytest.raises(Overloaded):
        changes.wait(b"c")
    changes.forget(b"a", first)
    changes.forget(b"a", first)
    changes.wait(b"c").cancel()
    changes.applied([Event(KeyValue(b"a", b"", 1, 1, 1)), Event(KeyValue(b"x", b"", 1, 1, 1))])
    assert second.done()
    assert not other.done()
    assert changes.is_awaited
    changes.wake_all()
    assert not changes.is_awaited
    await other


async def test_after_a_snapshot_everybody_looks_in_turns() -> None:
    changes = Changes(asyncio.get_running_loop())
    many = 3 * changes_module.WAKES_A_TURN
    waiting = [changes.wait(b"%d" % (number % 7)) for number in range(many)]
    changes.on_store_replaced()
    assert not changes.is_awaited
    woken = sum(future.done() for future in waiting)
    assert woken <= changes_module.WAKES_A_TURN
    again = changes.wait(b"0")
    await asyncio.wait_for(asyncio.gather(*waiting), 10)
    assert not again.done()
    assert changes.is_awaited


async def test_very_many_who_wait_for_one_key_are_woken_in_turns_and_leave_quickly() -> None:
    changes = Changes(asyncio.get_running_loop())
    many = 10 * changes_module.WAKES_A_TURN
    waiting = [changes.wait(b"a") for _ in range(many)]
    woken = []
    changes.applied([Event(KeyValue(b"a", b"", 1, 1, 1))])
    assert not changes.is_awaited
    while not all(future.done() for future in waiting):
        woken.append(sum(future.done() for future in waiting))
        await asyncio.sleep(0)
    assert woken == [number * changes_module.WAKES_A_TURN for number in range(1, 10)]
    waiting = [changes.wait(b"a") for _ in range(many)]
    changes.applied([Event(KeyValue(b"a", b"", 1, 1, 1))])
    changes.wake_all()
    assert all(future.done() for future in waiting)


async def test_who_leaves_a_crowd_is_not_searched_for() -> None:
    """A crowd that gives up at once took the square of its size: half a minute for the most there may be."""
    changes = Changes(asyncio.get_running_loop())
    waiting = [changes.wait(b"a") for _ in range(changes_module.WAITING_MAX)]
    began = time.thread_time()
    for future in reversed(waiting):
        changes.forget(b"a", future)
    assert time.thread_time() - began < 2
    assert not changes.is_awaited
