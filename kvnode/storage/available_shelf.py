"""Shelf: the stores of the available plane that lie beside each other in one data directory, by name.

One is in use, others were set aside damaged, one may have been begun and not finished. A store on its own is a
`Backend`; the shelf looks at it before it is opened, opens it, and moves it out of the way.
"""

from __future__ import annotations

import errno
import os
import shutil
from typing import Protocol

import lmdb

from kvnode.errors import StorageFailed
from kvnode.machine.backend import Backend
from kvnode.storage.disk import Disk
from kvnode.storage.lmdb_backend import LmdbBackend
from kvnode.storage.lmdb_walk import DATA_FILE, DamagedPages, walk
from kvnode.storage.memory_backend import MemoryBackend

MAP_BYTES = 16 << 30
"""Address space. What is stored has bounds of its own, below that also in a cluster that has been apart for long."""

PREFIX = "ap"
"""How the name of every store begins."""

_MEANS_DAMAGE = (lmdb.CorruptedError, lmdb.InvalidError, lmdb.PageNotFoundError, lmdb.VersionMismatchError)


class DamagedStore(Exception):
    """The store does not hold what was written. The text says what was found, as a clause."""


class Shelf(Protocol):
    """The stores of one data directory. Used by one thread at a time."""

    def names(self) -> list[str]:
        """Of all that are there, whole or not, sorted. Raises: OSError."""
        ...

    def check(self, name: str) -> int | None:
        """Look at a store that is not open, as far as opening it needs; how many commits made it, if that is known.

        Raises: DamagedStore, OSError.
        """
        ...

    def open(self, name: str) -> Backend:
        """Opens, or creates and makes the name durable. Raises: DamagedStore, StorageFailed."""
        ...

    def rename(self, source: str, target: str) -> None:
        """Of a store that is not open, to a name that none has; durable on return. Raises: OSError."""
        ...

    def remove(self, name: str) -> None:
        """Of one that is not open. Raises: OSError."""
        ...


class LmdbShelf(Shelf):
    """LMDB environments in directories beside `wal/` and `store/`."""

    def __init__(self, disk: Disk, path: str, *, map_bytes: int = MAP_BYTES) -> None:
        """`path`: the data directory."""
        self._disk = disk
        self._path = path
        self._map_bytes = map_bytes

    def names(self) -> list[str]:
        return [name for name in self._disk.listdir(self._path) if name.split(".")[0] == PREFIX]

    def check(self, name: str) -> int | None:
        """See `lmdb_walk`. A sector that the disk cannot read is damage: LMDB would end the process over it."""
        try:
            file = self._disk.open(f"{self._path}/{name}/{DATA_FILE}")
            try:
                return walk(file).transaction - 1  # the first was the engine's
            finally:
                file.close()
        except DamagedPages as error:
            raise DamagedStore(str(error)) from error
        except (FileNotFoundError, NotADirectoryError) as error:
            raise DamagedStore(f"{DATA_FILE} is missing") from error
        except OSError as error:
            if error.errno == errno.EIO:
                raise DamagedStore(f"{DATA_FILE} cannot be read: {error}") from error
            raise

    def open(self, name: str) -> Backend:
        try:
            return LmdbBackend(self._place(name), map_bytes=self._map_bytes)
        except StorageFailed as error:
            if error.__cause__ is None or isinstance(error.__cause__, _MEANS_DAMAGE):  # None: another engine's
                raise DamagedStore(error.message) from error
            raise

    def rename(self, source: str, target: str) -> None:
        self._disk.rename(self._place(source), self._place(target))
        self._disk.fsync_dir(self._path)

    def remove(self, name: str) -> None:
        place = self._place(name)
        if os.path.isdir(place) and not os.path.islink(place):
            shutil.rmtree(place)
        else:
            self._disk.unlink(place)

    def _place(self, name: str) -> str:
        return f"{self._path}/{name}"


class MemoryShelf(Shelf):
    """The same in memory, for nodes without a disk: what is on it ends with the process."""

    def __init__(self) -> None:
        self.backends: dict[str, MemoryBackend] = {}

    def names(self) -> list[str]:
        return sorted(self.backends)

    def check(self, name: str) -> int | None:
        return None

    def open(self, name: str) -> Backend:
        return self.backends.setdefault(name, MemoryBackend())

    def rename(self, source: str, target: str) -> None:
        self.backends[target] = self.backends.pop(source)

    def remove(self, name: str) -> None:
        del self.backends[name]
