"""Liveness: once faults stop where a quorum stands, that quorum comes right, within a bound, and then everybody does.

First a *core* is chosen: a random quorum of the voters, and some of the learners. Inside it everything is healed; what
everybody else suffers becomes permanent, and who suffers nothing gets something: it is down, paused, without a working
disk, deaf or mute. Then the rest is healed, too. Both times: one leader, a command from every node is committed, all
are level, all reads are answered, nobody is elected any more.

A node that hears some of the core and is heard by some might keep it from agreeing for ever (the constrained election,
S27 in the list of scenarios): hence deaf or mute, not in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from kvnode.ids import NodeId, RequestId
from kvnode.raft.messages import PeerConnected
from kvnode.sim.core.machine import EXACT
from kvnode.sim.core.world import World

ATTEMPTS_MAX = 20
FOR_GOOD_MS = 1 << 60


def choose_core(world: World, rng: Random) -> list[NodeId]:
    configuration = world.ghost.configuration_at(len(world.ghost.committed))[1]
    if any(each != configuration for each in world.ghost.on_disks()):
        return world.members()  # a change under way may need anybody of either configuration
    voters = configuration.voters
    least = len(voters) // 2 + 1
    leading = [process.node for process in world.leaders()]
    # Who is in quarantine comes right with the others, but not without a quorum of them.
    damaged = [voter for voter in voters if world.machines[voter].is_quarantined]
    healthy = [voter for voter in voters if voter not in damaged]
    eligible = [voter for voter in healthy if voter not in leading]
    if len(eligible) < least or rng.random() < 0.5:
        eligible = healthy
    if len(eligible) < least:
        return world.members()
    core = rng.sample(eligible, rng.choice([least, least, len(eligible)]))
    return sorted(core + [other for other in (*damaged, *configuration.learners) if rng.random() < 0.5])


def make_peace(world: World, core: Sequence[NodeId], rng: Random) -> None:
    """No more faults inside the core, nothing but faults outside; what is under way still arrives, however late."""
    world.is_peace = True
    links = world.links
    links.drop = links.duplicate = links.bury = links.straggle = 0.0
    links.delay_ms = min(links.delay_ms, world.timeout // 10)
    world.disks.fsync_ms = min(world.disks.fsync_ms, world.timeout // 10)
    outside = [id_ for id_ in world.members() if id_ not in core]
    for id_ in world.ids:
        if id_ not in world.members():
            world.crash(id_)  # removed: the others do not speak with it any more
    links.mend([(a, b) for a in core for b in core])
    links.unclog(list(links.clogs))
    for id_ in core:
        _heal(world, id_)
    for id_ in outside:
        _break_for_good(world, id_, core, rng)


def _heal(world: World, id_: NodeId) -> None:
    machine = world.machines[id_]
    world.set_clock_rate(id_, EXACT)
    world.disks.free(machine)
    if machine.process is None:
        world.start(id_)
    else:
        world.resume(machine.process)
        world.put(id_, *(PeerConnected(peer) for peer in world.ids if peer != id_))  # whatever it was told before


def _break_for_good(world: World, id_: NodeId, core: Sequence[NodeId], rng: Random) -> None:
    process, links = world.machines[id_].process, world.links
    kinds = ["as it is", "down", "paused", "disk", "deaf", "mute"]
    if process is not None and process.raft.state.leadership is not None:
        kinds += ["disk", "disk", "disk"]  # the worst leader: its heartbeats need no disk
    match rng.choice(kinds):
        case "down":
            world.crash(id_)
        case "paused" if process is not None:
            process.is_paused = True
        case "disk":
            world.disks.stick(world.machines[id_], world.now_ms + FOR_GOOD_MS)
        case "deaf":
            links.cut([(other, id_) for other in core])
        case "mute":
            links.cut([(id_, other) for other in core])
        case _ if process is not None and not process.is_paused:  # nothing stops it, so all its links do
            links.cut([link for other in core for link in ((id_, other), (other, id_))])
        case _:
            pass
    if process is not None and not process.is_paused and process.is_alive:  # a half-cut node would be in between
        _complete_cut(world, id_, core)


def _complete_cut(world: World, id_: NodeId, core: Sequence[NodeId]) -> None:
    """If some link to or from the core is cut, all of that direction are."""
    cuts = world.links.cuts
    if any((other, id_) in cuts for other in core):
        world.links.cut([(other, id_) for other in core])
    if any((id_, other) in cuts for other in core):
        world.links.cut([(id_, other) for other in core])


def heal_everybody(world: World) -> None:
    world.links.heal()
    for id_ in world.members():
        _heal(world, id_)


def assert_recovery(world: World, nodes: Sequence[NodeId]) -> None:
    """I30 and I31 for `nodes`, all of which are healthy and connected."""
    timeout, ghost = world.timeout, world.ghost
    world.run_for(5 * timeout)  # stragglers arrive
    longest = max(machine.disk.last_index for machine in world.machines.values())
    round_trip = 2 * (2 * world.links.delay_ms + 2 * world.disks.fsync_ms + 1)
    read_back = timeout // 4  # what the world takes at most to read entries from a disk
    # At worst one entry a message, one message in flight, each read back from disk; and while a majority lags that far
    # behind, the leader may hold so much uncommitted that it refuses more.
    attempts = ATTEMPTS_MAX * (2 if world.shape.trims or world.shape.churn_every_ms else 1)
    until = world.now_ms + attempts * timeout + longest * (round_trip + read_back)
    wanted = [_propose_until_placed(world, id_, until) for id_ in nodes]
    nodes = _not_removed(world, nodes)
    while not _are_level(world, nodes):
        world.run_for(timeout)
        nodes = _not_removed(world, nodes)
        assert world.now_ms < until, ("I30: not level in peace", nodes)
    assert all(ghost.payloads.get(payload) == 1 for payload in wanted if payload), "I30: a command is missing"
    leaders_before = len(ghost.leaders)
    for id_ in nodes:
        world.read(id_)
    asked = world.last_number
    answered = ghost.reads_answered
    world.run_for(3 * timeout)
    waiting = [number for number in ghost.reads if number <= asked and world.reader[number] in nodes]
    assert not waiting, ("I30: reads in peace were not answered", waiting)
    assert ghost.reads_answered >= answered + len(nodes), ("I30: reads in peace failed", nodes)
    assert len(ghost.leaders) == leaders_before, "I31: an election in peace"
    assert len([process for process in world.leaders() if process.node in nodes]) == 1, ("I30: one leader", nodes)


def _not_removed(world: World, nodes: Sequence[NodeId]) -> list[NodeId]:
    """A change under way may commit at any time, and then nobody sends its member anything any more."""
    members = world.members()
    return [id_ for id_ in nodes if id_ in members]


def assert_one_link_does_not_matter(world: World, rng: Random) -> None:
    """I31: all are healthy, and one voter and the leader do not hear each other: nobody is elected for that.

    The others hear the leader, so they help nobody against it; neither now nor when the link is back.
    """
    voters = world.voters()
    leader = world.leaders()[0].node
    others = [voter for voter in voters if voter != leader]
    if len(voters) < 3:
        return
    cut_off = others[int(rng.random() * len(others))]
    links = [(leader, cut_off), (cut_off, leader)]
    terms = len(world.ghost.leaders)
    world.links.cut(links)
    world.run_for(8 * world.timeout)
    world.links.mend(links)
    world.run_for(3 * world.timeout)
    assert len(world.ghost.leaders) == terms, ("I31: an election because of one link", leader, cut_off)


def _propose_until_placed(world: World, id_: NodeId, until: int) -> bytes:
    """What was placed; nothing if the node has turned out to be removed."""
    while world.now_ms < until:
        if id_ not in world.members():
            return b""
        world.propose(id_, 1)
        payload = world.ghost.proposed[RequestId(world.last_number)]
        world.run_for(world.timeout)
        if payload in world.ghost.payloads:
            return payload
    raise AssertionError(("I30: no command gets through in peace", id_))


def _are_level(world: World, nodes: Sequence[NodeId]) -> bool:
    """All that their logs hold is committed, known to be, and equal; nobody is in quarantine any more."""
    if any(world.machines[id_].is_quarantined for id_ in nodes):
        return False
    ends = []
    for id_ in nodes:
        process, disk = world.machines[id_].process, world.machines[id_].disk
        assert process is not None, id_
        if not process.raft.last_index == process.raft.commit_index == disk.last_index:
            return False
        ends.append(process.raft.state.log.last_position)
    return all(end == ends[0] for end in ends)
