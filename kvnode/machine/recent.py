"""Recent table: the newest versions, in memory, until the backend holds them durably.

Two layers. The *active* one takes what is applied now. A flush freezes it (the *frozen* layer) at the end of an
entry and starts an empty active one; when the frozen layer's commit is durable it is evicted. A transaction
adds a third on top, its *draft*, which is either merged into the active layer or dropped.

Every version of a key in an upper layer is newer than every one below, and all are newer than or equal to what
the backend holds: between a commit and the eviction a version is in both, and both say the same.

The path of a put is two dict operations; the sorted index that ranges need takes new keys only when one asks.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from operator import attrgetter

from sortedcontainers import SortedList

from kvnode.kv.keys import TO_THE_END
from kvnode.kv.requests import KeyValue
from kvnode.machine.pace import Pace, Work

_mod_revision = attrgetter("mod_revision")
_time = attrgetter("time")

OVERHEAD_BYTES = 350
"""What a version costs in memory beside key and value: objects, dict and list slots, index (measured)."""


NO_REVISION = 1 << 63


class Layer:
    """Versions of one stretch of revisions."""

    def __init__(self) -> None:
        self.changes: list[KeyValue] = []  # in the order they were made
        self.bytes = 0
        self.newest: dict[bytes, KeyValue] = {}
        self._older: dict[bytes, list[KeyValue]] = {}  # ascending; only for keys changed twice here
        self._unsorted: list[bytes] = []
        self._sorted: SortedList = SortedList()

    def add(self, kv: KeyValue) -> None:
        key = kv.key
        before = self.newest.get(key)
        if before is None:
            self._unsorted.append(key)
        else:
            assert before.mod_revision < kv.mod_revision, (before.mod_revision, kv.mod_revision)
            self._older.setdefault(key, []).append(before)
        self.newest[key] = kv
        self.changes.append(kv)
        self.bytes += len(key) + len(kv.value) + OVERHEAD_BYTES

    def at(self, key: bytes, revision: int) -> KeyValue | None:
        """The newest version here at or below `revision`, tombstones included."""
        kv = self.newest.get(key)
        if kv is None or kv.mod_revision <= revision:
            return kv
        older = self._older.get(key, ())
        position = bisect_right(older, revision, key=_mod_revision)
        return older[position - 1] if position else None

    def index(self, pace: Pace) -> bool:
        """Take new keys into the sorted index; False if the pace was used up before all were."""
        while self._unsorted:
            if pace.left <= 0:
                return False
            piece = self._unsorted[-pace.left :]
            del self._unsorted[-pace.left :]
            pace.left -= len(piece)
            self._sorted.update(piece)
        return True

    def keys(self, start: bytes, end: bytes, descending: bool) -> Iterator[bytes]:
        """Keys of ``[start, end)`` that have a version here, each once, in order; `index` comes first."""
        assert not self._unsorted
        stop = None if end == TO_THE_END else end
        found: Iterator[bytes] = self._sorted.irange(start, stop, inclusive=(True, False), reverse=descending)
        return found


class Recent:
    """The layers, newest first."""

    def __init__(self) -> None:
        self._active = Layer()
        self._frozen: Layer | None = None
        self._frozen_bytes = self._frozen_versions = 0
        self._draft: Layer | None = None
        self._layers: tuple[Layer, ...] = (self._active,)
        self.add = self._active.add
        """Take in a version newer than every one of its key. Bound to the top layer: the hottest call there is."""

    @property
    def size_bytes(self) -> int:
        """Of all versions but a draft's. Asked for with every request, so nothing is summed up here."""
        return self._active.bytes + self._frozen_bytes

    @property
    def versions(self) -> int:
        return len(self._active.changes) + self._frozen_versions

    @property
    def is_frozen(self) -> bool:
        """Whether a frozen layer still waits for its eviction."""
        return self._frozen is not None

    def newest(self, key: bytes) -> KeyValue | None:
        """The newest version, tombstones included; None: ask the backend."""
        for layer in self._layers:
            kv = layer.newest.get(key)
            if kv is not None:
                return kv
        return None

    def at(self, key: bytes, revision: int) -> KeyValue | None:
        """The newest version at or below `revision`, tombstones included; None: ask the backend."""
        for layer in self._layers:
            kv = layer.at(key, revision)
            if kv is not None:
                return kv
        return None

    def revision_at(self, time: int) -> int:
        """The newest revision here that was made at or before hybrid `time`; 0: ask the backend."""
        for layer in self._layers:
            position = bisect_right(layer.changes, time, key=_time)
            if position:
                return layer.changes[position - 1].mod_revision
        return 0

    @property
    def oldest_revision(self) -> int:
        """Everything from here on that was made is here; above every revision if nothing is."""
        for layer in (self._frozen, self._active):
            if layer is not None and layer.changes:
                return layer.changes[0].mod_revision
        return NO_REVISION

    def changes(self, revision: int, number: int) -> Iterator[KeyValue]:
        """What was made, in order, from change `number` of `revision` on; what a draft holds is not made yet."""
        for layer in (self._frozen, self._active):
            if layer is None:
                continue
            changes = layer.changes
            position = bisect_left(changes, revision, key=_mod_revision)
            if position < len(changes) and changes[position].mod_revision == revision:
                position += number
            while position < len(changes):
                yield changes[position]
                position += 1

    def index(self, pace: Pace) -> bool:
        """Make `keys` ready; False if the pace was used up before it was."""
        return all(layer.index(pace) for layer in self._layers)

    def keys(self, start: bytes, end: bytes, descending: bool) -> Iterator[bytes]:
        """Keys of ``[start, end)`` in any layer, each once, in order."""
        sources = [layer.keys(start, end, descending) for layer in self._layers if layer.changes]
        last: bytes | None = None
        for key in heapq.merge(*sources, reverse=descending):
            if key != last:
                last = key
                yield key

    # ── a transaction's draft ───────────────────────────────────────────────────────────────────────

    def begin(self) -> None:
        assert self._draft is None
        self._draft = Layer()
        self._relink()

    def keep(self, pace: Pace) -> Work[None]:
        """Make the draft's versions part of the active layer. Meanwhile they are in both, and both say the same."""
        assert self._draft is not None
        for kv in self._draft.changes:
            if pace.left <= 0:
                yield
            pace.left -= 1
            self._active.add(kv)
        self.drop()

    def drop(self) -> None:
        """Forget the draft."""
        assert self._draft is not None
        self._draft = None
        self._relink()

    # ── flushing ────────────────────────────────────────────────────────────────────────────────────

    def freeze(self) -> Layer:
        """Set the active layer aside and start an empty one."""
        assert self._draft is None
        assert self._frozen is None, "a frozen layer still waits for its eviction"
        self._frozen, self._active = self._active, Layer()
        self._frozen_bytes, self._frozen_versions = self._frozen.bytes, len(self._frozen.changes)
        self._relink()
        return self._frozen

    def evict(self) -> None:
        """Forget the frozen layer: the backend holds all of it durably."""
        assert self._frozen is not None
        self._frozen = None
        self._frozen_bytes = self._frozen_versions = 0
        self._relink()

    def _relink(self) -> None:
        self._layers = tuple(layer for layer in (self._draft, self._active, self._frozen) if layer is not None)
        self.add = self._layers[0].add
