"""``/v1/events`` over a fake timeline: pages, waiting, streams as lines and as server-sent events, posting."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from kvnode.api.app import App
from kvnode.api.http import events
from kvnode.errors import NotReady
from kvnode.kv.available import EVENT_BYTES_MAX
from tests.api.fake_available import FakeAvailable
from tests.api.raw import Door


async def test_a_page(door: Door, plane: FakeAvailable) -> None:
    await plane.happen("leader.elected", b'{"term": 3}')
    await plane.happen("member.suspect", gap=7, late=True)
    page = (await door.ask("GET", "/v1/events")).json
    assert page == {
        "watermark": 0,
        "more": False,
        "cursor": "c2",
        "events": [
            {
                "id": "1-00000000000000a1-1",
                "lamport": 1,
                "time": "2026-11-22T10:00:00.001Z",
                "member": 1,
                "node": "one",
                "kind": "leader.elected",
                "fields": {"term": 3},
                "incarnation": "00000000000000a1",
                "boot": 3,
                "seq": 1,
            },
            {
                "id": "1-00000000000000a1-2",
                "lamport": 2,
                "time": "2026-11-22T10:00:00.002Z",
                "member": 1,
                "node": "one",
                "kind": "member.suspect",
                "fields": {},
                "incarnation": "00000000000000a1",
                "boot": 3,
                "seq": 2,
                "late": True,
                "gap": 7,
            },
        ],
    }


async def test_pages_go_on_at_the_cursor(door: Door, plane: FakeAvailable) -> None:
    for _ in range(5):
        await plane.happen("user")
    plane.watermark = 4
    cursor, found = "", []
    for more in (True, False):
        page = (await door.ask("GET", f"/v1/events?stable=1&limit=2&cursor={cursor}")).json
        cursor = page["cursor"]
        assert (page["more"], page["watermark"]) == (more, 4)
        found += [event["seq"] for event in page["events"]]
    assert found == [1, 2, 3, 4]
    assert (await door.ask("GET", f"/v1/events?stable=1&cursor={cursor}")).json["events"] == []
    await door.ask("GET", "/v1/events?allow_late=1&stable=0")
    assert plane.asked[-1] == ("events", "", False, True, 1_000, 0)


async def test_waiting_for_something_new(door: Door, plane: FakeAvailable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "PIECE_MS", 40)
    waiting = asyncio.create_task(door.ask("GET", "/v1/events?wait=10s"))
    while len(plane.waited) < 3:
        await asyncio.sleep(0.01)
    await plane.happen("user")
    assert [event["seq"] for event in (await waiting).json["events"]] == [1]
    plane.waited.clear()
    empty = await door.ask("GET", "/v1/events?wait=60ms&cursor=c1")
    assert (empty.status, empty.json["events"], empty.json["cursor"]) == (200, [], "c1")
    assert plane.waited == [40, 20]


class Stream:
    """Lines of an answer that goes on."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response

    async def text(self) -> str:
        async with asyncio.timeout(5):
            return (await self.response.content.readline()).decode()

    async def line(self) -> Any:
        return json.loads(await self.text())


async def test_a_stream_of_lines(door: Door, plane: FakeAvailable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "PIECE_MS", 100)
    await plane.happen("a")
    await plane.happen("b", b'{"x":"one line"}')
    async with door.session.get(f"http://{door.address}/v1/events?follow=1") as response:
        assert response.headers["Content-Type"] == "application/x-ndjson"
        stream = Stream(response)
        first, second = await stream.line(), await stream.line()
        assert (first["type"], first["kind"], "cursor" in first) == ("event", "a", False)
        assert (second["kind"], second["fields"], second["cursor"]) == ("b", {"x": "one line"}, "c2")
        assert await stream.line() == {"type": "progress", "cursor": "c2", "watermark": 0}
        await plane.happen("c")
        third = await stream.line()
        while third["type"] == "progress":
            third = await stream.line()
        assert (third["kind"], third["cursor"]) == ("c", "c3")


async def test_server_sent_events_resume(door: Door, plane: FakeAvailable) -> None:
    for kind in "abc":
        await plane.happen(kind)
    accept = {"Accept": "text/event-stream", "Last-Event-ID": "c1"}
    url = f"http://{door.address}/v1/events?follow=1&cursor=c0"
    async with door.session.get(url, headers=accept) as response:
        assert response.headers["Content-Type"] == "text/event-stream"
        stream = Stream(response)
        assert json.loads((await stream.text()).removeprefix("data: "))["kind"] == "b"
        assert await stream.text() == "\n"
        assert await stream.text() == "id: c3\n"
        assert json.loads((await stream.text()).removeprefix("data: "))["kind"] == "c"


async def test_a_long_page_is_written_in_pieces(door: Door, plane: FakeAvailable) -> None:
    for _ in range(300):
        await plane.happen("user")
    async with door.session.get(f"http://{door.address}/v1/events?follow=1") as response:
        stream = Stream(response)
        found = [await stream.line() for _ in range(300)]
    assert [each["seq"] for each in found] == list(range(1, 301))
    assert [each["seq"] for each in found if "cursor" in each] == [300]
    page = (await door.ask("GET", "/v1/events")).json
    assert [each["seq"] for each in page["events"]] == list(range(1, 301))


@pytest.mark.parametrize(("draining", "code"), [(True, "stopping"), (False, "not_ready")])
async def test_the_end_is_said_aloud(door: Door, plane: FakeAvailable, app: App, draining: bool, code: str) -> None:
    await plane.happen("a")
    async with door.session.get(f"http://{door.address}/v1/events?follow=1") as response:
        stream = Stream(response)
        await stream.line()
        app.is_draining = draining
        plane.fail = NotReady("the node is stopping")
        await plane.wake()
        assert await stream.line() == {"type": "cancelled", "code": code, "cursor": "c1"}
        assert await stream.text() == ""


async def test_what_is_refused_is_refused_with_a_status(door: Door) -> None:
    for query, code in [
        ("follow=1&cursor=x", "bad_encoding"),
        ("cursor=x", "bad_encoding"),
        ("follow=1&wait=1s", "bad_request"),
        ("wait=61s", "bad_request"),
        ("limit=1001", "bad_request"),
        ("stable=yes", "bad_request"),
        ("since=5", "unknown_parameter"),
    ]:
        refused = await door.ask("GET", f"/v1/events?{query}")
        assert (refused.status, refused.code) == (400, code), query
    head = await door.ask("HEAD", "/v1/events?follow=1")
    assert (head.status, head.headers["content-type"]) == (200, "application/x-ndjson")


async def test_an_event_is_posted(door: Door, plane: FakeAvailable) -> None:
    body = b'{ "deploy": "web",\n "share": 0.25, "big": 123456789012345678901234567890, "list": [1, null, true] }'
    posted = await door.ask("POST", "/v1/events", body)
    assert posted.status == 201
    assert (posted.json["id"], posted.json["lamport"], posted.json["kind"]) == ("1-00000000000000a1-1", 1, "user")
    assert posted.json["fields"] == json.loads(body)
    assert plane.asked[-1][1] == (
        b'{"deploy":"web","share":0.25,"big":123456789012345678901234567890,"list":[1,null,true]}'
    ), "one line, and numbers as they were written"
    assert "type" not in posted.json


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "bad_request"),
        (b"[]", 400, "bad_request"),
        (b'"text"', 400, "bad_request"),
        (b"{", 400, "bad_request"),
        (b'{"a": NaN}', 400, "bad_request"),
        (b'{"a": 1e999}', 400, "bad_request"),
        (b'{"a": "\\ud800"}', 400, "bad_request"),
        (b'{"a": 1, "a": 2}', 400, "bad_request"),
        (b'{"a": "\xff"}', 400, "bad_encoding"),
        (b'{"a": ' + b"[" * 40 + b"]" * 40 + b"}", 400, "bad_request"),
        (b'{"a": "' + b"x" * EVENT_BYTES_MAX + b'"}', 413, "too_large"),
    ],
)
async def test_what_is_no_event(door: Door, plane: FakeAvailable, body: bytes, status: int, code: str) -> None:
    refused = await door.ask("POST", "/v1/events", body)
    assert (refused.status, refused.code, refused.outcome) == (status, code, "not-applied")
    assert plane.timeline == []


async def test_what_is_wrong_with_a_number_is_said(door: Door) -> None:
    refused = await door.ask("POST", "/v1/events", b'{"a": NaN}')
    assert refused.json["error"]["message"] == "NaN is no number of JSON"


async def test_the_largest_event(door: Door) -> None:
    largest = b'{"a":"' + b"x" * (EVENT_BYTES_MAX - 8) + b'"}'
    assert (await door.ask("POST", "/v1/events", largest)).status == 201
