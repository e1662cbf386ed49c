"""The theorems of the hybrid clock, whatever the wall clocks do; its packing, its text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnode.clocks import hybrid
from kvnode.clocks.hybrid import COUNTER_BITS, HybridClock

WALL = st.integers(0, 1 << 42)
STAMP = st.integers(0, (1 << 58) - 1)
MOVES = st.lists(st.tuples(st.integers(0, 2), WALL, st.booleans()), max_size=60)


@given(MOVES)
def test_stamps_grow_along_every_chain_of_causes_under_clocks_that_jump(moves: list[tuple[int, int, bool]]) -> None:
    """a → b implies hlc(a) < hlc(b), on one node and across messages; none is below the clock that made it."""
    clocks = [HybridClock() for _ in range(3)]
    sent = 0
    for node, wall, receives in moves:
        clock = clocks[node]
        before = clock.last
        if receives:
            clock.observe(sent)
        stamp = clock.next(wall)
        assert stamp > before
        assert not receives or stamp > sent
        assert hybrid.wall_part_ms(stamp) >= wall
        newest = max(wall << COUNTER_BITS, before + 1, sent + 1 if receives else 0)
        assert stamp == newest, "and it is ahead of the clock only as far as something it has heard of"
        sent = stamp


@given(STAMP, STAMP)
def test_packed_stamps_compare_as_time_and_counter_and_their_text_tells_both(one: int, other: int) -> None:
    assert (one < other) == ((one >> 16, one & 0xFFFF) < (other >> 16, other & 0xFFFF))
    for stamp in (one, other):
        if stamp >> 16 < 253_402_300_800_000:  # the year 10 000
            assert hybrid.from_text(hybrid.to_text(stamp)) == stamp


def test_a_counter_that_overflows_carries_into_the_milliseconds() -> None:
    clock = HybridClock(hybrid.latest_at(7))
    assert clock.next(7) == 8 << COUNTER_BITS


def test_what_is_taken_back_may_be_given_again() -> None:
    clock = HybridClock(5)
    later = clock.next(1_000)
    clock.rewind(5)
    assert clock.next(10) < later


@pytest.mark.parametrize("text", ["", "2026-11-22T10:00:00.123Z", "2026-11-22T10:00:00.123Z.65536", "xZ.1"])
def test_other_texts_are_no_stamps(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        hybrid.from_text(text)
