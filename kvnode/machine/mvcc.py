"""Versions: every version of every key, read as the union of the recent table and the backend.

A version never changes once written, so no lock and no copy is needed: a read opens a view of the backend,
looks into both, lets the recent table win and drops duplicates. A view never spans an await, so eviction (which
happens on the same loop) cannot come in between; long reads open a view for each slice (`scan`).

Floor look-ups compare the key they find with the key they sought: the row after a missing key is its
neighbour's (trap C8).

A point read costs one seek.
"""

from __future__ import annotations

from kvnode.kv.requests import KeyValue
from kvnode.machine import keycode
from kvnode.machine.backend import Backend
from kvnode.machine.recent import Recent
from kvnode.machine.rows import decode_revision, decode_version
from kvnode.machine.scan import Scan


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
        kv = self.floor(key, revision)
        return kv if kv is not None and kv.version else None

    def floor(self, key: bytes, revision: int) -> KeyValue | None:
        """The newest version at or below `revision`, which may be a tombstone; None if there is none."""
        kv = self._recent.at(key, revision)
        if kv is None:
            prefix = keycode.version_prefix(key)
            row = self._backend.seek(prefix + keycode.inverted(revision))
            if row is None or not row[0].startswith(prefix):
                return None
            kv = _checked(decode_version(row), key)
        return kv

    def revision_at(self, time: int, oldest: int, newest: int) -> int:
        """The newest revision from `oldest` to `newest` that was made at or before hybrid `time`; else `oldest` - 1.

        Revisions' times increase with them, so it is found by halving: a seek each time.
        """
        found = self._recent.revision_at(time)
        if found:
            return min(found, newest)
        below, above = oldest - 1, newest + 1  # made in time, or before all; made later
        with self._backend.read() as cursor:
            while above - below > 1:
                middle = (below + above) // 2
                row = cursor.seek(keycode.revision_row_key(middle, 0))
                if row is None or not row[0].startswith(keycode.REVISIONS):
                    above = middle  # in the recent table only, whose revisions are all later
                    continue
                revision, _, change = decode_revision(row)
                if change.time <= time:
                    below = revision
                else:
                    above = middle
        return below

    def scan(self, start: bytes, end: bytes, revision: int, *, descending: bool = False) -> Scan:
        """Keys of ``[start, end)`` that exist at `revision`, in byte order."""
        return Scan(self._backend, self._recent, start, end, revision, descending=descending)


def _checked(kv: KeyValue, key: bytes) -> KeyValue:
    assert kv.key == key, "two long keys share a digest of 192 bits, or a row is damaged"
    return kv
