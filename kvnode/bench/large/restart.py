"""Restart: from starting a killed process to its first linearizable read, of one node and of all at once."""

from __future__ import annotations

import asyncio
from time import perf_counter

from kvnode.bench.cluster import Cluster
from kvnode.bench.fronts import Front
from kvnode.bench.large.figures import Figures
from kvnode.bench.load import Address, Connection

LIMIT_S = 300.0
_ATTEMPT_S = 5.0
_PAUSE_S = 0.005


async def measure(cluster: Cluster, front: Front, key: bytes, system: str, figures: Figures, *, times: int) -> None:
    """`front`: one that speaks HTTP/1.1, which etcd's nodes serve only once they have joined. Raises: TimeoutError."""
    for _ in range(times):
        leader = await cluster.wait_ready(LIMIT_S)
        node = next((node for node in cluster.ids if node != leader), leader)
        cluster.processes[node].kill()
        started = perf_counter()
        cluster.start(node)
        await first_read(front, cluster.clients[node], key)
        figures.add("restart_node", system, (perf_counter() - started) * 1e3)
    for _ in range(times):
        await cluster.wait_ready(LIMIT_S)
        cluster.stop()
        started = perf_counter()
        cluster.start_all()
        reads = [asyncio.create_task(first_read(front, address, key)) for address in cluster.clients.values()]
        await asyncio.wait(reads, return_when=asyncio.FIRST_COMPLETED)
        figures.add("restart_cluster", system, (perf_counter() - started) * 1e3)
        await asyncio.gather(*reads)
        figures.add("restart_cluster_all", system, (perf_counter() - started) * 1e3)


async def first_read(front: Front, address: Address, key: bytes) -> None:
    """Until a linearizable get of `key` has been answered. Raises: TimeoutError."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            if await _read(front, address, key):
                return
            await asyncio.sleep(_PAUSE_S)


async def _read(front: Front, address: Address, key: bytes) -> bool:
    answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def settle(succeeded: bool) -> None:
        if not answer.done():
            answer.set_result(succeeded)

    get = front.calls["get"]
    connection: Connection | None = None
    try:
        async with asyncio.timeout(_ATTEMPT_S):
            connection = await get.connect(address, lambda _, __, succeeded: settle(succeeded), lambda _: settle(False))
            connection.send(get.write(address, key))
            return await answer
    except (OSError, TimeoutError):
        return False
    finally:
        if connection is not None:
            connection.close()
