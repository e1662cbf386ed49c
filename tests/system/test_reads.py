"""Reads that need no leader, and reads of the past, on real processes."""

from __future__ import annotations

import asyncio
import json
import signal
from time import monotonic

import pytest

from tests.system.conftest import MakeCluster

pytestmark = pytest.mark.system

BOUND_S = 0.5


async def test_a_follower_without_its_leader_is_never_older_than_the_bound_and_then_refuses(
    make_cluster: MakeCluster,
) -> None:
    """FR-T1, FR5: the other two are stopped, so whatever the follower shows was confirmed before that."""
    cluster = make_cluster()
    leader = await cluster.started()
    follower = next(node for node in cluster.ids if node != leader)
    bounded = "/v1/kv/k?consistency=bounded&max_staleness=500ms&timeout=2s"
    await cluster.put(leader, "k", b"v")
    assert (await cluster.get(follower, "k")).body == b"v", "applied there"
    assert (await cluster.call(follower, "GET", bounded)).status == 200

    others = [cluster.processes[node] for node in cluster.ids if node != follower]
    for process in others:
        process.signal(signal.SIGSTOP)
    stopped_at = monotonic()
    refusals = 0
    async with asyncio.timeout(20):
        while refusals < 3:
            asked_at = monotonic()
            answer = await cluster.call(follower, "GET", bounded)
            if answer.status == 200:
                assert asked_at - stopped_at <= BOUND_S, "older than its bound"
                assert int(answer.headers["kv-staleness-ms"]) <= BOUND_S * 1e3
                assert not refusals
            else:
                assert (answer.status, json.loads(answer.body)["error"]["code"]) == (503, "stale_bound_unmet")
                refusals += 1
    stale = await cluster.call(follower, "GET", "/v1/kv/k?consistency=stale")
    assert (stale.status, stale.body) == (200, b"v")
    assert int(stale.headers["kv-staleness-ms"]) >= BOUND_S * 1e3

    for process in others:
        process.signal(signal.SIGCONT)
    async with asyncio.timeout(20):
        while (await cluster.call(follower, "GET", bounded)).status != 200:
            await asyncio.sleep(0.05)


async def test_a_causal_read_elsewhere_never_misses_the_write_its_token_is_of(make_cluster: MakeCluster) -> None:
    cluster = make_cluster()
    await cluster.started()
    for number in range(60):
        writer, reader = cluster.ids[number % 3], cluster.ids[(number + 1 + number // 30) % 3]
        put = await cluster.put(writer, "mine", b"%d" % number)
        got = await cluster.call(reader, "GET", "/v1/kv/mine?consistency=causal", Kv_Token=put.headers["kv-token"])
        assert (got.status, got.body) == (200, b"%d" % number)
        assert int(got.headers["kv-revision"]) >= int(put.headers["kv-revision"])


async def test_the_past_is_the_same_on_every_node_and_after_a_restart(make_cluster: MakeCluster) -> None:
    cluster = make_cluster()
    await cluster.started()
    puts = [await cluster.put(node, "k", b"from %d" % node) for node in cluster.ids]
    await cluster.call(1, "DELETE", "/v1/kv/k")
    times = [put.headers["kv-time"] for put in puts]
    revisions = [put.headers["kv-revision"] for put in puts]
    asked = [f"/v1/kv/k?at_time={time}" for time in times] + [f"/v1/kv/k?at_rev={revision}" for revision in revisions]
    asked += [f"/v1/kv?prefix=&at_time={times[1]}", "/v1/history/k", f"/v1/history/k?at_time={times[2]}"]

    async def ask_all(node: int) -> list[tuple[int, bytes]]:
        answers = [await cluster.call(node, "GET", path) for path in asked]
        return [(answer.status, answer.body) for answer in answers]

    first = await ask_all(1)
    assert [body for _, body in first[:3]] == [b"from 1", b"from 2", b"from 3"] == [body for _, body in first[3:6]]
    assert [item["mod_revision"] for item in json.loads(first[7][1])["items"]] == [5, 4, 3, 2]
    assert json.loads(first[7][1])["items"][0]["deleted"] is True
    for node in cluster.ids:
        cluster.processes[node].kill()
    await cluster.started()
    for node in cluster.ids:
        later = await ask_all(node)
        assert later[:7] == first[:7]
        assert later[8] == first[8]
    now = await cluster.call(2, "GET", "/v1/kv/k?at_time=-1ms")
    assert now.status == 404
    future = await cluster.call(2, "GET", "/v1/kv/k?at_time=2999-01-01T00:00:00Z")
    assert (future.status, json.loads(future.body)["error"]["code"]) == (400, "clock_drift")
