"""Links: one TCP proxy in front of every node's peer listener, which treats each direction of each pair as it is told.

All nodes dial the address in `cluster.members`; here that is the proxy's, and the node listens elsewhere. Who dialled
is found in /proc: the node that has the other end of the connection open. Bytes are held, delayed, dropped, repeated,
changed or cut per *directed* link, whoever opened the connection. No privileges are needed. TCP bytes are what is
lost here, not packets: after `swallow` a connection is never whole again, so healing resets what has lost bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from kvnode.bench.load import Address
from scripts.faults.shapes import Link

_CHUNK = 65_536


@dataclass
class Treatment:
    """What happens to bytes on one directed link. The default lets them through."""

    delay_s: tuple[float, float] = (0.0, 0.0)  # drawn for each chunk; order is kept
    hold: bool = False  # nothing passes, nothing is lost; new connections open but stay silent
    swallow: bool = False  # bytes vanish
    corrupt: float = 0.0  # chance that a chunk has one bit flipped
    repeat: float = 0.0  # chance that a chunk arrives twice
    truncate: float = 0.0  # chance that a chunk loses its end

    @property
    def is_plain(self) -> bool:
        return self == Treatment()


@dataclass
class _Connection:
    """One dialled connection. `writers`: to the dialler, to the acceptor."""

    dialler: int
    acceptor: int
    writers: tuple[asyncio.StreamWriter, asyncio.StreamWriter]
    damaged: bool = False


@dataclass
class _Listener:
    address: Address
    target: Address
    server: asyncio.Server | None = None


@dataclass
class Proxies:
    """The links of one cluster. `pid_of` gives the pid of a running node, or 0."""

    pid_of: Callable[[int], int]
    rng: random.Random
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._treatments: dict[Link, Treatment] = {}
        self._listeners: dict[int, _Listener] = {}
        self._connections: list[_Connection] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()

    async def listen(self, node: int, address: Address, target: Address) -> None:
        """From here on `address` leads to `node`, which listens at `target`."""
        self._listeners[node] = _Listener(address, target)
        await self.open(node)

    async def open(self, node: int) -> None:
        listener = self._listeners[node]
        if listener.server is None:

            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await self._serve(node, reader, writer)

            listener.server = await asyncio.start_server(serve, *listener.address)

    def shut(self, node: int) -> None:
        """Refuse connections to `node`, as its own port does once its process is gone."""
        listener = self._listeners[node]
        if listener.server is not None:
            listener.server.close()
            listener.server = None

    # ── what is done to links ───────────────────────────────────────────────────────────────────────

    def treat(self, link: Link, treatment: Treatment) -> None:
        self._treatments[link] = treatment
        self._wake()

    def heal(self) -> None:
        """All links plain again; connections that have lost or changed bytes are reset."""
        self._treatments.clear()
        self.reset(lambda connection: connection.damaged)
        self._wake()

    def reset(self, chosen: Callable[[_Connection], bool] = lambda _: True) -> int:
        """Cut established connections with a TCP reset → how many."""
        victims = [connection for connection in self._connections if chosen(connection)]
        for connection in victims:
            for writer in connection.writers:
                _abort(writer)
        return len(victims)

    @property
    def open_connections(self) -> int:
        return len(self._connections)

    async def close(self) -> None:
        for node in self._listeners:
            self.shut(node)
        self.reset()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ── one connection ──────────────────────────────────────────────────────────────────────────────

    async def _serve(self, node: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with contextlib.suppress(OSError):
                await self._carry(node, reader, writer)
        finally:
            self._tasks.discard(task)
            _abort(writer)

    async def _carry(self, node: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        dialler = self._who(writer.get_extra_info("peername"))
        if dialler == 0:
            self.counts["of nobody"] += 1  # a look at the port, closed already
            return
        far_reader, far_writer = await asyncio.open_connection(*self._listeners[node].target)
        connection = _Connection(dialler, node, (writer, far_writer))
        self._connections.append(connection)
        self.counts["carried"] += 1
        pumps = [
            asyncio.create_task(self._pump(connection, (dialler, node), reader, far_writer)),
            asyncio.create_task(self._pump(connection, (node, dialler), far_reader, writer)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            self._connections.remove(connection)
            _abort(far_writer)

    async def _pump(
        self, connection: _Connection, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Bytes of one direction, until one end is gone. A held end is not passed on either: silence is silence."""
        while chunk := await reader.read(_CHUNK):
            while (treatment := self._treatments.get(link, _PLAIN)).hold:
                await self._changed.wait()
            low, high = treatment.delay_s
            if high > 0:
                await asyncio.sleep(self.rng.uniform(low, high))
            if treatment.is_plain:
                writer.write(chunk)
            else:
                for piece in self._treated(connection, treatment, chunk):
                    writer.write(piece)
            await writer.drain()
        while (treatment := self._treatments.get(link, _PLAIN)).hold or treatment.swallow:
            await self._changed.wait()

    def _treated(self, connection: _Connection, treatment: Treatment, chunk: bytes) -> list[bytes]:
        rng = self.rng
        if treatment.swallow:
            return self._damaged(connection, "swallowed", [])
        if rng.random() < treatment.corrupt:
            place = rng.randrange(len(chunk))
            changed = chunk[:place] + bytes([chunk[place] ^ (1 << rng.randrange(8))]) + chunk[place + 1 :]
            return self._damaged(connection, "corrupted", [changed])
        if rng.random() < treatment.repeat:
            return self._damaged(connection, "repeated", [chunk, chunk])
        if rng.random() < treatment.truncate:
            return self._damaged(connection, "truncated", [chunk[: rng.randrange(len(chunk))]])
        return [chunk]

    def _damaged(self, connection: _Connection, what: str, pieces: list[bytes]) -> list[bytes]:
        connection.damaged = True
        self.counts[what] += 1
        return pieces

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _who(self, address: Address) -> int:
        """The node whose process holds the socket bound to `address`; 0 if none does (any more)."""
        inode = socket_inode(address)
        if inode:
            for node in self._listeners:
                pid = self.pid_of(node)
                if pid and inode in socket_inodes(pid):
                    return node
        return 0


_PLAIN = Treatment()


def socket_inode(local: Address) -> str:
    """The inode of the IPv4 TCP socket bound to `local` in this network namespace; "" if there is none."""
    host, port = local[:2]
    wanted = f"{struct.unpack('=I', socket.inet_aton(host))[0]:08X}:{port:04X}"
    for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]:
        fields = line.split()
        if fields[1] == wanted and fields[9] != "0":
            return fields[9]
    return ""


def socket_inodes(pid: int) -> set[str]:
    """Inodes of all sockets that the process has open; none if it is gone."""
    found = set()
    with contextlib.suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                target = os.readlink(entry.path)
                if target.startswith("socket:["):
                    found.add(target[8:-1])
    return found


def _abort(writer: asyncio.StreamWriter) -> None:
    """Close with a reset, whatever is still under way."""
    if not writer.transport.is_closing():
        with contextlib.suppress(OSError):
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
