"""Forwarding: traps S5, S12, S54; bounds of the uncommitted budget (I28, scenario S30)."""

from __future__ import annotations

from kvnode.config import MIB, RaftSection
from kvnode.ids import Index, NodeId, RequestId, Term
from kvnode.kv.members import AddMember
from kvnode.raft.messages import (
    AppendReply,
    EntryKind,
    ForwardProposals,
    ForwardReply,
    LeaderProposals,
    PeerDisconnected,
    Proposals,
    Proposed,
    TurnedAway,
)
from kvnode.raft.output import Placed, Refused
from kvnode.raft.reconfiguration import encode_change
from tests.raft.cluster import Cluster


def batch(*ids: int, size: int = 1) -> tuple[Proposed, ...]:
    return tuple(Proposed(RequestId(i), b"x" * size, session=i, sequence=i + 1) for i in ids)


def test_many_batches_make_one_message() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    output = cluster.feed(2, Proposals(batch(1, 2)), Proposals(batch(3)))
    (send,) = output.sends
    assert send.to == 1
    assert isinstance(send.message, ForwardProposals)
    assert [p.id for p in send.message.batch] == [1, 2, 3]
    assert [f.id for f in output.forwarded] == [1, 2, 3]


def test_a_message_is_bounded_and_every_proposal_goes_exactly_once() -> None:
    cluster = Cluster(3, settings=RaftSection(commit_note_ms=0, append_bytes_max=1024))
    cluster.elect(1)
    proposals = batch(1, 2, 3, size=400) + batch(4, size=5_000) + batch(5, 6, size=10)
    messages = [s.message for s in cluster.feed(2, Proposals(proposals)).sends]
    assert [[p.id for p in m.batch] for m in messages if isinstance(m, ForwardProposals)] == [[1, 2], [3], [4], [5, 6]]


def test_session_and_sequence_reach_the_log() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.step(2, Proposals(batch(7)))
    cluster.settle()
    entry = cluster.member(3).disk.entries[-1]
    assert (entry.session, entry.sequence) == (7, 8)


def test_without_a_leader_a_proposal_is_certainly_refused() -> None:
    """Trap S12: refused means in no log; nothing is queued for a leader to come."""
    cluster = Cluster(3)
    output = cluster.step(2, Proposals(batch(1)))
    assert output.refused == [Refused(RequestId(1), "no_leader")]
    assert not output.sends
    cluster.elect(1)
    assert cluster.step(2, PeerDisconnected(NodeId(1))).refused == []
    assert cluster.step(2, Proposals(batch(2))).refused == [Refused(RequestId(2), "no_leader")]


def test_a_proposal_is_never_passed_on() -> None:
    """Trap S5: no ring of followers; who does not lead refuses."""
    cluster = Cluster(3)
    cluster.elect(1)
    (send,) = cluster.step(2, ForwardProposals(Term(1), NodeId(3), batch(1, 2))).sends
    assert send.to == 3
    assert send.message == ForwardReply(
        Term(1), NodeId(2), refused=((RequestId(1), "no_leader", ""), (RequestId(2), "no_leader", ""))
    )


def test_the_answer_names_each_by_its_own_id() -> None:
    """Trap S54: two origins with the same ids, answers out of order: nobody gets another's place."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.step(2, Proposals(batch(1)))
    cluster.step(3, Proposals(batch(1)))
    cluster.step(2, Proposals(batch(2)))
    cluster.deliver()
    answers = cluster.take(lambda e: isinstance(e.message, ForwardReply))
    cluster.hand(*reversed(answers))
    assert {p.id: p.index for p in cluster.member(2).placed} == {1: 2, 2: 4}
    assert {p.id: p.index for p in cluster.member(3).placed} == {1: 3}


def test_an_answer_is_a_fact_of_its_own_term() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.step(2, AppendReply(Term(6), NodeId(3), accepted=False, index=Index(0)))
    output = cluster.step(2, ForwardReply(Term(1), NodeId(1), ((RequestId(4), Index(9)),)))
    assert output.placed == [Placed(RequestId(4), Index(9), Term(1))]


def test_the_place_of_a_proposal_is_told_before_its_entry_is_sent() -> None:
    """On one ordered lane, so the origin knows where to look before it can apply it."""
    cluster = Cluster(3)
    cluster.elect(1)
    output = cluster.step(1, ForwardProposals(Term(1), NodeId(2), batch(1)))
    kinds = [type(s.message).__name__ for s in output.sends if s.to == 2]
    assert kinds == ["ForwardReply", "AppendEntries"]
    assert all(s.after == 0 for s in output.sends)


def test_the_uncommitted_budget_refuses_and_recovers() -> None:
    """I28, scenario S30 (CockroachDB #31618): own and forwarded proposals; nothing leaks once committed."""
    cluster = Cluster(3, settings=RaftSection(commit_note_ms=0, uncommitted_bytes_max=MIB))
    cluster.elect(1)
    cluster.cut(1)
    output = cluster.step(1, Proposals(batch(*range(10), size=200_000)))
    assert [p.id for p in output.placed] == list(range(6))
    assert output.refused == [Refused(RequestId(i), "overloaded") for i in range(6, 10)]
    (reply,) = [
        s.message
        for s in cluster.step(1, ForwardProposals(Term(1), NodeId(2), batch(50))).sends
        if isinstance(s.message, ForwardReply)
    ]
    assert reply.refused == ((RequestId(50), "overloaded", ""),)
    cluster.heal()
    cluster.advance(200)
    assert cluster[1].uncommitted_bytes == 0
    assert cluster.step(1, Proposals(batch(60))).placed
    cluster.settle()
    cluster.assert_level()


def test_beyond_the_budget_everything_that_follows_is_refused_changes_too() -> None:
    """One answer for each, in order, and nothing of it in the log."""
    cluster = Cluster(3, settings=RaftSection(commit_note_ms=0, uncommitted_bytes_max=MIB))
    cluster.elect(1)
    cluster.cut(1)
    change = Proposed(RequestId(8), encode_change(AddMember("four:1", incarnation=4)), kind=EntryKind.CONFIGURATION)
    output = cluster.step(1, Proposals((*batch(*range(8), size=200_000), change, *batch(9))))
    assert [placed.id for placed in output.placed] == list(range(6))
    assert output.refused == [Refused(RequestId(i), "overloaded") for i in range(6, 10)]
    assert cluster[1].configuration == cluster.configuration


def test_what_found_no_room_is_refused_once_the_term_is_durable() -> None:
    """I9: the refusal names a term, and a term is on disk before anybody hears of it."""
    cluster = Cluster(3)
    cluster.elect(1)
    refused = TurnedAway(NodeId(2), (RequestId(7), RequestId(8)))
    (send,) = cluster.step(1, refused).sends
    assert send.message == ForwardReply(Term(1), NodeId(1), refused=((7, "overloaded", ""), (8, "overloaded", "")))
    assert send.after == 0
    (send,) = cluster.step(1, TurnedAway(NodeId(2), (RequestId(9),), "no_space", "the disk is full")).sends
    assert send.message == ForwardReply(Term(1), NodeId(1), refused=((RequestId(9), "no_space", "the disk is full"),))
    output = cluster.feed(1, AppendReply(Term(6), NodeId(3), accepted=False, index=Index(0)), refused)
    (send,) = [send for send in output.sends if isinstance(send.message, ForwardReply)]
    assert send.message.term == 6
    assert output.persist is not None
    assert send.after == output.persist.number


def test_proposals_of_a_node_that_lost_office_in_the_same_batch_are_not_lost() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    deposed = AppendReply(Term(6), NodeId(3), accepted=False, index=Index(0))
    output = cluster.feed(1, Proposals(batch(1)), deposed, Proposals(batch(2)))
    assert [p.id for p in output.placed] == [1]
    assert [r.id for r in output.refused] == [2]


def test_what_a_leader_has_decided_is_void_in_any_other_term_and_never_forwarded() -> None:
    """etcd #15247: a leader that was stuck must not carry out its old decision, nor have it carried out."""
    cluster = Cluster(3)
    cluster.elect(1)
    term = cluster.member(1).raft.term
    placed = cluster.step(1, LeaderProposals(term, batch(1))).placed
    assert [(each.id, each.term) for each in placed] == [(1, term)]
    for member, its_term in ((2, term), (1, Term(term - 1)), (1, Term(term + 1))):
        output = cluster.step(member, LeaderProposals(its_term, batch(2)))
        assert output.refused == [Refused(RequestId(2), "no_leader")]
        assert not output.placed
        assert not output.forwarded
