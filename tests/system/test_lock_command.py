"""`kvnode lock` on a real cluster: its holder stopped past the TTL, its leader killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic

import pytest

import kvnode
from kvnode.errors import LockHeld
from kvnode.recipes.kept_lease import Standing
from tests.system.cluster import RealCluster

pytestmark = pytest.mark.system

TTL_S = 2.0
LIMIT_S = 30.0
COMMAND = """
trap 'echo told to end; exit 0' TERM
echo "token $KVNODE_LOCK_TOKEN"
while :; do sleep 0.05; done
"""

Begin = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCluster]:
    """One for both commands; each starts what the one before has ended."""
    cluster = RealCluster(tmp_path_factory.mktemp("lock"), 3)
    yield cluster
    cluster.stop()


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """Starts `kvnode lock`; its output goes to a file. Ends with the test, its command with it."""
    begun: list[subprocess.Popen[bytes]] = []

    def start(cluster: RealCluster, output: str, *arguments: str) -> subprocess.Popen[bytes]:
        endpoints = ",".join(f"{host}:{port}" for host, port in cluster.clients.values())
        with (tmp_path / output).open("ab") as sink:
            process = subprocess.Popen(
                [sys.executable, "-m", "kvnode", "lock", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                env={**os.environ, "KVNODE_ENDPOINTS": endpoints},
            )
        begun.append(process)
        return process

    yield start
    for process in begun:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)  # it passes that on
            process.send_signal(signal.SIGCONT)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


async def token_in(output: Path) -> int:
    """What the command under the lock has written, once it runs."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            if output.exists() and (words := output.read_text().split()) and words[0] == "token":
                return int(words[1])
            await asyncio.sleep(0.02)


async def ended(process: subprocess.Popen[bytes]) -> int:
    return await asyncio.to_thread(process.wait, LIMIT_S)


async def test_a_holder_that_was_stopped_past_its_ttl_learns_that_it_lost(
    cluster: RealCluster, begin: Begin, tmp_path: Path
) -> None:
    """GC-T3: `kvnode lock` sleeps, its command goes on meanwhile, and another gets the lock under a greater token."""
    await cluster.started()
    first = begin(cluster, "first", "deploy", "--ttl", "2s", "--owner", "first", "--", "sh", "-c", COMMAND)
    first_token = await token_in(tmp_path / "first")
    second = begin(cluster, "second", "deploy", "--ttl", "2s", "--owner", "second", "--", "sh", "-c", COMMAND)
    await asyncio.sleep(1.5 * TTL_S)
    assert not (tmp_path / "second").read_text(), "the first one is renewed"

    first.send_signal(signal.SIGSTOP)
    stopped_at = monotonic()
    second_token = await token_in(tmp_path / "second")
    for token, status in ((first_token, 412), (second_token, 200), (first_token, 412)):
        write = await cluster.call(3, "PUT", f"/v1/kv/state?fence=deploy:{token}", b"%d" % token)
        assert write.status == status, "the first one's command runs on, but not through its fence"
    assert (await cluster.get(1, "state")).body == b"%d" % second_token
    assert second_token > first_token
    assert monotonic() - stopped_at > TTL_S / 2, "not before the last renewal had run out"
    queue = json.loads((await cluster.call(1, "GET", "/v1/locks/deploy")).body)
    assert (queue["holder"]["owner"], queue["holder"]["token"]) == ("second", second_token)

    first.send_signal(signal.SIGCONT)
    assert await ended(first) == 75
    said = (tmp_path / "first").read_text()
    assert "the lock was lost; ending sh" in said
    assert "told to end" in said
    late = await cluster.call(2, "POST", f"/v1/locks/deploy/keepalive?token={first_token}")
    assert (late.status, late.json()["error"]["code"]) == (412, "fenced")
    second.send_signal(signal.SIGTERM)
    assert await ended(second) == 0, "the first one's end did it no harm"


async def test_a_lock_is_held_through_the_death_of_the_leader(
    cluster: RealCluster, begin: Begin, tmp_path: Path
) -> None:
    leader = await cluster.started()
    holder = begin(cluster, "holder", "deploy", "--ttl", "3s", "--", "sh", "-c", COMMAND)
    token = await token_in(tmp_path / "holder")
    cluster.processes[leader].kill()
    await asyncio.sleep(3.5)
    other = next(node for node in cluster.ids if node != leader)
    queue = json.loads((await cluster.call(other, "GET", "/v1/locks/deploy")).body)
    assert queue["holder"]["token"] == token
    assert holder.poll() is None
    holder.send_signal(signal.SIGTERM)
    assert await ended(holder) == 0
    assert json.loads((await cluster.call(other, "GET", "/v1/locks/deploy")).body)["holder"] is None


async def test_an_embedded_node_holds_locks_too(tmp_path: Path) -> None:
    settings = {
        "node.data_dir": str(tmp_path / "n1"),
        "peer.listen": "127.0.0.1:0",
        "storage.allow_unsafe_filesystem": True,
    }
    async with kvnode.open_node(settings=settings) as node:
        async with node.lock("deploy", ttl_ms=1_500, owner="me") as held:
            with pytest.raises(LockHeld):
                await node.lock("deploy").__aenter__()
            await asyncio.sleep(2)
            assert held.standing is not Standing.LOST
        async with node.elect("deploy", value="me") as later:
            assert later.token > held.token
