"""Resolve: siblings become one answer for whoever asks for one; what is stored keeps them.

    lww     the newest by (hybrid time, member, dot): what concurrent writes of the others said is not in the answer
    max     the last in byte order
    union   every value is a JSON array: the elements of all, each once, in the order of their canonical JSON text

All three depend on the siblings alone, so equal replicas answer equally. Canonical JSON: no white space, members of
objects sorted. Numbers keep their kind (1 and 1.0 are two elements).
"""

from __future__ import annotations

from typing import Any, assert_never

import msgspec

from kvnode.errors import BadRequest
from kvnode.gossip.key_state import KeyState
from kvnode.kv.available import Resolve

_array_decoder = msgspec.json.Decoder(list[Any])
_encoder = msgspec.json.Encoder(order="sorted")


def resolve(state: KeyState, how: Resolve) -> bytes | None:
    """One value for the siblings of `state`; None: there are none. Raises BadRequest: union of what is no array."""
    if not state.siblings:
        return None
    match how:
        case "lww":
            newest = max(state.siblings, key=lambda s: (s.time, s.dot.origin.member, s.dot))
            return newest.value
        case "max":
            return max(sibling.value for sibling in state.siblings)
        case "union":
            return _union([sibling.value for sibling in state.siblings])
        case _:
            assert_never(how)


def _union(values: list[bytes]) -> bytes:
    elements: set[bytes] = set()
    for value in values:
        try:
            elements.update(_encoder.encode(element) for element in _array_decoder.decode(value))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OverflowError) as error:
            raise BadRequest(f"union merges JSON arrays, and one value is none: {error}") from error
    return b"[" + b",".join(sorted(elements)) + b"]"
