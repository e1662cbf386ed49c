"""Backend: what the state machine asks of a storage engine, stated by its user.

A backend is one ordered map from byte strings to byte strings, in byte order. Keys are 1 to
`KEY_BYTES_MAX` bytes long. Reading happens on the event loop and never waits for a commit; `commit` is
called from one other thread, one call at a time. A version's row is never changed into something else once written,
and goes only when nobody may read it any more: that is what lets a read be the union of a backend and the recent table.

`tests/backend_suite.py` holds every implementation to this page.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

Row = tuple[bytes, bytes]

KEY_BYTES_MAX = 511
"""Longest key of a row: LMDB's limit with its 4 KiB pages."""


class Batch(Protocol):
    """What one commit writes; `rows.Cut` is one."""

    def rows(self) -> Sequence[Row]:
        """Ascending by key, keys unique. Called once, in the thread that commits: encoding is part of its cost."""
        ...

    def removed(self) -> Sequence[bytes]:
        """Keys whose rows go, after `rows` are written (so one may be in both); those that have none do not matter."""
        ...


class Cursor(Protocol):
    """A position in one consistent view of the map. Each call returns the row moved to, None past either end."""

    def seek(self, key: bytes) -> Row | None:
        """First row at or after `key`."""
        ...

    def seek_before(self, key: bytes) -> Row | None:
        """Last row before `key`."""
        ...

    def next(self) -> Row | None:
        """The row after the current one; only after a call that returned a row."""
        ...


class Backend(Protocol):
    """An ordered map with consistent views and one atomic, durable way to write."""

    def seek(self, key: bytes) -> Row | None:
        """First row at or after `key`, in a view of its own: the cheap form of `read` for a single look-up."""
        ...

    def read(self) -> AbstractContextManager[Cursor]:
        """A consistent view. Must be left before control returns to the event loop: an open view pins pages."""
        ...

    def commit(self, batch: Batch) -> None:
        """Write and remove the batch's rows as a whole; visible to views opened afterwards, and durable on return.

        Until it returns nothing of it is promised: a power loss leaves all of it or none.
        Raises: StorageFailed; after it the backend must not be written any more.
        """
        ...

    @property
    def bytes_used(self) -> int:
        """Bytes the engine occupies on its medium."""
        ...

    def close(self) -> None: ...
