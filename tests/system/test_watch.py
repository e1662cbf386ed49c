"""Watches on real processes: streams that move while leaders are killed, and readers that stop reading."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import aiohttp
import pytest

from kvnode.client.client import Client
from kvnode.kv.events import Changes, Started
from tests.system.cluster import RealCluster
from tests.system.conftest import MakeCluster

pytestmark = pytest.mark.system

KILLS = 5


@asynccontextmanager
async def writing(cluster: RealCluster) -> AsyncIterator[None]:
    """Puts of two keys a transaction, and deletions, through whichever node takes them."""

    async def write() -> None:
        for number in itertools.count():
            node = cluster.ids[number % len(cluster.ids)]
            put = [{"put": {"key": f"w/{key}", "value": f"{number}"}} for key in (number % 7, "all")]
            operations = [{"delete": {"key": f"w/{number % 7}"}}] if number % 5 == 4 else put
            try:
                body = json.dumps({"success": operations}).encode()
                await cluster.call(node, "POST", "/v1/txn", body)
            except (OSError, TimeoutError):
                pass
            await asyncio.sleep(0.005)

    task = asyncio.create_task(write())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def follow_by_hand(
    cluster: RealCluster, session: aiohttp.ClientSession, seen: list[dict[str, Any]], first: int
) -> None:
    """As a program with nothing but HTTP: at another node whenever the stream ends, after what came whole."""
    for node in itertools.cycle(cluster.ids):
        host, port = cluster.clients[node]
        part: list[dict[str, Any]] = []
        try:
            query = f"prefix=w/&from_rev={first}&progress=500ms"
            async with session.get(f"http://{host}:{port}/v1/watch?{query}") as response:
                while response.status == 200 and (line := await response.content.readline()).endswith(b"\n"):
                    message = json.loads(line)
                    if message["type"] in {"put", "delete"}:
                        part.append(message)
                    if not message.get("more") and message["type"] != "cancelled":
                        seen += part
                        part = []
                        first = message["revision"] + 1
        except (aiohttp.ClientError, OSError):
            pass
        await asyncio.sleep(0.01)


async def follow_with_the_client(cluster: RealCluster, seen: list[tuple[int, str]]) -> None:
    addresses = ",".join(f"{host}:{port}" for host, port in cluster.clients.values())
    async with (
        Client(addresses) as client,
        aclosing(client.watch_prefix("w/", from_revision=2)) as stream,
    ):
        async for part in stream:
            if isinstance(part, Changes):
                seen += [(event.kv.mod_revision, event.kv.key.decode()) for event in part.events]


async def everything(cluster: RealCluster, session: aiohttp.ClientSession, until: int) -> list[dict[str, Any]]:
    """All changes up to a revision, from one node that was not disturbed while it told them."""
    found: list[dict[str, Any]] = []
    host, port = cluster.clients[cluster.ids[0]]
    async with session.get(f"http://{host}:{port}/v1/watch?prefix=w/&from_rev=1&progress=100ms") as response:
        while not found or found[-1]["revision"] < until:
            found.append(json.loads(await response.content.readline()))
    return [message for message in found if message["type"] in {"put", "delete"}]


async def test_a_watcher_that_moves_through_five_leader_kills_sees_every_revision_once(
    make_cluster: MakeCluster,
) -> None:
    """S83; and a second one, which the client keeps alive by itself."""
    cluster = make_cluster()
    leader = await cluster.started()
    by_hand: list[dict[str, Any]] = []
    by_client: list[tuple[int, str]] = []
    async with aiohttp.ClientSession() as session:
        followers = [
            asyncio.create_task(follow_by_hand(cluster, session, by_hand, 2)),
            asyncio.create_task(follow_with_the_client(cluster, by_client)),
        ]
        async with writing(cluster):
            for _ in range(KILLS):
                await asyncio.sleep(0.3)
                cluster.processes[leader].kill()
                await asyncio.sleep(0.3)
                leader = await cluster.started()
            await asyncio.sleep(0.5)
        last = int((await cluster.put(leader, "w/last", b"end")).headers["kv-revision"])
        async with asyncio.timeout(20):
            while not (by_hand and by_client and by_hand[-1]["revision"] == by_client[-1][0] == last):
                await asyncio.sleep(0.05)
                for follower in followers:
                    assert not follower.done(), follower.result()
        for follower in followers:
            follower.cancel()
        await asyncio.gather(*followers, return_exceptions=True)
        truth = await everything(cluster, session, last)
    assert len({message["revision"] for message in truth}) == last - 1, "each revision changed something watched"
    assert by_hand == truth
    assert by_client == [(message["revision"], message["key"]) for message in truth]


async def test_half_of_many_watchers_do_not_read_and_the_others_notice_nothing(make_cluster: MakeCluster) -> None:
    """F42, F85: the idle ones are cancelled as slow, and told where to resume; memory stays bounded."""
    cluster = make_cluster(1, limits__watch_buffer_bytes=64 << 10, limits__watch_stall_ms=300)
    await cluster.started()
    (address,) = (f"{host}:{port}" for host, port in cluster.clients.values())
    request = b"GET /v1/watch?prefix=big HTTP/1.1\r\nHost: localhost\r\n\r\n"
    host, port = cluster.clients[1]
    deaf = [await asyncio.open_connection(host, port, limit=1 << 10) for _ in range(20)]
    for _, writer in deaf:
        writer.write(request)
    async with Client(address) as client:
        streams = [client.watch_prefix("big", progress_ms=1_000) for _ in range(20)]
        for stream in streams:
            assert isinstance(await anext(stream), Started)
        seen = [0] * len(streams)
        value = b"x" * 50_000
        for number in range(400):
            await client.put(f"big/{number % 3}", value)
            for place, stream in enumerate(streams):
                while seen[place] < number + 1:
                    part = await anext(stream)
                    if isinstance(part, Changes):
                        seen[place] += len(part.events)
        status = await cluster.call(1, "GET", "/metrics")
        assert b"kvnode_watches 20.0" in status.body, "the deaf ones are gone"
        for stream in streams:
            await stream.aclose()
    for reader, writer in deaf:
        received = b""
        async with asyncio.timeout(20):
            while piece := await reader.read(1 << 20):
                received += piece
        last = received.rpartition(b'{"type":"cancelled"')[2]
        assert b'"code":"slow"' in last
        resume = int(last.partition(b'"resume_rev":')[2].partition(b"}")[0])
        assert received.count(b'"type":"put"') == resume - 2, "all before that came"
        writer.close()
