"""A source and a sink of snapshots, and a pair of streams between them that can be broken anywhere."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from kvnode.config import PeerSection
from kvnode.errors import SnapshotRefused
from kvnode.ids import NodeId
from kvnode.transport.snapshots import COUNTERS, Stream

HEADER = b"header of a snapshot"


class BlockSource:
    """`count` blocks of `size` bytes."""

    def __init__(self, count: int, size: int = 10_000, header: bytes = HEADER) -> None:
        self.header = header
        self.blocks = [number.to_bytes(4, "big") * (size // 4) for number in range(count)]
        self.asked: list[int] = []

    async def block(self, number: int) -> bytes | None:
        self.asked.append(number)
        await asyncio.sleep(0)
        return self.blocks[number] if number < len(self.blocks) else None


class KeepingSink:
    """Keeps what is written, across connections, as a store would; `before_write` may delay, raise, or look."""

    def __init__(self) -> None:
        self.header = b""
        self.blocks: list[bytes] = []
        self.begun: list[tuple[int, int]] = []  # peer, and the block asked of it
        self.writes: list[int] = []  # blocks of each
        self.finished = 0
        self.before_write: Callable[[], Awaitable[None]] | None = None
        self.before_finish: Callable[[], Awaitable[None]] | None = None
        self.refuses = ""

    async def begin(self, peer: NodeId, header: bytes) -> int:
        if self.refuses:
            raise SnapshotRefused(self.refuses)
        if header != self.header:
            self.header, self.blocks = header, []
        self.begun.append((peer, len(self.blocks)))
        return len(self.blocks)

    async def write(self, number: int, blocks: Sequence[bytes]) -> None:
        assert number == len(self.blocks)
        if self.before_write is not None:
            await self.before_write()
        for at, block in enumerate(blocks, start=number):
            if block != at.to_bytes(4, "big") * (len(block) // 4):
                raise SnapshotRefused(f"block {at} is damaged")
        self.blocks += blocks
        self.writes.append(len(blocks))

    async def finish(self) -> None:
        if self.before_finish is not None:
            await self.before_finish()
        self.finished += 1


class Wire:
    """Messages from one side to the other; None: the connection has ended."""

    def __init__(self, change: Callable[[int, bytes], bytes | None]) -> None:
        self.queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.carried = 0
        self._change = change  # of the n-th message, from 1: what arrives; None: the connection breaks

    async def put(self, message: bytes) -> None:
        self.carried += 1
        await asyncio.sleep(0.000_1)
        self.queue.put_nowait(self._change(self.carried, message))

    async def take(self) -> bytes:
        message = await self.queue.get()
        if message is None:
            self.queue.put_nowait(None)
            raise ConnectionResetError("broken")
        return message


def streams(
    settings: PeerSection,
    change: Callable[[int, bytes], bytes | None] = lambda _, message: message,
    change_back: Callable[[int, bytes], bytes | None] = lambda _, message: message,
) -> tuple[Stream, Stream, dict[str, int]]:
    """The sender's end, the receiver's end, and what both count."""
    there, back = Wire(change), Wire(change_back)
    counters = dict.fromkeys(COUNTERS, 0)
    return (
        Stream(NodeId(2), put=there.put, take=back.take, settings=settings, counters=counters),
        Stream(NodeId(1), put=back.put, take=there.take, settings=settings, counters=counters),
        counters,
    )


def limits(**changes: object) -> PeerSection:
    return msgspec.structs.replace(PeerSection(), **changes)
