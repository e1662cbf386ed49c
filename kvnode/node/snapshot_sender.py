"""SnapshotSender: gives followers that need more than the log holds a consistent view of the store instead.

What is sent is the store as its last flush left it, an exact cut at its applied index. The view is pinned while it is
read, in a thread of its own, block by block as the transport asks for them: no stop, no copy, and writes go on. A view
that is pinned keeps LMDB from reusing the pages it shows, so the transport gives up a stream that makes no progress.

One stream a follower, `STREAMS_MAX` at a time; after a failure it is tried again after a pause that grows, or once the
follower connects anew: another life of it has nothing to do with why the last one failed.
Each `SendSnapshot` of the core is answered by one `SnapshotSent`, also when this node does not lead any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from kvnode.errors import SnapshotRefused
from kvnode.ids import Index, NodeId
from kvnode.machine.machine import StateMachine
from kvnode.machine.snapshot import SnapshotReader
from kvnode.node.own_events import OnEvent, tell_nobody
from kvnode.node.ports import Transport
from kvnode.node.worker import Worker, result_of
from kvnode.observe.log import get_logger
from kvnode.raft.core import Raft
from kvnode.raft.messages import Configuration, SnapshotSent
from kvnode.raft.output import SendSnapshot
from kvnode.wire.codec import encode_configuration

STREAMS_MAX = 2
RETRY_MS_MIN = 500
RETRY_MS_MAX = 30_000

NOTHING = Index(0)

log = get_logger("snapshots")


class PinnedSnapshot:
    """A `SnapshotSource`: the store as it was pinned, read in the worker's thread. To be closed."""

    def __init__(
        self,
        reader: SnapshotReader,
        worker: Worker,
        loop: asyncio.AbstractEventLoop,
        may_go_on: Callable[[], bool] = lambda: True,
    ) -> None:
        self._reader = reader
        self._worker = worker
        self._loop = loop
        self._may_go_on = may_go_on
        self.description = reader.description
        self.index = reader.description.index

    @classmethod
    async def open(
        cls,
        machine: StateMachine,
        worker: Worker,
        loop: asyncio.AbstractEventLoop,
        *,
        cluster_id: int,
        initial: Configuration,
        may_go_on: Callable[[], bool] = lambda: True,
    ) -> PinnedSnapshot:
        """Pin what is flushed now. Raises: SnapshotRefused when nothing ever was, StorageFailed."""
        backend, payload = machine.backend, encode_configuration(initial)

        def pin() -> SnapshotReader:
            view = backend.pin()
            try:
                return SnapshotReader(view, cluster_id=cluster_id, initial=payload)
            except BaseException:
                view.close()  # one that nobody has keeps the store from reusing its pages
                raise

        reader = await result_of(worker, loop, pin)
        return cls(reader, worker, loop, may_go_on)

    @property
    def header(self) -> bytes:
        return self._reader.header

    async def block(self, number: int) -> bytes | None:
        if not self._may_go_on():
            raise ConnectionAbortedError("this node does not lead any more")
        return await result_of(self._worker, self._loop, lambda: self._reader.block(number))

    def close(self) -> None:
        """Give the view back, once the block that may be under way has been read."""
        self._worker.submit(self._reader.close, lambda _: None, _report)


class SnapshotSender:
    """Carries out the core's `SendSnapshot`s. Lives on the node's loop."""

    def __init__(
        self,
        *,
        raft: Raft,
        machine: StateMachine,
        transport: Transport,
        worker: Worker,
        loop: asyncio.AbstractEventLoop,
        cluster_id: int,
        initial: Configuration,
        on_sent: Callable[[SnapshotSent], None],
        on_failed: Callable[[BaseException], None],
        on_event: OnEvent = tell_nobody,
    ) -> None:
        self._on_event = on_event
        self._raft = raft
        self._machine = machine
        self._transport = transport
        self._worker = worker
        self._loop = loop
        self._cluster_id = cluster_id
        self._initial = initial
        self._on_sent = on_sent
        self._on_failed = on_failed
        self._streams = asyncio.Semaphore(STREAMS_MAX)
        self._tasks: dict[NodeId, asyncio.Task[None]] = {}
        self._pinned: dict[NodeId, Index] = {}  # see `pinned_index`
        self._failures: dict[NodeId, int] = {}  # one after another
        self._returned: dict[NodeId, asyncio.Event] = {}  # of those for whom the pause goes on
        self._stopped = False
        self.sent = self.failed = 0

    def pinned_index(self, trimmed: Index) -> Index | None:
        """What the log must be kept from: for a snapshot on its way, and for who took one over and is not level yet.

        None: nothing. A follower whose next entry was trimmed (`trimmed`: the last that was) gets another snapshot.
        """
        progress = self._raft.progress if self._leads() else {}
        for peer, index in list(self._pinned.items()):
            if peer in self._tasks:
                continue
            found = progress.get(peer)
            if found is None or index < trimmed or found.match_index >= self._raft.commit_index:
                del self._pinned[peer]
            else:
                self._pinned[peer] = max(index, found.match_index)
        return min(self._pinned.values(), default=None)

    def send(self, wanted: SendSnapshot) -> None:
        """Begin, unless a stream to that follower is under way: how that one ends is the answer then."""
        if wanted.peer not in self._tasks and not self._stopped:
            task = self._loop.create_task(self._attempt(wanted.peer), name=f"snapshot-to-{wanted.peer}")
            self._tasks[wanted.peer] = task
            task.add_done_callback(lambda ended: self._on_ended(wanted.peer, ended))

    def on_connected(self, peer: NodeId) -> None:
        """Begin anew with it, at once."""
        self._failures.pop(peer, None)
        if peer in self._returned:
            self._returned[peer].set()

    def stop(self) -> None:
        """The node stops: break off, and begin nothing more, though the core may still ask until it leads no more."""
        self._stopped = True
        for task in self._tasks.values():
            task.cancel()

    async def _attempt(self, peer: NodeId) -> None:
        failures = self._failures.get(peer, 0)
        if failures:
            await self._rest(peer, min(RETRY_MS_MIN << min(failures - 1, 10), RETRY_MS_MAX))
        index = NOTHING
        async with self._streams:
            if self._leads():
                index = await self._stream(peer)
        if index:
            self._failures.pop(peer, None)
        else:
            self._failures[peer] = self._failures.get(peer, 0) + 1
        del self._tasks[peer]  # what the core asks for from here on is a new attempt
        self._on_sent(SnapshotSent(peer, index))

    async def _rest(self, peer: NodeId, limit_ms: int) -> None:
        self._returned[peer] = returned = asyncio.Event()
        try:
            async with asyncio.timeout(limit_ms / 1e3):
                await returned.wait()
        except TimeoutError:
            return
        finally:
            del self._returned[peer]

    async def _stream(self, peer: NodeId) -> Index:
        """Up to where the snapshot reached that `peer` has now; 0: it has none."""
        node = self._raft.node
        source: PinnedSnapshot | None = None
        try:
            source = await PinnedSnapshot.open(
                self._machine,
                self._worker,
                self._loop,
                cluster_id=self._cluster_id,
                initial=self._initial,
                may_go_on=self._leads,
            )
            index = source.index
            self._pinned[peer] = index
            log.info("snapshot.sending", node=node, peer=peer, index=index)
            self._on_event("snapshot.taken", {"index": index, "member": peer})
            await self._transport.send_snapshot(peer, source)
        except (OSError, SnapshotRefused) as error:
            self.failed += 1
            self._pinned.pop(peer, None)
            log.warning("snapshot.not_sent", node=node, peer=peer, reason=str(error) or type(error).__name__)
            return NOTHING
        finally:
            if source is not None:
                source.close()
        self.sent += 1
        log.info("snapshot.sent", node=node, peer=peer, index=index)
        self._on_event("snapshot.sent", {"index": index, "member": peer})
        return index

    def _leads(self) -> bool:
        return self._raft.role == "leader"

    def _on_ended(self, peer: NodeId, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            self._tasks.pop(peer, None)
        elif (error := task.exception()) is not None:
            self._on_failed(error)


def _report(error: BaseException) -> None:
    log.warning("snapshot.not_sent", reason=f"giving the view back failed: {error}")
