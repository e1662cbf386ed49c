"""ReadOnlyDisk: the machine's file system behind the `Disk` port, for whoever looks at a data directory not its own.

Files are opened for reading only, so the kernel refuses every write to them; what would change a name is refused here.
"""

from __future__ import annotations

import errno
import os
from typing import Never

from kvnode.storage.realdisk import RealDisk, RealFile


def _refuse(path: str) -> Never:
    raise OSError(errno.EROFS, "opened for reading only", path)


class ReadOnlyDisk(RealDisk):
    """See `Disk`; what changes anything raises OSError."""

    def open(self, path: str, *, create: bool = False) -> RealFile:
        if create:
            _refuse(path)
        return RealFile(os.open(path, os.O_RDONLY | os.O_CLOEXEC), path)

    def mkdir(self, path: str) -> None:
        _refuse(path)

    def rename(self, source: str, target: str) -> None:
        _refuse(target)

    def unlink(self, path: str) -> None:
        _refuse(path)

    def fsync_dir(self, path: str) -> None:
        _refuse(path)

    def lock(self, path: str) -> Never:
        _refuse(path)
