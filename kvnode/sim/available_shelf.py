"""The stores of the available plane on a simulated disk: each one file, replaced as a whole by every commit.

So a store has all that the disk has: a crash before any of its operations, power loss with what was not synced in
doubt, damage, lying syncs, backups that are copies of the disk. It rewrites everything each time, which suits small
stores.
"""

from __future__ import annotations

import posixpath
from zlib import crc32

import msgspec

from kvnode.errors import StorageFailed
from kvnode.machine.backend import Backend, Batch, Row
from kvnode.storage.available_shelf import PREFIX, DamagedStore, Shelf
from kvnode.storage.disk import Disk
from kvnode.storage.memory_backend import MemoryBackend

_TEMPORARY = "writing-"  # so that no name of a store begins like it
_CRC_BYTES = 4


class _Image(msgspec.Struct, frozen=True, array_like=True):
    """Content of a file."""

    commits: int
    rows: tuple[Row, ...]


class FileShelf(Shelf):
    """Stores as files in directory `path` of a simulated disk."""

    def __init__(self, disk: Disk, path: str) -> None:
        self._disk = disk
        self._path = path

    def names(self) -> list[str]:
        return [name for name in self._disk.listdir(self._path) if name.split(".")[0] == PREFIX]

    def check(self, name: str) -> int | None:
        return self._read(name).commits

    def open(self, name: str) -> Backend:
        image = self._read(name) if self._disk.exists(self._place(name)) else _Image(0, ())
        return _FileBackend(self._disk, self._place(name), image)

    def rename(self, source: str, target: str) -> None:
        self._disk.rename(self._place(source), self._place(target))
        self._disk.fsync_dir(self._path)

    def remove(self, name: str) -> None:
        self._disk.unlink(self._place(name))

    def _place(self, name: str) -> str:
        return f"{self._path}/{name}"

    def _read(self, name: str) -> _Image:
        file = self._disk.open(self._place(name))
        try:
            data = file.pread(0, file.size())
        except OSError as error:
            raise DamagedStore(f"it cannot be read: {error}") from error
        finally:
            file.close()
        content = data[:-_CRC_BYTES]
        if crc32(content).to_bytes(_CRC_BYTES, "little") != data[-_CRC_BYTES:]:
            raise DamagedStore("a page of it is damaged")
        try:
            return msgspec.msgpack.decode(content, type=_Image)
        except msgspec.MsgspecError as error:
            raise DamagedStore(f"a page of it is damaged: {error}") from error


class _FileBackend(MemoryBackend):
    """The rows in memory, and the file they came from."""

    def __init__(self, disk: Disk, path: str, image: _Image) -> None:
        super().__init__()
        self.stage(_Rows(image.rows))
        self.sync()
        self._disk = disk
        self._path = path
        self._commits = image.commits

    def commit(self, batch: Batch) -> None:
        self.stage(batch)
        try:
            self._replace()
        except OSError as error:
            self.lose_power()
            raise StorageFailed(f"a commit to the store failed: {error}") from error
        self.sync()
        self._commits += 1

    def _replace(self) -> None:
        """As `storage.small_file` does. Raises: OSError."""
        disk = self._disk
        directory, name = posixpath.split(self._path)
        aside = f"{directory}/{_TEMPORARY}{name}"
        content = msgspec.msgpack.encode(_Image(self._commits + 1, tuple(self.pin().rows(b"", 1 << 60))))
        if disk.exists(aside):
            disk.unlink(aside)
        file = disk.open(aside, create=True)
        try:
            file.pwrite(0, content + crc32(content).to_bytes(_CRC_BYTES, "little"))
            file.fsync()
        finally:
            file.close()
        disk.rename(aside, self._path)
        disk.fsync_dir(directory)


class _Rows(msgspec.Struct, frozen=True):
    items: tuple[Row, ...]

    def rows(self) -> tuple[Row, ...]:
        return self.items

    def removed(self) -> tuple[bytes, ...]:
        return ()
