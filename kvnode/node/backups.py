"""Backups: the state of this node, everything in it that was committed before it was asked for, as a snapshot to read.

The node makes sure that it has applied what was committed (a read index), has that flushed, and pins the store: an
exact cut, read block by block while writes go on. A view that is pinned keeps LMDB from reusing the pages it shows, so
it is taken away from a reader that asks for nothing for `IDLE_MS`, or that is slower than `BYTES_PER_S_MIN` over all.
At most `BACKUPS_MAX` at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from kvnode.clocks.clock import Clock
from kvnode.errors import KvnodeError, NotReady, Overloaded, SnapshotRefused, Timeout
from kvnode.ids import Index, NodeId, Revision
from kvnode.kv.interface import Backup, Options
from kvnode.machine.machine import StateMachine
from kvnode.node.applier import Applier
from kvnode.node.own_events import OnEvent, tell_nobody
from kvnode.node.snapshot_sender import PinnedSnapshot
from kvnode.node.worker import Worker
from kvnode.observe.log import get_logger
from kvnode.raft.messages import Configuration

BACKUPS_MAX = 2
IDLE_MS = 60_000
GRACE_MS = 300_000
BYTES_PER_S_MIN = 64 << 10
"""After `GRACE_MS`: a gigabyte takes less than five hours, or is given up."""

RETRY_MS = 5_000

log = get_logger("backups")


class _OpenBackup(Backup):
    """The store as it was pinned, until it is closed, by whoever reads it or by the node."""

    def __init__(self, source: PinnedSnapshot, node: NodeId, clock: Clock, loop: asyncio.AbstractEventLoop) -> None:
        description = source.description
        self.index = Index(description.index)
        self.revision = Revision(description.revision)
        self.logical_bytes = description.logical_bytes
        self.header = source.header
        self._source = source
        self._node = node
        self._clock = clock
        self._loop = loop
        self._began_ms = self._asked_ms = clock.monotonic_ms()
        self._bytes = 0
        self._why_closed = ""
        self.on_closed: Callable[[], None] = lambda: None
        self._timer = loop.call_later(IDLE_MS / 1e3, self._look)

    async def block(self, number: int) -> bytes | None:
        if self._why_closed:
            raise ConnectionAbortedError(self._why_closed)
        now_ms = self._asked_ms = self._clock.monotonic_ms()
        seconds = (now_ms - self._began_ms - GRACE_MS) / 1e3
        if self._bytes < seconds * BYTES_PER_S_MIN:
            self.close("whoever reads the backup is too slow")
            raise ConnectionAbortedError(self._why_closed)
        block = await self._source.block(number)
        self._bytes += len(block or b"")
        return block

    def close(self, why: str = "the backup is closed") -> None:
        if self._why_closed:
            return
        self._why_closed = why
        self._timer.cancel()
        self._source.close()
        log.info("backup.ended", node=self._node, index=self.index, bytes=self._bytes, reason=why)
        self.on_closed()

    def _look(self) -> None:
        idle_ms = self._clock.monotonic_ms() - self._asked_ms
        if idle_ms >= IDLE_MS:
            self.close("nobody reads the backup")
        else:
            self._timer = self._loop.call_later((IDLE_MS - idle_ms) / 1e3, self._look)


class Backups:
    """Opens them, and takes them away when the state they show goes. Lives on the node's loop."""

    def __init__(
        self,
        *,
        node: NodeId,
        machine: StateMachine,
        applier: Applier,
        reach_read_index: Callable[[int, Options], Awaitable[object]],
        worker: Worker,
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
        cluster_id: int,
        initial: Configuration,
        on_event: OnEvent = tell_nobody,
    ) -> None:
        """`reach_read_index`: waits until what was committed is applied; takes the deadline. `initial`: see `Node`."""
        self._node = node
        self._machine = machine
        self._applier = applier
        self._reach_read_index = reach_read_index
        self._worker = worker
        self._loop = loop
        self._clock = clock
        self._cluster_id = cluster_id
        self._initial = initial
        self._open: set[_OpenBackup] = set()
        self._opening = 0
        self._stopped = False
        self._on_event = on_event

    async def open(self, options: Options) -> Backup:
        """See `Admin.backup`."""
        if len(self._open) + self._opening >= BACKUPS_MAX:
            raise Overloaded(f"{BACKUPS_MAX} backups are being read from this node", retry_after_ms=RETRY_MS)
        self._opening += 1
        try:
            return await self._begin(self._clock.monotonic_ms() + options.timeout_ms, options)
        finally:
            self._opening -= 1

    async def _begin(self, deadline_ms: int, options: Options) -> Backup:
        await self._reach_read_index(deadline_ms, options)
        index = self._machine.applied_index
        try:
            async with asyncio.timeout(max(0, deadline_ms - self._clock.monotonic_ms()) / 1e3):
                await self._applier.flushed_through(index)
        except TimeoutError as error:
            if isinstance(error, KvnodeError):
                raise
            raise Timeout("the store did not get what was applied within the deadline") from None
        try:
            source = await PinnedSnapshot.open(
                self._machine, self._worker, self._loop, cluster_id=self._cluster_id, initial=self._initial
            )
        except SnapshotRefused as error:
            raise NotReady(error.message) from error
        if self._stopped:
            source.close()
            raise NotReady("this node is stopping")
        assert source.index >= index, (source.index, index)
        backup = _OpenBackup(source, self._node, self._clock, self._loop)
        self._open.add(backup)
        backup.on_closed = lambda: self._open.discard(backup)
        log.info("backup.began", node=self._node, index=backup.index, revision=backup.revision)
        self._on_event("snapshot.taken", {"index": backup.index})
        return backup

    def break_off(self, why: str) -> None:
        """The store they read goes."""
        for backup in list(self._open):
            backup.close(why)

    def stop(self) -> None:
        """The node stops."""
        self._stopped = True
        self.break_off("the node is stopping")
