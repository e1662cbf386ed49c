"""Replicated log: traps S18, S25, C4–C6, R3, S53–S56; scenarios S4, S19–S26, S28, S30."""

from __future__ import annotations

import random

import pytest

from kvnode.config import RaftSection
from kvnode.ids import Index, NodeId, RequestId, Term
from kvnode.raft.core import Raft
from kvnode.raft.messages import (
    AppendEntries,
    AppendReply,
    Configuration,
    Entry,
    HardState,
    LogPosition,
    PeerConnected,
    PeerDisconnected,
    Proposals,
    Proposed,
)
from kvnode.raft.output import LogTruncated, Output, SendSnapshot, SnapshotNeeded
from kvnode.raft.state import Restored
from tests.raft.cluster import Cluster, made_entry


def append(
    term: int, prev: tuple[int, int], entries: list[Entry] | tuple[Entry, ...] = (), commit: int = 0, sender: int = 1
) -> AppendEntries:
    return AppendEntries(
        Term(term), NodeId(sender), Index(prev[1]), Term(prev[0]), tuple(entries), Index(commit), read_round=4
    )


def reply_of(output: Output) -> AppendReply:
    (send,) = output.sends
    assert isinstance(send.message, AppendReply)
    assert send.message.read_round == 4, "every answer of this term echoes the round"
    return send.message


def terms_of(cluster: Cluster, id_: int) -> list[int]:
    return [entry.term for entry in cluster.member(id_).disk.entries]


def appends_to(output: Output, peer: int) -> list[AppendEntries]:
    return [s.message for s in output.sends if s.to == peer and isinstance(s.message, AppendEntries)]


# ── the follower ────────────────────────────────────────────────────────────────────────────────────


def test_an_empty_log_checks_the_previous_entry_too() -> None:
    """Traps S18, C4, RL1: no entry 6 on an empty log; the refusal says where the log ends."""
    cluster = Cluster(3)
    reply = reply_of(cluster.step(2, append(1, (1, 5), [made_entry(1, 6)])))
    assert (reply.accepted, reply.index, reply.hint_term, reply.hint_index, reply.last_index) == (False, 5, 0, 0, 0)
    assert cluster[2].last_index == 0
    assert reply_of(cluster.step(2, append(1, (0, 0), [made_entry(1, 1)]))).accepted


def test_a_refusal_names_the_term_and_where_it_begins() -> None:
    """RL3."""
    cluster = Cluster(3, logs={2: [1, 2, 2, 2]})
    reply = reply_of(cluster.step(2, append(5, (4, 4))))
    assert (reply.accepted, reply.index, reply.hint_term, reply.hint_index, reply.last_index) == (False, 4, 2, 2, 4)


@pytest.mark.parametrize(
    ("prev", "count"),
    [((0, 0), 0), ((0, 0), 2), ((0, 0), 4), ((1, 1), 1), ((2, 4), 0), ((2, 3), 1)],
)
def test_old_short_duplicate_and_empty_appends_cut_nothing(prev: tuple[int, int], count: int) -> None:
    """Trap C5, scenario S24, RP6."""
    cluster = Cluster(3, logs={2: [1, 2, 2, 2]})
    own = cluster.member(2).disk.entries
    reply = reply_of(cluster.step(2, append(2, prev, own[prev[1] : prev[1] + count])))
    assert (reply.accepted, reply.index) == (True, prev[1] + count)
    assert terms_of(cluster, 2) == [1, 2, 2, 2]


def test_a_proven_conflict_is_cut_from_the_first_mismatch() -> None:
    """Scenario S24: the equal part stays, the rest is replaced, with one write and a fact."""
    cluster = Cluster(3, logs={2: [1, 2, 2, 2]})
    fresh = [made_entry(2, 2), made_entry(3, 3), made_entry(3, 4), made_entry(3, 5)]
    output = cluster.step(2, append(3, (1, 1), fresh))
    assert reply_of(output).index == 5
    assert terms_of(cluster, 2) == [1, 2, 3, 3, 3]
    assert output.persist is not None
    assert output.persist.truncate_from == 3
    assert LogTruncated(Index(3), Index(4)) in output.facts


def test_a_committed_entry_is_never_cut() -> None:
    """I8, trap C5: a conflict at or below the commit index is a bug somewhere, and stops the node."""
    cluster = Cluster(3, logs={2: [1, 1]})
    cluster.step(2, append(1, (1, 2), commit=2))
    assert cluster[2].commit_index == 2
    assert reply_of(cluster.step(2, append(2, (0, 0), [made_entry(2, 1)]))).index == 2
    assert terms_of(cluster, 2) == [1, 1]


def test_an_append_below_the_base_is_taken_as_matching() -> None:
    """Scenario S25 (openraft #511): a stale append whose previous entry is gone deletes nothing."""
    base = LogPosition(Term(2), Index(10))
    restored = Restored(
        hard_state=HardState(Term(2)),
        configuration=Configuration((NodeId(1), NodeId(2), NodeId(3))),
        base=base,
        term_runs=((Index(11), Term(2)),),
        last_index=Index(12),
        tail=(made_entry(2, 11), made_entry(2, 12)),
        applied_index=Index(11),
        applied_time=0,
    )
    raft = Raft(node=NodeId(2), settings=RaftSection(), rng=random.Random(1), restored=restored, now_ms=0)
    raft.step(0, 0, append(2, (1, 3), [made_entry(1, 4), made_entry(2, 5)]))
    assert reply_of(raft.take_output()).accepted
    raft.step(0, 0, append(2, (1, 8), [made_entry(2, i) for i in range(9, 15)]))
    assert reply_of(raft.take_output()).index == 14
    assert raft.last_index == 14


def test_the_acknowledgement_waits_for_the_entries() -> None:
    """I9: for the write they are in, also when a duplicate arrives while it is still in flight."""
    cluster = Cluster(3, slow_disks=[2])
    output = cluster.step(2, append(1, (0, 0), [made_entry(1, 1)]))
    assert output.sends[0].after == 1
    cluster.step(2, append(1, (1, 1), [made_entry(1, 2)]))
    output = cluster.step(2, append(1, (0, 0), [made_entry(1, 1)]))
    assert output.persist is None
    assert output.sends[0].after == 1
    assert not cluster.wire
    cluster.complete_write(2)
    assert [e.message.index for e in cluster.wire if isinstance(e.message, AppendReply)] == [1, 1]


# ── divergence ──────────────────────────────────────────────────────────────────────────────────────


def test_figure_7_every_divergent_follower_is_brought_level() -> None:
    """Scenario S4: the leader of the paper's Figure 7 and its followers (a) to (f)."""
    logs = {
        1: [1, 1, 1, 4, 4, 5, 5, 6, 6, 6],
        2: [1, 1, 1, 4, 4, 5, 5, 6, 6],
        3: [1, 1, 1, 4],
        4: [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6],
        5: [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7],
        6: [1, 1, 1, 4, 4, 4, 4],
        7: [1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3],
    }
    cluster = Cluster(7, logs=logs)
    cluster[1].state.term = Term(7)
    cluster.elect(1, settle=False)
    cluster.settle()
    cluster.advance(1_000)
    assert cluster.leader == 1
    cluster.assert_level()
    assert terms_of(cluster, 7) == [*logs[1], 8]


def test_fast_back_up_skips_a_term_at_a_time() -> None:
    """Scenario S26: fifty conflicting entries a term, three terms: a few round trips, not 150."""
    common = [1] * 5
    logs = {1: common + [2] * 50 + [5] * 50, 2: common + [3] * 50 + [4] * 50, 3: common + [2] * 50 + [5] * 50}
    cluster = Cluster(3, logs=logs)
    cluster[1].state.term = Term(5)
    cluster.elect(1, settle=False)
    rejections = 0
    for _ in range(30):
        rejections += sum(isinstance(e.message, AppendReply) and not e.message.accepted for e in cluster.wire)
        cluster.deliver()
    cluster.advance(200)
    cluster.assert_level()
    assert 0 < rejections <= 4
    tried = [m.prev_index for o in cluster.member(1).outputs for m in appends_to(o, 2) if m.entries]
    assert tried == [105, 55, 5], "not a step at a time, and not back to the beginning either"


LEADERS = [[], [1], [1, 1, 2, 2, 6], [2] * 20 + [6], [1, 2, 3, 4, 5, 6, 6]]
FOLLOWERS = [[], [1], [1] * 40, [1, 1, 2, 2, 3], [1, 2, 3, 4, 5, 6], [3] * 9, [1, 1, 4, 5, 5, 5, 5], [5] * 30]


def are_possible(one: list[int], other: list[int]) -> bool:
    """Log Matching: an equal term at an equal index means equal prefixes."""
    return all(a != b or one[:i] == other[:i] for i, (a, b) in enumerate(zip(one, other, strict=False)))


@pytest.mark.parametrize(
    ("leader", "follower"), [(one, other) for one in LEADERS for other in FOLLOWERS if are_possible(one, other)]
)
def test_any_divergence_converges(leader: list[int], follower: list[int]) -> None:
    """Hints lead down and are never taken for a match (scenario S23)."""
    cluster = Cluster(3, logs={1: leader, 2: leader, 3: follower})
    cluster[1].state.term = Term(9)
    cluster.elect(1, settle=False)
    cluster.settle()
    cluster.advance(500)
    cluster.assert_level()
    assert terms_of(cluster, 3)[: len(leader)] == leader


def test_a_hint_is_not_a_match() -> None:
    """Scenario S23 (CCF #5325): a refusal with hint 3 does not replicate entry 3."""
    cluster = Cluster(3, logs={1: [1, 1, 1], 2: [1, 1, 1], 3: [1, 1, 1]})
    cluster.elect(1, settle=False)
    cluster.take(lambda _: False)
    for _ in range(2):
        cluster.deliver(lambda e: not isinstance(e.message, AppendEntries))
        cluster.deliver(lambda e: not isinstance(e.message, AppendEntries))
    cluster.take(lambda _: True)
    assert cluster[1].role == "leader"
    refusal = AppendReply(cluster[1].term, NodeId(2), accepted=False, index=Index(3), hint_index=Index(2))
    cluster.step(1, refusal)
    progress = cluster[1].progress[NodeId(2)]
    assert (progress.match_index, progress.next_index, progress.state) == (0, 3, "probe")
    assert cluster[1].commit_index == 0


# ── the pipeline ────────────────────────────────────────────────────────────────────────────────────


def test_many_steps_make_one_message_shared_by_all_followers() -> None:
    """Request batch; trap S53: what is queued is sent."""
    cluster = Cluster(3)
    cluster.elect(1)
    from_two = [cluster.last_id + 1, cluster.last_id + 2]
    batch = [Proposals(()), *(_proposals(i) for i in from_two)]
    output = cluster.feed(1, *batch)
    (to_two,), (to_three,) = appends_to(output, 2), appends_to(output, 3)
    assert to_two is to_three
    assert [e.payload for e in to_two.entries] == [b"%d" % i for i in from_two]
    assert output.persist is not None
    assert len(output.persist.entries) == 2


def _proposals(i: int) -> Proposals:
    return Proposals((Proposed(RequestId(i), b"%d" % i),))


def test_the_window_is_bounded_by_messages_and_bytes() -> None:
    """RP1, I28, scenario S30: full, then freed on every path."""
    settings = RaftSection(commit_note_ms=0, append_bytes_max=1024, window_messages_max=4, window_bytes_max=3 * 1024)
    cluster = Cluster(3, settings=settings)
    cluster.elect(1)
    output = cluster.feed(1, *(_proposals(i) for i in range(500)))
    assert len(appends_to(output, 2)) == 4
    progress = cluster[1].progress[NodeId(2)]
    assert progress.in_flight == 4
    cluster.step(1, PeerConnected(NodeId(2)))
    assert (progress.in_flight, progress.window_bytes, progress.state) == (0, 0, "probe")
    cluster.settle()
    cluster.advance(200)
    cluster.assert_level()
    assert all(p.in_flight == p.window_bytes == 0 for p in cluster[1].progress.values())


def test_a_large_entry_goes_alone() -> None:
    """RP5, trap C13: an entry over the limit is sent, by itself."""
    cluster = Cluster(3, settings=RaftSection(commit_note_ms=0, append_bytes_max=1024))
    cluster.elect(1)
    cluster.propose(1, b"a", b"B" * 5_000, b"c")
    cluster.settle()
    cluster.assert_level()
    sizes = [len(m.entries) for o in cluster.member(1).outputs for m in appends_to(o, 2) if m.entries]
    assert sizes == [1, 1, 1, 1]


def test_a_probe_sends_one_message_until_it_is_answered_or_the_next_heartbeat() -> None:
    """RP2."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.step(1, PeerConnected(NodeId(2)))
    cluster.take(lambda _: True)
    assert [len(m.entries) for m in appends_to(cluster.feed(1, _proposals(1)), 2)] == []
    cluster.now_ms = cluster[1].next_deadline_ms()
    assert [len(m.entries) for m in appends_to(cluster.tick(1), 2)] == [0, 1]
    assert [len(m.entries) for m in appends_to(cluster.feed(1, _proposals(2)), 2)] == []
    cluster.settle()
    assert cluster[1].progress[NodeId(2)].state == "replicate"
    cluster.assert_level()


def test_lost_appends_are_sent_again() -> None:
    """Traps S55, S56: dropped on the way there or the answer on the way back, heartbeats passing."""
    for lose in (AppendEntries, AppendReply):
        cluster = Cluster(3)
        cluster.elect(1)
        cluster.propose(1, b"x")
        if lose is AppendReply:
            cluster.deliver()
        assert cluster.take(lambda e, lose=lose: isinstance(e.message, lose) and 2 in (e.sender, e.to))  # type: ignore[misc]
        cluster.settle()
        cluster.advance(1_000)
        cluster.assert_level()


def test_a_lost_message_in_the_middle_is_noticed_by_the_next() -> None:
    """The receiver refuses work out of order (trap S56) and the sender goes back once."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.propose(1, b"x")
    cluster.take(lambda e: e.to == 2)
    cluster.propose(1, b"y")
    cluster.propose(1, b"z")
    cluster.settle()
    assert cluster[2].last_index == 4
    cluster.assert_level()


def test_a_slow_disk_of_a_follower_is_not_a_lost_message() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.slow_disks[2] = True
    cluster.propose(1, b"x")
    cluster.settle()
    cluster.advance(cluster.settings.election_timeout_ms - 10)
    assert cluster[1].progress[NodeId(2)].state == "replicate"
    cluster.complete_writes(2)
    cluster.settle()
    assert cluster[1].progress[NodeId(2)].in_flight == 0


def test_reordered_acknowledgements() -> None:
    """Scenario S22, trap R3: the later one first."""
    cluster = Cluster(3)
    cluster.elect(1)
    for payload in (b"x", b"y", b"z"):
        cluster.propose(1, payload)
    cluster.deliver()
    answers = cluster.take(lambda e: isinstance(e.message, AppendReply))
    cluster.hand(*reversed(answers), *answers)
    assert cluster[1].commit_index == 4
    cluster.settle()
    cluster.assert_level()


def test_a_disconnected_follower_costs_no_bulk() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.step(1, PeerDisconnected(NodeId(2)))
    assert not appends_to(cluster.feed(1, _proposals(1)), 2)
    cluster.cut(1, 2)
    cluster.advance(100)
    cluster.heal()
    cluster.step(1, PeerConnected(NodeId(2)))
    cluster.settle()
    cluster.advance(100)
    cluster.assert_level()


def test_entries_beyond_the_cache_are_read_back_from_disk() -> None:
    settings = RaftSection(commit_note_ms=0, log_cache_bytes=64 * 1024, append_bytes_max=4096, window_messages_max=3)
    cluster = Cluster(3, settings=settings)
    cluster.elect(1)
    cluster.crash(3)
    for _ in range(150):
        cluster.propose(1, b"x" * 1_000)
        cluster.settle()
    cluster[1].forget(cluster[1].commit_index)
    assert cluster[1].entries(Index(1), Index(5), 1 << 20) is None
    assert cluster[1].state.log.bytes_in_memory <= settings.log_cache_bytes
    cluster.start(3)
    cluster.step(1, PeerConnected(NodeId(3)))
    cluster.settle()
    cluster.advance(500)
    cluster.assert_level()
    assert any(output.fetches for output in cluster.member(1).outputs)


def test_forgetting_keeps_what_is_not_applied_or_not_durable() -> None:
    settings = RaftSection(commit_note_ms=0, log_cache_bytes=64 * 1024)
    cluster = Cluster(1, settings=settings)
    cluster.advance(10)
    for _ in range(100):
        cluster.propose(1, b"x" * 1_000)
    cluster[1].forget(Index(1))
    assert cluster[1].state.log.first_in_memory <= 2
    for _ in range(300):
        cluster.propose(1, b"x" * 1_000)
    cluster[1].forget(Index(1))
    assert cluster[1].state.log.bytes_in_memory <= 4 * settings.log_cache_bytes
    cluster.slow_disks[1] = True
    cluster.propose(1, b"x" * 1_000)
    cluster[1].forget(cluster[1].last_index)
    assert cluster[1].state.log.first_in_memory <= cluster[1].durable_index + 1


def test_a_follower_below_the_base_waits_for_a_snapshot() -> None:
    """Said once; heartbeats go on, so it does not campaign; appends do not."""
    restored = Restored(
        hard_state=HardState(Term(2)),
        configuration=Configuration((NodeId(1), NodeId(2))),
        base=LogPosition(Term(2), Index(10)),
        term_runs=(),
        last_index=Index(10),
        tail=(),
        applied_index=Index(10),
        applied_time=0,
    )
    cluster = Cluster(2)
    raft = cluster.members[NodeId(1)].raft = Raft(
        node=NodeId(1), settings=cluster.settings, rng=random.Random(1), restored=restored, now_ms=0
    )
    cluster.members[NodeId(1)].disk.hard_state = HardState(Term(2))
    member = cluster.member(1)
    member.disk.base = restored.base
    member.applied = member.stored = [made_entry(2, i) for i in range(1, 11)]
    cluster.member(1).observed = None
    cluster.elect(1)
    cluster.advance(3_000)
    assert raft.term == 3
    assert cluster.facts_of(1, SnapshotNeeded) == [SnapshotNeeded(NodeId(2), Index(1))]
    assert cluster.member(1).snapshots == [SendSnapshot(NodeId(2), Index(1))]
    assert raft.progress[NodeId(2)].state == "snapshot"
    assert cluster[2].last_index == 0


def test_entries_are_stamped_in_order_even_if_the_wall_clock_goes_back() -> None:
    """Design decision 4; traps S30, S35, S37: strictly increasing along the log, across leaders."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.propose(1, b"x", b"y")
    cluster.settle()
    cluster[2].state.clock.observe(0)
    cluster.now_ms -= 0
    cluster.crash(1)
    cluster.run_until(lambda: cluster.leader != 0)
    cluster[cluster.leader].step(cluster.now_ms, 5, _proposals(77))
    cluster.feed(cluster.leader)
    cluster.settle()
    times = [entry.time for entry in cluster.member(cluster.leader).disk.entries]
    assert times == sorted(times)
    assert len(dict.fromkeys(times)) == len(times)


def test_agreement_despite_failures() -> None:
    """Scenario S28: a follower fails and returns, a leader fails and returns, a majority fails."""
    cluster = Cluster(5)
    cluster.elect(1)
    cluster.crash(5)
    cluster.propose(1, b"a")
    cluster.settle()
    cluster.crash(4)
    cluster.propose(1, b"b")
    cluster.settle()
    cluster.crash(3)
    cluster.propose(1, b"c")
    cluster.settle()
    assert cluster.member(1).payloads == [b"a", b"b"], "no quorum, no commit"
    for id_ in (3, 4, 5):
        cluster.start(id_)
    cluster.advance(2_000)
    cluster.crash(cluster.leader)
    cluster.run_until(lambda: cluster.leader != 0)
    cluster.propose(cluster.leader, b"d")
    for id_ in range(1, 6):
        if cluster.member(id_).raft is None:
            cluster.start(id_)
    cluster.advance(2_000)
    cluster.assert_level()
    assert cluster.member(1).payloads == [b"a", b"b", b"c", b"d"]
