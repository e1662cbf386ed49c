"""A node whose log has been damaged never wins with what is left of it (S73).

One node of three is stopped, a byte of a record that it has acknowledged is changed, a healthy node dies. With the
damaged one there would be a majority; if it dropped the rest of its log, it could lead and make the others forget.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.system.cluster import RealCluster
from tests.system.conftest import MakeCluster

pytestmark = pytest.mark.system

KEYS = 40
WATCHED_S = 1.5


async def test_a_damaged_node_never_leads_with_a_shortened_log(make_cluster: MakeCluster) -> None:
    cluster = make_cluster()
    await cluster.started()
    keys = [f"key/{number:03d}" for number in range(KEYS)]
    for number, key in enumerate(keys):
        assert (await cluster.put(1 + number % 3, key, b"value of " + key.encode())).status == 200
    statuses = await cluster.wait_applied((await cluster.status(1))["commit_index"])
    last = statuses[3]["last_index"]
    for node in (3, 1):
        cluster.processes[node].kill()
    flip_a_byte(cluster, 3, keys[KEYS // 5])

    damaged = cluster.start(3)
    await no_shorter_log(cluster, 3, last)
    if damaged.exit_code is not None:
        assert damaged.exit_code > 0, damaged.last_output()
        assert "wal" in damaged.last_output(), "the refusal names the file"
        del cluster.processes[3]

    cluster.start(1)
    leader = await cluster.wait_ready()
    for node in cluster.running():
        for key in keys:
            assert (await cluster.get(node, key)).body == b"value of " + key.encode(), (leader, node, key)


def flip_a_byte(cluster: RealCluster, node: int, key: str) -> None:
    """Within the record of `key` in the node's log."""
    for file in sorted((cluster.data_dir(node) / "wal").iterdir()):
        place = found(file, key)
        if place >= 0:
            with file.open("r+b") as log:
                log.seek(place)
                byte = log.read(1)[0]
                log.seek(place)
                log.write(bytes([byte ^ 0x10]))
            return
    raise AssertionError(f"{key} is not in the log")


def found(file: Path, key: str) -> int:
    return file.read_bytes().find(f"value of {key}".encode())


async def no_shorter_log(cluster: RealCluster, node: int, last: int) -> None:
    """While it runs beside one healthy node: it does not lead with less than it had."""
    for _ in range(int(WATCHED_S / 0.1)):
        if cluster.processes[node].exit_code is not None:
            return
        try:
            status = await cluster.status(node)
        except (OSError, ValueError):
            status = {"role": "", "last_index": last}
        assert status["role"] != "leader" or status["last_index"] >= last, status
        await asyncio.sleep(0.1)
