"""What a decoder refuses before it believes anything: integers out of range, too many bytes, too deep nesting.

Everything that arrives from a socket or a file is hostile until it passed these checks and its schema.
"""

from __future__ import annotations

import struct

INTEGER_MAX = (1 << 63) - 1
"""Largest id, index, term or timestamp: what a signed 64-bit field of any other language holds."""

PAYLOAD_BYTES_MAX = 64 << 20
"""No frame or log payload of this format is larger, whatever the settings say."""


class CodecError(ValueError):
    """Bytes that are not what they claim to be. The connection or file they came from is not to be trusted."""


def check_range(*numbers: int) -> None:
    """Every number is in ``0 … INTEGER_MAX``. Raises CodecError."""
    for number in numbers:
        if not 0 <= number <= INTEGER_MAX:
            raise CodecError(f"number {number} is out of range")


def check_signed(*numbers: int) -> None:
    """Every number is a signed one of 64 bits. Raises CodecError."""
    for number in numbers:
        if not -INTEGER_MAX - 1 <= number <= INTEGER_MAX:
            raise CodecError(f"number {number} is out of range")


def check_size(data: bytes | bytearray | memoryview, bytes_max: int = PAYLOAD_BYTES_MAX) -> None:
    """Raises CodecError for more than `bytes_max` bytes."""
    if len(data) > bytes_max:
        raise CodecError(f"{len(data)} bytes, at most {bytes_max} are allowed")


# MessagePack by first byte: form of the length field of texts and byte strings; the same and the values per item for
# containers; size of plain values. The families that carry their length in the first byte are in `_step`.
_SIZED = {0xC4: ">B", 0xC5: ">H", 0xC6: ">I", 0xD9: ">B", 0xDA: ">H", 0xDB: ">I"}
_CONTAINERS = {0xDC: (">H", 1), 0xDD: (">I", 1), 0xDE: (">H", 2), 0xDF: (">I", 2)}
_FIXED = {0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}
_FIXED |= {0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}


def check_nesting(data: bytes | bytearray | memoryview, *, depth_max: int, items_max: int) -> None:
    """One MessagePack value, at most `depth_max` containers deep and `items_max` values in all. Raises CodecError.

    Walks the bytes without building anything. Used for what strangers may send (the handshake); a proven peer's
    messages are decoded by their schema, whose depth is fixed and whose decoder bounds recursion by itself.
    Extension types are refused: nothing of ours uses them.
    """
    position = 0
    items = 0
    open_containers = [1]  # values still expected on each level
    while open_containers:
        if open_containers[-1] == 0:
            open_containers.pop()
            continue
        open_containers[-1] -= 1
        items += 1
        if items > items_max:
            raise CodecError(f"more than {items_max} values")
        position, children = _step(data, position)
        if children:
            open_containers.append(children)
            if len(open_containers) > depth_max + 1:
                raise CodecError(f"nested more than {depth_max} deep")
    if position != len(data):
        raise CodecError(f"{len(data) - position} bytes after the value")


def _step(data: bytes | bytearray | memoryview, position: int) -> tuple[int, int]:
    """The value that starts at `position`: where its head (and text) ends, and how many values it contains."""
    if position >= len(data):
        raise CodecError("value is cut short")
    first = data[position]
    position += 1
    children = 0
    if first <= 0x7F or first >= 0xE0:
        pass
    elif first <= 0x8F:
        children = 2 * (first & 0x0F)
    elif first <= 0x9F:
        children = first & 0x0F
    elif first <= 0xBF:
        position += first & 0x1F
    elif first in _FIXED:
        position += _FIXED[first]
    elif first in _SIZED:
        length, position = _length(data, position, _SIZED[first])
        position += length
    elif first in _CONTAINERS:
        form, per_item = _CONTAINERS[first]
        length, position = _length(data, position, form)
        children = length * per_item
    else:
        raise CodecError(f"byte 0x{first:02x} starts no value of this format")
    if position > len(data):
        raise CodecError("value is cut short")
    return position, children


def _length(data: bytes | bytearray | memoryview, position: int, form: str) -> tuple[int, int]:
    size = struct.calcsize(form)
    if position + size > len(data):
        raise CodecError("value is cut short")
    (length,) = struct.unpack_from(form, data, position)
    return length, position + size
