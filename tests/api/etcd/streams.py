"""Streams of the etcd API over a real listener and a real state machine, read chunk by chunk."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from kvnode.kv.requests import Put
from tests.api.raw import Door
from tests.client.local_node import LocalNode


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def create(key: bytes = b"", range_end: bytes = b"", **fields: Any) -> dict[str, Any]:
    asked: dict[str, Any] = {"key": b64(key), **fields}
    if range_end:
        asked["range_end"] = b64(range_end)
    return {"create_request": asked}


def cancel(watch_id: int) -> dict[str, Any]:
    return {"cancel_request": {"watch_id": str(watch_id)}}


PROGRESS: dict[str, Any] = {"progress_request": {}}


class Messages:
    """What comes, one message a chunk."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response

    async def next(self) -> dict[str, Any]:
        """The next `result`."""
        message = await self.any()
        assert list(message) == ["result"], message
        result: dict[str, Any] = message["result"]
        return result

    async def any(self) -> dict[str, Any]:
        chunk = b""
        is_whole = False
        while not is_whole:
            piece, is_whole = await self.response.content.readchunk()
            assert piece or not self.response.content.at_eof(), "the stream has ended"
            chunk += piece
        assert chunk.endswith(b"\n")
        assert chunk.count(b"\n") == 1
        message: dict[str, Any] = json.loads(chunk)
        return message

    async def some(self, count: int) -> list[dict[str, Any]]:
        return [await self.next() for _ in range(count)]

    async def rest(self) -> bytes:
        return await self.response.content.read()


@asynccontextmanager
async def watching(door: Door, *requests: dict[str, Any], **headers: str) -> AsyncIterator[Messages]:
    """A stream of `v3/watch`, still without its `created`."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    body = "".join(map(json.dumps, requests))
    url = f"http://{door.address}/v3/watch"
    async with asyncio.timeout(8), door.session.post(url, data=body, headers=named) as response:
        assert response.status == 200, await response.read()
        yield Messages(response)


async def put(node: LocalNode, key: bytes, value: bytes = b"v") -> int:
    reply = await node.execute(Put(key, value))
    return int(reply.revision)


async def settled(node: LocalNode, watches: int) -> None:
    async with asyncio.timeout(3):
        while node.watches.open != watches:
            await asyncio.sleep(0.005)


def seen(message: dict[str, Any]) -> list[tuple[str, str, int]]:
    """(type, key, mod revision) of the events of a message."""
    return [
        (event.get("type", "PUT"), base64.b64decode(event["kv"]["key"]).decode(), int(event["kv"]["mod_revision"]))
        for event in message["events"]
    ]
