"""Bulk: keys put once each, as fast as a cluster takes them, in an order that is nobody's favourite.

*Puts*: each key is a write of its own, with a revision of its own; kvnode takes them in batches, etcd one a call with
many in flight. *Transactions*: 128 keys are one write, the most that either takes. What is refused as too much is sent
again, where the connection has one request in flight, so that it is known which; elsewhere it counts as failed.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter

from kvnode.bench.cluster import Cluster
from kvnode.bench.fronts import Front
from kvnode.bench.load import Address, Connection
from kvnode.bench.workloads import value

TXN_KEYS = 128
_RETRY_S = 0.05
_STRIDE = 2_654_435_761  # a prime: steps of it through fewer keys than that meet each of them once


@dataclass(frozen=True)
class Way:
    """How keys are put. `kind`: of a front's call, which takes as many keys; `in_flight`: calls."""

    kind: str
    keys_each: int
    in_flight: int


PUTS = {"http": Way("batch", 1_024, 4), "grpc": Way("put", 1, 256)}
TXNS = {"http": Way("txn", TXN_KEYS, 8), "grpc": Way("txn", TXN_KEYS, 8)}
"""By front. In flight: where more gains nothing."""


@dataclass(frozen=True)
class Loaded:
    seconds: float
    failed: int  # calls
    repeated: int  # calls that were refused and sent again


def key(number: int) -> bytes:
    return b"large/%08d" % number


def scattered(first: int, count: int) -> Iterator[int]:
    """Each number from `first` on, `count` of them, far from the one before. `count` is below `_STRIDE`."""
    return (first + position * _STRIDE % count for position in range(count))


class _Feed:
    """Hands out requests until there are none, and again those that were refused."""

    def __init__(self, requests: Iterator[bytes], *, one_each: bool) -> None:
        self.failed = self.repeated = 0
        self.done = asyncio.Event()
        self._requests = requests
        self._one_each = one_each
        self._sent: dict[Connection, bytes] = {}
        self._under_way = 0

    def next(self, connection: Connection) -> None:
        request = next(self._requests, None)
        if request is None:
            self._check_done()
        else:
            self._under_way += 1
            self._send(connection, request)

    def _send(self, connection: Connection, request: bytes) -> None:
        if self._one_each:
            self._sent[connection] = request
        connection.send(request)

    def on_answer(self, connection: Connection, sent_ns: int, succeeded: bool) -> None:
        if succeeded and b'"error"' not in connection.answer:
            self._under_way -= 1
            self.next(connection)
        elif self._one_each:
            self.repeated += 1
            asyncio.get_running_loop().call_later(_RETRY_S, connection.send, self._sent[connection])
        else:
            self.failed += 1
            self._under_way -= 1
            self.next(connection)

    def on_lost(self, connection: Connection) -> None:
        self.failed += 1
        self._under_way -= 1
        self._check_done()

    def _check_done(self) -> None:
        if self._under_way <= 0:
            self.done.set()


async def load(
    cluster: Cluster, front: Front, way: Way, numbers: Iterator[int], *, rng: random.Random, limit_s: float
) -> Loaded:
    """Put the keys of `numbers` through the leader. Raises: TimeoutError, OSError."""
    address = cluster.clients[await cluster.wait_ready()]
    call = front.calls[way.kind]
    feed = _Feed(_requests(front, way, address, numbers, rng), one_each=not front.multiplexed)
    connections, slots_each = front.connections(way.in_flight)
    started = perf_counter()
    opened: list[Connection] = []
    try:
        async with asyncio.timeout(limit_s):
            for _ in range(connections):
                opened.append(await call.connect(address, feed.on_answer, feed.on_lost))
            for connection in opened * slots_each:
                feed.next(connection)
            await feed.done.wait()
        seconds = perf_counter() - started
    finally:
        for connection in opened:
            connection.close()
    return Loaded(seconds, feed.failed, feed.repeated)


def _requests(front: Front, way: Way, address: Address, numbers: Iterator[int], rng: random.Random) -> Iterator[bytes]:
    """Made as they are sent: all of a large store would not fit into memory."""
    write = front.calls[way.kind].write
    if way.kind == "put":
        for number in numbers:
            yield write(address, key(number), value(rng))
        return
    while items := [(key(number), value(rng)) for _, number in zip(range(way.keys_each), numbers, strict=False)]:
        yield write(address, items)
