"""High-water mark on an idle line: who is told of a new commit index at once, who a little later (HW6, HW-T3)."""

from __future__ import annotations

import pytest

from kvnode.config import RaftSection
from kvnode.ids import NodeId
from kvnode.raft.messages import AppendEntries
from tests.raft.cluster import Cluster


@pytest.fixture
def cluster() -> Cluster:
    found = Cluster(3, settings=RaftSection(commit_note_ms=2))
    found.elect(1)
    found.advance(5)
    assert commits(found) == [1, 1, 1]
    return found


def commits(cluster: Cluster) -> list[int]:
    return [cluster[id_].commit_index for id_ in (1, 2, 3)]


def notes(cluster: Cluster) -> list[NodeId]:
    return [e.to for e in cluster.wire if isinstance(e.message, AppendEntries) and e.message.quiet]


def test_followers_that_wait_for_nothing_hear_within_the_patience(cluster: Cluster) -> None:
    cluster.propose(1, b"a")
    cluster.settle()
    assert commits(cluster) == [2, 1, 1]
    cluster.advance(3)
    assert commits(cluster) == [2, 2, 2], "about one round trip, not one heartbeat"


def test_the_next_append_carries_the_mark_and_saves_the_note(cluster: Cluster) -> None:
    cluster.propose(1, b"a")
    cluster.settle()
    cluster.propose(1, b"b")
    cluster.deliver()
    assert commits(cluster)[1:] == [2, 2]
    assert notes(cluster) == []


def test_a_follower_whose_client_wrote_hears_at_once(cluster: Cluster) -> None:
    cluster.propose(2, b"a")
    cluster.settle()
    assert commits(cluster) == [2, 2, 1]


def test_a_follower_whose_client_reads_hears_at_once(cluster: Cluster) -> None:
    cluster.propose(1, b"a")
    cluster.settle()
    number = cluster.read(3)
    cluster.settle()
    assert cluster.ready_at(3, number) == 2
    assert commits(cluster)[2] == 2


def test_a_note_is_answered_only_when_the_logs_do_not_meet(cluster: Cluster) -> None:
    cluster.propose(1, b"a")
    cluster.settle()
    cluster.advance(3, deliver=False)
    assert notes(cluster) == [2, 3]
    cluster.deliver()
    assert cluster.wire == []
