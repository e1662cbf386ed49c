"""The keyspace as the rows of its store, values as MessagePack.

    name in the store       value
    "k", key                `StateRow` of that key
    "v"                     `_VectorsRow`

The rows and removals of one `Keyspace.take_changes` are one atomic batch, and batches are written in their order.
Everything that is wrong with rows is a ValueError.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from kvnode.clocks.version_vector import VectorRow, VersionVector
from kvnode.gossip.anti_entropy import CatchUp
from kvnode.gossip.key_state import KeyState, StateRow, checked_vector

VECTORS = b"v"
KEY = b"k"

_T = TypeVar("_T")


class Changes(msgspec.Struct, frozen=True):
    """One atomic batch for the store."""

    rows: tuple[tuple[bytes, bytes], ...]
    removed: tuple[bytes, ...]
    mark: int  # for `Keyspace.made_durable`

    def __bool__(self) -> bool:
        return bool(self.rows or self.removed)


class _VectorsRow(msgspec.Struct, frozen=True, array_like=True):
    """What is stored once. The catch-up with it: what whole pages took away of keys it has passed is accounted for by
    its target alone.
    """

    vector: VectorRow
    forgotten: VectorRow
    target: VectorRow = ()
    target_forgotten: VectorRow = ()
    position: bytes = b""  # empty: there is no catch-up


_encoder = msgspec.msgpack.Encoder()
_state_decoder = msgspec.msgpack.Decoder(StateRow)
_vectors_decoder = msgspec.msgpack.Decoder(_VectorsRow)


def key_row(key: bytes, state: KeyState) -> tuple[bytes, bytes]:
    """Name and value."""
    return KEY + key, _encoder.encode(state.to_row())


def read_key(name: bytes, value: bytes) -> tuple[bytes, KeyState]:
    """Inverse of `key_row`."""
    return name[len(KEY) :], KeyState.from_row(_decoded(_state_decoder, name, value))


def vectors_row(vector: VersionVector, forgotten: VersionVector, at: CatchUp | None) -> tuple[bytes, bytes]:
    """Name and value."""
    row = _VectorsRow(vector.to_row(), forgotten.to_row())
    if at is not None:
        row = _VectorsRow(row.vector, row.forgotten, at.target.to_row(), at.forgotten.to_row(), at.position)
    return VECTORS, _encoder.encode(row)


def read_vectors(value: bytes) -> tuple[VersionVector, VersionVector, CatchUp | None]:
    """Inverse of `vectors_row`."""
    row = _decoded(_vectors_decoder, VECTORS, value)
    at = CatchUp(checked_vector(row.target), checked_vector(row.target_forgotten), row.position)
    return checked_vector(row.vector), checked_vector(row.forgotten), at if row.position else None


def _decoded(decoder: msgspec.msgpack.Decoder[_T], name: bytes, value: bytes) -> _T:
    try:
        return decoder.decode(value)
    except msgspec.MsgspecError as error:
        raise ValueError(f"row {name!r}: {error}") from error
