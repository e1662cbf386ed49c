"""Opaque text: numbers and keys as clients carry them back to us in tokens, cursors and contexts; hostile until read.

Unpadded base64url in its one canonical form, over bytes that as a rule end in a CRC-32 u32 (big-endian) of all before
it: what was cut or edited is refused rather than misread. The checksum is no secret: whoever forges a text gets what a
parameter would give.
"""

from __future__ import annotations

import binascii
import re
import struct
import zlib

from kvnode.errors import BadEncoding

_CRC = struct.Struct(">I")
_BASE64URL = re.compile(rb"[A-Za-z0-9_-]+")
_TO_URL = bytes.maketrans(b"+/", b"-_")
_FROM_URL = bytes.maketrans(b"-_", b"+/")


def encode_text(raw: bytes) -> str:
    """As base64url; `raw` is not empty."""
    return _base64url(raw).decode()


def encode_checked(raw: bytes) -> str:
    """With the checksum of all of it at its end."""
    return encode_text(raw + _CRC.pack(zlib.crc32(raw)))


def decode_text(text: str | bytes, name: str, *, bytes_max: int | None = None) -> bytes:
    """Inverse of `encode_text`. Raises BadEncoding, which calls it `name`."""
    data = text.encode("ascii", "replace") if isinstance(text, str) else text
    if bytes_max is not None and len(data) > -(-bytes_max * 4 // 3):
        raise BadEncoding(f"the {name} is longer than any of ours")
    if len(data) % 4 == 1 or not _BASE64URL.fullmatch(data):
        raise BadEncoding(f"the {name} is not base64url text")
    raw = binascii.a2b_base64(data.translate(_FROM_URL) + b"=" * (-len(data) % 4))
    if _base64url(raw) != data:
        raise BadEncoding(f"the {name} is not canonical base64url")
    return raw


def decode_checked(text: str | bytes, name: str, *, bytes_max: int | None = None) -> bytes:
    """Inverse of `encode_checked`, of at most `bytes_max` bytes. Raises BadEncoding."""
    whole_bytes_max = None if bytes_max is None else bytes_max + _CRC.size
    return without_checksum(decode_text(text, name, bytes_max=whole_bytes_max), name)


def without_checksum(raw: bytes, name: str) -> bytes:
    """`raw` less the checksum at its end, which fits to it. Raises BadEncoding."""
    body, end = raw[: -_CRC.size], raw[-_CRC.size :]
    if end != _CRC.pack(zlib.crc32(body)):
        raise not_ours(name)
    return body


def not_ours(name: str) -> BadEncoding:
    """For what is whole, but nothing that we have written."""
    return BadEncoding(f"the {name} is not one of ours")


def _base64url(raw: bytes) -> bytes:
    return binascii.b2a_base64(raw, newline=False).rstrip(b"=").translate(_TO_URL)
