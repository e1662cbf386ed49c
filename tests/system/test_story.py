"""The cluster's timeline from outside: one story on every node, by page, by stream and by the command line."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.system.available import LIMIT_S, AvailableCluster, Json

pytestmark = pytest.mark.system

RING_BYTES = 4 << 20


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AvailableCluster]:
    cluster = AvailableCluster(tmp_path_factory.mktemp("story"))
    try:
        asyncio.run(cluster.started())
        yield cluster
    finally:
        cluster.stop()


async def test_every_node_tells_the_same_in_the_same_order(cluster: AvailableCluster) -> None:
    """Posted everywhere at once; by pages of any size, on any node, and merged by the command line."""
    posted = await asyncio.gather(*(cluster.post(node, {"n": n}) for n in range(10) for node in cluster.ids))
    ids = {answer.json()["id"] for answer in posted}
    assert len(ids) == 30
    story = await cluster.final_story(*ids)
    order = [(event["lamport"], event["member"], event["incarnation"], event["seq"]) for event in story]
    assert order == sorted(order)
    for node, limit in zip(cluster.ids, (1, 7, 1000), strict=True):
        assert await cluster.story(node, f"stable=1&limit={limit}") == story
        assert await cluster.story(node) == story  # nothing has happened since
    outputs = {await cluster.run("events", "--stable", on=[node]) for node in cluster.ids}
    [(code, out, errors)] = outputs
    assert (code, out.count("\n"), errors) == (0, len(story), "")
    code, out, errors = await cluster.run("events", "--merge", on=[2])
    head, *lines = out.splitlines()
    assert (code, errors, len(lines)) == (0, "", len(story))
    assert head.startswith(f"# {len(story)} events, as 3 nodes tell them")
    assert [line.split()[0] for line in lines] == [str(event["lamport"]) for event in story]


@asynccontextmanager
async def stream(cluster: AvailableCluster, node: int, query: str) -> AsyncIterator[AsyncIterator[Json]]:
    """The lines of a stream that does not end."""
    host, port = cluster.clients[node]
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(f"GET /v1/events?follow=1{query} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
    assert b" 200 " in await reader.readuntil(b"\r\n\r\n")

    async def lines() -> AsyncIterator[Json]:
        kept = b""
        while size := int(await reader.readline(), 16):
            kept += (await reader.readexactly(size + 2))[:-2]
            *whole, kept = kept.split(b"\n")
            for line in whole:
                yield json.loads(line)

    try:
        yield lines()
    finally:
        writer.close()


async def test_a_stream_goes_on_where_a_cursor_ends(cluster: AvailableCluster) -> None:
    """Over HTTP, and `kvnode events --follow`."""
    page: Any = (await cluster.call(1, "GET", "/v1/events")).json()
    async with (
        asyncio.timeout(LIMIT_S),
        stream(cluster, 2, f"&cursor={page['cursor']}") as lines,
        cluster.begun("events", "--follow", "-o", "json", on=[3]) as command,
    ):
        assert command.stdout is not None
        first = json.loads(await command.stdout.readline())
        assert first["id"] == page["events"][0]["id"]
        posted = [(await cluster.post(cluster.ids[n % 3], {"followed": n})).json() for n in range(6)]
        wanted = {event["id"] for event in posted}
        by_id = {event["id"]: event for event in posted}
        followed: list[Json] = []
        async for line in lines:
            if line["type"] == "event":
                followed.append(line)
            if wanted <= {event["id"] for event in followed}:
                break
        assert not {event["id"] for event in page["events"]} & {event["id"] for event in followed}
        assert len(followed) == len({event["id"] for event in followed})
        assert all(event["fields"] == by_id[event["id"]]["fields"] for event in followed if event["id"] in by_id)
        resumed = followed[-1]["cursor"]
        while wanted:
            wanted.discard(json.loads(await command.stdout.readline())["id"])
    async with asyncio.timeout(LIMIT_S), stream(cluster, 1, f"&cursor={resumed}") as lines:
        after = (await cluster.post(3, {"followed": "again"})).json()
        async for line in lines:
            if line["type"] == "event":
                assert line["id"] == after["id"]
                break
    code, out, _ = await cluster.run("events", "--post", '{"by": "cli"}', on=[1])
    assert code == 0
    code, told, _ = await cluster.run("events", "--last", "1", on=[1])
    assert (code, out.strip().partition("-")[0]) == (0, "1")
    assert told.rstrip().endswith("by=cli")


async def test_what_is_no_longer_kept_is_counted(cluster: AvailableCluster) -> None:
    """More than a ring holds: a reader by cursor sees how much it has missed, on every node the same (LC6)."""
    before: Any = (await cluster.call(2, "GET", "/v1/events")).json()
    text = "x" * 4_000
    count = RING_BYTES // 4_000 + 150
    client = [cluster.client(1) for _ in range(8)]

    async def post(one: int) -> None:
        for number in range(one, count, len(client)):
            body = json.dumps({"n": number, "text": text}).encode()
            answer = await client[one].call("POST", "/v1/events", body)
            assert answer.status == 201, answer
        client[one].close()

    await asyncio.gather(*map(post, range(len(client))))
    last = (await cluster.post(1, {"the": "last"})).json()
    stories = []
    for node in cluster.ids:
        async with asyncio.timeout(LIMIT_S):
            has_all = False
            while True:
                story = [event for event in await cluster.story(node, after=before["cursor"]) if event["member"] == 1]
                if has_all:  # pages read while events still came may hold more than the ring does
                    break
                has_all = bool(story) and story[-1]["id"] == last["id"]
                await asyncio.sleep(0.05)
        stories.append(story)
    for story in stories:
        first = story[0]
        assert first["gap"] > 0
        assert not any(event.get("gap") for event in story[1:])
        assert [event["seq"] for event in story] == list(range(first["seq"], last["seq"] + 1))
        assert first["gap"] + len(story) == count + 1
        assert sum(len(json.dumps(event["fields"])) for event in story) <= RING_BYTES + 8_192
    assert len({story[0]["id"] for story in stories}) == 1
