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


class PinnedView(Protocol):
    """One consistent view that outlives a turn of the loop, for one other thread, which calls one method at a time.

    While it is open the engine cannot use again what later commits free: close it as soon as it has served.
    """

    def rows(self, after: bytes, bytes_max: int) -> list[Row]:
        """The next rows whose keys are greater than `after`, ascending; none at the end, else at least one.

        As many as fit, exactly: their keys and values together are at most `bytes_max`, unless it is a single row.
        Rows of the backend's own (below 0x01) are left out. Raises: StorageFailed.
        """
        ...

    def close(self) -> None:
        """Let go of it. Idempotent. May come after the backend's `close`, which then waits for it."""
        ...


class Backend(Protocol):
    """An ordered map with consistent views and one atomic, durable way to write."""

    def seek(self, key: bytes) -> Row | None:
        """First row at or after `key`, in a view of its own: the cheap form of `read` for a single look-up."""
        ...

    def read(self) -> AbstractContextManager[Cursor]:
        """A consistent view. Must be left before control returns to the event loop: an open view pins pages."""
        ...

    def pin(self) -> PinnedView:
        """What is committed now, to be read at leisure. May be called from any thread."""
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
