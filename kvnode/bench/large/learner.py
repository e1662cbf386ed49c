"""Learner: a node with an empty directory is brought up by a snapshot while clients write.

Puts to keys that exist go on through the leader, a few in flight: before, and until the new node has applied all that
the leader had committed when it was started. Its start is in the time, and so is joining. Afterwards it goes again.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from time import perf_counter

from kvnode.bench.cluster import Cluster
from kvnode.bench.fronts import Front
from kvnode.bench.large import bulk
from kvnode.bench.large.figures import Figures
from kvnode.bench.large.footprint import MEBIBYTE
from kvnode.bench.load import ClosedLoop, Measured
from kvnode.bench.workloads import VALUE_BYTES, value

IN_FLIGHT = 4
LIMIT_S = 600.0
_PREPARED = 8_192  # requests, sent in turn
_WARM_UP_S = 2.0
_POLL_S = 0.05


def prepare(cluster: Cluster, keys: int) -> None:
    """Before the start: the log must not keep all that is loaded, or no snapshot is needed."""
    cluster.shorten_log(keys, content_bytes(keys))


def content_bytes(keys: int) -> int:
    """Of keys and values."""
    return keys * (len(bulk.key(0)) + VALUE_BYTES)


async def measure(
    cluster: Cluster, front: Front, system: str, figures: Figures, *, keys: int, rng: random.Random, seconds: float
) -> None:
    """`seconds`: of puts before. Raises: ClusterFailed, TimeoutError, OSError."""
    leader = await cluster.wait_ready()
    address, put = cluster.clients[leader], front.calls["put"]
    requests = [put.write(address, bulk.key(rng.randrange(keys)), value(rng)) for _ in range(_PREPARED)]
    puts = ClosedLoop(itertools.cycle(requests))
    try:
        await puts.start(put.connect, [address], *front.connections(IN_FLIGHT))
        await asyncio.sleep(min(_WARM_UP_S, seconds))
        await _log_trimmed(cluster, leader)
        _restart(puts)
        await asyncio.sleep(seconds)
        before = _measured(puts, seconds)
        position = await cluster.position(leader)
        _restart(puts)
        started = perf_counter()
        node = await cluster.join(leader)
        await _applied(cluster, node, position.committed)
        taken = perf_counter() - started
        meanwhile = _measured(puts, taken)
    finally:
        await puts.stop()
    figures.add("learner_seconds", system, taken)
    figures.add("learner_speed", system, content_bytes(keys) / MEBIBYTE / taken)
    figures.add("learner_snapshots", system, await cluster.snapshots_taken(node))
    leader = await cluster.wait_ready()
    figures.add("learner_elections", system, (await cluster.position(leader)).term - position.term)
    for when, measured in (("before", before), ("meanwhile", meanwhile)):
        figures.add(f"learner_rate_{when}", system, measured.per_second)
        figures.add(f"learner_p50_{when}", system, measured.quantile_ms(0.5))
        figures.add(f"learner_p99_{when}", system, measured.quantile_ms(0.99))
        figures.add(f"learner_failed_{when}", system, measured.failures)
    await cluster.remove(node, leader)


async def _log_trimmed(cluster: Cluster, node: int) -> None:
    """Raises: TimeoutError, OSError."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            if await cluster.has_trimmed_log(node):
                return
            await asyncio.sleep(_POLL_S)


async def _applied(cluster: Cluster, node: int, index: int) -> None:
    """Until that node has applied the log up to there. Raises: TimeoutError."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            try:
                if (await cluster.position(node)).applied >= index:
                    return
            except (OSError, ValueError, KeyError):  # it does not serve yet
                pass
            await asyncio.sleep(_POLL_S)


def _restart(puts: ClosedLoop) -> None:
    del puts.latencies_ns[:]
    puts.failures = 0


def _measured(puts: ClosedLoop, seconds: float) -> Measured:
    return Measured(seconds, puts.latencies_ns[:], puts.failures, generator_cpu=0.0, server_cpu=0.0)
