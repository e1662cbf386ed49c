"""Signals: SIGTERM ends a node without leaving anybody in the dark, SIGSTOP costs nothing but time."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass
from time import monotonic

import pytest

from tests.system.cluster import Answer, RawClient, RealCluster
from tests.system.conftest import MakeCluster

pytestmark = pytest.mark.system

CLIENTS = 16
PACE_S = 0.005


@dataclass
class Attempt:
    key: str
    sent: float
    answer: Answer | None = None


async def hammer(client: RawClient, number: int, attempts: list[Attempt]) -> None:
    """Write one key after another until the connection ends."""
    for count in range(100_000):
        attempt = Attempt(f"term/{number}/{count}", monotonic())
        attempts.append(attempt)
        try:
            attempt.answer = await client.call("PUT", f"/v1/kv/{attempt.key}", b"v")
        except OSError:
            return
        await asyncio.sleep(PACE_S)
        if attempt.answer.status != 200 or attempt.answer.headers.get("connection", "").lower() == "close":
            return


async def test_sigterm_answers_everybody(make_cluster: MakeCluster) -> None:
    cluster = make_cluster()
    leader = await cluster.started()
    attempts: list[Attempt] = []
    clients = [cluster.client(leader) for _ in range(CLIENTS)]
    tasks = [asyncio.create_task(hammer(client, number, attempts)) for number, client in enumerate(clients)]
    await asyncio.sleep(0.5)
    ended = monotonic()
    cluster.processes[leader].signal(signal.SIGTERM)
    async with asyncio.timeout(10):
        await asyncio.gather(*tasks)
        exit_code = await asyncio.to_thread(cluster.processes[leader].wait)
    assert exit_code == 0
    # What was sent after the signal may find the listener gone; what was under way is answered, and honestly.
    for attempt in attempts:
        if attempt.sent < ended:
            assert attempt.answer is not None, attempt
    answers = [attempt.answer for attempt in attempts if attempt.answer is not None]
    assert len(answers) > CLIENTS
    for answer in answers:
        assert answer.status == 200 or answer.headers["kv-outcome"] in {"not-applied", "unknown"}, answer

    other = cluster.client(await cluster.wait_ready())
    for attempt in attempts:
        if attempt.answer is None:
            continue
        found = (await other.call("GET", f"/v1/kv/{attempt.key}")).status
        if attempt.answer.status == 200:
            assert found == 200, attempt
        elif attempt.answer.headers["kv-outcome"] == "not-applied":
            assert found == 404, attempt
    other.close()


async def test_a_paused_leader_comes_back_without_a_stale_read(make_cluster: MakeCluster) -> None:
    cluster = make_cluster()
    leader = await cluster.started()
    await cluster.put(leader, "paused", b"old")
    old = cluster.client(leader)
    assert (await old.call("GET", "/v1/kv/paused")).body == b"old"  # the connection is open before the pause

    cluster.processes[leader].signal(signal.SIGSTOP)
    try:
        others = [node for node in cluster.ids if node != leader]
        await wait_other_leader(cluster, others, leader)
        answer = await cluster.put(others[0], "paused", b"new")
        assert answer.status == 200, answer
        reading = asyncio.create_task(old.call("GET", "/v1/kv/paused"))
        await asyncio.sleep(0.05)  # the question lies in the socket of the stopped process
    finally:
        cluster.processes[leader].signal(signal.SIGCONT)
    answer = await reading
    assert answer.status != 200 or answer.body == b"new", answer
    old.close()
    await cluster.wait_ready()
    assert (await cluster.get(leader, "paused")).body == b"new"


async def wait_other_leader(cluster: RealCluster, nodes: list[int], former: int) -> None:
    async with asyncio.timeout(10):
        for node in nodes:
            while (await cluster.status(node))["leader"] in {None, former}:
                await asyncio.sleep(0.02)
