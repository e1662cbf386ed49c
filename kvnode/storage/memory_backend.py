"""MemoryBackend: a sorted dict behind the Backend protocol, for tests, the simulator and nodes without a store.

It keeps the contract of a disk as well: what is staged but not synced is gone after `lose_power`. A lock
makes each view consistent against the flush thread; views are short and synchronous, so it is held briefly.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from sortedcontainers import SortedDict

from kvnode.machine.backend import KEY_BYTES_MAX, Backend, Batch, Cursor, PinnedView, Row


class MemoryBackend(Backend):
    """An ordered map in memory."""

    def __init__(self) -> None:
        self._rows: SortedDict = SortedDict()
        self._undo: dict[bytes, bytes | None] = {}  # row before the staged, unsynced writes; None: absent
        self._bytes = 0  # of keys and values
        self._lock = threading.RLock()

    def seek(self, key: bytes) -> Row | None:
        with self._lock:
            return _MemoryCursor(self._rows).seek(key)

    @contextmanager
    def read(self) -> Iterator[Cursor]:
        with self._lock:
            yield _MemoryCursor(self._rows)

    def pin(self) -> PinnedView:
        with self._lock:
            return _MemoryPinnedView(dict(self._rows))

    def commit(self, batch: Batch) -> None:
        self.stage(batch)
        self.sync()

    def stage(self, batch: Batch) -> None:
        """The first half of a commit: visible, not yet durable."""
        rows, removed = batch.rows(), batch.removed()
        with self._lock:
            for key, value in rows:
                assert 0 < len(key) <= KEY_BYTES_MAX, len(key)
                before = self._rows.get(key)
                self._undo.setdefault(key, before)
                self._bytes += len(value) - len(before) if before is not None else len(key) + len(value)
            self._rows.update(rows)
            for key in removed:
                before = self._rows.pop(key, None)
                if before is not None:
                    self._undo.setdefault(key, before)
                    self._bytes -= len(key) + len(before)

    def sync(self) -> None:
        """The second half: what was staged survives `lose_power`."""
        with self._lock:
            self._undo.clear()

    def lose_power(self) -> None:
        """Forget what was staged since the last sync."""
        with self._lock:
            for key, before in self._undo.items():
                lost = self._rows.pop(key, None)
                if lost is not None:
                    self._bytes -= len(key) + len(lost)
                if before is not None:
                    self._rows[key] = before
                    self._bytes += len(key) + len(before)
            self._undo.clear()

    @property
    def bytes_used(self) -> int:
        return self._bytes

    def close(self) -> None:
        """Nothing to give back; the rows stay, so that a test can open a machine over them again."""


class _MemoryCursor(Cursor):
    def __init__(self, rows: SortedDict) -> None:
        self._rows = rows
        self._position = 0

    def seek(self, key: bytes) -> Row | None:
        return self._at(self._rows.bisect_left(key))

    def seek_before(self, key: bytes) -> Row | None:
        return self._at(self._rows.bisect_left(key) - 1)

    def next(self) -> Row | None:
        return self._at(self._position + 1)

    def _at(self, position: int) -> Row | None:
        self._position = position
        if not 0 <= position < len(self._rows):
            return None
        row: Row = self._rows.peekitem(position)
        return row


class _MemoryPinnedView(PinnedView):
    """A copy: a commit may come while it is open."""

    def __init__(self, rows: Mapping[bytes, bytes]) -> None:
        self._rows = SortedDict(rows)

    def rows(self, after: bytes, bytes_max: int) -> list[Row]:
        found: list[Row] = []
        left = bytes_max
        for key in self._rows.irange(after, inclusive=(False, True)):
            value = self._rows[key]
            left -= len(key) + len(value)
            if left < 0 and found:
                break
            found.append((key, value))
        return found

    def close(self) -> None:
        self._rows = SortedDict()
