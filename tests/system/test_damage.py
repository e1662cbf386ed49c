"""Bits flipped in the log of a real node: peers restore it, at a start as in a running process; alone it refuses."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from kvnode.bench.process import Process
from kvnode.storage.segment import HEADER_BYTES
from kvnode.storage.wal_verify import compare, verify
from tests.system.cluster import RealCluster, logged
from tests.system.conftest import MakeCluster

pytestmark = pytest.mark.system

SMALL = {"storage__segment_bytes": 64 << 10}
EXIT_FATAL = 5


def flip(data: Path) -> str:
    """One bit in the first record of the oldest segment; that segment's name."""
    oldest = min((data / "wal").glob("0*.wal"))
    with oldest.open("r+b") as file:
        file.seek(HEADER_BYTES + 60)
        (byte,) = file.read(1)
        file.seek(HEADER_BYTES + 60)
        file.write(bytes([byte ^ 8]))
    return oldest.name


async def fill(cluster: RealCluster, node: int, count: int = 300) -> None:
    client = cluster.client(node)
    for number in range(count):
        answer = await client.call("PUT", f"/v1/kv/k{number}", b"v" * 600)
        assert answer.status == 200, answer.body
    client.close()


async def logged_event(process: Process, event: str, limit_s: float = 20.0) -> dict[str, object]:
    async with asyncio.timeout(limit_s):
        while True:
            found = [line for line in logged(process) if line.get("event") == event]
            if found:
                return found[0]
            await asyncio.sleep(0.05)


async def test_a_node_that_starts_on_a_damaged_log_is_restored(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(storage__backend="memory", **SMALL)  # the whole log is read at a start
    leader = await cluster.started()
    victim = next(node for node in cluster.ids if node != leader)
    await fill(cluster, victim)
    cluster.processes[victim].kill()
    damaged = flip(cluster.data_dir(victim))
    process = cluster.start(victim)
    assert damaged in str((await logged_event(process, "wal.damaged"))["what"])
    await logged_event(process, "quarantine.began")
    await logged_event(process, "quarantine.ended")
    await cluster.wait_ready()
    await asyncio.wait_for(_level(cluster), 20)
    assert (await cluster.get(victim, "k7")).body == b"v" * 600
    logs = [verify(str(cluster.data_dir(node))) for node in cluster.ids]
    assert [problem for log in logs for problem in log.problems] + compare(logs) == []
    assert len({log.last_index for log in logs}) == 1


async def test_a_running_node_that_finds_damage_starts_again_by_itself(make_cluster: MakeCluster) -> None:
    """The store has applied what rotted, so only the scrubber sees it; the process stays the same."""
    # A pass may have gone by before the bit is flipped: there is another one every second.
    cluster = make_cluster(storage__scrub_bytes_per_s=1 << 20, storage__scrub_every_s=1, **SMALL)
    leader = await cluster.started()
    await fill(cluster, leader)
    damaged = flip(cluster.data_dir(leader))
    process = cluster.processes[leader]
    await logged_event(process, "node.restarting")
    assert damaged in str((await logged_event(process, "wal.damaged"))["what"])
    await logged_event(process, "quarantine.ended")
    assert process.exit_code is None
    await cluster.wait_ready()
    await asyncio.wait_for(_level(cluster), 20)
    assert not (await cluster.status(leader))["quarantined"]


async def test_a_node_alone_refuses_a_damaged_log(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(1, storage__backend="memory", **SMALL)
    await cluster.started()
    await fill(cluster, 1)
    cluster.processes[1].kill()
    damaged = flip(cluster.data_dir(1))
    process = cluster.start(1)
    assert await asyncio.to_thread(process.wait, 30.0) == EXIT_FATAL
    failed = await logged_event(process, "node.failed")
    assert failed["code"] == "log_corrupted"
    assert damaged in str(failed["message"])
    assert "offset" in str(failed["message"])
    assert not list((cluster.data_dir(1) / "wal").glob("damaged-*"))


async def _level(cluster: RealCluster) -> None:
    """Until all nodes have applied the same entries; then their states are equal."""
    while True:
        found = [await cluster.status(node) for node in cluster.running()]
        if len(found) == len(cluster.ids) and len({one["applied_index"] for one in found}) == 1:
            assert len({one["state_hash"] for one in found}) == 1
            return
        await asyncio.sleep(0.1)
