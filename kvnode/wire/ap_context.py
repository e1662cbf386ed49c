"""Context of the always-writable keyspace: what a client has read of one key, for the write that is to replace it.

Opaque text (`opaque_text.py`) over (big-endian):

    version u8 = 1, fingerprint of the cluster u32, of the key u32,
    the single dot: member u64, incarnation u64, n u64, all 0 if there is none,
    then per origin: member u64, incarnation u64, n u64 … in order, CRC-32 of all before u32

The fingerprints (BLAKE2b) refuse a context of another cluster, and one that was read of another key: its numbers would
cover writes of this key that the client has never seen. The checksum is no secret: whoever forges one replaces
what a write with the same right could have replaced.
"""

from __future__ import annotations

import hashlib
import struct

from kvnode.clocks.version_vector import Dot, VersionVector
from kvnode.errors import BadContext, BadEncoding
from kvnode.gossip.key_state import ORIGINS_MAX, Context
from kvnode.wire.opaque_text import decode_checked, encode_checked

_VERSION = 1
_HEAD = struct.Struct(">BIIQQQ")
_ENTRY = struct.Struct(">QQQ")
_BYTES_MAX = _HEAD.size + ORIGINS_MAX * _ENTRY.size


def encode_context(context: Context, cluster_id: int, key: bytes) -> str:
    """The `Kv-Context` of an answer about `key`."""
    raw = _HEAD.pack(_VERSION, _cluster_fingerprint(cluster_id), _fingerprint(b"key", key), *_numbers(context.dot))
    return encode_checked(raw + b"".join(_ENTRY.pack(*entry) for entry in context.vector.to_row()))


def decode_context(text: str, cluster_id: int, key: bytes) -> Context:
    """Inverse of `encode_context`. Raises BadContext: damaged, of another cluster, or of another key."""
    try:
        body = decode_checked(text, "context", bytes_max=_BYTES_MAX)
    except BadEncoding as error:
        raise BadContext(str(error)) from error
    if len(body) < _HEAD.size or (len(body) - _HEAD.size) % _ENTRY.size or body[0] != _VERSION:
        raise BadContext("the context is not one of ours")
    _, cluster, of_key, *dot = _HEAD.unpack_from(body)
    if cluster != _cluster_fingerprint(cluster_id):
        raise BadContext("the context is of another cluster")
    if of_key != _fingerprint(b"key", key):
        raise BadContext("the context was read of another key")
    try:
        vector = VersionVector.from_row(_ENTRY.iter_unpack(body[_HEAD.size :]))
        single = VersionVector.from_row([(dot[0], dot[1], dot[2])] if any(dot) else []).entries()
    except ValueError as error:
        raise BadContext(f"the context is not one of ours: {error}") from error
    return Context(vector, Dot(*single[0]) if single else None)


def _numbers(dot: Dot | None) -> tuple[int, int, int]:
    return (0, 0, 0) if dot is None else (dot.origin.member, dot.origin.incarnation, dot.n)


def _cluster_fingerprint(cluster_id: int) -> int:
    return _fingerprint(b"cluster", cluster_id.to_bytes(8, "big"))


def _fingerprint(kind: bytes, data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=4, person=kind).digest(), "big")
