"""LC3: messages between nodes carry the Lamport time, once it has grown, to whoever knows of such times."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from kvnode.ids import NodeId
from kvnode.raft.messages import PeerMessage
from kvnode.wire.frames import TIME_FRAME_BYTES, FrameKind, encode_frame
from tests.transport.cluster import Cluster, Recorder, append, reply, settings, until

ONE, TWO, THREE = NodeId(1), NodeId(2), NodeId(3)


class LamportTime:
    """A node's clock; writes down what it was told."""

    def __init__(self, time: int = 0) -> None:
        self.now = time
        self.seen: list[int] = []

    def time(self) -> int:
        return self.now

    def observe(self, seen: int) -> bool:
        self.seen.append(seen)
        if seen > self.now + (1 << 32):
            return False
        self.now = max(self.now, seen)
        return True


class Stamped(Recorder):
    """Notes what time it was here when each message arrived."""

    def __init__(self, clock: LamportTime) -> None:
        super().__init__()
        self.clock = clock
        self.times: list[int] = []

    def on_message(self, message: PeerMessage, size: int) -> None:
        super().on_message(message, size)
        self.times.append(self.clock.now)


class Timed(Cluster):
    """A cluster whose nodes have clocks, all but those that are `old`."""

    def __init__(self, *members: int, old: tuple[int, ...] = (), **how: Any) -> None:
        super().__init__(*members, **how)
        self.old = old
        self.clocks = {member: LamportTime() for member in members}

    async def __aenter__(self) -> Timed:
        for member in self.members:
            self.make(member, feature_level_max=2 if member in self.old else 0)
            self.nodes[member].lamport = self.clocks[member]
        for member in self.members:
            await self.begin(member)
            node = self.nodes[member]
            node._receiver = self.receivers[member] = Stamped(self.clocks[member])
        await self.connected()
        return self

    def stamped(self, member: int) -> Stamped:
        found = self.receivers[member]
        assert isinstance(found, Stamped)
        return found


async def test_a_message_comes_after_all_that_its_sender_had_seen() -> None:
    async with Timed(1, 2, 3) as cluster:
        cluster.clocks[1].now = 7
        cluster.nodes[1].send(TWO, append(1, 1))
        await until(lambda: cluster.stamped(2).times == [7])
        cluster.nodes[2].send(THREE, reply(2, 1))
        await until(lambda: cluster.stamped(3).times == [7])


async def test_a_time_is_told_once_on_each_lane_and_again_on_the_next_connection() -> None:
    async with Timed(1, 2) as cluster:
        one, two = cluster.clocks[1], cluster.clocks[2]
        one.now = 5
        for number in (1, 2, 3):
            cluster.nodes[1].send(TWO, append(1, number))
            cluster.nodes[1].send(TWO, reply(1, number))
        await until(lambda: len(cluster.receivers[2].messages) == 6)
        assert two.seen == [5, 5]
        one.now = 6
        cluster.nodes[1].send(TWO, reply(1, 4))
        await until(lambda: len(cluster.receivers[2].messages) == 7)
        assert two.seen == [5, 5, 6]
        epoch = cluster.nodes[2].links()[ONE].epoch
        cluster.nodes[1]._links[TWO].lanes["data"].abort()
        await until(lambda: cluster.is_connected() and cluster.nodes[2].links()[ONE].epoch > epoch)
        cluster.nodes[1].send(TWO, reply(1, 5))
        await until(lambda: len(cluster.receivers[2].messages) == 8)
        assert two.seen == [5, 5, 6, 6]


async def test_times_grow_while_messages_queue_up() -> None:
    """Batches, dropped messages, a reader that is slow: each message that arrives finds its time there."""
    rng = random.Random(1)
    async with Timed(1, 2, settings=settings(queue_bytes_max=1 << 20)) as cluster:
        one, expected = cluster.clocks[1], {}
        for number in range(1, 400):
            one.now += rng.choice([0, 0, 1])
            expected[number] = one.now
            cluster.nodes[1].send(TWO, append(1, number, size=rng.choice([10, 20_000])))
            if number % 50 == 0:
                await asyncio.sleep(0)
        await until(lambda: len(cluster.receivers[2].messages) == cluster.nodes[1].counters["messages_sent_data"])
        stamped = cluster.stamped(2)
        assert len(stamped.times) > 50
        for message, time in zip(stamped.messages, stamped.times, strict=True):
            assert time >= expected[message.entries[0].index]  # type: ignore[union-attr]
        assert cluster.nodes[2].counters["frames_bad"] == 0


@pytest.mark.parametrize("old", [1, 2])
async def test_who_does_not_claim_the_level_is_told_nothing_and_tells_nothing(old: int) -> None:
    async with Timed(1, 2, old=(old,)) as cluster:
        for member, other in ((1, TWO), (2, ONE)):
            cluster.clocks[member].now = 10 * member
            cluster.nodes[member].send(other, reply(member, 1))
        await until(lambda: cluster.receivers[1].messages and cluster.receivers[2].messages)
        assert cluster.clocks[1].seen == cluster.clocks[2].seen == []


async def test_without_a_clock_times_are_neither_told_nor_heard() -> None:
    async with Timed(1, 2) as cluster:
        cluster.nodes[2].lamport = None
        cluster.clocks[1].now = 5
        cluster.nodes[1].send(TWO, reply(1, 1))
        cluster.nodes[2].send(ONE, reply(2, 1))
        await until(lambda: cluster.receivers[1].messages and cluster.receivers[2].messages)
        assert cluster.clocks[1].seen == cluster.clocks[2].seen == []


async def test_a_time_that_is_refused_is_counted_and_the_message_comes_all_the_same() -> None:
    async with Timed(1, 2) as cluster:
        cluster.clocks[1].now = 1 << 60
        cluster.nodes[1].send(TWO, reply(1, 1))
        await until(lambda: cluster.receivers[2].messages)
        assert cluster.nodes[2].counters["times_refused"] == 1
        assert cluster.clocks[2].now == 0


@pytest.mark.parametrize("payload", [b"", bytes(7), bytes(9), b"\xff" * 8])
async def test_a_damaged_time_ends_the_connection(payload: bytes) -> None:
    async with Timed(1, 2) as cluster:
        channel = cluster.nodes[1]._links[TWO].lanes["data"]
        channel._sent += 1
        channel._send_at_once(encode_frame(FrameKind.TIME, payload, channel._sent))
        await until(lambda: cluster.nodes[2].counters["frames_bad"] == 1)
        assert cluster.clocks[2].seen == []


async def test_a_message_of_the_largest_size_goes_without_its_time() -> None:
    """With it, it would be longer than what the peer reads in one piece."""
    most = 1 << 20
    async with Timed(1, 2, settings=settings(message_bytes_max=most)) as cluster:
        channel = cluster.nodes[1]._links[TWO].lanes["data"]
        cluster.clocks[1].now = 5
        size = most - 12 - 60
        while True:
            before = channel._sent
            cluster.nodes[1].send(TWO, append(1, 1, size=size))
            if channel._sent == before + 1:  # the first that leaves no room
                break
            assert channel._sent == before + 2, "dropped"
            channel._time_sent = 0
            size += TIME_FRAME_BYTES // 2
        cluster.nodes[1].send(TWO, append(1, 2))
        await until(lambda: cluster.receivers[2].messages and cluster.receivers[2].messages[-1] == append(1, 2))
        assert cluster.clocks[2].now == 5
        assert cluster.nodes[2].counters["frames_bad"] == 0
