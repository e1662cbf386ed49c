"""The kernel says no, or the process dies, at one certain system call (strace injects it).

A first start that is killed at any call is finished, or begun anew, by the next start. A node whose disk fails ends at
once, non-zero, and nothing that was acknowledged is lost. KVNODE_SWEEP_CALLS=30 goes through every call of a first
start instead of the first of each kind; a simulated disk goes through all of them (`storage/test_start_variants.py`).
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator

import pytest

from kvnode.bench.process import Process
from scripts.faults.capability import why_no_strace
from scripts.faults.syscalls import Injector, under
from scripts.faults.undo import Undo
from tests.system.cluster import RealCluster, logged
from tests.system.conftest import MakeCluster

pytestmark = pytest.mark.system

CALLS_MAX = int(os.environ.get("KVNODE_SWEEP_CALLS", "1"))
SERVING_S = 2.0
EXIT_FATAL = 5


@pytest.fixture(autouse=True, scope="module")
def strace(tmp_path_factory: pytest.TempPathFactory) -> None:
    reason = why_no_strace(tmp_path_factory.mktemp("strace"))
    if reason:
        pytest.skip(reason)


@pytest.fixture
def injector() -> Iterator[Injector]:
    undo = Undo()
    yield Injector(undo)
    assert undo.all() == []


@pytest.mark.timeout(60 + 10 * CALLS_MAX)
@pytest.mark.parametrize("call", ["fdatasync", "fsync", "pwrite64", "rename", "ftruncate"])
async def test_a_first_start_killed_at_any_call_is_finished_by_the_next(make_cluster: MakeCluster, call: str) -> None:
    deaths = 0
    for count in range(1, CALLS_MAX + 1):
        cluster = make_cluster(1, storage__segment_bytes=65_536)
        command = [*under([f"{call}:signal=KILL:when={count}"]), *cluster.command(1)]
        cluster.processes[1] = Process(command, cluster.home / "1.out", own_session=True)
        if not await died(cluster, 1):
            break  # it is up: a start makes no more calls of this kind
        deaths += 1
        cluster.start(1)
        await cluster.wait_ready()
        assert (await cluster.put(1, "after", b"it")).status == 200
        cluster.stop()
    print(f"{deaths} deaths at {call}")
    assert deaths


@pytest.mark.timeout(60 + 15 * CALLS_MAX)
@pytest.mark.parametrize("call", ["fsync", "rename"])
async def test_a_cluster_forms_although_a_member_is_killed_while_it_meets_the_others(
    make_cluster: MakeCluster, call: str
) -> None:
    deaths = 0
    for count in range(1, CALLS_MAX + 1):
        cluster = make_cluster()
        cluster.start(1)
        cluster.start(2)
        command = [*under([f"{call}:signal=KILL:when={count}"]), *cluster.command(3)]
        cluster.processes[3] = Process(command, cluster.home / "3.out", own_session=True)
        if not await died(cluster, 3):
            break
        deaths += 1
        cluster.start(3)
        await cluster.wait_ready()
        for node in cluster.ids:
            assert (await cluster.put(node, f"by/{node}", b"it")).status == 200
        cluster.stop()
    print(f"{deaths} deaths at {call}")
    assert deaths


@pytest.mark.parametrize(
    ("role", "fault"),
    [("leader", "fdatasync:error=EIO"), ("follower", "pwrite64:error=ENOSPC")],
)
async def test_a_node_whose_log_fails_ends_and_nothing_acknowledged_is_lost(
    make_cluster: MakeCluster, injector: Injector, role: str, fault: str
) -> None:
    cluster = make_cluster()
    leader = await cluster.started()
    victim = leader if role == "leader" else next(node for node in cluster.ids if node != leader)
    acknowledged = await written(cluster, "before", 5)
    injector.attach(cluster.processes[victim].pid, [f"{fault}:when=3"])
    acknowledged += await written(cluster, "during", 40)
    code = await asyncio.to_thread(cluster.processes[victim].wait, 20)
    assert code == EXIT_FATAL, cluster.processes[victim].last_output()
    failures = [event for event in logged(cluster.processes[victim]) if event["event"] == "node.failed"]
    assert [event["code"] for event in failures] == ["storage_failed"]

    del cluster.processes[victim]
    await cluster.wait_ready()
    acknowledged += await written(cluster, "without", 5)
    await cluster.started()
    for node in cluster.ids:
        for key in acknowledged:
            assert (await cluster.get(node, key)).status == 200, (node, key)


async def written(cluster: RealCluster, name: str, count: int) -> list[str]:
    """Put keys through all running nodes in turn → those that were acknowledged."""
    acknowledged = []
    for number in range(count):
        running = cluster.running()
        key = f"{name}/{number}"
        try:
            answer = await cluster.put(running[number % len(running)], key, b"v")
        except (OSError, TimeoutError):
            continue
        if answer.status == 200:
            acknowledged.append(key)
    assert acknowledged
    return acknowledged


async def died(cluster: RealCluster, node: int) -> bool:
    """Whether it ends before it serves, or soon after."""
    process = cluster.processes[node]
    while process.exit_code is None and not await cluster.ask_leader(node):
        await asyncio.sleep(0.02)
    try:
        return await asyncio.to_thread(process.wait, SERVING_S) != 0
    except subprocess.TimeoutExpired:
        return False
