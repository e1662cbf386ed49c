"""Images: a small ext4 file system for each node on a loop device, which can lose power, hang and fill up.

*Power loss*: the node is stopped, the file system is told to shut down without flushing its journal, the node is
killed, the image is unmounted and mounted again. What was written but not made durable is gone then, names included.
*Hang*: the file system is frozen; a write or fdatasync does not return until it is thawed.
*Full*: a ballast file takes all the room there is.
Source: ext4's EXT4_IOC_SHUTDOWN (fs/ext4/ioctl.c), FIFREEZE and FITHAW (linux/fs.h).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import subprocess
from pathlib import Path
from time import monotonic, sleep

from scripts.faults.command import run
from scripts.faults.undo import Undo

_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32)
_NO_LOG_FLUSH = 2
_FREEZE = 0xC0045877  # _IOWR('X', 119, int)
_THAW = 0xC0045878
_UNMOUNT_S = 20.0


class Image:
    """One file system. `path` is where it is mounted while the node may use it."""

    def __init__(self, home: Path, name: str, bytes_: int, undo: Undo) -> None:
        self._file = home / f"{name}.img"
        self.path = home / name
        self._undo = undo
        self.path.mkdir()
        with self._file.open("wb") as file:
            file.truncate(bytes_)
        run("mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=1", str(self._file))
        undo.register(f"image {self.path}", self._release)
        self.mount()

    def mount(self) -> None:
        run("mount", "-o", "loop", str(self._file), str(self.path))

    def power_off(self) -> None:
        """Everything that is not durable is gone from here on. The node must be stopped, and killed afterwards."""
        self._ioctl(_SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))

    def power_on(self) -> None:
        """What the disk holds, as a machine finds it that starts again. Nothing may have it open."""
        self._unmount()
        self.mount()

    def freeze(self) -> None:
        self._ioctl(_FREEZE, struct.pack("i", 0))

    def thaw(self) -> None:
        """Nothing happens if it is not frozen."""
        try:
            self._ioctl(_THAW, struct.pack("i", 0))
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise

    def fill(self) -> None:
        """Leave no room at all."""
        room = os.statvfs(self.path)
        with (self.path / "ballast").open("wb") as file, contextlib.suppress(OSError):
            os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize)
            while True:  # what allocation in one piece has left over
                file.seek(0, os.SEEK_END)
                file.write(bytes(4096))
                file.flush()

    def empty(self) -> None:
        (self.path / "ballast").unlink(missing_ok=True)

    @property
    def device(self) -> str:
        """major:minor of the loop device."""
        number = os.stat(self.path).st_dev
        return f"{os.major(number)}:{os.minor(number)}"

    def _ioctl(self, request: int, argument: bytes) -> None:
        handle = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(handle, request, argument)
        finally:
            os.close(handle)

    def _unmount(self) -> None:
        """A process that was just killed may hold the file system for a moment longer. Raises: OSError."""
        deadline = monotonic() + _UNMOUNT_S
        while True:
            done = subprocess.run(["umount", str(self.path)], capture_output=True, text=True, timeout=60, check=False)
            if done.returncode == 0:
                return
            if monotonic() > deadline:
                raise OSError(f"umount {self.path}: {done.stderr.strip()}")
            sleep(0.02)

    def _release(self) -> None:
        if os.path.ismount(self.path):
            self.thaw()
            self._unmount()
