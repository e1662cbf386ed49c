"""An answer that goes on: its body is written piece by piece, to a client that may read slowly, or not at all.

HTTP/1.1 clients get chunks, HTTP/1.0 clients a body that ends with the connection. For others, too, the connection ends
with the answer, where nobody is known to use it on. What a client has not read waits in the transport, up to
`limits.watch_buffer_bytes`; then writing waits, too. A buffer that is full and does not shrink for
`limits.watch_stall_ms` raises `TooSlow` to whoever writes.

aiohttp does not cancel a handler whose client has left, so the answer asks the connection to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from aiohttp import web

from kvnode.api.answer import Answer
from kvnode.config import LimitsSection

if TYPE_CHECKING:
    from kvnode.api.listener import Connection

Result = TypeVar("Result")

LINGER_S = 30.0
"""A client that was too slow has so long to read what was written to it, its last line included."""


class TooSlow(Exception):
    """The client does not read."""


class Outlet:
    """Where the body goes."""

    def __init__(self, request: web.BaseRequest, limits: LimitsSection, *, chunked: bool) -> None:
        self._writer = request.writer
        self._request = request
        self._bytes_max = limits.watch_buffer_bytes
        self._stall_s = limits.watch_stall_ms / 1e3
        self._chunked = chunked
        self._transport.set_write_buffer_limits(high=self._bytes_max, low=self._bytes_max // 4)

    @property
    def _transport(self) -> asyncio.WriteTransport:
        transport = self._request.transport
        if transport is None:
            raise ConnectionResetError("the client has left")
        return transport

    def frame(self, data: bytes) -> bytes:
        """A piece as it goes out. The same for all outlets of a kind, so it may be kept."""
        return b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data

    async def write(self, framed: bytes) -> None:
        """Waits for room first. Raises: TooSlow, then it is not written; ConnectionError."""
        transport = self._transport
        while (unread := transport.get_write_buffer_size()) > self._bytes_max:
            try:
                async with asyncio.timeout(self._stall_s):
                    await self._writer.drain()
            except TimeoutError:
                if transport.get_write_buffer_size() >= unread:
                    raise TooSlow from None
        self._transport.write(framed)

    def begin(self, head: bytes) -> None:
        self._transport.write(head)

    def end(self, framed: bytes = b"") -> None:
        """The last words. Does not wait."""
        self._transport.write(framed + (b"0\r\n\r\n" if self._chunked else b""))

    def cut(self) -> None:
        """Break the answer off, so that nobody takes it for whole."""
        self._transport.abort()

    def linger(self) -> None:
        """What was written may be read for a while; then the connection is cut."""
        asyncio.get_running_loop().call_later(LINGER_S, self._transport.abort)


class StreamingAnswer(Answer):
    """Status and headers at once, then whatever `produce` writes, until it returns or the client leaves."""

    def __init__(
        self,
        status: int,
        head: str,
        outlet: Outlet,
        produce: Callable[[Outlet], Awaitable[None]],
        *,
        keep_alive: bool = False,
    ) -> None:
        super().__init__(status, head, b"", keep_alive=keep_alive)
        self._outlet = outlet
        self._produce = produce

    async def prepare(self, request: web.BaseRequest) -> Any:
        """Send everything. Raises: ConnectionError if the client leaves before."""
        await while_connected(request, self._send())
        return request.writer

    async def _send(self) -> None:
        self._outlet.begin(self.wire())
        await self._produce(self._outlet)


async def while_connected(request: web.BaseRequest, work: Awaitable[Result]) -> Result:
    """Carry out `work` for as long as the client is there. Raises: ConnectionResetError if it leaves before."""
    task = asyncio.current_task()
    assert task is not None
    connection: Connection = request.protocol  # type: ignore[assignment] # the listener makes no other
    has_left = False

    def leave() -> None:
        nonlocal has_left
        has_left = True
        task.cancel()

    connection.when_lost = leave
    try:
        return await work
    except asyncio.CancelledError:
        if not has_left:
            raise
        task.uncancel()
        raise ConnectionResetError("the client has left") from None
    finally:
        connection.when_lost = None
