"""Failover: how long no write is acknowledged when the leader's process is killed.

Writers put one key after another, each with one request in flight, and go to the next node when a connection breaks,
an answer is not a success or nothing comes within `ATTEMPT_S`. The gap is the longest time between two consecutive
acknowledgements (of all writers together) from the kill on. The same writers, pauses and limits for every system.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from time import perf_counter

from kvnode.bench.cluster import Cluster
from kvnode.bench.fronts import Front
from kvnode.bench.load import Address, Connection

ATTEMPT_S = 0.1
PAUSE_S = 0.005
BEFORE_S = 1.0
AFTER_S = 1.0
LIMIT_S = 20.0


class _Writer:
    """One client that keeps writing, to whichever node answers."""

    def __init__(self, front: Front, addresses: list[Address], requests: Iterator[bytes]) -> None:
        self.acknowledged: list[tuple[float, float]] = []  # (sent, acknowledged), perf_counter
        self._front = front
        self._addresses = addresses
        self._requests = requests
        self._connection: Connection | None = None
        self._answer: asyncio.Future[bool] | None = None
        self._served = asyncio.Event()

    async def run(self) -> None:
        node = 0
        while True:
            sent = perf_counter()
            if await self._attempt(self._addresses[node % len(self._addresses)]):
                self.acknowledged.append((sent, perf_counter()))
                self._served.set()
            else:
                self.close()
                node += 1
                await asyncio.sleep(PAUSE_S)

    async def wait_served(self, since: float) -> None:
        """Until a write sent after `since` has been acknowledged."""
        while not self.acknowledged or self.acknowledged[-1][0] <= since:
            self._served.clear()
            await self._served.wait()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    async def _attempt(self, address: Address) -> bool:
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._answer = answer
        try:
            async with asyncio.timeout(ATTEMPT_S):
                if self._connection is None:
                    self._connection = await self._front.calls["put"].connect(address, self._on_answer, self._on_lost)
                self._connection.send(next(self._requests))
                return await answer
        except (OSError, TimeoutError):
            return False

    def _on_answer(self, connection: Connection, sent_ns: int, succeeded: bool) -> None:
        self._settle(connection, succeeded)

    def _on_lost(self, connection: Connection) -> None:
        self._settle(connection, False)

    def _settle(self, connection: Connection, succeeded: bool) -> None:
        if connection is self._connection and self._answer is not None and not self._answer.done():
            self._answer.set_result(succeeded)


async def measure_gap(cluster: Cluster, front: Front, requests: Iterator[bytes], writers: int) -> float:
    """Kill the leader under `writers` writers → the gap in seconds. The killed node stays down.

    Raises: TimeoutError when no write is acknowledged within LIMIT_S.
    """
    leader = await cluster.wait_ready()
    others = [cluster.clients[node] for node in cluster.running() if node != leader]
    group = [_Writer(front, [cluster.clients[leader], *others], requests) for _ in range(writers)]
    tasks = [asyncio.create_task(writer.run()) for writer in group]
    try:
        await asyncio.sleep(BEFORE_S)
        killed = perf_counter()
        cluster.processes[leader].kill()
        served_again = [asyncio.create_task(writer.wait_served(killed)) for writer in group]
        tasks += served_again
        async with asyncio.timeout(LIMIT_S):
            await asyncio.wait(served_again, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.sleep(AFTER_S)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in group:
            writer.close()
    times = sorted(acknowledged for writer in group for _, acknowledged in writer.acknowledged)
    return max(after - before for before, after in itertools.pairwise(times) if after > killed)
