"""Faults: what may strike a simulated cluster of cores, one function each, in one table.

A fault gets the world and a generator of its own, and sees to its own end: links are mended, processes restarted,
disks freed some time later, or there would soon be nothing left to go wrong. Which kinds a run knows is in its shape.
Lies are among them: a core may be told that a peer is gone which is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from random import Random

from kvnode.ids import NOBODY, NodeId
from kvnode.raft.messages import PeerConnected, PeerDisconnected, PeerRefused, TransferLeadership
from kvnode.sim.core.links import Link
from kvnode.sim.core.machine import EXACT, Process
from kvnode.sim.core.world import World

Fault = Callable[[World, Random], None]

YEAR_MS = 365 * 86_400_000


def one_of(rng: Random, ids: Sequence[NodeId]) -> NodeId:
    return ids[int(rng.random() * len(ids))]


def some_of(rng: Random, ids: Sequence[NodeId], count: int) -> list[NodeId]:
    return rng.sample(list(ids), min(count, len(ids)))


def leader_or_any(world: World, rng: Random) -> NodeId:
    leaders = world.leaders()
    return one_of(rng, [process.node for process in leaders] if leaders and rng.random() < 0.8 else world.ids)


def both_ways(left: Iterable[NodeId], right: Iterable[NodeId]) -> list[Link]:
    rights = list(right)
    return [link for a in left for b in rights if a != b for link in ((a, b), (b, a))]


# ── partitions ──────────────────────────────────────────────────────────────────────────────────────


def _cut(world: World, rng: Random, links: Sequence[Link]) -> None:
    """As often as not in one direction only, chosen for each pair."""
    if rng.random() < 0.3:
        links = [link for link in links if rng.random() < 0.5]
    world.links.cut(links)
    world.counts["links cut"] += len(links)
    world.in_trouble(1 + int(rng.random() * 5 * world.timeout), partial(world.links.mend, links))


def isolate(world: World, rng: Random) -> None:
    node = one_of(rng, world.ids)
    _cut(world, rng, both_ways([node], world.ids))


def isolate_leader(world: World, rng: Random) -> None:
    _cut(world, rng, both_ways([leader_or_any(world, rng)], world.ids))


def split(world: World, rng: Random) -> None:
    """Two groups, drawn node by node."""
    some = [node for node in world.ids if rng.random() < 0.5]
    _cut(world, rng, both_ways(some, [node for node in world.ids if node not in some]))


def scatter(world: World, rng: Random) -> None:
    """Several groups."""
    group = {node: int(rng.random() * 3) for node in world.ids}
    _cut(world, rng, [(a, b) for a in world.ids for b in world.ids if group[a] != group[b]])


def bridge(world: World, rng: Random) -> None:
    """Two halves that see each other only through one node."""
    order = some_of(rng, world.ids, len(world.ids))
    half = len(order) // 2
    _cut(world, rng, both_ways(order[:half], order[half + 1 :]))


def ring(world: World, rng: Random) -> None:
    """Everybody sees two neighbours only."""
    order = some_of(rng, world.ids, len(world.ids))
    _keep_only(world, rng, [(order[at - 1], order[at]) for at in range(len(order))])


def chain(world: World, rng: Random) -> None:
    """A ring that is open: the ends see one neighbour."""
    order = some_of(rng, world.ids, len(world.ids))
    _keep_only(world, rng, [(order[at - 1], order[at]) for at in range(1, len(order))])


def _keep_only(world: World, rng: Random, pairs: list[Link]) -> None:
    kept = [*pairs, *((b, a) for a, b in pairs)]
    _cut(world, rng, [(a, b) for a in world.ids for b in world.ids if a != b and (a, b) not in kept])


def one_way(world: World, rng: Random) -> None:
    """A node that hears but is not heard, or speaks but hears nothing; or one direction of one link."""
    node = leader_or_any(world, rng)
    others = [other for other in world.ids if other != node]
    if others and rng.random() < 0.4:
        others = [one_of(rng, others)]
    is_mute = rng.random() < 0.5
    links = [(node, other) if is_mute else (other, node) for other in others]
    world.links.cut(links)
    world.counts["links cut"] += len(links)
    world.in_trouble(1 + int(rng.random() * 5 * world.timeout), partial(world.links.mend, links))


def flapping_link(world: World, rng: Random) -> None:
    """Up and down, several times within an election timeout."""
    links = both_ways([one_of(rng, world.ids)], [one_of(rng, world.ids)])
    step = 1 + int(rng.random() * world.timeout / 2)
    for turn in range(6):
        world.in_trouble(2 * turn * step, partial(world.links.cut, links))
        world.in_trouble((2 * turn + 1) * step, partial(world.links.mend, links))
    world.counts["links flapping"] += 1


def swizzle(world: World, rng: Random) -> None:
    """Some nodes' links clog one after another and clear in another order (FoundationDB's swizzle-clogging)."""
    nodes = some_of(rng, world.ids, 1 + int(rng.random() * len(world.ids)))
    until = int((1 + 3 * rng.random()) * world.timeout)
    for node in nodes:
        links = both_ways([node], world.ids)
        world.in_trouble(int(rng.random() * until / 2), partial(world.links.clog, links))
        world.in_trouble(until // 2 + int(rng.random() * until / 2), partial(world.links.unclog, links))
    world.counts["links clogged"] += len(nodes)


def clog_link(world: World, rng: Random) -> None:
    link = (one_of(rng, world.ids), one_of(rng, world.ids))
    world.links.clog([link])
    world.counts["links clogged"] += 1
    world.in_trouble(1 + int(rng.random() * 3 * world.timeout), partial(world.links.unclog, [link]))


def reconnect(world: World, rng: Random) -> None:
    """A node is told that its connection to a peer is down, and later that it is up again."""
    node, peer = one_of(rng, world.ids), one_of(rng, world.ids)
    process = world.machines[node].process
    if peer == node or process is None:
        return
    world.counts["connections lost"] += 1
    world.put(node, PeerDisconnected(peer))
    world.in_trouble(int(rng.random() * 2 * world.timeout), partial(_put_alive, world, process, PeerConnected(peer)))


def _put_alive(world: World, process: Process, cause: PeerConnected) -> None:
    if process.is_alive:
        world.put(process.node, cause)


def resurrect(world: World, rng: Random) -> None:
    world.links.resurrect(1 + int(rng.random() * 20))


# ── processes ───────────────────────────────────────────────────────────────────────────────────────


def _crash(world: World, rng: Random, nodes: Sequence[NodeId], down_timeouts: float = 4.0) -> None:
    for node in nodes:
        world.crash(node)
        world.in_trouble(int(rng.random() * down_timeouts * world.timeout), partial(start_if_down, world, node))


def start_if_down(world: World, node: NodeId) -> None:
    if world.machines[node].process is None:
        world.start(node)


def crash_one(world: World, rng: Random) -> None:
    _crash(world, rng, [one_of(rng, world.ids)])


def crash_leader(world: World, rng: Random) -> None:
    _crash(world, rng, [leader_or_any(world, rng)])


def crash_now(world: World, rng: Random, node: NodeId) -> None:
    _crash(world, rng, [node])


def crash_minority(world: World, rng: Random) -> None:
    voters = world.voters()
    _crash(world, rng, some_of(rng, voters, max(1, (len(voters) - 1) // 2)))


def crash_majority(world: World, rng: Random) -> None:
    voters = world.voters()
    _crash(world, rng, some_of(rng, voters, len(voters) // 2 + 1), down_timeouts=2.0)


def crash_all(world: World, rng: Random) -> None:
    """A power cut."""
    _crash(world, rng, world.ids, down_timeouts=2.0)
    world.counts["power cuts"] += 1


def crash_loop(world: World, rng: Random) -> None:
    """A node that dies again as soon as it is up."""
    node = one_of(rng, world.ids)
    step = 1 + int(rng.random() * world.timeout / 2)
    for turn in range(5):
        world.in_trouble(2 * turn * step, partial(world.crash, node))
        world.in_trouble((2 * turn + 1) * step, partial(start_if_down, world, node))
    world.counts["crash loops"] += 1


def long_outage(world: World, rng: Random) -> None:
    _crash(world, rng, [one_of(rng, world.ids)], down_timeouts=20.0)


def rot(world: World, rng: Random) -> None:
    """An end of a log can no longer be read."""
    _rot(world, rng, leader_or_any(world, rng))


def rot_the_deciding(world: World, rng: Random) -> None:
    """A leader is left a bare quorum, and one of that loses what it acknowledged: its word was needed for commits."""
    voters = world.voters()
    leader = leader_or_any(world, rng)
    others = some_of(rng, [voter for voter in voters if voter != leader], len(voters))
    followers = others[: len(voters) // 2]
    if leader not in voters or not followers:
        return
    links = both_ways([leader, *followers], others[len(followers) :])
    world.links.cut(links)
    world.counts["links cut"] += len(links)
    world.in_trouble(int((1 + 4 * rng.random()) * world.timeout), partial(world.links.mend, links))
    world.in_trouble(int(rng.random() * world.timeout), partial(_rot, world, rng, one_of(rng, followers)))


def _rot(world: World, rng: Random, node: NodeId) -> None:
    """Often the damage begins where a write had cut entries off: those come back. Often it is found at once.

    The fault atlas: never more than a minority of the voters is in quarantine, or there would be nobody to restore it.
    """
    voters = world.voters()
    damaged = {voter for voter in voters if world.machines[voter].is_quarantined} | ({node} & set(voters))
    may_shrink = 1 if world.shape.churn_every_ms else 0
    if len(damaged) > (len(voters) - 1 - may_shrink) // 2:
        return
    records = world.machines[node].records
    cuts = [number for number, write in enumerate(records) if write.truncate_from]
    if cuts and rng.random() < 0.5:
        kept = cuts[int(rng.random() * len(cuts))]
    else:
        kept = len(records) - int(rng.random() ** 3 * (len(records) + 1))
    world.rot(node, kept)
    down_timeouts = 4.0 if rng.random() < 0.5 else 0.2
    world.in_trouble(int(rng.random() * down_timeouts * world.timeout), partial(start_if_down, world, node))


def _pause(world: World, rng: Random, nodes: Sequence[NodeId]) -> None:
    for node in nodes:
        process = world.machines[node].process
        if process is not None and not process.is_paused:
            world.pause(process, 1 + int(rng.random() ** 2 * 10 * world.timeout))


def pause_one(world: World, rng: Random) -> None:
    _pause(world, rng, [one_of(rng, world.ids)])


def pause_leader(world: World, rng: Random) -> None:
    """Its clients go on asking: what they are told after the pause must be true then."""
    node = leader_or_any(world, rng)
    process = world.machines[node].process
    _pause(world, rng, [node])
    if process is not None:
        world.propose(node, 1)
        world.read(node)


def pause_quorum(world: World, rng: Random) -> None:
    voters = world.voters()
    _pause(world, rng, some_of(rng, voters, len(voters) // 2 + 1))


def pause_all(world: World, rng: Random) -> None:
    _pause(world, rng, world.ids)


# ── disks and clocks ────────────────────────────────────────────────────────────────────────────────


def slow_disk(world: World, rng: Random) -> None:
    machine = world.machines[one_of(rng, world.ids)]
    machine.disk_slow_until = world.now_ms + 1 + int(rng.random() * 3 * world.timeout)
    world.counts["slow disks"] += 1


def stuck_disk(world: World, rng: Random) -> None:
    node = leader_or_any(world, rng) if rng.random() < 0.5 else one_of(rng, world.ids)
    world.disks.stick(world.machines[node], world.now_ms + 1 + int(rng.random() * 8 * world.timeout))
    world.counts["stuck disks"] += 1


def drift(world: World, rng: Random) -> None:
    node, most = one_of(rng, world.ids), world.shape.drift
    world.set_clock_rate(node, EXACT + int((2 * rng.random() - 1) * most * EXACT))
    world.counts["clock rates changed"] += 1


def wall_jump(world: World, rng: Random) -> None:
    """Of one node, by seconds or by a year, or of all at once as after a correction."""
    nodes = [one_of(rng, world.ids)]
    skew_ms = rng.randint(-10_000, 10_000)
    if rng.random() < 0.3:
        skew_ms = YEAR_MS if rng.random() < 0.5 else -YEAR_MS
    for node in nodes if rng.random() < 0.8 else world.ids:
        world.machines[node].wall_skew_ms = skew_ms
    world.counts["wall clock jumps"] += 1


# ── elections ───────────────────────────────────────────────────────────────────────────────────────


def refused(world: World, rng: Random) -> None:
    """A node is told that a peer's process is gone, its leader's more often than not; it need not be."""
    node, peer = one_of(rng, world.ids), one_of(rng, world.ids)
    process = world.machines[node].process
    if process is not None and rng.random() < 0.7:
        peer = process.raft.leader
    if peer not in (NOBODY, node):
        world.put(node, PeerRefused(peer))
        world.counts["lies of a dead peer"] += 1


def duel(world: World, rng: Random) -> None:
    """Everybody is told at once that the leader is gone, and votes travel slowly or not at all."""
    leader = leader_or_any(world, rng)
    for node in world.ids:
        if node != leader:
            world.put(node, PeerRefused(leader))
    voters = [voter for voter in world.voters() if voter != leader]
    links = both_ways(some_of(rng, voters, 1), some_of(rng, voters, 1))
    world.links.cut(links)
    world.in_trouble(1 + int(rng.random() * world.timeout), partial(world.links.mend, links))
    world.counts["duels"] += 1


def usurp(world: World, rng: Random) -> None:
    for process in world.leaders():
        usurp_leader(world, rng, process.node)


def usurp_leader(world: World, rng: Random, leader: NodeId) -> None:
    """The others lose the leader and are told it is gone, while it goes on with what its clients ask.

    Often one follower still hears it, best one whose disk is stuck: what it is sent it must not believe too early.
    """
    others = [other for other in world.ids if other != leader]
    if others and rng.random() < 0.6:
        stuck = [other for other in others if world.machines[other].disk_stuck_until > world.now_ms]
        others.remove(one_of(rng, stuck or others))
    links = both_ways([leader], others)
    world.links.cut(links)
    for other in others:
        world.put(other, PeerRefused(leader))
    world.propose(leader, int(rng.random() * 4))
    for quarter in range(5):  # until it steps down by itself
        world.in_trouble(
            quarter * world.timeout // 4 + int(rng.random() * world.timeout / 8), partial(world.read, leader)
        )
    world.in_trouble(world.timeout // 4 + int(rng.random() * 4 * world.timeout), partial(world.links.mend, links))
    world.counts["leaders usurped"] += 1


def delay_candidate(world: World, rng: Random, candidate: NodeId) -> None:
    """What a candidate sends waits, while the old leader goes on; when it arrives, nobody hears a leader any more.

    Voters then see a request that was right when it was made, and is not now.
    """
    others = [other for other in world.ids if other != candidate]
    links = [(candidate, other) for other in others]
    world.links.clog(links)
    wait = int(rng.random() * world.timeout)
    for process in world.leaders():
        world.propose(process.node, 1 + int(rng.random() * 2))
        for other in others:
            world.in_trouble(wait, partial(_tell_gone, world, other, process.node))
    world.in_trouble(wait, partial(world.links.unclog, links))
    world.counts["candidates delayed"] += 1


def _tell_gone(world: World, node: NodeId, peer: NodeId) -> None:
    if node != peer:
        world.put(node, PeerRefused(peer))


def transfer(world: World, rng: Random) -> None:
    for process in world.leaders():
        world.put(process.node, TransferLeadership(one_of(rng, [NOBODY, *world.ids])))
        world.counts["transfers asked for"] += 1


def transfer_and_strike(world: World, rng: Random) -> None:
    """A leader hands over, and something happens to it or to its target meanwhile."""
    transfer(world, rng)
    strike = (crash_leader, isolate_leader, usurp, pause_leader, duel)[int(rng.random() * 5)]
    world.in_trouble(int(rng.random() * (world.links.delay_ms + 2)), partial(strike, world, rng))


FAULTS: dict[str, Fault] = {
    fault.__name__: fault
    for fault in (
        isolate, isolate_leader, split, scatter, bridge, ring, chain, one_way, flapping_link, swizzle, clog_link,
        reconnect, resurrect, crash_one, crash_leader, crash_minority, crash_majority, crash_all, crash_loop,
        long_outage, pause_one, pause_leader, pause_quorum, pause_all, slow_disk, stuck_disk, drift, wall_jump,
        refused, duel, usurp, transfer, transfer_and_strike, rot,
        rot_the_deciding,
    )
}  # fmt: skip
