"""Frames: how messages stand on a peer connection, and the messages of the handshake.

A frame is a 12-byte head and a payload. One WebSocket binary message holds one or more whole frames: what is
ready to go at the same moment shares a system call.

    offset  size  name      meaning
    0       4     length    bytes of payload that follow the head; big-endian, like all numbers here
    4       4     crc32     begun with the frame's number; of the 4 bytes of `length`, then the bytes from offset 8 to
                            the end of the payload
    8       1     kind      `FrameKind`; an unknown one closes the connection
    9       1     version   `PROTOCOL`, the version both sides chose
    10      2     reserved  0
    12      –     payload   HELLO, REFUSAL, MESSAGE: MessagePack; PROOF: 32 bytes; WELCOME, PING, DONE: nothing;
                            OFFER: a snapshot's header; WANT, END: a number in 8 bytes; BLOCK: its number in 8 bytes,
                            then the block; TIME: the sender's Lamport time in 8 bytes

The checksum is there for damage on the way (a weak TCP checksum, a proxy), not against an attacker. Each side numbers
the frames it sends after the handshake from 1; those of the handshake have number 0. The number is not sent, but the
checksum is begun with it: a frame that comes twice, late or out of order does not match, which what must not come twice
relies on (a forwarded proposal). A frame that fails any check ends the connection; nothing of it is used. Up to
`HANDSHAKE_BYTES_MAX` bytes are read from a stranger, and nothing but the three handshake payloads is decoded before
both sides have proven the secret.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from enum import IntEnum
from struct import Struct

import msgspec

from kvnode.ids import Index, NodeId
from kvnode.raft.messages import Lane
from kvnode.wire.limits import CodecError, check_nesting, check_range, check_size

PROTOCOL = 1
"""Version of frames and messages this node speaks; `PROTOCOL_MIN` is the oldest it still understands."""
PROTOCOL_MIN = 1
FEATURE_LEVEL = 4
"""Grows with each entry kind, message or field that older nodes do not know. 2: state checks. 3: Lamport times, gossip.
4: nested transactions, compares of ranges, counted ranges inside transactions, puts that keep, negative ids of leases
(`kvnode.kv.stored`)."""
FEATURE_LEVEL_TIMES = 3
"""TIME is sent to peers that claim this level, by those that claim it; such peers take part in gossip, too."""

HEAD_BYTES = 12
HANDSHAKE_BYTES_MAX = 64 << 10
NONCE_BYTES = 32
_TEXT_MAX = 256
_NUMBER_MASK = 0xFFFF_FFFF
_HEAD = Struct(">IIBBH")
_TIME = Struct(">Q")
TIME_FRAME_BYTES = HEAD_BYTES + _TIME.size
_CHECKED = Struct(">IBBH")  # what the checksum covers of the head


class FrameKind(IntEnum):
    """What a frame's payload is."""

    HELLO = 1
    PROOF = 2
    REFUSAL = 3
    WELCOME = 4
    MESSAGE = 5
    PING = 6
    OFFER = 7
    WANT = 8
    BLOCK = 9
    END = 10
    DONE = 11
    TIME = 12


def encode_frame(kind: int, payload: bytes = b"", number: int = 0) -> bytes:
    """One whole frame. `number`: of the frame on its connection, 0 in the handshake."""
    length = len(payload)
    crc = zlib.crc32(payload, zlib.crc32(_CHECKED.pack(length, kind, PROTOCOL, 0), number & _NUMBER_MASK))
    return _HEAD.pack(length, crc, kind, PROTOCOL, 0) + payload


def split_frames(
    data: bytes | bytearray | memoryview, bytes_max: int, number: int = 0
) -> Iterator[tuple[int, memoryview]]:
    """(kind, payload) of each frame in one WebSocket message; a payload is checked before it is handed out.

    `number`: that of the first frame; 0: a message of the handshake, whose frames all have it.
    Raises: CodecError for a cut, damaged, repeated, oversized or unknown frame, and for an empty message.
    """
    step = 1 if number else 0
    view = memoryview(data)
    end = len(view)
    if end == 0:
        raise CodecError("a message without a frame")
    position = 0
    while position < end:
        if end - position < HEAD_BYTES:
            raise CodecError(f"{end - position} bytes are no frame head")
        length, crc, kind, version, reserved = _HEAD.unpack_from(view, position)
        position += HEAD_BYTES
        if length > bytes_max or length > end - position:
            raise CodecError(f"frame of {length} bytes where {end - position} follow and {bytes_max} are allowed")
        payload = view[position : position + length]
        head = zlib.crc32(_CHECKED.pack(length, kind, version, reserved), number & _NUMBER_MASK)
        if zlib.crc32(payload, head) != crc:
            raise CodecError("frame checksum does not match: it is damaged, repeated or out of order")
        if version != PROTOCOL or reserved != 0 or not FrameKind.HELLO <= kind <= FrameKind.TIME:
            raise CodecError(f"frame of kind {kind}, version {version}, reserved {reserved}")
        position += length
        number += step
        yield kind, payload


def encode_time(time: int, number: int) -> bytes:
    """The TIME frame: the sender's Lamport time, which counts before the frames that follow."""
    return encode_frame(FrameKind.TIME, _TIME.pack(time), number)


def decode_time(payload: memoryview) -> int:
    """A TIME frame's payload. Raises CodecError."""
    if len(payload) != _TIME.size:
        raise CodecError(f"a Lamport time of {len(payload)} bytes")
    (time,) = _TIME.unpack(payload)
    check_range(time)
    return int(time)


# ── handshake messages ──────────────────────────────────────────────────────────────────────────────


class KnownMember(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A member as the sender has it on record."""

    member: NodeId
    incarnation: int  # 0 = never met
    address: str  # peer address, as configured


class Hello(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Who I am and what I go by; the first frame from each side. Believed only after the proof over its bytes."""

    protocol_min: int
    protocol_max: int
    cluster_name: str
    cluster_id: int  # 0 until the sender's bootstrap has finished
    member: NodeId
    incarnation: int  # random id of the sender's data directory
    boot_counter: int  # +1 at each start of the sender, durably
    boot_nonce: int  # drawn at that start; tells two copies of one directory apart
    members: tuple[KnownMember, ...]  # sorted by id; of the newest committed configuration known to the sender
    address: str  # the sender's peer address
    client_url: str  # where the sender takes client requests
    lane: Lane
    link: int  # dialler: counts its dials, the same on both lanes of a pair; acceptor and snapshots: 0
    settings: dict[str, bool | int | float | str]  # all of cluster scope, by dotted name
    nonce: bytes  # fresh for each connection
    software: str = ""
    feature_level: int = 1
    earlier_boots: tuple[int, ...] = ()  # nonces of the starts before this one, newest first
    configuration_index: Index = Index(0)  # of the entry that `members` came with; 0: the initial members


class Refusal(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Why the sender will not talk to the receiver: a stable code, and a sentence for its operator."""

    code: str
    sentence: str


_EARLIER_BOOTS_MAX = 1_024

_encoder = msgspec.msgpack.Encoder()
_hello_decoder = msgspec.msgpack.Decoder(Hello)
_refusal_decoder = msgspec.msgpack.Decoder(Refusal)


def encode_hello(hello: Hello) -> bytes:
    return _encoder.encode(hello)


def decode_hello(data: bytes | memoryview) -> Hello:
    """A stranger's hello: size, nesting and count of values are checked before it is decoded. Raises CodecError."""
    check_size(data, HANDSHAKE_BYTES_MAX)
    check_nesting(data, depth_max=4, items_max=2_048)
    try:
        hello = _hello_decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CodecError(f"hello: {error}") from error
    check_range(hello.protocol_min, hello.protocol_max, hello.member, hello.link, hello.boot_counter)
    check_range(hello.feature_level, hello.configuration_index, *(known.member for known in hello.members))
    if min(hello.cluster_id, hello.incarnation, hello.boot_nonce, *hello.earlier_boots) < 0:
        raise CodecError("hello: a random id is negative")
    if min((known.incarnation for known in hello.members), default=0) < 0:
        raise CodecError("hello: an incarnation is negative")
    if len(hello.earlier_boots) > _EARLIER_BOOTS_MAX:
        raise CodecError(f"hello: {len(hello.earlier_boots)} earlier starts, more than {_EARLIER_BOOTS_MAX}")
    if len(hello.nonce) != NONCE_BYTES:
        raise CodecError(f"hello: nonce of {len(hello.nonce)} bytes")
    addresses = [hello.address, *(known.address for known in hello.members)]
    if max(map(len, (hello.cluster_name, hello.client_url, hello.software, *addresses))) > _TEXT_MAX:
        raise CodecError(f"hello: a text is longer than {_TEXT_MAX} characters")
    return hello


def encode_refusal(refusal: Refusal) -> bytes:
    return _encoder.encode(refusal)


def decode_refusal(data: bytes | memoryview) -> Refusal:
    """A refusal, with what an operator's terminal would stumble over taken out. Raises CodecError."""
    check_size(data, HANDSHAKE_BYTES_MAX)
    check_nesting(data, depth_max=4, items_max=64)
    try:
        refusal = _refusal_decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CodecError(f"refusal: {error}") from error
    return Refusal(_printable(refusal.code)[:64], _printable(refusal.sentence)[:512])


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)
