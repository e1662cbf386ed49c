"""The cursor of the timeline: how far a reader has come in each origin's events. Opaque to it, hostile input to us.

Opaque text (`opaque_text.py`) over a fixed layout (big-endian). The empty text stands before everything.

    version u8 = 1; for each origin, in order: member u64, incarnation u64, number of the last event read u64;
    CRC-32 u32

It names origins, not nodes: it continues on any node, also one that holds less; there it waits.
"""

from __future__ import annotations

import struct

from kvnode.clocks.version_vector import VersionVector
from kvnode.gossip.event import VECTOR_ORIGINS_MAX
from kvnode.wire.opaque_text import decode_checked, encode_checked, not_ours

_VERSION = 1
_ENTRY = struct.Struct(">QQQ")
_BYTES_MAX = 1 + VECTOR_ORIGINS_MAX * _ENTRY.size


def encode_event_cursor(read: VersionVector) -> str:
    """The text that continues after everything `read`."""
    if not len(read):
        return ""
    return encode_checked(bytes([_VERSION]) + b"".join(_ENTRY.pack(*entry) for entry in read.to_row()))


def decode_event_cursor(text: str) -> VersionVector:
    """Inverse of `encode_event_cursor`. Raises: BadEncoding."""
    if not text:
        return VersionVector.EMPTY
    body = decode_checked(text, "cursor", bytes_max=_BYTES_MAX)
    if len(body) <= 1 or (len(body) - 1) % _ENTRY.size or body[0] != _VERSION:
        raise not_ours("cursor")
    try:
        return VersionVector.from_row(_ENTRY.iter_unpack(body[1:]))
    except ValueError as error:
        raise not_ours("cursor") from error
