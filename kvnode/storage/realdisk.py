"""RealDisk: the machine's file system behind the `Disk` port.

Nothing is cached and nothing is retried here: an error of any call goes up as OSError, because after a
failed fsync the kernel may have thrown the dirty pages away and a second fsync would only look successful.

On macOS ``fsync`` stops at the drive's cache, so F_FULLFSYNC is asked for, with plain ``fsync`` where the file
system refuses it.

Source: Rebello et al., "Can Applications Recover from fsync Failures?" (USENIX ATC 2020).
"""

from __future__ import annotations

import fcntl
import os
import re
import sys
from pathlib import Path

_ZEROS = bytes(1 << 20)
_OCTAL = re.compile(r"\\([0-7]{3})")  # how a mount point with a blank is written
_MAC: bool = sys.platform == "darwin"
_FULL_FSYNC: int = getattr(fcntl, "F_FULLFSYNC", 51)


def _flush(descriptor: int) -> None:
    if _MAC:
        try:
            fcntl.fcntl(descriptor, _FULL_FSYNC)
        except OSError:  # not offered by this file system; what is left is fsync
            os.fsync(descriptor)
        return
    os.fsync(descriptor)


class RealFile:
    """One open file; see `DiskFile`."""

    __slots__ = ("_descriptor", "_path")

    def __init__(self, descriptor: int, path: str) -> None:
        self._descriptor = descriptor
        self._path = path

    @property
    def path(self) -> str:
        return self._path

    def pread(self, offset: int, length: int) -> bytes:
        first = os.pread(self._descriptor, length, offset)
        if len(first) == length or not first:
            return first
        parts, got = [first], len(first)
        while got < length:
            more = os.pread(self._descriptor, length - got, offset + got)
            if not more:
                break
            parts.append(more)
            got += len(more)
        return b"".join(parts)

    def pwrite(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        written = os.pwrite(self._descriptor, data, offset)
        if written == len(data):
            return
        with memoryview(data) as view:
            while written < len(view):
                written += os.pwrite(self._descriptor, view[written:], offset + written)

    def preallocate(self, size: int) -> None:
        have = os.fstat(self._descriptor).st_size
        if size <= have:
            return
        if not _MAC:
            os.posix_fallocate(self._descriptor, 0, size)
            return
        while have < size:
            have += os.pwrite(self._descriptor, _ZEROS[: size - have], have)

    def truncate(self, size: int) -> None:
        os.ftruncate(self._descriptor, size)

    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def fdatasync(self) -> None:
        if _MAC:
            _flush(self._descriptor)
        else:
            os.fdatasync(self._descriptor)

    def fsync(self) -> None:
        _flush(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)


class RealLock:
    """An flock on an open file; the kernel drops it with the process."""

    __slots__ = ("_descriptor",)

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def release(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class RealDisk:
    """The machine's file system; see `Disk`."""

    def open(self, path: str, *, create: bool = False) -> RealFile:
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT | os.O_EXCL if create else 0)
        return RealFile(os.open(path, flags, 0o600), path)

    def exists(self, path: str) -> bool:
        return os.path.lexists(path)

    def listdir(self, path: str) -> list[str]:
        return sorted(os.listdir(path))

    def mkdir(self, path: str) -> None:
        if os.path.isdir(path):
            return
        parent = os.path.dirname(path.rstrip("/"))
        if parent:
            self.mkdir(parent)
        os.mkdir(path, 0o700)

    def rename(self, source: str, target: str) -> None:
        os.rename(source, target)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def fsync_dir(self, path: str) -> None:
        descriptor = os.open(path or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _flush(descriptor)
        finally:
            os.close(descriptor)

    def lock(self, path: str) -> RealLock:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise
        return RealLock(descriptor)

    def free_bytes(self, path: str) -> int:
        found = os.statvfs(path)
        return found.f_bavail * found.f_frsize

    def filesystem(self, path: str) -> str:
        """Type of the mount that holds `path`, which need not exist yet."""
        try:
            table = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
        except FileNotFoundError:  # not Linux
            return ""
        where, best, kind = os.path.realpath(path), "", ""
        for line in table.splitlines():
            mount, _, device = line.partition(" - ")
            point = _OCTAL.sub(lambda found: chr(int(found[1], 8)), mount.split(" ")[4])
            inside = where == point or where.startswith(point.rstrip("/") + "/")
            if inside and len(point) >= len(best):  # of two mounts on one point the later one is seen
                best, kind = point, device.split(" ")[0]
        return kind
