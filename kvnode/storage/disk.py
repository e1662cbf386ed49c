"""Disk: the one narrow port every file operation of kvnode's own formats goes through.

`RealDisk` is the machine's; `kvnode.sim.disk.FakeDisk` forgets, tears and fails on purpose. Both pass
`tests/disk_suite.py`. What the callers may rely on is only what is written here:

- bytes written are durable after `fdatasync` (with the size needed to read them) or `fsync` returned;
- a created, renamed or removed name is durable only after `fsync_dir` of its directory;
- `rename` is atomic but not durable; `preallocate` leaves zeros and makes the size, nothing else, larger;
- after any of them raised, nothing is known about the file but what a fresh read shows.

Every call may raise OSError. Paths are absolute or relative to the process, as `str`.
"""

from __future__ import annotations

from typing import Protocol


class DiskFile(Protocol):
    """One open file. Not shared between writing threads; `pread` may be called from another thread."""

    @property
    def path(self) -> str: ...

    def pread(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes at `offset`; fewer only at the end of the file."""
        ...

    def pwrite(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write all of `data` (short writes are continued)."""
        ...

    def preallocate(self, size: int) -> None:
        """Make the file at least `size` bytes long, new bytes zero, blocks reserved."""
        ...

    def truncate(self, size: int) -> None: ...

    def size(self) -> int: ...

    def fdatasync(self) -> None:
        """Data, and the size needed to read it, are durable when this returns."""
        ...

    def fsync(self) -> None: ...

    def close(self) -> None: ...


class DirectoryLock(Protocol):
    """Held until released or the process ends."""

    def release(self) -> None: ...


class Disk(Protocol):
    """The file system under one data directory."""

    def open(self, path: str, *, create: bool = False) -> DiskFile:
        """Open for reading and writing; `create`: make a new one (mode 0600), FileExistsError if it is there."""
        ...

    def exists(self, path: str) -> bool: ...

    def listdir(self, path: str) -> list[str]:
        """Names in the directory, sorted."""
        ...

    def mkdir(self, path: str) -> None:
        """Make one directory (mode 0700) and missing parents; no error if it exists."""
        ...

    def rename(self, source: str, target: str) -> None:
        """Atomically; replaces `target`. Never across directories."""
        ...

    def unlink(self, path: str) -> None: ...

    def fsync_dir(self, path: str) -> None: ...

    def lock(self, path: str) -> DirectoryLock:
        """Exclusive advisory lock on the file `path` (created if absent). Raises BlockingIOError if held."""
        ...

    def free_bytes(self, path: str) -> int: ...

    def filesystem(self, path: str) -> str:
        """Name of the file system type ("ext4", "tmpfs", "nfs4", …), "" if unknown."""
        ...
