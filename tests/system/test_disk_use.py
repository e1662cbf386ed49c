"""Real processes: under constant load the log stays as long as it is, and so does what a start has to read (SL-T1)."""

from __future__ import annotations

import asyncio

import pytest

from scripts.living import LEVEL_S, LivingCluster
from tests.system.conftest import MakeLiving

pytestmark = pytest.mark.system

VALUE_BYTES = 32_768
TAIL_BYTES = SEGMENT_BYTES = 131_072
LOG_BYTES_MAX = TAIL_BYTES + 2 * SEGMENT_BYTES
"""The tail, what its oldest segment holds beside it, and the segment that is being written."""

WRITES = 60
"""Of a round: five times the most that a log may hold."""


async def wait_cut(cluster: LivingCluster) -> None:
    """Until no log is longer than it may be. A little is written meanwhile: a flush cuts the log."""
    async with asyncio.timeout(LEVEL_S):
        while True:
            await cluster.fill(2, size=16)
            lengths = [(await cluster.status(node))["wal_bytes"] for node in cluster.running()]
            if max(lengths) <= LOG_BYTES_MAX:
                return
            await asyncio.sleep(0.1)


@pytest.mark.timeout(200)
async def test_the_log_levels_off(make_living: MakeLiving) -> None:
    cluster = make_living(storage__segment_bytes=SEGMENT_BYTES, storage__tail_bytes=TAIL_BYTES)
    cluster.start_all()
    await cluster.wait_leader()
    for _ in range(2):
        await cluster.fill(WRITES, size=VALUE_BYTES)
        await wait_cut(cluster)
    await cluster.wait_level()
    for process in cluster.processes.values():
        process.kill()
    for node in cluster.ids:
        on_disk = sum(file.stat().st_size for file in cluster.data_dir(node).glob("wal/*.wal"))
        assert on_disk <= LOG_BYTES_MAX + SEGMENT_BYTES, "segments that the log gave up are gone"
        cluster.start(node)
    await cluster.wait_level()
    for node in cluster.ids:
        recovered = cluster.events(node, "wal.recovered")[-1]
        assert recovered["segments_scanned"] <= recovered["segments"] <= 5, recovered
    await cluster.fill(1)
