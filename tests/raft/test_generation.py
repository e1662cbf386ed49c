"""Generation clock: traps S3–S6, S13–S15, C3; scenarios S7, S9; tests GC-T1, GC-T2."""

from __future__ import annotations

import pytest

from kvnode.ids import NOBODY, Index, NodeId, Term
from kvnode.raft.messages import (
    AppendEntries,
    AppendReply,
    ForwardReply,
    PeerMessage,
    ReadIndexReply,
    ReadIndexRequest,
    VoteReply,
    VoteRequest,
)
from kvnode.raft.output import BecameFollower, LeaderKnown
from tests.raft.cluster import Cluster


def append(term: int, sender: int = 2, prev: tuple[int, int] = (0, 0)) -> AppendEntries:
    return AppendEntries(Term(term), NodeId(sender), Index(prev[1]), Term(prev[0]), (), Index(0))


NEWER: list[PeerMessage] = [
    append(7),
    AppendReply(Term(7), NodeId(2), accepted=False, index=Index(0)),
    VoteReply(Term(7), NodeId(2), granted=False),
    VoteReply(Term(7), NodeId(2), granted=False, pre=True),
    ReadIndexRequest(Term(7), NodeId(2), 1),
    ReadIndexReply(Term(7), NodeId(2), 1, Index(0)),
    ForwardReply(Term(7), NodeId(2)),
]


@pytest.mark.parametrize("message", NEWER, ids=lambda m: type(m).__name__)
def test_any_newer_message_deposes_a_leader(message: PeerMessage) -> None:
    """Traps S4, S13, I3: adopted before it is processed, by whatever it comes; the vote is forgotten."""
    cluster = Cluster(3)
    cluster.elect(1)
    output = cluster.step(1, message)
    assert (cluster[1].term, cluster[1].role, cluster[1].state.vote) == (7, "follower", NOBODY)
    assert output.persist is not None
    assert output.persist.hard_state is not None
    assert output.persist.hard_state.term == 7
    assert any(isinstance(fact, BecameFollower) for fact in output.facts)


@pytest.mark.parametrize("message", NEWER, ids=lambda m: type(m).__name__)
def test_the_newer_term_survives_a_crash(message: PeerMessage) -> None:
    """Traps S15, C3; scenario S9 on every path."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.step(1, message)
    cluster.restart(1)
    assert cluster[1].term == 7


def test_an_older_message_is_refused_with_our_term_and_proves_no_life() -> None:
    """Traps S14, S45; GC-T1: the election timer is not reset by a deposed leader."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.step(3, append(5))
    deadline = cluster[3].next_deadline_ms()
    cluster.now_ms += 10
    (send,) = cluster.step(3, append(4, sender=1)).sends
    assert send.message == AppendReply(Term(5), NodeId(3), accepted=False, index=Index(0))
    assert cluster[3].next_deadline_ms() == deadline
    assert cluster[3].leader == 2


def test_answers_of_an_older_term_are_dropped() -> None:
    """Traps S10, R3."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.elect(1)
    before = cluster[1].progress[NodeId(2)].match_index
    cluster.propose(1, b"x")
    output = cluster.step(1, AppendReply(Term(1), NodeId(2), accepted=True, index=cluster[1].last_index))
    assert cluster[1].progress[NodeId(2)].match_index == before
    assert not output.sends


def test_a_pre_vote_raises_no_term() -> None:
    """LF4, I3: neither asked, nor granted, nor refused."""
    cluster = Cluster(3)
    request = VoteRequest(Term(9), NodeId(2), Term(9), Index(9), pre=True)
    (send,) = cluster.step(1, request).sends
    assert send.message == VoteReply(Term(9), NodeId(1), granted=True, pre=True)
    assert cluster[1].term == 0
    cluster.step(1, VoteReply(Term(9), NodeId(2), granted=True, pre=True))
    assert cluster[1].term == 0


def test_every_term_change_forgets_the_leader() -> None:
    """Trap S5: no two followers pointing at each other."""
    cluster = Cluster(3)
    cluster.elect(1)
    assert cluster[3].leader == 1
    cluster.step(3, VoteReply(Term(7), NodeId(2), granted=False))
    assert cluster[3].leader == NOBODY


def test_the_answer_waits_for_the_term_it_mentions() -> None:
    """Trap S3, I9: accepted or refused, what names a new term leaves after its write."""
    cluster = Cluster(3, slow_disks=[3])
    output = cluster.step(3, append(4))
    assert [(type(s.message), s.after) for s in output.sends] == [(AppendReply, 1)]
    output = cluster.step(3, append(3, sender=1))
    assert [s.after for s in output.sends] == [1], "still in flight: the same write"
    cluster.complete_writes(3)
    assert [s.after for s in cluster.step(3, append(4)).sends] == [0]


def test_following_is_said_once() -> None:
    cluster = Cluster(3)
    for _ in range(3):
        cluster.step(3, append(4))
    assert cluster.facts_of(3, LeaderKnown) == [LeaderKnown(Term(4), NodeId(2))]


def test_two_leaders_of_one_term_are_a_bug() -> None:
    """I1: it cannot happen; if it does the node stops rather than choose."""
    cluster = Cluster(3)
    cluster.step(3, append(4))
    with pytest.raises(AssertionError):
        cluster.step(3, append(4, sender=1))


def test_terms_never_fall_over_fifty_restarts() -> None:
    """GC-T2."""
    cluster = Cluster(3)
    for round_ in range(50):
        cluster.advance(700)
        id_ = round_ % 3 + 1
        before = cluster[id_].term
        cluster.restart(id_)
        assert cluster[id_].term == before
