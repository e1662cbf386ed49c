"""Row keys: golden bytes, order, and the limit of the engine."""

from __future__ import annotations

from hashlib import blake2b

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kvnode.kv.keys import TO_THE_END
from kvnode.machine import keycode
from kvnode.machine.backend import KEY_BYTES_MAX

user_keys = st.one_of(
    st.binary(min_size=1, max_size=6),
    st.builds(
        lambda fill, length, tail: fill * length + tail,
        st.sampled_from([b"x", b"\x00", b"\xff", b"x\x00"]),
        st.sampled_from([233, 234, 235, 236, 467, 468, 469, 470, 471, 511, 4095]),
        st.binary(max_size=3),
    ),
)


def test_golden_bytes() -> None:
    assert keycode.META_KEY == b"\x01state"
    assert keycode.version_row_key(b"ab", 5) == b"\x10ab\x00\x01" + bytes.fromhex("fffffffffffffffa")
    assert keycode.version_row_key(b"\x00\xff", 1) == b"\x10\x00\xff\xff\x00\x01" + bytes.fromhex("fffffffffffffffe")
    assert keycode.version_row_key(b"a", 0)[-8:] == b"\xff" * 8
    long = b"k" * 4096
    digest = blake2b(long, digest_size=24).digest()
    assert keycode.version_prefix(long) == b"\x10" + b"k" * 470 + b"\x00\x02" + digest
    assert keycode.revision_row_key(7, 2) == bytes.fromhex("f0 0000000000000007 00000002")


def test_the_limit_between_short_and_long() -> None:
    assert keycode.version_prefix(b"k" * 470) == b"\x10" + b"k" * 470 + b"\x00\x01"
    assert not keycode.is_long(keycode.version_row_key(b"k" * 470, 1))
    assert keycode.is_long(keycode.version_row_key(b"k" * 471, 1))
    assert not keycode.is_long(keycode.version_row_key(bytes(235), 1))
    assert keycode.is_long(keycode.version_row_key(bytes(236), 1))
    split = b"k" * 469 + b"\x00"
    assert keycode.version_prefix(split).startswith(b"\x10" + b"k" * 469 + b"\x00\x02"), "no half of an escape pair"


@pytest.mark.parametrize("length", [1, 234, 235, 236, 469, 470, 471, 510, 511, 512, 513, 4096, 65_536])
@pytest.mark.parametrize("fill", [b"x", b"\x00", b"\xff"])
def test_rows_fit_the_engine(length: int, fill: bytes) -> None:
    assert len(keycode.version_row_key(fill * length, 1 << 63)) <= KEY_BYTES_MAX


@settings(deadline=None, derandomize=True, max_examples=300)
@given(user_keys, user_keys, st.integers(0, 2**63), st.integers(0, 2**63))
@example(b"a", b"a\x00", 1, 1)
@example(b"k" * 469, b"k" * 469 + b"\x00", 1, 1)
@example(b"k" * 470, b"k" * 470 + b"\x00", 1, 1)
def test_rows_sort_by_key_then_newest_first(one: bytes, other: bytes, revision: int, later: int) -> None:
    row, second = keycode.version_row_key(one, revision), keycode.version_row_key(other, later)
    if one == other:
        assert (row < second) == (revision > later)
        return
    assert not row.startswith(keycode.version_prefix(other))
    if keycode.is_long(row) and keycode.is_long(second) and keycode.run_bounds(row) == keycode.run_bounds(second):
        return  # one run: sorted by the reader
    assert (row < second) == (one < other)


@settings(deadline=None, derandomize=True, max_examples=300)
@given(user_keys, user_keys, user_keys, st.integers(0, 2**63))
def test_bounds_hold_every_row_of_the_range(start: bytes, end: bytes, key: bytes, revision: int) -> None:
    row = keycode.version_row_key(key, revision)
    low, high = keycode.range_bounds(start, end)
    if end == TO_THE_END:
        return
    if start <= key < end:
        assert low <= row < high
    elif not keycode.is_long(row):
        assert not low <= row < high, "only runs may reach beyond the range"


@settings(deadline=None, derandomize=True, max_examples=100)
@given(user_keys, user_keys, st.integers(0, 2**63))
def test_an_open_range_holds_every_later_key(start: bytes, key: bytes, revision: int) -> None:
    low, high = keycode.range_bounds(start, TO_THE_END)
    if key >= start:
        assert low <= keycode.version_row_key(key, revision) < high


@settings(deadline=None, derandomize=True, max_examples=200)
@given(user_keys, st.integers(0, 2**63))
def test_rows_give_back_what_they_were_made_of(key: bytes, revision: int) -> None:
    row = keycode.version_row_key(key, revision)
    assert keycode.revision_of(row) == revision
    if keycode.is_long(row):
        low, high = keycode.run_bounds(row)
        assert low <= row < high
    else:
        assert keycode.short_user_key(row) == key
    assert row < keycode.version_prefix(key) + keycode.AFTER_REVISIONS
    assert keycode.split_revision_row_key(keycode.revision_row_key(revision, 3)) == (revision, 3)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.one_of(st.sampled_from([-1, 1, -(2**63), 2**63 - 1]), st.integers(-(2**63), 2**63 - 1)), user_keys)
def test_rows_of_leases_give_back_their_ids_and_negative_ones_come_last(lease: int, key: bytes) -> None:
    assert keycode.lease_of(keycode.lease_row_key(lease)) == lease
    assert keycode.lease_of(keycode.lease_key_row_key(lease, key)) == lease
    assert (keycode.lease_row_key(lease) > keycode.lease_row_key(2**63 - 1)) == (lease < 0)
