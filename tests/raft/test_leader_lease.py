"""Leader leases: when a leader may rely on nobody else being elected, and who keeps that promise."""

from __future__ import annotations

import pytest

from kvnode.config import RaftSection
from kvnode.ids import NOBODY, Index, NodeId, Term
from kvnode.raft.leader_lease import ROUNDS_MAX, lease_ms
from kvnode.raft.messages import (
    AppendReply,
    PeerRefused,
    TimeoutNow,
    TransferLeadership,
    VoteReply,
    VoteRequest,
)
from kvnode.raft.output import BecameCandidate, TransferAborted
from tests.raft.cluster import Cluster, Envelope

T = 300
SETTINGS = RaftSection(commit_note_ms=0, leader_lease_reads=True)
LEASE = lease_ms(SETTINGS)


def led_by_1(voters: int = 3) -> Cluster:
    cluster = Cluster(voters, settings=SETTINGS)
    cluster.elect(1)
    cluster.advance(2 * SETTINGS.heartbeat_ms)
    return cluster


def has_lease(cluster: Cluster, id_: int = 1) -> bool:
    return cluster[id_].has_lease(cluster.now_ms)


def request(cluster: Cluster, voter: int, *, pre: bool = False, transfer: bool = False) -> list[VoteReply]:
    """What a voter answers to a candidate with a log as good as any."""
    log = cluster[voter].state.log.last_position
    term = Term(cluster[voter].term + 1)
    message = VoteRequest(term, NodeId(3 if voter != 3 else 2), log.term, log.index, pre, transfer)
    cluster[voter].step(cluster.now_ms, cluster.wall_ms(voter), message)
    return [s.message for s in cluster[voter].take_output().sends if isinstance(s.message, VoteReply)]


# ── the leader's side ───────────────────────────────────────────────────────────────────────────────


def test_it_is_off_by_default_and_costs_no_round_then() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.advance(500)
    assert not has_lease(cluster)
    assert cluster[1].state.read_round == 0


def test_heartbeats_keep_it_and_only_the_leader_has_it() -> None:
    cluster = led_by_1()
    for _ in range(100):
        cluster.advance(7)
        assert has_lease(cluster)
        assert not has_lease(cluster, 2)


def test_it_is_shorter_than_the_shortest_election_timeout_by_two_clocks_errors() -> None:
    assert LEASE == 243
    assert LEASE / 0.9 < T / 1.1


def test_it_counts_from_when_the_round_was_sent_not_from_its_echo() -> None:
    cluster = led_by_1()
    cluster.cut([2, 3], 1, one_way=True)  # their answers do not arrive …
    cluster.run_until(lambda: not has_lease(cluster))
    cluster.heal()
    cluster.tick(1)
    sent_ms = cluster.now_ms
    cluster[1].state.leadership.heartbeat_deadline_ms = 0  # type: ignore[union-attr]
    cluster.tick(1)
    cluster.deliver(lambda envelope: envelope.sender == 1)
    cluster.now_ms += 200  # … and then late
    cluster.deliver(lambda envelope: envelope.to == 1)
    assert has_lease(cluster)
    cluster.now_ms = sent_ms + LEASE - 1
    assert has_lease(cluster)
    cluster.now_ms = sent_ms + LEASE
    assert not has_lease(cluster)


def test_an_echo_of_a_minority_or_of_an_older_round_extends_nothing() -> None:
    cluster = led_by_1(5)
    began = cluster[1].state.leadership
    assert began is not None
    cluster.cut([1, 2], [3, 4, 5])
    cluster.run_until(lambda: not has_lease(cluster), limit_ms=T)
    old = AppendReply(cluster[1].term, NodeId(3), True, Index(1), last_index=Index(1), read_round=1)
    cluster.hand(Envelope(NodeId(3), NodeId(1), old))
    assert not has_lease(cluster)


def test_not_before_an_entry_of_the_own_term_is_committed() -> None:
    cluster = led_by_1()
    cluster.crash(1)
    cluster.slow_disks[3] = True
    cluster.run_until(lambda: cluster[2].role == "candidate" or cluster.leader == 2, limit_ms=4 * T)
    cluster.complete_writes(3)
    cluster.run_until(lambda: cluster.leader == 2, limit_ms=4 * T)
    assert cluster[2].commit_index < cluster[2].last_index or not has_lease(cluster, 2)
    cluster.advance(100)
    assert not has_lease(cluster, 2), "heartbeats are echoed, but the no-op is not durable at 3"
    del cluster.slow_disks[3]
    cluster.complete_writes(3)
    cluster.advance(200)
    assert has_lease(cluster, 2)


def test_it_ends_with_the_office() -> None:
    cluster = led_by_1()
    reply = AppendReply(Term(9), NodeId(2), False, Index(0))
    cluster.hand(Envelope(NodeId(2), NodeId(1), reply))
    assert not has_lease(cluster)


def test_a_member_that_is_alone_always_has_it_once_its_term_has_begun() -> None:
    cluster = Cluster(1, settings=SETTINGS)
    cluster.elect(1)
    cluster.now_ms += 10_000
    assert has_lease(cluster)


def test_rounds_that_nobody_echoes_are_bounded() -> None:
    cluster = led_by_1()
    cluster.cut(1)
    for _ in range(ROUNDS_MAX + 50):
        cluster.read(1)
    leadership = cluster[1].state.leadership
    assert leadership is not None
    assert len(leadership.lease_rounds) == ROUNDS_MAX


# ── the voters' side ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("pre", [True, False])
def test_who_has_heard_a_leader_grants_nothing_for_a_whole_timeout(pre: bool) -> None:
    cluster = led_by_1()
    cluster.crash(1)
    heard_ms = cluster[2].state.promised_ms
    cluster.now_ms = heard_ms + T - 1
    assert request(cluster, 2, pre=pre) == []
    cluster.now_ms = heard_ms + T
    assert [reply.granted for reply in request(cluster, 2, pre=pre)] == [True]


def test_a_newer_term_does_not_release_from_the_promise() -> None:
    """It may be heard of before the candidate's own request, from whoever is in it already."""
    cluster = led_by_1()
    heard_ms = cluster[2].state.promised_ms
    stray = AppendReply(Term(cluster[2].term + 1), NodeId(3), False, Index(0))
    cluster.hand(Envelope(NodeId(3), NodeId(2), stray))
    assert cluster[2].leader == NOBODY
    log = cluster[2].state.log.last_position
    vote = VoteRequest(cluster[2].term, NodeId(3), log.term, log.index)
    cluster[2].step(cluster.now_ms, cluster.wall_ms(2), vote)
    assert not cluster[2].take_output().sends
    cluster.now_ms = heard_ms + T
    cluster[2].step(cluster.now_ms, cluster.wall_ms(2), vote)
    assert len(cluster[2].take_output().sends) == 1


def test_s38_voter_restart_waits_before_voting() -> None:
    """It cannot know what it heard before: it grants nothing, and does not stand, for one election timeout."""
    cluster = led_by_1()
    cluster.restart(2)
    began_ms = cluster.now_ms
    cluster.cut(1, [2, 3])
    for ms in (0, LEASE, T - 1):
        cluster.now_ms = began_ms + ms
        assert request(cluster, 2) == request(cluster, 2, pre=True) == []
        cluster.tick(2)
        assert cluster[2].role == "follower"
    cluster.now_ms = began_ms + T
    assert [reply.granted for reply in request(cluster, 2)] == [True]


def test_a_refusing_port_is_no_reason_to_hurry() -> None:
    cluster = led_by_1()
    cluster.crash(1)
    gone_ms = cluster.now_ms
    for id_ in (2, 3):
        cluster.step(id_, PeerRefused(NodeId(1)))
    cluster.run_until(lambda: cluster.leader != NOBODY)
    assert cluster.now_ms >= gone_ms + T - SETTINGS.heartbeat_ms
    assert cluster.leader in (2, 3)


# ── transfers ───────────────────────────────────────────────────────────────────────────────────────


def test_s39_lease_cleared_before_transfer() -> None:
    """No lease from the order to its end, and then none before a later entry is committed: the order may be late."""
    cluster = led_by_1()
    assert has_lease(cluster)
    cluster.cut(1, 2)  # so the order is under way
    cluster.step(1, TransferLeadership(NodeId(2)))
    assert not has_lease(cluster)
    cluster.run_until(lambda: cluster.facts_of(1, TransferAborted) != [])
    cluster.heal()
    cluster.advance(2 * T)
    assert cluster.leader == 1
    assert not has_lease(cluster), "as good as heard by everybody, and yet"
    late = TimeoutNow(cluster[1].term, NodeId(1), cluster[1].last_index)
    cluster.propose(1, b"x")
    cluster.settle()
    cluster.advance(SETTINGS.heartbeat_ms)
    assert has_lease(cluster)
    cluster.hand(Envelope(NodeId(1), NodeId(2), late))
    assert cluster[2].role == "follower", "void by now"


def test_a_late_order_wins_only_while_there_is_no_lease() -> None:
    cluster = led_by_1()
    cluster.step(1, TransferLeadership(NodeId(2)))
    orders = cluster.take(lambda envelope: isinstance(envelope.message, TimeoutNow))
    cluster.cut(1, 2)
    cluster.run_until(lambda: cluster.facts_of(1, TransferAborted) != [])
    cluster.heal()
    cluster.advance(60)
    assert cluster.leader == 1
    assert not has_lease(cluster)
    cluster.hand(orders[0])
    cluster.settle()
    assert cluster.leader == 2, "its voters heard the leader a moment ago"
    assert cluster.facts_of(2, BecameCandidate)


def test_transfer_to_a_voter_that_has_just_started_works() -> None:
    cluster = led_by_1()
    cluster.restart(3)
    cluster.advance(60)
    cluster.step(1, TransferLeadership(NodeId(2)))
    cluster.settle()
    assert cluster.leader == 2
