"""Scenarios of the core that are tables, counts or loops over seeds; those that are conversations are golden scripts.

docs/testing.md says for every scenario where it is proved.
"""

from __future__ import annotations

import random
from functools import partial
from itertools import combinations

import pytest

from kvnode.config import RaftSection
from kvnode.ids import NO_WRITE, NOBODY, Index, NodeId, Term
from kvnode.raft.core import Raft
from kvnode.raft.messages import (
    AppendEntries,
    AppendReply,
    Configuration,
    HardState,
    LogPosition,
    TransferLeadership,
)
from kvnode.raft.output import TransferAborted, TransferBegan
from kvnode.raft.state import Restored
from tests.raft.cluster import Cluster, made_entry


def max_term(cluster: Cluster) -> int:
    return max(cluster[id_].term for id_ in cluster.members)


def has_leader(cluster: Cluster) -> bool:
    return cluster.leader != NOBODY


def assert_commits(cluster: Cluster, payload: bytes, within_ms: int = 3_000) -> None:
    """A command given to the present leader is committed there within the time; tried again if the leader changes."""
    proposed = NOBODY

    def is_committed() -> bool:
        nonlocal proposed
        if cluster.leader not in (NOBODY, proposed):
            proposed = cluster.leader
            cluster.propose(proposed, payload)
        return proposed != NOBODY and payload in cluster.member(proposed).payloads

    cluster.run_until(is_committed, within_ms)


@pytest.mark.parametrize("voters", [1, 3, 5, 7])
def test_s01_initial_election_is_stable(voters: int) -> None:
    for seed in range(3):
        cluster = Cluster(voters, seed=seed)
        cluster.run_until(partial(has_leader, cluster), 2_000)
        cluster.advance(100)
        leader, term = cluster.leader, max_term(cluster)
        cluster.advance(3_000)
        assert (cluster.leader, max_term(cluster)) == (leader, term)
        cluster.assert_level()


def test_s03_many_elections() -> None:
    """Seven nodes, three of them cut off at random, ten times: the other four always agree on something new."""
    rng = random.Random(3)
    cluster = Cluster(7, seed=3)
    for round_ in range(10):
        away = rng.sample(range(1, 8), 3)
        cluster.cut(away)
        for one in away:
            cluster.cut(one)
        assert_commits(cluster, b"%d" % round_, 5_000)
        cluster.heal()
    cluster.advance(2_000)
    assert_commits(cluster, b"last")
    cluster.advance(500)
    cluster.assert_level()


def test_s10_dueling_candidates_always_settle() -> None:
    """Four nodes whose timers all fire at the same moment, from twenty seeds."""
    for seed in range(20):
        cluster = Cluster(4, seed=seed)
        cluster.now_ms += 290
        for id_ in cluster.members:
            cluster.tick(id_)
        cluster.run_until(partial(has_leader, cluster), 5_000)


@pytest.mark.parametrize(
    ("to", "again", "expected"),
    [
        (2, None, [TransferBegan(NodeId(2))]),
        (0, None, [TransferBegan(NodeId(2))]),  # the most caught-up voter: nobody else is as far
        (2, 2, [TransferBegan(NodeId(2))]),
        (2, 3, [TransferBegan(NodeId(2)), TransferAborted(NodeId(3), "another transfer is under way")]),
        (1, None, [TransferAborted(NodeId(1), "no such voter beside the leader")]),
        (4, None, [TransferAborted(NodeId(4), "no such voter beside the leader")]),  # a learner
        (9, None, [TransferAborted(NodeId(9), "no such voter beside the leader")]),
    ],
)
def test_s15_transfer_table(to: int, again: int | None, expected: list[object]) -> None:
    cluster = Cluster(3, learners=[4])
    cluster.elect(1)
    cluster.cut(3, 1)
    cluster.propose(1, b"a")
    cluster.settle()
    cluster.member(1).facts.clear()
    cluster.step(1, TransferLeadership(NodeId(to)))
    if again is not None:
        cluster.step(1, TransferLeadership(NodeId(again)))
    assert cluster.member(1).facts == expected
    if isinstance(expected[0], TransferBegan):
        [id_] = cluster.propose(1, b"refused")
        assert [refused.id for refused in cluster.member(1).refused] == [id_]
        cluster.settle()
        assert cluster.leader == 2


def test_s15_transfer_asked_of_a_follower_is_refused() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.step(2, TransferLeadership(NodeId(3)))
    assert cluster.member(2).facts[-1] == TransferAborted(NodeId(3), "not the leader")


@pytest.mark.parametrize(("prev", "count"), [(0, 3), (0, 5), (3, 1), (3, 5), (4, 0), (2, 9)])
def test_s25_append_below_compacted_index(prev: int, count: int) -> None:
    """openraft #511, etcd-raft #31: what lies below the base is committed and equal, whatever a stale append says."""
    log = [made_entry(term, index) for index, term in enumerate([1, 1, 1, 2, 2, 2, 2, 2, 3], 1)]
    raft = Raft(
        node=NodeId(2),
        settings=RaftSection(),
        rng=random.Random(1),
        restored=Restored(
            hard_state=HardState(Term(3)),
            configuration=Configuration((NodeId(1), NodeId(2), NodeId(3))),
            base=LogPosition(Term(2), Index(5)),
            term_runs=((Index(6), Term(2)), (Index(9), Term(3))),
            last_index=Index(9),
            tail=tuple(log[5:]),
            applied_index=Index(5),
            applied_time=0,
        ),
        now_ms=0,
    )
    entries = tuple(log[prev : prev + count])
    prev_term = log[prev - 1].term if prev else Term(0)
    raft.step(1, 1, AppendEntries(Term(3), NodeId(1), Index(prev), prev_term, entries, Index(9)))
    output = raft.take_output()
    assert raft.last_index == 9
    assert output.persist is None
    [send] = output.sends
    assert send.after == NO_WRITE
    reply = send.message
    assert isinstance(reply, AppendReply)
    assert reply.accepted
    assert max(5, prev + len(entries)) == reply.index == raft.commit_index


def test_s26_fast_backup_needs_few_round_trips() -> None:
    """Ten leaders of five entries each, none of them shared: a rejection skips a term, not an entry."""
    mine = [1] * 10 + [term for term in range(2, 22, 2) for _ in range(5)]
    theirs = [1] * 10 + [term for term in range(3, 21, 2) for _ in range(5)]
    cluster = Cluster(3, logs={1: mine, 2: theirs, 3: mine})
    cluster.elect(1, settle=False)
    rejections = 0
    while cluster.wire:
        rejections += sum(isinstance(e.message, AppendReply) and not e.message.accepted for e in cluster.wire)
        cluster.deliver()
    cluster.assert_level()
    assert 1 <= rejections <= 10, rejections


ALL = set(combinations(range(1, 6), 2))
TOPOLOGIES = {
    "bridge": ALL - {(1, 4), (1, 5), (2, 4), (2, 5)},
    "chain": {(1, 2), (2, 3), (3, 4), (4, 5)},
    "ring": {(1, 2), (2, 3), (3, 4), (4, 5), (1, 5)},
    "star": {(1, 3), (2, 3), (3, 4), (3, 5)},
    "two links down": ALL - {(2, 4), (3, 5)},
}


def keep_only(cluster: Cluster, links: set[tuple[int, int]]) -> None:
    for a, b in ALL - links:
        cluster.cut(a, b)


@pytest.mark.parametrize("leader", [1, 2, 3])
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_s27_partial_partitions(topology: str, leader: int) -> None:
    """A leader that a majority hears, at most two terms after things have settled, and commands commit."""
    cluster = Cluster(5, seed=leader)
    cluster.elect(leader)
    keep_only(cluster, TOPOLOGIES[topology])
    cluster.advance(3_000)
    term = max_term(cluster)
    cluster.advance(2_000)
    assert max_term(cluster) - term <= 2
    assert_commits(cluster, b"through")


def test_s27_constrained_election_is_safe_and_recovers() -> None:
    """The only node that a majority hears lacks what is committed: nobody may lead, until the links are back."""
    cluster = Cluster(5)
    cluster.elect(2)
    cluster.cut(1)
    cluster.propose(2, b"committed without 1")
    cluster.settle()
    cluster.heal()
    keep_only(cluster, {(1, 3), (1, 4), (1, 5)})
    cluster.advance(4_000)
    assert cluster.leader == NOBODY
    assert max_term(cluster) == 1, "pre-votes raise no term"
    cluster.heal()
    assert_commits(cluster, b"after")
    assert b"committed without 1" in cluster.member(cluster.leader).payloads


def test_s28_agreement_costs_a_message_each_way_and_a_note() -> None:
    """The lab's budget: to each follower one append with the entries, answered, and one note of the commit, not."""
    cluster = Cluster(3)
    cluster.elect(1)
    for payloads in ([b"x" * 5_000], [b"y"] * 10):
        cluster.propose(1, *payloads)
        messages, carried = 0, 0
        while cluster.wire:
            messages += len(cluster.wire)
            appends = [e.message for e in cluster.wire if isinstance(e.message, AppendEntries)]
            carried += sum(len(entry.payload) for append in appends for entry in append.entries)
            cluster.deliver()
        assert messages == 6
        assert carried == 2 * sum(map(len, payloads))


def test_s29_agreement_survives_restarts_of_one_of_a_few_and_of_all() -> None:
    rng = random.Random(29)
    cluster = Cluster(5, seed=29)
    expected: list[bytes] = []
    for round_ in range(12):
        expected.append(b"%d" % round_)
        assert_commits(cluster, expected[-1])
        count = rng.choice([1, 2, 5])
        for id_ in rng.sample(range(1, 6), count):
            cluster.restart(id_)
    cluster.run_until(partial(has_leader, cluster))
    assert_commits(cluster, b"last")
    cluster.advance(500)
    cluster.assert_level()
    assert list(dict.fromkeys(cluster.member(1).payloads)) == [*expected, b"last"]
