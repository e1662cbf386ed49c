"""kill -9 of random nodes under load: nothing acknowledged is lost, nothing refused has happened, all copies agree.

Every write has a key of its own, so the end state tells the fate of each: acknowledged → there with its value;
answered `not-applied` → not there; anything else → either. KVNODE_KILL_ROUNDS=30 makes it long, KVNODE_KILL_SEED
chooses who dies when.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import subprocess
import sys
from dataclasses import dataclass, field
from urllib.parse import quote

import pytest

from tests.system.cluster import RawClient, RealCluster
from tests.system.conftest import MakeCluster

pytestmark = pytest.mark.system

ROUNDS = int(os.environ.get("KVNODE_KILL_ROUNDS", "3"))
SEED = int(os.environ.get("KVNODE_KILL_SEED", "1"))
WRITERS = 8
PACE_S = 0.002


@dataclass
class Fates:
    """What the clients were told, by key."""

    acknowledged: dict[str, bytes] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


class Writer:
    """Writes new keys through one node, goes to the next one when that fails."""

    def __init__(self, cluster: RealCluster, number: int, fates: Fates) -> None:
        self._cluster = cluster
        self._number = number
        self._fates = fates

    async def run(self) -> None:
        nodes = itertools.cycle(self._cluster.ids)
        client = self._cluster.client(next(nodes))
        try:
            for count in itertools.count():
                key = f"kill/{self._number}/{count:06d}"
                if not await self._write(client, key, b"value of " + key.encode()):
                    client.close()
                    client = self._cluster.client(next(nodes))
                    await asyncio.sleep(0.01)
                await asyncio.sleep(PACE_S)
        finally:
            client.close()

    async def _write(self, client: RawClient, key: str, value: bytes) -> bool:
        fates = self._fates
        fates.unknown.append(key)  # until an answer says more
        try:
            answer = await client.call("PUT", f"/v1/kv/{key}", value)
        except (OSError, TimeoutError):
            return False
        if answer.status == 200:
            fates.unknown.remove(key)
            fates.acknowledged[key] = value
            return True
        assert answer.headers["kv-outcome"] in {"not-applied", "unknown"}, answer
        if answer.headers["kv-outcome"] == "not-applied":
            fates.unknown.remove(key)
            fates.refused.append(key)
        return False


def victims(rng: random.Random, cluster: RealCluster, leader: int) -> list[int]:
    """Mostly one node, often the leader; now and then two or all."""
    kind = rng.choices(("any", "leader", "two", "all"), (4, 3, 1, 1))[0]
    if kind == "leader":
        return [leader]
    return rng.sample(list(cluster.ids), {"any": 1, "two": 2, "all": len(cluster.ids)}[kind])


async def all_keys(cluster: RealCluster, node: int) -> dict[str, bytes]:
    """Everything below kill/, read page by page through one node."""
    found: dict[str, bytes] = {}
    cursor = ""
    while True:
        path = "/v1/kv?prefix=kill/&limit=2000" + (f"&cursor={quote(cursor)}" if cursor else "")
        answer = await cluster.call(node, "GET", path)
        assert answer.status == 200, answer
        page = answer.json()
        found.update({item["key"]: item["value"].encode() for item in page["items"]})
        if not page["more"]:
            return found
        cursor = page["cursor"]


@pytest.mark.timeout(60 + 15 * ROUNDS)
async def test_kill_rounds(make_cluster: MakeCluster) -> None:
    rng = random.Random(SEED)
    cluster = make_cluster(log__level="warning")
    fates = Fates()
    await cluster.started()
    writers = [asyncio.create_task(Writer(cluster, number, fates).run()) for number in range(WRITERS)]
    story = []
    try:
        for _ in range(ROUNDS):
            leader = await cluster.started()
            before = len(fates.acknowledged)
            await asyncio.sleep(rng.uniform(0.1, 0.6))
            chosen = victims(rng, cluster, leader)
            for node in chosen:
                cluster.processes[node].kill()
            await asyncio.sleep(rng.uniform(0.0, 0.6))
            story.append((leader, chosen, len(fates.acknowledged) - before))
        await cluster.started()
        await asyncio.sleep(0.3)
    finally:
        for writer in writers:
            writer.cancel()
        ended = await asyncio.gather(*writers, return_exceptions=True)
    print(f"(leader, killed, acknowledged): {story}")
    for error in ended:
        if not isinstance(error, asyncio.CancelledError):
            raise AssertionError("a writer failed") from error

    assert len(fates.acknowledged) > 20 * ROUNDS
    await check_copies(cluster, fates)
    check_logs(cluster)


async def check_copies(cluster: RealCluster, fates: Fates) -> None:
    """Every node shows every acknowledged write, none that was refused, and the same state."""
    for node in cluster.ids:
        found = await all_keys(cluster, node)
        lost = [key for key, value in fates.acknowledged.items() if found.get(key) != value]
        assert lost == [], f"acknowledged, but not on node {node}"
        assert [key for key in fates.refused if key in found] == [], f"refused, but on node {node}"
    last = max([(await cluster.status(node))["commit_index"] for node in cluster.ids])
    statuses = await cluster.wait_applied(last)
    assert len({status["applied_index"] for status in statuses.values()}) == 1
    assert len({status["state_hash"] for status in statuses.values()}) == 1, statuses


def check_logs(cluster: RealCluster) -> None:
    """A clean end, then `kvnode wal verify` over all three logs."""
    for node in cluster.ids:
        assert cluster.processes[node].stop() == 0, cluster.processes[node].last_output()
    directories = [str(cluster.data_dir(node)) for node in cluster.ids]
    command = [sys.executable, "-m", "kvnode", "wal", "verify", *directories]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
