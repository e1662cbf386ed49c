"""Real processes: a member that was away until the log was cut comes back by a snapshot, whoever dies on the way."""

from __future__ import annotations

import asyncio

import pytest

from kvnode.wire.frames import FEATURE_LEVEL
from scripts.living import LEVEL_S, LivingCluster
from tests.system.conftest import MakeLiving

pytestmark = pytest.mark.system

BYTES_PER_S = 262_144
"""So slow that there is time to kill somebody meanwhile."""

DURABLE_BYTES = 150_000


async def wait_received(cluster: LivingCluster, node: int, least: int) -> None:
    """Until the snapshot that comes to `node` has so many bytes aside."""
    file = cluster.data_dir(node) / "snap" / "receiving"
    async with asyncio.timeout(LEVEL_S):
        while not file.exists() or file.stat().st_size < least:
            await asyncio.sleep(0.02)


@pytest.mark.timeout(300)
async def test_a_snapshot_arrives_although_receiver_and_sender_are_killed(make_living: MakeLiving) -> None:
    cluster = make_living(peer__snapshot_bytes_per_s=BYTES_PER_S)
    cluster.start_all()
    leader = await cluster.wait_leader()
    # Else it would be raised when the member comes back, and its second life be given another snapshot.
    await cluster.wait_members(lambda found: found["feature_level"] == FEATURE_LEVEL, "the level rises")
    away = next(node for node in cluster.ids if node != leader)
    cluster.processes[away].kill()
    await cluster.fill(100)
    await cluster.wait_cut(60)
    for life in (1, 2):
        cluster.start(away)
        await cluster.wait_event(away, "snapshot.receiving", life)
        await wait_received(cluster, away, life * DURABLE_BYTES)
        cluster.processes[away].kill()
    assert cluster.events(away, "snapshot.receiving")[1]["block"] > 0, "it does not begin again"
    cluster.start(away)
    await cluster.wait_event(away, "snapshot.receiving", 3)
    cluster.processes[leader].kill()
    await cluster.wait_level()
    assert cluster.events(away, "snapshot.installed")
    cluster.start(leader)
    statuses = await cluster.wait_level()
    assert len(statuses) == 3
    assert len({status["state_hash"] for status in statuses.values()}) == 1, statuses
