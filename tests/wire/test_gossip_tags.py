"""Bodies of gossip: golden bytes read back by the independent `msgpack` package, refusals, fuzz."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from typing import Any

import msgpack
import msgspec
import pytest

from kvnode.gossip.event import VECTOR_ORIGINS_MAX
from kvnode.gossip.key_state import ORIGINS_MAX
from kvnode.gossip.messages import (
    ADDRESS_CHARS_MAX,
    MEMBERS_MAX,
    NUMBER_MAX,
    PACKET_MESSAGES_MAX,
    TAG_CHARS_MAX,
    Ack,
    Nack,
    Packet,
    Ping,
    PingReq,
    PullReply,
    PullRequest,
    Rumor,
    Summary,
)
from kvnode.ids import NodeId
from kvnode.wire.gossip_seal import SealKind, body_bytes_max
from kvnode.wire.gossip_tags import (
    decode_answer,
    decode_exchange,
    decode_packet,
    encode_answer,
    encode_exchange,
    encode_packet,
)
from kvnode.wire.limits import CodecError

U64 = (1 << 64) - 1
ONE, TWO = NodeId(1), NodeId(2)
SUMMARY = Summary(keyspace=U64, events=1, lamport=(1 << 63) - 1)
RUMOR = Rumor(
    *(TWO, NUMBER_MAX, 1),
    by=ONE,
    incarnation=U64,
    address="host:7502",
    beat=3,
    client_url="host:7402",
    role="voter",
    version="0.1.0",
    applied_index=12,
)
PACKET = Packet(SUMMARY, (Ping(TWO, 5), Ack(ONE, 6), PingReq(TWO, 7), Nack(TWO, 8), RUMOR))
VECTOR = ((1, 5, 9), (1, 6, 1), (2, U64, (1 << 63) - 1))
REQUEST = PullRequest(SUMMARY, VECTOR, (), (RUMOR,), want_keyspace=True)
REPLY = PullReply(SUMMARY, (RUMOR,), b"keys", b"events", more=True)


def test_a_packet_is_plain_messagepack() -> None:
    data = encode_packet(PACKET)
    rumor = [5, 2, NUMBER_MAX, 1, 1, U64, "host:7502", 3, "host:7402", "voter", "0.1.0", 12]
    assert msgpack.unpackb(data) == [
        3,
        [U64, 1, (1 << 63) - 1],
        [[1, 2, 5], [2, 1, 6], [3, 2, 7], [4, 2, 8], rumor],
    ]
    assert decode_packet(data) == PACKET
    assert encode_packet(Packet(Summary())).hex() == "93039300000090"


def test_exchanges_and_answers_survive() -> None:
    for asked in (REQUEST, PACKET):
        assert decode_exchange(encode_exchange(asked)) == asked
    for answer in (REPLY, PACKET):
        assert decode_answer(encode_answer(answer)) == answer
    assert encode_exchange(PACKET) == encode_answer(PACKET) == encode_packet(PACKET)
    vector = [list(row) for row in VECTOR]
    assert msgpack.unpackb(encode_exchange(PullRequest(Summary(), VECTOR))) == [
        1,
        [0] * 3,
        vector,
        [],
        [],
        False,
        False,
        b"",
    ]
    assert msgpack.unpackb(encode_answer(REPLY))[0::3] == [2, b"keys"]


def test_what_a_newer_version_appends_is_skipped() -> None:
    plain = msgpack.unpackb(encode_packet(PACKET))
    plain[1].append(1)
    plain[2][0].append({"new": 1})
    assert decode_packet(msgpack.packb([*plain, [1]])) == PACKET
    older = msgpack.packb([3, [1], [[5, 2, 1, 1]]])
    assert decode_packet(older) == Packet(Summary(1), (Rumor(TWO, 1, 1),))


@pytest.mark.parametrize(
    "message",
    [
        Ping(NodeId(0), 1),
        Ping(NodeId(1 << 63), 1),
        Ping(TWO, -1),
        Ack(NodeId(0), 1),
        PingReq(NodeId(-1), 1),
        Nack(TWO, 1 << 63),
    ],
)
def test_messages_out_of_range(message: Any) -> None:
    with pytest.raises(CodecError):
        decode_packet(encode_packet(Packet(SUMMARY, (message,))))


@pytest.mark.parametrize(
    "changes",
    [
        {"member": 0},
        {"number": -1},
        {"number": NUMBER_MAX + 1},
        {"status": 0},
        {"status": 5},
        {"by": -1},
        {"incarnation": -1},
        {"beat": -1},
        {"beat": 1 << 63},
        {"applied_index": -1},
        {"address": "x" * (ADDRESS_CHARS_MAX + 1)},
        {"client_url": "\x1b[2J"},
        {"role": "x" * (TAG_CHARS_MAX + 1)},
        {"version": "a\nb"},
    ],
)
def test_rumors_out_of_range_wherever_they_stand(changes: dict[str, Any]) -> None:
    rumor = msgspec.structs.replace(RUMOR, **changes)
    with pytest.raises(CodecError):
        decode_packet(encode_packet(Packet(SUMMARY, (rumor,))))
    with pytest.raises(CodecError):
        decode_exchange(encode_exchange(PullRequest(SUMMARY, members=(rumor,))))
    with pytest.raises(CodecError):
        decode_answer(encode_answer(PullReply(SUMMARY, members=(rumor,))))


@pytest.mark.parametrize("summary", [Summary(-1), Summary(0, -1), Summary(0, 0, -1), Summary(0, 0, 1 << 63)])
def test_summaries_out_of_range(summary: Summary) -> None:
    for check in (
        lambda: decode_packet(encode_packet(Packet(summary))),
        lambda: decode_exchange(encode_exchange(PullRequest(summary))),
        lambda: decode_answer(encode_answer(PullReply(summary))),
    ):
        with pytest.raises(CodecError):
            check()


@pytest.mark.parametrize(
    "vector",
    [
        ((0, 1, 1),),
        ((1, -1, 1),),
        ((1, 1, 0),),
        ((1, 1, 1 << 63),),
        ((1, 1, 1), (1, 1, 2)),
        ((2, 1, 1), (1, 1, 1)),
        tuple((1, number, 1) for number in range(VECTOR_ORIGINS_MAX + 1)),
    ],
)
def test_vectors_that_are_none(vector: tuple[tuple[int, int, int], ...]) -> None:
    for request in (PullRequest(SUMMARY, keyspace=vector), PullRequest(SUMMARY, events=vector)):
        with pytest.raises(CodecError):
            decode_exchange(encode_exchange(request))


def test_what_a_timeline_at_its_bound_asks_for_fits_into_a_request() -> None:
    vector = tuple((2**62, 2**63 + number, 2**40) for number in range(VECTOR_ORIGINS_MAX))
    request = PullRequest(Summary(), vector[:ORIGINS_MAX], vector, want_keyspace=True, want_events=True)
    data = encode_exchange(request)
    assert len(data) <= body_bytes_max(SealKind.REQUEST)
    assert decode_exchange(data) == request


def test_bounds_of_packets_and_tables() -> None:
    most = tuple(Ping(TWO, 1) for _ in range(PACKET_MESSAGES_MAX))
    assert len(decode_packet(encode_packet(Packet(SUMMARY, most))).messages) == PACKET_MESSAGES_MAX
    with pytest.raises(CodecError, match="messages"):
        decode_packet(encode_packet(Packet(SUMMARY, (*most, Ping(TWO, 1)))))
    with pytest.raises(CodecError, match="bytes"):
        decode_packet(encode_packet(Packet(SUMMARY, (RUMOR,) * 40)))
    for decode in (decode_exchange, decode_answer):
        with pytest.raises(CodecError, match="bytes"):
            decode(encode_packet(Packet(SUMMARY, (RUMOR,) * 40)))
    table = tuple(Rumor(NodeId(number), 1, 1) for number in range(1, MEMBERS_MAX + 2))
    decode_exchange(encode_exchange(PullRequest(SUMMARY, members=table[:-1])))
    with pytest.raises(CodecError, match="table"):
        decode_exchange(encode_exchange(PullRequest(SUMMARY, members=table)))


@pytest.mark.parametrize("data", [b"", b"\x00", b"\x90", b"\x91\x03", b"\x92\x04\x90", b"\x91" * 5_000])
def test_what_is_no_exchange(data: bytes) -> None:
    for decode in (decode_exchange, decode_answer):
        with pytest.raises(CodecError):
            decode(data)


def test_a_request_is_no_answer() -> None:
    with pytest.raises(CodecError):
        decode_answer(encode_exchange(REQUEST))
    with pytest.raises(CodecError):
        decode_exchange(encode_answer(REPLY))


@pytest.mark.parametrize(
    ("decode", "data"),
    [
        (decode_packet, encode_packet(PACKET)),
        (decode_exchange, encode_exchange(REQUEST)),
        (decode_exchange, encode_exchange(PACKET)),
        (decode_answer, encode_answer(REPLY)),
    ],
)
def test_fuzz(decode: Callable[[bytes], Any], data: bytes) -> None:
    """Cut, flipped, random: read, or a CodecError; nothing else."""
    rng = random.Random(6)
    for end in range(len(data)):
        with pytest.raises(CodecError):
            decode(data[:end])
    for _ in range(3_000):
        damaged = bytearray(data)
        for _ in range(rng.randrange(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        with contextlib.suppress(CodecError):
            decode(bytes(damaged))
        with contextlib.suppress(CodecError):
            decode(data[:1] + rng.randbytes(rng.randrange(60)))
