"""Datagrams: one UDP socket, on the number of the peer listener's port. Bytes in, bytes out, nothing kept.

Sending never waits: what the socket does not take now is dropped and counted, as the network might have done. What an
earlier datagram came to (ICMP: nobody listens there, no way there) is counted and tells nothing, since anybody can
send such a message; that a peer is gone is found out by probing.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

from kvnode.transport.channel import Counters
from kvnode.wire.gossip_seal import DATAGRAM_BYTES_MAX

SocketAddress = tuple[Any, ...]
"""As the operating system has it: host in figures, port, and for IPv6 flow and scope."""

QUEUE_BYTES_MAX = 64 << 10
"""What the loop may hold back for a socket that is full; beyond it datagrams are dropped."""

COUNTERS = (
    "datagrams_sent",
    "datagrams_received",
    "datagrams_dropped",  # too large, no address, or the socket is full
    "datagrams_errors",  # reported by the operating system
    "datagram_bytes_sent",
    "datagram_bytes_received",
)


class Datagrams(asyncio.DatagramProtocol):
    """Lives on one loop, from `open` to `close`. `on_datagram` must not raise."""

    def __init__(self, on_datagram: Callable[[bytes], None], counters: Counters) -> None:
        self.family = socket.AF_UNSPEC  # from `open` on
        self._on_datagram = on_datagram
        self._counters = counters
        self._transport: asyncio.DatagramTransport | None = None
        self._is_full = False
        self._lost: asyncio.Future[None] | None = None

    async def open(self, host: str, port: int) -> None:
        """Take the port. `host`: in figures. Raises OSError."""
        assert self._transport is None
        loop = asyncio.get_running_loop()
        self.family = socket.AF_INET6 if ":" in host else socket.AF_INET
        own = socket.socket(self.family, socket.SOCK_DGRAM)
        try:
            own.setblocking(False)
            if self.family == socket.AF_INET6:
                own.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # as the listener of the same port
            own.bind((host, port))
            self._lost = loop.create_future()
            await loop.create_datagram_endpoint(lambda: self, sock=own)
        except BaseException:
            own.close()
            raise

    def send(self, data: bytes, to: SocketAddress) -> bool:
        """False if it was dropped."""
        transport = self._transport
        if transport is None or self._is_full or len(data) > DATAGRAM_BYTES_MAX:
            self._counters["datagrams_dropped"] += 1
            return False
        try:
            transport.sendto(data, to)
        except OSError:
            self._counters["datagrams_errors"] += 1
            return False
        self._counters["datagrams_sent"] += 1
        self._counters["datagram_bytes_sent"] += len(data)
        return True

    async def close(self) -> None:
        """Give the port up; on return it is free."""
        if self._transport is not None:
            self._transport.abort()
            self._transport = None
        if self._lost is not None:
            await self._lost

    # ── asyncio's side ──────────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.set_write_buffer_limits(high=QUEUE_BYTES_MAX)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(None)

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False

    def datagram_received(self, data: bytes, address: SocketAddress) -> None:
        self._counters["datagrams_received"] += 1
        self._counters["datagram_bytes_received"] += len(data)
        self._on_datagram(data)

    def error_received(self, error: Exception) -> None:
        self._counters["datagrams_errors"] += 1
