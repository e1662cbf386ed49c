"""Side rows: the rows of state that is kept in memory (leases, sessions …), and version rows that must go.

What has changed since the last cut waits here and leaves with the next one, in the same commit as the versions and
the applied index: every commit is an exact cut. The rows are frozen Structs, encoded in the thread that commits.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from kvnode.machine.backend import Backend, Row


class SideRows:
    """Changed rows by key. Bounded by what the tables behind it hold and by what one flush interval compacts."""

    def __init__(self) -> None:
        self._changed: dict[bytes, msgspec.Struct | None] = {}

    def put(self, key: bytes, row: msgspec.Struct) -> None:
        self._changed[key] = row

    def remove(self, key: bytes) -> None:
        self._changed[key] = None

    def take(self) -> dict[bytes, msgspec.Struct | None]:
        """What has changed since the last call."""
        changed, self._changed = self._changed, {}
        return changed


def rows_of(backend: Backend, table: bytes) -> Iterator[Row]:
    """All stored rows whose key starts with `table`; for opening a store, before anything else runs."""
    with backend.read() as cursor:
        row = cursor.seek(table)
        while row is not None and row[0].startswith(table):
            yield row
            row = cursor.next()
