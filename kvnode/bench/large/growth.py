"""Growth: what a put costs in a store of many keys, beside the same put in one of few.

Two clusters live at once and are measured in turn, so that the machine's moods meet both. Puts go to keys that exist,
at random.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

from kvnode.bench import http1, load
from kvnode.bench.cluster import Cluster
from kvnode.bench.fronts import Front
from kvnode.bench.large import bulk
from kvnode.bench.large.figures import Figures
from kvnode.bench.workloads import value

IN_FLIGHT = (1, 64)
_PREPARED = 65_536  # requests prepared per measurement and sent in turn
_WARM_UP_S = 2.0


@dataclass(frozen=True)
class Store:
    """A loaded cluster. `size`: "few" or "many"."""

    size: str
    cluster: Cluster
    keys: int


async def measure(
    stores: list[Store], front: Front, figures: Figures, rng: random.Random, *, seconds: float, rounds: int
) -> None:
    """Raises: ClusterFailed, TimeoutError."""
    for number in range(rounds):
        for in_flight in IN_FLIGHT:
            for store in stores if number % 2 == 0 else stores[::-1]:
                await _puts(store, front, figures, rng, in_flight=in_flight, seconds=seconds)


async def _puts(
    store: Store, front: Front, figures: Figures, rng: random.Random, *, in_flight: int, seconds: float
) -> None:
    leader = await store.cluster.wait_ready()
    address = store.cluster.clients[leader]
    put = front.calls["put"]
    requests = [put.write(address, bulk.key(rng.randrange(store.keys)), value(rng)) for _ in range(_PREPARED)]
    connections, slots_each = front.connections(in_flight)
    flushes = await _flushes(address)
    measured = await load.measure(
        load.ClosedLoop(itertools.cycle(requests)),
        put.connect,
        [address],
        connections=connections,
        slots_each=slots_each,
        warm_up_s=min(_WARM_UP_S, seconds),
        measure_s=seconds,
        server_cpu_s=store.cluster.processes[leader].cpu_seconds,
    )
    flushes_after = await _flushes(address)
    row = f"put{in_flight}"
    figures.add(f"{row}_rate", store.size, measured.per_second)
    figures.add(f"{row}_p50", store.size, measured.quantile_ms(0.5))
    figures.add(f"{row}_p99", store.size, measured.quantile_ms(0.99))
    count = flushes_after[0] - flushes[0]
    if count:
        figures.add(f"{row}_flush", store.size, (flushes_after[1] - flushes[1]) / count * 1e3)


async def _flushes(address: load.Address) -> tuple[float, float]:
    """(how many flushes to the store, seconds of all)."""
    _, body = await http1.ask("GET", "/metrics", address)
    numbers = dict(line.rsplit(b" ", 1) for line in body.splitlines() if line.startswith(b"kvnode_flush_seconds_"))
    return float(numbers[b"kvnode_flush_seconds_count"]), float(numbers[b"kvnode_flush_seconds_sum"])
