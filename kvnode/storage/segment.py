"""One log segment: the bytes of its header and of its records, and nothing that does input or output.

A segment is a file ``<sequence, 10 digits>-<first index, 20 digits>.wal``: one header block, then records back
to back, then zeros up to the preallocated size. The size of the file never means the end of the log. All
numbers are little-endian and unsigned.

Header block, 4096 bytes

    offset  size  name             meaning
         0     8  magic            "KVNODEWL"
         8     4  format           1; another one is refused
        12     4  checksum         1 = CRC-32 as in zlib
        16     8  cluster id       ⎫
        24     8  member id        ⎬ who writes this log; a segment of somebody else is refused
        32     8  incarnation      ⎭
        40     8  sequence         number of this segment, from 1, +1 each, never reused
        48     8  salt             random; enters every record's checksum, so old bytes never pass as records
        56     8  first index      index of the next entry when the segment was begun
        64     8  first term       term of the entry before it
        72     8  previous seq     seq of the last record that counts in the previous segment, 0 if none
        80     4  previous crc     that record's checksum: the chain goes on from it
        84     4  feature level    0
        88     8  previous end     offset of the previous segment's segment-end record; 0: it was cut, not sealed
        96     8  base index       low-water mark: entries at or below it may be gone
       104     8  base term
       112     8  term             ⎫
       120     8  vote             ⎬ the hard state when the segment was begun
       128     8  commit           ⎭
       136     8  unsynced max     no write to this segment is longer than this many bytes
       144     8  last time        greatest hybrid timestamp of the entries before this segment
       152     8  size             the file was durably made this long before it was used
       160     8  begins anew      1: a snapshot took the place of every segment before this one; else 0
       168  3924  zero
      4092     4  crc              of the 4092 bytes before it

Record, every head at a multiple of 8

         0     4  crc              of everything behind it, padding included, begun with the crc of the salt
         4     4  length           of the payload
         8     1  type             see below; 0 is never valid, an unknown one is refused
         9     1  flags            0
        10     2  reserved         0
        12     4  previous crc     checksum of the record before, across segments
        16     8  seq              +1 for each record, for ever
        24     8  term             ⎫ by type
        32     8  index            ⎭
        40     8  durable seq      every record up to this one was durable when this one was written
        48        payload, zero padding to a multiple of 8

    type                 term                    index                  payload
    1 entry              term                    index                  msgpack [time, kind, session, sequence, payload]
    2 hard state         term                    commit                 vote, 8 bytes
    3 truncate-suffix    of the entry before     first index to go      none
    4 snapshot-marker    of the entry at index   low-water mark         none
    5 mark               0                       0                      zeros; says "durable up to durable seq"
    6 segment-end        of the last entry       last index             msgpack `SegmentEnd`

Marks come in pairs: the first one's payload fills its 512-byte sector, so that the second stands in another
sector and one lost sector never takes both the last records and every proof that they were there.

A segment comes to be in this order: written under a temporary name, durable; renamed, directory durable; only
then is the segment before it sealed with segment-end; only then is it written to. So a named segment always has
an intact header, everything before the seal was durable when it got its name, and a sealed segment always has a
successor. One that begins anew does not continue the entries of the one before it, only its records' numbers: the base
and the entry before the first are the snapshot's last. Segments before it are void, also where they come back.

Recovery (``wal_recovery.py``): a record is valid if its checksum, its seq and its link to the record before
are right. The first invalid place is the end of the log, a torn tail or damage; what decides is whether anything
shows that the record expected there had been durable.
"""

from __future__ import annotations

import re
from struct import Struct
from typing import Final
from zlib import crc32

import msgspec

from kvnode.raft.messages import HardState, LogPosition

MAGIC: Final = b"KVNODEWL"
FORMAT: Final = 1
CHECKSUM_CRC32: Final = 1
HEADER_BYTES: Final = 4096
HEAD_BYTES: Final = 48
ALIGN: Final = 8
PAYLOAD_BYTES_MAX: Final = 1 << 30

ENTRY: Final = 1
HARD_STATE: Final = 2
TRUNCATE: Final = 3
SNAPSHOT_MARKER: Final = 4
MARK: Final = 5
SEGMENT_END: Final = 6
TYPES: Final = frozenset((ENTRY, HARD_STATE, TRUNCATE, SNAPSHOT_MARKER, MARK, SEGMENT_END))

TEMPORARY: Final = "next.tmp"
"""Name under which the next segment is made ready; whatever stands under it at a start was never in use."""

_HEADER = Struct("<8sIIQQQQQQQQIIQQQQQQQQQQ")
HEAD = Struct("<IIBBHIQQQQ")
HEAD_TAIL = Struct("<IBBHIQQQQ")  # the head behind its checksum
CRC = Struct("<I")
VOTE = Struct("<Q")
SECTOR_BYTES: Final = 512
_PADDING = tuple(bytes(-n % ALIGN) for n in range(ALIGN))
_NAME = re.compile(r"([0-9]{10})-([0-9]{20})\.wal")


class Stamp(msgspec.Struct, frozen=True):
    """Who writes the log; stands in every segment header."""

    cluster_id: int
    member: int
    incarnation: int


class SegmentHeader(msgspec.Struct, frozen=True, kw_only=True):
    """The header block, decoded."""

    stamp: Stamp
    sequence: int
    salt: int
    first_index: int
    first_term: int
    previous_seq: int
    previous_crc: int
    previous_end: int
    base: LogPosition
    hard_state: HardState
    unsynced_max: int
    last_time: int
    size: int
    begins_anew: bool = False  # a snapshot stands for everything before it

    @property
    def crc_start(self) -> int:
        """What every record checksum of this segment begins with."""
        return crc32(self.salt.to_bytes(8, "little"))


class SegmentEnd(msgspec.Struct, frozen=True, array_like=True):
    """What a restart needs of a sealed segment it does not scan."""

    first_index: int  # entries from here to `last_index` stand in this segment; what older ones hold there is void
    first_term: int  # of the entry before `first_index`
    last_index: int
    last_time: int
    hard_state: HardState
    base: LogPosition
    run_indexes: tuple[int, ...]  # first index of each run of one term, ascending
    run_terms: tuple[int, ...]
    check_indexes: tuple[int, ...]  # sparse offset index: this entry …
    check_offsets: tuple[int, ...]  # … stands at this offset


class Record(msgspec.Struct, frozen=True, gc=False):
    """One verified record."""

    offset: int
    crc: int
    type: int
    previous_crc: int
    seq: int
    term: int
    index: int
    durable_seq: int
    payload: bytes
    end: int  # offset of the byte behind its padding


class FormatError(ValueError):
    """Bytes that are not what they should be; the caller knows the file and says so."""


class UnknownVersion(FormatError):
    """Intact bytes, written by a version of kvnode that this one does not know."""


def segment_name(sequence: int, first_index: int) -> str:
    return f"{sequence:010d}-{first_index:020d}.wal"


def parse_name(name: str) -> tuple[int, int] | None:
    """(sequence, first index) of a segment's file name, None if it is something else."""
    found = _NAME.fullmatch(name)
    return (int(found[1]), int(found[2])) if found else None


def pack_header(header: SegmentHeader) -> bytes:
    block = bytearray(HEADER_BYTES)
    _HEADER.pack_into(
        block,
        0,
        MAGIC,
        FORMAT,
        CHECKSUM_CRC32,
        header.stamp.cluster_id,
        header.stamp.member,
        header.stamp.incarnation,
        header.sequence,
        header.salt,
        header.first_index,
        header.first_term,
        header.previous_seq,
        header.previous_crc,
        0,
        header.previous_end,
        header.base.index,
        header.base.term,
        header.hard_state.term,
        header.hard_state.vote,
        header.hard_state.commit,
        header.unsynced_max,
        header.last_time,
        header.size,
        header.begins_anew,
    )
    CRC.pack_into(block, HEADER_BYTES - 4, crc32(block[:-4]))
    return bytes(block)


def unpack_header(block: bytes) -> SegmentHeader:
    """Raises: FormatError."""
    if len(block) < HEADER_BYTES:
        raise FormatError(f"the header block is cut short ({len(block)} bytes)")
    (magic, version, checksum, cluster, member, incarnation, sequence, salt, first_index, first_term, *rest) = (
        _HEADER.unpack_from(block)
    )
    previous_seq, previous_crc, features, previous_end, base_index, base_term, term, vote, commit, *tail = rest
    unsynced, time, size, anew = tail
    if magic != MAGIC:
        raise FormatError("the header does not begin with kvnode's magic bytes")
    if CRC.unpack_from(block, HEADER_BYTES - 4)[0] != crc32(block[: HEADER_BYTES - 4]):
        raise FormatError("the header's checksum is wrong")
    if version != FORMAT or checksum != CHECKSUM_CRC32 or features != 0 or anew > 1:
        raise UnknownVersion(
            f"format {version}, checksum {checksum}, features {features}, beginning {anew}: made by another version"
        )
    return SegmentHeader(
        stamp=Stamp(cluster, member, incarnation),
        sequence=sequence,
        salt=salt,
        first_index=first_index,
        first_term=first_term,
        previous_seq=previous_seq,
        previous_crc=previous_crc,
        previous_end=previous_end,
        base=LogPosition(base_term, base_index),
        hard_state=HardState(term, vote, commit),
        unsynced_max=unsynced,
        last_time=time,
        size=size,
        begins_anew=bool(anew),
    )


def append_record(  # noqa: PLR0917 (the hot path: the fields of the head, in their order)
    buffer: bytearray,
    crc_start: int,
    type_: int,
    previous_crc: int,
    seq: int,
    term: int,
    index: int,
    durable_seq: int,
    payload: bytes,
) -> int:
    """Append one framed record to `buffer`; returns its checksum, the next record's `previous_crc`."""
    head = HEAD_TAIL.pack(len(payload), type_, 0, 0, previous_crc, seq, term, index, durable_seq)
    padding = _PADDING[len(payload) % ALIGN]
    crc = crc32(payload, crc32(head, crc_start))
    if padding:
        crc = crc32(padding, crc)
    buffer += CRC.pack(crc)
    buffer += head
    buffer += payload
    buffer += padding
    return crc


def frame_bytes(payload_bytes: int) -> int:
    """Bytes of a record with a payload of that length."""
    return HEAD_BYTES + payload_bytes + -payload_bytes % ALIGN


encode_payload = msgspec.msgpack.Encoder().encode
decode_entry = msgspec.msgpack.Decoder(tuple[int, int, int, int, bytes]).decode
decode_segment_end = msgspec.msgpack.Decoder(SegmentEnd).decode
