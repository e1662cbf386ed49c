"""What a node tells the timeline of itself: elections, quorums, snapshots, leases, repairs; in virtual time."""

from __future__ import annotations

import ast
import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

from kvnode.gossip.messages import Status
from kvnode.gossip.output import (
    DatagramsBlocked,
    GossipFact,
    MemberAlive,
    MemberDead,
    MemberForgotten,
    MemberLeft,
    MemberSuspected,
    Refuted,
    StoodStill,
)
from kvnode.ids import Index, NodeId, Term
from kvnode.kv.requests import LeaseGrant
from kvnode.node.node import Node
from kvnode.node.own_events import KINDS, OwnEvent, OwnEvents, of_damage, of_leases
from kvnode.raft.messages import Configuration, LogPosition
from kvnode.raft.output import (
    BecameCandidate,
    BecameFollower,
    BecameLeader,
    BecamePreCandidate,
    ClockAhead,
    ClockJumped,
    ConfigurationChanged,
    Fact,
    FollowerLost,
    LogTruncated,
    QuarantineEnded,
    SnapshotInstalled,
    SnapshotNeeded,
    StampRefused,
    VoteGranted,
)
from kvnode.sim.runtime.cluster import Cluster
from tests.node.plane_world import World, all_events, kinds, play
from tests.node.scenario import simulate
from tests.node.test_installs import SMALL, fall_behind

ROOT = Path(__file__).parents[2]
A, B, C = NodeId(1), NodeId(2), NodeId(3)
TERM = Term(4)

RAFT: list[tuple[Fact, OwnEvent | None]] = [
    (BecamePreCandidate(TERM, "r"), None),
    (BecameCandidate(TERM, "r"), ("election.started", {"term": 4, "reason": "r"})),
    (VoteGranted(TERM, B), ("vote.granted", {"term": 4, "candidate": 2})),
    (BecameLeader(TERM, 7), ("leader.elected", {"term": 4, "took_ms": 7})),
    (BecameFollower(TERM, NodeId(0), "r"), ("leader.stepped_down", {"term": 4, "leader": None, "reason": "r"})),
    (BecameFollower(TERM, B, "r"), ("follower.became", {"term": 4, "leader": 2, "reason": "r"})),
    (LogTruncated(Index(3), Index(9)), ("log.truncated", {"from_index": 3, "last_index": 9})),
    (SnapshotNeeded(B, Index(3)), ("snapshot.needed", {"member": 2, "index": 3})),
    (SnapshotInstalled(B, LogPosition(TERM, Index(3))), ("snapshot.installed", {"sender": 2, "index": 3})),
    (
        ConfigurationChanged(Index(3), Configuration((A, B), (C,))),
        ("members.changed", {"index": 3, "voters": [1, 2], "learners": [3]}),
    ),
    (FollowerLost(B, Index(9), Index(3)), ("log.lost", {"member": 2, "acknowledged": 9, "last_index": 3})),
    (QuarantineEnded(TERM, Index(3)), ("log.repaired", {"index": 3})),
    (ClockJumped(9), ("clock.jumped", {"by_ms": 9})),
    (ClockAhead(9), ("clock.ahead", {"ahead_ms": 9})),
    (StampRefused(B, 9), ("stamp.refused", {"leader": 2, "ahead_ms": 9})),
]

GOSSIP: list[tuple[GossipFact, OwnEvent | None]] = [
    (MemberAlive(B, 5, Status.UNKNOWN), None),
    (MemberSuspected(B, 5, C), ("member.suspect", {"member": 2, "number": 5, "by": 3})),
    (MemberAlive(B, 6, Status.SUSPECT), ("member.alive", {"member": 2, "number": 6, "was": "suspect"})),
    (MemberDead(B, 5, C), ("member.dead", {"member": 2, "number": 5})),
    (MemberLeft(B, 5), ("member.left", {"member": 2, "number": 5})),
    (Refuted(6, Status.DEAD, B), ("member.refuted", {"number": 6, "was": "dead", "by": 2})),
    (DatagramsBlocked(B), ("member.datagrams_blocked", {"member": 2})),
    (DatagramsBlocked(B), None),  # told once
    (StoodStill(200), None),
    (StoodStill(2_000), ("node.stood_still", {"ms": 2_000})),
    (MemberForgotten(B), None),
]


def test_each_fact_makes_its_event() -> None:
    events = OwnEvents()
    assert [events.of_raft(fact) for fact, _ in RAFT] == [event for _, event in RAFT]
    assert [events.of_gossip(fact) for fact, _ in GOSSIP] == [event for _, event in GOSSIP]
    events.removed((A, C))
    assert events.of_gossip(DatagramsBlocked(B)) is not None  # another one by that id


def test_a_quorum_that_was_never_there_is_not_lost() -> None:
    events = OwnEvents()
    told = [events.of_quorum(reaches) for reaches in (False, False, True, True, False, False, True)]
    assert told == [None, None, None, None, ("quorum.lost", {}), None, ("quorum.regained", {})]


@pytest.mark.parametrize(("count", "is_told"), [(1, False), (99, False), (100, True), (1_024, True)])
def test_only_many_leases_are_an_event(count: int, *, is_told: bool) -> None:
    assert of_leases(count) == (("leases.expired", {"count": count}) if is_told else None)


def test_every_kind_that_is_told_has_a_sentence_and_every_sentence_a_kind() -> None:
    told = {"user"}
    word = re.compile(r"[a-z]+\.[a-z_]+")
    for name in ("own_events", "available", "snapshot_sender", "backups"):
        tree = ast.parse((ROOT / f"kvnode/node/{name}.py").read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            match node:
                case ast.Call(
                    func=ast.Attribute(attr="record" | "_on_event"), args=[ast.Constant(value=str(kind)), *_]
                ):
                    told.add(kind)
                case ast.Tuple(elts=[ast.Constant(value=str(kind)), *_]) if word.fullmatch(kind):
                    told.add(kind)
                case ast.Constant(value=str(kind)) if name == "own_events" and word.fullmatch(kind):
                    told.add(kind)
    told |= set(re.findall(r'plane\.record\("([a-z.]+)"', (ROOT / "kvnode/plane.py").read_text(encoding="utf-8")))
    assert told == set(KINDS)
    assert all(sentence.endswith(".") for sentence in KINDS.values())


# ── running nodes ───────────────────────────────────────────────────────────────────────────────────


def listen(node: Node) -> list[tuple[str, dict[str, Any]]]:
    """What it tells from now on."""
    told: list[tuple[str, dict[str, Any]]] = []
    events = OwnEvents()

    def on_fact(fact: Fact) -> None:
        event = events.of_raft(fact)
        if event is not None:
            told.append(event)

    def on_event(kind: str, fields: dict[str, Any]) -> None:
        told.append((kind, fields))

    events._has_led = node.role == "leader"
    node._tell_fact = on_fact
    node._tell_event = node._snapshots.sender._on_event = node._backups._on_event = on_event
    return told


def test_a_leader_that_is_cut_off_steps_down_with_a_reason_and_has_no_quorum() -> None:
    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.elect()
        told = {member: listen(node) for member, node in cluster.nodes().items()}
        assert leader.reaches_quorum
        cluster.network.isolate(leader.id)
        await cluster.until(lambda: any(kind == "leader.elected" for all_ in told.values() for kind, _ in all_))
        await cluster.until(lambda: leader.role != "leader")
        _kind, fields = next(event for event in told[leader.id] if event[0] == "leader.stepped_down")
        assert fields["reason"]
        assert not leader.reaches_quorum
        others = [kind for member, all_ in told.items() if member != leader.id for kind, _ in all_]
        assert {"election.started", "vote.granted", "leader.elected"} <= set(others)
        cluster.network.heal()
        await cluster.until(lambda: leader.reaches_quorum)

    simulate(scenario)


def test_snapshots_are_told_by_who_takes_and_who_installs_them() -> None:
    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.elect()
        await asyncio.sleep(1.0)
        lost = next(id_ for id_ in cluster.nodes() if id_ != leader.id)
        told, theirs = listen(leader), listen(cluster.nodes()[lost])
        cluster.network.isolate(lost)
        await asyncio.sleep(1.0)
        await fall_behind(cluster, leader, lost)
        cluster.network.heal()
        await cluster.until(lambda: "snapshot.installed" in [kind for kind, _ in theirs], 60.0)
        await cluster.until(lambda: "snapshot.sent" in [kind for kind, _ in told])
        found = [event for event in told if event[0].startswith("snapshot")]
        assert [kind for kind, _ in found][:1] == ["snapshot.needed"]
        assert [kind for kind, _ in found][-2:] == ["snapshot.taken", "snapshot.sent"]
        assert all(fields["member"] == lost for _, fields in found)
        installed = next(fields for kind, fields in theirs if kind == "snapshot.installed")
        assert installed == {"sender": leader.id, "index": found[-1][1]["index"]}
        backup = await leader.backup()
        assert told[-1] == ("snapshot.taken", {"index": backup.index})
        backup.close()

    simulate(scenario, **SMALL)


def test_many_leases_that_end_at_once_are_told_by_the_leader_alone() -> None:
    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.elect()
        told = {member: listen(node) for member, node in cluster.nodes().items()}
        await asyncio.gather(*(cluster.kv(1).execute(LeaseGrant(2_000)) for _ in range(150)))
        assert leader.lease_count == 150
        await cluster.until(lambda: leader.lease_count == 0)
        await asyncio.sleep(2)
        expired = [
            (member, fields) for member, all_ in told.items() for kind, fields in all_ if kind == "leases.expired"
        ]
        assert expired == [(leader.id, {"count": 150})]
        await asyncio.gather(*(cluster.kv(1).execute(LeaseGrant(2_000)) for _ in range(50)))
        await cluster.until(lambda: leader.lease_count == 0)
        await asyncio.sleep(2)
        assert sum(kind == "leases.expired" for kind, _ in told[leader.id]) == 1

    simulate(scenario)


# ── planes ──────────────────────────────────────────────────────────────────────────────────────────


def test_quorum_and_suspicion_are_in_the_timeline_of_all() -> None:
    async def scenario(world: World) -> None:
        world.quorum = False
        await world.start()
        await asyncio.sleep(2)
        world.quorum = True
        await asyncio.sleep(2)
        world.kill(C)
        world.quorum = False
        await asyncio.sleep(40)
        world.quorum = True
        await world.start(3)
        await world.until(lambda: all(member.status == "alive" for member in world.planes[A].alive_members()))
        await asyncio.sleep(5)
        await world.level()
        found = await kinds(world.planes[C])
        assert found.count("quorum.lost") == found.count("quorum.regained") == 2
        assert found.index("quorum.lost") < found.index("quorum.regained")
        assert {"member.suspect", "member.dead", "member.alive"} <= set(found)
        assert found.index("member.suspect") < found.index("member.dead") < found.index("member.alive")
        assert set(found) <= set(KINDS)
        stories = [await all_events(plane) for plane in world.planes.values()]
        assert stories[0] == stories[1] == stories[2]

    play(scenario)


def test_facts_of_the_core_and_damage_become_events_and_fields_that_are_too_large_are_left_out() -> None:
    async def scenario(world: World) -> None:
        await world.start(1)
        plane = world.planes[A]
        plane.on_raft_fact(BecameLeader(TERM, 7))
        plane.on_raft_fact(BecamePreCandidate(TERM, "again"))
        plane.record(*of_damage("x" * 10_000))
        many = tuple(NodeId(number) for number in range(1, 2_000))
        plane.on_raft_fact(ConfigurationChanged(Index(3), Configuration(many)))
        await asyncio.sleep(0.1)
        found = {event.kind: event.fields for event in await all_events(plane)}
        assert found["leader.elected"] == b'{"term":4,"took_ms":7}'
        assert found["log.damaged"] == b'{"what":"%s"}' % (b"x" * 500)
        assert found["members.changed"] == b"{}"
        assert "election.started" not in found

    play(scenario, size=1)
