"""Side rows: the rows of state that is kept in memory (leases, sessions …), and version rows that must go.

What has changed since the last cut waits here and leaves with the next one, in the same commit as the versions and
the applied index: every commit is an exact cut. The rows are frozen Structs, encoded in the thread that commits.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from kvnode.machine.backend import Backend, Row

ROW_BYTES = 200
"""A row's key with its slot, and a small struct, in memory (measured)."""


class SideRows:
    """Changed rows by key. What they take counts as recent: at that bound applying waits for the flush."""

    def __init__(self) -> None:
        self._changed: dict[bytes, msgspec.Struct | None] = {}
        self._leaving = 0  # of the cut that is outstanding

    @property
    def size_bytes(self) -> int:
        """About what they take in memory, those of the outstanding cut included."""
        return (len(self._changed) + self._leaving) * ROW_BYTES

    @property
    def is_empty(self) -> bool:
        return not self._changed

    def put(self, key: bytes, row: msgspec.Struct) -> None:
        self._changed[key] = row

    def remove(self, key: bytes) -> None:
        self._changed[key] = None

    def take(self) -> dict[bytes, msgspec.Struct | None]:
        """What has changed since the last call, for a cut."""
        changed, self._changed = self._changed, {}
        self._leaving = len(changed)
        return changed

    def evict(self) -> None:
        """What was taken is durable."""
        self._leaving = 0


def rows_of(backend: Backend, table: bytes) -> Iterator[Row]:
    """All stored rows whose key starts with `table`; for opening a store, before anything else runs."""
    with backend.read() as cursor:
        row = cursor.seek(table)
        while row is not None and row[0].startswith(table):
            yield row
            row = cursor.next()
