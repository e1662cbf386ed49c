"""Runs the command line in this process against a real front door in another thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.client.local_node import LocalNode, served


class ServedNode:
    """A `LocalNode` behind HTTP on a loop of its own thread: the command line is synchronous."""

    def __init__(self, node: LocalNode, endpoint: str) -> None:
        self.node = node
        self.endpoint = endpoint


@contextmanager
def serving(node: LocalNode | None = None) -> Iterator[ServedNode]:
    started = threading.Event()
    found: list[ServedNode] = []
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def run() -> None:
        own = node or LocalNode()
        async with served(own) as endpoint:
            found.append(ServedNode(own, endpoint))
            started.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(run()))
    thread.start()
    assert started.wait(10)
    try:
        yield found[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()
