"""LmdbBackend: the store on disk. One tree, one environment per process, every commit synced.

How it is opened, and why:

- Default sync, never ``sync=False`` or ``writemap``: LMDB without sync can lose a data page and keep the applied
  index that lies about it. Commits are few, large and off the loop, so safety is affordable.
- The 0.9 engine (``lib_version=0``), whatever the environment says; its name stands in a row of its own
  and a store of another engine or format is refused.
- The map is address space, not memory; it never grows, because growing invalidates every open view.
- Rows arrive sorted. Those beyond the last row (the revisions, which only grow) are appended, which fills
  pages to the brim instead of half.

Read views belong to the event loop and end before it does anything else: an open one stops LMDB from reusing
pages. A pinned view belongs to a thread of its own and may outlive `close`, as when a snapshot takes the store's place
while this one is still sent or saved: the environment closes with the last of them, for closing it under a reader ends
the process. Write transactions belong to the thread that began them: the flusher's. A commit that fails leaves the
environment unusable for writing: the process ends, the log holds everything.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lmdb

from kvnode.errors import StorageFailed
from kvnode.machine.backend import Backend, Batch, Cursor, PinnedView, Row

ENGINE_KEY = b"\x00engine"
ENGINE = b"lmdb-0.9 format-1"
FIRST_ROW = b"\x01"
"""Everything below is the backend's own."""

_READERS_MAX = 512
_KEY_BYTES_NEEDED = 511


class LmdbBackend(Backend):
    """An ordered map in an LMDB environment at directory `path`."""

    def __init__(self, path: str, *, map_bytes: int) -> None:
        """Opens or creates. Raises: StorageFailed."""
        self._lock = threading.Lock()  # guards the two below: views are closed in threads of their own
        self._pinned = 0
        self._is_closed = False
        try:
            self._env = _open(path, map_bytes)
            self._env.reader_check()  # slots of processes that died while reading pin pages
            self._check_engine()
            _sync_directories(path)
        except (lmdb.Error, OSError) as error:
            raise StorageFailed(f"cannot open the store at {path}: {error}") from error

    def _check_engine(self) -> None:
        """Raises: StorageFailed unless this engine wrote the store, or it is empty."""
        row = self.seek(b"\x00")
        if row is None:
            self._write([(ENGINE_KEY, ENGINE)])
        elif row != (ENGINE_KEY, ENGINE):
            self._env.close()
            raise StorageFailed(f"the store was written by {row!r}; this program reads {ENGINE.decode()}")

    def seek(self, key: bytes) -> Row | None:
        view = self._env.begin()
        try:
            cursor = view.cursor()
            row: Row | None = cursor.item() if cursor.set_range(key) else None
        finally:
            view.abort()  # what `with` would do; this is asked for with every put and get
        return row

    @contextmanager
    def read(self) -> Iterator[Cursor]:
        with self._env.begin() as view:
            yield _LmdbCursor(view.cursor())

    def pin(self) -> PinnedView:
        with self._lock:
            if self._is_closed:
                raise StorageFailed("the store cannot be read for a snapshot: it is closed")
            try:
                view = self._env.begin()
            except lmdb.Error as error:  # no reader slot is free
                raise StorageFailed(f"the store cannot be read for a snapshot: {error}") from error
            self._pinned += 1
        return _LmdbPinnedView(view, self._unpin)

    def _unpin(self) -> None:
        with self._lock:
            self._pinned -= 1
            if self._is_closed and not self._pinned:
                self._env.close()

    def commit(self, batch: Batch) -> None:
        rows, removed = batch.rows(), batch.removed()
        try:
            self._write(rows, removed)
        except lmdb.Error as error:  # a full map, a full or failing disk
            raise StorageFailed(f"a commit to the store failed: {error}") from error

    def _write(self, rows: Sequence[Row], removed: Sequence[bytes] = ()) -> None:
        with self._env.begin(write=True) as write:
            cursor = write.cursor()
            last: bytes = cursor.key() if cursor.last() else b""
            inside = _count_up_to(rows, last)
            cursor.putmulti(rows[:inside])
            cursor.putmulti(rows[inside:], append=True)
            for key in removed:
                write.delete(key)

    @property
    def bytes_used(self) -> int:
        """Bytes of pages in use or free for reuse: the size of the data file."""
        pages: int = self._env.info()["last_pgno"] + 1
        page_bytes: int = self._env.stat()["psize"]
        return pages * page_bytes

    def close(self) -> None:
        """After the flusher has ended. Idempotent. The files are given up once no view is pinned any more."""
        with self._lock:
            self._is_closed = True
            if not self._pinned:
                self._env.close()


class _LmdbCursor(Cursor):
    def __init__(self, cursor: Any) -> None:
        self._cursor = cursor

    def seek(self, key: bytes) -> Row | None:
        return self._cursor.item() if self._cursor.set_range(key) else None

    def seek_before(self, key: bytes) -> Row | None:
        moved = self._cursor.prev() if self._cursor.set_range(key) else self._cursor.last()
        return self._cursor.item() if moved else None

    def next(self) -> Row | None:
        return self._cursor.item() if self._cursor.next() else None


class _LmdbPinnedView(PinnedView):
    """A read transaction. The binding opens every environment with MDB_NOTLS, so it may move to another thread."""

    def __init__(self, view: Any, on_closed: Callable[[], None]) -> None:
        self._view = view
        self._cursor = view.cursor()
        self._on_closed = on_closed
        self._is_closed = False

    def rows(self, after: bytes, bytes_max: int) -> list[Row]:
        cursor = self._cursor
        found: list[Row] = []
        left = bytes_max
        try:
            is_there = cursor.set_range(max(after, FIRST_ROW))
            if is_there and cursor.key() == after:
                is_there = cursor.next()
            while is_there:
                row: Row = cursor.item()
                left -= len(row[0]) + len(row[1])
                if left < 0 and found:
                    break
                found.append(row)
                is_there = cursor.next()
        except lmdb.Error as error:
            raise StorageFailed(f"reading the store for a snapshot failed: {error}") from error
        return found

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._cursor.close()
        self._view.abort()
        self._on_closed()


def _open(path: str, map_bytes: int) -> Any:
    os.makedirs(path, mode=0o700, exist_ok=True)
    env = lmdb.open(
        path,
        map_size=map_bytes,
        mode=0o600,
        max_readers=_READERS_MAX,
        readahead=False,
        max_spare_txns=1,
        lib_version=0,
    )
    if env.max_key_size() < _KEY_BYTES_NEEDED:
        env.close()
        raise StorageFailed(f"this LMDB build takes keys of {env.max_key_size()} bytes, not {_KEY_BYTES_NEEDED}")
    return env


def _sync_directories(path: str) -> None:
    """Make the names of the data file and its directory durable: LMDB syncs contents only."""
    for directory in (path, os.path.dirname(os.path.abspath(path))):
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _count_up_to(rows: Sequence[Row], last: bytes) -> int:
    """How many of the ascending rows do not lie beyond `last`. The ones that do are many and at the end."""
    low, high = 0, len(rows)
    while low < high:
        middle = (low + high) // 2
        if rows[middle][0] <= last:
            low = middle + 1
        else:
            high = middle
    return low
