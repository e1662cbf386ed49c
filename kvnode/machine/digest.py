"""Rolling digest of everything applied: equal on all nodes at equal index, or a node has diverged (I7, I21).

Each entry's digest covers the previous one, the entry's index and time, the versions it made and its result. Of a
refusal it covers the code and the numbers, not the sentence: words may be bettered without nodes seeming to diverge.
It depends on nothing else: not on when versions were flushed, the backend, or the process's hash seed.
It tells divergence, not tampering.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from struct import Struct

import msgspec

from kvnode.ids import Index
from kvnode.kv.requests import ApplyResult, KeyValue, Refusal

DIGEST_BYTES = 16

_position = Struct(">QQ")
_PAIR = b"\x92"  # MessagePack's header of an array of two
_LONG_ARRAY_MIN = 16  # shorter arrays have a header of another form
_array_16 = Struct(">BH")
_array_32 = Struct(">BI")
_encode = msgspec.msgpack.Encoder().encode


def advance(digest: bytes, index: Index, time: int, changes: Sequence[KeyValue], result: ApplyResult | None) -> bytes:
    """The digest after an entry; `result` is None for entries that are not commands."""
    if type(result) is Refusal:
        result = _wordless(result)
    return blake2b(digest + _position.pack(index, time) + _encode((changes, result)), digest_size=DIGEST_BYTES).digest()


class Advance:
    """`advance` for an entry of many changes, fed piece by piece. The same bytes, so the same digest."""

    def __init__(self, digest: bytes, index: Index, time: int, changes: int) -> None:
        self._hash = blake2b(digest + _position.pack(index, time) + _PAIR, digest_size=DIGEST_BYTES)
        assert changes >= _LONG_ARRAY_MIN, changes
        wide = changes >> 16
        self._hash.update(_array_32.pack(0xDD, changes) if wide else _array_16.pack(0xDC, changes))

    def add(self, changes: Iterable[KeyValue]) -> None:
        self._hash.update(b"".join(map(_encode, changes)))

    def finish(self, result: ApplyResult) -> bytes:
        self._hash.update(_encode(_wordless(result) if type(result) is Refusal else result))
        return self._hash.digest()


def _wordless(refusal: Refusal) -> Refusal:
    return Refusal(refusal.code, "", refusal.revision, refusal.found)
