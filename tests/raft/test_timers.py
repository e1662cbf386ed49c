"""Timers: traps S6, S41, S42, S44–S46; HB4."""

from __future__ import annotations

import inspect

from kvnode.ids import Index, NodeId, Term
from kvnode.raft import core, timers
from kvnode.raft.messages import AppendEntries, AppendReply, Tick, VoteRequest
from tests.raft.cluster import Cluster

T = 300


def drawn(cluster: Cluster, id_: int) -> int:
    return cluster[id_].next_deadline_ms() - cluster.now_ms


def test_timeouts_are_drawn_anew_from_t_to_2t() -> None:
    """Trap S7 (no split votes for ever), LF2."""
    cluster = Cluster(3)
    cluster.elect(1)
    seen = []
    for _ in range(200):
        cluster.step(2, AppendEntries(Term(1), NodeId(1), Index(0), Term(0), (), Index(0)))
        seen.append(drawn(cluster, 2))
    assert min(seen) >= T
    assert max(seen) < 2 * T
    assert len(dict.fromkeys(seen)) > 50


def test_a_fresh_process_waits_less_until_it_hears_a_leader() -> None:
    seen = [drawn(Cluster(3, seed=seed), 1) for seed in range(60)]
    assert min(seen) >= T // 3
    assert max(seen) < 2 * T // 3


def test_detection_takes_no_longer_than_the_deadline() -> None:
    """Trap S42: a deadline, not a poll every T; and one campaign, not one a period before it is over."""
    cluster = Cluster(3)
    cluster.elect(1)
    deadline = cluster[2].next_deadline_ms()
    cluster.now_ms = deadline - 1
    assert not cluster.tick(2).sends
    cluster.now_ms = deadline
    assert all(isinstance(send.message, VoteRequest) for send in cluster.tick(2).sends)
    assert drawn(cluster, 2) >= T
    assert not cluster.tick(2).sends


def test_only_a_granted_vote_or_the_leader_resets_the_timer() -> None:
    """Trap S6."""
    cluster = Cluster(3, logs={1: [1, 1]})
    deadline = cluster[1].next_deadline_ms()
    cluster.now_ms += 5
    cluster.step(1, VoteRequest(Term(2), NodeId(2), Term(0), Index(0)))
    assert cluster[1].next_deadline_ms() == deadline
    cluster.step(1, VoteRequest(Term(3), NodeId(2), Term(9), Index(9), pre=True))
    assert cluster[1].next_deadline_ms() == deadline
    cluster.step(1, VoteRequest(Term(3), NodeId(2), Term(9), Index(9)))
    assert cluster[1].next_deadline_ms() != deadline


def test_our_own_pause_is_not_the_leaders_silence() -> None:
    """HB4: a deadline missed by more than T gets one grace round, and only one."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.now_ms = cluster[2].next_deadline_ms() + T + 1
    assert not cluster.tick(2).sends
    assert T // 3 <= drawn(cluster, 2) < 2 * T // 3
    cluster.now_ms = cluster[2].next_deadline_ms() + T + 1
    assert cluster.tick(2).sends


def test_a_short_pause_of_anybody_changes_no_term() -> None:
    """HB-T1: half a timeout."""
    for paused in (1, 2, 3):
        cluster = Cluster(3)
        cluster.elect(1)
        cluster.advance(500)
        held = cluster.member(paused).raft
        cluster.member(paused).raft = None
        cluster.advance(T // 2 - 50)
        cluster.member(paused).raft = held
        cluster.advance(3_000)
        assert [cluster[i].term for i in (1, 2, 3)] == [1, 1, 1]


def test_time_enters_as_an_argument_and_the_wall_decides_nothing() -> None:
    """Traps S40, S41: no clock is read; a wall clock an hour off, either way, moves no deadline."""
    for module in (core, timers):
        assert "import time" not in inspect.getsource(module)
    cluster = Cluster(3)
    cluster.elect(1)
    before = cluster[2].next_deadline_ms()
    for wall_ms in (0, 10**13):
        cluster[2].step(cluster.now_ms, wall_ms, Tick())
    assert (cluster[2].next_deadline_ms(), cluster[2].role) == (before, "follower")


def test_heartbeats_have_their_own_schedule_and_end_with_the_office() -> None:
    """Traps S43, S44, S46; HB3: to each follower, whatever the others do, and not when deposed."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.cut(1, 2)
    for _ in range(5):
        cluster.now_ms = cluster[1].next_deadline_ms()
        sends = cluster.tick(1).sends
        assert [send.to for send in sends] == [2, 3]
        assert all(isinstance(send.message, AppendEntries) and not send.message.entries for send in sends)
        cluster.settle()
    cluster.step(1, AppendReply(Term(9), NodeId(3), accepted=False, index=Index(0)))
    cluster.take(lambda _: True)
    cluster.now_ms += 60
    assert not cluster.tick(1).sends
    assert cluster[1].next_deadline_ms() > cluster.now_ms


def test_a_heartbeat_waits_for_no_write() -> None:
    """HB3: neither the leader's nor the follower's fsync holds it up, in either direction."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.slow_disks.update({1: True, 2: True})
    cluster.propose(1, b"x")
    cluster.settle()
    cluster.now_ms = cluster[1].next_deadline_ms()
    assert all(send.after == 0 for send in cluster.tick(1).sends)
    beat = cluster.take(lambda e: e.to == 2)[0]
    (reply,) = cluster.step(2, beat.message).sends
    assert reply.after == 0


def test_an_idle_cluster_beats_at_its_interval_only() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.advance(500)
    count = len(cluster.member(1).outputs)
    cluster.advance(1_000)
    beats = [o for o in cluster.member(1).outputs[count:] if o.sends]
    assert len(beats) == 20
    assert all(o.persist is None for o in cluster.member(1).outputs[count:])


def test_last_contact() -> None:
    cluster = Cluster(3)
    assert cluster[1].last_contact_ms(NodeId(2), cluster.now_ms) == -1
    cluster.elect(1)
    assert cluster[1].last_contact_ms(NodeId(2), cluster.now_ms + 7) == 7
