"""Quarantine: a member that has lost what it acknowledged. Invariants I12, I16; scenario S73 at the core."""

from __future__ import annotations

from kvnode.ids import NOBODY, Index, NodeId, Term
from kvnode.raft.messages import AppendReply, TimeoutNow, TransferLeadership, VoteReply, VoteRequest
from kvnode.raft.output import QuarantineEnded, TransferBegan
from tests.raft.cluster import Cluster


def led(size: int = 3) -> Cluster:
    """Node 1 leads in term 1 and has committed three commands everywhere."""
    cluster = Cluster(size)
    cluster.elect(1)
    cluster.propose(1, b"a", b"b", b"c")
    cluster.settle()
    cluster.advance(60)
    cluster.assert_level()
    return cluster


def test_it_grants_no_vote_whatever_its_log_has_come_to() -> None:
    """Node 3 alone shared the last commit with the leader, lost it, and must not elect node 2, which never had it."""
    cluster = led()
    cluster.cut(1, 2)
    cluster.propose(1, b"only on 1 and 3")
    cluster.advance(60)
    assert cluster[1].commit_index == 5
    cluster.crash(1)
    cluster.damage(3, 3)
    cluster.heal()
    cluster.advance(5_000)
    assert cluster.leader == NOBODY
    for pre in (True, False):
        request = VoteRequest(Term(9), NodeId(2), Term(1), Index(4), pre=pre)
        sends = cluster.step(3, request).sends
        assert not any(isinstance(send.message, VoteReply) for send in sends)
    cluster.start(1)  # who has everything can be elected without node 3
    cluster.advance(3_000)
    assert any(entry.payload == b"only on 1 and 3" for entry in cluster.member(2).applied)
    assert not cluster[3].is_quarantined
    cluster.assert_level()


def test_it_never_stands_not_even_when_told_to() -> None:
    cluster = led()
    cluster.damage(3, 3)
    cluster.crash(1)
    cluster.crash(2)
    cluster.advance(5_000)
    assert (cluster[3].role, cluster[3].term) == ("follower", 1)
    cluster.start(1)
    cluster.settle()
    cluster.step(3, TimeoutNow(cluster[3].term, NodeId(1)))
    assert cluster[3].role == "follower"


def test_it_is_repaired_and_leaves_after_a_term_that_began_without_it() -> None:
    cluster = led()
    cluster.damage(3, 2)
    assert cluster[3].is_quarantined
    cluster.advance(3_000)
    assert not cluster[3].is_quarantined
    assert cluster.member(3).quarantine == 0
    assert cluster[1].term > 1, "no acknowledgement of the old term may count any more"
    ended = cluster.facts_of(3, QuarantineEnded)
    assert len(ended) == 1
    cluster.propose(3, b"d")
    cluster.advance(100)
    cluster.assert_level()


def test_the_leader_it_acknowledged_to_sends_everything_again() -> None:
    """With the third node down nobody can be elected; the log is made whole all the same, and commits go on."""
    cluster = led()
    cluster.crash(2)
    cluster.damage(3, 2)
    cluster.advance(1_000)
    assert cluster.leader == 1
    assert cluster[1].term == 1, "no majority without node 3: the leader must not hand over"
    assert cluster[3].is_quarantined
    cluster.propose(1, b"d")
    cluster.advance(100)
    assert cluster[1].commit_index == 5
    assert cluster.member(3).disk.entries == cluster.member(1).disk.entries
    assert cluster[3].is_quarantined, "an old leader still counts what was acknowledged before the damage"
    cluster.start(2)
    cluster.advance(3_000)
    assert not cluster[3].is_quarantined
    cluster.assert_level()


def test_a_commit_of_the_old_term_does_not_end_it() -> None:
    """The acknowledgement given before the damage is still on its way; a commit below it proves nothing."""
    cluster = led()
    cluster.cut(1, 2)
    cluster.propose(1, b"d")
    cluster.deliver(lambda e: e.to == 3)
    late = cluster.take(lambda e: e.sender == 3)
    assert [e.message.index for e in late if isinstance(e.message, AppendReply)] == [5]
    cluster.damage(3, 5)
    cluster.settle()  # nothing is sent: node 1 does not know
    cluster.hand(*late)
    assert cluster[1].commit_index == 5, "committed by what node 3 no longer has"
    assert cluster[3].is_quarantined
    cluster.crash(1)
    cluster.heal()
    cluster.advance(3_000)
    assert cluster.leader == NOBODY, "the committed entry stands on node 1 alone"


def test_it_stays_through_a_restart() -> None:
    cluster = led()
    cluster.crash(2)
    cluster.damage(3, 2)
    cluster.advance(300)
    cluster.restart(3)
    assert cluster[3].is_quarantined
    cluster.start(2)
    cluster.advance(3_000)
    assert not cluster[3].is_quarantined


def test_it_is_nobody_to_hand_over_to() -> None:
    cluster = led()
    cluster.crash(2)
    cluster.damage(3, 2)
    cluster.advance(500)
    before = len(cluster.facts_of(1, TransferBegan))
    cluster.step(1, TransferLeadership())
    assert len(cluster.facts_of(1, TransferBegan)) == before
    assert cluster.leader == 1


def test_a_majority_in_quarantine_elects_nobody_and_a_healthy_one_goes_on() -> None:
    cluster = led(5)
    for id_ in (3, 4, 5):
        cluster.damage(id_, 2)
    cluster.advance(2_000)
    assert cluster.leader == 1, "three followers still acknowledge what they hold"
    cluster.crash(1)
    cluster.advance(3_000)
    assert cluster.leader == NOBODY
    cluster = led(5)
    for id_ in (4, 5):
        cluster.damage(id_, 2)
    cluster.advance(3_000)
    assert not cluster[4].is_quarantined
    assert not cluster[5].is_quarantined
    cluster.assert_level()


def test_a_damaged_leader_comes_back_as_a_follower() -> None:
    cluster = led()
    cluster.damage(1, 1)  # nothing of the log is left, term and vote are
    cluster.advance(4_000)
    assert cluster.leader in {2, 3}
    assert not cluster[1].is_quarantined
    cluster.assert_level()


def test_reads_and_elections_go_on_beside_it() -> None:
    cluster = led()
    cluster.damage(3, 2)
    cluster.advance(3_000)
    number = cluster.read(3)
    cluster.settle()
    index = cluster.ready_at(3, number)
    assert index is not None
    assert index >= 4
