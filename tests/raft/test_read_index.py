"""Read index: trap R4; scenarios S31–S36 (those of the core)."""

from __future__ import annotations

from kvnode.ids import Index, NodeId, Term
from kvnode.raft import read_index
from kvnode.raft.messages import (
    AppendEntries,
    AppendReply,
    PeerDisconnected,
    ReadIndexReply,
    ReadIndexRequest,
    ReadRequest,
    TransferLeadership,
)
from tests.raft.cluster import Cluster


def rounds_sent(cluster: Cluster, id_: int) -> list[int]:
    return [
        s.message.read_round
        for o in cluster.member(id_).outputs
        for s in o.sends
        if isinstance(s.message, AppendEntries)
    ]


def test_no_read_before_an_entry_of_the_own_term_is_committed() -> None:
    """Scenario S31, LF5: the read waits for the no-op, then gets a round of its own."""
    cluster = Cluster(3, logs={1: [1, 1], 2: [1, 1], 3: [1, 1]})
    cluster.elect(1, settle=False)
    while cluster[1].role != "leader":
        cluster.deliver()
    number = cluster.read(1)
    assert cluster[1].state.read_round == 0
    cluster.settle()
    assert cluster.ready_at(1, number) == 3


def test_reads_that_arrive_together_share_one_fresh_round() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.feed(1, ReadRequest(1), ReadRequest(2), ReadIndexRequest(Term(1), NodeId(3), 7))
    assert cluster[1].state.read_round == 1
    cluster.step(1, ReadRequest(3))
    assert cluster[1].state.read_round == 2
    cluster.settle()
    assert [cluster.ready_at(1, n) for n in (1, 2, 3)] == [1, 1, 1]


def test_a_late_echo_of_an_older_round_confirms_no_newer_read() -> None:
    """Trap R4, scenario S32 (etcd/raft #397): duplicates and delays of round 1 say nothing about round 2."""
    cluster = Cluster(3)
    cluster.elect(1)
    first = cluster.read(1)
    cluster.deliver()
    old_echoes = cluster.take(lambda e: isinstance(e.message, AppendReply))
    second = cluster.read(1)
    cluster.take(lambda _: True)
    cluster.hand(*old_echoes, *old_echoes)
    assert cluster.ready_at(1, first) == 1
    assert cluster.ready_at(1, second) is None


def test_a_later_echo_confirms_earlier_rounds_too() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    first = cluster.read(1)
    cluster.take(lambda _: True)
    second = cluster.read(1)
    cluster.settle()
    assert cluster.ready_at(1, first) == cluster.ready_at(1, second) == 1


def test_a_deposed_leader_confirms_nothing() -> None:
    """Scenarios S32, S33, S35: the new leader commits, the old one's reads fail, with late echoes delivered."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.advance(500)
    number = cluster.read(1)
    cluster.deliver()
    late = cluster.take(lambda _: True)
    cluster.cut(1)
    cluster.run_until(lambda: cluster.leader in (2, 3))
    cluster.propose(cluster.leader, b"new")
    cluster.settle()
    cluster.hand(*late)
    assert cluster.ready_at(1, number) is None
    assert cluster.has_failed(1, number)


def test_a_paused_leader_serves_no_stale_read() -> None:
    """Scenario S35: the echoes were on their way when the process stopped; the round fails first."""
    cluster = Cluster(3)
    cluster.elect(1)
    number = cluster.read(1)
    cluster.deliver()
    cluster.now_ms += 5_000
    cluster.settle()
    assert cluster.has_failed(1, number)
    assert cluster.ready_at(1, number) is None


def test_rounds_are_never_reused_in_one_process() -> None:
    """Scenario S34: also not in a later term."""
    cluster = Cluster(3)
    for _ in range(3):
        cluster.elect(1)
        for _ in range(4):
            cluster.read(1)
            cluster.settle()
    assert cluster[1].state.read_round == 12
    sent = rounds_sent(cluster, 1)
    assert sent == sorted(sent)


def test_only_voters_confirm() -> None:
    """Scenario S36: learners, strangers and one voter twice are not a majority."""
    cluster = Cluster(3, learners=[4, 5])
    cluster.elect(1)
    cluster.cut([2, 3], 1)
    number = cluster.read(1)
    cluster.settle()
    assert cluster.ready_at(1, number) is None
    echo = AppendReply(Term(1), NodeId(9), accepted=True, index=Index(0), read_round=1)
    cluster.step(1, echo)
    assert cluster.ready_at(1, number) is None
    cluster.step(1, AppendReply(Term(1), NodeId(2), accepted=True, index=Index(0), read_round=1))
    assert cluster.ready_at(1, number) == 1


def test_one_voter_of_five_answering_twice_is_one_voter() -> None:
    cluster = Cluster(5)
    cluster.elect(1)
    number = cluster.read(1)
    echo = AppendReply(Term(1), NodeId(2), accepted=True, index=Index(0), read_round=1)
    cluster.step(1, echo)
    cluster.step(1, echo)
    assert cluster.ready_at(1, number) is None


def test_a_refusal_of_this_term_is_an_echo_as_well() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    number = cluster.read(1)
    cluster.step(1, AppendReply(Term(1), NodeId(2), accepted=False, index=Index(9), read_round=1))
    assert cluster.ready_at(1, number) == 1


def test_a_sole_voter_needs_no_message() -> None:
    cluster = Cluster(1)
    cluster.advance(10)
    assert cluster.ready_at(1, cluster.read(1)) == 1


def test_a_read_waits_for_no_disk() -> None:
    """Life 2: an append in flight to a slow disk does not hold up the heartbeat's echo."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.slow_disks.update(dict.fromkeys([1, 2, 3], True))
    cluster.propose(1, b"x")
    number = cluster.read(1)
    cluster.settle()
    assert cluster.ready_at(1, number) == 1


def test_a_followers_read_covers_every_commit_before_it() -> None:
    """I13: the index is at least what any node knew to be committed when it was asked."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.cut(1, 3, one_way=True)
    cluster.propose(1, b"x")
    cluster.settle()
    assert (cluster[1].commit_index, cluster[3].commit_index) == (2, 1)
    cluster.heal()
    number = cluster.read(3)
    cluster.settle()
    assert cluster.ready_at(3, number) == 2


def test_without_a_leader_a_read_fails_at_once() -> None:
    cluster = Cluster(3)
    assert cluster.has_failed(2, cluster.read(2))
    (send,) = cluster.step(2, ReadIndexRequest(Term(0), NodeId(3), 5)).sends
    assert send.message == ReadIndexReply(Term(0), NodeId(2), 5, Index(0))


def test_a_forwarded_read_fails_with_the_connection_the_leader_the_term_or_the_time() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    number = cluster.read(2)
    cluster.step(2, PeerDisconnected(NodeId(1)))
    assert cluster.has_failed(2, number)
    assert cluster.has_failed(2, cluster.read(2)), "not even asked while disconnected"

    number = cluster.read(3)
    cluster.step(3, AppendEntries(Term(4), NodeId(2), Index(0), Term(0), (), Index(0)))
    assert cluster.has_failed(3, number)

    cluster = Cluster(3)
    cluster.elect(1)
    number = cluster.read(2)
    cluster.take(lambda _: True)
    deadline = cluster.now_ms + cluster.settings.election_timeout_ms
    while cluster.now_ms < deadline:
        assert not cluster.has_failed(2, number)
        cluster.advance(50)
    assert cluster.has_failed(2, number)


def test_late_and_duplicate_answers_are_dropped() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    number = cluster.read(2)
    for _ in range(3):
        cluster.deliver(lambda e: not isinstance(e.message, ReadIndexReply))
    answers = cluster.take(lambda e: isinstance(e.message, ReadIndexReply))
    cluster.hand(*answers, *answers)
    assert len(cluster.member(2).reads_ready) == 1
    cluster.step(2, ReadIndexReply(Term(1), NodeId(1), number + 100, Index(9)))
    assert len(cluster.member(2).reads_ready) == 1


def test_a_leader_that_goes_tells_those_who_asked() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    number = cluster.read(2)
    cluster.deliver()
    cluster.cut(1, 3)
    cluster.step(1, AppendReply(Term(5), NodeId(3), accepted=False, index=Index(0)))
    cluster.settle()
    assert cluster.has_failed(2, number)


def test_reads_go_on_during_a_transfer_and_fail_with_it() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    number = cluster.read(1)
    cluster.step(1, TransferLeadership(NodeId(2)))
    cluster.settle()
    assert cluster.ready_at(1, number) == 1 or cluster.has_failed(1, number)
    assert cluster.leader == 2


def test_waiting_reads_are_bounded() -> None:
    """I28, on both sides."""
    cluster = Cluster(3)
    cluster.elect(1)
    many = [ReadRequest(n) for n in range(1, read_index.READS_PENDING_MAX + 2)]
    for id_ in (1, 2):
        raft = cluster[id_]
        for cause in many:
            raft.step(cluster.now_ms, 0, cause)
        output = raft.take_output()
        assert [f.number for f in output.reads_failed] == [read_index.READS_PENDING_MAX + 1]
