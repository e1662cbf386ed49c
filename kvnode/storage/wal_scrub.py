"""Scrubbing: sealed segments are read again now and then, because what nobody reads rots unnoticed.

Every record of every segment but the newest is verified: that the disk can read it, its checksum, its place in the
chain, and that the segment ends with the record its successor continues. A start skips segments whose entries the store
has applied, and followers ask for old entries when it is too late to find them unreadable, so this is the check that
finds damage while peers are whole.
"""

from __future__ import annotations

from collections.abc import Sequence

from kvnode.storage.disk import Disk
from kvnode.storage.log_index import SegmentIndex
from kvnode.storage.segment import HEADER_BYTES, SegmentHeader
from kvnode.storage.segment_reader import SegmentReader
from kvnode.storage.wal_recovery import corrupted, header_of


class Scrubber:
    """Remembers where the check stands. Used by one thread."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._begin(0)

    def _begin(self, sequence: int) -> None:
        """Next comes the first segment numbered `sequence` or higher."""
        self._sequence = sequence
        self._offset = 0  # 0: not even the header has been read
        self._seq = self._crc = 0  # the record before `offset`

    def step(self, segments: Sequence[SegmentIndex], bytes_max: int) -> bool:
        """Verify at most about `bytes_max` bytes of one segment; True once all but the newest have been seen.

        Raises: LogCorrupted, OSError (FileNotFoundError also for a segment that was dropped meanwhile).
        """
        at = next((at for at, segment in enumerate(segments[:-1]) if segment.sequence >= self._sequence), None)
        if at is None:
            self._begin(0)
            return True
        segment, successor = segments[at], header_of(self._disk, segments[at + 1].path)
        if segment.sequence != self._sequence:
            self._begin(segment.sequence)
        if not self._offset:
            header = header_of(self._disk, segment.path)
            self._offset, self._seq, self._crc = HEADER_BYTES, header.previous_seq, header.previous_crc
        if self._verify(segment, successor, self._offset + bytes_max):
            self._begin(segment.sequence + 1)
        return False

    def _verify(self, segment: SegmentIndex, successor: SegmentHeader, stop: int) -> bool:
        """Follow the chain up to `stop` or the segment's last record; whether that was it."""
        file = self._disk.open(segment.path)
        try:
            reader = SegmentReader(file, segment.crc_start)
            while self._seq < successor.previous_seq and self._offset < stop:
                record = reader.record_at(self._offset)
                if record is None or (record.seq, record.previous_crc) != (self._seq + 1, self._crc):
                    what = f"record {self._seq + 1} was here and is not any more"
                    if reader.unreadable is not None:
                        what = f"record {self._seq + 1} cannot be read (input/output error)"
                    raise corrupted(segment.path, self._offset, what)
                self._seq, self._crc, self._offset = record.seq, record.crc, record.end
        finally:
            file.close()
        if self._seq < successor.previous_seq:
            return False
        if self._crc != successor.previous_crc:
            raise corrupted(segment.path, self._offset, f"record {self._seq} is not the one the next segment continues")
        return True


def is_dropped(segments: Sequence[SegmentIndex], error: FileNotFoundError) -> bool:
    """Whether the file that was not found belongs to no segment any more."""
    return all(segment.path != error.filename for segment in segments)
