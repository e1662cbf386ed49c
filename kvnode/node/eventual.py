"""Eventual: reads and writes of the always-writable keyspace on this node.

The core stages each write and shows it, here and to peers, once it is durable; this is where it becomes so: changes go
to the disk in batches, each one answered when the disk has it. Pages of peers are shown at once: they have them too.

Tombstones go once every configured member is known to have what they delete (VV6).
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Callable, Collection, Iterable

import msgspec

from kvnode.clocks.clock import Clock
from kvnode.clocks.hybrid import HybridClock, latest_at
from kvnode.clocks.version_vector import Dot, VersionVector
from kvnode.errors import Conflict, NotReady, Overloaded
from kvnode.gossip.anti_entropy import KeyspaceDelta
from kvnode.gossip.key_state import Context, KeyState
from kvnode.gossip.keyspace import Keyspace, Written
from kvnode.ids import NodeId
from kvnode.node.available_log import DurableRows
from kvnode.wire.limits import CodecError

ROOM_BYTES = 1 << 20
"""A change must find so much room at the disk beside itself: a key goes there with all its siblings."""

READERS_MAX = 1_000
"""Reads that wait for a write from elsewhere; further ones are refused."""

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(KeyspaceDelta)


class Eventual:
    """Lives on the node's loop."""

    def __init__(
        self,
        keyspace: Keyspace,
        rows: DurableRows,
        *,
        clock: Clock,
        clock_drift_ms: int,
        loop: asyncio.AbstractEventLoop,
        on_news: Callable[[], None],
    ) -> None:
        """`on_news`: this node shows something that others may lack."""
        self.keyspace = keyspace
        self._rows = rows
        self._clock = clock
        self._clock_drift_ms = clock_drift_ms
        self._hybrid = HybridClock()
        self._loop = loop
        self._on_news = on_news
        self._told = keyspace.digest()
        self._durable_mark = 0
        self._writers: deque[tuple[int, asyncio.Future[None]]] = deque()  # until the batch of that mark is durable
        self._readers: dict[asyncio.Future[None], Dot] = {}  # until a write from elsewhere is here
        self._known: dict[NodeId, VersionVector] = {}  # what each peer has
        self._is_closed = False
        self.writes = 0  # of clients, durable
        self.conflicts = 0  # changes that left a key with more than one value
        self.blind_refused = 0  # writes without context, of keys that hold too many values
        self._restore_time()
        self.keep()

    # ── writes ──────────────────────────────────────────────────────────────────────────────────────

    async def put(self, key: bytes, value: bytes, context: Context | None) -> Written:
        """Durable here on return. Raises: what `Keyspace.put` raises, Overloaded, NoSpace."""
        self._rows.check_room(len(key) + len(value) + ROOM_BYTES)
        try:
            written = self.keyspace.put(key, value, context=context, time=self._stamp())
        except Conflict:
            self.blind_refused += 1
            await self._durable(self.keep())  # its context covers writes that may be on their way to the disk
            raise
        self.conflicts += len(written.state.siblings) > 1
        await self._durable(self.keep())
        self.writes += 1
        return written

    async def delete(self, key: bytes, context: Context | None) -> Written:
        """Durable here on return, also what it found done. Raises: what `Keyspace.delete` raises, Overloaded."""
        self._rows.check_room(len(key) + ROOM_BYTES, grows=False)
        written = self.keyspace.delete(key, context=context, time=self._stamp())
        await self._durable(self.keep())
        self.writes += written.dot is not None
        return written

    async def _durable(self, mark: int) -> None:
        """Return once the batch of that mark is on the disk."""
        if mark > self._durable_mark:
            future: asyncio.Future[None] = self._loop.create_future()
            self._writers.append((mark, future))
            await future

    def _stamp(self) -> int:
        return self._hybrid.next(self._clock.wall_ms())

    def _restore_time(self) -> None:
        """Times go on above those given out here before a restart, wherever the wall clock stands now."""
        for _, state in self.keyspace.list(b"", None, sys.maxsize)[0]:
            for sibling in state.siblings:
                if sibling.dot.origin == self.keyspace.origin:
                    self._hybrid.observe(sibling.time)
                else:
                    self.observe((sibling.time,))

    def observe(self, times: Iterable[int]) -> None:
        """Hybrid times of values from elsewhere: later writes here get greater ones, unless those are from tomorrow."""
        latest = latest_at(self._clock.wall_ms() + self._clock_drift_ms)
        for time in times:
            if time <= latest:
                self._hybrid.observe(time)

    def keep(self) -> int:
        """Hand what has changed to the disk. Returns the mark of the batch."""
        changes = self.keyspace.take_changes()
        if changes:
            self._rows.submit(changes.rows, changes.removed, lambda: self._kept(changes.mark))
        return changes.mark

    def _kept(self, mark: int) -> None:
        if self._is_closed:
            return
        self._durable_mark = mark
        self.keyspace.made_durable(mark)
        while self._writers and self._writers[0][0] <= mark:
            _wake(self._writers.popleft()[1])
        self._show()

    def _show(self) -> None:
        """Whoever waits for what is shown now, and others, are told."""
        digest = self.keyspace.digest()
        if digest == self._told:
            return
        self._told = digest
        for future, dot in self._readers.items():
            if self.keyspace.vector.covers(dot):
                _wake(future)
        self._on_news()

    def close(self, error: BaseException) -> None:
        """Nobody is answered any more, and nothing more goes to the disk."""
        self._is_closed = True
        for future in [*(future for _, future in self._writers), *self._readers]:
            if not future.done():
                future.set_exception(error)
        self._writers.clear()

    @property
    def readers(self) -> int:
        """Reads that wait for a write from elsewhere."""
        return len(self._readers)

    # ── reads ───────────────────────────────────────────────────────────────────────────────────────

    async def reach(self, dot: Dot, within_ms: int) -> None:
        """Return once this node shows a write that the caller has seen elsewhere. Raises: NotReady, Overloaded."""
        if self.keyspace.vector.covers(dot):
            return
        if len(self._readers) >= READERS_MAX:
            raise Overloaded("too many reads wait for writes that other nodes took")
        future: asyncio.Future[None] = self._loop.create_future()
        self._readers[future] = dot
        try:
            async with asyncio.timeout(within_ms / 1e3):
                await future
        except TimeoutError:
            raise NotReady(
                f"this node does not have write {dot.n} of member {dot.origin.member} yet, which the token names"
            ) from None
        finally:
            self._readers.pop(future, None)

    # ── pages ───────────────────────────────────────────────────────────────────────────────────────

    def page(self, since: VersionVector, after: bytes, bytes_max: int) -> tuple[bytes, bool]:
        """What somebody lacks, encoded, and whether there is more."""
        delta = self.keyspace.delta(since, bytes_max, after)
        return _encoder.encode(delta), delta.more

    def merge(self, data: bytes) -> int:
        """A page of a peer's: in memory at once, and on its way to the disk. Returns how many keys changed.

        Raises: CodecError, NoSpace, Overloaded: nothing is taken then. IdentityRefused: this store is an old copy.
        """
        self._rows.check_room(2 * len(data) + ROOM_BYTES)
        try:
            changed = self.keyspace.merge(_decoder.decode(data))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as error:
            raise CodecError(f"a page of the keyspace: {error}") from error
        for key in changed:
            state = self.keyspace.read(key)
            if state is not None:
                self.conflicts += len(state.siblings) > 1
                self.observe(sibling.time for sibling in state.siblings)
        self.keep()
        self._show()
        return len(changed)

    def list(self, prefix: bytes, after: bytes | None, limit: int) -> tuple[list[tuple[bytes, KeyState]], bool]:
        """Keys that have a value, in byte order, and whether there are more."""
        return self.keyspace.list(prefix, after, limit)

    # ── tombstones ──────────────────────────────────────────────────────────────────────────────────

    def learn(self, peer: NodeId, vector: VersionVector) -> None:
        """`peer` says that it has everything up to `vector`."""
        self._known[peer] = vector

    def forget(self, node: NodeId, members: Collection[NodeId]) -> int:
        """Drop tombstones that every member has, and what is known of those that are none any more."""
        self._known = {peer: vector for peer, vector in self._known.items() if peer in members}
        everywhere = self.keyspace.vector
        for member in members:
            if member == node:
                continue
            known = self._known.get(member)
            if known is None:
                return 0
            everywhere = everywhere.meet(known)
        forgotten = self.keyspace.forget(everywhere)
        if forgotten:
            self.keep()
        return forgotten


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
