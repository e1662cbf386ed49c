"""A state machine under test, and the plain model it is held to.

`Store` applies requests and, by its mode, flushes and reopens in between: nothing a reader sees may depend on that.
`Model` keeps every version of every key in a dict of lists and answers by looking through all of them.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import Any

from kvnode.config import LimitsSection
from kvnode.ids import Index, Term
from kvnode.kv import keys
from kvnode.kv.requests import Compact, History, KeyValue, Put, Range, Sweep, Txn, WriteRequest
from kvnode.machine.backend import Backend
from kvnode.machine.machine import Applied, StateMachine
from kvnode.machine.pace import Pace, in_one_go
from kvnode.machine.rows import logical_bytes
from kvnode.storage.lmdb_backend import LmdbBackend
from kvnode.storage.memory_backend import MemoryBackend

MODES = ("recent", "committed", "flushed", "reopened")
"""Everything in the recent table; frozen and committed but not evicted; evicted; and opened again after that."""

BACKENDS = ("memory", "lmdb")


class Store:
    def __init__(self, open_backend: Callable[[], Backend], mode: str = "recent", **limits: Any) -> None:
        self._open_backend = open_backend
        self._limits = LimitsSection(**limits)
        self.mode = mode
        self.machine = StateMachine(open_backend(), self._limits)

    def apply(self, request: WriteRequest, *, time: int | None = None) -> Applied:
        index = Index(self.machine.applied_index + 1)
        return self.machine.apply(index, index * 10 if time is None else time, request)

    def put(self, key: bytes, value: bytes = b"v") -> int:
        self.apply(Put(key, value))
        return self.machine.revision

    def settle(self) -> None:
        """Do what the mode says: the moment at which a flush may happen."""
        if self.mode == "recent":
            return
        cut = self.machine.cut(Term(1))
        if cut is not None:
            self.machine.backend.commit(cut)
            if self.mode == "committed":
                self._outstanding = cut
                return
            self.machine.evict(cut)
        elif self.mode == "committed" and self.machine.applied_index:
            self.machine.evict(self._outstanding)
        if self.mode == "reopened":
            self.reopen()

    def reopen(self) -> None:
        self.machine.backend.close()
        self.machine = StateMachine(self._open_backend(), self._limits)

    def get(self, key: bytes, revision: int = 0) -> KeyValue | None:
        reply = self.machine.range(Range(key, revision=revision))
        return reply.items[0] if reply.items else None

    def history(self, key: bytes, revision: int = 0, *, page: int = 0) -> list[KeyValue]:
        """All versions at or below the revision, page by page."""
        found: list[KeyValue] = []
        before, more = 0, True
        while more:
            reply = in_one_go(self.machine.read(History(key, page, revision, before), pace := Pace()), pace)
            found += reply.items
            more = reply.more
            before = found[-1].mod_revision if found else 0
        return found

    def list(self, start: bytes = b"", end: bytes = keys.TO_THE_END, **options: Any) -> list[bytes]:
        return [kv.key for kv in self.machine.range(Range(start, end, **options)).items]


def opener(kind: str, path: Path) -> Callable[[], Backend]:
    if kind == "memory":
        backend = MemoryBackend()
        return lambda: backend
    return lambda: LmdbBackend(str(path / "store"), map_bytes=256 << 20)


class Model:
    """Puts and deletes, one list of versions a key; no conditions (those are tested one by one).

    It keeps everything for ever, and knows what compaction and sweeps leave of it.
    """

    def __init__(self) -> None:
        self.revision = 1
        self.compact_revision = self.swept_revision = 0
        self.versions: dict[bytes, list[KeyValue]] = {}

    def at(self, key: bytes, revision: int) -> KeyValue | None:
        shown = [kv for kv in self.versions.get(key, []) if kv.mod_revision <= revision]
        return shown[-1] if shown and shown[-1].version else None

    def revision_at(self, time: int) -> int:
        made = [kv.mod_revision for versions in self.versions.values() for kv in versions if kv.time <= time]
        return max(made, default=1)

    def history(self, key: bytes, revision: int) -> list[KeyValue]:
        """Down to what the compact revision shows."""
        found: list[KeyValue] = []
        for kv in reversed(self.versions.get(key, [])):
            if kv.mod_revision <= revision:
                if kv.mod_revision < self.compact_revision and not kv.version:
                    break
                found.append(kv)
                if kv.mod_revision <= self.compact_revision:
                    break
        return found

    def kept(self) -> list[KeyValue]:
        """What sweeps have left: all but deletions below their end, and what was superseded below it."""
        found: list[KeyValue] = []
        for versions in self.versions.values():
            for kv, newer in zip_longest(versions, versions[1:]):
                is_superseded = newer is not None and newer.mod_revision < self.swept_revision
                if not is_superseded and (kv.version or kv.mod_revision >= self.swept_revision):
                    found.append(kv)
        return found

    @property
    def logical_bytes(self) -> int:
        return sum(map(logical_bytes, self.kept()))

    @property
    def live_bytes(self) -> int:
        return sum(map(logical_bytes, self.range(b"", keys.TO_THE_END, self.revision)))

    def sweep(self, request: Sweep) -> None:
        """Whole revisions, at least one, until they made so many changes."""
        changes = 0
        for revision in range(self.swept_revision, min(request.before, self.compact_revision)):
            made = sum(kv.mod_revision == revision for versions in self.versions.values() for kv in versions)
            if made and changes >= request.changes_max:
                break
            changes += made
            self.swept_revision = revision + 1

    def range(self, start: bytes, end: bytes, revision: int) -> list[KeyValue]:
        found = [self.at(key, revision) for key in sorted(self.versions) if keys.contains(start, end, key)]
        return [kv for kv in found if kv is not None]

    def apply(self, request: WriteRequest, time: int) -> None:
        if isinstance(request, Compact):
            self.compact_revision = max(self.compact_revision, request.revision)
            return
        if isinstance(request, Sweep):
            self.sweep(request)
            return
        operations = request.success if isinstance(request, Txn) else (request,)
        made, changed = self.revision + 1, False
        for operation in operations:
            if isinstance(operation, Put):
                before = self.at(operation.key, made)
                version = before.version + 1 if before else 1
                created = before.create_revision if before else made
                kv = KeyValue(operation.key, operation.value, created, made, version, 0, time)
                self.versions.setdefault(operation.key, []).append(kv)
                changed = True
            elif not isinstance(operation, Range):
                for kv in self.range(operation.start, operation.end, made):
                    self.versions[kv.key].append(KeyValue(kv.key, b"", 0, made, 0, 0, time))
                    changed = True
        self.revision += changed


def some_keys(chance: random.Random, count: int) -> list[bytes]:
    """Keys that are hard on an ordered encoding: NULs, 0xff, prefixes of each other, long with shared stems."""
    alphabet = [b"\x00", b"\x01", b"a", b"b", b"\xfe", b"\xff"]
    found = {b"".join(chance.choices(alphabet, k=chance.randrange(1, 5))) for _ in range(count)}
    for length in (230, 234, 235, 236, 468, 469, 470, 471, 510, 511, 512, 513, 4096):
        if chance.random() < 0.5:
            fill = chance.choice([b"x", b"\x00", b"\xff"])
            stem = fill * length
            found |= {stem, stem[:-1] + b"\x00", stem[:-1] + b"y", stem + b"z"}
    ordered = sorted(found)
    chance.shuffle(ordered)
    return ordered[:count]
