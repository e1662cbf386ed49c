"""Read rounds: fresh numbers, shared only by reads that came before the round began (R4, S33, S34)."""

import asyncio

import pytest

from kvnode.errors import ConnectionLost
from kvnode.ids import Index
from kvnode.node.reads import Reads, RoundFailed


def make() -> tuple[Reads, list[int]]:
    wakes: list[int] = []
    return Reads(asyncio.get_running_loop(), lambda: wakes.append(1), lambda: 0), wakes


async def test_reads_of_one_batch_share_a_round_and_later_ones_do_not() -> None:
    reads, wakes = make()
    first, second = reads.wait(), reads.wait()
    assert reads.take_request() == 1
    late = reads.wait()
    assert reads.take_request() == 0, "one round at a time"
    reads.applied(Index(5))
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
    reads.applied(Index(6))
    assert not future.done()
    reads.applied(Index(7))
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
