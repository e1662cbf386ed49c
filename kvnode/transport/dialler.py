"""The dialling end: opens one proven WebSocket to a peer's listener.

The client session is built to do nothing on its own: no proxies from the environment, no cookies, no redirects, no
pool limit, no compression, no overall timeout; what is given time limits is the handshake as a whole.
"""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp

from kvnode.config import PeerSection
from kvnode.transport.channel import WebSocket
from kvnode.transport.exchanges import OK, read_bounded
from kvnode.transport.handshake import Handshake
from kvnode.transport.peer_server import FAREWELL_S, converse

_EXCUSE_BYTES_MAX = 1_024


class Dialler:
    """Owns the client session. `open` may be called concurrently."""

    def __init__(self, settings: PeerSection) -> None:
        self._settings = settings
        trace = aiohttp.TraceConfig()
        trace.on_request_redirect.append(_refuse_redirect)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=10, force_close=True),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=settings.handshake_timeout_ms / 1_000),
            trust_env=False,
            auto_decompress=False,
            trace_configs=[trace],
        )

    async def open(self, address: str, path: str, handshake: Handshake) -> WebSocket:
        """Connect and shake hands; `handshake.outcome` is set on return.

        Raises: OSError, TimeoutError or aiohttp.ClientError when there is no connection to be had.
        """
        async with asyncio.timeout(self._settings.handshake_timeout_ms / 1_000):
            websocket = await self._session.ws_connect(
                f"http://{address}{path}",
                timeout=aiohttp.ClientWSTimeout(ws_receive=None, ws_close=FAREWELL_S),
                max_msg_size=self._settings.message_bytes_max + 1,
                compress=0,
            )
            try:
                await websocket.send_bytes(handshake.begin())
                await converse(handshake, websocket)
            except BaseException:
                await websocket.close()
                raise
        return websocket

    async def post(self, address: str, path: str, body: bytes, *, bytes_max: int) -> bytes:
        """The body of the answer to `body`, on a connection of its own. Not bounded in time once connected.

        Raises: OSError, aiohttp.ClientError; CodecError for an answer of more than `bytes_max` bytes.
        """
        async with self._session.post(f"http://{address}{path}", data=body, allow_redirects=False) as answer:
            found = await read_bounded(answer.content, bytes_max if answer.status == OK else _EXCUSE_BYTES_MAX)
            if answer.status != OK:
                excuse = found.decode("ascii", "replace").strip()
                raise ConnectionRefusedError(f"{address} answered {answer.status}: {excuse!r}")
            return found

    async def close(self) -> None:
        await self._session.close()


async def _refuse_redirect(_session: aiohttp.ClientSession, _context: Any, params: Any) -> None:
    raise aiohttp.ClientError(f"peer {params.url} answered with a redirect")
