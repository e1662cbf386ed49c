"""Group commit for the available plane: rows that wait for the disk are joined, and whoever waits is told in order.

While one write is at the disk further rows gather; the next write takes all of them, a later row of a key in place of
an earlier one. What a caller's `on_durable` does (acknowledge, show to others) happens once its rows, and all submitted
before them, are durable: never earlier. A failed write is final: it is reported once, nothing is retried, and nobody
who waits is called.

What gathers is bounded by whoever asks `check_room` before changing anything in memory. What has changed is taken
whatever it weighs: refused then, it would be in memory for good and never on the disk.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from kvnode import perturb
from kvnode.clocks.clock import Clock
from kvnode.errors import NoSpace, NotReady, Overloaded, StorageFailed
from kvnode.machine.backend import Row
from kvnode.node.soft_limit import SoftLimit
from kvnode.node.worker import Worker
from kvnode.observe.metrics import Histogram

WAITING_BYTES_MAX = 16 << 20
RETRY_AFTER_MS = 100

_ROW_OVERHEAD_BYTES = 64
"""What a waiting row costs beside its bytes, about; so that many small ones are bounded, too."""


class RowStore(Protocol):
    """What the node asks of the store; called in the worker's thread, one call at a time."""

    def write(self, rows: Sequence[Row], removed: Sequence[bytes]) -> None:
        """All of it or none; durable on return. Raises: StorageFailed."""
        ...

    def close(self) -> None: ...


class _Submitted:
    """Rows that go to the disk together, and who waits for them."""

    __slots__ = ("rows", "size", "waiting")

    def __init__(self) -> None:
        self.rows: dict[bytes, bytes | None] = {}  # None: the row goes
        self.size = 0
        self.waiting: list[Callable[[], None]] = []


class DurableRows:
    """Joins rows into writes of one store and says when they are durable. Lives on the node's loop."""

    def __init__(
        self,
        worker: Worker,
        store: RowStore,
        on_failed: Callable[[BaseException], None],
        *,
        waiting_bytes_max: int = WAITING_BYTES_MAX,
        space: SoftLimit | None = None,
        clock: Clock | None = None,
    ) -> None:
        """`worker` is the store's own and is closed with it. `on_failed` is called once: the node must stop.

        `space`: of the disk; without it there is enough. `clock`: to measure with.
        """
        self._worker = worker
        self._store = store
        self._on_failed = on_failed
        self._waiting_bytes_max = waiting_bytes_max
        self._gathered: deque[_Submitted] = deque()  # one, unless a perturbation keeps them apart
        self._at_disk: _Submitted | None = None
        self._failed = self._closing = False
        self._space = space
        self._clock = clock
        self.write_seconds = Histogram()
        self.writes = 0  # that became durable
        self.submissions = 0  # of those

    @property
    def waiting_bytes(self) -> int:
        """What has gathered behind the write at the disk."""
        return sum(one.size for one in self._gathered)

    def check_room(self, size: int = 0, *, grows: bool = True) -> None:
        """Raises: Overloaded if rows of `size` bytes are too much now; anything fits where nothing waits. NoSpace.

        `grows`: nothing is deleted by it, so the disk must have space left.
        """
        if grows and self._space is not None and self._space.is_reached():
            raise NoSpace(self._space.alarm)
        waiting = self.waiting_bytes
        if waiting and waiting + size > self._waiting_bytes_max:
            raise Overloaded("too much waits for the store of the available plane", retry_after_ms=RETRY_AFTER_MS)

    def submit(self, rows: Sequence[Row], removed: Sequence[bytes], on_durable: Callable[[], None]) -> None:
        """Hand rows to the disk; `on_durable` follows on the loop, in the order of submission, never at once.

        A key is in one of the two only. Raises: NotReady once it is closed, StorageFailed once a write has failed.
        Nothing is taken then.
        """
        if self._closing:
            raise NotReady("the node is stopping")
        if self._failed:
            raise StorageFailed("the store of the available plane has failed")
        size = sum(len(key) + len(value) for key, value in rows) + sum(map(len, removed))
        size += _ROW_OVERHEAD_BYTES * (len(rows) + len(removed))
        if not self._gathered or perturb.at("batch-of-one"):
            self._gathered.append(_Submitted())
        last = self._gathered[-1]
        last.rows.update(rows)
        last.rows.update(dict.fromkeys(removed))
        last.size += size
        last.waiting.append(on_durable)
        if self._at_disk is None:
            self._write_next()

    async def close(self, *, abandon: bool = False) -> None:
        """Let what was submitted finish, or `abandon` what is not at the disk yet; then close the store."""
        self._closing = True
        if abandon:
            self._gathered.clear()
        while self._gathered and not self._failed:
            self._write_next()  # the worker runs jobs in order
        self._worker.submit(self._store.close, lambda _: None, self._fail)
        await self._worker.close()

    def _write_next(self) -> None:
        batch = self._gathered.popleft()
        self._at_disk = batch
        rows = [(key, value) for key, value in batch.rows.items() if value is not None]
        removed = [key for key, value in batch.rows.items() if value is None]
        store, began_ns = self._store, self._now_ns()
        self._worker.submit(lambda: store.write(rows, removed), lambda _: self._written(batch, began_ns), self._fail)

    def _now_ns(self) -> int:
        return self._clock.elapsed_ns() if self._clock is not None else 0

    def _written(self, batch: _Submitted, began_ns: int) -> None:
        if self._failed:
            return
        self.write_seconds.observe((self._now_ns() - began_ns) / 1e9)
        self.writes += 1
        self.submissions += len(batch.waiting)
        if self._at_disk is batch:  # not so while closing, when several were handed over at once
            self._at_disk = None
        if self._gathered and self._at_disk is None:  # the disk first: both go on at once
            self._write_next()
        for on_durable in batch.waiting:
            on_durable()

    def _fail(self, error: BaseException) -> None:
        if self._failed:
            return
        self._failed = True
        self._gathered.clear()
        self._on_failed(error)
