"""High-Water Mark: traps S19, S22–S25, C2, C5, C6, R1; scenarios S17, S19–S21; HW3, HW6."""

from __future__ import annotations

import random

from kvnode.ids import Index, NodeId, Term
from kvnode.raft.messages import AppendEntries, AppendReply
from tests.raft.cluster import Cluster, made_entry


def test_a_majority_includes_the_leader_itself() -> None:
    """Trap S22: three nodes need two copies, five need three."""
    for size, needed in ((3, 1), (5, 2)):
        cluster = Cluster(size)
        cluster.elect(1)
        cluster.propose(1, b"x")
        index = cluster[1].last_index
        for sender in range(2, 2 + needed):
            assert cluster[1].commit_index < index
            cluster.hand(*cluster.take(lambda e, s=sender: e.to == s))  # type: ignore[misc]
            cluster.deliver(lambda e: e.to == 1)
        assert cluster[1].commit_index == index


def test_four_voters_split_in_halves_commit_nothing() -> None:
    """Trap C2, MQ-T2."""
    cluster = Cluster(4)
    cluster.elect(1)
    cluster.cut([1, 2], [3, 4])
    cluster.propose(1, b"x")
    cluster.settle()
    assert cluster[1].commit_index == 1
    cluster.advance(3_000)
    assert all(member.payloads == [] for member in cluster.members.values())


def test_the_leader_counts_itself_only_when_its_own_write_is_durable() -> None:
    """Trap R1: one follower has it, the leader's fsync is still running: two copies of three are not yet there."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.cut(1, 3)
    cluster.slow_disks[1] = True
    cluster.propose(1, b"x")
    cluster.settle()
    assert cluster[1].progress[NodeId(2)].match_index == 2
    assert cluster[1].commit_index == 1
    cluster.complete_writes(1)
    assert cluster[1].commit_index == 2


def test_followers_alone_may_commit_but_nothing_is_applied_before_it_is_durable_here() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.slow_disks[1] = True
    cluster.propose(1, b"x")
    cluster.settle()
    assert cluster[1].commit_index == 2
    assert cluster.member(1).payloads == []
    cluster.complete_writes(1)
    assert cluster.member(1).payloads == [b"x"]


def test_figure_8_an_old_entry_is_not_committed_by_counting() -> None:
    """Trap S23, scenario S17: entry (2, 2) reaches a majority in term 4 and is not committed until (4, 3) is."""
    cluster = Cluster(5, logs={1: [1, 2], 2: [1, 2], 3: [1], 4: [1], 5: [1, 3]})
    cluster[1].state.term = cluster[1].state.term.__class__(3)
    cluster.cut(5)
    cluster.elect(1, settle=False)
    while cluster[1].role != "leader":
        cluster.deliver(lambda e: not isinstance(e.message, AppendEntries))
    cluster.take(lambda _: True)
    assert cluster[1].term == 4
    for sender in (2, 3):
        cluster.step(1, AppendReply(cluster[1].term, NodeId(sender), accepted=True, index=Index(2)))
    assert cluster[1].commit_index == 0
    for sender in (2, 3):
        cluster.step(1, AppendReply(cluster[1].term, NodeId(sender), accepted=True, index=Index(3)))
    assert cluster[1].commit_index == 3


def test_old_entries_do_not_stop_the_scan() -> None:
    """Scenario S19: old-term entries below an own-term one are committed with it."""
    cluster = Cluster(3, logs={1: [1, 2, 2, 3], 2: [1], 3: []})
    cluster.elect(1)
    assert cluster[1].commit_index == 5
    cluster.assert_level()


def test_a_follower_commits_only_what_this_message_verified() -> None:
    """Traps S19, S25, C6; scenario S20: a high mark meets a divergent suffix."""
    cluster = Cluster(3, logs={2: [1, 2, 2]})
    cluster.step(2, AppendEntries(Term(3), NodeId(1), Index(1), Term(1), (), Index(99)))
    assert cluster[2].commit_index == 1
    cluster.step(2, AppendEntries(Term(3), NodeId(1), Index(1), Term(1), (made_entry(3, 2),), Index(99)))
    assert cluster[2].commit_index == 2
    assert cluster[2].last_index == 2


def test_a_refused_append_moves_no_mark() -> None:
    """I8."""
    cluster = Cluster(3, logs={2: [1, 2]})
    cluster.step(2, AppendEntries(Term(3), NodeId(1), Index(2), Term(3), (), Index(2)))
    assert cluster[2].commit_index == 0


def test_the_mark_never_moves_back() -> None:
    """Scenario S21, HW3: a new leader, or an old message, names a lower one."""
    cluster = Cluster(3, logs={2: [1, 1]})
    cluster.step(2, AppendEntries(Term(1), NodeId(1), Index(2), Term(1), (), Index(2)))
    cluster.step(2, AppendEntries(Term(2), NodeId(3), Index(2), Term(1), (), Index(1)))
    assert cluster[2].commit_index == 2
    assert len(cluster.member(2).applied) == 2


def test_a_lagging_mark_truncates_nothing_at_a_restart() -> None:
    """Trap C5 (Kafka before KIP-101): what lies above the mark may be acknowledged, and stays."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.propose(1, b"x")
    cluster.deliver()
    cluster.deliver(lambda e: e.to == 1)
    assert cluster.member(1).payloads == [b"x"]
    cluster.crash(1)
    for id_ in (2, 3):
        cluster.restart(id_)
    cluster.run_until(lambda: cluster.leader != 0)
    cluster.advance(500)
    assert cluster.member(2).payloads == [b"x"]


def test_followers_learn_the_mark_at_once_on_an_idle_line() -> None:
    """HW6, HW-T3: without waiting for a heartbeat; one empty append a follower and output, no more."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.propose(1, b"x")
    cluster.settle()
    assert [cluster[i].commit_index for i in (1, 2, 3)] == [2, 2, 2]
    count = len(cluster.member(1).outputs)
    cluster.settle()
    cluster.propose(1, b"y")
    cluster.settle()
    told = [s for o in cluster.member(1).outputs[count:] for s in o.sends if isinstance(s.message, AppendEntries)]
    assert len([s for s in told if not s.message.entries]) == 2  # type: ignore[union-attr]


def test_the_mark_rides_on_entries_when_there_are_any() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.propose(1, b"x")
    cluster.deliver()
    answers = cluster.take(lambda e: isinstance(e.message, AppendReply))
    cluster.take(lambda _: True)
    raft = cluster[1]
    for envelope in answers:
        raft.step(cluster.now_ms, 0, envelope.message)
    output = cluster.step(1, answers[0].message)
    empty = [s for s in output.sends if isinstance(s.message, AppendEntries) and not s.message.entries]
    assert len(empty) == 2
    assert all(s.message.commit_index == 2 for s in empty)  # type: ignore[union-attr]


def test_isolated_leader_shows_nothing() -> None:
    """HW-T2: what it takes in alone is never applied, and is gone after healing."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.cut(1)
    cluster.propose(1, b"lost")
    cluster.advance(2_000)
    assert cluster.leader in (2, 3)
    cluster.propose(cluster.leader, b"kept")
    cluster.settle()
    cluster.heal()
    cluster.advance(2_000)
    cluster.assert_level()
    assert cluster.member(1).payloads == [b"kept"]


def test_commit_equals_brute_force_for_random_acknowledgements() -> None:
    """MQ's property on the whole rule: the largest N that a majority holds, if it is of the own term."""
    rng = random.Random(11)
    for _ in range(60):
        size = rng.choice([2, 3, 4, 5, 7])
        cluster = Cluster(size)
        cluster.elect(1)
        cluster.propose(1, *[b"x"] * 8)
        cluster.take(lambda _: True)
        held = dict.fromkeys(range(2, size + 1), 1)
        for _ in range(20):
            sender = rng.randint(2, size)
            index = rng.randint(0, 9)
            held[sender] = max(held[sender], index)
            reply = AppendReply(Term(1), NodeId(sender), accepted=True, index=Index(index), last_index=Index(9))
            cluster.step(1, reply)
            cluster.take(lambda _: True)
            copies = [9, *held.values()]
            brute = max(n for n in range(1, 10) if sum(c >= n for c in copies) > size // 2)
            assert cluster[1].commit_index == brute
