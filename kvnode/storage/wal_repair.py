"""What a start changes on disk before the log goes on; each step may be interrupted and done again."""

from __future__ import annotations

import msgspec

from kvnode.errors import IdentityRefused
from kvnode.ids import Index, Term
from kvnode.raft.messages import HardState, LogPosition
from kvnode.storage.disk import Disk, DiskFile
from kvnode.storage.segment import HEADER_BYTES, Stamp, parse_name
from kvnode.storage.segment_reader import read_or_none
from kvnode.storage.wal_recovery import TORN_PREFIX, Found, TornTail, find_log, header_of

_COPY_BYTES_MAX = 1 << 20
_COPIES_MAX = 8
_CHUNK_BYTES = 1 << 20
_BLOCK_BYTES = 4096  # what a disk may be unable to read hides no more than this around it


def make_durable(disk: Disk, found: Found) -> None:
    """Write the header and the last two writes of the last two segments once more as they are, and sync.

    They were read, but that does not make them durable: after ``kill -9`` they may stand in memory only, and after
    a failed fsync the kernel takes such pages for clean. Identical bytes cannot tear.
    """
    for path, start, end in found.doubtful:
        file = disk.open(path)
        try:
            file.pwrite(0, file.pread(0, HEADER_BYTES))
            for at in range(start, end, _CHUNK_BYTES):
                file.pwrite(at, file.pread(at, min(_CHUNK_BYTES, end - at)))
            file.fdatasync()
        finally:
            file.close()


def sweep(disk: Disk, directory: str, found: Found) -> None:
    """Remove what was never part of the log or is no longer."""
    gone = [*found.temporary, *found.stale]
    if found.empty_successor:
        gone.append(found.empty_successor)
    for path in gone:
        disk.unlink(path)
    if gone:
        disk.fsync_dir(directory)


def save_copy(disk: Disk, directory: str, file: DiskFile, sequence: int, torn: TornTail) -> TornTail:
    """Keep the first MiB of the cut bytes for diagnosis, zeros where they cannot be read; the newest few are kept."""
    name = f"{TORN_PREFIX}{sequence:010d}-{torn.offset:010d}.bin"
    kept = [other for other in disk.listdir(directory) if other.startswith(TORN_PREFIX)]
    for old in kept[: max(0, len(kept) - _COPIES_MAX + 1)] + ([name] if name in kept else []):
        if disk.exists(f"{directory}/{old}"):
            disk.unlink(f"{directory}/{old}")
    path = f"{directory}/{name}"
    copy = disk.open(path, create=True)
    try:
        until = torn.offset + min(torn.bytes_cut, _COPY_BYTES_MAX)
        at = torn.offset
        while at < until:
            length = min(_BLOCK_BYTES - at % _BLOCK_BYTES, until - at)
            copy.pwrite(at - torn.offset, read_or_none(file, at, length) or bytes(length))
            at += length
        copy.fdatasync()
    finally:
        copy.close()
    disk.fsync_dir(directory)
    return msgspec.structs.replace(torn, saved=path)


def clear_unused(disk: Disk, directory: str, stamp: Stamp, installed: LogPosition | None) -> None:
    """Remove a log that was begun but never used: no vote and no entry, no term but that of the snapshot `installed`.

    Raises: IdentityRefused if it was used, or by somebody else; LogCorrupted, OSError.
    """
    paths = [f"{directory}/{name}" for name in disk.listdir(directory) if parse_name(name)]
    if not paths:
        return
    written_by = header_of(disk, paths[0]).stamp
    applied = installed.index if installed is not None else Index(0)
    found = find_log(disk, directory, written_by, applied, installed=installed)
    assert found is not None
    log, nothing = found.state.index, LogPosition(Term(0), Index(0))
    begun = log.base if log.base in {nothing, installed} else nothing
    unused = log.last_index == begun.index and found.state.hard_state == HardState(begun.term, commit=begun.index)
    if (written_by.member, written_by.incarnation) != (stamp.member, stamp.incarnation) or not unused:
        raise IdentityRefused(
            f"{directory} holds the log of member {written_by.member} of cluster {written_by.cluster_id:016x}, but the "
            f"identity beside it has never been part of a cluster; the two do not belong together",
            file=paths[0],
        )
    for path in reversed(paths):
        disk.unlink(path)
    disk.fsync_dir(directory)
