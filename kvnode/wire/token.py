"""What clients carry back to us: the state token and the listing cursor. Opaque to them, hostile input to us.

Both are unpadded base64url over a fixed layout (big-endian) and end in a checksum, so that a cut or edited one
is refused rather than misread. The checksum is no secret: whoever forges one gets what a parameter would give.

    token   version u8 = 1, revision u64, hybrid time u64, crc u8 (low byte of CRC-32)
    cursor  version u8 = 1, revision u64, CRC-32 of the listing it belongs to u32, last key …, CRC-32 u32

A cursor continues after its last key at its revision, in the listing (range and order) it was made for.
"""

from __future__ import annotations

import binascii
import re
import struct
import zlib

import msgspec

from kvnode.errors import BadEncoding

_VERSION = 1
_TOKEN = struct.Struct(">BQQ")
_CURSOR = struct.Struct(">BQI")
_CRC = struct.Struct(">I")
_BASE64URL = re.compile(rb"[A-Za-z0-9_-]+")
_TO_URL = bytes.maketrans(b"+/", b"-_")
_FROM_URL = bytes.maketrans(b"-_", b"+/")


def encode_token(revision: int, time: int) -> str:
    """The `Kv-Token` of an answer that reflects `revision` and has seen hybrid `time`."""
    raw = _TOKEN.pack(_VERSION, revision, time)
    return _encode(raw + bytes([zlib.crc32(raw) & 0xFF])).decode()


def decode_token(text: str) -> tuple[int, int]:
    """(revision, hybrid time). Raises: BadEncoding."""
    raw = _decode(text.encode("utf-8", "surrogateescape"), "token")
    if len(raw) != _TOKEN.size + 1 or raw[-1] != zlib.crc32(raw[:-1]) & 0xFF or raw[0] != _VERSION:
        raise BadEncoding("the token is not one of ours")
    _, revision, time = _TOKEN.unpack(raw[:-1])
    return revision, time


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


def _encode(raw: bytes) -> bytes:
    return binascii.b2a_base64(raw, newline=False).rstrip(b"=").translate(_TO_URL)


def _decode(text: bytes, name: str) -> bytes:
    if not _BASE64URL.fullmatch(text) or len(text) % 4 == 1:
        raise BadEncoding(f"the {name} is not base64url text")
    raw = binascii.a2b_base64(text.translate(_FROM_URL) + b"=" * (-len(text) % 4))
    if _encode(raw) != text:
        raise BadEncoding(f"the {name} is not canonical base64url")
    return raw
