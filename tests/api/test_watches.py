"""``GET /v1/watch`` over a real listener and a real state machine: the shape of the stream, its start and its ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from kvnode.api.app import ClientServer, build_app
from kvnode.config import ClientSection, Config, LimitsSection
from kvnode.errors import NoLeader
from kvnode.kv.requests import Delete, Put, Txn
from tests.api.raw import Door
from tests.client.local_node import LocalNode
from tests.machine.floor import give_up_below

LIMITS = LimitsSection(watch_buffer_bytes=8 << 10, watch_stall_ms=200, shutdown_ms=200)


@pytest.fixture
def node() -> LocalNode:
    return LocalNode()


@pytest.fixture
async def door(node: LocalNode) -> AsyncIterator[Door]:
    config = Config(client=ClientSection(listen="127.0.0.1:0"), limits=LIMITS)
    server = ClientServer(build_app(node, node, config, node.plane), config)
    await server.start()
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        yield Door(session, server.address)
    await server.close()


@asynccontextmanager
async def watching(door: Door, query: str, **headers: str) -> AsyncIterator[aiohttp.ClientResponse]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with (
        asyncio.timeout(5),
        door.session.get(f"http://{door.address}/v1/watch?{query}", headers=named) as response,
    ):
        assert response.status == 200, await response.read()
        yield response


async def lines(response: aiohttp.ClientResponse, count: int) -> list[dict[str, Any]]:
    return [json.loads(await response.content.readline()) for _ in range(count)]


async def put(node: LocalNode, key: bytes, value: bytes = b"v") -> int:
    reply = await node.execute(Put(key, value))
    return int(reply.revision)


async def settled(node: LocalNode, watches: int) -> None:
    async with asyncio.timeout(2):
        while node.watches.open != watches:
            await asyncio.sleep(0.005)


async def test_changes_are_lines_from_now_on(door: Door, node: LocalNode) -> None:
    before = await put(node, b"app/a", b"before")
    async with watching(door, "prefix=app/") as response:
        assert response.headers["Content-Type"] == "application/x-ndjson"
        assert response.headers["Transfer-Encoding"] == "chunked"
        assert response.headers["Kv-Revision"] == str(before)
        for name in ("Kv-Node", "Kv-Term", "Kv-Token", "X-Request-Id"):
            assert name in response.headers
        await put(node, b"other")
        await put(node, b"app/a", b"now")
        await node.execute(Delete(b"app/a"))
        first, second = await lines(response, 2)
    time = first.pop("time")
    assert time.endswith("Z.0000")
    assert first == {
        "type": "put", "revision": 4, "key": "app/a", "value": "now", "create_revision": 2, "version": 2,
    }  # fmt: skip
    assert (second["type"], second["revision"], second["key"]) == ("delete", 5, "app/a")
    assert "value" not in second


async def test_a_revision_says_more_on_all_of_its_events_but_the_last(door: Door, node: LocalNode) -> None:
    async with watching(door, "prefix=k") as response:
        await node.execute(Txn((), (Put(b"k1", b""), Put(b"x", b""), Put(b"k2", b""), Put(b"k3", b""))))
        await put(node, b"k4")
        found = await lines(response, 4)
    assert [(line["key"], line["revision"], line.get("more")) for line in found] == [
        ("k1", 2, True),
        ("k2", 2, True),
        ("k3", 2, None),
        ("k4", 3, None),
    ]


async def test_from_a_revision_of_the_past_inclusive(door: Door, node: LocalNode) -> None:
    for number in range(5):
        await put(node, b"k", b"%d" % number)
    async with watching(door, "key=k&from_rev=4") as response:
        await put(node, b"k", b"live")
        assert [(line["revision"], line["value"]) for line in await lines(response, 4)] == [
            (4, "2"),
            (5, "3"),
            (6, "4"),
            (7, "live"),
        ]


async def test_a_list_then_what_comes_after_it(door: Door, node: LocalNode) -> None:
    for key in (b"a", b"b", b"c"):
        await put(node, key)
    await node.execute(Delete(b"b"))
    async with watching(door, "prefix=&list=1") as response:
        await put(node, b"d")
        found = await lines(response, 4)
    assert [(line["type"], line["revision"], line.get("key")) for line in found] == [
        ("put", 2, "a"),
        ("put", 4, "c"),
        ("synced", 5, None),
        ("put", 6, "d"),
    ]


async def test_previous_values_if_asked_for(door: Door, node: LocalNode) -> None:
    async with watching(door, "key=k&prev=1") as response, watching(door, "key=k") as plain:
        await put(node, b"k", b"1")
        await put(node, b"k", b"2")
        await node.execute(Delete(b"k"))
        found = await lines(response, 3)
        assert [line["prev"] and line["prev"]["value"] for line in found] == [None, "1", "2"]
        assert found[1]["prev"]["mod_revision"] == 2
        assert all("prev" not in line for line in await lines(plain, 3))


async def test_only_the_kinds_asked_for(door: Door, node: LocalNode) -> None:
    async with watching(door, "prefix=&events=delete") as deletes, watching(door, "prefix=&events=put") as puts:
        await put(node, b"a")
        await node.execute(Txn((), (Put(b"b", b""), Delete(b"a"))))
        await node.execute(Delete(b"b"))
        assert [(line["type"], line["revision"], "more" in line) for line in await lines(deletes, 2)] == [
            ("delete", 3, False),
            ("delete", 4, False),
        ]
        assert [(line["type"], line["revision"], "more" in line) for line in await lines(puts, 2)] == [
            ("put", 2, False),
            ("put", 3, False),
        ]


async def test_bytes_that_are_not_text_travel_as_base64(door: Door, node: LocalNode) -> None:
    async with watching(door, "start=%FE&prev=1") as response:
        await put(node, b"\xff", b"\x80")
        await put(node, b"\xff", b"text")
        first, second = await lines(response, 2)
    assert (first["key"], first["key_encoding"], first["value"], first["encoding"]) == (
        "/w==",
        "base64",
        "gA==",
        "base64",
    )
    assert (second["value"], second["prev"]["encoding"]) == ("text", "base64")
    assert "encoding" not in second


async def test_marks_of_progress(door: Door, node: LocalNode) -> None:
    async with watching(door, "key=k&progress=100ms") as response:
        await put(node, b"other")
        await put(node, b"other")
        assert await lines(response, 2) == [{"type": "progress", "revision": 3}] * 2
        await put(node, b"k")
        [line] = await lines(response, 1)
        assert line["type"] == "put"


def events_of(text: bytes) -> list[tuple[str | None, dict[str, Any]]]:
    """(id, data) of each server-sent event."""
    found = []
    for block in text.decode().split("\n\n")[:-1]:
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        found.append((fields.get("id"), json.loads(fields["data"])))
    return found


async def server_sent(response: aiohttp.ClientResponse, count: int) -> list[tuple[str | None, dict[str, Any]]]:
    text = b""
    while text.count(b"\n\n") < count:
        text += await response.content.readany()
    return events_of(text)


async def test_server_sent_events_carry_an_id_on_the_last_event_of_a_revision(door: Door, node: LocalNode) -> None:
    await put(node, b"k0")
    async with watching(door, "prefix=k&list=1", Accept="text/event-stream") as response:
        assert response.headers["Content-Type"] == "text/event-stream"
        await node.execute(Txn((), (Put(b"k1", b""), Put(b"k2", b""))))
        found = await server_sent(response, 4)
    assert [(event_id, data["type"], data.get("key")) for event_id, data in found] == [
        (None, "put", "k0"),
        ("2", "synced", None),
        (None, "put", "k1"),
        ("3", "put", "k2"),
    ]
    await put(node, b"k3")
    async with watching(door, "prefix=k&list=1", Accept="text/event-stream", Last_Event_ID="3") as response:
        found = await server_sent(response, 1)
    assert [(event_id, data["key"]) for event_id, data in found] == [("4", "k3")], "resumed, not listed again"


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("key=k&prefix=p", "bad_request"),
        ("prefix=p&start=a", "bad_request"),
        ("key=", "bad_key"),
        ("key=k&from_rev=0", "bad_request"),
        ("key=k&from_rev=x", "bad_request"),
        ("key=k&list=1&from_rev=3", "bad_request"),
        ("key=k&events=create", "bad_request"),
        ("key=k&events=", "bad_request"),
        ("key=k&progress=5ms", "bad_request"),
        ("key=k&progress=2h", "bad_request"),
        ("key=k&at_rev=3", "unknown_parameter"),
    ],
)
async def test_what_cannot_be_watched(door: Door, node: LocalNode, query: str, code: str) -> None:
    answer = await door.ask("GET", f"/v1/watch?{query}")
    assert (answer.status, answer.code) == (400, code)
    assert node.watches.open == 0


async def test_a_start_that_fails_is_a_status(door: Door, node: LocalNode) -> None:
    node.refuse_next(NoLeader("no leader"))
    answer = await door.ask("GET", "/v1/watch?key=k")
    assert (answer.status, answer.code) == (503, "no_leader")
    assert node.watches.open == 0


async def test_beyond_the_limit_of_watches_it_is_429(door: Door, node: LocalNode) -> None:
    node.watches_max = 2
    async with watching(door, "key=k"), watching(door, "key=k"):
        answer = await door.ask("GET", "/v1/watch?key=k")
        assert (answer.status, answer.code, answer.headers["retry-after"]) == (429, "overloaded", "1")
    await settled(node, 0)
    async with watching(door, "key=k"):
        pass


async def test_what_is_compacted_is_gone_and_one_says_where_history_begins(door: Door, node: LocalNode) -> None:
    for _ in range(6):
        await put(node, b"k")
    give_up_below(node.machine, 5)
    answer = await door.ask("GET", "/v1/watch?key=k&from_rev=4")
    assert (answer.status, answer.code) == (410, "compacted")
    assert answer.json["error"]["detail"]["compact_revision"] == 5
    async with watching(door, "key=k&from_rev=5") as response:
        assert [line["revision"] for line in await lines(response, 3)] == [5, 6, 7]


async def test_a_client_that_leaves_frees_everything(door: Door, node: LocalNode) -> None:
    async with watching(door, "key=k"):
        await settled(node, 1)
    await settled(node, 0)
    assert not node.watches.is_watched


async def test_head_answers_the_head_and_watches_nothing(door: Door, node: LocalNode) -> None:
    async with asyncio.timeout(5):
        answer = await door.ask("HEAD", "/v1/watch?key=k")
    assert (answer.status, answer.headers["content-type"], answer.body) == (200, "application/x-ndjson", b"")
    assert node.watches.open == 0


async def test_http_1_0_gets_a_body_that_ends_with_the_connection(door: Door, node: LocalNode) -> None:
    await put(node, b"k")
    received = await door.send(b"GET /v1/watch?key=k&from_rev=1 HTTP/1.0\r\nHost: localhost\r\n\r\n")
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"Transfer-Encoding" not in head
    assert json.loads(body)["revision"] == 2


async def test_a_node_that_stops_says_where_to_resume(door: Door, node: LocalNode) -> None:
    async with watching(door, "key=k") as response:
        await put(node, b"k")
        await put(node, b"other")
        await lines(response, 1)
        node.watches.close()
        assert await lines(response, 1) == [{"type": "cancelled", "code": "stopping", "resume_rev": 4}]
        assert await response.content.read() == b""


async def test_a_client_that_does_not_read_is_cancelled_as_slow_and_told_where_to_resume(
    door: Door, node: LocalNode
) -> None:
    """SW-T2, F42: bounded, said aloud, nothing skipped, and others are not affected."""
    host, port = door.address.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 10)
    writer.write(b"GET /v1/watch?key=k HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await settled(node, 1)
    written = 0
    async with watching(door, "key=k") as healthy, asyncio.timeout(20):
        while node.watches.open == 2:
            await put(node, b"k", b"x" * 20_000)
            written += 1
            [line] = await lines_of_any_length(healthy, 1)
            assert line["revision"] == written + 1
            if written % 100 == 0:
                await asyncio.sleep(0.05)
            if written > 1_000:
                await asyncio.sleep(0.3)
        unread = b""
        while part := await reader.read(1 << 20):
            unread += part
    writer.close()
    body = b"".join(chunks(unread.partition(b"\r\n\r\n")[2]))
    found = [json.loads(line) for line in body.split(b"\n") if line]
    assert [line["revision"] for line in found[:-1]] == list(range(2, len(found) + 1))
    assert found[-1] == {"type": "cancelled", "code": "slow", "resume_rev": len(found) + 1}
    assert len(found) < written, "it was cancelled before the end, or nothing is proved"


async def lines_of_any_length(response: aiohttp.ClientResponse, count: int) -> list[dict[str, Any]]:
    text = b""
    while text.count(b"\n") < count:
        text += await response.content.readany()
    return [json.loads(line) for line in text.split(b"\n")[:-1]]


def chunks(body: bytes) -> list[bytes]:
    found = []
    while body:
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        if not length:
            break
        found.append(body[:length])
        body = body[length + 2 :]
    return found


async def test_a_last_event_id_that_is_no_number_is_refused(door: Door) -> None:
    for given in (b"\xff", b"x", b"-1", b"9" * 30):
        head = b"GET /v1/watch?prefix=k HTTP/1.1\r\nHost: %b\r\nLast-Event-ID: %b\r\n\r\n" % (
            door.address.encode(),
            given,
        )
        assert (await door.send(head)).startswith(b"HTTP/1.1 400 "), given
