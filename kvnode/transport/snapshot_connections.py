"""Connections that snapshots go over: the conversation of `kvnode.transport.snapshots` as messages of a WebSocket."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import aiohttp

from kvnode.clocks.clock import Clock
from kvnode.config import PeerSection
from kvnode.ids import NodeId
from kvnode.transport.channel import Counters, WebSocket, own_descriptor
from kvnode.transport.pace import Pace
from kvnode.transport.snapshots import Incoming, Sending, Sink, Source, Stream


class WebSocketStream(Stream):
    """Hashed by identity. `release` it at the end; `abort` cuts it from outside, and whoever waits on it is told."""

    def __init__(self, websocket: WebSocket, peer: NodeId, settings: PeerSection, counters: Counters) -> None:
        super().__init__(peer, put=self._put_message, take=self._take_message, settings=settings, counters=counters)
        self._websocket = websocket
        self._descriptor = own_descriptor(websocket)

    async def _put_message(self, message: bytes) -> None:
        try:
            await self._websocket.send_bytes(message)
        except aiohttp.ClientError as error:
            raise ConnectionResetError(str(error)) from error

    async def _take_message(self) -> bytes:
        message = await self._websocket.receive()
        if message.type is not aiohttp.WSMsgType.BINARY:
            raise ConnectionResetError(f"the connection with member {self.peer} ended")
        data: bytes = message.data
        return data

    def abort(self) -> None:
        """Cut the connection at once."""
        try:
            self._descriptor.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # the other side was quicker

    def release(self) -> None:
        self._descriptor.close()


class SnapshotConnections:
    """All of one node, in either direction. They share one rate, and one snapshot comes in at a time."""

    def __init__(
        self, *, settings: PeerSection, clock: Clock, counters: Counters, sink: Callable[[], Sink | None]
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._counters = counters
        self._pace = Pace(settings.snapshot_bytes_per_s)
        self._incoming = Incoming(sink)
        self._streams: dict[WebSocketStream, None] = {}

    async def send(self, websocket: WebSocket, to: NodeId, source: Source) -> None:
        """Over a proven connection that this node dialled. Raises: OSError, CodecError, SnapshotRefused."""
        with self._stream(websocket, to) as stream:
            sending = Sending(stream, source, settings=self._settings, pace=self._pace, now_ms=self._clock.monotonic_ms)
            await sending.run()
        self._counters["snapshots_sent"] += 1

    async def take(self, websocket: WebSocket, peer: NodeId) -> None:
        """From a proven connection that `peer` dialled. Raises: OSError, CodecError; Fatal, from the sink."""
        with self._stream(websocket, peer) as stream:
            self._counters["snapshots_received"] += await self._incoming.serve(stream)

    def abort(self, peer: NodeId | None = None) -> None:
        """Cut those with `peer`, or all. What has come whole is still taken over."""
        for stream in self._streams:
            if peer in {None, stream.peer}:
                stream.abort()

    @contextmanager
    def _stream(self, websocket: WebSocket, peer: NodeId) -> Iterator[WebSocketStream]:
        stream = WebSocketStream(websocket, peer, self._settings, self._counters)
        self._streams[stream] = None
        try:
            yield stream
        finally:
            del self._streams[stream]
            stream.release()
