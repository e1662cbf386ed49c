"""Verified records out of one segment file: every record read from disk is checked, whoever asks for it.

A place that the disk cannot read (EIO: a bad sector) holds no intact record, as if something else stood there, and is
remembered: it is damage, never the end of a torn write. Any other error of the disk is the caller's.
"""

from __future__ import annotations

import errno
from typing import Protocol
from zlib import crc32

import msgspec

from kvnode.ids import Index, Term
from kvnode.raft.messages import Entry
from kvnode.storage.segment import (
    ALIGN,
    ENTRY,
    HEAD,
    HEAD_BYTES,
    HEADER_BYTES,
    PAYLOAD_BYTES_MAX,
    SECTOR_BYTES,
    TYPES,
    FormatError,
    Record,
    SegmentHeader,
    decode_entry,
    unpack_header,
)

_CHUNK_BYTES = 256 << 10
_ZEROS = bytes(_CHUNK_BYTES)


class Readable(Protocol):
    """The part of a `DiskFile` that reading needs."""

    def pread(self, offset: int, length: int) -> bytes: ...

    def size(self) -> int: ...


def read_or_none(file: Readable, offset: int, length: int) -> bytes | None:
    """None: the disk cannot read all of these bytes, asked twice. Raises: OSError for any other reason.

    Twice, because a fault that passes is not worth a quarantine; what is read is verified in any case.
    """
    for _ in range(2):
        try:
            return file.pread(offset, length)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
    return None


def read_header(file: Readable) -> SegmentHeader:
    """Raises: FormatError (damaged or unreadable), UnknownVersion, OSError."""
    header = read_or_none(file, 0, HEADER_BYTES)
    if header is None:
        raise FormatError("the header cannot be read: input/output error")
    return unpack_header(header)


class SegmentReader:
    """Reads forward through a segment with a small buffer. `crc_start`: the checksum of the segment's salt."""

    def __init__(self, file: Readable, crc_start: int, chunk_bytes: int = _CHUNK_BYTES) -> None:
        self.size = file.size()
        self.unreadable: int | None = None  # offset of the first place asked for that the disk could not read
        self._file = file
        self._crc_start = crc_start
        self._chunk_bytes = chunk_bytes
        self._data = b""
        self._start = 0

    def record_at(self, offset: int) -> Record | None:
        """The record at `offset`, or None if there is no intact one. An unknown type counts as intact."""
        if offset + HEAD_BYTES > self.size:
            return None
        at = offset - self._start
        if at < 0 or at + HEAD_BYTES > len(self._data):
            at = self._window(offset, HEAD_BYTES)
            if len(self._data) < HEAD_BYTES:
                return None
        crc, length, type_, flags, reserved, previous_crc, seq, term, index, durable_seq = HEAD.unpack_from(
            self._data, at
        )
        padding = -length % ALIGN
        end = offset + HEAD_BYTES + length + padding
        if not type_ or flags or reserved or length > PAYLOAD_BYTES_MAX or end > self.size:
            return None
        if at + end - offset > len(self._data):
            at = self._window(offset, end - offset)
            if len(self._data) < end - offset:
                return None
        frame = self._data[at + 4 : at + end - offset]
        if crc32(frame, self._crc_start) != crc or (padding and frame[-padding:] != _ZEROS[:padding]):
            return None
        payload = frame[HEAD_BYTES - 4 : HEAD_BYTES - 4 + length]
        return Record(offset, crc, type_, previous_crc, seq, term, index, durable_seq, payload, end)

    def last_nonzero(self, offset: int) -> int:
        """Offset behind the last byte at or after `offset` that is not zero; `offset` if all are.

        The size of the file if not all can be read: nobody knows what stands there.
        """
        found = offset
        at = offset
        step = _CHUNK_BYTES
        while at < self.size:
            chunk = read_or_none(self._file, at, min(step - at % step, self.size - at))
            if chunk is None and step > SECTOR_BYTES:
                step = SECTOR_BYTES  # to tell where it is
                continue
            if chunk is None:
                self._note(at)
                return self.size
            if not chunk:
                break
            if chunk != _ZEROS[: len(chunk)]:
                found = at + len(chunk.rstrip(b"\0"))
            at += len(chunk)
        return found

    def find_later(self, offset: int, end: int, seq: int) -> Record | None:
        """A record behind the damage at `offset` that proves record `seq` was durable, if there is one.

        Looks at every multiple of 8. Records of the torn batch itself are no proof: they were written
        together with `seq`, and a disk may keep a later page of one write and lose an earlier one.
        """
        seq_max = seq + (end - offset) // HEAD_BYTES + 1
        for at in range(offset, end, ALIGN):
            if at + HEAD_BYTES > self.size:
                break
            here = self._window(at, HEAD_BYTES)
            if here + HEAD_BYTES > len(self._data):
                continue
            _, _, type_, _, _, _, found, _, _, durable_seq = HEAD.unpack_from(self._data, here)
            if type_ in TYPES and seq <= durable_seq < found <= seq_max:
                record = self.record_at(at)
                if record is not None:
                    return record
        return None

    def _window(self, offset: int, length: int) -> int:
        """Have `length` bytes at `offset` in the buffer, or fewer; returns where they begin in it."""
        at = offset - self._start
        if at < 0 or at + length > len(self._data):
            data = read_or_none(self._file, offset, min(max(length, self._chunk_bytes), self.size - offset))
            if data is None and length < self._chunk_bytes:
                self._chunk_bytes = 0  # read no more than is asked for: the place may lie further on
                data = read_or_none(self._file, offset, min(length, self.size - offset))
            if data is None:
                self._note(offset)
                data = b""
            self._data, self._start, at = data, offset, 0
        return at

    def _note(self, offset: int) -> None:
        if self.unreadable is None:
            self.unreadable = offset


def entry_of(record: Record) -> Entry:
    """The entry an entry record holds. Raises: FormatError."""
    assert record.type == ENTRY, record.type
    try:
        time, kind, session, sequence, payload = decode_entry(record.payload)
    except msgspec.MsgspecError as error:
        raise FormatError(f"entry {record.index} cannot be decoded ({error})") from error
    return Entry(Term(record.term), Index(record.index), time, kind, payload, session, sequence)
