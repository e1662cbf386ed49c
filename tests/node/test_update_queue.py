"""The singular update queue: bounds, lanes, batches (UQ1, UQ5)."""

import pytest

from kvnode.errors import Overloaded
from kvnode.ids import Index, NodeId, RequestId, Term
from kvnode.node.update_queue import BATCH_PROPOSALS_MAX, PEER_BYTES_MAX, UpdateQueue
from kvnode.raft.messages import ENTRY_OVERHEAD_BYTES, AppendEntries, ForwardProposals, Proposed, Tick


def proposal(number: int, size: int = 10) -> Proposed:
    return Proposed(RequestId(number), bytes(size))


def forwarded(*numbers: int) -> ForwardProposals:
    return ForwardProposals(Term(1), NodeId(2), tuple(proposal(n) for n in numbers))


class Wakes:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


def make(items: int = 100, size: int = 1 << 20) -> tuple[UpdateQueue, Wakes]:
    wakes = Wakes()
    return UpdateQueue(items_max=items, bytes_max=size, wake=wakes), wakes


def test_one_drain_takes_everything_that_arrived_in_order() -> None:
    queue, wakes = make()
    queue.put_proposal(proposal(1))
    queue.put_control(Tick())
    queue.put_proposal(proposal(2))
    assert wakes.count == 3
    batch = queue.drain()
    assert batch.control == [Tick()]
    assert [p.id for p in batch.proposals] == [1, 2]
    assert queue.length == queue.bytes_used == 0
    assert queue.drain().proposals == ()


def test_full_by_count_is_overloaded_and_control_still_enters() -> None:
    queue, _ = make(items=2)
    queue.put_proposal(proposal(1))
    queue.put_proposal(proposal(2))
    with pytest.raises(Overloaded) as caught:
        queue.put_proposal(proposal(3))
    assert caught.value.detail["retry_after_ms"] > 0
    assert not caught.value.may_have_applied
    queue.put_control(Tick())
    assert queue.drain().control == [Tick()]
    queue.put_proposal(proposal(3))


def test_full_by_bytes_is_overloaded() -> None:
    queue, _ = make(size=1_000)
    queue.put_proposal(proposal(1, 1_000 - ENTRY_OVERHEAD_BYTES))
    with pytest.raises(Overloaded):
        queue.put_proposal(proposal(2, 0))
    queue.drain()
    queue.put_proposal(proposal(2, 0))


def test_forwarded_proposals_share_the_bounds() -> None:
    queue, _ = make(items=3)
    assert queue.put_forwarded(forwarded(1, 2), 100)
    assert not queue.put_forwarded(forwarded(3, 4), 100)
    queue.put_proposal(proposal(5))
    with pytest.raises(Overloaded):
        queue.put_proposal(proposal(6))
    batch = queue.drain()
    assert [len(m.batch) for m in batch.forwarded] == [2]
    assert queue.length == queue.bytes_used == 0


def test_a_flood_is_taken_in_bounded_batches_with_control_first_each_time() -> None:
    queue, wakes = make(items=10_000, size=1 << 30)
    for number in range(2 * BATCH_PROPOSALS_MAX + 5):
        queue.put_proposal(proposal(number))
    before = wakes.count
    first = queue.drain()
    assert len(first.proposals) == BATCH_PROPOSALS_MAX
    assert wakes.count == before + 1, "what remains must wake the driver again"
    queue.put_control(Tick())
    second = queue.drain()
    assert second.control == [Tick()]
    assert [p.id for p in first.proposals + second.proposals] == list(range(2 * BATCH_PROPOSALS_MAX))
    assert len(queue.drain().proposals) == 5


def test_appends_of_a_peer_are_dropped_beyond_their_bound() -> None:
    queue, _ = make()
    append = AppendEntries(Term(1), NodeId(2), Index(0), Term(0), (), Index(0))
    queue.put_append(append, PEER_BYTES_MAX)
    queue.put_append(append, 1)
    assert queue.appends_dropped == 1
    assert len(queue.drain().control) == 1
    queue.put_append(append, PEER_BYTES_MAX)
    assert len(queue.drain().control) == 1
