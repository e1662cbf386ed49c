"""Read rounds: fresh numbers, shared only by reads that came before the round began (R4, S33, S34)."""

import asyncio

import pytest

from kvnode.errors import ConnectionLost, Overloaded
from kvnode.ids import Index, Revision
from kvnode.node import reads as reads_module
from kvnode.node.reads import CONFIRMED_MAX, NEVER_MS, Reads, RoundFailed

clock = [0]
"""Milliseconds."""


def make() -> tuple[Reads, list[int]]:
    clock[0] = 0
    wakes: list[int] = []
    return Reads(asyncio.get_running_loop(), lambda: wakes.append(1), lambda: 0, lambda: clock[0]), wakes


async def test_reads_of_one_batch_share_a_round_and_later_ones_do_not() -> None:
    reads, wakes = make()
    first, second = reads.wait(), reads.wait()
    assert reads.take_request() == 1
    late = reads.wait()
    assert reads.take_request() == 0, "one round at a time"
    reads.applied(Index(5), Revision(5))
    reads.ready(1, Index(5))
    await first
    await second
    assert not late.done(), "a round confirms nothing for a read that arrived after it began"
    assert wakes
    assert reads.take_request() == 2
    reads.ready(2, Index(5))
    await late


async def test_a_confirmed_read_waits_until_its_index_is_applied() -> None:
    reads, _ = make()
    future = reads.wait()
    reads.ready(reads.take_request(), Index(7))
    reads.applied(Index(6), Revision(6))
    assert not future.done()
    reads.applied(Index(7), Revision(7))
    await future


async def test_a_failed_round_is_told_and_its_number_is_never_used_again() -> None:
    reads, _ = make()
    future = reads.wait()
    number = reads.take_request()
    reads.failed(number)
    with pytest.raises(RoundFailed):
        await future
    again = reads.wait()
    assert reads.take_request() == number + 1
    reads.ready(number, Index(0))  # the old round's late answer
    assert not again.done()
    reads.ready(number + 1, Index(0))
    await again


async def test_stopping_fails_every_read_wherever_it_waits() -> None:
    reads, _ = make()
    behind = reads.wait()
    reads.ready(reads.take_request(), Index(9))
    asked = reads.wait()
    reads.take_request()
    gathering = reads.wait()
    reads.fail_all(ConnectionLost("stopping"))
    for future in (behind, asked, gathering):
        with pytest.raises(ConnectionLost):
            await future


async def test_the_state_is_fresh_as_of_the_asking_once_the_index_is_applied() -> None:
    reads, wakes = make()
    reads.applied(Index(5), Revision(5))
    assert reads.fresh_ms == NEVER_MS
    clock[0] = 100
    reads.wait()
    number = reads.take_request()
    clock[0] = 180
    reads.ready(number, Index(5))
    assert reads.fresh_ms == 100, "as of the question, not of the answer"
    reads.renew()
    assert wakes[-1:] == [1]
    number = reads.take_request()
    assert number, "a renewal is a round that no read waits for"
    clock[0] = 200
    reads.ready(number, Index(9))
    assert reads.fresh_ms == 100, "what was committed then is not applied here yet"
    reads.applied(Index(8), Revision(8))
    assert reads.fresh_ms == 100
    reads.applied(Index(9), Revision(9))
    assert reads.fresh_ms == 180


async def test_a_failed_renewal_changes_nothing_and_can_be_asked_for_again() -> None:
    reads, _ = make()
    reads.renew()
    reads.renew()
    reads.failed(reads.take_request())
    assert (reads.fresh_ms, reads.take_request()) == (NEVER_MS, 0)
    reads.renew()
    assert reads.take_request()


async def test_confirmed_rounds_of_a_state_that_does_not_move_are_bounded() -> None:
    reads, _ = make()
    for number in range(3 * CONFIRMED_MAX):
        clock[0] = number
        reads.renew()
        reads.ready(reads.take_request(), Index(10 + number))
    assert len(reads._confirmed) == CONFIRMED_MAX
    reads.applied(Index(10 + 3 * CONFIRMED_MAX), Revision(1))
    assert reads.fresh_ms == 3 * CONFIRMED_MAX - 1


async def test_waits_for_what_never_comes_do_not_use_up_the_room_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A forged token names a revision that the store will not reach; its wait is over at its deadline."""
    monkeypatch.setattr(reads_module, "WAITING_MAX", 8)
    reads, _ = make()
    stays = reads.wait_for_revision(5)
    for _ in range(100):
        never = reads.wait_for_revision(1 << 60)
        reads.give_up_revision(never)
        reads.give_up_revision(never)
    assert reads._unseen.count == 1
    assert len(reads._unseen._heap) <= 3
    soon = reads.wait_for_revision(4)
    reads.give_up_revision(soon)
    reads.applied(Index(9), Revision(5))
    await stays
    assert (reads._unseen.count, reads._unseen._given_up, reads._unseen._heap) == (0, 0, [])
    for _ in range(8):
        reads.wait_for_revision(1 << 60)
    with pytest.raises(Overloaded):
        reads.wait_for_revision(1 << 60)


async def test_a_causal_read_waits_for_its_revision() -> None:
    reads, _ = make()
    reads.applied(Index(5), Revision(3))
    assert reads.wait_for_revision(3).done()
    later = reads.wait_for_revision(4)
    reads.applied(Index(8), Revision(3))
    assert not later.done()
    reads.applied(Index(9), Revision(5))
    await later
    never = reads.wait_for_revision(99)
    reads.fail_all(ConnectionLost("stopping"))
    with pytest.raises(ConnectionLost):
        await never
