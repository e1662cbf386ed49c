"""The Lamport clock: strictly growing, above what was seen, never below what a former run issued."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnode.clocks.lamport import JUMP_MAX, TIME_MAX, LamportClock


def running(ceiling: int = 0) -> LamportClock:
    clock = LamportClock(ceiling)
    raise_ceiling(clock)
    return clock


def raise_ceiling(clock: LamportClock) -> None:
    if (ceiling := clock.needs_ceiling) is not None:
        clock.raised(ceiling)


def test_a_new_clock_issues_nothing_before_its_first_ceiling_is_durable() -> None:
    clock = LamportClock()
    assert (clock.time, clock.can_tick, clock.needs_ceiling) == (0, False, LamportClock.BLOCK)
    with pytest.raises(AssertionError):
        clock.tick()
    clock.raised(LamportClock.BLOCK)
    assert [clock.tick(), clock.tick()] == [1, 2]


def test_the_next_block_is_asked_for_when_half_is_used() -> None:
    clock = running()
    for _ in range(LamportClock.BLOCK // 2):
        assert clock.needs_ceiling is None
        clock.tick()
    assert clock.tick() == LamportClock.BLOCK // 2 + 1
    assert clock.needs_ceiling == LamportClock.BLOCK // 2 + 1 + LamportClock.BLOCK


def test_what_is_issued_after_a_receipt_is_later_than_it() -> None:
    clock = running()
    assert clock.observe(500)
    assert clock.tick() == 501
    assert clock.observe(7)
    assert clock.tick() == 502


def test_a_time_seen_above_the_ceiling_is_not_promised_and_nothing_is_stamped_on_it() -> None:
    clock = running()
    assert clock.observe(5000)
    assert (clock.time, clock.promised_time, clock.can_tick) == (5000, LamportClock.BLOCK, False)
    raise_ceiling(clock)
    assert (clock.promised_time, clock.tick()) == (5000, 5001)


@pytest.mark.parametrize("seen", [10 + JUMP_MAX + 1, TIME_MAX + 1, 1 << 64, -1])
def test_a_jump_too_far_and_numbers_out_of_range_are_refused(seen: int) -> None:
    clock = LamportClock(10)
    assert not clock.observe(seen)
    assert clock.time == 10
    assert clock.observe(10 + JUMP_MAX)


def test_an_older_ceiling_that_is_told_late_lowers_nothing() -> None:
    clock = running()
    clock.raised(3)
    assert clock.promised_time == 0
    assert clock.can_tick
    assert clock.needs_ceiling is None


def test_at_the_end_of_its_numbers_it_stops() -> None:
    clock = running(TIME_MAX - 1)
    assert clock.tick() == TIME_MAX
    assert (clock.can_tick, clock.needs_ceiling) == (False, None)


@given(st.lists(st.one_of(st.just("tick"), st.just("raise"), st.just("crash"), st.integers(0, 1 << 40))))
def test_no_run_issues_what_another_issued_or_promised(steps: list[str | int]) -> None:
    clock = LamportClock()
    durable, floor = 0, 0  # floor: the greatest time issued or promised by any run so far
    for step in steps:
        if step == "tick" and clock.can_tick:
            issued = clock.tick()
            assert floor < issued <= durable
            floor = issued
        elif step == "raise" and (ceiling := clock.needs_ceiling) is not None:
            durable = ceiling
            clock.raised(ceiling)
        elif step == "crash":
            clock = LamportClock(durable)
        elif isinstance(step, int) and clock.observe(step):
            assert clock.time >= step
        floor = max(floor, clock.promised_time)


def test_a_member_far_ahead_is_approached_and_reached() -> None:
    """Who was away, or is new, must come level with a cluster that has gone on, or was sent on, in the meantime."""
    clock, ahead = LamportClock(10), 5 * JUMP_MAX
    answers = [clock.follow(ahead) for _ in range(5)]
    assert answers == [False] * 4 + [True]
    assert clock.time == ahead


@pytest.mark.parametrize("seen", [TIME_MAX + 1, 1 << 64, -1])
def test_a_number_out_of_range_is_not_approached(seen: int) -> None:
    clock = LamportClock(10)
    assert not clock.follow(seen)
    assert clock.time == 10


def test_one_message_of_a_member_moves_the_clock_no_further_than_a_jump() -> None:
    clock = LamportClock(10)
    clock.follow(TIME_MAX)
    assert clock.time == 10 + JUMP_MAX
