"""Scan: the keys of a range at one revision, read in slices; each slice looks at the store afresh.

Nothing is held between slices but a position, so no view of the backend outlives one. The revision is pinned:
versions at or below it never change, they only move from the recent table to the backend. So each slice sees the
same keys as every other, whatever was applied, flushed and evicted in between.

Every key visited is reported by the walks, even if it shows nothing at this revision (as a tombstone): that is what
lets a slice end anywhere. Versions of a key newer or older than the one wanted are jumped over.

Long keys of one stem (a *run*) are stored by digest, so their names are gathered before the first is shown. That
may take many slices, and a version may move from the recent table to the backend meanwhile: the names are taken
from the recent table first and from the backend second, so none can slip through between the two.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Generator, Iterator

from kvnode.kv import keys
from kvnode.kv.requests import KeyValue
from kvnode.machine import keycode
from kvnode.machine.backend import Backend, Cursor, Row
from kvnode.machine.pace import STEP_BYTES, Pace
from kvnode.machine.recent import Recent
from kvnode.machine.rows import decode_version


class _SliceOver(Exception):
    """The pace is used up while the names of a run are still being gathered."""


class Scan:
    """One walk over ``[start, end)`` at `revision`, in byte order or the reverse of it."""

    def __init__(
        self, backend: Backend, recent: Recent, start: bytes, end: bytes, revision: int, *, descending: bool
    ) -> None:
        self._backend = backend
        self._recent = recent
        self._start = start
        self._end = end
        self._revision = revision
        self._wanted = keycode.inverted(revision)
        self._descending = descending
        self._run: _Run | None = None
        self.done = False

    def slice(self, pace: Pace) -> Generator[KeyValue, None, None]:
        """The next keys that exist, until the pace is used up or the range is (`done`).

        Exhaust or close it before control returns to the loop: it holds a view of the backend open.
        """
        if not self._recent.index(pace):
            return
        shown: KeyValue | None = None
        try:
            with self._backend.read() as cursor:
                for shown in self._union(cursor, pace):
                    if shown.version:
                        yield shown
                    if pace.left <= 0:
                        break
                else:
                    self.done = True
        except _SliceOver:
            pass
        if shown is not None and not self.done:
            self._move_past(shown.key)

    def _move_past(self, key: bytes) -> None:
        if not self._descending:
            self._start = key + b"\x00"
        elif key == keys.TO_THE_END:
            self.done = True  # the least of all keys, and as a bound it would mean the opposite
        else:
            self._end = key

    def _union(self, cursor: Cursor, pace: Pace) -> Iterator[KeyValue]:
        """Merge two ordered walks, tombstones included; where both know a key the recent table wins."""
        descending, revision, at = self._descending, self._revision, self._recent.at
        stored = self._stored_descending(cursor, pace) if descending else self._stored_ascending(cursor, pace)
        below = next(stored, None)
        for key in self._recent.keys(self._start, self._end, descending):
            while below is not None and (below.key > key if descending else below.key < key):
                yield below
                below = next(stored, None)
            pace.left -= 1
            kv = at(key, revision)
            if below is not None and below.key == key:
                kv = kv or below
                below = next(stored, None)
            yield kv or _absent(key)
        while below is not None:
            yield below
            below = next(stored, None)

    # ── the backend's side ──────────────────────────────────────────────────────────────────────────

    def _stored_ascending(self, cursor: Cursor, pace: Pace) -> Iterator[KeyValue]:
        """Newest stored version at or below the revision of each key in the range, tombstones included."""
        low, high = keycode.range_bounds(self._start, self._end)
        wanted = self._wanted
        row = cursor.seek(low)
        while row is not None and row[0] < high:
            if keycode.is_long(row[0]):
                _, after = keycode.run_bounds(row[0])
                yield from self._long_keys(cursor, row[0], pace)
                row = cursor.seek(after)
                continue
            pace.left -= 1 + len(row[1]) // STEP_BYTES
            prefix = row[0][: -keycode.REVISION_BYTES]
            if row[0] < prefix + wanted:
                newer, row = row, cursor.seek(prefix + wanted)
                if row is None or not row[0].startswith(prefix):
                    yield _absent(keycode.short_user_key(newer[0]))  # nothing that old: `row` is another key's
                    continue
            yield decode_version(row)
            row = cursor.next()
            if row is not None and row[0].startswith(prefix):
                pace.left -= len(row[1]) // STEP_BYTES
                row = cursor.seek(prefix + keycode.AFTER_REVISIONS)

    def _stored_descending(self, cursor: Cursor, pace: Pace) -> Iterator[KeyValue]:
        """As `_stored_ascending`, last key first."""
        low, high = keycode.range_bounds(self._start, self._end)
        row = cursor.seek_before(high)
        while row is not None and row[0] >= low:
            if keycode.is_long(row[0]):
                before, _ = keycode.run_bounds(row[0])
                yield from self._long_keys(cursor, row[0], pace)
                row = cursor.seek_before(before)
                continue
            pace.left -= 1 + len(row[1]) // STEP_BYTES
            prefix = row[0][: -keycode.REVISION_BYTES]
            yield self._shown(cursor, prefix, keycode.short_user_key(row[0]), pace)
            row = cursor.seek_before(prefix)

    def _shown(self, cursor: Cursor, prefix: bytes, key: bytes, pace: Pace) -> KeyValue:
        row = cursor.seek(prefix + self._wanted)
        if row is None or not row[0].startswith(prefix):
            return _absent(key)
        pace.left -= len(row[1]) // STEP_BYTES
        return decode_version(row)

    def _long_keys(self, cursor: Cursor, row_key: bytes, pace: Pace) -> Iterator[KeyValue]:
        """The long keys of one stem that lie in what is left of the range."""
        low, after = keycode.run_bounds(row_key)
        if self._run is None or self._run.low != low:
            self._run = _Run(low, after)
        self._run.gather(self._recent, cursor, pace)
        for key in self._run.between(self._start, self._end, descending=self._descending):
            pace.left -= 1
            yield self._shown(cursor, keycode.version_prefix(key), key, pace)


class _Run:
    """The names of all long keys of one stem, in byte order once they are gathered."""

    def __init__(self, low: bytes, after: bytes) -> None:
        self.low = low
        self._after = after
        stem = keycode.run_stem(low)
        self._next_recent: bytes | None = stem  # None: the recent table has been read to the end
        self._stem_end = keys.prefix_end(stem)
        self._next_row: bytes | None = low
        self._names: set[bytes] = set()
        self._sorted: list[bytes] = []

    def gather(self, recent: Recent, cursor: Cursor, pace: Pace) -> None:
        """Go on gathering. Raises: _SliceOver when the pace is used up before the end."""
        if self._next_row is None:
            return
        if self._next_recent is not None:
            for key in recent.keys(self._next_recent, self._stem_end, False):
                if pace.left <= 0:
                    self._next_recent = key
                    raise _SliceOver
                pace.left -= 1
                if keycode.version_prefix(key).startswith(self.low):
                    self._names.add(key)
            self._next_recent = None
        row: Row | None = cursor.seek(self._next_row)
        while row is not None and row[0] < self._after:
            if pace.left <= 0:
                self._next_row = row[0]
                raise _SliceOver
            pace.left -= 1 + len(row[1]) // STEP_BYTES
            self._names.add(decode_version(row).key)
            row = cursor.seek(row[0][: -keycode.REVISION_BYTES] + keycode.AFTER_REVISIONS)
        self._next_row = None
        self._sorted = sorted(self._names)

    def between(self, start: bytes, end: bytes, *, descending: bool) -> Iterator[bytes]:
        first = bisect_left(self._sorted, start)
        last = len(self._sorted) if end == keys.TO_THE_END else bisect_left(self._sorted, end)
        positions = range(first, last)
        return (self._sorted[position] for position in (reversed(positions) if descending else positions))


def _absent(key: bytes) -> KeyValue:
    """Stands for a key that has no version at the revision asked for."""
    return KeyValue(key, b"", 0, 0, 0)
