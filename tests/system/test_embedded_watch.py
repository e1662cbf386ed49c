"""Watching a node of this process: from the loop of the host, whichever loop the node has."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path

import pytest

from kvnode import open_node
from kvnode.errors import BadRequest, KvnodeError
from kvnode.kv.events import Cancelled, Changes, Started
from kvnode.kv.requests import Watch

pytestmark = pytest.mark.system


def settings(tmp_path: Path) -> dict[str, object]:
    return {
        "node.data_dir": str(tmp_path / "n1"),
        "peer.listen": "127.0.0.1:0",
        "storage.allow_unsafe_filesystem": True,
    }


@pytest.mark.parametrize("loop", ["own", "host"])
async def test_changes_come_until_the_node_stops(tmp_path: Path, loop: str) -> None:
    async with asyncio.timeout(20):
        async with open_node(settings=settings(tmp_path), loop=loop) as node:  # type: ignore[arg-type]
            await node.ready()
            with pytest.raises(BadRequest):
                await anext(node.watch(Watch(b"k", progress_ms=1)))
            async with aclosing(node.watch_prefix("k")) as stream:
                assert isinstance(await anext(stream), Started)
                reading = asyncio.ensure_future(anext(stream))
                await asyncio.sleep(0.05)
                put = await node.put("k1", "v")
                part = await reading
                assert isinstance(part, Changes)
                assert [event.kv.mod_revision for event in part.events] == [put.revision]
                given_up = asyncio.ensure_future(anext(stream))
                await asyncio.sleep(0.05)
                given_up.cancel()
            with pytest.raises(StopAsyncIteration):
                await anext(stream)
            last = node.watch_key("k1", from_revision=put.revision)
            found = [await anext(last) for _ in range(2)]
            assert isinstance(found[1], Changes)
            reading = asyncio.ensure_future(anext(last))
            await asyncio.sleep(0.05)
        try:
            assert await reading == Cancelled("stopping", put.revision + 1)
        except KvnodeError:
            assert loop == "own", "the loop of the node may end before the word has crossed"
        await last.aclose()
