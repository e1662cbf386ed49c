"""From what the members of a cluster say to what the doctor says: one rule at a time, without a cluster."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from kvnode.clocks import hybrid
from kvnode.config import Config
from kvnode.doctor.cluster_facts import (
    ClockOffset,
    ClusterFacts,
    MemberFacts,
    MemberTold,
    PeerTold,
    SyncSpeed,
    Told,
)
from kvnode.doctor.cluster_rules import judge
from kvnode.doctor.findings import Finding

WALL_MS = 1_795_341_600_000
MEMBERS = tuple(MemberTold(id_, f"127.0.0.1:750{id_}", f"http://127.0.0.1:740{id_}") for id_ in (1, 2, 3, 4, 5))


def told(member: int, *, count: int = 3, leader: int | None = 1, **changes: Any) -> Told:
    sound = Told(
        id=member,
        cluster_id="00000000000000c1",
        role="leader" if member == leader else "follower",
        term=4,
        leader=leader,
        commit_index=100,
        applied_index=100,
        state_hash="aa",
        members=MEMBERS[:count],
        peers=tuple(PeerTold(id_, 100) for id_ in range(1, count + 1) if id_ != member) if member == leader else (),
        wal_bytes=64 << 20,
        store_bytes=20 << 20,
        version="1.0",
    )
    return msgspec.structs.replace(sound, **changes)


def up(said: Told, **changes: Any) -> MemberFacts:
    facts = MemberFacts(
        f"127.0.0.1:740{said.id}",
        said,
        hashes={said.applied_index: said.state_hash},
        clock=ClockOffset(-40, 40),
        sync=SyncSpeed(1_000, 1.0, 5.0),
    )
    return msgspec.structs.replace(facts, **changes)


def down(member: int) -> MemberFacts:
    endpoint = f"127.0.0.1:740{member}"
    return MemberFacts(endpoint, why=f"{endpoint}: cannot connect (refused)")


def judged(*members: MemberFacts, **changes: Any) -> tuple[Finding, ...]:
    facts = ClusterFacts(members=members, wall_ms=WALL_MS, version="1.0")
    return judge(msgspec.structs.replace(facts, **changes), Config())


def grave(*members: MemberFacts, **changes: Any) -> list[Finding]:
    return [finding for finding in judged(*members, **changes) if finding.level != "ok"]


def only(*members: MemberFacts, **changes: Any) -> Finding:
    (found,) = grave(*members, **changes)
    return found


def test_a_healthy_cluster_has_nothing_to_do():
    found = judged(up(told(1)), up(told(2)), up(told(3)))
    assert {finding.level for finding in found} == {"ok"}
    assert {finding.check for finding in found} == {
        "quorum",
        "leader",
        "lag",
        "divergence",
        "clock",
        "version",
        "log",
        "disk",
    }


def test_no_answer_at_all_cannot_be_read():
    found = judged(down(1), down(2))
    assert all(finding.is_unread and finding.level == "problem" for finding in found)
    assert len(found) == 2


@pytest.mark.parametrize(
    ("count", "lost", "level", "words"),
    [
        (3, 0, "ok", "1 more may fail"),
        (3, 1, "warning", "0 more may fail before writes stop"),
        (5, 1, "ok", "4 of 5 voters are up, 3 are needed: 1 more may fail"),
        (3, 2, "problem", "until 1 more are back"),
        (4, 0, "note", "4 voters survive no more failures than 3 do"),
        (1, 0, "ok", "0 more may fail"),
    ],
)
def test_how_many_more_may_fail(count: int, lost: int, level: str, words: str):
    gone = set(range(count, count - lost, -1))
    leader = told(1, count=count)
    peers = tuple(msgspec.structs.replace(peer, connected=peer.id not in gone) for peer in leader.peers)
    members = [
        up(msgspec.structs.replace(told(id_, count=count), peers=peers if id_ == 1 else ()))
        for id_ in range(1, count + 1)
        if id_ not in gone
    ]
    found = judged(*members, *map(down, gone))
    (quorum,) = [finding for finding in found if finding.check == "quorum"]
    assert quorum.level == level
    assert words in quorum.what
    missing = [finding for finding in found if finding.check == "reachable"]
    assert len(missing) == lost
    assert all(("--replace" in finding.do[-1]) is (level != "problem") for finding in missing)


def test_without_a_quorum_nobody_can_be_replaced():
    """Members change by an entry that a majority holds: what is left is to start the others, or a backup."""
    found = judged(up(told(1, leader=None)), down(2), down(3))
    assert not [step for finding in found for step in finding.do if "--replace" in step]
    (quorum,) = [finding for finding in found if finding.check == "quorum"]
    assert "no change of members until 1 more are back" in quorum.what
    assert '"Disaster recovery" in docs/operations.md' in quorum.what
    assert quorum.do[-1].startswith("kvnode snapshot restore")


def test_a_member_that_only_its_leader_hears_is_not_called_down():
    found = only(up(told(1)), up(told(2)), down(3))
    assert (found.level, found.check) == ("warning", "reachable")
    assert "its leader hears it" in found.what


def test_who_was_not_asked_is_not_called_down():
    found = only(up(told(1)), is_partial=True)
    assert (found.level, found.what) == ("note", "not asked, because of --only: 2, 3")


def test_an_endpoint_that_is_nobodys_is_told():
    stranger = MemberFacts("127.0.0.1:9", why="127.0.0.1:9: cannot connect")
    assert only(up(told(1)), up(told(2)), up(told(3)), stranger).what == "127.0.0.1:9: cannot connect"


def test_members_that_only_the_list_names_count():
    found = grave(up(told(1)), up(told(2)), up(told(3)), listed=MEMBERS[3:4])
    assert [(finding.level, finding.check) for finding in found] == [("problem", "reachable"), ("note", "quorum")]


def test_two_clusters_and_one_id_twice():
    other = told(2, cluster_id="00000000000000ff")
    assert any("different clusters" in finding.what for finding in grave(up(told(1)), up(other), up(told(3))))
    copy = up(told(3, applied_index=7, state_hash="bb"), endpoint="127.0.0.1:7409", hashes={})
    found = grave(up(told(1)), up(told(2)), up(told(3)), copy)
    assert [finding.level for finding in found if "call themselves 3" in finding.what] == ["problem"]


def test_leaders():
    nobody = [up(told(id_, leader=None)) for id_ in (1, 2, 3)]
    found = [finding for finding in grave(*nobody) if finding.check == "leader"]
    assert [(finding.level, finding.what) for finding in found] == [("problem", "no node that answers leads")]
    two = only(up(told(1)), up(told(2, role="leader")), up(told(3)))
    assert (two.level, two.check) == ("problem", "leader")
    assert "lead in one term" in two.what
    late = only(up(told(1)), up(told(2, role="leader", term=3, leader=2)), up(told(3)))
    assert (late.level, late.check) == ("warning", "leader")
    astray = only(up(told(1)), up(told(2, leader=3)), up(told(3)))
    assert "node 2 (127.0.0.1:7402) does not follow it" in astray.what
    terms = only(up(told(1)), up(told(2)), up(told(3, term=9)))
    assert "terms are 4, 9" in terms.what


@pytest.mark.parametrize(
    ("alarm", "command"),
    [
        ("peer 2: settings differ: raft.heartbeat_ms is 20 there, 50 here", "config --explain"),
        ("member 2 runs twice: start 3 has been seen from another copy of its data directory", "--replace"),
        ("in quarantine, not voting until peers have restored the log: x", "kvnode status"),
        ("the clock of node 2 is 900 ms ahead of this node's", "chronyc"),
        ("the disk has 5 bytes free, less than 268435456", "df -h"),
        ("something that a later version says", "kvnode status"),
    ],
)
def test_every_alarm_is_a_problem_with_something_to_do(alarm: str, command: str):
    found = only(up(told(1, alarms=(alarm,))), up(told(2)), up(told(3)))
    assert (found.level, found.check) == ("problem", "alarm")
    assert alarm in found.what
    assert command in found.do[0]


def test_readiness():
    assert only(up(told(1)), up(told(2, ready=False)), up(told(3))).level == "warning"
    assert only(up(told(1)), up(told(2, ready=False, quarantined=True)), up(told(3))).level == "problem"


def test_lag_and_learners():
    slow = up(told(2, applied_index=100), hashes={100: "aa"})
    found = only(
        up(told(1, commit_index=5_000, applied_index=5_000, peers=()), hashes={100: "aa"}),
        slow,
        up(told(3, commit_index=5_000, applied_index=5_000), hashes={100: "aa"}),
    )
    assert (found.level, found.check) == ("warning", "lag")
    assert "4900 committed entries to apply" in found.what
    learner = MemberTold(4, "127.0.0.1:7504", "http://127.0.0.1:7404", role="learner")
    leader = told(1, commit_index=5_000, applied_index=5_000, members=(*MEMBERS[:3], learner))
    leader = msgspec.structs.replace(leader, peers=(*leader.peers, PeerTold(4, 3_000, "snapshot")))
    others = [up(told(id_, commit_index=5_000, applied_index=5_000)) for id_ in (2, 3, 4)]
    found = only(up(leader), *others)
    assert (found.level, found.check) == ("note", "learner")
    assert "learner 4 has not caught up: 2000 entries behind (snapshot)" in found.what


def test_states_are_compared_at_one_entry():
    found = only(up(told(1)), up(told(2, state_hash="bb")), up(told(3)))
    assert (found.level, found.check) == ("problem", "divergence")
    assert "at entry 100: node 2 (127.0.0.1:7402) against node 1" in found.what
    busy = only(up(told(1)), up(told(2, applied_index=99, state_hash="bb")), up(told(3, applied_index=101)))
    assert (busy.level, busy.check) == ("note", "divergence")
    earlier = up(told(2, applied_index=99, state_hash="cc"), hashes={100: "bb", 99: "cc"})
    assert only(up(told(1)), earlier, up(told(3))).level == "problem"


@pytest.mark.parametrize(
    ("offset_ms", "level", "words"),
    [
        (2_000, "problem", "at least 1.9 s ahead of the others'"),
        (-350, "warning", "at least 275 ms behind the others'"),
    ],
)
def test_a_clock_that_differs_from_the_others(offset_ms: int, level: str, words: str):
    clock = ClockOffset(offset_ms - 75, offset_ms + 75)
    found = only(up(told(1)), up(told(2), clock=clock), up(told(3)))
    assert (found.level, found.check) == (level, "clock")
    assert words in found.what
    assert found.do[0] == "chronyc tracking"


def test_this_machines_clock_is_not_the_clusters_problem():
    clock = ClockOffset(60_000 - 40, 60_000 + 40)
    found = only(*[up(told(id_), clock=clock) for id_ in (1, 2, 3)])
    assert (found.level, found.check) == ("note", "clock")
    assert "this machine's clock differs" in found.what


def test_a_coarse_clock_proves_nothing():
    coarse = ClockOffset(-900, 900)
    assert grave(up(told(1)), up(told(2), clock=coarse), up(told(3))) == []


def test_stamps_ahead_of_every_clock():
    ahead = hybrid.to_text((WALL_MS + 90_000) << hybrid.COUNTER_BITS)
    found = only(up(told(1, hybrid_time=ahead)), up(told(2)), up(told(3)))
    assert (found.level, found.check) == ("warning", "clock")
    assert "90.0 s ahead" in found.what
    now = hybrid.to_text(WALL_MS << hybrid.COUNTER_BITS)
    assert grave(up(told(1, hybrid_time=now)), up(told(2, hybrid_time="rubbish")), up(told(3))) == []


def test_versions_and_feature_levels():
    found = only(up(told(1)), up(told(2, version="1.1")), up(told(3)))
    assert (found.level, found.check) == ("warning", "version")
    assert "node 2 (127.0.0.1:7402): 1.1" in found.what
    assert only(up(told(1)), up(told(2)), up(told(3)), version="2.0").what == "this program is 2.0"
    named = [msgspec.structs.replace(member, feature_level=min(2, member.id)) for member in MEMBERS[:3]]
    found = only(*[up(told(id_, members=tuple(named))) for id_ in (1, 2, 3)])
    assert found.what.startswith("feature levels differ: node 1: 1; node 2: 2; node 3: 2")


def test_space_logs_and_disks():
    found = only(up(told(1, free_bytes=1 << 20)), up(told(2)), up(told(3)))
    assert (found.level, found.check) == ("warning", "space")
    found = only(up(told(1, wal_bytes=9 << 30)), up(told(2)), up(told(3)))
    assert (found.level, found.check) == ("note", "log")
    found = only(up(told(1), sync=SyncSpeed(500, 10.0, 250.0)), up(told(2)), up(told(3)))
    assert (found.level, found.check) == ("warning", "disk")
