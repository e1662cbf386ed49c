"""Membership change: what the leader allows, and what follows from it (scenarios S36, S42–S44, S46–S51; I15, I16)."""

from __future__ import annotations

import pytest

from kvnode.config import RaftSection
from kvnode.ids import NOBODY, Index, NodeId, RequestId, Term
from kvnode.kv.members import AddMember, MemberChange, PromoteMember, RaiseFeatureLevel, RemoveMember, UpdateMember
from kvnode.raft.messages import (
    AppendReply,
    Configuration,
    EntryKind,
    ForwardProposals,
    ForwardReply,
    Member,
    PeerDisconnected,
    Proposals,
    Proposed,
    TransferLeadership,
    VoteRequest,
)
from kvnode.raft.output import BecameFollower, ConfigurationChanged
from kvnode.raft.reconfiguration import MEMBERS_MAX, REMOVED_MAX, encode_change
from tests.raft.cluster import Cluster


def made(cluster: Cluster, *changes: MemberChange) -> None:
    """Changes that succeed at the leader, one after the other."""
    for change in changes:
        [id_] = cluster.change(cluster.leader, change)
        assert cluster.refusal(cluster.leader, id_) is None, cluster.refusal(cluster.leader, id_)
        cluster.settle()


def refused(cluster: Cluster, change: MemberChange) -> tuple[str, str]:
    """Code and sentence by which the leader refuses it; nothing is appended."""
    leader = cluster.leader
    last = cluster[leader].last_index
    [id_] = cluster.change(leader, change)
    answer = cluster.refusal(leader, id_)
    assert answer is not None, change
    assert cluster[leader].last_index == last
    return answer


def add(number: int, **named: object) -> AddMember:
    return AddMember(f"host{number}:1", incarnation=number * 100, **named)  # type: ignore[arg-type]


def grown(size: int = 3, learner: int = 4) -> Cluster:
    """A cluster led by node 1 with one learner that has everything."""
    cluster = Cluster(size)
    cluster.elect(1)
    cluster.add(learner)
    made(cluster, add(learner))
    cluster.advance(100)
    return cluster


# ── the life of a member ────────────────────────────────────────────────────────────────────────────


def test_a_member_joins_is_promoted_and_removed() -> None:
    cluster = grown()
    assert cluster[1].configuration.learners == (4,)
    assert cluster[1].configuration.last_id == 4
    assert cluster[4].role == "learner"
    made(cluster, PromoteMember(NodeId(4)))
    for id_ in (1, 2, 3, 4):
        assert cluster[id_].configuration.voters == (1, 2, 3, 4)
        assert cluster[id_].configuration_index == 3
    made(cluster, RemoveMember(NodeId(2)))
    assert cluster[4].configuration.voters == (1, 3, 4)
    assert cluster[1].committed_configuration == (4, cluster[1].configuration)
    made(cluster, add(5))
    assert cluster[1].configuration.learners == (5,)
    made(cluster, RemoveMember(NodeId(5)), add(6))
    assert cluster[1].configuration.learners == (6,), "an id is never given again"
    assert cluster[1].configuration.last_id == 6


def test_every_member_tells_of_each_configuration_once() -> None:
    cluster = grown()
    for id_ in (1, 2, 3, 4):
        assert cluster.facts_of(id_, ConfigurationChanged) == [ConfigurationChanged(Index(2), cluster[1].configuration)]


def test_a_follower_forwards_a_change_and_hears_why_not() -> None:
    cluster = grown()
    [id_] = cluster.change(2, PromoteMember(NodeId(9)))
    cluster.settle()
    assert cluster.refusal(2, id_) == ("member_not_found", "there is no member 9: it never was one")
    [id_] = cluster.change(2, PromoteMember(NodeId(4)))
    cluster.settle()
    assert [placed.index for placed in cluster.member(2).placed if placed.id == id_] == [3]
    assert cluster[2].configuration.voters == (1, 2, 3, 4)


def test_commands_around_a_change_stand_in_order() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    change = Proposed(RequestId(2), encode_change(add(4)), kind=EntryKind.CONFIGURATION.value)
    late = Proposed(RequestId(3), encode_change(add(5)), kind=EntryKind.CONFIGURATION.value)
    batch = (Proposed(RequestId(1), b"a"), change, late, Proposed(RequestId(4), b"b"))
    output = cluster.step(1, Proposals(batch))
    assert [(placed.id, placed.index) for placed in output.placed] == [(1, 2), (2, 3), (4, 4)]
    assert [(each.id, each.code) for each in output.refused] == [(3, "not_ready")]
    [send] = [s for s in cluster.step(1, ForwardProposals(Term(1), NodeId(2), batch)).sends if s.to == 2][:1]
    assert isinstance(send.message, ForwardReply)
    assert [id_ for id_, _ in send.message.placed] == [1, 4]


def test_a_forwarder_that_is_no_member_is_answered() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    sends = cluster.step(1, ForwardProposals(Term(1), NodeId(9), (Proposed(RequestId(1), b"a"),))).sends
    assert [send.message for send in sends if send.to == 9] == [
        ForwardReply(Term(1), NodeId(1), ((RequestId(1), Index(2)),))
    ]


def test_a_change_that_is_none_is_refused() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    output = cluster.step(1, Proposals((Proposed(RequestId(1), b"\xc1", kind=EntryKind.CONFIGURATION.value),)))
    assert [each.code for each in output.refused] == ["bad_request"]


def test_no_change_during_a_transfer_or_beyond_the_budget() -> None:
    cluster = Cluster(3, settings=RaftSection(commit_note_ms=0, uncommitted_bytes_max=100))
    cluster.elect(1)
    cluster.propose(1, b"x" * 50)
    assert refused(cluster, add(4))[0] == "overloaded"
    cluster.settle()
    cluster.step(1, TransferLeadership(NodeId(2)))
    assert refused(cluster, add(4))[0] == "no_leader"


# ── adding, and adding again ────────────────────────────────────────────────────────────────────────


def test_adding_again_is_the_same_member() -> None:
    """A joiner that did not hear the answer asks again: an equal configuration, the same id."""
    cluster = grown()
    before = cluster[1].configuration
    made(cluster, add(4))
    assert cluster[1].configuration == before
    made(cluster, PromoteMember(NodeId(4)))
    before = cluster[1].configuration
    made(cluster, add(4, promote=True))
    assert cluster[1].configuration == before, "it votes already"
    made(cluster, PromoteMember(NodeId(4)))
    assert cluster[1].configuration == before


def test_removing_again_is_done_already() -> None:
    """Who did not hear the answer asks again: an equal configuration, by whichever leader; another id is a mistake."""
    cluster = grown()
    made(cluster, RemoveMember(NodeId(4)))
    before = cluster[1].configuration
    made(cluster, RemoveMember(NodeId(4)), RemoveMember(NodeId(4), force=True))
    assert cluster[1].configuration == before
    made(cluster, RemoveMember(NodeId(1)))
    cluster.advance(2_000)
    before = cluster[cluster.leader].configuration
    assert before.voters == (2, 3)
    made(cluster, RemoveMember(NodeId(1)))
    assert cluster[cluster.leader].configuration == before
    assert refused(cluster, RemoveMember(NodeId(5))) == ("member_not_found", "there is no member 5: it never was one")


def test_the_directory_of_a_removed_member_is_not_taken_in_again() -> None:
    """It would be a learner that never comes: the directory goes by its old id."""
    cluster = grown()
    made(cluster, RemoveMember(NodeId(4)))
    assert cluster[1].configuration.removed == (400,)
    code, sentence = refused(cluster, add(4))
    assert code == "bad_request"
    assert sentence.startswith("the data directory with incarnation 0000000000000190 is that of a member that was rem")
    made(cluster, AddMember("host4:1", incarnation=401), RemoveMember(NodeId(5)), AddMember("host4:1"))
    assert cluster[1].configuration.removed == (400, 401)
    made(cluster, RemoveMember(NodeId(6)))
    assert cluster[1].configuration.removed == (400, 401), "nobody had come for that one"


def test_of_removed_members_the_latest_are_remembered() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    for number in range(4, REMOVED_MAX + 6):
        made(cluster, add(number), RemoveMember(NodeId(number)))
    removed = cluster[1].configuration.removed
    assert removed == tuple(100 * number for number in range(6, REMOVED_MAX + 6))


def test_a_member_announced_first_is_filled_in_when_it_joins() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    made(cluster, AddMember("host4:1", "four", promote=True, replaces=NodeId(2)))
    assert cluster[1].configuration.members == (Member(NodeId(4), 0, "host4:1", "four", True, NodeId(2)),)
    made(cluster, AddMember("host4:1", incarnation=44))
    assert cluster[1].configuration.members == (Member(NodeId(4), 44, "host4:1", "four", True, NodeId(2)),)
    assert cluster[1].configuration.last_id == 4
    made(cluster, RemoveMember(NodeId(2)))
    assert cluster[1].configuration.members == (Member(NodeId(4), 44, "host4:1", "four", True),)


def test_a_directory_that_asks_from_elsewhere_is_the_same_member_at_another_address() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    made(cluster, add(4))
    made(cluster, add(5))
    made(cluster, AddMember("elsewhere:1", incarnation=400))
    assert [(each.id, each.address) for each in cluster[1].configuration.members] == [
        (4, "elsewhere:1"),
        (5, "host5:1"),
    ]
    taken = refused(cluster, AddMember("elsewhere:1", incarnation=500))
    assert taken == ("conflict", "elsewhere:1 is the address of member 4: replace it, or remove it first")


def test_who_replaces_a_member_may_come_to_its_address() -> None:
    """A wiped node comes back where it was."""
    cluster = Cluster(3)
    cluster.elect(1)
    made(cluster, add(4))
    made(cluster, AddMember("host4:1", incarnation=77, promote=True, replaces=NodeId(4)))
    assert [(each.id, each.address) for each in cluster[1].configuration.members] == [(4, "host4:1"), (5, "host4:1")]
    made(cluster, AddMember("host4:1", incarnation=77, promote=True, replaces=NodeId(4)))
    assert cluster[1].configuration.last_id == 5, "asked again, the same member"


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (AddMember(""), "bad_request", "address"),
        (AddMember("host4:1", incarnation=1), "conflict", "host4:1 is the address of member 4"),
        (AddMember("host4:1"), "conflict", "host4:1 is the address of member 4"),
        (AddMember("other:1", incarnation=1, replaces=NodeId(9)), "member_not_found", "no member 9 to replace"),
        (PromoteMember(NodeId(9)), "member_not_found", "never was one"),
        (RemoveMember(NodeId(9)), "member_not_found", "never was one"),
        (PromoteMember(NodeId(5)), "member_not_found", "was removed"),
        (RemoveMember(NodeId(0)), "member_not_found", "never was one"),
        (UpdateMember(NodeId(5), "x:1"), "member_not_found", "was removed"),
        (UpdateMember(NodeId(4), ""), "bad_request", "address"),
        (UpdateMember(NodeId(1), "host4:1"), "conflict", "host4:1 is the address of member 4"),
        (RaiseFeatureLevel(1), "conflict", "never lowered"),
    ],
)
def test_what_is_refused_and_why(change: MemberChange, code: str, words: str) -> None:
    cluster = grown()
    made(cluster, add(5), RemoveMember(NodeId(5)), RaiseFeatureLevel(2))
    found, sentence = refused(cluster, change)
    assert found == code
    assert words in sentence


def test_members_are_bounded_in_number() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    made(cluster, *(add(number) for number in range(4, MEMBERS_MAX + 1)))
    assert refused(cluster, add(99)) == ("conflict", f"there are {MEMBERS_MAX} members already: remove one first")


def test_an_address_is_updated_and_a_feature_level_raised() -> None:
    cluster = grown()
    made(cluster, UpdateMember(NodeId(4), "new:1"), UpdateMember(NodeId(1), "one:1"), RaiseFeatureLevel(2))
    configuration = cluster[4].configuration
    assert configuration.members == (Member(NodeId(1), 0, "one:1"), Member(NodeId(4), 400, "new:1"))
    assert configuration.feature_level == 2


# ── what keeps it safe ──────────────────────────────────────────────────────────────────────────────


def test_none_before_an_entry_of_the_own_term_is_committed() -> None:
    """S42, trap S24; I15."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.elect(2, settle=False)
    for _ in range(4):
        cluster.deliver()
    assert cluster[2].role == "leader"
    assert cluster[2].commit_index < cluster[2].leads_from
    [id_] = cluster.change(2, add(4))
    assert cluster.refusal(2, id_) == (
        "not_ready",
        "the leader has committed nothing in its term yet: try again",
    )
    cluster.settle()
    made(cluster, add(4))


SCHEDULES = {
    "add/add": (4, PromoteMember(NodeId(5), force=True), PromoteMember(NodeId(6), force=True)),
    "add/remove": (4, PromoteMember(NodeId(5), force=True), RemoveMember(NodeId(1), force=True)),
    "remove/remove": (4, RemoveMember(NodeId(1), force=True), RemoveMember(NodeId(2), force=True)),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_s42_single_server_change_bug(schedule: str) -> None:
    """The three schedules of raft-dev, July 2015: two leaders must not build on configurations unknown to each other.

    Leader 1 appends a change and reaches nobody; another leads and makes a change of its own, which it may only once it
    has committed in its own term, with a voter of every majority of 1's configuration. So 1 cannot come back.
    """
    size, first, second = SCHEDULES[schedule]
    cluster = Cluster(size)
    cluster.elect(1)
    for number in (5, 6):
        cluster.add(number)
        made(cluster, add(number))
    cluster.advance(200)
    cluster.cut(1)
    cluster.change(1, first)
    assert cluster[1].configuration_index > cluster[2].configuration_index
    last = cluster[1].last_index
    cluster.elect(3, settle=False)
    while cluster[3].role != "leader":
        cluster.deliver()
    [id_] = cluster.change(3, second)
    assert cluster.refusal(3, id_) is not None, "nothing of its own term is committed yet"
    cluster.settle()
    made(cluster, second)
    assert cluster[3].commit_index > last or cluster[3].term > cluster[1].term
    # The first leader comes back, with its own configuration in force, and asks everybody for another term.
    cluster.heal()
    cluster.restart(1)
    cluster.now_ms += 2_000
    cluster.tick(1)
    cluster.tick(1)
    cluster.settle()
    assert cluster[1].role != "leader"
    cluster.advance(2_000)
    leader = cluster.leader
    assert leader != NOBODY
    cluster.propose(leader, b"goes on")
    cluster.settle()
    assert b"goes on" in cluster.member(leader).payloads


def test_s43_two_changes_at_once() -> None:
    """Two administrators: one wins, the other gets a definite answer."""
    cluster = Cluster(3)
    cluster.elect(1)
    first, second = cluster.change(2, add(4)), cluster.change(3, add(5))
    cluster.settle()
    answers = [cluster.refusal(2, first[0]), cluster.refusal(3, second[0])]
    [refusal] = [answer for answer in answers if answer is not None]
    assert refusal == ("not_ready", "the change of members at 2 is not committed yet: try again")
    assert cluster[1].configuration.learners == (4,)
    made(cluster, add(5))


def test_s44_config_rolls_back_with_truncation() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.cut(1)
    cluster.change(1, RemoveMember(NodeId(3)))
    assert cluster[1].configuration.voters == (1, 2)
    cluster.elect(2, settle=False)
    cluster.settle()
    cluster.heal()
    cluster.advance(300)
    assert cluster[1].configuration.voters == (1, 2, 3)
    assert cluster[1].configuration_index == 0
    assert [fact.index for fact in cluster.facts_of(1, ConfigurationChanged)] == [2, 0]  # type: ignore[union-attr]
    cluster.assert_level()


def test_s46_config_used_from_append_not_commit() -> None:
    """The quorum of the new configuration counts from its append, for the entries before it as well."""
    cluster = Cluster(4)
    cluster.elect(1)
    cluster.cut([3, 4])
    cluster.cut(3, 4)
    cluster.propose(1, b"waits")
    cluster.settle()
    assert cluster[1].commit_index == 1, "two of four are no majority"
    cluster.change(1, RemoveMember(NodeId(4), force=True))
    assert cluster[1].commit_index == 2, "two of three are"
    cluster.settle()
    assert cluster[1].commit_index == 3


def test_s46_a_larger_quorum_counts_from_its_append() -> None:
    cluster = grown(2, 3)
    cluster.cut(2)
    cluster.cut(3)
    cluster.change(1, PromoteMember(NodeId(3)))
    cluster.propose(1, b"x")
    cluster.settle()
    assert cluster[1].commit_index == 2
    cluster.heal()
    cluster.cut(2)
    cluster.advance(100)
    assert cluster[1].commit_index == 4


def test_s47_learner_promotion_only_when_caught_up() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    made(cluster, add(4))
    assert refused(cluster, PromoteMember(NodeId(4))) == (
        "conflict",
        "member 4 has not caught up: it does not answer",
    )
    cluster.add(4)
    cluster.cut(4)
    cluster.propose(1, *[b"x"] * 1_100)
    cluster.settle()
    cluster.heal()
    cluster.take(lambda envelope: True)
    cluster.now_ms += 50
    cluster.tick(1)
    cluster.deliver(lambda envelope: envelope.to == 4 and not getattr(envelope.message, "entries", ()))
    cluster.deliver(lambda envelope: envelope.sender == 4)
    assert "where its log ends is not known" in refused(cluster, PromoteMember(NodeId(4)))[1]
    cluster.advance(200)
    made(cluster, PromoteMember(NodeId(4)))
    cluster.restart(4)
    assert cluster[4].role == "follower"
    cluster.crash(1)
    cluster.crash(2)
    cluster.advance(3_000)
    assert cluster.leader == NOBODY, "two of four"
    cluster.start(2)
    cluster.advance(3_000)
    assert cluster.leader != NOBODY


def test_s47_a_learner_that_lags_by_bytes_is_not_promoted() -> None:
    cluster = grown()
    cluster.cut(4)
    cluster.propose(1, *[b"x" * 100_000] * 60)
    cluster.settle()
    assert "lacks 60 entries" in refused(cluster, PromoteMember(NodeId(4)))[1]
    cluster.step(1, PeerDisconnected(NodeId(4)))
    assert "does not answer" in refused(cluster, PromoteMember(NodeId(4)))[1]
    made(cluster, PromoteMember(NodeId(4), force=True))


def test_s47_a_learner_restart_keeps_its_role() -> None:
    cluster = grown()
    cluster.restart(4)
    assert cluster[4].role == "learner"
    cluster.advance(100)
    cluster.trim(4)
    cluster.restart(4)
    assert (cluster[4].role, cluster[4].configuration_index) == ("learner", 2)


def test_removing_a_living_voter_beside_dead_ones_is_refused() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.cut(3)
    cluster.advance(400)
    code, sentence = refused(cluster, RemoveMember(NodeId(2)))
    assert code == "conflict"
    assert sentence.startswith("of the 2 voters there would be, 3 did not answer lately or may not vote")
    made(cluster, RemoveMember(NodeId(3)))
    assert cluster[1].configuration.voters == (1, 2)


def test_a_voter_in_quarantine_is_none_to_count_on() -> None:
    """It answers, but elects nobody: without the other one there would be nobody to elect with."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.propose(1, b"a")
    cluster.settle()
    cluster.cut(3, 2)
    cluster.damage(3, 1)
    cluster.slow_disks[3] = True
    cluster.advance(100)
    assert cluster[1].progress[NodeId(3)].is_quarantined
    assert "3 did not answer lately or may not vote" in refused(cluster, RemoveMember(NodeId(2)))[1]
    cluster.slow_disks.clear()
    cluster.complete_writes(3)
    cluster.advance(300)
    made(cluster, RemoveMember(NodeId(2)))
    assert cluster[1].configuration.voters == (1, 3)


def test_promoting_beside_dead_voters_is_refused() -> None:
    cluster = grown(2, 3)
    cluster.cut(2, 1)
    cluster.advance(250)
    cluster.step(1, PeerDisconnected(NodeId(2)))
    made(cluster, PromoteMember(NodeId(3)))  # 1 and 3 of three


def test_the_last_voter_stays_even_if_forced() -> None:
    cluster = grown(1, 2)
    code, sentence = refused(cluster, RemoveMember(NodeId(1), force=True))
    assert (code, sentence) == ("conflict", "member 1 is the last voter: promote another one first")
    made(cluster, PromoteMember(NodeId(2)), RemoveMember(NodeId(1)))
    cluster.advance(1_000)
    assert cluster.leader == 2


# ── the leader removes itself; removed nodes ────────────────────────────────────────────────────────


def test_s48_remove_leader() -> None:
    """It commits without counting itself, says so, hands over, steps down; the cluster goes on."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.advance(100)
    cluster.change(1, RemoveMember(NodeId(1)))
    assert cluster[1].role == "leader"
    cluster.deliver(lambda envelope: envelope.to == 2)
    cluster.deliver(lambda envelope: envelope.sender == 2)
    assert cluster[1].commit_index == 1, "itself and 2 are not enough: it does not count"
    assert cluster[1].role == "leader"
    cluster.settle()
    assert cluster.facts_of(1, BecameFollower)[-1] == BecameFollower(Term(1), NOBODY, "removed")
    assert cluster.leader in (2, 3)
    assert cluster[1].is_removed
    assert not cluster[1].is_member
    cluster.advance(5_000)
    assert cluster.leader in (2, 3)
    assert cluster[cluster.leader].configuration.voters == (2, 3)
    assert cluster[cluster.leader].term == 2, "handed over, not lost"
    cluster.propose(cluster.leader, b"on")
    cluster.settle()
    assert b"on" in cluster.member(2).payloads


def test_s48_remove_self_when_the_others_do_not_answer() -> None:
    cluster = Cluster(2)
    cluster.elect(1)
    cluster.cut(2)
    cluster.advance(200)
    cluster.step(1, PeerDisconnected(NodeId(2)))
    assert "no majority" in refused(cluster, RemoveMember(NodeId(1)))[1]


def test_s48_the_only_one_with_the_entry_leads_on_without_counting_itself() -> None:
    """The leader of two removes itself and crashes before anybody heard: only the other can elect it."""
    cluster = Cluster(2)
    cluster.elect(1)
    cluster.cut(1)
    cluster.change(1, RemoveMember(NodeId(1)))
    cluster.restart(1)
    cluster.heal()
    assert not cluster[1].state.is_voter
    cluster.advance(6_000)
    assert cluster.leader == 2
    assert cluster[2].configuration.voters == (2,)
    assert cluster[1].is_removed or not cluster[1].is_member


def test_s49_removed_node_cannot_disturb_or_return() -> None:
    cluster = Cluster(4)
    cluster.elect(1)
    made(cluster, RemoveMember(NodeId(4)))
    term = cluster[1].term
    assert not cluster[4].is_removed, "it was not told: its leader sends it nothing any more"
    cluster.restart(4)
    cluster.advance(10_000)
    assert cluster.leader == 1
    assert max(cluster[id_].term for id_ in (1, 2, 3)) == term
    # Even when nobody leads it gets no vote of those who know, and gives none that counts.
    cluster.crash(1)
    cluster.now_ms += 1_000
    request = VoteRequest(Term(50), NodeId(4), Term(49), Index(90))
    assert not cluster.step(2, request).sends
    assert cluster[2].term == term
    cluster.advance(3_000)
    assert cluster.leader in (2, 3)


def test_s49_a_node_that_knows_that_it_is_removed_neither_votes_nor_stands() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.change(1, RemoveMember(NodeId(1)))
    cluster.settle()
    assert cluster[1].is_removed
    cluster.now_ms += 1_000
    assert not cluster.step(1, VoteRequest(Term(50), NodeId(2), Term(49), Index(90))).sends
    cluster.crash(2)
    cluster.crash(3)
    cluster.advance(5_000)
    assert cluster[1].role == "learner"


def test_s50_two_node_cluster_lose_one_during_change() -> None:
    """Of two, the other one is lost for ever: the change waits, no split brain; a forced removal gets through."""
    cluster = Cluster(2)
    cluster.elect(1)
    cluster.crash(2)
    made(cluster, RemoveMember(NodeId(2), force=True))
    assert cluster[1].commit_index == 2
    cluster.start(2)
    cluster.advance(5_000)
    assert cluster.leader == 1
    assert cluster[2].role != "leader", "its configuration needs the vote of 1, who knows better"
    cluster.propose(1, b"alone")
    assert b"alone" in cluster.member(1).payloads


def test_s50_growing_from_one_the_new_voter_is_lost() -> None:
    cluster = grown(1, 2)
    cluster.crash(2)
    cluster.change(1, PromoteMember(NodeId(2)))
    cluster.propose(1, b"x")
    cluster.advance(2_000)
    assert cluster.leader == NOBODY, "one of two"
    cluster.start(2)
    cluster.advance(3_000)
    assert cluster.leader != NOBODY
    assert cluster[1].configuration.voters == (1, 2)


@pytest.mark.parametrize("is_durable", [True, False])
def test_s51_change_in_flight_restore(is_durable: bool) -> None:
    """A restart with an uncommitted change: what is on the disk is in force, and finished or rolled back once."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.cut(1)
    if not is_durable:
        cluster.slow_disks[1] = True
    cluster.change(1, RemoveMember(NodeId(3)))
    cluster.restart(1)
    cluster.slow_disks.clear()
    assert cluster[1].configuration.voters == ((1, 2) if is_durable else (1, 2, 3))
    cluster.heal()
    cluster.advance(3_000)
    leader = cluster.leader
    assert leader != NOBODY
    assert cluster[1].configuration == cluster[2].configuration
    assert cluster[leader].commit_index >= cluster[leader].configuration_index


def test_s51_a_snapshot_with_a_change_behind_it() -> None:
    """A trimmed log whose tail holds an uncommitted change: a restart has the store's configuration and the tail's."""
    cluster = grown()
    cluster.trim(1)
    cluster.cut(1)
    cluster.change(1, RemoveMember(NodeId(3)))
    cluster.restart(1)
    assert cluster[1].configuration == Configuration(
        (NodeId(1), NodeId(2)), (NodeId(4),), cluster[2].configuration.members, NodeId(4)
    )
    assert cluster[1].committed_configuration == (2, cluster[2].configuration)


# ── what is counted is counted again ────────────────────────────────────────────────────────────────


def test_s36_pending_reads_are_looked_at_again_when_the_configuration_shrinks() -> None:
    cluster = Cluster(5)
    cluster.elect(1)
    cluster.advance(100)
    cluster.cut([3, 4, 5])
    number = cluster.read(1)
    cluster.settle()
    assert cluster.ready_at(1, number) is None, "two of five"
    cluster.change(1, RemoveMember(NodeId(5), force=True))
    assert cluster.ready_at(1, number) is None, "two of four"
    cluster = Cluster(4)
    cluster.elect(1)
    cluster.advance(100)
    cluster.cut([3, 4])
    number = cluster.read(1)
    cluster.settle()
    assert cluster.ready_at(1, number) is None, "two of four"
    cluster.change(1, RemoveMember(NodeId(4), force=True))
    assert cluster.ready_at(1, number) == 1, "two of three"


def test_s36_an_echo_of_one_who_is_removed_does_not_count() -> None:
    cluster = Cluster(4)
    cluster.elect(1)
    cluster.advance(100)
    number = cluster.read(1)
    round_ = cluster[1].state.read_round
    cluster.take(lambda envelope: True)
    cluster.change(1, RemoveMember(NodeId(4)))
    cluster.take(lambda envelope: True)
    echo = AppendReply(Term(1), NodeId(4), True, Index(1), last_index=Index(1), read_round=round_)
    cluster.step(1, echo)
    assert cluster.ready_at(1, number) is None
    cluster.step(1, AppendReply(Term(1), NodeId(2), True, Index(1), last_index=Index(1), read_round=round_))
    assert cluster.ready_at(1, number) == 1, "of three, with itself"


def test_s36_the_quorum_check_is_due_with_the_change() -> None:
    """A forced promotion of one who does not answer may leave the leader without a majority: it finds out at once."""
    cluster = grown(1, 2)
    cluster.crash(2)
    cluster.advance(1_000)
    cluster.change(1, PromoteMember(NodeId(2), force=True))
    assert cluster[1].next_deadline_ms() <= cluster.now_ms
    cluster.tick(1)
    assert cluster[1].role != "leader"


def test_a_lease_begins_anew_with_a_committed_configuration() -> None:
    """I14 across a change: what the voters before have promised is not relied on."""
    cluster = Cluster(3, settings=RaftSection(commit_note_ms=0, leader_lease_reads=True))
    cluster.elect(1)
    cluster.advance(200)
    assert cluster[1].has_lease(cluster.now_ms)
    cluster.change(1, RemoveMember(NodeId(3)))
    assert not cluster[1].has_lease(cluster.now_ms)
    cluster.settle()
    assert not cluster[1].has_lease(cluster.now_ms), "committed, but no round has left since"
    cluster.advance(100)
    assert cluster[1].has_lease(cluster.now_ms)
    cluster.change(1, RemoveMember(NodeId(2)))
    assert cluster[1].commit_index == cluster[1].configuration_index
    assert cluster[1].has_lease(cluster.now_ms), "alone, and committed"


def test_office_goes_to_one_just_promoted_that_has_not_heard_of_it() -> None:
    """Transfer during a change: it is brought level first, so it knows its vote when it is told to campaign."""
    cluster = grown()
    cluster.cut(4)
    cluster.change(1, PromoteMember(NodeId(4)))
    cluster.step(1, TransferLeadership(NodeId(4)))
    cluster.take(lambda envelope: True)
    assert cluster[1].commit_index < cluster[1].configuration_index
    assert cluster[4].role == "learner"
    cluster.heal()
    cluster.advance(150)
    assert cluster.leader == 4
    assert cluster[4].configuration.voters == (1, 2, 3, 4)
    assert cluster[4].commit_index == cluster[4].last_index


def test_the_next_leader_carries_on_a_change_that_is_not_committed() -> None:
    """Transfer during a change, and a change after the transfer: only with an entry of the new term committed."""
    cluster = grown()
    cluster.cut(1, 3)
    cluster.change(1, PromoteMember(NodeId(4)))
    cluster.step(1, TransferLeadership(NodeId(2)))
    while cluster[2].role != "leader":
        cluster.now_ms += 10
        assert cluster.deliver() or cluster.tick(1)
    [id_] = cluster.change(2, RemoveMember(NodeId(1)))
    assert cluster.refusal(2, id_) is not None
    assert cluster.refusal(2, id_)[0] == "not_ready"  # type: ignore[index]
    cluster.heal()
    cluster.advance(300)
    assert cluster.leader == 2
    made(cluster, RemoveMember(NodeId(1)))
    assert cluster[2].configuration.voters == (2, 3, 4)


def test_a_promoted_voter_is_needed_before_it_knows() -> None:
    """Two voters and a learner that is promoted without hearing of it; one voter dies: the other needs its vote."""
    cluster = grown(2, 3)
    cluster.cut(3, 1)
    made(cluster, PromoteMember(NodeId(3)))
    assert cluster[3].role == "learner"
    cluster.crash(1)
    cluster.heal()
    cluster.advance(3_000)
    assert cluster.leader == 2
