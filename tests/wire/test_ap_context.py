"""A context comes back as it was given, for its cluster and key only; anything else is refused."""

from __future__ import annotations

import base64
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnode.clocks.version_vector import Dot, Origin, VersionVector
from kvnode.errors import BadContext
from kvnode.gossip.key_state import Context
from kvnode.ids import NodeId
from kvnode.wire.ap_context import ORIGINS_MAX, decode_context, encode_context

U64 = st.integers(0, (1 << 64) - 1)
ORIGINS = st.builds(Origin, st.integers(1, (1 << 63) - 1).map(NodeId), U64)
COUNTERS = st.integers(1, (1 << 63) - 1)
CONTEXTS = st.builds(
    Context,
    st.dictionaries(ORIGINS, COUNTERS, max_size=8).map(VersionVector),
    st.none() | st.builds(Dot, ORIGINS, COUNTERS),
)
CONTEXT = Context(VersionVector({Origin(NodeId(1), 5): 3, Origin(NodeId(2), 6): 9}))


@given(CONTEXTS, U64, st.binary(max_size=30))
def test_a_context_is_read_back(context: Context, cluster: int, key: bytes) -> None:
    text = encode_context(context, cluster, key)
    assert decode_context(text, cluster, key) == context
    for other in ((cluster ^ 1, key), (cluster, key + b"x")):
        with pytest.raises(BadContext, match="another"):
            decode_context(text, *other)


def test_the_longest_fits() -> None:
    dot = Dot(Origin(NodeId(2), 0), 1)
    context = Context(VersionVector({Origin(NodeId(1), life): 1 for life in range(ORIGINS_MAX)}), dot)
    assert decode_context(encode_context(context, 1, b"k"), 1, b"k") == context
    longer = Context(context.vector.with_dot(dot))
    with pytest.raises(BadContext):
        decode_context(encode_context(longer, 1, b"k"), 1, b"k")


@given(
    st.text(max_size=80) | st.binary(max_size=60).map(lambda raw: base64.urlsafe_b64encode(raw).decode().rstrip("="))
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(BadContext):
        decode_context(text, 1, b"k")


@given(st.data())
def test_a_changed_one_is_refused(data: st.DataObject) -> None:
    raw = bytearray(base64.urlsafe_b64decode(encode_context(CONTEXT, 1, b"k") + "=" * 3))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(BadContext):
        decode_context(base64.urlsafe_b64encode(raw).decode().rstrip("="), 1, b"k")


@pytest.mark.parametrize("entries", [[(2, 1, 1), (1, 1, 1)], [(1, 1, 0)], [(0, 1, 1)], [(1, 1, 1), (1, 1, 2)]])
def test_a_well_formed_text_of_a_vector_that_is_none_is_refused(entries: list[tuple[int, int, int]]) -> None:
    head = base64.urlsafe_b64decode(encode_context(CONTEXT, 1, b"k") + "=" * 3)[:33]
    raw = head + b"".join(struct.pack(">QQQ", *entry) for entry in entries)
    raw += struct.pack(">I", zlib.crc32(raw))
    with pytest.raises(BadContext, match="not one of ours"):
        decode_context(base64.urlsafe_b64encode(raw).decode().rstrip("="), 1, b"k")
