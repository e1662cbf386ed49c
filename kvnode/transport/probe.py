"""Is a peer's process there at all? A plain TCP connect to its port, closed at once.

A refused connect means that nobody listens: the process is gone, which is why a follower may campaign before its
election timer fires. Everything else (an open port, silence, an unreachable host) says nothing about the process.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import Literal

Probed = Literal["open", "refused", "unreachable"]


async def probe(host: str, port: int, timeout_s: float) -> Probed:
    """`refused` only if every address of `host` refuses."""
    try:
        async with asyncio.timeout(timeout_s):
            loop = asyncio.get_running_loop()
            results = [await _connect(loop, family, address) for family, address in await _resolve(loop, host, port)]
    except (TimeoutError, OSError):
        return "unreachable"
    if "open" in results:
        return "open"
    return "refused" if results and all(result == "refused" for result in results) else "unreachable"


async def _resolve(loop: asyncio.AbstractEventLoop, host: str, port: int) -> list[tuple[int, tuple[object, ...]]]:
    """Afresh each time. An address in figures costs no thread: failover must not wait for a stuck name look-up."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [(family, address) for family, _, _, _, address in found]


async def _connect(loop: asyncio.AbstractEventLoop, family: int, address: tuple[object, ...]) -> Probed:
    with socket.socket(family, socket.SOCK_STREAM) as connection:
        connection.setblocking(False)
        try:
            await loop.sock_connect(connection, address)
        except OSError as error:
            return "refused" if error.errno == errno.ECONNREFUSED else "unreachable"
    return "open"
