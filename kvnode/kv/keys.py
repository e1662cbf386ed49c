"""Key ranges: half-open intervals of byte strings, in byte order.

A range is ``[start, end)``. ``end`` is `ONE_KEY` (empty bytes: just the key `start`), `TO_THE_END`
(a single NUL, etcd's convention: every key from `start` on) or the first key no longer inside.
"""

from __future__ import annotations

ONE_KEY = b""
TO_THE_END = b"\x00"


def prefix_end(prefix: bytes) -> bytes:
    """First key after every key that starts with `prefix`; `TO_THE_END` if there is none (e.g. b"" or b"\\xff")."""
    stem = prefix.rstrip(b"\xff")
    if not stem:
        return TO_THE_END
    return stem[:-1] + bytes([stem[-1] + 1])


def contains(start: bytes, end: bytes, key: bytes) -> bool:
    """Whether `key` lies in the range, `end` read as the module docstring says."""
    if end == ONE_KEY:
        return key == start
    return key >= start and (end == TO_THE_END or key < end)
