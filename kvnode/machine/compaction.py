"""Compaction: history below a floor is given up at once, its rows are removed little by little.

`Compact` moves the floor, the compact revision, when it is applied: from then on nobody, on any node, reads below it.
`Sweep` removes what nobody can read any more, going on where the last sweep ended. For each change that a revision
below the floor has made there go:

- the revision's row: what happened there cannot be asked;
- the version that the change superseded: the floor shows this one or a newer;
- the version itself if it is a deletion: the floor shows nothing, and without the row it shows the same.

What the floor shows stays, and what happened at or above it, a deletion at the floor itself included (etcd #19179).

A sweep must do the same on every node, and each flushes at moments of its own: a row that is removed may still be found
on one, since the cut that it leaves with is not committed, and be gone on another. So look-ups go through memory and
store, and a deletion found below a change is passed over as if nothing were found: its own revision has removed it.

A key cannot come back. When a deletion goes, every older version of its key goes with it or went before: each was
superseded there or below, and revisions are swept in order. Removals leave with the next cut, all in one commit, so a
store that has lost the deletion has lost what it hid. Floor and place stand in the meta row of that commit: neither
goes back in a crash, and the store's revision does not depend on any version's row (etcd #17780).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import msgspec

from kvnode.ids import Revision
from kvnode.kv.requests import Compact, CompactReply, KeyValue, Refusal, Sweep, SweepReply
from kvnode.machine import keycode
from kvnode.machine.backend import Backend, Cursor
from kvnode.machine.pace import Pace, Work
from kvnode.machine.recent import Recent
from kvnode.machine.rows import ChangeKind, Meta, decode_revision, decode_version, logical_bytes
from kvnode.machine.side_rows import SideRows

STEPS_A_CHANGE = 4
"""Reading a revision's row and one version, noting three rows."""


class Change(msgspec.Struct, frozen=True, gc=False):
    """What a revision's row tells."""

    revision: int
    number: int  # within the revision
    key: bytes
    is_deletion: bool


class Compaction:
    """The floor of one store, and how far it has been swept."""

    def __init__(self, backend: Backend, recent: Recent, side: SideRows, meta: Meta) -> None:
        self._backend = backend
        self._recent = recent
        self._side = side
        self.compact_revision = meta.compact_revision
        self.swept_revision = meta.swept_revision
        assert self.swept_revision <= self.compact_revision <= meta.revision, meta

    def compact(self, request: Compact, revision: Revision) -> CompactReply | Refusal:
        """Move the floor up; one that is higher already stays."""
        if request.revision > revision:
            words = f"revision {request.revision} lies above the store's {revision}"
            return Refusal("future_revision", words, revision)
        self.compact_revision = max(self.compact_revision, request.revision)
        return CompactReply(revision, self.compact_revision)

    def sweep(self, request: Sweep, revision: Revision, pace: Pace) -> Work[SweepReply]:
        """Remove what lies below the floor, of as many revisions as asked for."""
        end = min(request.before, self.compact_revision)
        first, number = self.swept_revision, 0  # place of the next change
        changes = versions = size = 0
        while True:
            with self._backend.read() as cursor:
                batch = self._changes(cursor, first, number, end, max(1, pace.left // STEPS_A_CHANGE))
                for change in batch:
                    if change.number == 0 and changes >= max(1, request.changes_max):
                        end = change.revision
                        break
                    for gone in self._remove(cursor, change):
                        versions += 1
                        size += logical_bytes(gone)
                    changes += 1
                    pace.left -= STEPS_A_CHANGE
                    first, number = change.revision, change.number + 1
            if not batch:
                break
            if pace.left <= 0:
                yield
        self.swept_revision = max(self.swept_revision, end)
        return SweepReply(revision, self.swept_revision, versions, size)

    def _remove(self, cursor: Cursor, change: Change) -> Iterator[KeyValue]:
        """The versions that go with a change, which are noted to be removed with the next cut."""
        key, revision, remove = change.key, change.revision, self._side.remove
        prefix = keycode.version_prefix(key)
        remove(keycode.revision_row_key(revision, change.number))
        superseded = self._recent.at(key, revision - 1)
        if superseded is None:
            row = cursor.seek(prefix + keycode.inverted(revision - 1))
            if row is not None and row[0].startswith(prefix):
                superseded = decode_version(row)
        if superseded is not None and superseded.version:
            remove(prefix + keycode.inverted(superseded.mod_revision))
            yield superseded
        if change.is_deletion:
            remove(prefix + keycode.inverted(revision))
            yield KeyValue(key, b"", 0, revision, 0)

    def _changes(self, cursor: Cursor, first: int, number: int, end: int, most: int) -> list[Change]:
        """The next changes below revision `end`, from the `number`-th of revision `first` on."""
        stored_end = min(end, self._recent.oldest_revision)
        found: list[Change] = []
        if first < stored_end:
            found = _stored_changes(cursor, keycode.revision_row_key(first, number), stored_end, most)
            if len(found) < most:
                first, number = stored_end, 0
        if len(found) < most:
            found += self._recent_changes(first, number, end, most - len(found))
        return found

    def _recent_changes(self, first: int, number: int, end: int, most: int) -> list[Change]:
        found: list[Change] = []
        revision, position = first, number - 1
        for kv in itertools.islice(self._recent.changes(first, number), most):
            if kv.mod_revision >= end:
                break
            revision, position = kv.mod_revision, position + 1 if kv.mod_revision == revision else 0
            found.append(Change(revision, position, kv.key, not kv.version))
        return found


def _stored_changes(cursor: Cursor, row_key: bytes, end: int, most: int) -> list[Change]:
    found: list[Change] = []
    row = cursor.seek(row_key)
    while row is not None and len(found) < most and row[0].startswith(keycode.REVISIONS):
        revision, number, made = decode_revision(row)
        if revision >= end:
            break
        found.append(Change(revision, number, made.key, made.kind == ChangeKind.DELETE))
        row = cursor.next()
    return found
