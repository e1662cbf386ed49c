"""Single-socket channel: one proven, persistent, ordered connection to one peer for one purpose (a *lane*).

Sending never waits: a frame goes into a bounded queue, and a writer puts everything that is ready at one moment
into one WebSocket message. When the peer does not keep up the queue fills and further frames are dropped and
counted; Raft sends again what matters. Receiving hands out each frame as it arrives, in order.

A channel that was aborted hands out nothing more, even of what had already arrived: answers of an old connection
must not cross into a new one (source: the Single-Socket Channel pattern; patterns.md §5.9).
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine, Generator
from typing import Any

import aiohttp
from aiohttp import web

from kvnode.ids import NodeId
from kvnode.raft.messages import Lane
from kvnode.wire.frames import (
    HEAD_BYTES,
    TIME_FRAME_BYTES,
    FrameKind,
    decode_time,
    encode_frame,
    encode_time,
    split_frames,
)
from kvnode.wire.limits import CodecError

WebSocket = web.WebSocketResponse | aiohttp.ClientWebSocketResponse
OnMessage = Callable[[memoryview], None]
OnTime = Callable[[int], None]
Counters = dict[str, int]

_JOIN_BYTES_MAX = 256 << 10  # more would make the receiver wait for the last frame before it sees the first
_CLOSED = (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSING, aiohttp.WSMsgType.CLOSED)


class Channel:
    """One lane to one peer. `run` lives as long as the connection; `send` and `abort` may be called any time."""

    def __init__(
        self,
        websocket: WebSocket,
        *,
        peer: NodeId,
        lane: Lane,
        queue_bytes_max: int,
        message_bytes_max: int,
        counters: Counters,
        on_time: OnTime | None = None,
    ) -> None:
        self.peer = peer
        self.lane: Lane = lane
        self.is_closed = False
        self.heard_ms = 0  # when something last arrived, to the keep-alive's precision
        self._heard = True
        self._websocket = websocket
        self._descriptor = own_descriptor(websocket)
        self._queue: list[bytes] = []
        self._queue_bytes = 0
        self._queue_bytes_max = queue_bytes_max
        self._message_bytes_max = message_bytes_max
        self._wake: asyncio.Future[None] | None = None  # the writer sleeps on it
        self._is_slow = False  # the peer does not keep up: only the writer sends until the queue is empty
        self._rest: _Rest | None = None  # a send begun elsewhere, for the writer to finish
        self._cut: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sent = self._received = 0  # numbers of the last frames
        self._time_sent = 0  # the Lamport time that the peer was told last, on this channel
        self._on_time = on_time
        self._counters = counters
        self._bytes_sent = f"bytes_sent_{lane}"
        self._bytes_received = f"bytes_received_{lane}"

    def send(self, kind: int, payload: bytes = b"", time: int = 0) -> bool:
        """Queue one frame; False if it was dropped: the connection is closed or its queue is full.

        `time`: the Lamport time, which goes before the frame, in one piece with it, if the peer has not been told it
        here yet; 0: the peer does not know of such times.
        """
        size = HEAD_BYTES + len(payload)
        if self.is_closed or self._queue_bytes + size > self._queue_bytes_max or size > self._message_bytes_max:
            return False
        before = b""
        if time > self._time_sent and size + TIME_FRAME_BYTES <= self._message_bytes_max:  # else before the next one
            self._sent += 1
            self._time_sent = time
            before = encode_time(time, self._sent)
            size += TIME_FRAME_BYTES
        self._sent += 1
        frame = encode_frame(kind, payload, self._sent)
        if before:
            frame = before + frame
        if self._wake is not None and not self._is_slow:
            return self._send_at_once(frame)
        self._queue.append(frame)
        self._queue_bytes += size
        self._wake_writer()
        return True

    def _send_at_once(self, frame: bytes) -> bool:
        """The writer sleeps and the peer keeps up: write here and now, a turn of the loop earlier than a task could.

        The coroutine suspends only to wait for a peer that does not read, after it has written. The writer takes
        that wait over, and everything sent meanwhile queues up behind it.
        """
        sending = self._websocket.send_bytes(frame)
        try:
            waited_for = sending.send(None)
        except StopIteration:
            self._counters[self._bytes_sent] += len(frame)
            return True
        except (OSError, aiohttp.ClientError):
            self.abort()
            return False
        self._counters[self._bytes_sent] += len(frame)
        self._is_slow = True
        self._rest = _Rest(sending, waited_for)
        self._wake_writer()
        return True

    def _wake_writer(self) -> None:
        wake = self._wake
        if wake is not None:
            self._wake = None
            if not wake.done():
                wake.set_result(None)

    async def run(self, on_message: OnMessage) -> None:
        """Deliver each message until the connection ends or `abort`.

        Raises: CodecError for a damaged or unexpected frame, whatever `on_message` raises, OSError.
        """
        writer = asyncio.create_task(self._write(), name=f"peer-{self.peer}-{self.lane}-writer")
        reader = asyncio.create_task(self._read(on_message), name=f"peer-{self.peer}-{self.lane}-reader")
        try:
            # A cut alone does not wake a reader whose socket is paused: hence the third thing to wait for.
            await asyncio.wait({reader, writer, self._cut}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.abort()
            writer.cancel()
            reader.cancel()
            await asyncio.gather(writer, reader, return_exceptions=True)
        for task in (reader, writer):
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error

    async def _read(self, on_message: OnMessage) -> None:
        while True:
            message = await self._websocket.receive()
            if message.type is not aiohttp.WSMsgType.BINARY:
                if self.is_closed or message.type in _CLOSED or isinstance(message.data, OSError):
                    return
                raise CodecError(f"a WebSocket message of type {message.type.name}: {message.data!s:.100}")
            self._heard = True
            data = message.data
            self._counters[self._bytes_received] += len(data)
            for kind, payload in split_frames(data, self._message_bytes_max, self._received + 1):
                self._received += 1
                if self.is_closed:
                    return
                if kind == FrameKind.MESSAGE:
                    on_message(payload)
                elif kind == FrameKind.TIME:
                    time = decode_time(payload)
                    if self._on_time is not None:
                        self._on_time(time)
                elif kind != FrameKind.PING:
                    raise CodecError(f"a frame of kind {kind} after the handshake")

    def keep_alive(self, now_ms: int, *, slept: bool) -> int:
        """Ping; returns for how long nothing has arrived. `slept`: this process was late, so the time tells nothing."""
        if self._heard or slept:
            self._heard = False
            self.heard_ms = now_ms
        self.send(FrameKind.PING)
        return now_ms - self.heard_ms

    @property
    def queue_bytes(self) -> int:
        return self._queue_bytes

    def abort(self) -> None:
        """Cut the connection at once, without a farewell: a peer that does not read cannot hold it open."""
        if self.is_closed:
            return
        self.is_closed = True
        if not self._cut.done():
            self._cut.set_result(None)
        self._queue.clear()
        self._queue_bytes = 0
        if self._rest is not None:
            self._rest.close()
            self._rest = None
        try:
            self._descriptor.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the other side was quicker
        finally:
            self._descriptor.close()

    async def _write(self) -> None:
        """Everything queued at one moment goes out as one message, in pieces no larger than the receiver takes."""
        try:
            while not self.is_closed:
                if self._rest is not None:
                    rest, self._rest = self._rest, None
                    await rest
                if not self._queue:
                    self._is_slow = False
                    self._wake = asyncio.get_running_loop().create_future()
                    await self._wake
                    continue
                joined, size = self._take()
                self._counters[self._bytes_sent] += size
                await self._websocket.send_bytes(joined)
        except (OSError, aiohttp.ClientError):
            self.abort()  # the reader sees the end of the connection and reports it

    def _take(self) -> tuple[bytes, int]:
        """The next WebSocket message: all that is queued, or as many frames as may share one; a large one alone."""
        queue, size = self._queue, self._queue_bytes
        if size <= _JOIN_BYTES_MAX or len(queue) == 1:
            self._queue = []
        else:
            count, size = 1, len(queue[0])
            while size + len(queue[count]) <= _JOIN_BYTES_MAX:
                size += len(queue[count])
                count += 1
            queue, self._queue = queue[:count], queue[count:]
        self._queue_bytes -= size
        return (queue[0] if len(queue) == 1 else b"".join(queue)), size


class _Rest:
    """A coroutine that was started by hand and has suspended, awaited from where it stands."""

    __slots__ = ("_coroutine", "_waited_for")

    def __init__(self, coroutine: Coroutine[Any, Any, None], waited_for: object) -> None:
        self._coroutine = coroutine
        self._waited_for = waited_for

    def __await__(self) -> Generator[Any, Any, None]:
        waited_for = self._waited_for
        try:
            while True:
                try:
                    value = yield waited_for
                except BaseException as error:  # noqa: BLE001 - whatever is thrown in belongs inside
                    waited_for = self._coroutine.throw(error)
                else:
                    waited_for = self._coroutine.send(value)
        except StopIteration:
            return

    def close(self) -> None:
        self._coroutine.close()


def own_descriptor(websocket: WebSocket) -> socket.socket:
    """A second descriptor of the connection: the one way to cut it that both loops and both ends offer."""
    return socket.socket(fileno=os.dup(websocket.get_extra_info("socket").fileno()))
