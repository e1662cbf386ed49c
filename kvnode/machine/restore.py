"""Restore: the rows of a snapshot as the beginning of a new cluster, which never repeats what the old one gave out.

What happened after the snapshot is lost, but clients remember it: revisions they have read, tokens and ids they hold.
So the new cluster begins far above: revision and index are moved up by more than the old one can have made meanwhile.

    revisions        up to the new one they are compacted: watches and reads that knew a lost revision are told so. The
                     new revision itself shows what the snapshot's newest showed, from the snapshot's time on
    ids, tokens      sessions and leases are named by indexes, tokens are revisions: none is given a second time
    leases           as they were, each with its whole TTL from the first leader on: nobody has timed them meanwhile
    sessions, names  as they were: a write that the snapshot has is answered, one that it has not is executed
    members          the configuration given

History is not removed here: the leader sweeps what lies below the floor, as ever.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from kvnode.errors import BadRequest
from kvnode.ids import Index, Revision
from kvnode.machine import keycode
from kvnode.machine.backend import Row
from kvnode.machine.rows import decode_lease, decode_meta
from kvnode.machine.snapshot import SnapshotHeader

SKIPPED = 1_000_000
"""Revisions, and indexes, that the new cluster leaves out: more than are made between two backups."""

SKIPPED_MAX = 1 << 40

_encode = msgspec.msgpack.Encoder().encode


class Restoration:
    """One snapshot, and what becomes of it."""

    def __init__(self, description: SnapshotHeader, *, configuration: bytes, skipped: int = SKIPPED) -> None:
        """`configuration`: the new cluster's, encoded. Raises: BadRequest for a `skipped` that is out of range."""
        if not 1 <= skipped <= SKIPPED_MAX:
            raise BadRequest(f"the new cluster can leave out 1 to {SKIPPED_MAX} revisions, not {skipped}")
        self._configuration = configuration
        self.term = description.term
        self.time = description.time
        self.index = Index(description.index + skipped)
        """The log begins after (index, `term`), which was made at hybrid `time`."""
        self.revision = Revision(description.revision + skipped)

    def rows(self, rows: Iterable[Row]) -> Iterator[Row]:
        """The new store's, ascending, of a verified snapshot's."""
        for key, value in rows:
            if key == keycode.META_KEY:
                yield key, self._meta(value)
            elif key.startswith(keycode.LEASES):
                _, lease = decode_lease((key, value))
                yield key, _encode(msgspec.structs.replace(lease, remaining_ms=0))
            else:
                yield key, value

    def _meta(self, value: bytes) -> bytes:
        meta = decode_meta(value)
        return _encode(
            msgspec.structs.replace(
                meta,
                applied_index=self.index,
                revision=self.revision,
                compact_revision=self.revision,
                configuration=self._configuration,
                configuration_index=self.index,
                installed=(self.index, self.term),
                restored=(self.revision, self.time),
            )
        )
