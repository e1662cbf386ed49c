"""Snapshots in the core: a log that begins later, and a state that comes whole (scenarios S45, S54–S57, S62; I17)."""

from __future__ import annotations

import random

import msgspec
import pytest

from kvnode.config import RaftSection
from kvnode.ids import NOBODY, Index, NodeId, Term
from kvnode.kv.members import AddMember, RemoveMember
from kvnode.raft.messages import (
    AppendEntries,
    AppendReply,
    Configuration,
    Fetched,
    LogPosition,
    LogTrimmed,
    PeerConnected,
    PeerDisconnected,
    SnapshotReceived,
    SnapshotSent,
    VoteReply,
    VoteRequest,
)
from kvnode.raft.output import ConfigurationChanged, Install, Output, SendSnapshot, SnapshotIgnored, SnapshotInstalled
from tests.raft.cluster import Cluster, made_entry

NEW = LogPosition(Term(1), Index(50))
CONFIGURATION = Configuration((NodeId(1), NodeId(2), NodeId(3)))


def behind(count: int = 5, *, trim: bool = True) -> Cluster:
    """Node 1 leads three; node 3 has missed `count` commands, which node 1's log does not hold any more."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.cut(3)
    cluster.propose(1, *(b"%d" % number for number in range(count)))
    cluster.settle()
    if trim:
        cluster.trim(1)
    return cluster


def asked(cluster: Cluster, leader: int = 1) -> list[NodeId]:
    return [each.peer for each in cluster.member(leader).snapshots]


def answers(output: Output) -> list[AppendReply]:
    return [send.message for send in output.sends if isinstance(send.message, AppendReply)]


# ── leader ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_trimmed_log_begins_later_and_keeps_what_is_known_at_its_base() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.change(1, AddMember("four:1", incarnation=4))
    cluster.settle()
    cluster.propose(1, b"a", b"b")
    cluster.settle()
    cluster.trim(1, 3)
    log = cluster[1].state.log
    assert cluster[1].base == log.base == LogPosition(Term(1), Index(3))
    assert (log.term_at(Index(2)), log.term_at(Index(3)), log.term_at(Index(4))) == (None, 1, 1)
    assert cluster[1].configuration.learners == (4,)
    assert cluster[1].configuration_index == 2
    cluster.step(1, LogTrimmed(LogPosition(Term(1), Index(2))))
    assert log.base.index == 3, "late news"
    cluster.trim(1)
    assert (log.base.index, log.last_index, log.last_term) == (4, 4, 1)
    cluster.propose(1, b"c")
    cluster.settle()
    cluster.assert_level()


def test_a_follower_behind_the_base_is_asked_for_once_and_gets_heartbeats_only() -> None:
    cluster = behind()
    cluster.heal()
    cluster.advance(1_000)
    progress = cluster[1].progress[NodeId(3)]
    assert cluster.member(1).snapshots == [SendSnapshot(NodeId(3), Index(2))]
    assert progress.state == "snapshot"
    cluster.propose(1, b"more")
    cluster.advance(500)
    assert asked(cluster) == [3]
    assert cluster[3].last_index == 1
    assert cluster.leader == 1
    assert (progress.in_flight, progress.window_bytes, progress.is_fetching) == (0, 0, False)


def test_s62_slow_follower_during_compaction() -> None:
    """The snapshot is installed, then appends go on; no second one."""
    cluster = behind()
    cluster.heal()
    cluster.advance(100)
    cluster.propose(1, b"meanwhile")
    cluster.settle()
    cluster.send_snapshots(1)
    cluster.advance(200)
    cluster.assert_level()
    assert cluster[1].progress[NodeId(3)].state == "replicate"
    assert asked(cluster) == []
    assert cluster.facts_of(3, SnapshotInstalled) == [SnapshotInstalled(NodeId(1), LogPosition(Term(1), Index(7)))]


def test_s62_a_follower_within_the_kept_tail_needs_none() -> None:
    cluster = behind(trim=False)
    cluster.trim(1, 2)
    cluster.heal()
    cluster.advance(200)
    cluster.assert_level(1, 2)
    assert asked(cluster) == [3]
    cluster.send_snapshots(1)
    cluster.advance(100)
    cluster.cut(3)
    cluster.propose(1, b"x", b"y", b"z")
    cluster.settle()
    cluster.trim(1, 6)
    cluster.heal()
    cluster.advance(100)
    assert asked(cluster) == []
    cluster.assert_level()


def test_a_failed_attempt_is_asked_for_anew_with_the_next_beat() -> None:
    cluster = behind()
    cluster.heal()
    cluster.advance(100)
    cluster.member(1).snapshots.clear()
    output = cluster.step(1, SnapshotSent(NodeId(3), Index(0)))
    assert output.snapshots == []
    cluster.advance(60)
    assert asked(cluster) == [3]
    cluster.step(1, SnapshotSent(NodeId(9), Index(4)))
    cluster.step(2, SnapshotSent(NodeId(3), Index(4)))


def test_a_lost_connection_does_not_end_the_attempt() -> None:
    cluster = behind()
    cluster.heal()
    cluster.advance(100)
    cluster.step(1, PeerDisconnected(NodeId(3)))
    cluster.step(1, PeerConnected(NodeId(3)))
    cluster.advance(200)
    assert asked(cluster) == [3]
    assert cluster[1].progress[NodeId(3)].state == "snapshot"


def test_a_late_rejection_does_not_end_the_attempt() -> None:
    cluster = behind()
    cluster.heal()
    cluster.advance(100)
    cluster.step(1, AppendReply(Term(1), NodeId(3), False, Index(1), hint_index=Index(0), life=0))
    assert cluster[1].progress[NodeId(3)].state == "snapshot"
    assert asked(cluster) == [3]


def test_a_quarantined_follower_behind_the_base_gets_one_too() -> None:
    """What it lost comes back as a snapshot; then it leaves quarantine by the same rule as ever."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.propose(1, b"a", b"b")
    cluster.settle()
    cluster.trim(1)
    cluster.damage(3, 1)
    cluster.advance(200)
    assert asked(cluster) == [3]
    assert cluster[3].is_quarantined
    cluster.send_snapshots(1)
    cluster.advance(300)
    cluster.assert_level()
    assert not cluster[3].is_quarantined


def test_entries_asked_for_before_a_trim_and_not_found_after_it() -> None:
    """The log is trimmed while the disk is read: nothing comes back, and the follower gets the state instead."""
    settings = RaftSection(commit_note_ms=0, log_cache_bytes=64 * 1024, append_bytes_max=4096)
    cluster = Cluster(3, settings=settings)
    cluster.elect(1)
    cluster.cut(3)
    for _ in range(150):
        cluster.propose(1, b"x" * 1_000)
        cluster.settle()
    cluster[1].forget(cluster[1].commit_index)
    raft = cluster[1]
    raft.step(cluster.now_ms, cluster.wall_ms(1), PeerConnected(NodeId(3)))
    progress = raft.progress[NodeId(3)]
    progress.become_probe(Index(2))  # it is known to hold the first entry
    [fetch] = raft.take_output().fetches
    assert (fetch.peer, fetch.first, progress.is_fetching) == (3, 2, True)
    cluster.trim(1)
    assert cluster.member(1).snapshots == [SendSnapshot(NodeId(3), Index(2))]
    output = cluster.step(1, Fetched(NodeId(3), ()))
    assert (output.snapshots, progress.state) == ([], "snapshot"), "asked for once"
    cluster.heal()
    cluster.send_snapshots(1)
    cluster.advance(500)
    cluster.assert_level()


# ── follower ────────────────────────────────────────────────────────────────────────────────────────


def test_an_install_waits_for_the_disk_and_nothing_is_applied_meanwhile() -> None:
    cluster = behind()
    cluster.slow_disks[3] = True
    snapshot = cluster.snapshot_of(1)
    output = cluster.step(3, snapshot)
    assert output.persist is not None
    assert output.persist.install == Install(snapshot.position, snapshot.time, keeps_log=False)
    assert (output.apply_to, output.installed) == (1, None)
    [send] = output.sends
    assert send.after == output.persist.number
    assert isinstance(send.message, AppendReply)
    assert (send.message.accepted, send.message.index) == (True, 6)
    assert cluster[3].commit_index == 6
    assert (cluster[3].durable_index, cluster[3].base) == (1, snapshot.position)
    cluster.heal()
    cluster.advance(100)
    assert cluster.member(3).outputs[-1].apply_to == 1
    cluster.complete_write(3)
    done = cluster.member(3).outputs[-1]
    assert (done.installed, done.apply_to) == (snapshot.position, 6)
    cluster.complete_writes(3)
    assert all(later.installed is None for later in cluster.member(3).outputs if later is not done)


def test_a_write_under_way_of_a_log_that_goes_proves_nothing() -> None:
    """Trap R2 across an install: the old log's write finishes first, and is none of the new one's."""
    cluster = Cluster(3, slow_disks=[3])
    cluster.step(3, append(1, 3))
    cluster.step(3, SnapshotReceived(NodeId(1), Term(2), NEW, (50 << 16) + 1, cluster.configuration))
    cluster.complete_write(3)
    assert cluster.member(3).disk.last_index == 3
    assert (cluster[3].durable_index, cluster[3].commit_index) == (0, 50)
    cluster.step(3, append(2, 2, 50, 1))
    for index in range(1, 51):
        cluster.committed[Index(index)] = made_entry(1, index)
    cluster.complete_write(3)
    assert (cluster[3].durable_index, cluster.member(3).outputs[-1].installed) == (50, NEW)
    cluster.complete_write(3)
    assert cluster[3].durable_index == 52
    assert (cluster.member(3).disk.base, len(cluster.member(3).disk.entries)) == (NEW, 2)


def installing() -> Cluster:
    """Node 3, in term 2, has taken a snapshot of node 1's up to 50 of term 1, which is not durable yet."""
    cluster = Cluster(3, slow_disks=[3])
    cluster.step(3, append(1, 3))
    cluster.step(3, SnapshotReceived(NodeId(1), Term(2), NEW, (50 << 16) + 1, cluster.configuration))
    for index in range(1, 51):
        cluster.committed[Index(index)] = made_entry(1, index)
    return cluster


def test_a_vote_during_an_install_leaves_behind_it() -> None:
    """It is judged by the log that will be, and by no other: not given to one who lacks what the snapshot holds."""
    cluster = installing()
    cluster.now_ms += 5_000
    behind = VoteRequest(Term(3), NodeId(2), last_term=Term(1), last_index=Index(49))
    [refusal] = cluster.step(3, behind).sends
    assert isinstance(refusal.message, VoteReply)
    assert not refusal.message.granted
    output = cluster.step(3, VoteRequest(Term(4), NodeId(2), last_term=Term(1), last_index=Index(50)))
    [grant] = output.sends
    assert isinstance(grant.message, VoteReply)
    assert (grant.message.granted, output.persist is not None and output.persist.number) == (True, grant.after)
    assert grant.after > cluster[3].state.writes.durable_number
    assert cluster[3].state.writes.is_installing
    cluster.restart(3)
    assert (cluster[3].term, cluster[3].state.vote, cluster[3].last_index) == (0, NOBODY, 0), "nothing of it happened"


def test_appends_during_an_install_wait_for_it() -> None:
    """What overlaps the snapshot matches, what follows is taken, and cut again by the next leader: above it only."""
    cluster = installing()
    [send] = cluster.step(3, append(2, 6, 46, 1)).sends
    assert isinstance(send.message, AppendReply)
    assert (send.message.accepted, send.message.index) == (True, 52)
    assert send.after == cluster[3].state.writes.last_number
    [send] = cluster.step(3, append(2, 0, 50, 1)).sends
    assert isinstance(send.message, AppendReply)
    assert send.message.index == 50
    assert cluster[3].durable_index < 50, "so the answer waits"
    assert send.after > cluster[3].state.writes.durable_number
    entries = (made_entry(3, 51),)
    later = AppendEntries(Term(3), NodeId(2), Index(50), Term(1), entries, Index(51))
    output = cluster.step(3, later)
    assert output.persist is not None
    assert (output.persist.truncate_from, output.persist.install) == (51, None)
    assert (cluster[3].last_index, cluster[3].commit_index, output.apply_to) == (51, 51, 0)
    cluster.committed[Index(51)] = entries[0]
    cluster.complete_writes(3)
    assert (cluster[3].durable_index, len(cluster.member(3).applied)) == (51, 51)
    assert cluster.member(3).disk.entries == list(entries)


def test_news_of_a_trim_of_the_log_before_an_install_is_void() -> None:
    cluster = installing()
    cluster.step(3, LogTrimmed(LogPosition(Term(1), Index(3))))
    assert cluster[3].base == NEW
    cluster.complete_writes(3)
    cluster.step(3, LogTrimmed(LogPosition(Term(1), Index(3))))
    assert (cluster[3].base, cluster[3].last_index) == (NEW, 50)


def test_a_late_write_of_the_log_that_goes_acknowledges_nothing_of_the_one_that_comes() -> None:
    """Trap R2 (ABA): the same index, once in the log that goes and once in the one that comes."""
    cluster = Cluster(3, slow_disks=[3])
    cluster.step(3, append(1, 60))
    cluster.step(
        3, SnapshotReceived(NodeId(2), Term(2), LogPosition(Term(2), Index(50)), (50 << 16) + 1, CONFIGURATION)
    )
    entries = tuple(made_entry(2, index) for index in range(51, 61))
    [send] = cluster.step(3, AppendEntries(Term(2), NodeId(2), Index(50), Term(2), entries, Index(0))).sends
    assert isinstance(send.message, AppendReply)
    assert send.message.index == 60
    assert send.after == 3
    cluster.complete_write(3)
    assert cluster.member(3).disk.last_index == 60, "of the old log"
    assert cluster[3].durable_index == 0


def test_a_member_in_quarantine_votes_only_when_the_install_is_durable() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.propose(1, b"a", b"b")
    cluster.settle()
    cluster.trim(1)
    cluster.damage(3, 1)
    cluster.slow_disks[3] = True
    cluster.advance(200)
    cluster.send_snapshots(1)
    while cluster.member(3).disk.queue and cluster.member(3).disk.queue[0].install is None:
        cluster.complete_write(3)
    cluster.advance(300)
    assert cluster[3].commit_index == 3
    assert cluster[3].is_quarantined, "everything is there, but not durable"
    cluster.complete_writes(3)
    cluster.advance(300)
    cluster.complete_writes(3)
    assert not cluster[3].is_quarantined


def append(term: int, count: int, prev: int = 0, prev_term: int = 0) -> AppendEntries:
    entries = tuple(made_entry(term, index) for index in range(prev + 1, prev + 1 + count))
    return AppendEntries(Term(term), NodeId(1), Index(prev), Term(prev_term), entries, Index(0))


def test_s55_snapshot_keeps_matching_suffix() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.cut(3, 2)
    cluster.propose(1, b"a", b"b", b"c")
    cluster.deliver()
    assert (cluster[3].last_index, cluster[3].commit_index) == (4, 1)
    cluster.settle()
    entries = list(cluster.member(3).disk.entries)
    snapshot = cluster.snapshot_of(1)
    earlier = msgspec.structs.replace(snapshot, position=LogPosition(Term(1), Index(3)), time=entries[2].time)
    cluster.restart(3)
    cluster.cut(3)
    output = cluster.step(3, earlier)
    assert output.persist is not None
    assert output.persist.install is not None
    assert output.persist.install.keeps_log
    assert (cluster[3].last_index, cluster[3].commit_index) == (4, 3)
    assert cluster.member(3).disk.entries == entries
    cluster.heal()
    cluster.advance(200)
    cluster.assert_level()


def test_s55_snapshot_drops_conflicting_log() -> None:
    """Entries of another leader, longer than the snapshot: all of them go, and count for nothing."""
    cluster = Cluster(3, logs={1: [2, 2], 2: [2, 2], 3: [1, 1, 1, 1]})
    cluster.cut(3)
    cluster.elect(1, settle=False)
    cluster.settle()
    snapshot = cluster.snapshot_of(1)
    cluster.step(3, snapshot)
    assert (cluster[3].last_index, cluster[3].commit_index, cluster[3].durable_index) == (3, 3, 3)
    assert cluster.member(3).disk.entries == []
    assert cluster[3].state.log.last_term == 3
    cluster.heal()
    cluster.advance(200)
    cluster.assert_level()


def test_s56_snapshot_older_than_commit_ignored() -> None:
    """It is answered with where the follower stands, so that the leader goes on with entries."""
    cluster = behind()
    old = cluster.snapshot_of(1)
    cluster.heal()
    cluster.advance(100)
    cluster.step(3, old)
    cluster.settle()
    progress = cluster[1].progress[NodeId(3)]
    assert progress.state == "replicate", "without SnapshotSent"
    output = cluster.step(3, old)
    assert output.facts == [SnapshotIgnored(NodeId(1), old.position, "it contains nothing that is not committed here")]
    assert output.persist is None
    [reply] = answers(output)
    assert (reply.accepted, reply.index) == (True, cluster[3].commit_index)
    cluster.step(1, SnapshotSent(NodeId(3), old.position.index))
    assert progress.state == "replicate"
    cluster.advance(200)
    cluster.assert_level()


def test_s56_one_of_an_old_term_is_answered_with_the_new_one() -> None:
    cluster = behind()
    old = cluster.snapshot_of(1)
    cluster.elect(2, settle=False)
    cluster.heal()
    cluster.advance(300)
    assert cluster[3].term > old.term
    output = cluster.step(3, old)
    assert [fact.reason for fact in output.facts if isinstance(fact, SnapshotIgnored)] == ["its sender's term is over"]
    [reply] = answers(output)
    assert reply.term == cluster[3].term


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"sender": NodeId(2)}, "its sender does not lead"),
        ({"position": LogPosition(Term(9), Index(9))}, "it ends in a later term than its sender's"),
    ],
)
def test_one_that_no_leader_can_have_sent_is_ignored(change: dict[str, object], reason: str) -> None:
    cluster = behind()
    cluster.heal()
    cluster.advance(100)
    output = cluster.step(3, msgspec.structs.replace(cluster.snapshot_of(1), **change))
    assert [fact.reason for fact in output.facts if isinstance(fact, SnapshotIgnored)] == [reason]


def test_s57_two_snapshots_in_quick_succession() -> None:
    """The second comes while the first is on its way to the disk: ignored; a newer one afterwards is taken."""
    cluster = behind()
    first = cluster.snapshot_of(1)
    cluster.propose(1, b"later")
    cluster.settle()
    second = cluster.snapshot_of(1)
    cluster.slow_disks[3] = True
    cluster.step(3, first)
    output = cluster.step(3, second)
    assert output.facts == [SnapshotIgnored(NodeId(1), second.position, "another one is being installed")]
    assert output.persist is None
    cluster.complete_writes(3)
    cluster.step(3, second)
    cluster.complete_writes(3)
    assert cluster[3].commit_index == second.position.index == len(cluster.member(3).applied)
    cluster.slow_disks.clear()
    cluster.heal()
    cluster.advance(200)
    cluster.assert_level()


def test_s45_snapshot_resets_stale_effective_config() -> None:
    """openraft #1808: a lagging node holds an uncommitted configuration that stands higher than the snapshot ends."""
    cluster = Cluster(3)
    cluster.elect(3)
    cluster.cut(3)
    cluster.change(3, RemoveMember(NodeId(3), force=True))
    cluster.propose(3, b"x")
    assert cluster[3].configuration.voters == (1, 2)
    cluster.elect(1, settle=False)
    cluster.settle()
    snapshot = cluster.snapshot_of(1)
    assert snapshot.position.index <= cluster[3].configuration_index
    cluster.step(3, snapshot)
    assert (cluster[3].configuration, cluster[3].configuration_index) == (cluster[1].configuration, 0)
    assert cluster[3].role == "follower"
    assert cluster.facts_of(3, ConfigurationChanged)[-1] == ConfigurationChanged(Index(0), cluster[1].configuration)
    cluster.restart(3)
    assert cluster[3].configuration == cluster[1].configuration
    cluster.heal()
    cluster.advance(300)
    cluster.assert_level()


def test_a_kept_suffix_keeps_its_newer_configuration() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.propose(1, b"a")
    cluster.settle()
    cluster.cut(3, 2)
    snapshot = cluster.snapshot_of(1)
    cluster.restart(3)
    cluster.change(1, AddMember("four:1", incarnation=4))
    cluster.deliver()
    cluster.take(lambda envelope: True)
    if cluster[3].commit_index < snapshot.position.index:
        cluster.step(3, snapshot)
    assert cluster[3].configuration.learners == (4,)


def test_configuration_comes_with_the_snapshot_and_survives_restarts() -> None:
    cluster = behind()
    cluster.change(1, AddMember("four:1", incarnation=4))
    cluster.settle()
    cluster.trim(1)
    cluster.heal()
    cluster.advance(100)
    assert asked(cluster) == [3]
    cluster.send_snapshots(1)
    cluster.advance(100)
    cluster.restart(3)
    assert (cluster[3].configuration, cluster[3].configuration_index) == (cluster[1].configuration, 7)
    assert cluster[3].committed_configuration == (7, cluster[1].configuration)


# ── many at random ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", range(30))
def test_s54_lab_snapshot_set(seed: int) -> None:
    """Commands, cuts, crashes, trimmed logs, snapshots late, twice, or never: agreement is kept (the lab's set)."""
    rng = random.Random(seed)
    cluster = Cluster(3, seed=seed)
    cluster.run_until(lambda: cluster.leader != 0)
    late: list[tuple[NodeId, SnapshotReceived]] = []
    for number in range(60):
        chance = rng.random()
        id_ = rng.randint(1, 3)
        raft, member = cluster.member(id_).raft, cluster.member(id_)
        if chance < 0.35 and cluster.leader:
            cluster.propose(cluster.leader, *(b"%d.%d" % (number, each) for each in range(rng.randint(1, 5))))
        elif chance < 0.5 and raft is not None and member.applied:
            if len(member.applied) > member.disk.base.index:
                cluster.trim(id_, rng.randint(member.disk.base.index + 1, len(member.applied)))
        elif chance < 0.6:
            cluster.heal()
            cluster.cut(id_)
        elif chance < 0.7:
            cluster.heal()
        elif chance < 0.78:
            if raft is None:
                cluster.start(id_)
            else:
                cluster.crash(id_)
        elif chance < 0.85 and late:
            to, snapshot = rng.choice(late)
            if cluster.member(to).raft is not None:
                cluster.step(to, snapshot)
        for sender in cluster.members:
            if cluster.member(sender).raft is None or not cluster.member(sender).applied:
                continue
            for each in cluster.member(sender).snapshots:
                late.append((each.peer, cluster.snapshot_of(sender)))
            if rng.random() < 0.5 and all(cluster.member(e.peer).raft for e in cluster.member(sender).snapshots):
                cluster.send_snapshots(sender)
            else:
                lost, cluster.member(sender).snapshots = cluster.member(sender).snapshots, []
                for each in lost:
                    cluster.step(sender, SnapshotSent(each.peer, Index(0)))
        cluster.advance(rng.randint(1, 200))
    cluster.heal()
    for id_, member in cluster.members.items():
        if member.raft is None:
            cluster.start(id_)
    for _ in range(40):
        cluster.advance(100)
        for sender in cluster.members:
            if cluster.member(sender).applied:
                cluster.send_snapshots(sender)
    cluster.propose(cluster.leader, b"last")
    cluster.advance(500)
    cluster.assert_level()
