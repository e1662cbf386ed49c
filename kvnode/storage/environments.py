"""Environments: the stores that lie beside each other in `store/`, by number. One is the node's, others come and go.

A snapshot becomes a new environment, built aside from sorted rows; which one counts is the pointer's business
(`store_pointer`). The meta row is written last, so that none that was cut short ever looks like a store.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from typing import Protocol

import lmdb
import msgspec

from kvnode.errors import SnapshotRefused, StorageFailed
from kvnode.machine.backend import Backend, Row
from kvnode.machine.keycode import META_KEY
from kvnode.storage.lmdb_backend import LmdbBackend
from kvnode.storage.memory_backend import MemoryBackend

COMMIT_BYTES = 4 << 20
"""Keys and values of one commit while an environment is built: what building takes of memory, a few times over."""

_NAME = re.compile(r"env-([0-9]{10})")
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class Environments(Protocol):
    """The numbered stores of one directory. Used by one thread at a time."""

    def numbers(self) -> list[int]:
        """Those that are there, whole or not, ascending. Raises: OSError."""
        ...

    def open(self, number: int) -> Backend:
        """Opens or creates. Raises: StorageFailed."""
        ...

    def build(self, number: int, rows: Iterable[Sequence[Row]]) -> Backend:
        """Make a new one of `rows`, ascending, in pieces; durable and open when this returns.

        Raises: SnapshotRefused if there is no room; StorageFailed; whatever `rows` raises. Nothing is left then.
        """
        ...

    def remove(self, number: int) -> None:
        """Its files go; who has it open may go on reading. No error if it is not there. Raises: OSError."""
        ...


class _Piece(msgspec.Struct, frozen=True):
    """A part of the rows, as a batch."""

    items: Sequence[Row]

    def rows(self) -> Sequence[Row]:
        return self.items

    def removed(self) -> Sequence[bytes]:
        return ()


class LmdbEnvironments(Environments):
    """LMDB environments in directories ``env-<number, 10 digits>``."""

    def __init__(self, path: str, *, map_bytes: int) -> None:
        self._path = path
        self._map_bytes = map_bytes

    def numbers(self) -> list[int]:
        found = (_NAME.fullmatch(name) for name in os.listdir(self._path))
        return sorted(int(name[1]) for name in found if name)

    def open(self, number: int) -> Backend:
        return LmdbBackend(self.place(number), map_bytes=self._map_bytes)

    def build(self, number: int, rows: Iterable[Sequence[Row]]) -> Backend:
        backend: LmdbBackend | None = None
        try:
            backend = LmdbBackend(self.place(number), map_bytes=self._map_bytes)
            for piece in in_pieces(rows):
                backend.commit(piece)
        except BaseException as error:
            if backend is not None:
                backend.close()
            self.remove(number)
            if isinstance(error, StorageFailed) and _is_full(error.__cause__):
                raise SnapshotRefused(f"there is no room for the snapshot's store: {error.message}") from error
            raise
        return backend

    def remove(self, number: int) -> None:
        try:
            shutil.rmtree(self.place(number))
        except FileNotFoundError:
            return

    def place(self, number: int) -> str:
        """Its directory."""
        return os.path.join(self._path, f"env-{number:010d}")


class MemoryEnvironments(Environments):
    """The same in memory: what was committed outlives the process, and the power, as on a disk."""

    def __init__(self) -> None:
        self.backends: dict[int, MemoryBackend] = {}

    def numbers(self) -> list[int]:
        return sorted(self.backends)

    def open(self, number: int) -> MemoryBackend:
        return self.backends.setdefault(number, MemoryBackend())

    def build(self, number: int, rows: Iterable[Sequence[Row]]) -> MemoryBackend:
        backend = self.backends[number] = MemoryBackend()
        try:
            for piece in in_pieces(rows):
                backend.stage(piece)
        except Exception:
            self.remove(number)
            raise
        backend.sync()
        return backend

    def remove(self, number: int) -> None:
        self.backends.pop(number, None)

    def lose_power(self) -> None:
        """Forget what was not synced."""
        for backend in self.backends.values():
            backend.lose_power()


def in_pieces(rows: Iterable[Sequence[Row]]) -> Iterable[_Piece]:
    """Batches of about `COMMIT_BYTES`, ascending but for the meta row, which comes with the last."""
    meta: list[Row] = []
    piece: list[Row] = []
    size = 0
    for some in rows:
        for row in some:
            if row[0] == META_KEY:
                meta.append(row)
                continue
            piece.append(row)
            size += len(row[0]) + len(row[1])
        if size >= COMMIT_BYTES:
            yield _Piece(piece)
            piece, size = [], 0
    yield _Piece([*meta, *piece])


def _is_full(error: BaseException | None) -> bool:
    return isinstance(error, lmdb.MapFullError | lmdb.DiskError) or (
        isinstance(error, OSError) and error.errno in _FULL
    )
