"""The segment in use and the one made ready behind it: where bytes of the log go.

Next segment, in this order: zeros under a temporary name, durable (done ahead, at half of the segment before, so that
a full segment costs little when it comes); header, durable; renamed, directory durable; then the old segment
is sealed. A sealed segment without a successor therefore always means that a file was lost. A segment that begins anew,
after a snapshot, leaves the one before it as it is.
"""

from __future__ import annotations

from kvnode.storage.disk import DiskFile
from kvnode.storage.log_index import SegmentIndex
from kvnode.storage.log_place import LogPlace
from kvnode.storage.log_state import LogState
from kvnode.storage.segment import (
    HEADER_BYTES,
    SEGMENT_END,
    TEMPORARY,
    SegmentEnd,
    SegmentHeader,
    append_record,
    encode_payload,
    pack_header,
    segment_name,
)

_SEAL_RESERVE_BYTES = 1024  # room kept for the segment-end; a longer one makes the file grow


class SegmentWriter:
    """Used by the one thread that writes. Every method may raise OSError, and must not be called again then."""

    __slots__ = (
        "_disk",
        "_file",
        "_header",
        "_place",
        "_prepared",
        "_size",
        "crc_start",
        "offset",
    )

    def __init__(self, place: LogPlace) -> None:
        self._place = place
        self._disk = place.disk
        self._file: DiskFile | None = None
        self._header: SegmentHeader | None = None
        self._prepared: DiskFile | None = None
        self._size = 0
        self.crc_start = 0  # every record checksum of this segment begins with it
        self.offset = 0  # where the next record goes

    def resume(self, file: DiskFile, header: SegmentHeader, offset: int) -> bool:
        """Go on in an existing segment. False: do not write to it, it has lost its preallocated end."""
        self._file, self._header = file, header
        self._size, self.crc_start, self.offset = file.size(), header.crc_start, offset
        return self._size >= header.size

    def begin(
        self, state: LogState, need: int = 0, previous_end: int = 0, *, begins_anew: bool = False
    ) -> SegmentIndex:
        """Name and enter a new segment that continues the log as it stands; durable when this returns.

        `need`: room for one write of that many bytes. `previous_end`: where the segment before is sealed, 0 if not.
        `begins_anew`: nothing before it counts.
        """
        place = self._place
        file = self._prepare(max(place.segment_bytes, HEADER_BYTES + need + _SEAL_RESERVE_BYTES))
        header = SegmentHeader(
            stamp=place.stamp,
            sequence=self._header.sequence + 1 if self._header else 1,
            salt=place.random_u64(),
            first_index=state.index.last_index + 1,
            first_term=state.index.last_term,
            previous_seq=state.seq,
            previous_crc=state.crc,
            previous_end=previous_end,
            base=state.low_water,
            hard_state=state.hard_state,
            unsynced_max=max(2 * place.batch_bytes_max, need),  # the caller counts payloads, records are a bit longer
            last_time=state.last_time,
            size=file.size(),
            begins_anew=begins_anew,
        )
        path = f"{place.directory}/{segment_name(header.sequence, header.first_index)}"
        file.pwrite(0, pack_header(header))
        file.fdatasync()
        self._disk.rename(file.path, path)
        self._disk.fsync_dir(place.directory)
        self._prepared = None
        if self._file is not None and not previous_end:
            self._file.close()
        self._file, self._header = file, header
        self._size, self.crc_start, self.offset = header.size, header.crc_start, HEADER_BYTES
        return SegmentIndex(path, header, header.size)

    def fits(self, length: int) -> bool:
        """The segment has room for one write of `length` bytes, and writes of that length are announced in it."""
        assert self._header is not None
        return self.offset + length + _SEAL_RESERVE_BYTES <= self._size and length <= self._header.unsynced_max

    def put(self, buffer: bytearray) -> None:
        """Append `buffer`; durable when this returns."""
        file = self._file
        assert file is not None
        file.pwrite(self.offset, buffer)
        file.fdatasync()
        self.offset += len(buffer)

    def prepare_ahead(self) -> None:
        """Past the middle of the segment: make the next one's file ready."""
        if self._prepared is None and self.offset * 2 > self._size:
            self._prepare(self._place.segment_bytes)

    def roll(self, state: LogState, need: int) -> SegmentIndex:
        """Begin the next segment, with room for a write of `need` bytes, and seal the one in use."""
        old, old_offset, old_index = self._file, self.offset, state.index.segments[-1]
        assert old is not None
        seal, crc = self._seal(state)
        if not seal:
            return self.begin(state, need)
        state.seq, state.crc = state.seq + 1, crc
        begun = self.begin(state, need, previous_end=old_offset)
        old.pwrite(old_offset, seal)
        old.fdatasync()
        old_index.size = old.size()
        old.close()
        return begun

    def close(self) -> None:
        for file in (self._file, self._prepared):
            if file is not None:
                file.close()
        self._file = self._prepared = None

    def _prepare(self, size: int) -> DiskFile:
        """Have a file of `size` zero bytes under the temporary name."""
        file = self._prepared
        if file is None:
            path = f"{self._place.directory}/{TEMPORARY}"
            if self._disk.exists(path):  # after a crash it may be a segment's second name: never write into it
                self._disk.unlink(path)
            file = self._prepared = self._disk.open(path, create=True)
        file.preallocate(size)
        file.fdatasync()
        return file

    def _seal(self, state: LogState) -> tuple[bytearray, int]:
        """The segment-end of the segment in use and its checksum; empty if longer than one write may be."""
        assert self._header is not None
        log = state.index
        segment = log.segments[-1]
        run_indexes, run_terms = log.runs_of_newest()
        end = SegmentEnd(
            first_index=segment.first_index,
            first_term=log.term_at(segment.first_index - 1),
            last_index=log.last_index,
            last_time=state.last_time,
            hard_state=state.hard_state,
            base=state.low_water,
            run_indexes=tuple(run_indexes),
            run_terms=tuple(run_terms),
            check_indexes=tuple(segment.indexes),
            check_offsets=tuple(segment.offsets),
        )
        buffer, payload = bytearray(), encode_payload(end)
        term, index, seq = log.last_term, log.last_index, state.seq
        crc = append_record(buffer, self.crc_start, SEGMENT_END, state.crc, seq + 1, term, index, seq, payload)
        return (buffer, crc) if len(buffer) <= self._header.unsynced_max else (bytearray(), 0)
