"""The peer listener: three WebSocket routes, one per lane, one for exchanges, and nothing a stranger could use.

A connection is closed unless it proves membership within `peer.handshake_timeout_ms`; only `peer.unproven_max`
may be waiting to do so, and the number of TCP connections is bounded before a byte of them is read.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
from aiohttp import web

from kvnode.config import PeerSection, parse_address
from kvnode.raft.messages import Lane
from kvnode.transport.channel import Counters, WebSocket
from kvnode.transport.exchanges import EXCHANGE_PATH, ExchangeRoute
from kvnode.transport.handshake import Handshake
from kvnode.wire.frames import Hello

ROUTES: dict[str, Lane] = {
    "/peer/v1/control": "control",
    "/peer/v1/data": "data",
    "/peer/v1/snapshot": "snapshot",
}
FAREWELL_S = 0.25
"""How long a closing connection may take to say so."""

_PROVEN_CONNECTIONS_MAX = 256  # two lanes of every member a cluster of this design can have, with room to replace them
_BACKLOG = 128
_SHUTDOWN_S = 1.0

# aiohttp reports malformed requests of strangers here, with their bytes; the counters tell of them instead.
_quiet = logging.getLogger("kvnode.transport.listener")
_quiet.setLevel(logging.CRITICAL + 1)

Accept = Callable[[WebSocket, Hello], Awaitable[None]]
"""Serves a proven connection until it ends."""


class PeerServer:
    """Listens, admits, and hands proven connections to `accept`."""

    def __init__(
        self,
        *,
        listen: str,
        settings: PeerSection,
        make_handshake: Callable[[Lane], Handshake],
        accept: Accept,
        on_refused: Callable[[Handshake], None],
        on_crashed: Callable[[BaseException], None],
        counters: Counters,
    ) -> None:
        self._listen = listen
        self._settings = settings
        self._make_handshake = make_handshake
        self._accept = accept
        self._on_refused = on_refused
        self._on_crashed = on_crashed
        self._counters = counters
        self.exchanges = ExchangeRoute(settings=settings, counters=counters, on_crashed=on_crashed)
        self._unproven = 0
        self._socket: socket.socket | None = None
        self._server: asyncio.AbstractServer | None = None
        self._runner: web.AppRunner | None = None

    @property
    def address(self) -> str:
        """host:port that is listened on; the port is the real one where 0 was asked for. Needs `bind`."""
        assert self._socket is not None
        host, port = self._socket.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def bind(self) -> None:
        """Take the address; connections wait until `start`. Raises OSError."""
        if self._socket is not None:
            return
        host, port = parse_address(self._listen, "peer.listen")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, port), family=family, backlog=_BACKLOG)
        self._socket.setblocking(False)

    async def start(self) -> None:
        self.bind()
        app = web.Application(client_max_size=1_024)
        for path in ROUTES:
            app.router.add_get(path, self._serve, allow_head=False)
        app.router.add_post(EXCHANGE_PATH, self.exchanges.serve)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            logger=_quiet,
            handle_signals=False,
            keepalive_timeout=self._settings.handshake_timeout_ms / 1_000,
            shutdown_timeout=_SHUTDOWN_S,
            auto_decompress=False,
        )
        await self._runner.setup()
        assert self._socket is not None
        self._server = await asyncio.get_running_loop().create_server(
            self._protocol, sock=self._socket, backlog=_BACKLOG
        )

    def stop_listening(self) -> None:
        """From here on the port refuses connections: peers see that this process goes."""
        if self._server is not None:
            self._server.close()
            self._server = None
        elif self._socket is not None:
            self._socket.close()

    async def close(self) -> None:
        self.stop_listening()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def _protocol(self) -> asyncio.BaseProtocol:
        assert self._runner is not None
        server = self._runner.server
        if server is None or len(server.connections) >= _PROVEN_CONNECTIONS_MAX + self._settings.unproven_max:
            self._counters["connections_turned_away"] += 1
            return _TurnedAway()
        return server()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        lane = ROUTES[request.path]
        if request.headers.get("Origin") is not None or not web.WebSocketResponse().can_prepare(request).ok:
            raise web.HTTPBadRequest(text="peers only\n")
        if self._unproven >= self._settings.unproven_max:
            self._counters["connections_turned_away"] += 1
            raise web.HTTPServiceUnavailable(text="too many handshakes\n", headers={"Connection": "close"})
        websocket = web.WebSocketResponse(
            timeout=FAREWELL_S, compress=False, max_msg_size=self._settings.message_bytes_max + 1
        )
        try:
            hello = await self._prove(request, websocket, lane)
            if hello is not None:
                await self._accept(websocket, hello)
        except (TimeoutError, OSError, aiohttp.ClientError):
            self._counters["handshakes_unfinished"] += 1
        except Exception as error:
            self._on_crashed(error)
            raise
        finally:
            if websocket.prepared and request.transport is not None:
                request.transport.close()
        return websocket

    async def _prove(self, request: web.Request, websocket: web.WebSocketResponse, lane: Lane) -> Hello | None:
        self._unproven += 1
        try:
            async with asyncio.timeout(self._settings.handshake_timeout_ms / 1_000):
                await websocket.prepare(request)
                handshake = self._make_handshake(lane)
                await converse(handshake, websocket)
        finally:
            self._unproven -= 1
        if handshake.outcome == "accepted":
            return handshake.peer
        self._on_refused(handshake)
        await websocket.close(code=aiohttp.WSCloseCode.POLICY_VIOLATION)
        return None


async def converse(handshake: Handshake, websocket: WebSocket) -> None:
    """Run a handshake over a connection until it has an outcome; a connection that ends first raises OSError."""
    while handshake.outcome is None:
        message = await websocket.receive()
        if message.type is not aiohttp.WSMsgType.BINARY:
            raise ConnectionResetError("the connection ended during the handshake")
        answer = handshake.receive(message.data)
        if answer:
            await websocket.send_bytes(answer)


class _TurnedAway(asyncio.Protocol):
    """One connection too many: closed before anything of it is read."""

    def connection_made(self, transport: Any) -> None:
        transport.abort()
