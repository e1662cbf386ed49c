"""Group commit: writes that wait for the disk are joined, made durable by one fsync, then what waited leaves.

While one batch is at the disk further writes gather; the next batch takes all of them, bounded by
`batch_bytes_max`, and is not written before the previous one's fsync has returned. The hop to the log's thread
and back is paid once per batch.

A message that depends on a write is held here until that write is durable: the one place where "durable before
it leaves" is executed. A failed write is final: it is reported once, nothing is retried, nothing held leaves.

Source: Raft thesis §10.2.1; `kvnode.raft.output.Send.after`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from kvnode import perturb
from kvnode.clocks.clock import Clock
from kvnode.ids import NO_WRITE, Index, WriteNumber
from kvnode.node.ports import LogStore
from kvnode.node.worker import Worker
from kvnode.observe.metrics import Histogram
from kvnode.raft.messages import LogPosition, entry_bytes
from kvnode.raft.output import Persist, Send

MARK_AFTER_S = 0.1
"""Idle time after which one mark record proves that everything before it was durable."""

ENTRIES_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024)


class LogWriter:
    """Joins writes into batches and releases what waits for them. Lives on the node's loop."""

    def __init__(
        self,
        log: LogStore,
        worker: Worker,
        *,
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
        batch_bytes_max: int,
        switch_store: Callable[[], None],
        on_persisted: Callable[[WriteNumber], None],
        on_failed: Callable[[BaseException], None],
        send: Callable[[Send], None],
    ) -> None:
        """`switch_store` makes the snapshot that stands ready this node's store, durably; in the log's thread."""
        self._log = log
        self._switch_store = switch_store
        self._worker = worker
        self._loop = loop
        self._clock = clock
        self._batch_bytes_max = batch_bytes_max
        self._on_persisted = on_persisted
        self._on_failed = on_failed
        self._send = send
        self._gathered: deque[Persist] = deque()
        self._busy = False
        self._busy_since_ms = 0
        self._failed = self._closing = False
        self._durable = NO_WRITE
        self._held: dict[WriteNumber, list[Send]] = {}
        self._mark_timer: asyncio.TimerHandle | None = None
        self.fsync_seconds = Histogram()
        self.batch_entries = Histogram(ENTRIES_BUCKETS)

    def submit(self, write: Persist) -> None:
        """Hand one write to the disk; `on_persisted(number)` follows once it, and all before it, are durable."""
        self._gathered.append(write)
        if not self._busy:
            self._write_next()

    def send_when_durable(self, send: Send) -> None:
        """Send now if what the message depends on is durable, else hold it until it is."""
        if send.after <= self._durable:
            self._send(send)
        else:
            self._held.setdefault(send.after, []).append(send)

    def lift_quarantine(self, on_lifted: Callable[[], None]) -> None:
        """Make it durable that everything lost is there again; `on_lifted` follows."""
        self._worker.submit(self._log.lift_quarantine, lambda _: on_lifted(), self._fail)

    def in_flight_ms(self, now_ms: int) -> int:
        """How long the batch at the disk has been there; 0 if none is."""
        return now_ms - self._busy_since_ms if self._busy else 0

    async def close(self, *, abandon: bool = False) -> None:
        """Let what was submitted finish, or `abandon` what is not at the disk yet; then close the log."""
        self._closing = True
        if self._mark_timer is not None:
            self._mark_timer.cancel()
        if abandon:
            self._gathered.clear()
        while self._gathered and not self._failed:
            self._write_next()  # the worker runs jobs in order, so this one still waits for the batch at the disk
        self._worker.submit(self._log.close, lambda _: None, self._fail)
        await self._worker.close()

    def _write_next(self) -> None:
        if self._failed:
            return
        batch: list[Persist] = []
        entries = size = 0
        while self._gathered and (not batch or size < self._batch_bytes_max):
            write = self._gathered.popleft()
            size += sum(map(entry_bytes, write.entries))
            entries += len(write.entries)
            batch.append(write)
            if perturb.at("batch-of-one"):
                break
        self._busy = True
        self._busy_since_ms = self._clock.monotonic_ms()
        number, elapsed_ns = batch[-1].number, self._clock.elapsed_ns

        def job() -> float:
            started = elapsed_ns()
            self._write(batch)
            return (elapsed_ns() - started) / 1e9

        self.batch_entries.observe(entries)
        self._worker.submit(job, lambda seconds: self._written(number, seconds), self._fail)

    def _write(self, batch: list[Persist]) -> None:
        """In the log's thread. An install comes first within its own write, after all of the writes before it."""
        first = 0
        for position, write in enumerate(batch):
            install = write.install
            if install is None:
                continue
            if position > first:
                self._log.write(batch[first:position])
            first = position
            self._switch_store()  # the commit point: a start that finds the new store finishes what follows
            if not install.keeps_log:
                self._log.reset(install.position, install.time)
        self._log.write(batch[first:])

    def trim(self, applied_index: Index, bytes_kept: int, on_done: Callable[[LogPosition], None]) -> None:
        """Drop what the store has durably from the beginning of the log (`LogStore.trim`); `on_done` follows.

        Not behind `close`, to which the last flush may be reported late.
        """
        if self._closing or self._failed:
            return
        log = self._log
        self._worker.submit(lambda: log.trim(applied_index, bytes_kept), on_done, self._fail)

    def _written(self, number: WriteNumber, seconds: float) -> None:
        self._busy = False
        self.fsync_seconds.observe(seconds)
        if self._gathered:  # the disk first, then what this batch releases: both go on at once
            self._write_next()
        released = self._durable
        self._durable = number
        if self._held:
            for waited in range(released + 1, number + 1):
                for send in self._held.pop(WriteNumber(waited), ()):
                    self._send(send)
        self._on_persisted(number)
        if not self._busy and self._mark_timer is None and not self._closing:
            self._mark_timer = self._loop.call_later(MARK_AFTER_S, self._mark)

    def _mark(self) -> None:
        self._mark_timer = None
        if self._failed:
            return
        if self._busy:  # not idle: the next batch's records are the proof
            self._mark_timer = self._loop.call_later(MARK_AFTER_S, self._mark)
            return
        self._busy = True
        self._busy_since_ms = self._clock.monotonic_ms()
        self._worker.submit(self._log.mark, lambda _: self._marked(), self._fail)

    def _marked(self) -> None:
        self._busy = False
        if self._gathered:
            self._write_next()

    def _fail(self, error: BaseException) -> None:
        self._failed = True
        self._held.clear()
        self._on_failed(error)
