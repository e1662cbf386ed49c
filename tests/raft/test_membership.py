"""Membership: the newest configuration entry in the log is in force; learners never count (traps S24, R5 in part)."""

from __future__ import annotations

from kvnode.ids import Index, NodeId, RequestId, Term
from kvnode.kv.members import RemoveMember
from kvnode.raft.membership import Membership, encode_configuration
from kvnode.raft.messages import (
    AppendEntries,
    Configuration,
    Entry,
    EntryKind,
    Proposals,
    Proposed,
    VoteReply,
    VoteRequest,
)
from kvnode.wire.codec import encode_change
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
    change = encode_change(RemoveMember(NodeId(3)))
    proposed = Proposed(RequestId(1), change, kind=EntryKind.CONFIGURATION.value)
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


def test_one_who_is_no_member_here_may_lead_and_never_counts() -> None:
    """A log that is behind does not know its leader yet; who may speak at all the transport has proven (I27)."""
    cluster = Cluster(3)
    entry = Entry(Term(5), Index(1), 1, EntryKind.NOOP.value, b"9")
    cluster.step(3, AppendEntries(Term(5), NodeId(9), Index(0), Term(0), (entry,), Index(0)))
    assert (cluster[3].leader, cluster[3].last_index) == (9, 1)
    cluster.wire.clear()
    cluster.cut(1)
    cluster.advance(2_000)
    assert cluster[1].role == "candidate"  # it asks, and nobody hears it
    term = cluster[1].term
    for stranger in range(9, 12):
        cluster.step(1, VoteReply(Term(term + 1), NodeId(stranger), granted=True, pre=True))
    assert (cluster[1].role, cluster[1].term) == ("candidate", term)
