"""Versions: every version of every key, read as the union of the recent table and the backend.

A version never changes once written, so no lock and no copy is needed: a read opens a view of the backend,
looks into both, lets the recent table win and drops duplicates. Reads never wait and never span an await,
so eviction (which happens on the same loop) cannot come in between.

Floor look-ups compare the key they find with the key they sought: the row after a missing key is its
neighbour's (trap C8).

Bounds: a point read costs one seek. A range read walks at most the keys of its range; versions of a key
newer or older than the one wanted are jumped over, not walked. Long keys of one stem are collected and
sorted (names only) whenever a range touches their run.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator

from kvnode.kv import keys
from kvnode.kv.requests import KeyValue
from kvnode.machine import keycode
from kvnode.machine.backend import Backend, Cursor, Row
from kvnode.machine.recent import Recent
from kvnode.machine.rows import decode_version


class Versions:
    """What reading needs to know: the recent table and the backend, side by side."""

    def __init__(self, backend: Backend, recent: Recent) -> None:
        self._backend = backend
        self._recent = recent

    def current(self, key: bytes) -> KeyValue | None:
        """The newest version of a key, or None if it does not exist now."""
        kv = self._recent.newest(key)
        if kv is None:
            prefix = keycode.version_prefix(key)
            row = self._backend.seek(prefix)
            if row is None or not row[0].startswith(prefix):
                return None
            kv = _checked(decode_version(row), key)
        return kv if kv.version else None

    def at(self, key: bytes, revision: int) -> KeyValue | None:
        """The version of a key that `revision` shows, or None if it did not exist then."""
        kv = self._recent.at(key, revision)
        if kv is None:
            prefix = keycode.version_prefix(key)
            row = self._backend.seek(prefix + keycode.inverted(revision))
            if row is None or not row[0].startswith(prefix):
                return None
            kv = _checked(decode_version(row), key)
        return kv if kv.version else None

    def scan(
        self, start: bytes, end: bytes, revision: int, *, descending: bool = False
    ) -> Generator[KeyValue, None, None]:
        """Keys of ``[start, end)`` that exist at `revision`, in byte order. Exhaust or close it before any await."""
        with self._backend.read() as cursor:
            walk = _descending if descending else _ascending
            stored = walk(cursor, start, end, revision)
            for kv in self._union(stored, start, end, revision, descending):
                if kv.version:
                    yield kv

    def _union(
        self, stored: Iterator[KeyValue], start: bytes, end: bytes, revision: int, descending: bool
    ) -> Iterator[KeyValue]:
        """Merge two ordered walks, tombstones included; where both know a key the recent table wins."""
        below = next(stored, None)
        for key in self._recent.keys(start, end, descending):
            while below is not None and (below.key > key if descending else below.key < key):
                yield below
                below = next(stored, None)
            kv = self._recent.at(key, revision)
            if below is not None and below.key == key:
                kv = kv or below
                below = next(stored, None)
            if kv is not None:
                yield kv
        while below is not None:
            yield below
            below = next(stored, None)


def _checked(kv: KeyValue, key: bytes) -> KeyValue:
    assert kv.key == key, "two long keys share a digest of 192 bits, or a row is damaged"
    return kv


def _ascending(cursor: Cursor, start: bytes, end: bytes, revision: int) -> Iterator[KeyValue]:
    """Newest stored version at or below `revision` of each key in the range, tombstones included."""
    low, high = keycode.range_bounds(start, end)
    wanted = keycode.inverted(revision)
    row = cursor.seek(low)
    while row is not None and row[0] < high:
        if keycode.is_long(row[0]):
            _, after = keycode.run_bounds(row[0])
            yield from _run(cursor, row, start, end, revision, descending=False)
            row = cursor.seek(after)
            continue
        prefix = row[0][: -keycode.REVISION_BYTES]
        if row[0] < prefix + wanted:
            row = cursor.seek(prefix + wanted)
            if row is None or not row[0].startswith(prefix):
                continue  # nothing that old: `row` is another key's
        yield decode_version(row)
        row = cursor.next()
        if row is not None and row[0].startswith(prefix):
            row = cursor.seek(prefix + keycode.AFTER_REVISIONS)


def _descending(cursor: Cursor, start: bytes, end: bytes, revision: int) -> Iterator[KeyValue]:
    """As `_ascending`, last key first."""
    low, high = keycode.range_bounds(start, end)
    wanted = keycode.inverted(revision)
    row = cursor.seek_before(high)
    while row is not None and row[0] >= low:
        if keycode.is_long(row[0]):
            before, _ = keycode.run_bounds(row[0])
            row = cursor.seek(before)
            assert row is not None
            yield from _run(cursor, row, start, end, revision, descending=True)
            row = cursor.seek_before(before)
            continue
        prefix = row[0][: -keycode.REVISION_BYTES]
        found = cursor.seek(prefix + wanted)
        if found is not None and found[0].startswith(prefix):
            yield decode_version(found)
        row = cursor.seek_before(prefix)


def _run(
    cursor: Cursor, row: Row | None, start: bytes, end: bytes, revision: int, *, descending: bool
) -> Iterator[KeyValue]:
    """The long keys of one stem that lie in the range; `row` is the first of the run."""
    assert row is not None
    _, after = keycode.run_bounds(row[0])
    wanted = keycode.inverted(revision)
    found: list[tuple[bytes, bytes]] = []  # user key, key of the row that shows it
    while row is not None and row[0] < after:
        prefix = row[0][: -keycode.REVISION_BYTES]
        if row[0] < prefix + wanted:
            row = cursor.seek(prefix + wanted)
        if row is not None and row[0].startswith(prefix):
            key = decode_version(row).key
            if keys.contains(start, end, key):
                found.append((key, row[0]))
            row = cursor.seek(prefix + keycode.AFTER_REVISIONS)
    for _, row_key in sorted(found, reverse=descending):
        shown = cursor.seek(row_key)
        assert shown is not None
        yield decode_version(shown)
