"""The words of the API: bytes as base64, the interval of a prefix, items of a range read back."""

from __future__ import annotations

import base64
from typing import Any

EVERYTHING_FROM = base64.b64encode(b"\0").decode()
"""As `range_end`: every key from `key` on."""

FAR_AHEAD = 1 << 40
"""A revision that no store here reaches."""


def b64(content: bytes | str) -> str:
    """Standard alphabet, padded: what every version reads and writes."""
    return base64.b64encode(content.encode() if isinstance(content, str) else content).decode()


def unb64(text: str) -> bytes:
    """Raises: binascii.Error if it is not standard, padded base64."""
    return base64.b64decode(text, validate=True)


def prefix_end(start: bytes) -> bytes:
    """`range_end` of the keys that begin with `start`."""
    stem = start.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else b"\0"


def prefix(start: bytes) -> dict[str, Any]:
    """`key` and `range_end` of all keys that begin with `start`."""
    return {"key": b64(start), "range_end": b64(prefix_end(start))}


def interval(start: bytes, end: bytes) -> dict[str, Any]:
    """`key` and `range_end` of ``[start, end)``."""
    return {"key": b64(start), "range_end": b64(end)}


def keys_of(answer: dict[str, Any], field: str = "kvs") -> list[bytes]:
    return [unb64(kv["key"]) for kv in answer.get(field, [])]


def values_of(answer: dict[str, Any], field: str = "kvs") -> list[bytes]:
    return [unb64(kv.get("value", "")) for kv in answer.get(field, [])]


def pairs_of(answer: dict[str, Any], field: str = "kvs") -> list[tuple[bytes, bytes]]:
    return list(zip(keys_of(answer, field), values_of(answer, field), strict=True))


def revision_of(answer: dict[str, Any]) -> int:
    """The one in the header."""
    return int(answer["header"]["revision"])
