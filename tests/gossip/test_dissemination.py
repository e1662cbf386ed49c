"""Rumors: how often, which first, and never more than a packet holds."""

from __future__ import annotations

from math import ceil, log10

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from kvnode.gossip.dissemination import RumorQueue, retransmit_max
from kvnode.gossip.messages import PACKET_BYTES_MAX, PACKET_MESSAGES_MAX, Packet, Ping, Rumor, Status, Summary
from kvnode.ids import NodeId

BIG = Summary((1 << 64) - 1, (1 << 64) - 1, (1 << 63) - 1)
SOMEBODY = NodeId(999)


def rumor(member: int, number: int = 1, address: str = "a:1", by: int = 0) -> Rumor:
    return Rumor(NodeId(member), number, Status.SUSPECT if by else Status.ALIVE, NodeId(by), address=address)


def members_in(messages: tuple[object, ...]) -> list[int]:
    return [message.member for message in messages if isinstance(message, Rumor)]


@given(st.integers(1, 10_000))
def test_the_bound_is_that_of_the_paper(members: int):
    exact = ceil(round(log10(members + 1), 12))
    assert retransmit_max(members, 4) == 4 * exact


def test_a_rumor_is_sent_so_often_and_then_no_more():
    queue = RumorQueue()
    queue.put(rumor(2))
    sent = [bool(queue.fill(BIG, [], 3, 4, to=SOMEBODY)) for _ in range(6)]
    assert sent == [True] * 4 + [False] * 2
    assert len(queue) == 0


def test_a_newer_rumor_of_the_same_member_replaces_the_older_one():
    queue = RumorQueue()
    queue.put(rumor(2, 1))
    queue.fill(BIG, [], 3, 4, to=SOMEBODY)
    queue.put(rumor(2, 2))
    sent = [queue.fill(BIG, [], 3, 4, to=SOMEBODY) for _ in range(5)]
    assert sent == [(rumor(2, 2),)] * 4 + [()]  # it is counted anew


def test_the_least_sent_goes_first_and_of_those_the_newest():
    queue = RumorQueue()
    for member in (2, 3):
        queue.put(rumor(member))
    assert members_in(queue.fill(BIG, [], 3, 4, to=SOMEBODY)) == [3, 2]
    queue.put(rumor(4))
    assert members_in(queue.fill(BIG, [], 3, 4, to=SOMEBODY)) == [4, 3, 2]


def test_a_member_is_not_told_of_itself_but_of_what_others_say_of_it():
    queue = RumorQueue()
    queue.put(rumor(2))
    queue.put(rumor(3, by=4))
    assert members_in(queue.fill(BIG, [], 3, 4, to=NodeId(2))) == [3]
    assert members_in(queue.fill(BIG, [], 3, 4, to=NodeId(3))) == [2, 3]


def test_what_stands_in_the_packet_is_not_said_twice():
    queue = RumorQueue()
    queue.put(rumor(2, 1))
    assert queue.fill(BIG, [rumor(2, 2)], 3, 4, to=SOMEBODY) == (rumor(2, 2),)


@given(st.lists(st.integers(0, 500), max_size=200), st.booleans())
def test_a_packet_is_never_larger_than_it_may_be(lengths: list[int], probes: bool):
    queue = RumorQueue()
    for number, length in enumerate(lengths):
        queue.put(rumor(number + 1, 1 << 42, "x" * length))
    head = [Ping(NodeId(5), 1 << 40)] if probes else []
    while len(queue):
        before = len(queue)
        messages = queue.fill(BIG, list(head), 3, 1, to=SOMEBODY)
        assert len(msgspec.msgpack.encode(Packet(BIG, messages))) <= PACKET_BYTES_MAX
        assert len(messages) <= PACKET_MESSAGES_MAX
        assert len(queue) < before or not queue
