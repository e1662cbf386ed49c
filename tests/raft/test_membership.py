"""Membership: the newest configuration entry in the log is in force; learners never count (traps S24, R5 in part)."""

from __future__ import annotations

from kvnode.ids import Index, NodeId, Term
from kvnode.kv.members import RemoveMember
from kvnode.raft.membership import Membership, encode_configuration, is_removed
from kvnode.raft.messages import AppendEntries, Configuration, Entry, EntryKind, VoteReply, VoteRequest
from tests.raft.cluster import Cluster

ONE = Configuration((NodeId(1),))
TWO = Configuration((NodeId(1), NodeId(2)), (NodeId(3),))


def test_a_configuration_is_in_force_from_its_append_and_rolled_back_with_it() -> None:
    membership = Membership(ONE)
    membership.on_appended(Index(5), encode_configuration(TWO))
    assert membership.configuration == TWO
    assert membership.members == (1, 2, 3)
    assert not membership.is_voter(NodeId(3))
    membership.on_truncated(Index(6))
    assert membership.configuration == TWO
    membership.on_truncated(Index(5))
    assert membership.configuration == ONE


def test_a_follower_uses_and_drops_a_configuration_entry() -> None:
    """Scenario S44 at the core: a truncated configuration is not in force any more."""
    cluster = Cluster(3)
    other = Configuration((NodeId(1), NodeId(2)), (NodeId(3),))
    entry = Entry(Term(1), Index(1), 1, EntryKind.CONFIGURATION.value, encode_configuration(other))
    cluster.step(3, AppendEntries(Term(1), NodeId(1), Index(0), Term(0), (entry,), Index(0)))
    assert cluster[3].configuration == other
    assert cluster[3].role == "learner"
    replacement = Entry(Term(2), Index(1), 1, EntryKind.NOOP.value, b"2")
    cluster.step(3, AppendEntries(Term(2), NodeId(2), Index(0), Term(0), (replacement,), Index(0)))
    assert cluster[3].role == "follower"


def test_a_leader_follows_the_configuration_it_appends() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.change(1, RemoveMember(NodeId(3)))
    assert list(cluster[1].progress) == [2]
    cluster.settle()
    assert cluster[1].commit_index == 2


def test_learners_get_entries_and_decide_nothing() -> None:
    """Traps S11, S24; I16."""
    cluster = Cluster(2, learners=[3])
    cluster.elect(1)
    cluster.cut(2)
    cluster.propose(1, b"x")
    cluster.settle()
    assert cluster[3].last_index == 2
    assert cluster[1].commit_index == 1
    cluster.heal()
    cluster.advance(200)
    cluster.assert_level()
    assert cluster[3].role == "learner"
    cluster.crash(1)
    cluster.crash(2)
    cluster.advance(5_000)
    assert cluster[3].role == "learner"


def test_whose_vote_counts_the_candidate_knows() -> None:
    """A learner that was promoted by an entry which has not come yet may be needed; a candidate asks voters only."""
    cluster = Cluster(2, learners=[3])
    request = VoteRequest(Term(9), NodeId(1), Term(8), Index(9))
    [send] = cluster.step(3, request).sends
    assert send.message == VoteReply(Term(9), NodeId(3), True)
    cluster.elect(2, settle=False)
    assert {envelope.to for envelope in cluster.wire if envelope.sender == 2} == {1}


def test_votes_of_others_than_voters_count_nothing() -> None:
    """I16: neither a learner's, nor that of somebody whom no configuration here knows."""
    cluster = Cluster(3, learners=[4])
    cluster.elect(1, settle=False)
    for id_ in (4, 9):
        cluster.step(1, VoteReply(Term(1), NodeId(id_), True, pre=True))
        assert cluster[1].state.role.value == "pre_candidate"
    cluster.step(1, VoteReply(Term(1), NodeId(2), True, pre=True))
    for id_ in (4, 9):
        cluster.step(1, VoteReply(Term(1), NodeId(id_), True))
        assert cluster[1].role == "candidate"


def test_a_sender_of_a_later_configuration_is_heard() -> None:
    """A node that lags must follow a leader it does not know as a member yet: the transport has proven the sender."""
    cluster = Cluster(3)
    cluster.step(2, AppendEntries(Term(4), NodeId(9), Index(0), Term(0), (), Index(0)))
    assert (cluster[2].term, cluster[2].leader) == (4, 9)
    assert cluster[2].last_contact_ms(NodeId(9), cluster.now_ms) == 0


def test_configurations_before_the_base_are_forgotten_but_the_one_in_force_there() -> None:
    membership = Membership(ONE)
    for index in (3, 5, 8):
        membership.on_appended(Index(index), encode_configuration(TWO if index == 5 else ONE))
    membership.on_trimmed(Index(6))
    assert membership.at(Index(6)) == (5, TWO)
    assert membership.at(Index(8)) == (8, ONE)
    assert membership.at(Index(2)) == (5, TWO), "the oldest known"
    membership.on_truncated(Index(7))
    assert (membership.index, membership.configuration) == (5, TWO)


def test_what_the_store_has_applied_is_not_taken_from_the_log_again() -> None:
    """A start may replay entries from before the store's configuration; it stays what it is."""
    membership = Membership(ONE, Index(5))
    membership.on_appended(Index(4), encode_configuration(TWO))
    membership.on_appended(Index(5), encode_configuration(ONE))
    assert (membership.index, membership.configuration) == (5, ONE)
    assert membership.at(Index(9)) == (5, ONE)


def test_who_is_removed_is_told_by_the_highest_id() -> None:
    configuration = Configuration((NodeId(1), NodeId(3)), last_id=NodeId(4))
    assert [is_removed(configuration, NodeId(id_)) for id_ in (1, 2, 3, 4, 5)] == [False, True, False, True, False]
