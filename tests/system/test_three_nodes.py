"""Three real nodes: any of them serves, any of them may die, none can be impersonated."""

from __future__ import annotations

import asyncio
import shutil
from time import monotonic

import pytest

from kvnode.bench.process import Process
from tests.system.cluster import RealCluster, logged
from tests.system.conftest import MakeCluster

pytestmark = pytest.mark.system

EXIT_FATAL = 5


async def wait_exit(process: Process, limit_s: float = 10.0) -> int:
    return await asyncio.to_thread(process.wait, limit_s)


async def is_ready(cluster: RealCluster, node: int) -> bool:
    """A node that has not bootstrapped does not even listen to clients."""
    try:
        return (await cluster.call(node, "GET", "/readyz")).status == 200
    except OSError:
        return False


async def wait_logged(process: Process, word: str, limit_s: float = 10.0) -> None:
    """Until `word` stands in something the process has logged."""
    async with asyncio.timeout(limit_s):
        while not any(word in str(event) for event in logged(process)):
            await asyncio.sleep(0.02)


async def wait_alarm(cluster: RealCluster, node: int, word: str, limit_s: float = 10.0) -> None:
    """Until `word` stands in the alarms of the node's status."""
    async with asyncio.timeout(limit_s):
        while word not in str((await cluster.status(node))["alarms"]):
            await asyncio.sleep(0.02)


async def test_every_node_serves_and_the_leader_may_die(make_cluster: MakeCluster) -> None:
    cluster = make_cluster()
    leader = await cluster.started()
    follower = next(node for node in cluster.ids if node != leader)

    for writer in cluster.ids:
        assert (await cluster.put(writer, f"by/{writer}", b"%d" % writer)).status == 200
        for reader in cluster.ids:
            answer = await cluster.get(reader, f"by/{writer}")
            assert (answer.status, answer.body) == (200, b"%d" % writer)
            assert answer.headers["kv-node"] == str(reader)

    told = await cluster.call(follower, "PUT", "/v1/kv/direct", b"1", Kv_No_Forward="1")
    assert told.status == 307
    host, port = cluster.clients[leader]
    assert told.headers["location"] == f"http://{host}:{port}/v1/kv/direct"
    assert (await cluster.get(follower, "direct")).status == 404
    assert (await cluster.call(leader, "PUT", "/v1/kv/direct", b"1", Kv_No_Forward="1")).status == 200

    cluster.processes[leader].kill()
    killed = monotonic()
    answer = await cluster.put(follower, "after", b"kill")
    while answer.status == 504:  # forwarded in the moment before the leader's end was noticed: honestly unknown
        assert answer.headers["kv-outcome"] == "unknown"
        answer = await cluster.put(follower, "after", b"kill")
    assert answer.status == 200, answer.body
    assert monotonic() - killed < 3.0
    for node in cluster.running():
        assert (await cluster.get(node, f"by/{leader}")).body == b"%d" % leader

    await cluster.started()
    assert (await cluster.get(leader, "after")).body == b"kill"


async def test_one_data_directory_one_process(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(1)
    await cluster.started()
    second = cluster.start_copy(1, "second", cluster.data_dir(1))
    assert await wait_exit(second) == EXIT_FATAL
    assert "data_dir_locked" in second.last_output()
    assert (await cluster.put(1, "still", b"served")).status == 200


async def test_a_wiped_directory_is_refused(make_cluster: MakeCluster) -> None:
    cluster = make_cluster()
    leader = await cluster.started()
    node = next(node for node in cluster.ids if node != leader)
    cluster.processes[node].kill()
    shutil.rmtree(cluster.data_dir(node))
    wiped = cluster.start(node)
    await wait_logged(wiped, "wrong_incarnation")
    assert (await cluster.put(leader, "two", b"are enough")).status == 200
    other = next(other for other in cluster.running() if other not in {leader, node})
    assert (await cluster.get(other, "two")).body == b"are enough"
    assert wiped.exit_code in {None, EXIT_FATAL}
    assert not await is_ready(cluster, node)


async def test_a_copied_directory_is_refused(make_cluster: MakeCluster) -> None:
    cluster = make_cluster()
    leader = await cluster.started()
    node = max(node for node in cluster.ids if node != leader)
    cluster.processes[node].stop()
    copy = cluster.home / "copy"
    shutil.copytree(cluster.data_dir(node), copy)
    cluster.start(node)
    await cluster.wait_ready()
    cluster.processes[node].kill()  # frees its peer port, which the copy takes
    clone = cluster.start_copy(node, "clone", copy)
    await wait_logged(clone, "cloned")
    await wait_alarm(cluster, leader, "runs twice")
    assert clone.exit_code in {None, EXIT_FATAL}
    assert (await cluster.put(leader, "two", b"are enough")).status == 200


async def test_another_cluster_is_refused(make_cluster: MakeCluster) -> None:
    ours, theirs = make_cluster(), make_cluster()
    theirs.peers[3] = ours.peers[3]  # their third node lives at the address of ours
    theirs.secret_file.write_bytes(ours.secret_file.read_bytes())
    for node in theirs.ids:
        theirs.write_config(node)
    theirs.start(1)
    theirs.start(2)
    await ours.started()
    for node in (1, 2):
        await wait_logged(theirs.processes[node], "members_differ")
    assert (await ours.put(1, "ours", b"1")).status == 200
    assert not await is_ready(theirs, 1)
