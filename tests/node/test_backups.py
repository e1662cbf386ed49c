"""Backups through the running node: all that was committed, one state, and views that are given back."""

from __future__ import annotations

import asyncio

import pytest

from kvnode.config import Config
from kvnode.errors import Overloaded, TryAgain, Unknown
from kvnode.kv.interface import Backup, Options
from kvnode.kv.requests import Range
from kvnode.machine.machine import StateMachine
from kvnode.machine.pace import Pace, in_one_go
from kvnode.machine.snapshot import SnapshotVerifier
from kvnode.node import backups
from kvnode.sim.runtime.cluster import Cluster
from kvnode.storage.memory_backend import MemoryBackend
from tests.backend_suite import commit
from tests.node.scenario import simulate

IDLE_MS = 6_000


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """All a tenth: a cluster's virtual minutes cost real seconds."""
    monkeypatch.setattr(backups, "IDLE_MS", IDLE_MS)
    monkeypatch.setattr(backups, "GRACE_MS", backups.GRACE_MS // 10)


async def opened_again(backup: Backup) -> StateMachine:
    """The state that a receiver of the whole has."""
    verifier, rows, number = SnapshotVerifier(backup.header), [], 0
    while (block := await backup.block(number)) is not None:
        rows += verifier.add(block)
        number += 1
        await asyncio.sleep(0)
    verifier.finish()
    backup.close()
    backend = MemoryBackend()
    commit(backend, *rows)
    return StateMachine(backend, Config().limits)


def test_it_has_all_that_was_committed_and_nothing_of_what_came_later() -> None:
    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.elect()
        kv = cluster.kv(leader.id)
        for number in range(300):
            await kv.put(f"k{number % 40}", str(number) * 100)
        for node in cluster.nodes().values():
            last = (await kv.put("last", str(node.id))).revision
            backup = await node.backup()
            assert backup.revision >= last, "committed before it was asked for"
            hash_then = await node.state_hash(backup.revision)

            async def write() -> None:
                for number in range(200):
                    await kv.put(f"k{number % 50}", "later" * 50)

            writes = asyncio.create_task(write())
            machine = await opened_again(backup)
            await writes
            assert (machine.applied_index, machine.revision) == (backup.index, backup.revision)
            pace = Pace()
            assert in_one_go(machine.state_hash(0, pace), pace) == hash_then
            found = in_one_go(machine.read(Range(b"last", b""), pace), pace)
            assert [item.value for item in found.items] == [str(node.id).encode()]

    simulate(scenario)


@pytest.mark.usefixtures("impatient")
def test_two_at_a_time_and_whoever_does_not_read_loses_it() -> None:
    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.elect()
        await cluster.kv(leader.id).put("k", "v")
        first, second = await leader.backup(), await leader.backup()
        with pytest.raises(Overloaded):
            await leader.backup()
        second.close()
        second.close()
        third = await leader.backup()
        await asyncio.sleep(IDLE_MS / 2e3)
        assert await third.block(0) is not None
        await asyncio.sleep(IDLE_MS / 2e3 + 1)
        with pytest.raises(ConnectionAbortedError):
            await first.block(0)
        assert await third.block(1) is not None
        await asyncio.sleep(IDLE_MS / 1e3 + 1)
        with pytest.raises(ConnectionAbortedError):
            await third.block(2)
        assert await (await leader.backup()).block(0) is not None

    simulate(scenario)


@pytest.mark.usefixtures("impatient")
def test_a_reader_that_only_trickles_loses_it_in_the_end() -> None:
    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.elect()
        kv = cluster.kv(leader.id)
        for number in range(30):
            await kv.put(f"k{number}", "x" * 60_000)
        backup = await leader.backup()

        async def trickle() -> None:
            for number in range(30):
                assert await backup.block(number) is not None
                await asyncio.sleep(IDLE_MS / 2e3)

        with pytest.raises(ConnectionAbortedError, match="slow"):
            await trickle()

    simulate(scenario)


def test_a_node_that_cannot_know_what_is_committed_makes_none() -> None:
    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.elect()
        follower = next(node for id_, node in cluster.nodes().items() if id_ != leader.id)
        cluster.network.isolate(follower.id)
        await asyncio.sleep(1.0)
        with pytest.raises((TryAgain, Unknown)):
            await follower.backup(Options(timeout_ms=500))

    simulate(scenario)


def test_a_node_that_stops_gives_the_view_back() -> None:
    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.elect()
        await cluster.kv(leader.id).put("k", "v")
        backup = await leader.backup()
        await leader.stop()
        with pytest.raises(ConnectionAbortedError):
            await backup.block(0)

    simulate(scenario)


def test_it_ends_when_a_snapshot_takes_the_place_of_its_state() -> None:
    """Its view is of the store before; the next one is of the new store."""

    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.elect()
        kv = cluster.kv(leader.id)
        away = next(node for id_, node in cluster.nodes().items() if id_ != leader.id)
        await kv.put("before", "x")
        before = await away.backup()
        assert await before.block(0) is not None
        has = cluster.members[away.id].raft.last_index
        cluster.network.isolate(away.id)
        for number in range(100):
            last = (await kv.put(f"k{number % 50}", "." * 500)).revision
        others = [member for id_, member in cluster.members.items() if id_ != away.id]
        await cluster.until(lambda: all(member.wal.first_index > has + 1 for member in others))
        assert await before.block(1) is not None, "nothing has happened to it yet"
        cluster.network.heal()
        await cluster.until(lambda: away.status().applied_index >= leader.status().applied_index)
        with pytest.raises(ConnectionAbortedError, match="takes this state's place"):
            await before.block(2)
        after = await away.backup()
        assert after.revision >= last
        assert await after.block(0) is not None
        after.close()

    settings = {"segment_bytes": 8 << 10, "tail_bytes": 0, "flush_versions": 5, "flush_ms": 50}
    simulate(scenario, **{f"storage__{name}": value for name, value in settings.items()})
