"""What clients carry back to us: the state token and the listing cursor. Opaque to them, hostile input to us.

Both are unpadded base64url over a fixed layout (big-endian) and end in a checksum, so that a cut or edited one
is refused rather than misread. The checksum is no secret: whoever forges one gets what a parameter would give.

    token   version u8 = 1, revision u64, hybrid time u64, crc u8 (low byte of CRC-32)
    token   version u8 = 2, revision u64, hybrid time u64, Lamport time u64, number of dots u8,
            dots (member u64, incarnation u64, n u64) …, CRC-32 u32
    cursor  version u8 = 1, revision u64, CRC-32 of the listing it belongs to u32, last key …, CRC-32 u32

Version 2 stands for what its holder has also seen of the plane that needs no quorum. Where that is nothing, version 1
is written: a node that does not know version 2 yet reads the tokens of all clients that do not use that plane.

A cursor continues after its last key at its revision, in the listing (range and order) it was made for.
"""

from __future__ import annotations

import binascii
import re
import struct
import zlib
from typing import NamedTuple

import msgspec

from kvnode.errors import BadEncoding
from kvnode.kv.available import NOTHING_SEEN, SEEN_DOTS_MAX, DotRow, Seen

_VERSION = 1
_VERSION_SEEN = 2
_NO_REVISION = 1  # where a cursor's has no meaning
_TOKEN = struct.Struct(">BQQ")
_TOKEN_SEEN = struct.Struct(">BQQQB")
_DOT = struct.Struct(">QQQ")
_CURSOR = struct.Struct(">BQI")
_CRC = struct.Struct(">I")
_BASE64URL = re.compile(rb"[A-Za-z0-9_-]+")
_TO_URL = bytes.maketrans(b"+/", b"-_")
_FROM_URL = bytes.maketrans(b"-_", b"+/")


class Token(NamedTuple):
    """What its holder has seen."""

    revision: int
    time: int  # hybrid
    seen: Seen = NOTHING_SEEN


def encode_token(revision: int, time: int, seen: Seen = NOTHING_SEEN) -> str:
    """The `Kv-Token` of an answer that reflects `revision`, has seen hybrid `time`, and after which `seen` is seen."""
    if seen == NOTHING_SEEN:
        raw = _TOKEN.pack(_VERSION, revision, time)
        return _encode(raw + bytes([zlib.crc32(raw) & 0xFF])).decode()
    raw = _TOKEN_SEEN.pack(_VERSION_SEEN, revision, time, seen.lamport, len(seen.dots))
    raw += b"".join(_DOT.pack(*dot) for dot in seen.dots)
    return _encode(raw + _CRC.pack(zlib.crc32(raw))).decode()


def decode_token(text: str) -> tuple[int, int]:
    """(revision, hybrid time). Raises: BadEncoding."""
    return read_token(text)[:2]


def read_token(text: str) -> Token:
    """All that a token says. Raises: BadEncoding."""
    raw = _decode(text.encode("utf-8", "surrogateescape"), "token")
    if len(raw) == _TOKEN.size + 1 and raw[-1] == zlib.crc32(raw[:-1]) & 0xFF and raw[0] == _VERSION:
        _, revision, time = _TOKEN.unpack(raw[:-1])
        return Token(revision, time)
    if len(raw) >= _TOKEN_SEEN.size + _CRC.size and raw[0] == _VERSION_SEEN:
        return _read_token_seen(raw)
    raise _not_a_token()


def _read_token_seen(raw: bytes) -> Token:
    body = raw[: -_CRC.size]
    _, revision, time, lamport, count = _TOKEN_SEEN.unpack_from(body)
    is_intact = _CRC.unpack(raw[-_CRC.size :])[0] == zlib.crc32(body)
    if not is_intact or count > SEEN_DOTS_MAX or len(body) != _TOKEN_SEEN.size + count * _DOT.size or lamport >> 63:
        raise _not_a_token()
    dots: tuple[DotRow, ...] = tuple(_DOT.iter_unpack(body[_TOKEN_SEEN.size :]))
    if len({dot[:2] for dot in dots}) != count or any(not n or n >> 63 for _, _, n in dots):
        raise _not_a_token()
    return Token(revision, time, Seen(lamport, dots))


def _not_a_token() -> BadEncoding:
    return BadEncoding("the token is not one of ours")


class Cursor(msgspec.Struct, frozen=True):
    """Where the next page of a listing starts."""

    revision: int  # pinned by the first page; > 0
    last_key: bytes  # the last key of the page before


def encode_cursor(cursor: Cursor, listing: bytes) -> str:
    """`listing` identifies range and order; the same bytes must be given to `decode_cursor`."""
    raw = _CURSOR.pack(_VERSION, cursor.revision, zlib.crc32(listing)) + cursor.last_key
    return _encode(raw + _CRC.pack(zlib.crc32(raw))).decode()


def decode_cursor(text: bytes, listing: bytes) -> Cursor:
    """Raises: BadEncoding if it is damaged, or was made for another range or order."""
    raw = _decode(text, "cursor")
    if len(raw) <= _CURSOR.size + _CRC.size or _CRC.unpack(raw[-4:])[0] != zlib.crc32(raw[:-4]):
        raise BadEncoding("the cursor is not one of ours")
    version, revision, fingerprint = _CURSOR.unpack_from(raw)
    if version != _VERSION or not 0 < revision < 1 << 63:
        raise BadEncoding("the cursor is not one of ours")
    if fingerprint != zlib.crc32(listing):
        raise BadEncoding("the cursor belongs to a listing of another range or order")
    return Cursor(revision, raw[_CURSOR.size : -4])


def encode_ap_cursor(prefix: bytes, last_key: bytes) -> str:
    """Continues a listing of the always-writable keyspace, which pins no revision: each page shows what is there."""
    return encode_cursor(Cursor(_NO_REVISION, last_key), _ap_listing(prefix))


def decode_ap_cursor(text: bytes, prefix: bytes) -> bytes:
    """The last key of the page before. Raises: BadEncoding."""
    return decode_cursor(text, _ap_listing(prefix)).last_key


def _ap_listing(prefix: bytes) -> bytes:
    return msgspec.msgpack.encode(("ap", prefix))


def _encode(raw: bytes) -> bytes:
    return binascii.b2a_base64(raw, newline=False).rstrip(b"=").translate(_TO_URL)


def _decode(text: bytes, name: str) -> bytes:
    if not _BASE64URL.fullmatch(text) or len(text) % 4 == 1:
        raise BadEncoding(f"the {name} is not base64url text")
    raw = binascii.a2b_base64(text.translate(_FROM_URL) + b"=" * (-len(text) % 4))
    if _encode(raw) != text:
        raise BadEncoding(f"the {name} is not canonical base64url")
    return raw
