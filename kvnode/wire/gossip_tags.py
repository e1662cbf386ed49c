"""The bodies of gossip ↔ MessagePack: packets, and what an exchange asks and answers; with every check before the core.

    datagram    a Packet
    exchange    a PullRequest, or a Packet when no datagram comes through
    answer      a PullReply, or a Packet, which may be empty

Each is an array that begins with its tag.
Tags and fields: `kvnode.gossip.messages`. What an answer carries of keyspace and timeline is bytes here, which their
owners check. A newer version appends fields and never sends a message of a new tag to who does not claim its level.
Everything wrong is a `CodecError`, and the whole of it is dropped; nothing else leaves the decoders.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from kvnode.clocks.version_vector import VectorRow, VersionVector
from kvnode.gossip.event import VECTOR_ORIGINS_MAX
from kvnode.gossip.key_state import KEY_BYTES_MAX
from kvnode.gossip.messages import (
    ADDRESS_CHARS_MAX,
    MEMBERS_MAX,
    NUMBER_MAX,
    PACKET_BYTES_MAX,
    PACKET_MESSAGES_MAX,
    TAG_CHARS_MAX,
    Ack,
    ExchangeReply,
    ExchangeRequest,
    Packet,
    Rumor,
    Status,
    Summary,
    SwimMessage,
)
from kvnode.wire.gossip_seal import SealKind, body_bytes_max
from kvnode.wire.limits import INTEGER_MAX, CodecError, check_range, check_size

_U64_MAX = (1 << 64) - 1
_T = TypeVar("_T")

_encoder = msgspec.msgpack.Encoder()
_packet_decoder = msgspec.msgpack.Decoder(Packet)
_exchange_decoder: msgspec.msgpack.Decoder[ExchangeRequest] = msgspec.msgpack.Decoder(ExchangeRequest)
_answer_decoder: msgspec.msgpack.Decoder[ExchangeReply] = msgspec.msgpack.Decoder(ExchangeReply)


def encode_packet(packet: Packet) -> bytes:
    """One datagram's body."""
    return _encoder.encode(packet)


def decode_packet(data: bytes | memoryview) -> Packet:
    """Inverse of `encode_packet`, in range and bounded. Raises CodecError."""
    packet = _decode(_packet_decoder, data, bytes_max=PACKET_BYTES_MAX)
    _check_packet(packet, data)
    return packet


def encode_exchange(asked: ExchangeRequest) -> bytes:
    """The body of a request."""
    return _encoder.encode(asked)


def decode_exchange(data: bytes) -> ExchangeRequest:
    """Inverse of `encode_exchange`. Raises CodecError."""
    asked = _decode(_exchange_decoder, data, bytes_max=body_bytes_max(SealKind.REQUEST))
    if isinstance(asked, Packet):
        _check_packet(asked, data)
        return asked
    _check_summary(asked.summary)
    _check_vector(asked.keyspace)
    _check_vector(asked.events)
    if len(asked.keyspace_after) > KEY_BYTES_MAX:
        raise CodecError(f"a place in the keyspace of {len(asked.keyspace_after)} bytes")
    _check_members(asked.members)
    return asked


def encode_answer(answer: ExchangeReply) -> bytes:
    """The body of the answer to an exchange."""
    return _encoder.encode(answer)


def decode_answer(data: bytes) -> ExchangeReply:
    """Inverse of `encode_answer`. Raises CodecError."""
    answer = _decode(_answer_decoder, data, bytes_max=body_bytes_max(SealKind.REPLY))
    if isinstance(answer, Packet):
        _check_packet(answer, data)
        return answer
    _check_summary(answer.summary)
    _check_members(answer.members)
    return answer


def _decode(decoder: msgspec.msgpack.Decoder[_T], data: bytes | memoryview, *, bytes_max: int) -> _T:
    check_size(data, bytes_max)
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CodecError(f"gossip: {error}") from error


# ── checks ──────────────────────────────────────────────────────────────────────────────────────────


def _check_packet(packet: Packet, data: bytes | memoryview) -> None:
    check_size(data, PACKET_BYTES_MAX)
    if len(packet.messages) > PACKET_MESSAGES_MAX:
        raise CodecError(f"a packet of {len(packet.messages)} messages, at most {PACKET_MESSAGES_MAX} are allowed")
    _check_summary(packet.summary)
    for message in packet.messages:
        _check_message(message)


def _check_summary(summary: Summary) -> None:
    check_range(summary.lamport)
    _check_u64(summary.keyspace, summary.events)


def _check_message(message: SwimMessage) -> None:
    if isinstance(message, Rumor):
        _check_rumor(message)
        return
    _check_id(message.member if isinstance(message, Ack) else message.target)
    check_range(message.seq)


def _check_rumor(rumor: Rumor) -> None:
    _check_id(rumor.member)
    check_range(rumor.by, rumor.beat, rumor.applied_index)
    if not 0 <= rumor.number <= NUMBER_MAX:
        raise CodecError(f"a rumor with number {rumor.number}")
    if not Status.ALIVE <= rumor.status <= Status.LEFT:
        raise CodecError(f"a rumor of status {rumor.status}")
    _check_u64(rumor.incarnation)
    _check_texts(ADDRESS_CHARS_MAX, rumor.address, rumor.client_url)
    _check_texts(TAG_CHARS_MAX, rumor.role, rumor.version)


def _check_members(members: tuple[Rumor, ...]) -> None:
    if len(members) > MEMBERS_MAX:
        raise CodecError(f"a table of {len(members)} members, at most {MEMBERS_MAX} are allowed")
    for rumor in members:
        _check_rumor(rumor)


def _check_vector(vector: VectorRow) -> None:
    if len(vector) > VECTOR_ORIGINS_MAX:
        raise CodecError(f"a vector of {len(vector)} origins, at most {VECTOR_ORIGINS_MAX} are allowed")
    try:
        VersionVector.from_row(vector)
    except ValueError as error:
        raise CodecError(f"gossip: {error}") from error


def _check_id(member: int) -> None:
    if not 1 <= member <= INTEGER_MAX:
        raise CodecError(f"member id {member}")


def _check_u64(*numbers: int) -> None:
    for number in numbers:
        if not 0 <= number <= _U64_MAX:
            raise CodecError(f"number {number} is out of range")


def _check_texts(chars_max: int, *texts: str) -> None:
    for text in texts:
        if len(text) > chars_max or not text.isprintable():
            raise CodecError(f"a text of {len(text)} characters: too long, or not printable")
