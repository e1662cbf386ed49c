"""Quarantine: a member that has lost what it acknowledged. Invariants I12, I16; scenario S73 at the core."""

from __future__ import annotations

from kvnode.ids import NOBODY, Index, NodeId, Term
from kvnode.raft.messages import AppendEntries, AppendReply, TimeoutNow, TransferLeadership, VoteReply, VoteRequest
from kvnode.raft.output import FollowerLost, QuarantineEnded, TransferAborted, TransferBegan
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
    leader = AppendEntries(Term(1), NodeId(1), Index(9), Term(1), (), Index(4))
    cluster.step(3, leader)
    assert cluster[3].state.leader == 1
    cluster.step(3, TimeoutNow(Term(1), NodeId(1)))
    assert (cluster[3].role, cluster[3].term) == ("follower", 1)


def test_it_leaves_with_what_the_leader_had_committed_and_not_before_that_is_durable() -> None:
    cluster = led()
    entries = tuple(cluster.member(3).disk.entries)
    cluster.damage(3, 3)
    cluster.slow_disks[3] = True
    life = cluster[3].state.life
    output = cluster.step(3, AppendEntries(Term(1), NodeId(1), Index(2), Term(1), (), Index(4), life=life))
    assert cluster[3].commit_index == 2, "of this term, and durable"
    assert not output.lift_quarantine
    output = cluster.step(3, AppendEntries(Term(1), NodeId(1), Index(2), Term(1), entries[2:], Index(4), life=life))
    assert cluster[3].commit_index == 4
    assert not output.lift_quarantine
    cluster.complete_write(3)
    assert not cluster[3].is_quarantined


def test_it_is_repaired_and_leaves() -> None:
    cluster = led()
    cluster.damage(3, 2)
    assert cluster[3].is_quarantined
    cluster.advance(500)
    assert not cluster[3].is_quarantined
    assert not cluster.member(3).is_quarantined
    assert (cluster.leader, cluster[1].term) == (1, 1), "no election is needed"
    assert len(cluster.facts_of(3, QuarantineEnded)) == 1
    cluster.propose(3, b"d")
    cluster.advance(100)
    cluster.assert_level()


def test_two_of_three_are_enough() -> None:
    """The leader it acknowledged to sends everything again, and says that it counts nothing of before."""
    cluster = led()
    cluster.crash(2)
    cluster.damage(3, 2)
    cluster.propose(1, b"d")
    cluster.advance(500)
    assert (cluster.leader, cluster[1].commit_index) == (1, 5)
    assert not cluster[3].is_quarantined
    cluster.crash(1)
    cluster.start(2)
    cluster.advance(3_000)
    assert cluster.leader == 3
    cluster.assert_level(2, 3)


def test_two_are_a_cluster_too() -> None:
    cluster = led(2)
    cluster.damage(2, 1)
    cluster.advance(500)
    assert not cluster[2].is_quarantined
    cluster.assert_level()


def test_what_an_earlier_life_acknowledged_does_not_count_once_the_leader_knows() -> None:
    """Node 3 acknowledged entry 5, lost it, and became whole below it: nothing may be committed by that answer now."""
    cluster = led()
    cluster.cut(1, 2)
    cluster.propose(1, b"d")
    cluster.deliver(lambda e: e.to == 3)
    late = cluster.take(lambda e: e.sender == 3)
    assert [e.message.index for e in late if isinstance(e.message, AppendReply)] == [5]
    cluster.damage(3, 4)
    withheld = 0
    for _ in range(30):
        cluster.advance(10, deliver=False)
        while cluster.wire:
            withheld += len(cluster.take(lambda e: isinstance(e.message, AppendEntries) and bool(e.message.entries)))
            cluster.deliver()
    assert cluster[3].is_quarantined
    assert cluster[1].progress[NodeId(3)].match_index < 5
    cluster.hand(*late)
    assert cluster[1].commit_index == 4, "counted an answer whose entry is lost"
    assert withheld


def test_an_answer_the_leader_counted_before_keeps_it_in_quarantine_until_it_has_that_entry() -> None:
    cluster = led()
    cluster.cut(1, 2)
    cluster.propose(1, b"d")
    cluster.deliver(lambda e: e.to == 3)
    late = cluster.take(lambda e: e.sender == 3)
    cluster.damage(3, 5)
    cluster.hand(*late)
    assert cluster[1].commit_index == 5, "committed by what node 3 no longer has"
    cluster.crash(1)
    cluster.heal()
    cluster.advance(3_000)
    assert cluster.leader == NOBODY, "the committed entry stands on node 1 alone"
    assert cluster[3].is_quarantined
    cluster.start(1)
    cluster.advance(3_000)
    assert not cluster[3].is_quarantined
    cluster.assert_level()


def test_a_commit_that_is_not_of_the_leaders_own_term_does_not_end_it() -> None:
    """A new leader does not know yet what its predecessors committed."""
    cluster = led()
    cluster.damage(3, 2)
    state = cluster[3].state
    assert state.is_quarantined
    echo = AppendEntries(Term(7), NodeId(2), Index(1), Term(1), (), Index(1), life=state.life)
    output = cluster.step(3, echo)
    assert cluster[3].commit_index >= 1
    assert not output.lift_quarantine


def test_another_lifes_echo_does_not_end_it() -> None:
    cluster = led()
    cluster.damage(3, 5)
    state = cluster[3].state
    term = cluster[1].term
    for life in (0, state.life - 1, state.life + 1, state.life):
        output = cluster.step(3, AppendEntries(term, NodeId(1), Index(4), term, (), Index(4), life=life))
        assert output.lift_quarantine == (life == state.life)


def test_it_stays_through_a_restart() -> None:
    cluster = led()
    cluster.cut(1, 3)
    cluster.damage(3, 2)
    cluster.advance(100)
    cluster.restart(3)
    assert cluster[3].is_quarantined
    cluster.heal()
    cluster.advance(3_000)
    assert not cluster[3].is_quarantined


def test_it_is_nobody_to_hand_over_to() -> None:
    cluster = led()
    cluster.crash(2)
    cluster.advance(400)
    answer = AppendReply(cluster[1].term, NodeId(3), accepted=False, index=Index(4), life=99, quarantined=True)
    cluster.step(1, answer)
    cluster.step(1, TransferLeadership())
    assert not cluster.facts_of(1, TransferBegan)


def test_a_majority_in_quarantine_elects_nobody_and_a_healthy_one_goes_on() -> None:
    cluster = led(5)
    cluster.crash(1)
    for id_ in (3, 4, 5):
        cluster.damage(id_, 2)
    cluster.advance(3_000)
    assert cluster.leader == NOBODY
    cluster = led(5)
    cluster.crash(1)
    for id_ in (4, 5):
        cluster.damage(id_, 2)
    cluster.advance(3_000)
    assert cluster.leader == NOBODY, "only nodes 2 and 3 may vote"
    cluster.start(1)
    cluster.advance(3_000)
    assert not any(cluster[id_].is_quarantined for id_ in (4, 5))
    cluster.assert_level()


def test_a_majority_damaged_at_once_leaves_through_a_leader_that_is_whole() -> None:
    """No election is needed; but none is possible either, so it has to stay until they have left."""
    cluster = led(5)
    for id_ in (3, 4, 5):
        cluster.damage(id_, 2)
    cluster.advance(500)
    assert (cluster.leader, cluster[1].term) == (1, 1)
    assert not any(cluster[id_].is_quarantined for id_ in (3, 4, 5))
    cluster.propose(1, b"d")
    cluster.advance(100)
    cluster.assert_level()
    for id_ in (3, 4, 5):
        cluster.damage(id_, 2)
    cluster.restart(1)
    cluster.advance(10_000)
    assert cluster.leader == NOBODY
    assert all(cluster[id_].is_quarantined for id_ in (3, 4, 5))


def test_a_damaged_leader_comes_back_as_a_follower() -> None:
    cluster = led()
    cluster.damage(1, 1)  # nothing of the log is left, term and vote are
    cluster.advance(4_000)
    assert cluster.leader in {2, 3}
    assert not cluster[1].is_quarantined
    cluster.assert_level()


def test_a_follower_whose_disk_lied_is_sent_everything_again() -> None:
    """It does not know that it lost what it acknowledged; its leader sees it, says so, and goes on replicating."""
    cluster = led()
    cluster.damage(3, 3)
    cluster.crash(3)
    cluster.member(3).is_quarantined = False
    cluster.start(3)
    cluster.propose(1, b"d")
    cluster.advance(500)
    assert [fact.peer for fact in cluster.facts_of(1, FollowerLost) if isinstance(fact, FollowerLost)] == [3]
    assert cluster[1].term == 1
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


def test_it_is_refused_by_name_at_once_too() -> None:
    """Waiting for a target that will not stand would only keep proposals waiting."""
    cluster = led()
    answer = AppendReply(cluster[1].term, NodeId(3), accepted=False, index=Index(4), life=99, quarantined=True)
    cluster.step(1, answer)
    cluster.step(1, TransferLeadership(NodeId(3)))
    aborted = cluster.facts_of(1, TransferAborted)
    assert isinstance(aborted[-1], TransferAborted)
    assert "quarantine" in aborted[-1].reason
    assert cluster[1].state.leadership is not None
    assert cluster[1].state.leadership.transfer_to == NOBODY
