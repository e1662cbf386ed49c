"""Rolling digest of everything applied: equal on all nodes at equal index, or a node has diverged (I7, I21).

Each entry's digest covers the previous one, the entry's index and time, the versions it made and its result.
It depends on nothing else: not on when versions were flushed, the backend, or the process's hash seed.
It tells divergence, not tampering.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from struct import Struct

import msgspec

from kvnode.ids import Index
from kvnode.kv.requests import ApplyResult, KeyValue

DIGEST_BYTES = 16

_position = Struct(">QQ")
_encode = msgspec.msgpack.Encoder().encode


def advance(digest: bytes, index: Index, time: int, changes: Sequence[KeyValue], result: ApplyResult | None) -> bytes:
    """The digest after an entry; `result` is None for entries that are not commands."""
    return blake2b(digest + _position.pack(index, time) + _encode((changes, result)), digest_size=DIGEST_BYTES).digest()
