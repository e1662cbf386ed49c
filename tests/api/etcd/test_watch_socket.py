"""``GET /v3/watch`` with an Upgrade: requests and messages both ways, and who may open it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import WSMsgType

from kvnode.api.app import ClientServer
from tests.api.etcd.local_door import door_of, serving
from tests.api.etcd.streams import PROGRESS, cancel, create, put, seen, settled
from tests.api.raw import Door
from tests.client.local_node import LocalNode

HANDSHAKE = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
KEY = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"


@pytest.fixture
def node() -> LocalNode:
    return LocalNode()


@pytest.fixture
async def server(node: LocalNode) -> AsyncIterator[ClientServer]:
    async with serving(node) as server:
        yield server


@pytest.fixture
async def door(server: ClientServer) -> AsyncIterator[Door]:
    async with door_of(server) as door:
        yield door


class Socket:
    """One open WebSocket."""

    def __init__(self, raw: aiohttp.ClientWebSocketResponse) -> None:
        self.raw = raw

    async def ask(self, *requests: dict[str, Any]) -> None:
        for request in requests:
            await self.raw.send_str(json.dumps(request))

    async def next(self) -> dict[str, Any]:
        frame = await self.raw.receive()
        assert frame.type is WSMsgType.TEXT, frame
        message: dict[str, Any] = json.loads(frame.data)
        return message

    async def result(self) -> dict[str, Any]:
        message = await self.next()
        assert list(message) == ["result"], message
        result: dict[str, Any] = message["result"]
        return result

    async def end(self) -> int | None:
        """The code that it is closed with."""
        frame = await self.raw.receive()
        assert frame.type in (WSMsgType.CLOSE, WSMsgType.CLOSED), frame
        return self.raw.close_code


@asynccontextmanager
async def opened(door: Door, **more: Any) -> AsyncIterator[Socket]:
    url = f"http://{door.address}/v3/watch"
    async with asyncio.timeout(8), door.session.ws_connect(url, max_msg_size=0, **more) as raw:
        yield Socket(raw)


async def test_watches_come_and_go_on_an_open_stream(door: Door, node: LocalNode) -> None:
    async with opened(door) as socket:
        await socket.ask(create(b"a"))
        assert "watch_id" not in await socket.result()
        await put(node, b"a")
        assert seen(await socket.result()) == [("PUT", "a", 2)]
        await socket.ask(create(b"b", start_revision=1))
        assert (await socket.result())["watch_id"] == "1"
        await put(node, b"b")
        assert seen(await socket.result()) == [("PUT", "b", 3)]
        await socket.ask(cancel(0))
        assert (await socket.result())["canceled"]
        await settled(node, 1)
        await put(node, b"a")
        await socket.ask(PROGRESS)
        progress = await socket.result()
        assert (progress["watch_id"], progress["header"]["revision"]) == ("-1", "4")
    await settled(node, 0)


async def test_a_frame_may_hold_several_requests_and_may_be_binary(door: Door, node: LocalNode) -> None:
    async with opened(door) as socket:
        await socket.raw.send_bytes((json.dumps(create(b"a")) + json.dumps(create(b"b"))).encode())
        assert [(await socket.result()).get("watch_id") for _ in range(2)] == [None, "1"]


@pytest.mark.parametrize("frame", ["nope", '{"create_requ', "[]", '{"cancel_request":1}'])
async def test_a_frame_that_cannot_be_read_ends_the_stream(door: Door, node: LocalNode, frame: str) -> None:
    async with opened(door) as socket:
        await socket.ask(create(b"a"))
        await socket.result()
        await socket.raw.send_str(frame)
        words = await socket.next()
        assert (words["code"], words["error"]) == (2, words["message"])
        assert await socket.end() == 1007
    await settled(node, 0)


async def test_pings_are_answered_and_a_close_is_answered_and_frees_everything(door: Door, node: LocalNode) -> None:
    async with opened(door, autoping=False) as socket:
        await socket.ask(create(b"a"), create(b"b"))
        await socket.result()
        await socket.result()
        await socket.raw.ping(b"there?")
        pong = await socket.raw.receive()
        assert (pong.type, bytes(pong.data)) == (WSMsgType.PONG, b"there?")
        assert node.watches.open == 2
        await socket.raw.close()
        assert socket.raw.close_code == 1000
    await settled(node, 0)


async def test_a_client_that_breaks_off_frees_everything(door: Door, node: LocalNode, server: ClientServer) -> None:
    async with opened(door) as socket:
        await socket.ask(create(b"a"))
        await socket.result()
        transport = socket.raw.get_extra_info("socket")
        assert transport is not None
        connection = socket.raw._response.connection
        assert connection is not None
        assert connection.transport is not None
        connection.transport.abort()
        await settled(node, 0)
    assert not server._app.etcd.gateway.open_streams


async def test_a_frame_that_is_too_large_closes_it(door: Door, node: LocalNode) -> None:
    async with opened(door) as socket:
        await socket.ask(create(b"a"))
        await socket.result()
        await socket.raw.send_str(" " * (3 << 20))
        assert await socket.end() == 1009
    await settled(node, 0)


async def test_messages_of_all_lengths(door: Door, node: LocalNode) -> None:
    """A frame's length has three forms."""
    async with opened(door) as socket:
        await socket.ask(create(b"a"))
        await socket.result()
        for size in (0, 1, 40_000, 50_000, 200_000):
            await put(node, b"a", b"x" * size)
            [event] = (await socket.result())["events"]
            assert len(event["kv"].get("value", "")) == (size + 2) // 3 * 4


async def test_a_client_that_does_not_read_is_cut_off(door: Door, node: LocalNode) -> None:
    host, port = door.address.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 10)
    writer.write(b"GET /v3/watch HTTP/1.1\r\nHost: localhost\r\n" + HANDSHAKE + KEY + b"\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.1 101 ")
    body = json.dumps(create(b"a")).encode()
    writer.write(bytes((0x81, 0x80 | len(body), 0, 0, 0, 0)) + body)  # masked, with a mask that changes nothing
    await settled(node, 1)
    async with asyncio.timeout(20):
        written = 0
        while node.watches.open:
            await put(node, b"a", b"x" * 20_000)
            written += 1
            await asyncio.sleep(0 if written < 1_000 else 0.3)
    writer.close()


async def test_a_node_that_stops_says_so(door: Door, node: LocalNode, server: ClientServer) -> None:
    async with opened(door) as socket:
        await socket.ask(create(b"a"))
        await socket.result()
        await server.drain()
        words = (await socket.next())["error"]
        assert (words["code"], words["message"]) == (14, "etcdserver: server stopped")
        assert await socket.end() == 1013
    await settled(node, 0)


async def test_it_needs_a_leader_if_it_says_so(door: Door, node: LocalNode) -> None:
    needs = {"Grpc-Metadata-hasleader": "true"}
    async with opened(door, headers=needs) as socket:
        await socket.ask(create(b"a"))
        await socket.result()
        node.configuration = msgspec.structs.replace(node.configuration, leader=None)
        assert (await socket.next())["error"]["message"] == "etcdserver: no leader"
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        async with opened(door, headers=needs):
            pass
    assert refused.value.status == 503


async def test_a_token_is_announced_as_a_sub_protocol(door: Door) -> None:
    async with opened(door, protocols=["Bearer", "token"]) as socket:
        assert socket.raw.protocol == "Bearer"
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        async with opened(door, protocols=["chat"]):
            pass
    assert refused.value.status == 400


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://elsewhere.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
async def test_a_page_of_another_origin_may_not_open_it(door: Door, node: LocalNode, headers: dict[str, str]) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        async with opened(door, headers=headers):
            pass
    assert refused.value.status == 403
    async with opened(door, headers={"Origin": f"http://{door.address}"}) as socket:
        await socket.ask(create(b"a"))
        await socket.result()


@pytest.mark.parametrize(
    ("request_line", "headers", "status"),
    [
        (b"POST /v3/watch", HANDSHAKE + KEY + b"Content-Length: 2\r\n", b"400"),
        (b"GET /v3/kv/range", HANDSHAKE + KEY, b"400"),
        (b"GET /v3/nothing", HANDSHAKE + KEY, b"400"),
        (b"GET /v1/status", HANDSHAKE + KEY, b"400"),
        (b"GET /v3/watch", HANDSHAKE, b"400"),
        (b"GET /v3/watch", HANDSHAKE.replace(b"13", b"99") + KEY, b"400"),
        (b"GET /v3/watch", b"Connection: Upgrade\r\nUpgrade: h2c\r\n", b"400"),
        (b"GET /v3/watch", b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n" + KEY, b"400"),
        (b"GET /v3/watch", b"", b"405"),
    ],
)
async def test_what_is_no_handshake_is_refused(
    door: Door, node: LocalNode, request_line: bytes, headers: bytes, status: bytes
) -> None:
    body = b"{}" if b"Content-Length" in headers else b""
    received = await door.send(request_line + b" HTTP/1.1\r\nHost: localhost\r\n" + headers + b"\r\n" + body)
    assert received.startswith(b"HTTP/1.1 " + status + b" "), received
    assert node.watches.open == 0
