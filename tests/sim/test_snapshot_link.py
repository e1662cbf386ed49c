"""Snapshots and changing members on the simulated network: what the port promises, under its faults."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import msgspec
import pytest

from kvnode.config import PeerSection
from kvnode.errors import SnapshotRefused
from kvnode.ids import Index, NodeId
from kvnode.raft.messages import Configuration, Member
from kvnode.sim.loop import run_virtual
from kvnode.sim.runtime.cluster import Cluster
from kvnode.sim.runtime.network import Network
from kvnode.sim.runtime.transport import VirtualTransport
from kvnode.wire.frames import FEATURE_LEVEL
from tests.transport.cluster import Directory, Recorder, addresses
from tests.transport.snapshot_ends import BlockSource, KeepingSink

ONE, TWO, THREE, FOUR = (NodeId(number) for number in (1, 2, 3, 4))
SETTINGS = PeerSection()


class World:
    """Members on one network, each with a sink; what happens is noted."""

    def __init__(self, *members: int, seed: int = 1) -> None:
        self.notes: list[Any] = []
        self.network = Network(asyncio.get_running_loop(), random.Random(seed), lambda *event: self.notes.append(event))
        self.directories: dict[int, Directory] = {}
        self.transports: dict[int, VirtualTransport] = {}
        self.sinks: dict[int, KeepingSink] = {}
        self.failures: list[BaseException] = []
        for member in members:
            self.start(member, Directory(member), members)

    def start(self, member: int, directory: Directory, members: tuple[int, ...]) -> VirtualTransport:
        self.directories[member] = directory
        directory.start(nonce=member)
        made = self.transports[member] = VirtualTransport(
            self.network, NodeId(member), roster=directory.roster(addresses(*members)), on_failed=self.failures.append
        )
        receiver = Recorder()
        receiver.snapshot_sink = self.sinks[member] = KeepingSink()
        made.open(receiver)
        return made

    async def send(self, source: BlockSource, sender: int = 1, to: int = 2) -> None:
        await self.transports[sender].send_snapshot(NodeId(to), source)


def test_a_snapshot_comes_over_a_good_network() -> None:
    async def scenario() -> None:
        world = World(1, 2, 3)
        source = BlockSource(100)
        await world.send(source)
        assert world.sinks[2].blocks == source.blocks
        assert world.network.counts["snapshots_sent"] == 1
        await world.send(BlockSource(3), sender=3, to=1)
        assert world.sinks[1].begun == [(3, 0)]
        with pytest.raises(ConnectionRefusedError):
            await world.send(source, to=9)

    run_virtual(scenario())


def story(seed: int) -> tuple[list[Any], int]:
    """One snapshot under faults, sent until it has come. Returns what happened, and the attempts it took."""

    async def scenario() -> tuple[list[Any], int]:
        world = World(1, 2, seed=seed)
        rng = random.Random(seed)
        network = world.network
        network.corruption, network.rot, network.loss = 0.02, 0.002, 0.1
        source = BlockSource(150, size=20_000)
        attempts = 0

        async def trouble() -> None:
            while attempts < 12:
                await asyncio.sleep(rng.uniform(0.1, 1.0))
                fault = rng.choice((network.cut, network.flap, network.silence, network.clog))
                fault(*rng.choice(((ONE, TWO), (TWO, ONE))))
                await asyncio.sleep(rng.uniform(0.1, 1.0))
                network.heal()

        task = asyncio.ensure_future(trouble())
        while True:
            attempts += 1
            if attempts == 30:
                network.corruption = network.rot = 0.0
            try:
                await world.send(source)
                break
            except (OSError, SnapshotRefused):
                await asyncio.sleep(rng.uniform(0.05, 0.3))
        task.cancel()
        assert world.sinks[2].blocks == source.blocks
        assert not world.failures
        return world.notes, attempts

    return run_virtual(scenario())


def test_it_comes_in_the_end_whatever_befalls_the_network_and_the_same_every_time() -> None:
    tries = []
    for seed in range(1, 9):
        notes, attempts = story(seed)
        assert story(seed) == (notes, attempts)
        tries.append(attempts)
    assert sum(tries) > 20, tries


def test_a_rotten_block_is_refused_by_the_sink() -> None:
    async def scenario() -> None:
        world = World(1, 2)
        world.network.rot = 1.0
        source = BlockSource(40)
        with pytest.raises(SnapshotRefused, match="is damaged"):
            await world.send(source)
        assert world.network.counts["snapshots_refused"] == 1

    run_virtual(scenario())


def test_a_receiver_that_is_gone_or_cut_off_ends_it() -> None:
    async def scenario() -> None:
        world = World(1, 2, 3)
        for end in ("cut", "leave"):
            sink = world.sinks[2]

            async def hang() -> None:
                await asyncio.Event().wait()

            sink.before_write = hang
            work = asyncio.ensure_future(world.send(BlockSource(40)))
            await asyncio.sleep(0.1)
            assert not work.done()
            if end == "cut":
                world.network.cut(ONE, TWO)
            else:
                world.network.heal()
                world.network.leave(world.transports[2])
            with pytest.raises(ConnectionResetError):
                await work
            with pytest.raises(TimeoutError if end == "cut" else ConnectionRefusedError):
                await world.send(BlockSource(40))
            world.network.heal()

    run_virtual(scenario())


def configuration(*ids: int) -> Configuration:
    members = tuple(Member(NodeId(id_), 1000 + id_, f"127.0.0.1:{7500 + id_}") for id_ in ids)
    return Configuration(tuple(NodeId(id_) for id_ in ids), members=members, last_id=NodeId(max(ids)))


def test_members_that_come_and_go_are_connected_and_cut() -> None:
    async def scenario() -> None:
        world = World(1, 2, 3)
        await asyncio.sleep(0.1)
        one = world.transports[1]
        assert sorted(one.connected) == [2, 3]
        found = configuration(1, 2, 4)
        roster: Any = one.roster
        roster.on_configuration(found, Index(20), found)
        one.set_members(roster.members)
        assert sorted(one.connected) == [2]
        four = Directory(4)
        four.identity.cluster_id = roster.cluster_id
        four.save_configuration(found, Index(20))
        world.start(4, four, ())
        await asyncio.sleep(0.1)
        assert sorted(one.connected) == [2, 4]
        assert sorted(world.transports[2].connected) == [1, 3]  # it has not heard of 4, nor that 3 is gone
        await asyncio.sleep(2)
        assert sorted(world.transports[2].connected) == [1, 3, 4]  # 4 has dialled it
        assert world.transports[3].refusals[ONE] == "removed_member"
        assert not world.failures

    run_virtual(scenario())


def test_a_peer_that_may_not_stay_is_cut() -> None:
    async def scenario() -> None:
        world = World(1, 2)
        await asyncio.sleep(0.1)
        one = world.transports[1]
        roster: Any = one.roster
        assert one.links()[TWO].feature_level == FEATURE_LEVEL
        other = msgspec.structs.replace(configuration(1, 2), feature_level=9)
        roster.on_configuration(other, Index(20), other)
        one.set_members(roster.members)
        await asyncio.sleep(0.1)
        assert not one.connected
        assert one.refusals[TWO] == "feature_level"

    run_virtual(scenario())


def test_processes_send_each_other_snapshots_and_a_killed_one_leaves_nothing_behind() -> None:
    async def scenario() -> None:
        cluster = Cluster(5, 3, has_processes=True)
        await cluster.start_all()
        await cluster.elect()
        sink = KeepingSink()
        two: Any = cluster.members[TWO].node.receiver
        two._snapshots.receiver = sink
        source = BlockSource(200)
        one = cluster.members[ONE]
        assert one.own_loop is not None
        await one.own_loop.submit(one.transport.send_snapshot(TWO, source))
        assert sink.blocks == source.blocks

        async def hang() -> None:
            await asyncio.Event().wait()

        sink.before_write = hang
        work = one.own_loop.submit(one.transport.send_snapshot(TWO, BlockSource(40, header=b"other")))
        await cluster.until(lambda: sink.header == b"other")
        two._snapshots.receiver.stop = lambda: None
        assert await cluster.members[TWO].stop() == []  # a clean stop waits for nobody and leaves no task
        with pytest.raises(OSError):
            await work
        cluster.end_all()
        assert not cluster.errors

    run_virtual(scenario())
