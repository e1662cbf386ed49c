"""The core as a whole: election, replication, commit, reads and forwarding in the plain case."""

from __future__ import annotations

import pytest

from tests.raft.cluster import Cluster


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7])
def test_initial_election(size: int) -> None:
    """Scenario S1: one leader, and then no election for ever (I31)."""
    cluster = Cluster(size)
    cluster.run_until(lambda: cluster.leader != 0)
    term = cluster[1].term
    cluster.advance(10_000)
    assert all(cluster[i].term == term for i in range(1, size + 1))
    assert all(cluster[i].leader == cluster.leader for i in range(1, size + 1))
    cluster.assert_level()


def test_a_proposal_is_applied_everywhere() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    (id_,) = cluster.propose(1, b"x")
    cluster.settle()
    assert [m.payloads for m in cluster.members.values()] == [[b"x"]] * 3
    assert [(p.id, p.index) for p in cluster.member(1).placed] == [(id_, 2)]


def test_a_follower_forwards_to_the_leader_who_places_it() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    ids = cluster.propose(2, b"x", b"y")
    assert [f.id for f in cluster.member(2).forwarded] == ids
    cluster.settle()
    assert [(p.id, p.index, p.term) for p in cluster.member(2).placed] == [(ids[0], 2, 1), (ids[1], 3, 1)]
    assert cluster.member(2).payloads == [b"x", b"y"]


def test_reads_on_leader_and_follower() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.propose(1, b"x")
    cluster.settle()
    at_leader, at_follower = cluster.read(1), cluster.read(3)
    assert cluster.ready_at(1, at_leader) is None
    cluster.settle()
    assert cluster.ready_at(1, at_leader) == cluster.ready_at(3, at_follower) == 2


def test_a_new_leader_takes_over_after_a_crash() -> None:
    """Scenario S2."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.propose(1, b"x")
    cluster.settle()
    cluster.crash(1)
    cluster.run_until(lambda: cluster.leader != 0)
    cluster.propose(cluster.leader, b"y")
    cluster.settle()
    cluster.start(1)
    cluster.advance(1_000)
    cluster.assert_level()
    assert cluster.member(1).payloads == [b"x", b"y"]
