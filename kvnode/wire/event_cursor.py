"""The cursor of the timeline: how far a reader has come in each origin's events. Opaque to it, hostile input to us.

Unpadded base64url over a fixed layout (big-endian) that ends in a checksum, so that a cut or edited one is refused
rather than misread (`token.py` says why a checksum is enough). The empty text stands before everything.

    version u8 = 1; for each origin, in order: member u64, incarnation u64, number of the last event read u64;
    CRC-32 u32

It names origins, not nodes: it continues on any node, also one that holds less; there it waits.
"""

from __future__ import annotations

import binascii
import re
import struct
import zlib

from kvnode.clocks.version_vector import VersionVector
from kvnode.errors import BadEncoding
from kvnode.gossip.event import TimelineLimits

ORIGINS_MAX = TimelineLimits().origins + 1
"""As many as a timeline keeps, and the node's own."""

_VERSION = 1
_ENTRY = struct.Struct(">QQQ")
_CRC = struct.Struct(">I")
_FIXED_BYTES = 1 + _CRC.size
_TEXT_CHARS_MAX = (_FIXED_BYTES + ORIGINS_MAX * _ENTRY.size) * 4 // 3 + 4
_BASE64URL = re.compile(rb"[A-Za-z0-9_-]+")
_TO_URL = bytes.maketrans(b"+/", b"-_")
_FROM_URL = bytes.maketrans(b"-_", b"+/")


def encode_event_cursor(read: VersionVector) -> str:
    """The text that continues after everything `read`."""
    if not len(read):
        return ""
    raw = bytes([_VERSION]) + b"".join(_ENTRY.pack(*entry) for entry in read.to_row())
    return _encoded(raw + _CRC.pack(zlib.crc32(raw))).decode()


def decode_event_cursor(text: str) -> VersionVector:
    """Inverse of `encode_event_cursor`. Raises: BadEncoding."""
    if not text:
        return VersionVector.EMPTY
    raw = _decoded(text)
    if len(raw) <= _FIXED_BYTES or (len(raw) - _FIXED_BYTES) % _ENTRY.size or raw[0] != _VERSION:
        raise BadEncoding("the cursor is not one of ours")
    if _CRC.unpack(raw[-_CRC.size :])[0] != zlib.crc32(raw[: -_CRC.size]):
        raise BadEncoding("the cursor is not one of ours")
    try:
        return VersionVector.from_row(_ENTRY.iter_unpack(raw[1 : -_CRC.size]))
    except ValueError as error:
        raise BadEncoding("the cursor is not one of ours") from error


def _encoded(raw: bytes) -> bytes:
    return binascii.b2a_base64(raw, newline=False).rstrip(b"=").translate(_TO_URL)


def _decoded(text: str) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    if len(data) > _TEXT_CHARS_MAX or not _BASE64URL.fullmatch(data) or len(data) % 4 == 1:
        raise BadEncoding("the cursor is not base64url text")
    raw = binascii.a2b_base64(data.translate(_FROM_URL) + b"=" * (-len(data) % 4))
    if _encoded(raw) != data:
        raise BadEncoding("the cursor is not canonical base64url")
    return raw
