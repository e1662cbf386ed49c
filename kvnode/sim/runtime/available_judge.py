"""The end of a run for the plane that needs no quorum: a member alone still answers, then all are level, and judged.

What every node must have in the end: the same writes and, of these, the values that none of them replaces; the same
events; each other member alive; a final order of events of which whatever was ever shown as final is the beginning.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from kvnode.clocks.version_vector import Origin
from kvnode.gossip.finality import Finality
from kvnode.ids import NodeId
from kvnode.kv.available import TimelineEvent
from kvnode.sim.runtime.available_clients import AvailableClients, Stream, Writer, plane_of

if TYPE_CHECKING:
    from kvnode.sim.runtime.cluster import Cluster
    from kvnode.sim.runtime.nemesis import Nemesis

BOUND_S = 60.0
"""For all to be level, and alive: a suspicion may have to run out first, and those given up are asked now and then."""

ALONE = ("put", "get", "blind", "blind_delete", "list", "post")
ALONE_S = 2.0
"""A bound for each: the slowest disks of peace take 20 ms for a write, and an answer may wait for a few of them."""

Restart = Callable[[], None]
_Id = tuple[int, int, int, int]


async def answer_alone(
    cluster: Cluster, nemesis: Nemesis, clients: AvailableClients, core: list[NodeId], rng: random.Random
) -> None:
    """A member that nobody can reach answers everything all the same. For a core that is whole and in peace."""
    can = [m for m in core if m in cluster.members and m not in cluster.failures and cluster.members[m].plane]
    if len(core) < 2 or not can:
        return
    member = rng.choice(can)
    found = cluster.members[member]
    cluster.network.isolate(member)
    await asyncio.sleep(0.2)
    writer = Writer(clients, rng, has_token=False, timeouts_ms=(int(ALONE_S * 1e3),))
    for kind in ALONE:
        begun_s = cluster.loop.time()
        is_answered = await writer.request(member, kind, b"alone")
        if cluster.members.get(member) is not found or member in cluster.failures:
            break  # old damage ended it only now
        took_s = cluster.loop.time() - begun_s
        assert is_answered, ("V5: no answer without a quorum", member, kind, took_s, clients.counts)
    else:
        clients.count("alone")
    nemesis.heal(core)


async def settle(cluster: Cluster, clients: AvailableClients, core: list[NodeId], restart: Restart) -> None:
    """Raises: AssertionError."""
    assert cluster.ways is not None
    cluster.ways.is_mute = False
    planes = [member for member in core if cluster.configs[member].cluster.feature_level_max in (0, 3, 4)]
    if not planes:
        return

    def take_part() -> bool:
        restart()
        found = [cluster.members.get(member) for member in planes]
        return all(each is not None and each.plane is not None and not each.plane._driver._is_closed for each in found)

    await cluster.until(take_part, within_s=BOUND_S)
    begun_s = cluster.loop.time()
    stand: list[object] = []

    def are_level() -> bool:
        if not take_part():
            return False
        found = [plane_of(cluster.members[member]) for member in planes]
        stand[:] = [
            (
                plane._eventual.keyspace.vector,
                plane._eventual.keyspace.digest(),
                plane._story.timeline.vector,
                plane._story.timeline.digest(),
            )
            for plane in found
        ]
        return all(each == stand[0] for each in stand)

    await _until(cluster, are_level, lambda: ("V6: not level", stand))
    clients.counts["level_after_ms"] = round((cluster.loop.time() - begun_s) * 1e3)
    await _until(
        cluster,
        lambda: are_level() and not _strangers(cluster, planes),
        lambda: ("GO: not alive after peace", _strangers(cluster, planes), stand),
    )
    clients.counts["alive_after_ms"] = round((cluster.loop.time() - begun_s) * 1e3)
    voters = set(cluster.configuration.voters)
    everybody = voters | {member.id for member in cluster.configuration.members}
    # Who lost its store, or may have lost one, promises nothing before it has heard everybody, learners too.
    may_have_lost = any(_finality(cluster, member)._is_renewed for member in planes)
    if (everybody if may_have_lost else voters) <= set(planes):
        goal = max((event.lamport for event in clients.posted if event.member in planes), default=0)
        await _until(
            cluster,
            lambda: are_level() and min(_watermarks(cluster, planes)) >= goal,
            lambda: ("LC7: the final order stands still", goal, _watermarks(cluster, planes)),
        )
        clients.count("final_orders")
    _judge_keys(cluster, planes)
    await _judge_timeline(cluster, clients, planes)


async def _until(cluster: Cluster, condition: Callable[[], bool], what: Callable[[], object]) -> None:
    try:
        await cluster.until(condition, within_s=BOUND_S)
    except AssertionError as error:
        raise AssertionError(what()) from error


def _finality(cluster: Cluster, member: NodeId) -> Finality:
    return plane_of(cluster.members[member])._story.timeline._finality


def _watermarks(cluster: Cluster, planes: list[NodeId]) -> list[int]:
    return [_finality(cluster, member).watermark for member in planes]


def _strangers(cluster: Cluster, planes: list[NodeId]) -> list[tuple[NodeId, NodeId, str]]:
    """(who, of whom, what) where one member does not hold another of the core for alive."""
    return [
        (member, other.id, other.status)
        for member in planes
        for other in plane_of(cluster.members[member]).alive_members()
        if other.id in planes and other.status != "alive"
    ]


def _judge_keys(cluster: Cluster, planes: list[NodeId]) -> None:
    dots = cluster.dots
    for member in planes:
        keyspace = plane_of(cluster.members[member])._eventual.keyspace
        for key in sorted(dots.by_key):
            state = keyspace.read(key)
            siblings = [] if state is None else [(sibling.dot, sibling.value) for sibling in state.siblings]
            dots.judge_read(key, siblings, keyspace.vector if state is None else keyspace.vector.merge(state.context))
    missing = dots.missing(plane_of(cluster.members[planes[0]])._eventual.keyspace.vector, planes)
    assert not missing, ("V7: acknowledged writes are lost", missing)


async def _judge_timeline(cluster: Cluster, clients: AvailableClients, planes: list[NodeId]) -> None:
    everything = [await _read_all(clients, member, Stream(is_stable=False)) for member in planes]
    final = [await _read_all(clients, member, Stream(is_stable=True)) for member in planes]
    for stream in clients.streams:
        await _read_all(clients, planes[0], stream)
    good = {*planes}  # asked for membership only

    def counts(event: TimelineEvent) -> bool:
        """Of a member that is still there, with the store that it had."""
        return event.member in good and Origin(event.member, event.incarnation) not in cluster.dots.lost

    events = [_id(event) for event in everything[0].events]
    assert events == sorted(set(events)), ("LC2: not in one order", events)
    for member, stream in zip(planes, everything, strict=True):
        found = [_id(event) for event in stream.events]
        assert found == events, ("LC6: other events", planes[0], member, _difference(found, events))
    held = set(events)  # asked for membership only
    for event in clients.posted:
        assert not counts(event) or _id(event) in held, ("LC6: an acknowledged event is lost", event)
    # The longest may have been read of a member that is gone, and was further than those that are left.
    stable = [*final, *(stream for stream in clients.streams if stream.is_stable)]
    order = max(([_id(event) for event in stream.events if counts(event)] for stream in stable), key=len)
    for stream in [*final, *clients.streams]:
        found = [_id(event) for event in stream.events if counts(event)]
        assert len(found) == len(set(found)), ("LC7: a reader was shown an event twice", found)
        if stream.is_stable:
            assert found == order[: len(found)], ("LC7: another final order", _difference(found, order))
        else:
            lacking = [each for each in events if each not in set(found) and _counts(each, good, cluster)]
            assert not lacking, ("LC6: a reader was not shown", lacking)
            assert all(each in held for each in found), ("LC6: an event that was shown is gone", found)
    _judge_causes(everything[0].events)


def _judge_causes(events: Sequence[TimelineEvent]) -> None:
    """Of one origin, later events have later times and later numbers, in no earlier life."""
    last: dict[Origin, TimelineEvent] = {}
    for event in events:
        origin = Origin(event.member, event.incarnation)
        before = last.get(origin)
        assert before is None or (before.seq < event.seq and before.boot <= event.boot), ("LC1", before, event)
        last[origin] = event


async def _read_all(clients: AvailableClients, member: NodeId, stream: Stream) -> Stream:
    while await clients.read_on(member, stream):
        pass
    return stream


def _id(event: TimelineEvent) -> _Id:
    return event.lamport, event.member, event.incarnation, event.seq


def _counts(each: _Id, good: set[NodeId], cluster: Cluster) -> bool:
    _, member, incarnation, _ = each
    return member in good and Origin(NodeId(member), incarnation) not in cluster.dots.lost


def _difference(found: list[_Id], expected: list[_Id]) -> object:
    at = next((n for n, (one, other) in enumerate(zip(found, expected, strict=False)) if one != other), -1)
    if at < 0:
        return {"lengths": (len(found), len(expected))}
    return {"at": at, "found": found[at : at + 5], "expected": expected[at : at + 5]}
