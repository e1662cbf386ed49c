"""Wall clocks that disagree: who is refused, who goes, who stands; and that none of it can go on for ever."""

from __future__ import annotations

import pytest

from kvnode.clocks import hybrid
from kvnode.ids import Index, NodeId, Term
from kvnode.raft.clock_drift import ABSTAINS, PATIENCE
from kvnode.raft.messages import AppendEntries, AppendReply, Entry, LogPosition, PeerRefused, TimeoutNow
from kvnode.raft.output import ClockAhead, ClockJumped, StampRefused, StampTolerated
from tests.raft.cluster import Cluster

HOUR_MS = 3_600_000
T = 300
LIMIT_MS = 500


def led_by_1(voters: int = 3) -> Cluster:
    cluster = Cluster(voters)
    cluster.elect(1)
    cluster.advance(10)
    return cluster


def stamps(cluster: Cluster, id_: int) -> list[int]:
    return [entry.time for entry in cluster.member(id_).disk.entries]


def offer(cluster: Cluster, *times: int, commit: int = 0) -> AppendReply:
    """Entries of these stamps, from the leader 1 to node 2, behind what both hold; its answer."""
    log = cluster[2].state.log
    first = log.last_index + 1
    term = cluster[2].term
    entries = tuple(Entry(term, Index(first + at), time, 2, b"x") for at, time in enumerate(times))
    position = log.last_position
    message = AppendEntries(term, NodeId(1), position.index, position.term, entries, Index(commit))
    output = cluster[2]
    output.step(cluster.now_ms, cluster.wall_ms(2), message)
    [send] = output.take_output().sends
    assert isinstance(send.message, AppendReply)
    return send.message


# ── what a follower takes ───────────────────────────────────────────────────────────────────────────


def test_the_limit_is_measured_from_the_followers_wall_clock() -> None:
    for ahead_ms, taken in ((LIMIT_MS, 1), (LIMIT_MS + 1, 0)):
        cluster = led_by_1()
        reply = offer(cluster, cluster.wall_ms(2) + ahead_ms << hybrid.COUNTER_BITS)
        assert (reply.accepted, reply.index, reply.ahead_ms) == (True, 1 + taken, 0 if taken else ahead_ms)
        assert cluster[2].last_index == 1 + taken


def test_of_one_message_the_entries_before_the_first_refused_one_are_taken() -> None:
    cluster = led_by_1()
    wall = cluster.wall_ms(2)
    far = wall + HOUR_MS << hybrid.COUNTER_BITS
    reply = offer(cluster, wall << hybrid.COUNTER_BITS, (wall << hybrid.COUNTER_BITS) + 1, far, far + 1)
    assert (reply.index, cluster[2].last_index, reply.ahead_ms) == (3, 3, HOUR_MS)
    assert cluster[2].state.clock.last == (wall << hybrid.COUNTER_BITS) + 1, "what is refused is not adopted"


def test_what_is_committed_is_taken_whatever_its_stamp_and_what_follows_is_measured_again() -> None:
    cluster = led_by_1()
    far = cluster.wall_ms(2) + HOUR_MS << hybrid.COUNTER_BITS
    reply = offer(cluster, far, far + (9 << 16), far + (10 << 16), commit=3)
    assert (reply.index, cluster[2].last_index) == (3, 3)


def test_the_very_next_stamp_is_no_leap_so_a_slow_leader_is_heard_after_all_clocks_were_set_back() -> None:
    cluster = led_by_1()
    far = cluster.wall_ms(2) + HOUR_MS << hybrid.COUNTER_BITS
    assert offer(cluster, far, commit=2).index == 2
    assert offer(cluster, far + 1, far + 2, far + 3).index == 5
    assert offer(cluster, far + 5).ahead_ms, "a leap from there is one"


def test_an_entry_that_is_there_already_is_not_refused_again() -> None:
    cluster = led_by_1()
    time = cluster.wall_ms(2) + LIMIT_MS << hybrid.COUNTER_BITS
    assert offer(cluster, time).index == 2
    cluster.wall_skew_ms[2] = -HOUR_MS
    entry = cluster[2].state.log.slice(Index(2), Index(2), 1)
    assert entry is not None
    message = AppendEntries(cluster[2].term, NodeId(1), Index(1), Term(1), entry, Index(1))
    cluster[2].step(cluster.now_ms, cluster.wall_ms(2), message)
    [send] = cluster[2].take_output().sends
    assert isinstance(send.message, AppendReply)
    assert (send.message.index, send.message.ahead_ms) == (2, 0)


# ── leaders ─────────────────────────────────────────────────────────────────────────────────────────


def test_one_follower_that_is_behind_costs_nothing_but_the_time_until_the_next_heartbeat() -> None:
    cluster = led_by_1()
    cluster.wall_skew_ms[3] = -HOUR_MS
    for number in range(20):
        cluster.propose(1, b"%d" % number)
        cluster.advance(60)
    cluster.advance(200)
    assert cluster.leader == 1
    cluster.assert_level()
    [refused] = cluster.facts_of(3, StampRefused)  # told once a term
    assert isinstance(refused, StampRefused)
    assert refused.leader == 1
    assert HOUR_MS - 100 < refused.ahead_ms <= HOUR_MS
    assert "node 1" in cluster[3].clock_alarm
    assert not cluster.facts_of(1, ClockAhead)
    assert not cluster.facts_of(3, StampTolerated), "it need not: the others commit without it"


def test_a_leader_whose_clock_falls_behind_goes_on() -> None:
    cluster = led_by_1()
    cluster.wall_skew_ms[1] = -HOUR_MS
    cluster.propose(1, b"x", b"y")
    cluster.advance(1_000)
    assert cluster.leader == 1
    cluster.assert_level()
    assert stamps(cluster, 2) == sorted(set(stamps(cluster, 2)))


def test_refused_by_one_and_unheard_by_the_other_it_has_no_majority_either() -> None:
    cluster = led_by_1()
    cluster.cut(1, 3)
    cluster.advance(250)
    cluster.wall_skew_ms[1] = HOUR_MS
    cluster.propose(1, b"x")
    cluster.advance(150)
    assert cluster[1].role != "leader"
    [ahead] = cluster.facts_of(1, ClockAhead)
    assert isinstance(ahead, ClockAhead)
    assert HOUR_MS - 150 < ahead.ahead_ms <= HOUR_MS


def test_what_a_reply_acknowledges_counts_before_what_it_refuses() -> None:
    """A leader commits by the last acknowledgement it gets, and goes with the next refusal."""
    cluster = led_by_1()
    cluster.cut(1, 3)
    cluster.advance(250)
    cluster.propose(1, b"x")
    cluster.take(lambda _: True)
    taken = AppendReply(cluster[1].term, NodeId(2), True, Index(2), last_index=Index(2), ahead_ms=HOUR_MS)
    cluster.member(2).disk.entries.append(cluster.member(1).disk.entries[1])
    cluster.now_ms += 60
    cluster.step(1, taken)
    assert (cluster[1].role, cluster[1].commit_index) == ("leader", 2)
    cluster.step(1, taken)
    assert cluster[1].role == "follower"


def test_what_a_fast_leader_stamped_in_vain_is_forgotten_with_its_entries() -> None:
    """Else it would go on stamping like that when its clock is long right, and be refused."""
    cluster = led_by_1()
    cluster.wall_skew_ms[1] = HOUR_MS
    cluster.propose(1, b"x")
    cluster.run_until(lambda: cluster.leader in (2, 3))
    cluster.advance(200)
    cluster.wall_skew_ms[1] = 0
    assert cluster[1].state.clock.last == cluster[1].state.log.last_time < cluster.wall_ms(1) + 1 << 16
    cluster.advance(ABSTAINS * T)
    cluster.elect(1)
    cluster.propose(1, b"y")
    cluster.advance(200)
    assert cluster.leader == 1
    cluster.assert_level()


@pytest.mark.parametrize("skews", [(0, 2_000, 1_000), (0, 1_000, HOUR_MS), (HOUR_MS, 0, -HOUR_MS)])
@pytest.mark.parametrize("down", [0, 1, 2, 3])
def test_however_the_clocks_stand_a_majority_serves(skews: tuple[int, ...], down: int) -> None:
    """Also where the longest log is that of the fastest clock: then its stamps are tolerated in the end."""
    cluster = led_by_1()
    cluster.wall_skew_ms.update(enumerate(skews, 1))
    for id_ in (1, 2, 3):
        cluster.propose(id_, b"from %d" % id_)
    cluster.settle()
    if down:
        cluster.crash(down)
    up = [id_ for id_ in (1, 2, 3) if id_ != down]

    def is_served() -> bool:
        if cluster.leader:
            cluster.propose(cluster.leader, b"after")
        return all(b"after" in cluster.member(id_).payloads for id_ in up)

    cluster.run_until(is_served, limit_ms=8 * (ABSTAINS + 2) * T)
    times = stamps(cluster, up[0])
    assert times == sorted(set(times))


def test_two_members_whose_clocks_disagree_agree_in_the_end_and_say_so() -> None:
    cluster = led_by_1(2)
    cluster.wall_skew_ms[1] = HOUR_MS
    cluster.propose(1, b"x")
    cluster.run_until(lambda: cluster.commit_of(2) >= 3, limit_ms=(PATIENCE + ABSTAINS + 4) * T)
    assert cluster.facts_of(2, StampRefused)
    assert [fact.leader for fact in cluster.facts_of(2, StampTolerated)] == [1]  # type: ignore[union-attr]
    leaders = len(cluster.leaders)
    for number in range(20):
        cluster.propose(1, b"%d" % number)
        cluster.advance(20)
    assert cluster.commit_of(2) >= 23, "for the rest of the term, and not one entry every few timeouts"
    assert len(cluster.leaders) == leaders


# ── who stands ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("by_ms", [LIMIT_MS + 1, -HOUR_MS])
def test_a_node_whose_clock_jumps_does_not_stand_for_a_while(by_ms: int) -> None:
    cluster = led_by_1()
    cluster.wall_skew_ms[2] = by_ms
    cluster.tick(2)
    cluster.cut(2)
    assert cluster.facts_of(2, ClockJumped) == [ClockJumped(by_ms)]
    began = cluster.now_ms
    cluster.step(2, PeerRefused(NodeId(1)))
    cluster.step(2, TimeoutNow(cluster[2].term, NodeId(1), cluster[2].last_index))
    cluster.run_until(lambda: cluster[2].role == "candidate", limit_ms=(ABSTAINS + 3) * T)
    assert cluster.now_ms - began >= ABSTAINS * T
    assert cluster[2].clock_alarm == ""


def test_within_the_limit_a_jump_is_none_and_drift_is_none() -> None:
    cluster = led_by_1()
    for _ in range(50):
        cluster.wall_skew_ms[2] = cluster.wall_skew_ms.get(2, 0) + LIMIT_MS
        cluster.tick(2)
    assert not cluster.facts_of(2, ClockJumped)


def test_a_clock_that_is_back_in_line_may_lead_again() -> None:
    cluster = led_by_1()
    cluster.wall_skew_ms[2] = HOUR_MS
    cluster.tick(2)
    assert cluster[2].clock_alarm
    cluster.wall_skew_ms[2] = 100
    cluster.tick(2)
    assert not cluster[2].clock_alarm
    cluster.cut(2)
    cluster.run_until(lambda: cluster[2].role == "candidate", limit_ms=2 * T)


@pytest.mark.parametrize("by_ms", [HOUR_MS, -HOUR_MS])
def test_all_clocks_corrected_together_cost_nothing_or_one_late_election(by_ms: int) -> None:
    cluster = led_by_1()
    cluster.wall_skew_ms.update(dict.fromkeys((1, 2, 3), by_ms))
    for number in range(10):
        cluster.propose(1, b"%d" % number)
        cluster.advance(50)
    assert cluster.leader == 1
    cluster.assert_level()
    cluster.wall_skew_ms.update(dict.fromkeys((1, 2, 3), 0))
    cluster.advance(10)
    cluster.crash(1)
    cluster.run_until(lambda: cluster.leader in (2, 3), limit_ms=(ABSTAINS + 3) * T)
    cluster.propose(cluster.leader, b"x")
    cluster.settle()
    assert b"x" in cluster.member(2).payloads
    assert not any(cluster.facts_of(id_, StampRefused) for id_ in (1, 2, 3))


def test_a_member_that_is_alone_has_nobody_to_be_out_of_line_with() -> None:
    cluster = Cluster(1)
    cluster.wall_skew_ms[1] = HOUR_MS
    cluster.tick(1)
    cluster.elect(1)
    assert cluster[1].state.log.last_position == LogPosition(Term(1), Index(1))
