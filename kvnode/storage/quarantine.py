"""The note that this log has lost something it acknowledged, kept beside the segments until that is made good.

It is durable before the first byte of a damaged log is set aside, so that no crash in between makes a shortened log
look like a whole one, and it goes only when the core says that everything is there again (`kvnode.raft.quarantine`).
"""

from __future__ import annotations

import msgspec

from kvnode.errors import LogCorrupted
from kvnode.storage.disk import Disk
from kvnode.storage.small_file import TEMPORARY_SUFFIX, DamagedFile, read_small, write_small

NAME = "quarantine"
NAMES = frozenset({NAME, NAME + TEMPORARY_SUFFIX})


class Quarantine(msgspec.Struct, frozen=True):
    """What is missing, and why."""

    commit: int  # entries up to here were known to be committed before the damage, and are there
    what: str  # the damage, as it was found
    file: str
    offset: int
    is_set_aside: bool = False  # False: found, but the damaged log still stands where it stood


def note_of(damage: LogCorrupted, *, commit: int = 0) -> Quarantine:
    """The note to begin with: nothing has been set aside yet."""
    detail = damage.detail
    return Quarantine(commit, damage.what, str(detail.get("file", "")), int(detail.get("offset", 0)))


def read_note(disk: Disk, directory: str) -> Quarantine | None:
    """None: this log is whole, as far as anybody knows. Raises: LogCorrupted if the note itself is damaged, OSError."""
    path = f"{directory}/{NAME}"
    if not disk.exists(path):
        return None
    try:
        return read_small(disk, path, Quarantine)
    except DamagedFile as error:
        raise LogCorrupted(
            f"{error}. It says what this node has lost, so the node does not start; remove this member and add it "
            "again with an empty data directory",
            file=path,
            offset=0,
        ) from error


def write_note(disk: Disk, directory: str, note: Quarantine) -> None:
    """Durable when this returns. Raises: OSError."""
    write_small(disk, f"{directory}/{NAME}", note)


def remove_note(disk: Disk, directory: str) -> None:
    """Durable when this returns. Raises: OSError."""
    disk.unlink(f"{directory}/{NAME}")
    disk.fsync_dir(directory)
