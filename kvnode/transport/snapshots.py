"""Snapshots between two nodes: each over a proven connection of its own (lane `snapshot`), in small pieces.

    sender                                receiver
    OFFER header                   →
                                   ←      WANT n             (it has all blocks before n, or takes none: REFUSAL,
                                                              or has all that the snapshot has: DONE)
    BLOCK n, BLOCK n + 1, …        →                         (one message, one write)
                                   ←      WANT m             (all before m are durable)
    …
    END count                      →
                                   ←      DONE               (verified and taken over; else REFUSAL)

At most `WINDOW_BYTES` are on their way and not durable, and no more leaves than the rate allows: heartbeats and appends
have connections of their own, and share the loop and the wire with pieces of `PIECE_BYTES`. Both sides send PING
meanwhile. A connection that breaks loses nothing that was durable: the next OFFER of the same snapshot is answered with
the block to go on with.

No wait is unbounded. Nothing at all from the peer for `peer.silence_ms_max` ends the connection, and so does nothing
but PINGs for `STALLS` times as long; for the last step, in which the receiver builds a store, for `FINISH_MS_MAX`.

A receiver takes one snapshot at a time. A later offer replaces an earlier one: the same leader dialled again, or a
newer one has more. While the last step goes on, further offers are refused.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

from kvnode.config import PeerSection
from kvnode.errors import SnapshotRefused
from kvnode.ids import NodeId
from kvnode.transport.channel import Counters
from kvnode.transport.pace import Pace
from kvnode.wire.frames import (
    HEAD_BYTES,
    FrameKind,
    Refusal,
    decode_refusal,
    encode_frame,
    encode_refusal,
    split_frames,
)
from kvnode.wire.limits import CodecError

WINDOW_BYTES = 1 << 20
PIECE_BYTES = 256 << 10
"""A message of blocks leaves once it has so many: what a receiver makes durable at once, and other lanes wait for."""
STALLS = 10
FINISH_MS_MAX = 600_000
_NUMBER_BYTES = 8

COUNTERS = ("snapshots_sent", "snapshots_received", "bytes_sent_snapshot", "bytes_received_snapshot")

Frame = tuple[int, bytes]


class Source(Protocol):
    """`kvnode.node.ports.SnapshotSource`."""

    @property
    def header(self) -> bytes: ...

    async def block(self, number: int) -> bytes | None: ...


class Sink(Protocol):
    """`kvnode.node.ports.SnapshotSink`."""

    async def begin(self, peer: NodeId, header: bytes) -> int | None: ...

    async def write(self, number: int, blocks: Sequence[bytes]) -> None: ...

    async def finish(self) -> None: ...


class Stream:
    """Whole frames over a proven connection, numbered from 1 in each direction. `put` and `take` carry messages."""

    def __init__(
        self,
        peer: NodeId,
        *,
        put: Callable[[bytes], Awaitable[None]],
        take: Callable[[], Awaitable[bytes]],
        settings: PeerSection,
        counters: Counters,
    ) -> None:
        self.peer = peer
        self._put = put  # raises OSError once the connection has ended
        self._take = take  # likewise
        self._settings = settings
        self._counters = counters
        self._sent = self._received = 0

    async def send(self, *frames: Frame) -> None:
        """One message. Raises: OSError, TimeoutError if the peer does not read."""
        encoded = []
        for kind, payload in frames:
            self._sent += 1
            encoded.append(encode_frame(kind, payload, self._sent))
        message = b"".join(encoded)
        self._counters["bytes_sent_snapshot"] += len(message)
        async with self._no_longer_than(self._settings.silence_ms_max * STALLS):
            await self._put(message)

    async def receive(self, patience_ms: int = 0) -> list[Frame]:
        """Frames of the next message that is no PING; `patience_ms` 0: `STALLS` silences.

        Raises: OSError, TimeoutError, CodecError; SnapshotRefused, if that is what the peer says.
        """
        silence_ms = self._settings.silence_ms_max
        async with self._no_longer_than(patience_ms or silence_ms * STALLS):
            while True:
                async with self._no_longer_than(silence_ms):
                    message = await self._take()
                self._counters["bytes_received_snapshot"] += len(message)
                frames = self._split(message)
                if any(kind == FrameKind.REFUSAL for kind, _ in frames):
                    raise SnapshotRefused(decode_refusal(frames[-1][1]).sentence)
                if any(kind != FrameKind.PING for kind, _ in frames):
                    return frames

    def _split(self, message: bytes) -> list[Frame]:
        frames = []
        for kind, payload in split_frames(message, self._settings.message_bytes_max, self._received + 1):
            self._received += 1
            frames.append((kind, bytes(payload)))
        return frames

    @asynccontextmanager
    async def pinging(self) -> AsyncIterator[None]:
        """Let the peer know that somebody is there, whatever this side waits for."""

        async def ping() -> None:
            try:
                while True:
                    await asyncio.sleep(self._settings.keepalive_ms / 1e3)
                    await self.send((FrameKind.PING, b""))
            except OSError:
                return  # whoever receives next is told

        task = asyncio.create_task(ping(), name=f"peer-{self.peer}-snapshot-ping")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})

    @asynccontextmanager
    async def _no_longer_than(self, limit_ms: int) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(limit_ms / 1e3):
                yield
        except TimeoutError as error:
            if error.args:  # of a wait inside this one, or the operating system's
                raise
            raise TimeoutError(f"no progress with member {self.peer} for {limit_ms} ms") from error


class Sending:
    """One snapshot on its way out."""

    def __init__(
        self, stream: Stream, source: Source, *, settings: PeerSection, pace: Pace, now_ms: Callable[[], int]
    ) -> None:
        self._stream = stream
        self._source = source
        self._settings = settings
        self._pace = pace
        self._now_ms = now_ms
        self._in_flight: deque[tuple[int, int]] = deque()  # of each message: the number after it, its bytes
        self._in_flight_bytes = 0

    async def run(self) -> None:
        """Returns when the receiver has taken it over. Raises: OSError, TimeoutError, CodecError, SnapshotRefused."""
        async with self._stream.pinging():
            self._check_fits("the header", self._source.header)
            await self._stream.send((FrameKind.OFFER, self._source.header))
            frames = await self._stream.receive()
            if frames == [(FrameKind.DONE, b"")]:
                return
            count = await self._send_blocks(_wanted(frames))
            while self._in_flight:
                await self._take_acknowledgement()
            await self._stream.send((FrameKind.END, _number(count)))
            frames = await self._stream.receive(FINISH_MS_MAX)
            if frames != [(FrameKind.DONE, b"")]:
                raise CodecError(f"frames {[kind for kind, _ in frames]} where DONE must be")

    async def _send_blocks(self, number: int) -> int:
        """All from `number` on. Returns how many blocks the snapshot has."""
        piece: list[bytes] = []
        size = 0
        while True:
            block = await self._block(number)
            added = 0 if block is None else HEAD_BYTES + _NUMBER_BYTES + len(block)
            if piece and (block is None or size >= PIECE_BYTES or size + added > self._settings.message_bytes_max):
                await self._send_piece(number - len(piece), piece, size)
                piece, size = [], 0
            if block is None:
                return number
            piece.append(block)
            size += added
            number += 1

    async def _block(self, number: int) -> bytes | None:
        async with asyncio.timeout(self._settings.silence_ms_max * STALLS / 1e3):
            block = await self._source.block(number)
        if block is not None:
            self._check_fits(f"block {number}", block)
        return block

    def _check_fits(self, what: str, data: bytes) -> None:
        most = self._settings.message_bytes_max - HEAD_BYTES - _NUMBER_BYTES
        if len(data) > most:
            raise SnapshotRefused(f"{what} has {len(data)} bytes; peer.message_bytes_max leaves room for {most}")

    async def _send_piece(self, first: int, blocks: Sequence[bytes], size: int) -> None:
        while self._in_flight and self._in_flight_bytes + size > WINDOW_BYTES:
            await self._take_acknowledgement()
        await asyncio.sleep(self._pace.delay_ms(size, self._now_ms()) / 1e3)
        frames = [(FrameKind.BLOCK, _number(first + at) + block) for at, block in enumerate(blocks)]
        await self._stream.send(*frames)
        self._in_flight.append((first + len(blocks), size))
        self._in_flight_bytes += size

    async def _take_acknowledgement(self) -> None:
        wanted = _wanted(await self._stream.receive())
        expected, size = self._in_flight.popleft()
        if wanted != expected:
            raise CodecError(f"block {wanted} is wanted where {expected} must be")
        self._in_flight_bytes -= size


def _wanted(frames: Sequence[Frame]) -> int:
    if [kind for kind, _ in frames] != [FrameKind.WANT]:
        raise CodecError(f"frames {[kind for kind, _ in frames]} where WANT must be")
    number, rest = _take_number(frames[0][1])
    if rest:
        raise CodecError(f"{len(rest)} bytes after a number")
    return number


class Incoming:
    """What comes in at one node: one snapshot at a time."""

    def __init__(self, sink: Callable[[], Sink | None]) -> None:
        self._sink = sink
        self._work: asyncio.Task[None] | None = None
        self._is_finishing = False

    async def serve(self, stream: Stream) -> bool:
        """One connection of a sender. True: it was taken over; False: refused, and the sender was told.

        Raises: OSError, TimeoutError, CodecError; Fatal, from the sink.
        """
        async with stream.pinging():
            try:
                await self._serve(stream)
            except SnapshotRefused as refused:
                await stream.send((FrameKind.REFUSAL, encode_refusal(Refusal(refused.code, refused.message))))
                return False
        return True

    async def _serve(self, stream: Stream) -> None:
        frames = await stream.receive()
        if [kind for kind, _ in frames] != [FrameKind.OFFER]:
            raise CodecError(f"frames {[kind for kind, _ in frames]} where OFFER must be")
        while (earlier := self._work) is not None:
            if self._is_finishing:
                raise SnapshotRefused("another snapshot is being taken over")
            earlier.cancel()
            await asyncio.wait({earlier})
        sink = self._sink()
        if sink is None:
            raise SnapshotRefused("this node takes no snapshot now")
        work = self._work = asyncio.create_task(self._take(stream, sink, frames[0][1]), name=f"snapshot-{stream.peer}")
        try:
            await asyncio.wait({work})
        finally:
            work.cancel()
            await asyncio.wait({work})
            if self._work is work:  # it had no time to begin
                self._work = None
        if work.cancelled():
            raise ConnectionAbortedError("another snapshot came instead")
        work.result()

    async def _take(self, stream: Stream, sink: Sink, header: bytes) -> None:
        try:
            number = await sink.begin(stream.peer, header)
            if number is None:
                await stream.send((FrameKind.DONE, b""))
                return
            await stream.send((FrameKind.WANT, _number(number)))
            while True:
                frames = await stream.receive()
                if frames == [(FrameKind.END, _number(number))]:
                    break
                blocks = _consecutive(frames, number)
                await sink.write(number, blocks)
                number += len(blocks)
                await stream.send((FrameKind.WANT, _number(number)))
            self._is_finishing = True
            await sink.finish()
            await stream.send((FrameKind.DONE, b""))
        finally:
            self._is_finishing = False
            self._work = None


def _consecutive(frames: Sequence[Frame], number: int) -> list[bytes]:
    """The blocks of one message, the first of which must have `number`."""
    blocks: list[bytes] = []
    for kind, payload in frames:
        if kind != FrameKind.BLOCK:
            raise CodecError(f"a frame of kind {kind} where block {number} must be")
        found, block = _take_number(payload)
        if found != number + len(blocks):
            raise CodecError(f"block {found} where {number + len(blocks)} must be")
        blocks.append(block)
    return blocks


def _number(number: int) -> bytes:
    return number.to_bytes(_NUMBER_BYTES, "big")


def _take_number(payload: bytes) -> tuple[int, bytes]:
    if len(payload) < _NUMBER_BYTES:
        raise CodecError(f"{len(payload)} bytes are no number of a block")
    return int.from_bytes(payload[:_NUMBER_BYTES], "big"), payload[_NUMBER_BYTES:]
