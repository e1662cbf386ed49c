"""SnapshotReceiver: takes a leader's snapshot in and puts it in the place of this node's state.

    begin, write …     blocks are kept aside, durably, as they come; a broken connection goes on where it ended
    finish             the whole is verified; a new store is built of it aside, and a state machine opened over that
    SnapshotReceived   the core decides, by term and index, like everything about the log
    Persist.install    in the log's thread, in its place among the writes: the store's pointer is switched (the commit
                       point), then the log begins anew after the snapshot. A crash in between is finished at the start
    Output.installed   the state in memory is exchanged, at once and on the loop

Until the switch the old store and the old log are untouched, so everything before it can be given up at any time. While
an install is under way no other snapshot is taken in; the leader tries again.

Source: Raft thesis §5; requirements LW1–LW3; crash points: reliability §5.8.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import msgspec

from kvnode.config import LimitsSection
from kvnode.errors import SnapshotRefused
from kvnode.ids import NodeId, Term
from kvnode.machine.backend import Backend
from kvnode.machine.machine import StateMachine
from kvnode.machine.snapshot import SnapshotHeader, describe
from kvnode.node.ports import SnapshotStore
from kvnode.node.worker import Worker, result_of
from kvnode.observe.log import get_logger
from kvnode.raft.core import Raft
from kvnode.raft.messages import Configuration, LogPosition, SnapshotReceived
from kvnode.wire.codec import decode_configuration
from kvnode.wire.limits import CodecError

log = get_logger("snapshots")


class _Ready(msgspec.Struct):
    """A snapshot that stands aside, whole and verified, until the core has decided."""

    position: LogPosition
    backend: Backend
    machine: StateMachine
    decided: asyncio.Future[None]
    is_accepted: bool = False


class SnapshotReceiver:
    """The node's `SnapshotSink`. Lives on the node's loop; one snapshot at a time."""

    def __init__(
        self,
        store: SnapshotStore,
        worker: Worker,
        *,
        raft: Raft,
        machine: StateMachine,
        limits: LimitsSection,
        loop: asyncio.AbstractEventLoop,
        cluster_id: int,
        on_received: Callable[[SnapshotReceived], None],
        on_failed: Callable[[BaseException], None],
    ) -> None:
        self._store = store
        self._worker = worker
        self._raft = raft
        self._machine = machine
        self._limits = limits
        self._loop = loop
        self._cluster_id = cluster_id
        self._on_received = on_received
        self._on_failed = on_failed
        self._peer = NodeId(0)
        self._term = Term(0)
        self._header: SnapshotHeader | None = None
        self._configuration = Configuration(())
        self._ready: _Ready | None = None
        self.received = self.refused = 0

    # ── the transport's side ────────────────────────────────────────────────────────────────────────

    async def begin(self, peer: NodeId, header: bytes) -> int | None:
        """The first block that is wanted; None: this node has everything the snapshot has.

        Raises: SnapshotRefused.
        """
        described = describe(header)
        if self._ready is not None:
            raise SnapshotRefused("another snapshot is being installed")
        if peer != self._raft.leader:
            raise SnapshotRefused(f"member {peer} is not the leader that this node follows")
        if described.cluster_id != self._cluster_id:
            raise SnapshotRefused(f"a snapshot of cluster {described.cluster_id:016x}, not {self._cluster_id:016x}")
        try:
            self._configuration = decode_configuration(described.configuration)
        except CodecError as error:
            raise SnapshotRefused(f"the snapshot's members cannot be read: {error}") from error
        if described.index <= self._raft.commit_index:
            return None
        if described.index < self._machine.applied_index:
            raise SnapshotRefused(
                f"the store here has applied entry {self._machine.applied_index}, and the snapshot ends before it"
            )
        self._peer, self._term, self._header = peer, self._raft.term, described
        first = await result_of(self._worker, self._loop, lambda: self._store.begin(header))
        log.info("snapshot.receiving", node=self._raft.node, peer=peer, index=described.index, block=first)
        return first

    async def write(self, number: int, blocks: Sequence[bytes]) -> None:
        """The next blocks; durable on return. Raises: SnapshotRefused."""
        await result_of(self._worker, self._loop, lambda: self._store.append(number, blocks))

    async def finish(self) -> None:
        """All blocks have come. Returns when the snapshot is installed, or is not needed. Raises: SnapshotRefused."""
        header, configuration = self._header, self._configuration
        assert header is not None, "begin comes first"
        if self._ready is not None:
            raise SnapshotRefused("another snapshot is being installed")
        try:
            backend = await result_of(self._worker, self._loop, self._store.prepare)
        except SnapshotRefused:
            self.refused += 1
            raise
        machine = await result_of(self._worker, self._loop, lambda: StateMachine(backend, self._limits))
        position = LogPosition(header.term, header.index)
        self._ready = ready = _Ready(position, backend, machine, self._loop.create_future())
        # A leader that was elected again meanwhile is as good as before: a large snapshot must not come anew for that.
        term = self._raft.term if self._peer == self._raft.leader else self._term
        self._on_received(
            SnapshotReceived(self._peer, term, position, header.time, configuration, header.configuration_index)
        )
        await asyncio.shield(ready.decided)

    # ── the core's side ─────────────────────────────────────────────────────────────────────────────

    def accepted(self) -> None:
        """The core installs it: the write is on its way."""
        assert self._ready is not None
        self._ready.is_accepted = True

    def ignored(self) -> None:
        """The core has no use for it."""
        ready, self._ready = self._ready, None
        assert ready is not None, "nothing stood ready"
        ready.backend.close()
        self._worker.submit(self._store.discard, lambda _: _finish(ready.decided), self._on_failed)

    def installed(self, position: LogPosition) -> Backend:
        """It is durable: the state machine becomes the new one. Returns the backend that it had."""
        ready, self._ready = self._ready, None
        assert ready is not None, position
        assert ready.position == position, (ready.position, position)
        old = self._machine.backend
        self._machine.take_over(ready.machine)
        self.received += 1
        _finish(ready.decided)
        return old

    def stop(self) -> None:
        """The node stops: who waits is told so."""
        if self._ready is not None and not self._ready.decided.done():
            self._ready.decided.set_exception(SnapshotRefused("the node is stopping"))


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
