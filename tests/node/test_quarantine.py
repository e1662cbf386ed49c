"""A node that finds its log damaged: it does not vote, its peers restore it, and then it votes again. S73."""

from __future__ import annotations

import errno
import os

import pytest

from kvnode.errors import LogCorrupted, NoLeader, StorageFailed
from kvnode.ids import NodeId
from kvnode.kv.interface import Options
from kvnode.kv.requests import Put
from kvnode.raft.output import Output
from kvnode.sim.runtime.cluster import LOG_DIRECTORY, Cluster
from kvnode.storage.segment import HEADER_BYTES, SECTOR_BYTES
from tests.node.test_runtime_faults import simulate


async def loaded(cluster: Cluster, count: int = 60) -> None:
    await cluster.start_all()
    await cluster.elect()
    for number in range(count):
        await cluster.kv(1).put(f"k{number % 7}", b"%d" % number + b"." * 400)
    await cluster.settle()


def rot(cluster: Cluster, member: int, segment: int = 0) -> None:
    """Flip one bit of the first record of a stopped member's segment."""
    disk = cluster.disk_of(NodeId(member))
    paths = [path for path in disk.files() if path.startswith(f"{LOG_DIRECTORY}/0")]
    disk.flip_bit(paths[segment], HEADER_BYTES + 60)


async def restored(cluster: Cluster, member: int) -> None:
    await cluster.until(lambda: not cluster.members[NodeId(member)].node.status().quarantined, within_s=20)
    await cluster.until(cluster.members[NodeId(member)].node.is_ready, within_s=20)
    await cluster.settle()


def test_a_damaged_log_is_restored_from_peers_while_clients_go_on() -> None:
    async def scenario(cluster: Cluster) -> None:
        await loaded(cluster)
        leader = (await cluster.elect()).id
        victim = next(member for member in cluster.ids if member != leader)
        other = next(member for member in cluster.ids if member not in {leader, victim})
        cluster.kill(victim)
        rot(cluster, victim)
        node = (await cluster.start(victim)).node
        status = node.status()
        assert status.quarantined
        assert status.corrupted
        assert any("in quarantine" in alarm and LOG_DIRECTORY in alarm for alarm in status.alarms)
        assert not node.is_ready()
        await cluster.kv(victim).put("written", "meanwhile")
        await restored(cluster, victim)
        assert not node.status().alarms
        cluster.kill(other)
        await cluster.kv(victim).put("it", "counts again")
        cluster.kill(leader)
        await cluster.start(other)
        item = await cluster.kv(other).get("it")
        assert item is not None
        assert item.value == b"counts again"

    simulate(scenario, storage__segment_bytes=16 << 10)


def test_the_damaged_minority_never_makes_the_others_forget() -> None:
    """Finding: one flipped bit on one node once lost half of all acknowledged writes of a store, by its election."""

    async def scenario(cluster: Cluster) -> None:
        await loaded(cluster)
        leader = (await cluster.elect()).id
        victim, behind = (member for member in cluster.ids if member != leader)
        cluster.kill(behind)
        await cluster.kv(leader).put("only", "on two")
        await cluster.settle()
        cluster.kill(victim)
        cluster.kill(leader)
        rot(cluster, victim)
        await cluster.start(victim)
        await cluster.start(behind)
        try:
            await cluster.kv(behind).execute(Put(b"x", b"y"), Options(timeout_ms=10_000))
        except NoLeader:
            pass
        else:
            raise AssertionError("a leader was elected without the only whole log that holds every write")
        await cluster.start(leader)
        await restored(cluster, victim)
        item = await cluster.kv(behind).get("only")
        assert item is not None
        assert item.value == b"on two"

    simulate(scenario, storage__segment_bytes=16 << 10)


def test_the_scrubber_finds_what_nobody_reads_and_the_node_starts_again_in_quarantine() -> None:
    async def scenario(cluster: Cluster) -> None:
        await loaded(cluster)
        leader = (await cluster.elect()).id
        victim = next(member for member in cluster.ids if member != leader)
        rot(cluster, victim)
        await cluster.until(lambda: victim in cluster.failures, within_s=200)
        found = cluster.failures.pop(victim)
        assert isinstance(found, LogCorrupted)
        assert found.repairable
        cluster.kill(victim)
        assert (await cluster.start(victim)).node.status().quarantined
        await restored(cluster, victim)

    simulate(scenario, storage__segment_bytes=16 << 10, storage__scrub_every_s=20, storage__scrub_bytes_per_s=64 << 10)


def test_a_sector_that_cannot_be_read_is_damage_like_any_other() -> None:
    """F24: found by the scrubber, and then again at the start, which goes on from what stands before it."""

    async def scenario(cluster: Cluster) -> None:
        await loaded(cluster)
        leader = (await cluster.elect()).id
        victim = next(member for member in cluster.ids if member != leader)
        disk = cluster.disk_of(NodeId(victim))
        path = next(path for path in disk.files() if path.startswith(f"{LOG_DIRECTORY}/0"))
        disk.unreadable_sector(path, HEADER_BYTES // SECTOR_BYTES + 3)
        await cluster.until(lambda: victim in cluster.failures, within_s=200)
        found = cluster.failures.pop(victim)
        assert isinstance(found, LogCorrupted)
        assert "input/output error" in found.message
        cluster.kill(victim)
        node = (await cluster.start(victim)).node
        assert node.status().quarantined
        await restored(cluster, victim)
        scrubs = node.counters()["kvnode_wal_scrubs_total"]
        await cluster.until(lambda: node.counters()["kvnode_wal_scrubs_total"] > scrubs, within_s=200)
        assert not node.status().alarms

    simulate(scenario, storage__segment_bytes=16 << 10, storage__scrub_every_s=20, storage__scrub_bytes_per_s=64 << 10)


def test_damage_that_cannot_be_noted_ends_the_process() -> None:
    """Started again within itself it would find the same damage, and have no room for the note again."""

    async def scenario(cluster: Cluster) -> None:
        await loaded(cluster)
        leader = (await cluster.elect()).id
        victim = next(member for member in cluster.ids if member != leader)
        rot(cluster, victim)
        disk = cluster.disk_of(NodeId(victim))
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        disk.fail_at(disk.count("create") + 1, full, kind="create", lasting=True)
        await cluster.until(lambda: victim in cluster.failures, within_s=200)
        found = cluster.failures.pop(victim)
        assert isinstance(found, StorageFailed)
        assert "noting the damage" in found.message

    simulate(scenario, storage__segment_bytes=16 << 10, storage__scrub_every_s=20, storage__scrub_bytes_per_s=64 << 10)


def test_what_is_fetched_again_behind_the_store_does_not_pile_up_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(cluster: Cluster) -> None:
        await loaded(cluster, count=1_500)
        leader = (await cluster.elect()).id
        victim = next(member for member in cluster.ids if member != leader)
        rot(cluster, victim)
        await cluster.until(lambda: victim in cluster.failures, within_s=200)  # a start would not look where it is
        cluster.kill(victim)
        node = (await cluster.start(victim)).node
        log, most = node._raft.state.log, 0
        assert node._applier.target > 1_000, "the store is ahead"
        execute = node._driver._execute

        def watched(output: Output) -> None:
            nonlocal most
            most = max(most, log.bytes_in_memory)
            execute(output)

        assert node.status().quarantined
        monkeypatch.setattr(node._driver, "_execute", watched)
        await cluster.until(lambda: not node.status().quarantined, within_s=20)
        assert log.last_index > 1_500
        assert 0 < most < 4 * (64 << 10), "of 600 KiB"

    simulate(
        scenario,
        storage__segment_bytes=64 << 10,
        raft__log_cache_bytes=64 << 10,
        raft__append_bytes_max=8 << 10,
        raft__window_bytes_max=16 << 10,
        storage__scrub_every_s=20,
    )


def test_alone_the_scrubber_only_says_so() -> None:
    async def scenario(cluster: Cluster) -> None:
        await loaded(cluster)
        rot(cluster, 1)
        node = cluster.members[NodeId(1)].node
        await cluster.until(lambda: node.status().alarms, within_s=200)
        assert any("no peer to restore it" in alarm for alarm in node.status().alarms)
        await cluster.kv(1).put("still", "serving")

    simulate(scenario, size=1, storage__segment_bytes=16 << 10, storage__scrub_every_s=20)


def test_scrubbing_a_whole_log_ends_and_begins_anew() -> None:
    async def scenario(cluster: Cluster) -> None:
        await loaded(cluster)
        node = cluster.members[NodeId(1)].node
        await cluster.until(lambda: node.counters()["kvnode_wal_scrubs_total"] >= 2, within_s=400)

    simulate(scenario, storage__segment_bytes=16 << 10, storage__scrub_every_s=20)
