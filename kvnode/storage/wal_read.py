"""Reading durable entries back, for followers that are behind the leader's cache. Every record is verified."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from kvnode.errors import LogCorrupted
from kvnode.raft.messages import Entry, entry_bytes
from kvnode.storage.disk import Disk
from kvnode.storage.log_index import Stretch
from kvnode.storage.segment import ENTRY, FormatError
from kvnode.storage.segment_reader import SegmentReader, entry_of


def read_entries(disk: Disk, stretches: Sequence[Stretch], bytes_max: int) -> list[Entry]:
    """The entries of `stretches` in order, at least one, until their `entry_bytes` would pass `bytes_max`.

    Opens its own handles: the writer may close its file, or drop a segment, at any moment.

    Raises: LogCorrupted, OSError.
    """
    found: list[Entry] = []
    room = bytes_max
    for stretch in stretches:
        file = disk.open(stretch.path)
        try:
            reader = SegmentReader(file, stretch.crc_start)
            room = _read_stretch(reader, stretch, found, room)
        finally:
            file.close()
        if room <= 0:
            break
    return found


def _read_stretch(reader: SegmentReader, stretch: Stretch, found: list[Entry], room: int) -> int:
    """Append to `found`; returns the bytes of room left, 0 once the next entry would not fit."""
    behind = (stretch.last + 1, 0)
    for (check, offset), (until, _) in pairwise([*stretch.checkpoints, behind]):
        index, here = check, offset
        while index < until:
            record = reader.record_at(here)
            if record is None or (record.type == ENTRY and record.index != index):
                raise LogCorrupted(
                    f"{stretch.path}, offset {here}: entry {index} cannot be read back: the disk holds something else "
                    f"than was written",
                    repairable=True,
                    file=stretch.path,
                    offset=here,
                )
            here = record.end
            if record.type != ENTRY:
                continue
            if index >= stretch.first:
                try:
                    entry = entry_of(record)
                except FormatError as error:
                    raise LogCorrupted(
                        f"{stretch.path}, offset {record.offset}: {error}", file=stretch.path, offset=record.offset
                    ) from error
                size = entry_bytes(entry)
                if found and size > room:
                    return 0
                found.append(entry)
                room -= size
                if room <= 0:
                    return 0
            index += 1
    return room
