"""The request waiting list tells the truth: applied, certainly not, or unknown (RW1–RW3, trap R17)."""

import asyncio

import pytest

from kvnode.errors import LeadershipLost, NoLeader, NotApplied, Timeout
from kvnode.ids import Index, NodeId, RequestId, Term
from kvnode.kv.requests import PutReply
from kvnode.node.waiting_list import SWEEP_MS, WaitingList
from kvnode.raft.output import Forwarded, Placed

REPLY = PutReply(revision=2, created=True, create_revision=2, version=1, time=7)
OTHER = PutReply(revision=3, created=True, create_revision=3, version=1, time=8)


def place(waiting: WaitingList, index: int, term: int) -> tuple[RequestId, asyncio.Future]:
    request, future = waiting.add(10_000, 5)
    waiting.placed(Placed(request, Index(index), Term(term)))
    return request, future


async def test_the_entry_of_that_term_answers() -> None:
    waiting = WaitingList(asyncio.get_running_loop())
    _, future = place(waiting, 4, 2)
    assert waiting.has_placed
    assert waiting.applied(Index(4), Term(2), REPLY) == 5
    assert await future == REPLY
    assert len(waiting) == 0
    assert not waiting.has_placed


async def test_another_terms_entry_at_that_index_is_the_only_proof_of_not_applied() -> None:
    waiting = WaitingList(asyncio.get_running_loop())
    _, lost = place(waiting, 4, 2)
    _, kept = place(waiting, 4, 3)
    waiting.applied(Index(4), Term(3), OTHER)
    with pytest.raises(NotApplied):
        await lost
    assert await kept == OTHER


async def test_no_answer_comes_before_a_commit_at_that_index() -> None:
    waiting = WaitingList(asyncio.get_running_loop())
    _, future = place(waiting, 4, 2)
    waiting.leader_lost(NodeId(1))
    waiting.applied(Index(3), Term(9), None)
    assert not future.done()


async def test_losing_the_leader_fails_only_what_it_has_not_answered() -> None:
    waiting = WaitingList(asyncio.get_running_loop())
    sent, sent_future = waiting.add(10_000, 0)
    other, other_future = waiting.add(10_000, 0)
    _, placed_future = place(waiting, 9, 2)
    _, queued_future = waiting.add(10_000, 0)
    waiting.forwarded(Forwarded(sent, NodeId(1), Term(2)))
    waiting.forwarded(Forwarded(other, NodeId(3), Term(2)))
    waiting.leader_lost(NodeId(1))
    with pytest.raises(LeadershipLost) as caught:
        await sent_future
    assert caught.value.may_have_applied
    assert not other_future.done()
    assert not placed_future.done()
    assert not queued_future.done()


async def test_a_place_learnt_after_applying_is_unknown_never_a_guess() -> None:
    waiting = WaitingList(asyncio.get_running_loop())
    request, future = waiting.add(10_000, 0)
    waiting.applied(Index(4), Term(2), REPLY)
    waiting.placed(Placed(request, Index(4), Term(2)))
    with pytest.raises(LeadershipLost):
        await future


async def test_deadlines_come_late_never_early_and_leave_nothing_behind() -> None:
    waiting = WaitingList(asyncio.get_running_loop())
    _, future = waiting.add(1_000, 0)
    assert waiting.sweep(999)
    assert not future.done()
    assert waiting.sweep(1_000) in (True, False)
    assert not future.done() or isinstance(future.exception(), Timeout)
    assert not waiting.sweep(1_000 + SWEEP_MS)
    with pytest.raises(Timeout) as caught:
        await future
    assert caught.value.may_have_applied
    assert len(waiting) == 0


async def test_refusals_reach_only_their_request_and_discarded_ones_nobody() -> None:
    waiting = WaitingList(asyncio.get_running_loop())
    first, first_future = waiting.add(10_000, 0)
    second, second_future = waiting.add(10_000, 0)
    waiting.discard(second)
    waiting.refused(second, NoLeader("x"))
    waiting.refused(first, NoLeader("x"))
    with pytest.raises(NoLeader):
        await first_future
    assert not second_future.done()
    waiting.placed(Placed(second, Index(3), Term(1)))
    waiting.applied(Index(3), Term(1), REPLY)
    assert len(waiting) == 0


async def test_a_hundred_thousand_abandoned_calls_leave_nothing() -> None:
    waiting = WaitingList(asyncio.get_running_loop())
    for number in range(100_000):
        request, _ = waiting.add(1_000 + number % 500, 0)
        waiting.placed(Placed(request, Index(number + 1), Term(1)))
        waiting.discard(request)
    assert len(waiting) == 0
    assert not waiting.sweep(10_000)
    for number in range(100_000):
        waiting.applied(Index(number + 1), Term(1), REPLY)
    assert not waiting.has_placed
