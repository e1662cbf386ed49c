"""An answer as one piece of bytes: status line, headers and body leave in a single write.

aiohttp's own response objects build, copy and serialise a header dictionary per answer, which costs half of
a small request's time; ours are a fixed set with a few numbers in them. `Answer` keeps to the three things
aiohttp's connection handler asks of a response: `prepare`, `write_eof` and `keep_alive`.
"""

from __future__ import annotations

import asyncio
from email.utils import formatdate
from http import HTTPStatus
from typing import Any

from aiohttp import web

from kvnode.clocks.clock import Clock

WRITE_TIMEOUT_S = 30.0  # a client that reads slower than one buffer in this time is cut off

KIND_JSON = "Content-Type: application/json\r\n"
KIND_RAW = "Content-Type: application/octet-stream\r\nContent-Security-Policy: sandbox; default-src 'none'\r\n"
KIND_TEXT = "Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n"
KIND_PLAIN = "Content-Type: text/plain; charset=utf-8\r\n"
KIND_NONE = ""

STATUS_LINE: dict[int, str] = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n" for s in HTTPStatus}
ALWAYS = "X-Content-Type-Options: nosniff\r\nCache-Control: no-cache\r\n"

_EMPTY = b""
_BIG = 64 * 1024  # a bigger body is not copied behind its head


class Answer(web.StreamResponse):
    """A finished answer. The base class's constructor is not run: nothing of its state is used."""

    def __init__(self, status: int, head: str, body: bytes, keep_alive: bool) -> None:
        self._status = status
        self._head = head
        self._bytes = body
        self._keeps_alive = keep_alive

    @property
    def keep_alive(self) -> bool:
        return self._keeps_alive

    def wire(self) -> bytes:
        """The whole answer as it goes out."""
        return self._head.encode() + self._bytes

    async def prepare(self, request: web.BaseRequest) -> Any:
        """Send everything. Waits only for a client that does not read; gives it up after `WRITE_TIMEOUT_S`."""
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the client has left")
        if len(self._bytes) < _BIG:
            transport.write(self._head.encode() + self._bytes)
        else:
            transport.writelines((self._head.encode(), self._bytes))
        if transport.get_write_buffer_size() > _BIG:
            try:
                async with asyncio.timeout(WRITE_TIMEOUT_S):
                    await request.writer.drain()
            except TimeoutError:
                transport.abort()
                raise ConnectionResetError("the client does not read") from None
        return request.writer

    async def write_eof(self, data: bytes = _EMPTY) -> None:
        """Nothing is left to send."""


class DateHeader:
    """The `Date` header, rendered once a second."""

    __slots__ = ("_clock", "_second", "_text")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._second = 0
        self._text = ""

    def line(self) -> str:
        second = self._clock.wall_ms() // 1_000
        if second != self._second:
            self._second = second
            self._text = f"Date: {formatdate(second, usegmt=True)}\r\n"
        return self._text
