"""Membership: the newest configuration entry in the log is in force; learners never count (traps S24, R5 in part)."""

from __future__ import annotations

from kvnode.ids import Index, NodeId, RequestId, Term
from kvnode.raft.membership import Membership, encode_configuration
from kvnode.raft.messages import AppendEntries, Configuration, Entry, EntryKind, Proposals, Proposed, VoteRequest
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
    smaller = Configuration((NodeId(1), NodeId(2)))
    proposed = Proposed(RequestId(1), encode_configuration(smaller), kind=EntryKind.CONFIGURATION.value)
    cluster.step(1, Proposals((proposed,)))
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
    request = VoteRequest(Term(9), NodeId(1), Term(9), Index(9), pre=True)
    assert not cluster.step(3, request).sends


def test_strangers_are_ignored() -> None:
    """I27: not in the configuration, not in the conversation."""
    cluster = Cluster(3)
    cluster.elect(1)
    term = cluster[1].term
    for id_ in (1, 2):
        output = cluster.step(id_, VoteRequest(Term(50), NodeId(9), Term(50), Index(50), transfer=True))
        assert not output.sends
        assert cluster[id_].term == term
