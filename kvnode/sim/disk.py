"""FakeDisk: a file system in memory that forgets, tears, lies and fails on purpose, behind the `Disk` port.

`crash(choices)` and `kill()` return the disk as the next start of the process finds it after a power loss or
after `kill -9`; the disk they are called on stays as it was, so that one moment can be crashed many ways. What a
power loss may leave is written in `kvnode.sim.inodes`. A killed process loses nothing it wrote: the page cache
belongs to the machine, and only the locks are gone.

Which calls fail, and when the process dies, is planned through the base class (`kvnode.sim.fault_plan`).

Everything is deterministic: no clock, no hash order, no randomness but the generator passed in.
"""

from __future__ import annotations

import copy
import errno
import os
import posixpath
import random
from enum import Enum

from kvnode.sim.choices import Choices
from kvnode.sim.fault_plan import FaultPlan, SimulatedCrash
from kvnode.sim.inodes import SECTOR, CrashModel, DirectoryNode, FileNode

__all__ = ["FakeDisk", "FakeFile", "FakeLock", "FsyncFailure", "SimulatedCrash"]

UNLIMITED = 1 << 50


class FsyncFailure(Enum):
    """What a file system does to pages whose write-back failed. Seen on Linux; none of them allows a retry."""

    CLEAN_NEW = "clean-new"  # memory shows the new bytes, the disk keeps the old, a second fsync succeeds
    CLEAN_OLD = "clean-old"  # memory shows the old bytes again
    ONCE_PER_FD = "once-per-fd"  # as clean-new; every handle open at that moment sees the error once
    LATE = "late"  # this fsync returns as if all were well, the next one on this handle raises


class FakeDisk(FaultPlan):
    """A `Disk` in memory. `rng` supplies the garbage of lost blocks; without it garbage is a fixed pattern."""

    def __init__(
        self,
        rng: random.Random | None = None,
        *,
        capacity_bytes: int = UNLIMITED,
        fsync_failure: FsyncFailure = FsyncFailure.CLEAN_NEW,
    ) -> None:
        super().__init__()
        self.capacity_bytes = capacity_bytes
        self.fsync_failure = fsync_failure
        self.has_rotted = False  # durable bytes were changed behind the file system's back
        self.has_lied = False  # said that something was durable which was not
        self._rng = rng
        self._root = DirectoryNode()
        self._files_made = 0
        self._handles: list[FakeFile] = []
        self._locked: dict[int, str] = {}  # file number → path

    # What happens to the machine

    def crash(self, choices: Choices, *, cuts: int = 1) -> FakeDisk:
        """The disk after a power loss at this moment. `cuts`: see `CrashModel`."""
        garbage = b"\xa5" * SECTOR if self._rng is None else self._rng.randbytes(SECTOR)
        root = self._root.after_crash(CrashModel(choices, cuts, garbage), {})
        return self._next_life(root)

    def kill(self) -> FakeDisk:
        """The disk after the process died at this moment: all that was written is there, durable or not."""
        return self._next_life(copy.deepcopy(self._root))

    def _next_life(self, root: DirectoryNode) -> FakeDisk:
        disk = FakeDisk(self._rng, capacity_bytes=self.capacity_bytes, fsync_failure=self.fsync_failure)
        disk.has_lied, disk.has_rotted = self.has_lied, self.has_rotted
        disk._root = root
        disk._files_made = self._files_made
        return disk

    def sync_everything(self) -> None:
        """As a machine does that is left alone for a while: all that was written is durable."""
        directories = [self._root]
        while directories:
            directory = directories.pop()
            directory.sync()
            for node in directory.entries.values():
                if isinstance(node, DirectoryNode):
                    directories.append(node)
                else:
                    node.durable = bytearray(node.cache)
                    node.pending.clear()

    # Damage to what is already durable

    def damage(self, path: str, offset: int, data: bytes) -> None:
        """Replace durable bytes behind the file system's back. Never changes the size."""
        node = self._file(path)
        assert not node.pending, f"{path} has unsynced changes: crash or kill first"
        assert offset + len(data) <= len(node.durable), (offset, len(data), len(node.durable))
        self.has_rotted = True
        node.durable[offset : offset + len(data)] = data
        node.cache = bytearray(node.durable)

    def flip_bit(self, path: str, offset: int, bit: int = 0) -> None:
        self.damage(path, offset, bytes([self._file(path).durable[offset] ^ (1 << bit)]))

    def zero_sector(self, path: str, sector: int) -> None:
        self.damage(path, sector * SECTOR, bytes(len(self._sector(path, sector))))

    def stale_sector(self, path: str, sector: int) -> bool:
        """Put back what the sector held before its last synced change; False if it was never changed."""
        former = self._file(path).former.get(sector)
        if former is None:
            return False
        self.damage(path, sector * SECTOR, former)
        return True

    def swap_sectors(self, path: str, one: int, other: int) -> None:
        first, second = self._sector(path, one), self._sector(path, other)
        assert len(first) == len(second), "the last, partial sector cannot be swapped"
        self.damage(path, one * SECTOR, second)
        self.damage(path, other * SECTOR, first)

    def unreadable_sector(self, path: str, sector: int) -> None:
        """Reads that touch the sector raise EIO from now on."""
        self._file(path).unreadable.append(sector)

    # Looking in from outside; counts and traces nothing

    def content(self, path: str) -> bytes:
        """What a reader sees."""
        return bytes(self._file(path).cache)

    def durable_content(self, path: str) -> bytes:
        """What has been synced (of a file whose name may not be durable)."""
        return bytes(self._file(path).durable)

    def files(self) -> list[str]:
        """Paths of all files, sorted."""
        found: list[str] = []
        directories: list[tuple[str, DirectoryNode]] = [("/", self._root)]
        while directories:
            path, directory = directories.pop()
            for name, node in directory.entries.items():
                if isinstance(node, DirectoryNode):
                    directories.append((posixpath.join(path, name), node))
                else:
                    found.append(posixpath.join(path, name))
        return sorted(found)

    # The Disk port

    def open(self, path: str, *, create: bool = False) -> FakeFile:
        if create:
            self.run("create", path)
            directory, name = self._parent(path)
            if name in directory.entries:
                raise _error(FileExistsError, errno.EEXIST, path)
            self._files_made += 1
            node = FileNode(self._files_made)
            directory.link(name, node)
        else:
            self.run("open", path)
            node = self._file(path)
        handle = FakeFile(self, path, node)
        self._handles.append(handle)
        return handle

    def exists(self, path: str) -> bool:
        self.run("exists", path)
        return self._find(path) is not None

    def listdir(self, path: str) -> list[str]:
        self.run("listdir", path)
        return sorted(self._directory(path).entries)

    def mkdir(self, path: str) -> None:
        self.run("mkdir", path)
        directory = self._root
        for name in _parts(path):
            if name not in directory.entries:
                directory.link(name, DirectoryNode())
            node = directory.entries[name]
            if not isinstance(node, DirectoryNode):
                raise _error(FileExistsError, errno.EEXIST, path)
            directory = node

    def rename(self, source: str, target: str) -> None:
        self.run("rename", source)
        directory, old = self._parent(source)
        target_directory, new = self._parent(target)
        assert directory is target_directory, f"rename across directories: {source} → {target}"
        if old not in directory.entries:
            raise _error(FileNotFoundError, errno.ENOENT, source)
        if old != new:
            directory.link(new, directory.entries[old])
            directory.unlink(old)

    def unlink(self, path: str) -> None:
        self.run("unlink", path)
        self._file(path)
        directory, name = self._parent(path)
        directory.unlink(name)

    def fsync_dir(self, path: str) -> None:
        self.run("fsync_dir", path)
        self._directory(path).sync()

    def lock(self, path: str) -> FakeLock:
        self.run("lock", path)
        directory, name = self._parent(path)
        if name not in directory.entries:
            self._files_made += 1
            directory.link(name, FileNode(self._files_made))
        node = self._file(path)
        if node.number in self._locked:
            raise _error(BlockingIOError, errno.EWOULDBLOCK, path)
        self._locked[node.number] = path
        return FakeLock(self, node.number)

    def free_bytes(self, path: str) -> int:
        self.run("free_bytes", path)
        return max(0, self.capacity_bytes - self.used_bytes())

    def filesystem(self, path: str) -> str:
        self.run("filesystem", path)
        return "fake"

    # Bookkeeping shared with FakeFile

    def room_for(self, grown_bytes: int) -> int:
        """How many of `grown_bytes` more fit."""
        if not grown_bytes or self.capacity_bytes == UNLIMITED:
            return grown_bytes
        return max(0, min(grown_bytes, self.capacity_bytes - self.used_bytes()))

    def fail_sync(self, handle: FakeFile, error: OSError) -> None:
        """Let a write-back fail by the disk's personality; raises `error` unless that comes late."""
        if self.fsync_failure is FsyncFailure.CLEAN_OLD:
            handle.node.revert_pending()
        else:
            handle.node.give_up_pending()
        if self.fsync_failure is FsyncFailure.LATE:
            handle.owed = error
            self.has_lied = True
            return
        if self.fsync_failure is FsyncFailure.ONCE_PER_FD:
            for other in self._handles:
                if other.node is handle.node and other is not handle:
                    other.owed = error
        raise error

    def forget(self, handle: FakeFile) -> None:
        self._handles.remove(handle)

    def release(self, number: int) -> None:
        self._locked.pop(number, None)

    def used_bytes(self) -> int:
        """Bytes of all files, those that are open and have no name any more included."""
        sizes = {handle.node.number: len(handle.node.cache) for handle in self._handles}
        for path in self.files():
            node = self._file(path)
            sizes[node.number] = len(node.cache)
        return sum(sizes.values())

    def _find(self, path: str) -> FileNode | DirectoryNode | None:
        node: FileNode | DirectoryNode | None = self._root
        for name in _parts(path):
            node = node.entries.get(name) if isinstance(node, DirectoryNode) else None
        return node

    def _parent(self, path: str) -> tuple[DirectoryNode, str]:
        parts = _parts(path)
        assert parts, path
        return self._directory("/".join(parts[:-1])), parts[-1]

    def _directory(self, path: str) -> DirectoryNode:
        node = self._find(path)
        if node is None:
            raise _error(FileNotFoundError, errno.ENOENT, path)
        if isinstance(node, FileNode):
            raise _error(NotADirectoryError, errno.ENOTDIR, path)
        return node

    def _file(self, path: str) -> FileNode:
        node = self._find(path)
        if node is None:
            raise _error(FileNotFoundError, errno.ENOENT, path)
        if isinstance(node, DirectoryNode):
            raise _error(IsADirectoryError, errno.EISDIR, path)
        return node

    def _sector(self, path: str, sector: int) -> bytes:
        return bytes(self._file(path).durable[sector * SECTOR : (sector + 1) * SECTOR])


class FakeFile:
    """A `DiskFile` of a FakeDisk."""

    def __init__(self, disk: FakeDisk, path: str, node: FileNode) -> None:
        self.node = node
        self.owed: OSError | None = None  # a failed write-back this handle has still to hear of
        self._disk = disk
        self._path = path
        self._closed = False

    @property
    def path(self) -> str:
        return self._path

    def pread(self, offset: int, length: int) -> bytes:
        self._run("pread", offset, length)
        for sector in self.node.unreadable:
            if offset < (sector + 1) * SECTOR and sector * SECTOR < offset + length:
                raise _error(OSError, errno.EIO, self._path)
        return bytes(self.node.cache[offset : offset + length])

    def pwrite(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        self._check_open()
        failure = self._disk.begin("pwrite", self._path, offset, len(data))
        content = bytes(data)
        if failure is not None:
            if failure.short_write:
                self.node.write(offset, content[: failure.short_write])
            raise failure.error
        size = len(self.node.cache)
        grown = max(0, offset + len(content) - size)
        fits = self._disk.room_for(grown)
        if fits < grown:
            written = content[: max(0, size + fits - offset)]
            if written:
                self.node.write(offset, written)
            raise _error(OSError, errno.ENOSPC, self._path)
        if content:
            self.node.write(offset, content)

    def preallocate(self, size: int) -> None:
        self._run("preallocate", size)
        grown = size - len(self.node.cache)
        if grown <= 0:
            return
        if self._disk.room_for(grown) < grown:
            raise _error(OSError, errno.ENOSPC, self._path)
        self.node.resize(size)

    def truncate(self, size: int) -> None:
        self._run("truncate", size)
        if size != len(self.node.cache):
            self.node.resize(size)

    def size(self) -> int:
        self._run("size")
        return len(self.node.cache)

    def fdatasync(self) -> None:
        self._sync("fdatasync")

    def fsync(self) -> None:
        self._sync("fsync")

    def close(self) -> None:
        """Idempotent; quiet after a crash, since the kernel closes what a dead process leaves open.

        A failure planned for kind "close" is raised after the handle is closed.
        """
        if self._closed or self._disk.crashed:
            return
        self._closed = True
        self._disk.forget(self)
        failure = self._disk.begin("close", self._path)
        if failure is not None:
            raise failure.error

    def _sync(self, kind: str) -> None:
        self._check_open()
        failure = self._disk.begin(kind, self._path)
        if self.owed is not None:
            error, self.owed = self.owed, None
            raise error
        if failure is None:
            self.node.sync()
        else:
            self._disk.fail_sync(self, failure.error)

    def _run(self, kind: str, offset: int = 0, length: int = 0) -> None:
        self._check_open()
        failure = self._disk.begin(kind, self._path, offset, length)
        if failure is not None:
            raise failure.error

    def _check_open(self) -> None:
        if self._closed:
            raise _error(OSError, errno.EBADF, self._path)


class FakeLock:
    """A `DirectoryLock` of a FakeDisk."""

    def __init__(self, disk: FakeDisk, number: int) -> None:
        self._disk = disk
        self._number = number

    def release(self) -> None:
        self._disk.release(self._number)


def _parts(path: str) -> list[str]:
    return [part for part in posixpath.normpath("/" + path).split("/") if part]


def _error(kind: type[OSError], number: int, path: str) -> OSError:
    return kind(number, os.strerror(number), path)
