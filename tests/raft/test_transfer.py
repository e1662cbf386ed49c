"""Leadership transfer: scenarios S15, S16; LF7."""

from __future__ import annotations

import pytest

from kvnode.ids import NOBODY, Index, NodeId, RequestId, Term
from kvnode.raft.messages import (
    DiskStalled,
    ForwardProposals,
    ForwardReply,
    Proposals,
    Proposed,
    TimeoutNow,
    TransferLeadership,
)
from kvnode.raft.output import TransferAborted, TransferBegan
from tests.raft.cluster import Cluster

BATCH = (Proposed(RequestId(90), b"x"),)


def test_to_an_up_to_date_voter_without_waiting() -> None:
    """One term further, no timeout, nothing lost; voters do not mind that they hear a leader."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.propose(1, b"x")
    cluster.settle()
    before = cluster.now_ms
    cluster.step(1, TransferLeadership(NodeId(3)))
    cluster.settle()
    assert (cluster.leader, cluster[3].term, cluster.now_ms) == (3, 2, before)
    assert cluster.facts_of(1, TransferBegan) == [TransferBegan(NodeId(3))]
    cluster.advance(200)
    cluster.assert_level()


def test_to_nobody_in_particular_picks_the_most_caught_up() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.cut(1, 2)
    cluster.propose(1, b"x")
    cluster.settle()
    cluster.step(1, TransferLeadership())
    assert cluster.facts_of(1, TransferBegan) == [TransferBegan(NodeId(3))]


def test_a_slow_target_is_brought_level_first() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.cut(1, 3)
    cluster.propose(1, b"x", b"y")
    cluster.settle()
    cluster.heal()
    output = cluster.step(1, TransferLeadership(NodeId(3)))
    assert not any(isinstance(send.message, TimeoutNow) for send in output.sends)
    cluster.advance(250)
    assert cluster.leader == 3
    cluster.assert_level()


@pytest.mark.parametrize("to", [1, 4, 9])
def test_self_learners_and_strangers_are_refused(to: int) -> None:
    cluster = Cluster(3, learners=[4])
    cluster.elect(1)
    output = cluster.step(1, TransferLeadership(NodeId(to)))
    assert [type(fact) for fact in output.facts] == [TransferAborted]
    assert cluster.step(1, Proposals(BATCH)).placed


def test_with_nobody_to_take_over_it_is_refused() -> None:
    cluster = Cluster(1)
    cluster.advance(10)
    assert [type(f) for f in cluster.step(1, TransferLeadership()).facts] == [TransferAborted]


def test_a_follower_cannot_transfer() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    assert [type(f) for f in cluster.step(2, TransferLeadership(NodeId(3))).facts] == [TransferAborted]


def test_a_second_transfer_waits_its_turn() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.step(1, TransferLeadership(NodeId(2)))
    assert not cluster.step(1, TransferLeadership(NodeId(2))).facts
    assert [type(f) for f in cluster.step(1, TransferLeadership(NodeId(3))).facts] == [TransferAborted]


def test_proposals_are_refused_meanwhile_and_taken_again_after_the_timeout() -> None:
    """Definitely not applied while it lasts; T later the leader resumes."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.cut(1, 3)
    cluster.propose(1, b"x")
    cluster.settle()
    cluster.step(1, TransferLeadership(NodeId(3)))
    assert [r.code for r in cluster.step(1, Proposals(BATCH)).refused] == ["no_leader"]
    replies = [s.message for s in cluster.step(1, ForwardProposals(Term(1), NodeId(2), BATCH)).sends]
    assert ForwardReply(Term(1), NodeId(1), refused=((RequestId(90), "no_leader", ""),)) in replies
    cluster.advance(cluster.settings.election_timeout_ms)
    assert cluster.facts_of(1, TransferAborted) == [TransferAborted(NodeId(3), "timeout")]
    assert cluster.step(1, Proposals(BATCH)).placed


def test_a_lost_message_is_sent_again() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.step(1, TransferLeadership(NodeId(2)))
    assert cluster.take(lambda e: isinstance(e.message, TimeoutNow))
    cluster.advance(100)
    assert cluster.leader == 2


def test_a_late_timeout_now_is_void() -> None:
    """Scenario S16: of an older term, from another than the leader, or for a log that has grown since."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.step(1, TransferLeadership(NodeId(2)))
    (late,) = cluster.take(lambda e: isinstance(e.message, TimeoutNow))
    cluster.cut(1, 2)
    cluster.settle()
    cluster.advance(cluster.settings.election_timeout_ms - 50)
    cluster.heal()
    cluster.advance(60)
    cluster.propose(1, b"x")
    cluster.settle()
    assert cluster[2].term == 1
    cluster.hand(late)
    assert (cluster[2].role, cluster[2].term) == ("follower", 1)
    cluster.step(2, TimeoutNow(Term(1), NodeId(3)))
    cluster.step(2, TimeoutNow(Term(0), NodeId(1)))
    assert (cluster[2].role, cluster[2].term) == ("follower", 1)


def test_learners_and_stalled_voters_do_not_campaign() -> None:
    cluster = Cluster(3, learners=[4])
    cluster.elect(1)
    cluster.step(4, TimeoutNow(Term(1), NodeId(1)))
    cluster.step(2, DiskStalled())
    cluster.step(2, TimeoutNow(Term(1), NodeId(1), Index(1)))
    assert [cluster[i].term for i in (2, 4)] == [1, 1]
    assert NOBODY not in (cluster[2].leader, cluster[4].leader)
