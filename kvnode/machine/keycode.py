"""Keys of the store's rows: order-preserving, prefix-free, never longer than a backend allows.

One table of prefixes; a row's first byte names its table.

    prefix  key after the prefix                                   table
    ------  -----------------------------------------------------  ---------------------------------------
    0x00    name                                                   the backend's own (engine and format)
    0x01    "state"                                                meta: what the store was cut at
    0x10    user key, escaped, 00 01, inverted revision (8)        versions, user key fits
    0x10    stem, 00 02, digest of user key (24), inverted         versions, user key is longer
            revision (8)
    0x20    lease (8, two's complement)                            leases
    0x21    lease (8), digest of user key (24)                     keys of leases
    0x30    session (8)                                            sessions
    0x31    session (8), sequence (8)                              stored answers
    0x32    index of the entry that used it first (8)              Idempotency-Keys and their answers
    0x40 … 0xE0                                                    free
    0xF0    revision (8), number within the revision (4)           revisions, in the order they were made

Escaping turns each NUL of a user key into 00 FF, so 00 01 ends a key and sorts before every longer one.
The revision is stored inverted (2⁶⁴ − 1 − revision, big endian): a seek to (key, inverted R) finds the newest
version at or below R. Revisions stand last because they only grow: a backend can append them.

A user key whose escaped form exceeds `STEM_BYTES` is cut to a stem of at most that, never inside an escape
pair, and told from others of the same stem by its digest; the full key stands in the row's value. All long
keys of one stem form a *run*. A run sorts as a whole where its keys belong (after the short key that equals
the stem, before anything else greater); within a run rows sort by digest, so readers sort them by full key.
"""

from __future__ import annotations

from hashlib import blake2b
from struct import Struct

from kvnode.kv.keys import TO_THE_END

META_KEY = b"\x01state"
VERSIONS = b"\x10"
VERSIONS_END = b"\x11"
LEASES = b"\x20"
LEASE_KEYS = b"\x21"
SESSIONS = b"\x30"
ANSWERS = b"\x31"
IDEMPOTENCY_KEYS = b"\x32"
REVISIONS = b"\xf0"
REVISIONS_END = b"\xf1"

STEM_BYTES = 470
DIGEST_BYTES = 24
REVISION_BYTES = 8

AFTER_REVISIONS = b"\xff" * (REVISION_BYTES + 1)
"""Added to a `version_prefix`: past every version of that key."""

_ESCAPED_NUL = b"\x00\xff"
_END_SHORT = b"\x00\x01"
_END_LONG = b"\x00\x02"
_AFTER_LONG = b"\x00\x03"
_INVERT = (1 << 64) - 1
_revision = Struct(">Q").pack
_revision_row = Struct(">cQI").pack
_SHORT_ROW_BYTES_MAX = 1 + STEM_BYTES + 2 + REVISION_BYTES
_LONG_TAIL_BYTES = DIGEST_BYTES + REVISION_BYTES


def _stem(escaped: bytes) -> bytes:
    stem = escaped[:STEM_BYTES]
    # In escaped text a NUL is always the first half of a pair; its second half was cut off here.
    return stem[:-1] if stem.endswith(b"\x00") else stem


def version_prefix(key: bytes) -> bytes:
    """What all rows of one user key's versions start with, and no other row (but for equal digests)."""
    escaped = key.replace(b"\x00", _ESCAPED_NUL) if b"\x00" in key else key
    if len(escaped) <= STEM_BYTES:
        return VERSIONS + escaped + _END_SHORT
    return VERSIONS + _stem(escaped) + _END_LONG + blake2b(key, digest_size=DIGEST_BYTES).digest()


def inverted(revision: int) -> bytes:
    return _revision(_INVERT - revision)


def version_row_key(key: bytes, revision: int) -> bytes:
    return version_prefix(key) + inverted(revision)


def revision_of(row_key: bytes) -> int:
    """The revision in the key of a versions row."""
    return _INVERT - int.from_bytes(row_key[-REVISION_BYTES:], "big")


def is_long(row_key: bytes) -> bool:
    """Whether a versions row belongs to a run of long keys. Length decides: the longest short one is shorter."""
    return len(row_key) > _SHORT_ROW_BYTES_MAX


def short_user_key(row_key: bytes) -> bytes:
    """The user key of a versions row that is not long."""
    escaped = row_key[1 : -REVISION_BYTES - 2]
    return escaped.replace(_ESCAPED_NUL, b"\x00") if b"\x00" in escaped else escaped


def run_bounds(row_key: bytes) -> tuple[bytes, bytes]:
    """The half-open interval of rows that holds the run a long versions row belongs to."""
    stem = row_key[: -_LONG_TAIL_BYTES - 2]
    return stem + _END_LONG, stem + _AFTER_LONG


def run_stem(low: bytes) -> bytes:
    """What the user keys of the run that begins at `low` start with (other keys may, too)."""
    return low[1 : -len(_END_LONG)].replace(_ESCAPED_NUL, b"\x00")


def range_bounds(start: bytes, end: bytes) -> tuple[bytes, bytes]:
    """Half-open interval of rows that holds every version of the user keys in ``[start, end)``.

    A bound that is a long key takes its whole run in: filter by full key. `end` may be `TO_THE_END`.
    """
    low = version_prefix(start)
    if len(low) > _SHORT_ROW_BYTES_MAX - REVISION_BYTES:
        low = low[:-DIGEST_BYTES]
    if end == TO_THE_END:
        return low, VERSIONS_END
    high = version_prefix(end)
    if len(high) > _SHORT_ROW_BYTES_MAX - REVISION_BYTES:
        high = high[: -DIGEST_BYTES - 2] + _AFTER_LONG
    return low, high


def revision_row_key(revision: int, number: int) -> bytes:
    """Key of the `number`-th change of a revision, counted from 0."""
    return _revision_row(REVISIONS, revision, number)


def lease_row_key(lease: int) -> bytes:
    return LEASES + _lease_bytes(lease)


def _lease_bytes(lease: int) -> bytes:
    return (lease & (1 << 64) - 1).to_bytes(8, "big")


def lease_of(row_key: bytes) -> int:
    """Of a lease's row, or of one of its keys."""
    return int.from_bytes(row_key[1:9], "big", signed=True)


def lease_key_row_key(lease: int, key: bytes) -> bytes:
    return LEASE_KEYS + _lease_bytes(lease) + blake2b(key, digest_size=DIGEST_BYTES).digest()


def split_revision_row_key(row_key: bytes) -> tuple[int, int]:
    assert row_key.startswith(REVISIONS), row_key
    assert len(row_key) == 1 + REVISION_BYTES + 4, row_key
    return int.from_bytes(row_key[1:9], "big"), int.from_bytes(row_key[9:], "big")
