"""Verified records out of one segment file: every record read from disk is checked, whoever asks for it."""

from __future__ import annotations

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
    PAYLOAD_BYTES_MAX,
    TYPES,
    FormatError,
    Record,
    decode_entry,
)

_CHUNK_BYTES = 256 << 10
_ZEROS = bytes(_CHUNK_BYTES)


class Readable(Protocol):
    """The part of a `DiskFile` that reading needs."""

    def pread(self, offset: int, length: int) -> bytes: ...

    def size(self) -> int: ...


class SegmentReader:
    """Reads forward through a segment with a small buffer. `crc_start`: the checksum of the segment's salt."""

    def __init__(self, file: Readable, crc_start: int, chunk_bytes: int = _CHUNK_BYTES) -> None:
        self.size = file.size()
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
        frame = self._data[at + 4 : at + end - offset]
        if crc32(frame, self._crc_start) != crc or (padding and frame[-padding:] != _ZEROS[:padding]):
            return None
        payload = frame[HEAD_BYTES - 4 : HEAD_BYTES - 4 + length]
        return Record(offset, crc, type_, previous_crc, seq, term, index, durable_seq, payload, end)

    def last_nonzero(self, offset: int) -> int:
        """Offset behind the last byte at or after `offset` that is not zero; `offset` if all are."""
        found = offset
        at = offset
        while at < self.size:
            chunk = self._file.pread(at, min(_CHUNK_BYTES, self.size - at))
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
            _, _, type_, _, _, _, found, _, _, durable_seq = HEAD.unpack_from(self._data, here)
            if type_ in TYPES and seq <= durable_seq < found <= seq_max:
                record = self.record_at(at)
                if record is not None:
                    return record
        return None

    def _window(self, offset: int, length: int) -> int:
        """Have `length` bytes at `offset` in the buffer; returns where they begin in it."""
        at = offset - self._start
        if at < 0 or at + length > len(self._data):
            self._data = self._file.pread(offset, min(max(length, self._chunk_bytes), self.size - offset))
            self._start, at = offset, 0
        return at


def entry_of(record: Record) -> Entry:
    """The entry an entry record holds. Raises: FormatError."""
    assert record.type == ENTRY, record.type
    try:
        time, kind, session, sequence, payload = decode_entry(record.payload)
    except msgspec.MsgspecError as error:
        raise FormatError(f"entry {record.index} cannot be decoded ({error})") from error
    return Entry(Term(record.term), Index(record.index), time, kind, payload, session, sequence)
