"""Frame layout, damage of every byte, and what a stranger's hello may hold."""

from __future__ import annotations

import random
import struct
import zlib
from typing import Any

import msgpack
import msgspec
import pytest

from kvnode.ids import Index, NodeId
from kvnode.wire.frames import (
    HEAD_BYTES,
    FrameKind,
    Hello,
    KnownMember,
    Refusal,
    decode_hello,
    decode_refusal,
    decode_time,
    encode_frame,
    encode_hello,
    encode_refusal,
    encode_time,
    split_frames,
)
from kvnode.wire.limits import CodecError, check_nesting

HELLO = Hello(
    protocol_min=1,
    protocol_max=1,
    cluster_name="local",
    cluster_id=0xFFFF_FFFF_FFFF_FFFF,
    member=NodeId(1),
    incarnation=7,
    boot_counter=3,
    boot_nonce=9,
    members=(KnownMember(NodeId(1), 7, "127.0.0.1:7501"), KnownMember(NodeId(2), 0, "127.0.0.1:7502")),
    address="127.0.0.1:7501",
    client_url="127.0.0.1:7401",
    lane="control",
    link=4,
    settings={"raft.heartbeat_ms": 50, "raft.profile": "lan"},
    nonce=bytes(range(32)),
    software="0.1.0",
    feature_level=1,
    earlier_boots=(8, 6),
    configuration_index=Index(12),
)


def test_frame_bytes_are_fixed() -> None:
    frame = encode_frame(FrameKind.MESSAGE, b"abc")
    assert frame.hex() == "00000003" + frame[4:8].hex() + "05010000" + b"abc".hex()
    assert struct.unpack(">I", frame[4:8])[0] == zlib.crc32(frame[:4] + frame[8:])
    assert encode_frame(FrameKind.PING).hex() == "00000000" + "418bea82" + "06010000"
    assert [(kind, bytes(payload)) for kind, payload in split_frames(frame, 3)] == [(5, b"abc")]


def test_several_frames_share_a_message() -> None:
    payloads = [b"", b"a", bytes(1_000)]
    data = b"".join(encode_frame(FrameKind.MESSAGE, payload) for payload in payloads)
    assert [bytes(payload) for _, payload in split_frames(data, 1_000)] == payloads


def test_every_damaged_bit_is_noticed() -> None:
    frame = encode_frame(FrameKind.MESSAGE, b"payload")
    for position in range(len(frame) * 8):
        damaged = bytearray(frame)
        damaged[position // 8] ^= 1 << (position % 8)
        with pytest.raises(CodecError):
            list(split_frames(bytes(damaged), 1_000))


def test_every_cut_is_noticed() -> None:
    data = encode_frame(FrameKind.MESSAGE, b"one") + encode_frame(FrameKind.MESSAGE, b"two")
    for end in range(len(data)):
        if end != HEAD_BYTES + 3:
            with pytest.raises(CodecError):
                list(split_frames(data[:end], 1_000))


def test_a_frame_over_the_limit_is_refused_by_its_head() -> None:
    frame = encode_frame(FrameKind.MESSAGE, bytes(11))
    with pytest.raises(CodecError, match="10 are allowed"):
        list(split_frames(frame, 10))


def test_hello_survives_and_is_plain_messagepack() -> None:
    data = encode_hello(HELLO)
    assert decode_hello(data) == HELLO
    assert msgpack.unpackb(data) == [
        *(1, 1, "local", 0xFFFF_FFFF_FFFF_FFFF, 1, 7, 3, 9),
        [[1, 7, "127.0.0.1:7501"], [2, 0, "127.0.0.1:7502"]],
        *("127.0.0.1:7501", "127.0.0.1:7401", "control", 4),
        {"raft.heartbeat_ms": 50, "raft.profile": "lan"},
        *(bytes(range(32)), "0.1.0", 1, [8, 6], 12),
    ]
    plain = msgpack.unpackb(data)
    assert decode_hello(msgpack.packb([*plain, {"new": [1]}])) == HELLO
    older = decode_hello(msgpack.packb(plain[:16]))
    assert (older.feature_level, older.earlier_boots, older.configuration_index) == (1, (), 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"nonce": bytes(31)},
        {"member": -1},
        {"incarnation": -1},
        {"earlier_boots": (5, -1)},
        {"earlier_boots": tuple(range(1_025))},
        {"boot_counter": 1 << 63},
        {"cluster_id": -1},
        {"configuration_index": -1},
        {"members": (KnownMember(NodeId(1), 1, "x" * 257),)},
        {"members": (KnownMember(NodeId(1), -1, "a:1"),)},
        {"client_url": "x" * 257},
        {"lane": "bulk"},
        {"settings": {"a": [1]}},
        {"settings": {str(number): number for number in range(2_000)}},
        {"software": "x" * 70_000},
    ],
)
def test_a_malformed_hello_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(CodecError):
        decode_hello(encode_hello(msgspec.structs.replace(HELLO, **changes)))


def test_refusals_hold_no_control_characters_and_are_bounded() -> None:
    assert decode_refusal(encode_refusal(Refusal("a", "b"))) == Refusal("a", "b")
    shown = decode_refusal(encode_refusal(Refusal("c" * 100, "\x1b[2J\n" + "s" * 1_000)))
    assert shown.sentence.startswith("?[2J?ss")
    assert (len(shown.code), len(shown.sentence)) == (64, 512)


def nested(depth: int) -> bytes:
    return b"\x91" * depth + b"\x01"


def test_nesting_and_number_of_values_are_bounded() -> None:
    check_nesting(nested(4), depth_max=4, items_max=10)
    with pytest.raises(CodecError, match="deep"):
        check_nesting(nested(5), depth_max=4, items_max=10)
    check_nesting(msgpack.packb([1] * 9), depth_max=4, items_max=10)
    with pytest.raises(CodecError, match="values"):
        check_nesting(msgpack.packb([1] * 10), depth_max=4, items_max=10)
    with pytest.raises(CodecError, match="values"):
        check_nesting(b"\xdf\xff\xff\xff\xff" + b"\x01" * 20, depth_max=4, items_max=10)


def test_the_nesting_check_reads_what_msgpack_writes() -> None:
    rng = random.Random(3)

    def value(depth: int) -> Any:
        match rng.randrange(9 if depth else 7):
            case 0:
                return rng.choice([0, 1, 127, 128, 255, 256, 1 << 16, 1 << 32, (1 << 64) - 1])
            case 1:
                return -rng.choice([1, 32, 33, 128, 129, 1 << 15, 1 << 31, 1 << 63])
            case 2:
                return rng.choice([None, True, False])
            case 3:
                return rng.random()
            case 4:
                return "x" * rng.choice([0, 1, 31, 32, 255, 256, 65_536])
            case 5 | 6:
                return bytes(rng.choice([0, 1, 255, 256, 65_536]))
            case 7:
                return [value(depth - 1) for _ in range(rng.choice([0, 1, 15, 16, 20]))]
            case _:
                return {str(number): value(depth - 1) for number in range(rng.choice([0, 1, 15, 16, 20]))}

    for _ in range(200):
        data = msgpack.packb(value(2))
        check_nesting(data, depth_max=3, items_max=100_000)
        if len(data) < 200:
            for end in range(len(data)):
                with pytest.raises(CodecError):
                    check_nesting(data[:end], depth_max=3, items_max=100_000)
        with pytest.raises(CodecError):
            check_nesting(data + b"\0", depth_max=3, items_max=100_000)
    for extension in (msgpack.packb(msgpack.ExtType(1, b"a")), msgpack.packb(msgpack.Timestamp(1))):
        with pytest.raises(CodecError, match="no value of this format"):
            check_nesting(extension, depth_max=3, items_max=10)


def test_fuzz_hellos() -> None:
    rng = random.Random(5)
    original = encode_hello(HELLO)
    for _ in range(3_000):
        data = bytearray(original)
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            decode_hello(bytes(data))
        except CodecError:
            continue


def test_a_frame_counts_once_and_in_its_place() -> None:
    one, two, three = (encode_frame(FrameKind.MESSAGE, b"same", number) for number in (1, 2, 3))
    assert [bytes(payload) for _, payload in split_frames(one + two + three, 10, 1)] == [b"same"] * 3
    for data, number in ((one + one, 1), (two, 1), (one + three, 1), (one, 2), (three + two, 3), (one, 0)):
        with pytest.raises(CodecError, match="repeated or out of order"):
            list(split_frames(data, 10, number))
    late = (1 << 32) + 5
    assert len(list(split_frames(encode_frame(FrameKind.PING, b"", late), 10, late))) == 1


def test_a_time_is_eight_bytes_in_range() -> None:
    frame = encode_time((1 << 63) - 1, 4)
    assert frame.hex() == "00000008" + frame[4:8].hex() + "0c010000" + "7fffffffffffffff"
    ((kind, payload),) = split_frames(frame, 8, 4)
    assert (kind, decode_time(payload)) == (FrameKind.TIME, (1 << 63) - 1)
    for data in (b"", bytes(7), bytes(9), b"\x80" + bytes(7)):
        with pytest.raises(CodecError):
            decode_time(memoryview(data))
