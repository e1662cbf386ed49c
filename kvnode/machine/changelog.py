"""Changelog: what happened, revision by revision, read back from the store in slices.

Recent revisions are in the recent table, in the order they were made; all others have a row each in the backend, which
names the key and the kind of change, so what nobody asked for costs one row and no look-up. Values are the versions
of those revisions. As in a scan nothing is held between slices but a position: what has moved from the recent table
to the backend in between is found there.

A revision at or above the compacted one can be read, a deletion at it included; of what it replaced nothing may be
left, so that is told from the next revision on.
"""

from __future__ import annotations

import msgspec

from kvnode.errors import Compacted
from kvnode.kv import keys
from kvnode.kv.events import Event
from kvnode.kv.requests import KeyValue
from kvnode.machine import keycode
from kvnode.machine.backend import Backend
from kvnode.machine.mvcc import Versions
from kvnode.machine.pace import STEP_BYTES, Pace
from kvnode.machine.recent import Recent
from kvnode.machine.rows import ChangeKind, decode_revision

EVENTS_MAX = 256
"""A page ends with the revision in which it has reached so many events."""

BYTES_MAX = 256 << 10
"""… or so many bytes of keys and values."""

CHANGES_MAX = 16_384
"""… or has looked at so many changes, of which few may have matched."""


class ChangesAsked(msgspec.Struct, frozen=True):
    """Which changes: those of keys in ``[start, end)`` (see `kvnode.kv.keys`) from a revision to another, inclusive."""

    start: bytes
    end: bytes
    first: int
    last: int
    puts: bool = True
    deletes: bool = True
    previous: bool = False


class ChangesFound(msgspec.Struct, frozen=True):
    """One page. Everything asked for below `next` is in it; that is `last` + 1 after the last page."""

    events: tuple[Event, ...]
    next: int


class Page:
    """How far a page has come: everything before change `number` of `revision` is in it."""

    def __init__(self, first: int) -> None:
        self.revision = first
        self.number = 0
        self.events: list[Event] = []
        self.previous_bytes = 0  # of this revision
        self._bytes = 0
        self._looked_at = 0

    def move(self, revision: int) -> bool:
        """The next change is of this revision; whether the page ends before it."""
        if revision > self.revision:
            self._looked_at += self.number
            is_full = len(self.events) >= EVENTS_MAX or self._bytes >= BYTES_MAX or self._looked_at >= CHANGES_MAX
            self.revision, self.number, self.previous_bytes = revision, 0, 0
            return is_full
        return False

    def found(self) -> ChangesFound:
        return ChangesFound(tuple(self.events), self.revision)

    def add(self, event: Event) -> None:
        self.events.append(event)
        self._bytes += len(event.kv.key) + len(event.kv.value)


class Changelog:
    """The revisions of one store, oldest first."""

    def __init__(self, backend: Backend, recent: Recent, versions: Versions, previous_bytes_max: int) -> None:
        """`previous_bytes_max`: of one revision; what is replaced beyond it is not told."""
        self._backend = backend
        self._recent = recent
        self._versions = versions
        self._previous_bytes_max = previous_bytes_max

    def slice(self, asked: ChangesAsked, page: Page, compact_revision: int, pace: Pace) -> bool:
        """Add to `page` until the pace is used up; whether it is finished. Raises: Compacted."""
        if page.revision < compact_revision:
            raise Compacted(
                f"the changes of revision {page.revision} lie below the compacted {compact_revision}",
                compact_revision=compact_revision,
            )
        if page.revision < self._recent.oldest_revision:
            if self._stored(asked, page, compact_revision, pace):
                return True
            if pace.left <= 0:
                return False
        for kv in self._recent.changes(page.revision, page.number):
            if kv.mod_revision > asked.last:
                break
            if page.move(kv.mod_revision):
                return True
            if pace.left <= 0:
                return False
            pace.left -= 1
            page.number += 1
            if _wants(asked, kv.key, bool(kv.version)):
                page.add(self._event(asked, kv, page, compact_revision, pace))
        page.revision = asked.last + 1
        return True

    def _stored(self, asked: ChangesAsked, page: Page, compact_revision: int, pace: Pace) -> bool:
        """The backend's part of a slice: whether the page is full."""
        with self._backend.read() as cursor:
            row = cursor.seek(keycode.revision_row_key(page.revision, page.number))
            while row is not None and row[0] < keycode.REVISIONS_END:
                revision, number, change = decode_revision(row)
                if revision > asked.last:
                    page.revision = asked.last + 1
                    return True
                if page.move(revision):
                    return True
                if pace.left <= 0:
                    return False
                pace.left -= 1
                page.number = number + 1
                is_put = change.kind == ChangeKind.PUT
                if _wants(asked, change.key, is_put):
                    kv: KeyValue | None = KeyValue(change.key, b"", 0, revision, 0, 0, change.time)
                    if is_put:
                        kv = self._versions.floor(change.key, revision)
                        assert kv is not None, (change.key, revision)
                        assert kv.mod_revision == revision, (kv.mod_revision, revision)
                    assert kv is not None
                    page.add(self._event(asked, kv, page, compact_revision, pace))
                row = cursor.next()
        return False

    def _event(self, asked: ChangesAsked, kv: KeyValue, page: Page, compact_revision: int, pace: Pace) -> Event:
        pace.left -= len(kv.value) // STEP_BYTES
        before: KeyValue | None = None
        may_be_told = kv.mod_revision > compact_revision and page.previous_bytes <= self._previous_bytes_max
        if asked.previous and kv.version != 1 and may_be_told:
            before = self._versions.at(kv.key, kv.mod_revision - 1)
        if before is not None:
            pace.left -= 1 + len(before.value) // STEP_BYTES
            page.previous_bytes += len(before.key) + len(before.value)
        return Event(kv, before)


def _wants(asked: ChangesAsked, key: bytes, is_put: bool) -> bool:
    return (asked.puts if is_put else asked.deletes) and keys.contains(asked.start, asked.end, key)
