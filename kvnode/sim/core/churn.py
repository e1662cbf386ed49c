"""Churn: members that come and go, logs that lose their prefix, and snapshots that are late, lost, or come twice.

A member that a committed configuration names for the first time is a new machine with an empty log. One that is removed
stays up and talks on, as one would whom nobody told; only peace ends it, as the handshake of a real cluster does.
Nobody's membership changes while a log is damaged: the fault atlas leaves a healthy quorum, and so must this.
A snapshot is what its sender has applied: a position, and the configuration there, which is the observer's business to
know. Everything here draws from generators of its own, so that a world without it is what it would be anyway.
"""

from __future__ import annotations

from functools import partial
from random import Random

from kvnode.ids import Index, NodeId, RequestId
from kvnode.kv.members import AddMember, MemberChange, PromoteMember, RemoveMember, UpdateMember
from kvnode.raft.messages import EntryKind, LogPosition, LogTrimmed, Proposals, Proposed, SnapshotReceived, SnapshotSent
from kvnode.raft.output import SendSnapshot
from kvnode.raft.reconfiguration import encode_change
from kvnode.sim.core.machine import Process
from kvnode.sim.core.world import World

MEMBERS_MAX = 9
TRIMMED = 0.05
"""Of a node's outputs, in a world that trims."""


def change_members(world: World, rng: Random) -> None:
    """Some change, proposed at some node; most are possible, some are forced, some must be refused."""
    configuration = world.ghost.configuration_at(len(world.ghost.committed))[1]
    voters, learners = configuration.voters, configuration.learners
    anybody = (*voters, *learners)
    if any(machine.is_quarantined for machine in world.machines.values()):
        return  # a quorum needs those who are left, and `force` does not ask
    is_forced = rng.random() < 0.2
    chance = rng.random()
    change: MemberChange
    if chance < 0.4 and len(anybody) < MEMBERS_MAX:
        number = int(rng.random() * 1_000_000) + 1
        change = AddMember(f"host{number}:1", incarnation=number, promote=rng.random() < 0.5)
    elif chance < 0.7 and learners:
        change = PromoteMember(learners[int(rng.random() * len(learners))], force=is_forced)
    elif chance < 0.95:
        leading = [process.node for process in world.leaders()]
        ids = leading if leading and rng.random() < 0.4 else anybody
        change = RemoveMember(ids[int(rng.random() * len(ids))], force=is_forced)
    else:
        change = UpdateMember(anybody[int(rng.random() * len(anybody))], f"host{int(rng.random() * 1_000_000)}:1")
    leading = [process.node for process in world.leaders()]
    at = leading[int(rng.random() * len(leading))] if leading else anybody[0]
    propose_change(world, at, change)


def propose_change(world: World, id_: NodeId, change: MemberChange) -> RequestId:
    world.last_number += 1
    number = RequestId(world.last_number)
    world.counts["changes of members asked"] += 1
    world.ghost.changes[number] = True
    payload = encode_change(change)
    world.put(id_, Proposals((Proposed(number, payload, kind=EntryKind.CONFIGURATION.value),)))
    return number


def maybe_trim(world: World, process: Process, rng: Random) -> None:
    """The log loses what the store has, or some of it."""
    machine = process.machine
    disk = machine.disk
    most = machine.stored - disk.base.index
    if most <= 0 or rng.random() >= TRIMMED:
        return
    index = disk.base.index + 1 + int(rng.random() * most)
    entry = disk.entry(index)
    assert entry is not None, ("I19", process.node, index)
    position = LogPosition(entry.term, entry.index)
    disk.trim(position)
    world.counts["logs trimmed"] += 1
    world.put(process.node, LogTrimmed(position))


def send_snapshot(world: World, process: Process, asked: SendSnapshot, rng: Random) -> None:
    """It takes a while; until it leaves, the sender goes on applying."""
    world.at(int(rng.random() * world.timeout), partial(_leave, world, process, asked.peer, rng))


def _leave(world: World, process: Process, peer: NodeId, rng: Random) -> None:
    if not process.is_alive:
        return
    index = process.applied
    if not index or (not world.is_peace and rng.random() < 0.3):
        world.counts["snapshots failed"] += 1
        world.put(process.node, SnapshotSent(peer, Index(0)))
        return
    entry = world.ghost.committed_entry(index)
    made_at, configuration = world.ghost.configuration_at(index)
    position = LogPosition(entry.term, entry.index)
    snapshot = SnapshotReceived(process.node, process.raft.term, position, entry.time, configuration, made_at)
    world.at(int(rng.random() * world.timeout), partial(_arrive, world, process, peer, snapshot, rng))
    if not world.is_peace and rng.random() < 0.3:  # a copy, much later
        world.at(int(rng.random() * 10 * world.timeout), partial(_deliver, world, peer, snapshot))


def _arrive(world: World, process: Process, peer: NodeId, snapshot: SnapshotReceived, rng: Random) -> None:
    is_cut = (process.node, peer) in world.links.cuts
    is_there = peer in world.machines and world.machines[peer].process is not None and not is_cut
    if is_there:
        world.counts["snapshots delivered"] += 1
        _deliver(world, peer, snapshot)
    if process.is_alive:
        is_told = world.is_peace or rng.random() < 0.9
        world.put(process.node, SnapshotSent(peer, snapshot.position.index if is_there and is_told else Index(0)))


def _deliver(world: World, peer: NodeId, snapshot: SnapshotReceived) -> None:
    if peer in world.machines:
        world.put(peer, snapshot)
