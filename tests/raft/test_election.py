"""Leader election: traps S1–S3, S7, S8, S10, S11, C1, R1, R6; scenarios S2, S3, S5–S8, S10–S13."""

from __future__ import annotations

import pytest

from kvnode.ids import NOBODY, Index, NodeId, Term
from kvnode.raft.messages import (
    AppendEntries,
    AppendReply,
    DiskRecovered,
    DiskStalled,
    PeerRefused,
    Persisted,
    VoteReply,
    VoteRequest,
)
from kvnode.raft.output import BecameFollower, BecameLeader, BecamePreCandidate, VoteGranted
from tests.raft.cluster import Cluster, made_entry


def request(term: int, sender: int, last: tuple[int, int], *, pre: bool = False, transfer: bool = False) -> VoteRequest:
    return VoteRequest(Term(term), NodeId(sender), Term(last[0]), Index(last[1]), pre, transfer)


def answer(cluster: Cluster, id_: int, message: VoteRequest) -> bool | None:
    """Whether the vote was granted; None if the request was ignored."""
    sends = cluster.step(id_, message).sends
    assert len(sends) <= 1
    if not sends:
        return None
    reply = sends[0].message
    assert isinstance(reply, VoteReply)
    assert reply.pre == message.pre
    return reply.granted


@pytest.mark.parametrize("pre", [False, True])
@pytest.mark.parametrize(
    ("last", "granted"),
    [
        ((2, 3), True),  # equal
        ((2, 4), True),  # longer
        ((3, 1), True),  # shorter, but of a later term (trap C1: terms first)
        ((2, 2), False),  # shorter
        ((1, 9), False),  # longer, but of an earlier term
        ((0, 0), False),
    ],
)
def test_only_a_log_at_least_as_complete_gets_a_vote(last: tuple[int, int], granted: bool, pre: bool) -> None:
    """Trap S1, C1; scenario S5."""
    cluster = Cluster(3, logs={1: [1, 2, 2]})
    assert answer(cluster, 1, request(5, 2, last, pre=pre)) is granted


def test_one_vote_a_term_repeated_on_demand() -> None:
    """Trap S2: answers get lost, so the same candidate may ask again; another gets nothing (I2)."""
    cluster = Cluster(3)
    assert answer(cluster, 1, request(1, 2, (0, 0))) is True
    assert answer(cluster, 1, request(1, 3, (9, 9))) is False
    assert answer(cluster, 1, request(1, 2, (0, 0))) is True
    assert cluster.facts_of(1, VoteGranted) == [VoteGranted(Term(1), NodeId(2))]
    assert answer(cluster, 1, request(2, 3, (0, 0))) is True


def test_a_vote_leaves_after_its_write_and_survives_the_crash() -> None:
    """Trap S3, scenario S8: killed after the write, the vote binds; killed before, nobody has heard of it."""
    cluster = Cluster(3, slow_disks=[1])
    (send,) = cluster.step(1, request(1, 2, (0, 0))).sends
    assert send.after == 1
    assert not cluster.wire
    cluster.restart(1)
    assert (cluster[1].term, cluster[1].state.vote) == (0, NOBODY)
    cluster.step(1, request(1, 2, (0, 0)))
    cluster.complete_writes(1)
    assert len(cluster.wire) == 1
    cluster.restart(1)
    assert answer(cluster, 1, request(1, 3, (9, 9))) is False
    assert answer(cluster, 1, request(1, 2, (0, 0))) is True


def test_a_candidate_asks_and_counts_itself_only_when_its_own_vote_is_durable() -> None:
    """Traps R1, S11: with two voters, the other's grant alone is no majority; nor is our own before the disk has it."""
    cluster = Cluster(2, slow_disks=[1])
    cluster.elect(1, settle=False)
    cluster.settle()
    assert cluster[1].role == "candidate"
    assert [send.after for send in cluster.member(1).held] == [1]
    cluster.step(1, VoteReply(Term(1), NodeId(2), granted=True))
    assert cluster[1].role == "candidate"
    cluster.complete_write(1)
    assert cluster[1].role == "leader"


def test_an_earlier_write_does_not_make_the_vote_durable() -> None:
    """Scenario S14: a completion counts for what it wrote, not for what came after it."""
    cluster = Cluster(2, slow_disks=[1])
    entry = made_entry(1, 1)
    cluster.step(1, AppendEntries(Term(1), NodeId(2), Index(0), Term(0), (entry,), Index(0)))
    cluster.crash(2)
    cluster.elect(1, settle=False)
    cluster.step(1, VoteReply(Term(2), NodeId(2), granted=True, pre=True))
    cluster.step(1, VoteReply(Term(2), NodeId(2), granted=True))
    assert [write.number for write in cluster.member(1).disk.queue] == [1, 2]
    cluster.complete_write(1)
    assert cluster[1].role == "candidate"
    cluster.complete_write(1)
    assert cluster[1].role == "leader"


def test_the_answer_to_an_earlier_pre_vote_is_void() -> None:
    """Trap S10."""
    cluster = Cluster(3, logs={1: [5]})
    cluster.elect(1, settle=False)
    cluster.step(1, VoteReply(Term(3), NodeId(2), granted=True, pre=True))
    assert cluster[1].term == 5
    cluster.step(1, VoteReply(Term(6), NodeId(2), granted=True, pre=True))
    assert cluster[1].term == 6


def test_a_sole_voter_leads_when_its_vote_is_durable() -> None:
    """Single node: no message, but a write (trap R1 with one crash)."""
    cluster = Cluster(1, slow_disks=[1])
    assert cluster[1].next_deadline_ms() == cluster.now_ms + 1
    cluster.advance(1)
    assert cluster[1].role == "candidate"
    cluster.complete_write(1)
    assert cluster[1].role == "leader"
    assert cluster[1].commit_index == 0
    cluster.complete_write(1)
    assert cluster[1].commit_index == 1


@pytest.mark.parametrize("size", [1, 3])
def test_a_slow_disk_raises_no_term_after_another(size: int) -> None:
    """R6: while its own vote is on the way to the disk a candidate waits, however long that takes."""
    cluster = Cluster(size, slow_disks=[1])
    cluster.elect(1, settle=False)
    cluster.settle()
    cluster.cut(1)
    cluster.advance(3_000)
    assert (cluster[1].role, cluster[1].term) == ("candidate", 1)
    cluster.heal()
    cluster.complete_writes(1)
    cluster.settle()
    assert (cluster[1].term, size == 3 or cluster[1].role == "leader") == (1, True)


def test_leader_and_candidate_do_not_vote_for_another_in_their_own_term() -> None:
    """Scenario S6."""
    cluster = Cluster(3)
    cluster.elect(1)
    assert answer(cluster, 1, request(1, 2, (9, 9), transfer=True)) is False
    cluster = Cluster(5)
    cluster.elect(1, settle=False)
    cluster.hand(*cluster.take(lambda e: e.to in (2, 3)))
    cluster.hand(*cluster.take(lambda e: e.to == 1))
    assert cluster[1].role == "candidate"
    assert answer(cluster, 1, request(1, 2, (9, 9))) is False


def test_adopting_a_term_is_not_granting_a_vote() -> None:
    """Scenario S7: the leader steps down before a stale candidate, which still cannot win."""
    cluster = Cluster(3)
    cluster.elect(1)
    assert answer(cluster, 1, request(5, 3, (0, 0), transfer=True)) is False
    assert (cluster[1].role, cluster[1].term, cluster[1].state.vote) == ("follower", 5, NOBODY)


def test_only_positive_answers_of_this_question_count_once_each() -> None:
    """Traps S8, S10: duplicates, refusals, other terms, pre-votes and strangers make no majority of five."""
    cluster = Cluster(5)
    cluster.elect(1, settle=False)
    cluster.take(lambda _: True)
    for sender in (2, 3):
        cluster.step(1, VoteReply(Term(1), NodeId(sender), granted=True, pre=True))
    assert cluster[1].term == 1
    for _ in range(3):
        cluster.step(1, VoteReply(Term(1), NodeId(2), granted=True))
    cluster.step(1, VoteReply(Term(1), NodeId(3), granted=False))
    cluster.step(1, VoteReply(Term(0), NodeId(4), granted=True))
    cluster.step(1, VoteReply(Term(1), NodeId(4), granted=True, pre=True))
    cluster.step(1, VoteReply(Term(1), NodeId(9), granted=True))
    assert cluster[1].role == "candidate"
    cluster.step(1, VoteReply(Term(1), NodeId(5), granted=True))
    assert cluster[1].role == "leader"


def test_a_deaf_node_that_returns_disturbs_nobody() -> None:
    """Trap S7, R6; scenario S11: its timer alone never raises the term, here or elsewhere."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.cut(3)
    cluster.advance(10_000)
    assert cluster[3].term == 1
    cluster.propose(1, b"x")
    cluster.heal()
    cluster.advance(2_000)
    assert [cluster[i].term for i in (1, 2, 3)] == [1, 1, 1]
    assert cluster.leader == 1
    cluster.assert_level()


def test_voters_that_hear_a_leader_ignore_requests_and_their_term() -> None:
    """LF3: stickiness, for pre-votes and real votes, on followers and on the leader; the transfer flag overrides it."""
    cluster = Cluster(3)
    cluster.elect(1)
    for id_, sender in ((1, 3), (2, 3)):
        assert answer(cluster, id_, request(8, sender, (9, 9), pre=True)) is None
        assert answer(cluster, id_, request(8, sender, (9, 9))) is None
        assert cluster[id_].term == 1
    assert answer(cluster, 2, request(8, 3, (9, 9), transfer=True)) is True


def test_stickiness_ends_after_one_timeout() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.now_ms += cluster.settings.election_timeout_ms - 1
    assert answer(cluster, 2, request(2, 3, (9, 9), pre=True)) is None
    cluster.now_ms += 1
    assert answer(cluster, 2, request(2, 3, (9, 9), pre=True)) is True


def test_a_node_of_an_older_term_can_still_complete_an_election() -> None:
    """Scenario S12: grants carry the request's term, refusals the voter's own, so nobody stands still."""
    cluster = Cluster(3, logs={1: [1, 1], 2: [1, 1], 3: [1]})
    cluster.member(3).disk.hard_state = cluster.member(3).disk.hard_state.__class__(Term(6))
    cluster.restart(3)
    cluster.crash(2)
    cluster.run_until(lambda: cluster.leader == 1)
    assert cluster[1].term > 6


def test_a_leader_without_a_majority_steps_down() -> None:
    """LF6, scenario S13; it may be heard and not hear (LF-T3)."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.cut([2, 3], 1, one_way=True)
    cluster.advance(cluster.settings.election_timeout_ms + cluster.settings.heartbeat_ms)
    assert cluster[1].role == "follower"
    assert cluster.facts_of(1, BecameFollower)[-1] == BecameFollower(Term(1), NOBODY, "no quorum contact")
    cluster.run_until(lambda: cluster.leader not in (NOBODY, 1))


def test_contact_with_a_minority_or_a_learner_is_not_enough() -> None:
    cluster = Cluster(5, learners=[6, 7])
    cluster.elect(1)
    cluster.cut([1, 2, 6, 7], [3, 4, 5])
    cluster.advance(2 * cluster.settings.election_timeout_ms)
    assert cluster[1].role == "follower"


def test_a_paused_leader_steps_down_before_it_acts() -> None:
    """Scenario S35 at the core: whatever is first in its queue after the pause, a late answer included."""
    for cause in (AppendReply(Term(1), NodeId(2), accepted=True, index=Index(1)), Persisted()):
        cluster = Cluster(3)
        cluster.elect(1)
        cluster.now_ms += cluster.settings.election_timeout_ms + 1
        cluster.step(1, cause)
        assert cluster[1].role == "follower"


def test_no_quorum_no_leader_and_back() -> None:
    """Scenario S2."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.crash(2)
    cluster.crash(3)
    cluster.advance(3_000)
    assert cluster.leader == NOBODY
    cluster.start(2)
    cluster.run_until(lambda: cluster.leader != NOBODY)


def test_many_elections_among_seven() -> None:
    """Scenario S3: a leader whenever a quorum is connected."""
    cluster = Cluster(7)
    for round_ in range(10):
        away = sorted({(round_ * k) % 7 + 1 for k in (1, 2, 4)})
        cluster.cut(away)
        here = [i for i in range(1, 8) if i not in away]
        cluster.run_until(lambda here=here: any(cluster[i].role == "leader" for i in here))  # type: ignore[misc]
        cluster.heal()
    cluster.advance(2_000)
    cluster.assert_level()


def test_duelling_candidates_resolve() -> None:
    """Scenario S10: both stand at once among four; one of them wins in a later term."""
    cluster = Cluster(4)
    cluster.elect(1, settle=False)
    cluster.tick(2)
    cluster[2].state.election_deadline_ms = cluster.now_ms
    cluster.tick(2)
    cluster.run_until(lambda: cluster.leader != NOBODY)
    cluster.advance(1_000)
    cluster.assert_level()


def test_a_candidate_concedes_to_the_leader_of_its_term() -> None:
    cluster = Cluster(5)
    cluster.elect(1, settle=False)
    cluster[2].state.election_deadline_ms = cluster.now_ms
    cluster.tick(2)
    cluster.hand(*cluster.take(lambda e: isinstance(e.message, VoteRequest) and e.sender in (1, 2) and e.message.pre))
    cluster.hand(*cluster.take(lambda e: isinstance(e.message, VoteReply)))
    assert [cluster[i].role for i in (1, 2)] == ["candidate", "candidate"]
    cluster.settle()
    assert sorted(cluster[i].role for i in (1, 2)) == ["follower", "leader"]


def test_a_lost_election_is_given_up() -> None:
    cluster = Cluster(3, logs={2: [1], 3: [1]})
    cluster.elect(1, settle=False)
    cluster.settle()
    assert cluster[1].role == "follower"
    assert cluster.facts_of(1, BecameFollower)


def test_a_refused_port_means_a_quick_election() -> None:
    """The leader's process is gone: 10–50 ms instead of a whole timeout, and no stickiness for it."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.advance(1_000)
    cluster.crash(1)
    for id_ in (2, 3):
        cluster.step(id_, PeerRefused(NodeId(1)))
        assert 10 <= cluster[id_].next_deadline_ms() - cluster.now_ms < 50
    cluster.advance(60)
    assert cluster.leader in (2, 3)
    assert cluster.facts_of(cluster.leader, BecameLeader)


def test_a_refused_port_ends_stickiness_at_once() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    assert answer(cluster, 2, request(2, 3, (9, 9), pre=True)) is None
    cluster.step(2, PeerRefused(NodeId(1)))
    assert answer(cluster, 2, request(2, 3, (9, 9), pre=True)) is True


def test_a_refused_port_of_somebody_else_means_nothing() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    deadline = cluster[2].next_deadline_ms()
    cluster.step(2, PeerRefused(NodeId(3)))
    assert cluster[2].next_deadline_ms() == deadline
    assert answer(cluster, 2, request(2, 3, (9, 9), pre=True)) is None


def test_a_leader_with_a_hung_disk_goes_and_does_not_come_back_before_it_recovers() -> None:
    """HB6, trap R6."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.step(1, DiskStalled())
    assert cluster[1].role == "follower"
    assert not cluster.take(lambda e: e.sender == 1)
    cluster.run_until(lambda: cluster.leader not in (NOBODY, 1))
    campaigns = len(cluster.facts_of(1, BecamePreCandidate))
    cluster.cut(1)
    cluster.advance(5_000)
    assert len(cluster.facts_of(1, BecamePreCandidate)) == campaigns
    cluster.step(1, DiskRecovered())
    cluster.advance(5_000)
    assert len(cluster.facts_of(1, BecamePreCandidate)) > campaigns


def test_a_sole_voter_with_a_hung_disk_does_not_spin() -> None:
    cluster = Cluster(1)
    cluster.advance(10)
    cluster.step(1, DiskStalled())
    cluster.advance(10)
    assert cluster[1].next_deadline_ms() > cluster.now_ms + 90
    cluster.step(1, DiskRecovered())
    cluster.advance(5)
    assert cluster[1].role == "leader"


def test_partial_partition_settles() -> None:
    """LF-T3, scenario S27: five nodes, two edges; after settling the term stands still and writes succeed."""
    cluster = Cluster(5)
    cluster.elect(1)
    for a, b in ((1, 4), (1, 5), (2, 4), (2, 5)):
        cluster.cut(a, b)
    cluster.advance(5_000)
    term = max(cluster[i].term for i in range(1, 6))
    cluster.advance(60_000)
    assert max(cluster[i].term for i in range(1, 6)) == term
    cluster.propose(cluster.leader, b"x")
    cluster.settle()
    assert b"x" in cluster.member(cluster.leader).payloads
