"""Fan-out: every event of every watcher is counted, however the streams are cut into pieces."""

from __future__ import annotations

import asyncio
import re

import pytest

from kvnode.bench import http1
from kvnode.bench.fanout import FanOut
from kvnode.bench.fronts import Call, Lines, Watching
from kvnode.bench.load import Address
from tests.bench.test_connections import _read_http, serving

WATCHING = Watching(
    lambda address, prefix: http1.request("GET", f"/watch/{prefix.decode()}", address),
    Lines,
    b"\r\n\r\n",
    re.compile(rb'"key":"([^"]+)"'),
    bytes.upper,
)
PUT = Call(lambda address, key, value: http1.request("PUT", f"/{key.decode()}", address, value), http1.connect)


class Server:
    """Tells its watchers of each put, `piece` bytes at a time; leaves out every `gap`th event."""

    def __init__(self, piece: int, gap: int) -> None:
        self.piece = piece
        self.gap = gap
        self.events = 0
        self.watchers: list[asyncio.StreamWriter] = []
        self.telling = asyncio.Lock()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                request = await _read_http(reader)
                if request.startswith(b"GET"):
                    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                    self.watchers.append(writer)
                    continue
                async with self.telling:  # lines do not mix
                    await self.tell(request.split()[1][1:].upper())
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def tell(self, key: bytes) -> None:
        line = b'{"key":"%b"}\n' % key
        chunk = b"%x\r\n%b\r\n" % (len(line), line)
        for start in range(0, len(chunk), self.piece):
            for number, watcher in enumerate(self.watchers):
                if not self.gap or (self.events + number) % self.gap:
                    watcher.write(chunk[start : start + self.piece])
            await asyncio.sleep(0.001)
        self.events += len(self.watchers)


async def _measure(server: Server, address: Address) -> tuple[int, int]:
    fanout = FanOut(address, WATCHING, PUT, b"w/")
    measured = await fanout.measure(
        iter(lambda: b"v", b""), watchers=60, puts_per_s=50, warm_up_s=0.1, measure_s=0.2, server_cpu_s=lambda: 0.0
    )
    assert 0 < measured.quantile_ms(0.5) <= measured.quantile_ms(0.99)
    return len(measured.latencies_ns), measured.failures


@pytest.mark.parametrize("piece", [5, 1000])
async def test_each_event_is_counted_once(piece: int) -> None:
    server = Server(piece, gap=0)
    async with serving(server) as address:
        assert await _measure(server, address) == (600, 0)


async def test_an_event_that_does_not_come_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvnode.bench.fanout.DRAIN_S", 0.05)
    server = Server(1000, gap=10)
    async with serving(server) as address:
        assert await _measure(server, address) == (540, 60)
