"""Real processes: members come and go for good, and leadership moves when it is told to."""

from __future__ import annotations

import asyncio
import sys

import pytest

from scripts.living import LEVEL_S, LivingCluster
from tests.system.conftest import MakeLiving

pytestmark = pytest.mark.system


async def run_command(cluster: LivingCluster, node: int, *words: str) -> tuple[int, str]:
    """`kvnode WORDS` against one node → exit code, and everything it said."""
    endpoint = "{}:{}".format(*cluster.clients[node])
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "kvnode", *words, "--endpoint", endpoint), stdout=-1, stderr=-2
    )
    said, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode()


async def assert_removed(cluster: LivingCluster, node: int, times: int) -> None:
    """It ends by itself, and says why."""
    assert await cluster.wait_exit(node) == 5
    failures = cluster.events(node, "node.failed")
    assert [failure["code"] for failure in failures] == ["member_removed"] * times
    assert f"member {node} was removed from the cluster" in failures[-1]["message"]


@pytest.mark.timeout(300)
async def test_who_is_a_member_outlives_the_log_that_says_so(make_living: MakeLiving) -> None:
    cluster = make_living()
    cluster.start_all()
    await cluster.wait_leader()
    joined = cluster.start_joining()
    await cluster.wait_joined(joined)
    leader = await cluster.wait_leader()
    gone = next(node for node in (1, 2, 3) if node != leader)
    code, said = await run_command(cluster, leader, "member", "remove", str(gone))
    assert (code, said) == (0, f"member {gone} is removed: 3 voters, 2 needed\n")
    cluster.forget(gone)
    await assert_removed(cluster, gone, 1)
    index = (await cluster.status(leader))["configuration_index"]
    await cluster.wait_cut(index)
    for node in cluster.ids:
        cluster.processes[node].kill()
    for node in cluster.ids:
        cluster.start(node)
    await cluster.wait_leader()
    for node, status in (await cluster.wait_level()).items():
        assert [member["id"] for member in status["members"]] == sorted(cluster.ids)
        assert status["configuration_index"] == index
        assert cluster.first_index(node) > index
    assert (cluster.data_dir(gone) / "wal").is_dir()
    cluster.start(gone)
    await assert_removed(cluster, gone, 2)


@pytest.mark.timeout(200)
async def test_leadership_moves_by_command_and_by_signal(make_living: MakeLiving) -> None:
    cluster = make_living()
    cluster.start_all()
    first = await cluster.wait_leader()
    await cluster.ask(first, "PUT", "/v1/kv/kept", b"until the end")
    second = next(node for node in cluster.ids if node != first)
    code, said = await run_command(cluster, second, "transfer", str(second))
    assert (code, said) == (0, f"member {second} leads\n")
    assert await cluster.wait_leader() == second
    assert await asyncio.to_thread(cluster.processes[second].stop) == 0
    third = await cluster.wait_leader()
    reasons = [event["reason"] for event in cluster.events(third, "election.started")]
    assert third != second
    assert reasons[-1] == "transfer", "nobody waited for a timeout"
    other = next(node for node in cluster.running() if node != third)
    cluster.processes[other].kill()
    await assert_saved(cluster, third)


async def assert_saved(cluster: LivingCluster, survivor: int) -> None:
    """No majority is left: members cannot be changed any more, not even by force, but what is there can be read."""
    async with asyncio.timeout(LEVEL_S):
        while (await cluster.status(survivor))["leader"] is not None:
            await asyncio.sleep(0.05)
    for words in (("member", "remove", "1", "--force", "--yes"), ("export",)):
        code, said = await run_command(cluster, survivor, *words, "--timeout", "1s")
        assert (code, "[no_leader]" in said) == (3, True), said
    code, said = await run_command(cluster, survivor, "export", "--stale")
    assert code == 0, said
    assert '"key":"kept","value":"until the end"' in said
