"""The format on disk, decoded by hand: struct and the `msgpack` package, nothing of kvnode's own."""

from __future__ import annotations

import struct
from zlib import crc32

import msgpack
import pytest

from kvnode.storage.segment import FormatError, Stamp, frame_bytes, pack_header, parse_name, segment_name, unpack_header
from tests.storage.wal_world import HOME, Expected, entry, new_disk, open_wal, persist, run

GOLDEN_LOG = [
    [persist(1, entry(1), state=(1, 2))],
    [persist(2, entry(1, 3, b"\x00\xff"), cut=1, state=(3, 0))],
]

GOLDEN_HEADER = (
    "4b564e4f4445574c0100000001000000c100000000000000020000000000000034120000000000000100000000000000"
    "38b4e652e44da7f201000000000000000000000000000000000000000000000000000000000000000000000000000000"
    "000000000000000000000000000000000000000000000000000000000000000000000000000000000020000000000000"
    "00000000000000000020000000000000"
)

GOLDEN_RECORDS = (
    "6fb462ed0800000002000000000000000100000000000000010000000000000000000000000000000000000000000000"  # hard state
    "0200000000000000"
    "f9c8b6e910000000010000006fb462ed0200000000000000010000000000000001000000000000000000000000000000"  # entry 1
    "95cd03e9020000c407656e7472792031"
    "43bbc99d0800000002000000f9c8b6e90300000000000000030000000000000000000000000000000200000000000000"  # hard state
    "0000000000000000"
    "4f1841d1000000000300000043bbc99d0400000000000000000000000000000001000000000000000200000000000000"  # truncate
    "87c9412e0b000000010000004f1841d10500000000000000030000000000000001000000000000000200000000000000"  # entry 1 again
    "95cd03eb020000c40200ff0000000000"
)


def records() -> tuple[bytes, list[tuple[int, ...]], list[bytes]]:
    disk = new_disk()
    run(disk, GOLDEN_LOG, Expected())
    data = disk.content(f"{HOME}/0000000001-00000000000000000001.wal")
    heads, payloads, offset = [], [], 4096
    while data[offset : offset + 48].strip(b"\0"):
        head = struct.unpack_from("<IIBBHIQQQQ", data, offset)
        payloads.append(data[offset + 48 : offset + 48 + head[1]])
        heads.append((*head, offset))
        offset += 48 + head[1] + -head[1] % 8
    return data, heads, payloads


def test_header_bytes() -> None:
    data, _, _ = records()
    magic, version, checksum, cluster, member, incarnation, sequence, salt = struct.unpack_from("<8sIIQQQQQ", data)
    assert (magic, version, checksum) == (b"KVNODEWL", 1, 1)
    assert (cluster, member, incarnation, sequence) == (0xC1, 2, 0x1234, 1)
    assert salt != 0
    first_index, first_term, previous_seq, previous_crc, features, previous_end = struct.unpack_from(
        "<QQQIIQ", data, 56
    )
    assert (first_index, first_term, previous_seq, previous_crc, features, previous_end) == (1, 0, 0, 0, 0, 0)
    # base, hard state, unsynced max, last time, size, zero
    assert struct.unpack_from("<9Q", data, 96) == (0, 0, 0, 0, 0, 8192, 0, 8192, 0)
    assert data[160:4092] == bytes(3932)
    assert struct.unpack_from("<I", data, 4092)[0] == crc32(data[:4092])


def test_record_bytes() -> None:
    data, heads, payloads = records()
    salt = data[48:56]
    previous = 0
    for number, (head, _payload) in enumerate(zip(heads, payloads, strict=True), start=1):
        crc, length, _type, flags, reserved, previous_crc, seq, _term, _index, _durable, offset = head
        end = offset + 48 + length + -length % 8
        assert crc == crc32(data[offset + 4 : end], crc32(salt))
        assert (flags, reserved, previous_crc, seq) == (0, 0, previous, number)
        assert offset % 8 == 0
        previous = crc
    types_terms_indexes_durable = [(head[2], head[7], head[8], head[9]) for head in heads]
    assert types_terms_indexes_durable == [
        (2, 1, 0, 0),  # hard state first: term 1, commit 0
        (1, 1, 1, 0),  # entry 1 of term 1
        (2, 3, 0, 2),  # hard state: term 3; records 1 and 2 were durable
        (3, 0, 1, 2),  # truncate from 1; the entry before has term 0
        (1, 3, 1, 2),
    ]
    assert payloads[0] == struct.pack("<Q", 2)
    assert payloads[2] == struct.pack("<Q", 0)
    assert payloads[3] == b""
    assert msgpack.unpackb(payloads[1]) == [1001, 2, 0, 0, b"entry 1"]
    assert msgpack.unpackb(payloads[4]) == [1003, 2, 0, 0, b"\x00\xff"]


def test_golden_bytes() -> None:
    """Change this only together with the format version."""
    data, heads, _ = records()
    end = heads[-1][-1] + 48 + heads[-1][1] + -heads[-1][1] % 8
    assert data[:160].hex() == GOLDEN_HEADER
    assert data[4096:end].hex() == GOLDEN_RECORDS


def test_segment_end_bytes() -> None:
    disk = new_disk()
    big = [[persist(i, entry(i, text=bytes(900)), state=(1, 1) if i == 1 else None)] for i in range(1, 5)]
    run(disk, big, Expected())
    first = disk.content(f"{HOME}/0000000001-00000000000000000001.wal")
    second = disk.content(f"{HOME}/0000000002-00000000000000000004.wal")
    previous_seq, previous_crc, _, offset = struct.unpack_from("<QIIQ", second, 72)
    crc, length, type_, _, _, _, seq, term, index, durable = struct.unpack_from("<IIBBHIQQQQ", first, offset)
    assert (crc, type_, seq, term, index, durable) == (previous_crc, 6, previous_seq, 1, 3, previous_seq - 1)
    assert msgpack.unpackb(first[offset + 48 : offset + 48 + length]) == [
        1, 0, 3, 3001, [1, 1, 0], [0, 0], [1], [1], [1], [4096 + 56],
    ]  # fmt: skip


def test_names() -> None:
    assert segment_name(3, 17) == "0000000003-00000000000000000017.wal"
    assert parse_name(segment_name(3, 17)) == (3, 17)
    for name in ("next.tmp", "3-17.wal", "0000000003-00000000000000000017.wal.bak", ""):
        assert parse_name(name) is None
    assert [frame_bytes(n) for n in (0, 1, 8, 9)] == [48, 56, 56, 64]


def test_header_round_trip_and_refusals() -> None:
    data, _, _ = records()
    header = unpack_header(data[:4096])
    assert header.stamp == Stamp(0xC1, 2, 0x1234)
    assert pack_header(header) == data[:4096]
    with pytest.raises(FormatError, match="cut short"):
        unpack_header(data[:4000])
    with pytest.raises(FormatError, match="magic"):
        unpack_header(bytes(4096))
    with pytest.raises(FormatError, match="checksum"):
        unpack_header(data[:200] + b"\x01" + data[201:4096])
    newer = bytearray(data[:4096])
    newer[8] = 2
    newer[4092:] = struct.pack("<I", crc32(newer[:4092]))
    with pytest.raises(FormatError, match="another version"):
        unpack_header(bytes(newer))


def test_salts_differ_between_segments_and_starts() -> None:
    disk = new_disk()
    run(disk, [[persist(i, entry(i, text=bytes(2000)), state=(1, 1))] for i in range(1, 6)], Expected())
    open_wal(disk.kill(), salts=3)
    salts = {disk.content(path)[48:56] for path in disk.files() if path.endswith(".wal")}
    assert len(salts) == len([path for path in disk.files() if path.endswith(".wal")]) > 2
