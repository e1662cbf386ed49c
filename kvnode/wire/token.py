"""What clients carry back to us: the state token and the listing cursor. Opaque to them, hostile input to us.

Both are opaque text (`opaque_text.py`) over a fixed layout (big-endian) that ends in a checksum.

    token   version u8 = 1, revision u64, hybrid time u64, crc u8 (low byte of CRC-32)
    token   version u8 = 2, revision u64, hybrid time u64, Lamport time u64, number of dots u8,
            dots (member u64, incarnation u64, n u64) …, CRC-32 u32
    cursor  version u8 = 1, revision u64, CRC-32 of the listing it belongs to u32, last key …, CRC-32 u32

Version 2 stands for what its holder has also seen of the plane that needs no quorum. Where that is nothing, version 1
is written: a node that does not know version 2 yet reads the tokens of all clients that do not use that plane.

A cursor continues after its last key at its revision, in the listing (range and order) it was made for.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

import msgspec

from kvnode.errors import BadEncoding
from kvnode.kv.available import NOTHING_SEEN, SEEN_DOTS_MAX, DotRow, Seen
from kvnode.wire.opaque_text import (
    decode_checked,
    decode_text,
    encode_checked,
    encode_text,
    not_ours,
    without_checksum,
)

_VERSION = 1
_VERSION_SEEN = 2
_NO_REVISION = 1  # where a cursor's has no meaning
_TOKEN = struct.Struct(">BQQ")
_TOKEN_SEEN = struct.Struct(">BQQQB")
_DOT = struct.Struct(">QQQ")
_CURSOR = struct.Struct(">BQI")


class Token(NamedTuple):
    """What its holder has seen."""

    revision: int
    time: int  # hybrid
    seen: Seen = NOTHING_SEEN


def encode_token(revision: int, time: int, seen: Seen = NOTHING_SEEN) -> str:
    """The `Kv-Token` of an answer that reflects `revision`, has seen hybrid `time`, and after which `seen` is seen."""
    if seen == NOTHING_SEEN:
        raw = _TOKEN.pack(_VERSION, revision, time)
        return encode_text(raw + bytes([zlib.crc32(raw) & 0xFF]))
    raw = _TOKEN_SEEN.pack(_VERSION_SEEN, revision, time, seen.lamport, len(seen.dots))
    return encode_checked(raw + b"".join(_DOT.pack(*dot) for dot in seen.dots))


def decode_token(text: str) -> tuple[int, int]:
    """(revision, hybrid time). Raises: BadEncoding."""
    return read_token(text)[:2]


def read_token(text: str) -> Token:
    """All that a token says. Raises: BadEncoding."""
    raw = decode_text(text, "token")
    if len(raw) == _TOKEN.size + 1 and raw[-1] == zlib.crc32(raw[:-1]) & 0xFF and raw[0] == _VERSION:
        _, revision, time = _TOKEN.unpack(raw[:-1])
        return Token(revision, time)
    if raw[0] == _VERSION_SEEN:
        return _read_token_seen(without_checksum(raw, "token"))
    raise not_ours("token")


def _read_token_seen(body: bytes) -> Token:
    if len(body) < _TOKEN_SEEN.size:
        raise not_ours("token")
    _, revision, time, lamport, count = _TOKEN_SEEN.unpack_from(body)
    if count > SEEN_DOTS_MAX or len(body) != _TOKEN_SEEN.size + count * _DOT.size or lamport >> 63:
        raise not_ours("token")
    dots: tuple[DotRow, ...] = tuple(_DOT.iter_unpack(body[_TOKEN_SEEN.size :]))
    if len({dot[:2] for dot in dots}) != count or any(not n or n >> 63 for _, _, n in dots):
        raise not_ours("token")
    return Token(revision, time, Seen(lamport, dots))


class Cursor(msgspec.Struct, frozen=True):
    """Where the next page of a listing starts."""

    revision: int  # pinned by the first page; > 0
    last_key: bytes  # the last key of the page before


def encode_cursor(cursor: Cursor, listing: bytes) -> str:
    """`listing` identifies range and order; the same bytes must be given to `decode_cursor`."""
    return encode_checked(_CURSOR.pack(_VERSION, cursor.revision, zlib.crc32(listing)) + cursor.last_key)


def decode_cursor(text: bytes, listing: bytes) -> Cursor:
    """Raises: BadEncoding if it is damaged, or was made for another range or order."""
    body = decode_checked(text, "cursor")
    if len(body) <= _CURSOR.size:
        raise not_ours("cursor")
    version, revision, fingerprint = _CURSOR.unpack_from(body)
    if version != _VERSION or not 0 < revision < 1 << 63:
        raise not_ours("cursor")
    if fingerprint != zlib.crc32(listing):
        raise BadEncoding("the cursor belongs to a listing of another range or order")
    return Cursor(revision, body[_CURSOR.size :])


def encode_ap_cursor(prefix: bytes, last_key: bytes) -> str:
    """Continues a listing of the always-writable keyspace, which pins no revision: each page shows what is there."""
    return encode_cursor(Cursor(_NO_REVISION, last_key), _ap_listing(prefix))


def decode_ap_cursor(text: bytes, prefix: bytes) -> bytes:
    """The last key of the page before. Raises: BadEncoding."""
    return decode_cursor(text, _ap_listing(prefix)).last_key


def _ap_listing(prefix: bytes) -> bytes:
    return msgspec.msgpack.encode(("ap", prefix))
