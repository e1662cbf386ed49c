"""Snapshots installed in running nodes: what else has to be told when the state is exchanged."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from kvnode.errors import ConfigInvalid, SnapshotRefused
from kvnode.ids import Index, NodeId, Term
from kvnode.kv.members import AddMember, RemoveMember
from kvnode.machine.snapshot import describe, encode_header
from kvnode.node.node import Node
from kvnode.raft.messages import LogPosition
from kvnode.sim.loop import VirtualWorker
from kvnode.sim.runtime.cluster import Cluster
from tests.node.scenario import simulate

SMALL = {"storage__tail_bytes": 128 << 10, "storage__flush_ms": 100}
MEMORY: dict[str, object] = {"storage.backend": "memory"}
PUTS = 300
VALUE = b"x" * 4_000


async def fall_behind(cluster: Cluster, leader: Node, lost: NodeId) -> None:
    """Until the leader's log begins after everything that `lost` has."""
    for number in range(PUTS):
        await leader.put(b"k%d" % (number % 20), VALUE)
    await cluster.until(lambda: leader._raft.base.index > cluster.nodes()[lost]._raft.last_index)


def test_members_that_came_with_a_snapshot_are_told_like_any_others() -> None:
    """Else the node shows peers an old list, and lets in whoever was removed meanwhile."""

    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.elect()
        await asyncio.sleep(1.0)
        lost = next(id_ for id_ in cluster.nodes() if id_ != leader.id)
        cluster.network.isolate(lost)
        await asyncio.sleep(1.0)
        added = await leader.change_members(AddMember("10.0.0.4:7501", incarnation=7))
        removed = await leader.change_members(RemoveMember(added.id))
        await fall_behind(cluster, leader, lost)
        cluster.network.heal()
        follower = cluster.nodes()[lost]
        await cluster.until(lambda: follower._snapshots.receiver.received == 1, 60.0)
        await cluster.settle()
        roster = cluster.members[lost]._roster
        assert roster.configuration_index == removed.configuration_index
        assert cluster.members[lost].data.identity.configuration_index == removed.configuration_index

    simulate(scenario, **SMALL)


def test_nothing_is_applied_while_a_snapshot_takes_the_place_of_the_state() -> None:
    """The log that the rest of a backlog would be read from is about to go: a node that goes on with it ends."""

    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.elect()
        lost = next(id_ for id_ in cluster.nodes() if id_ != leader.id)
        follower = cluster.nodes()[lost]
        applier, machine, snapshots = follower._applier, follower._machine, follower._snapshots
        flusher = follower._workers.flusher
        assert isinstance(flusher, VirtualWorker)
        flusher.hang()
        for number in range(40):  # more than the recent versions may take: the follower waits for its flush
            await leader.put(b"k%d" % number, 8 * VALUE)
            await asyncio.sleep(0.02)  # … and the leader for none
        await cluster.until(lambda: applier.is_held_back and applier.target > machine.applied_index)
        cluster.network.isolate(lost)
        await fall_behind(cluster, leader, lost)
        accepted, installed = snapshots.accepted, snapshots.installed
        seen: list[Index] = []

        def while_it_is_on_its_way() -> None:
            accepted()
            assert applier.target > machine.applied_index
            seen.append(machine.applied_index)
            flusher.resume()  # the backlog could be applied now
            follower._workers.log_writer.delay_s = 0.1  # type: ignore[attr-defined]

        def when_it_is_there(position: LogPosition) -> None:
            seen.append(machine.applied_index)
            installed(position)
            seen.append(machine.applied_index)

        snapshots.accepted = while_it_is_on_its_way  # type: ignore[method-assign]
        snapshots.installed = when_it_is_there  # type: ignore[method-assign]
        cluster.network.heal()
        await cluster.until(lambda: snapshots.receiver.received == 1, 60.0)
        before, after, new = seen
        assert before == after
        assert new > after
        await cluster.settle()

    simulate(scenario, storage__recent_bytes_max=1 << 20, storage__stall_ms=600_000, **SMALL)


def test_one_snapshot_is_enough_for_who_follows_a_busy_leader() -> None:
    """S62: the log is kept from the snapshot on until the follower is level, even without a tail."""

    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.elect()
        lost = next(id_ for id_ in cluster.nodes() if id_ != leader.id)
        cluster.network.isolate(lost)
        await fall_behind(cluster, leader, lost)
        done = False

        async def write() -> None:
            while not done:
                await leader.put(b"busy", VALUE)
                await asyncio.sleep(0.02)

        writing = asyncio.create_task(write())
        cluster.network.heal()
        sender, receiver = leader._snapshots.sender, cluster.nodes()[lost]._snapshots.receiver
        await cluster.until(lambda: receiver.received, 60.0)
        await cluster.until(lambda: sender.pinned_index(leader._raft.base.index) is None, 20.0)
        await asyncio.sleep(2.0)
        assert receiver.received == 1
        done = True
        await writing
        await cluster.settle()

    no_tail = {"storage__tail_bytes": 0, "storage__segment_bytes": 64 << 10, "storage__flush_ms": 20}
    slow = {"raft__window_messages_max": 1, "raft__append_bytes_max": 4 << 10, "peer__snapshot_bytes_per_s": 1 << 22}
    simulate(scenario, **no_tail, **slow)


def test_a_snapshot_begun_in_an_earlier_term_of_the_same_leader_is_good() -> None:
    """A large one takes minutes: elections that its sender wins must not make it come anew each time."""

    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.elect()
        lost = next(id_ for id_ in cluster.nodes() if id_ != leader.id)
        cluster.network.isolate(lost)
        await fall_behind(cluster, leader, lost)
        receiver = cluster.nodes()[lost]._snapshots.receiver
        begin = receiver.begin

        async def begun_before_an_election(peer: NodeId, header: bytes) -> int | None:
            wanted = await begin(peer, header)
            receiver._term = Term(receiver._term - 1)
            return wanted

        receiver.begin = begun_before_an_election  # type: ignore[method-assign]
        cluster.network.heal()
        await cluster.until(lambda: receiver.received == 1, 60.0)
        await cluster.settle()

    simulate(scenario, **SMALL)


def test_a_snapshot_whose_members_cannot_be_read_is_refused_before_it_is_taken_in() -> None:
    """And another one is taken afterwards."""

    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.elect()
        lost = next(id_ for id_ in cluster.nodes() if id_ != leader.id)
        cluster.network.isolate(lost)
        await fall_behind(cluster, leader, lost)
        receiver = cluster.nodes()[lost]._snapshots.receiver
        begin = receiver.begin
        refused = []

        async def damaged_once(peer: NodeId, header: bytes) -> int | None:
            if not refused and peer == receiver._raft.leader:
                bad = msgspec.structs.replace(describe(header), configuration=b"\x01")
                try:
                    return await begin(peer, encode_header(bad))
                except SnapshotRefused as error:
                    refused.append(error.message)
                    raise
            return await begin(peer, header)

        receiver.begin = damaged_once  # type: ignore[method-assign]
        cluster.network.heal()
        await cluster.until(lambda: receiver.received == 1, 60.0)
        assert refused
        assert "members cannot be read" in refused[0]

    simulate(scenario, **SMALL)


def test_a_store_on_disk_is_not_passed_over_by_a_setting() -> None:
    """With an empty store a trimmed log looks damaged: it would be set aside, on every member that has the setting."""

    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.elect()
        other = next(id_ for id_ in cluster.nodes() if id_ != leader.id)
        cluster.kill(other)
        before, cluster.configs[other] = cluster.configs[other], cluster.reconfigured(other, MEMORY)
        with pytest.raises(ConfigInvalid, match=r"storage\.backend is memory"):
            await cluster.start(other)
        cluster.kill(other)
        cluster.configs[other] = before
        await cluster.start(other)
        await cluster.settle()

    simulate(scenario, **SMALL)
