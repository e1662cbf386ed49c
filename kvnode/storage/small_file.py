"""Small files that are replaced whole and never read half: identity, boot counter, peers.

The content is one line of JSON, then a line ``crc32 <8 hex digits>`` over it, newline included. A new content is
written under a temporary name, synced, renamed, and the directory synced: after a crash at any point the file
holds the old content or the new one. A file that does not check is refused, never replaced by a default.
"""

from __future__ import annotations

import posixpath
from typing import TypeVar
from zlib import crc32

import msgspec

from kvnode.storage.disk import Disk

T = TypeVar("T")

TEMPORARY_SUFFIX = ".tmp"


class DamagedFile(ValueError):
    """The file's content is not what was written."""


def write_small(disk: Disk, path: str, content: object) -> None:
    """Replace the file; durable when this returns. Raises: OSError."""
    line = msgspec.json.encode(content) + b"\n"
    aside = path + TEMPORARY_SUFFIX
    if disk.exists(aside):  # left by a crash; it may be the very file that `path` names, so never write into it
        disk.unlink(aside)
    file = disk.open(aside, create=True)
    try:
        file.pwrite(0, line + b"crc32 %08x\n" % crc32(line))
        file.fsync()
    finally:
        file.close()
    disk.rename(aside, path)
    disk.fsync_dir(posixpath.dirname(path) or ".")


def read_small(disk: Disk, path: str, kind: type[T]) -> T:
    """The content of the file. Raises: DamagedFile, FileNotFoundError, OSError."""
    file = disk.open(path)
    try:
        data = file.pread(0, file.size())
    finally:
        file.close()
    line, newline, check = data.partition(b"\n")
    line += newline
    if check != b"crc32 %08x\n" % crc32(line):
        raise DamagedFile(f"{path} is damaged: its checksum is wrong")
    try:
        return msgspec.json.decode(line, type=kind)
    except msgspec.MsgspecError as error:
        raise DamagedFile(f"{path} cannot be read by this version: {error}") from error
