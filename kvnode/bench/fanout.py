"""Fan-out: many watchers of one prefix on one node, while puts come at a fixed rate.

What is measured is the time from handing a put to the socket to reading its event, of each watcher, and how many
events were read a second. The puts do not wait for the watchers: a node that falls behind delivers fewer events a
second than it was given, and ever later. Watchers and writers share the generator's process, whose share of a core is
reported: much of it goes into a thousand sockets, whichever system writes to them.
"""

from __future__ import annotations

import asyncio
import functools
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from time import perf_counter, perf_counter_ns, process_time
from typing import cast

from kvnode.bench.fronts import Call, Watching
from kvnode.bench.load import CONNECT_S, DRAIN_S, Address, Connection, Measured

_BEGIN_S = 30.0
_WRITERS = 64
_POLL_S = 0.01
_CONNECTING = 50  # at a time: a listener's backlog is short


class _Watcher(asyncio.Protocol):
    """One stream."""

    def __init__(self, fanout: FanOut, request: bytes) -> None:
        self._fanout = fanout
        self._request = request
        self._transport: asyncio.Transport | None = None
        self._parts = fanout.watching.parts()
        self.has_begun = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit from it
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        whole = self._parts.take(data)
        if self.has_begun.is_set():
            self._fanout.on_events(whole)
        elif whole and self._fanout.watching.begun in whole:
            self.has_begun.set()

    def connection_lost(self, error: Exception | None) -> None:
        self.has_begun.set()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class FanOut:
    """One measurement on one node. Keys of all puts below `prefix` differ, so that an event names its put."""

    def __init__(self, address: Address, watching: Watching, put: Call, prefix: bytes) -> None:
        self.watching = watching
        self._address = address
        self._put = put
        self._prefix = prefix
        self._sent_ns: dict[bytes, int] = {}  # key as events spell it → when its put was sent; of the period measured
        self._latencies_ns: array[int] = array("q")
        self._last_event_ns = 0
        self._watchers: list[_Watcher] = []
        self._writers: list[Connection] = []
        self._free: deque[Connection] = deque()
        self._failures = 0

    def on_events(self, data: bytes) -> None:
        now_ns = perf_counter_ns()
        for found in self.watching.key.finditer(data):
            sent_ns = self._sent_ns.get(found[1])
            if sent_ns is not None:
                self._latencies_ns.append(now_ns - sent_ns)
                self._last_event_ns = now_ns

    async def measure(
        self,
        contents: Iterator[bytes],
        *,
        watchers: int,
        puts_per_s: int,
        warm_up_s: float,
        measure_s: float,
        server_cpu_s: Callable[[], float],
    ) -> Measured:
        """`contents`: values to put. Failures: puts that failed or found no free writer, and events that did not come.

        Raises: OSError, TimeoutError.
        """
        try:
            await self._begin(watchers)
            await self._write(b"before", contents, int(warm_up_s * puts_per_s), puts_per_s)
            self._sent_ns.clear()
            del self._latencies_ns[:]
            self._failures = 0
            started_ns, generator_s, server_s = perf_counter_ns(), process_time(), server_cpu_s()
            await self._write(b"measured", contents, int(measure_s * puts_per_s), puts_per_s)
            written_ns = perf_counter_ns()
            generator_s, server_s = process_time() - generator_s, server_cpu_s() - server_s
            await self._wait_for(len(self._sent_ns) * watchers)
        finally:
            self._end()
        missing = len(self._sent_ns) * watchers - len(self._latencies_ns)
        writing_s = (written_ns - started_ns) / 1e9
        return Measured(
            (max(written_ns, self._last_event_ns) - started_ns) / 1e9,
            self._latencies_ns,
            self._failures + missing,
            generator_s / writing_s,
            server_s / writing_s,
        )

    async def _begin(self, watchers: int) -> None:
        loop = asyncio.get_running_loop()
        request = self.watching.write(self._address, self._prefix)
        async with asyncio.timeout(_BEGIN_S):
            for first in range(0, watchers, _CONNECTING):
                several = [_Watcher(self, request) for _ in range(min(_CONNECTING, watchers - first))]
                self._watchers += several
                for each in several:
                    await loop.create_connection(functools.partial(_itself, each), *self._address)
                for each in several:
                    await each.has_begun.wait()
        async with asyncio.timeout(CONNECT_S):
            for _ in range(_WRITERS):
                self._writers.append(await self._put.connect(self._address, self._on_answer, lambda _: None))
        self._free.extend(self._writers)

    async def _write(self, name: bytes, contents: Iterator[bytes], puts: int, puts_per_s: int) -> None:
        """Puts at their times, whatever became of those before."""
        started = perf_counter()
        for number in range(puts):
            await asyncio.sleep(started + number / puts_per_s - perf_counter())
            if not self._free:
                self._failures += 1
                continue
            key = self._prefix + b"%b%06d" % (name, number)
            self._sent_ns[self.watching.spell(key)] = perf_counter_ns()
            self._free.popleft().send(self._put.write(self._address, key, next(contents)))
        await asyncio.sleep(started + puts / puts_per_s - perf_counter())

    def _on_answer(self, connection: Connection, sent_ns: int, succeeded: bool) -> None:
        self._failures += not succeeded
        self._free.append(connection)

    async def _wait_for(self, events: int) -> None:
        """What is on its way may arrive, for a bounded time."""
        for _ in range(int(DRAIN_S / _POLL_S)):
            if len(self._latencies_ns) >= events:
                return
            await asyncio.sleep(_POLL_S)

    def _end(self) -> None:
        for watcher in self._watchers:
            watcher.close()
        for writer in self._writers:
            writer.close()


def _itself(watcher: _Watcher) -> _Watcher:
    return watcher
