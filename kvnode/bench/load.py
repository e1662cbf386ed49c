"""Closed-loop load: a fixed number of requests in flight, each answered one replaced at once.

What is measured is the time from handing a request to the socket to having its whole answer, and how many were
answered in a period. With the number in flight fixed, latency and throughput are two views of one thing, and a
stall of the server shows in both: the slots wait, nothing is left out.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter, perf_counter_ns, process_time
from typing import Protocol

Address = tuple[str, int]


class Connection(Protocol):
    """What a load needs from a connection. Requests are opaque bytes prepared for this kind of connection.

    `answer`: the whole answer that is being reported, where the connection keeps it; only a talk looks at it.
    """

    answer: bytes

    def send(self, request: bytes) -> None: ...

    def close(self) -> None: ...


OnAnswer = Callable[[Connection, int, bool], None]
"""Called with the connection, when the request was sent (perf_counter_ns) and whether it succeeded."""

OnLost = Callable[[Connection], None]

Connect = Callable[[Address, OnAnswer, OnLost], Awaitable[Connection]]

DRAIN_S = 5.0
CONNECT_S = 5.0


@dataclass(frozen=True)
class Measured:
    """One period under load."""

    seconds: float
    latencies_ns: array[int]  # of the successful ones, in order of completion
    failures: int
    generator_cpu: float  # share of one core the load generator itself used
    server_cpu: float  # and the process that was asked

    @property
    def per_second(self) -> float:
        return len(self.latencies_ns) / self.seconds

    def quantile_ms(self, share: float) -> float:
        """Latency that `share` of the successful requests did not exceed; 0 if there were none."""
        return quantile_ms(self.latencies_ns, share)


def quantile_ms(times_ns: Sequence[int], share: float) -> float:
    """What `share` of them did not exceed; 0 if there are none."""
    if not times_ns:
        return 0.0
    ordered = sorted(times_ns)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] / 1e6


class ClosedLoop:
    """Keeps every slot of every connection busy until told to stop."""

    def __init__(self, requests: Iterator[bytes]) -> None:
        self.latencies_ns: array[int] = array("q")
        self.failures = 0
        self._requests = requests
        self._running = True
        self._open: dict[Connection, int] = {}  # slots that have a request in flight
        self._drained = asyncio.Event()

    async def start(self, connect: Connect, addresses: list[Address], connections: int, slots_each: int) -> None:
        """Open the connections, spread over `addresses` in turn, and fill their slots."""
        async with asyncio.timeout(CONNECT_S):
            for number in range(connections):
                address = addresses[number % len(addresses)]
                self._open[await connect(address, self.on_answer, self.on_lost)] = slots_each
        for connection in list(self._open):
            for _ in range(slots_each):
                connection.send(self.first(connection))

    def first(self, connection: Connection) -> bytes:
        """What a slot begins with."""
        return next(self._requests)

    def following(self, connection: Connection, sent_ns: int, succeeded: bool) -> bytes:
        """Count what was answered → what the slot sends next."""
        if succeeded:
            self.latencies_ns.append(perf_counter_ns() - sent_ns)
        else:
            self.failures += 1
        return next(self._requests)

    def on_answer(self, connection: Connection, sent_ns: int, succeeded: bool) -> None:
        request = self.following(connection, sent_ns, succeeded)
        if self._running:
            connection.send(request)
            return
        self._open[connection] -= 1
        self._check_drained()

    def on_lost(self, connection: Connection) -> None:
        """A lost connection is not replaced while measuring: it shows as a failure and as throughput."""
        self.failures += self._open.pop(connection, 0)
        self._check_drained()

    async def stop(self) -> None:
        """Let what is in flight be answered, for a bounded time, and close."""
        self._running = False
        try:
            async with asyncio.timeout(DRAIN_S):
                await self._drained.wait()
        except TimeoutError:
            self.failures += sum(self._open.values())
        for connection in list(self._open):
            connection.close()

    def _check_drained(self) -> None:
        if not any(self._open.values()):
            self._drained.set()


async def measure(
    load: ClosedLoop,
    connect: Connect,
    addresses: list[Address],
    *,
    connections: int,
    slots_each: int,
    warm_up_s: float,
    measure_s: float,
    server_cpu_s: Callable[[], float],
) -> Measured:
    """Load for `warm_up_s`, then measure for `measure_s`. `server_cpu_s`: processor time of the server so far."""
    try:
        await load.start(connect, addresses, connections, slots_each)
        await asyncio.sleep(warm_up_s)
        del load.latencies_ns[:]
        load.failures = 0
        started, generator_s, server_s = perf_counter(), process_time(), server_cpu_s()
        await asyncio.sleep(measure_s)
        seconds = perf_counter() - started
        generator_s, server_s = process_time() - generator_s, server_cpu_s() - server_s
        latencies, failures = load.latencies_ns[:], load.failures
    finally:
        await load.stop()
    return Measured(seconds, latencies, failures, generator_s / seconds, server_s / seconds)


async def send_all(
    connect: Connect, requests: list[bytes], address: Address, *, connections: int, slots_each: int, limit_s: float
) -> int:
    """Send each request once, `connections * slots_each` in flight → how many failed. Raises: TimeoutError."""
    remaining = iter(requests)
    done = asyncio.Event()
    answered = failed = 0

    def on_answer(connection: Connection, sent_ns: int, succeeded: bool) -> None:
        nonlocal answered, failed
        answered += 1
        failed += not succeeded
        request = next(remaining, None)
        if request is not None:
            connection.send(request)
        elif answered == len(requests):
            done.set()

    async with asyncio.timeout(limit_s):
        opened = [await connect(address, on_answer, lambda _: None) for _ in range(connections)]
        for connection in opened * slots_each:
            request = next(remaining, None)
            if request is not None:
                connection.send(request)
        await done.wait()
    for connection in opened:
        connection.close()
    return failed
