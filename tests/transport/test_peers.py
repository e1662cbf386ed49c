"""Three transports in one process: order, loss, reconnects, bounds, failover signals."""

from __future__ import annotations

import asyncio
import random
import time

import msgspec
import pytest
import uvloop

from kvnode.errors import ConfigInvalid
from kvnode.ids import Index, NodeId
from kvnode.raft.messages import Configuration, Member
from kvnode.transport.channel import Channel
from kvnode.transport.peers import COUNTERS
from kvnode.wire.frames import FEATURE_LEVEL
from tests.transport.cluster import Cluster, Directory, addresses, append, reply, settings, until

ONE, TWO, THREE = NodeId(1), NodeId(2), NodeId(3)


def cut(cluster: Cluster, node: int, peer: int, lane: str) -> None:
    """Break one connection from below, as a network would."""
    link = cluster.nodes[node]._links[NodeId(peer)]
    channel: Channel | None = link.lanes.get(lane)  # type: ignore[call-overload]
    if channel is not None and not channel.is_closed:
        channel._descriptor.shutdown(2)


async def reconnected(cluster: Cluster, node: int, lane: str) -> None:
    """Cut a connection between 1 and 2 and wait for the next one."""
    epochs = [cluster.nodes[1].links()[TWO].epoch, cluster.nodes[2].links()[ONE].epoch]
    cut(cluster, node, 3 - node, lane)
    await until(
        lambda: (
            cluster.is_connected()
            and cluster.nodes[1].links()[TWO].epoch > epochs[0]
            and cluster.nodes[2].links()[ONE].epoch > epochs[1]
        )
    )


async def test_three_nodes_meet_bootstrap_and_talk() -> None:
    async with Cluster(1, 2, 3) as cluster:
        await cluster.connected()
        assert all(roster.is_bootstrapped for roster in cluster.rosters.values())
        assert len({roster.cluster_id for roster in cluster.rosters.values()}) == 1
        for number in range(1, 51):
            cluster.nodes[1].send(TWO, append(1, number))
            cluster.nodes[1].send(TWO, reply(1, number))
            cluster.nodes[3].send(TWO, reply(3, number))
        await until(lambda: len(cluster.receivers[2].messages) == 150)
        received = cluster.receivers[2].messages
        assert [m for m in received if m in [append(1, n) for n in range(1, 51)]] == [
            append(1, n) for n in range(1, 51)
        ]
        assert [m for m in received if m.sender == 3] == [reply(3, n) for n in range(1, 51)]
        info = cluster.nodes[2].links()[ONE]
        assert (info.connected, info.epoch, info.client_url, info.refused) == (True, 1, "127.0.0.1:7401", "")
        assert cluster.nodes[2].counters["messages_received_control"] == 100
        assert cluster.nodes[1].counters["messages_sent_data"] == 50


def test_the_other_loop_carries_messages_too() -> None:
    async def scenario() -> None:
        async with Cluster(1, 2) as cluster:
            await cluster.connected()
            cluster.nodes[1].send(TWO, append(1, 1, size=100_000))
            cluster.nodes[2].send(ONE, reply(2, 1))
            await until(lambda: cluster.receivers[2].messages and cluster.receivers[1].messages)
            await cluster.nodes[2].close()
            await until(lambda: ("refused", 2) in cluster.receivers[1].changes)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario())


async def test_one_connection_per_pair_and_lane() -> None:
    """Single-Socket Channel: also after reconnects there is one pair, dialled by the smaller id."""
    async with Cluster(1, 2) as cluster:
        await cluster.connected()
        for _ in range(3):
            await reconnected(cluster, 1, "control")
        server = cluster.nodes[2]._server._runner
        assert server is not None
        assert server.server is not None
        await until(lambda: len(server.server.connections) == 2)
        assert cluster.nodes[1].counters["reconnects"] == 3


async def test_losing_one_lane_closes_both_and_is_told_once() -> None:
    async with Cluster(1, 2) as cluster:
        await cluster.connected()
        cut(cluster, 2, 1, "data")
        await until(lambda: cluster.nodes[1].links()[TWO].epoch == 2 and cluster.is_connected())
        for member, peer in ((1, 2), (2, 1)):
            changes = [c for c in cluster.receivers[member].changes if c[0] != "refused"]
            assert changes == [("connected", peer), ("disconnected", peer), ("connected", peer)]


async def test_resets_under_load_neither_cross_nor_double_nor_reorder() -> None:
    """RP-T2, patterns §5.9: numbers per lane only grow, across a hundred connections; what is lost is lost."""
    rng = random.Random(4)
    async with Cluster(1, 2, settings=settings(reconnect_ms_min=1, reconnect_ms_max=2)) as cluster:
        await cluster.connected()
        number = 0
        for _ in range(100):
            for _ in range(rng.randrange(1, 30)):
                number += 1
                cluster.nodes[1].send(TWO, append(1, number))
                cluster.nodes[1].send(TWO, reply(1, number))
                if rng.random() < 0.2:
                    await asyncio.sleep(0)
            await reconnected(cluster, rng.choice((1, 2)), rng.choice(("control", "data")))
        cluster.nodes[1].send(TWO, append(1, number + 1))
        cluster.nodes[1].send(TWO, reply(1, number + 1))
        await until(lambda: cluster.receivers[2].messages[-2:] and _last(cluster, "index") == number + 1)
        appended = [m.prev_index + 1 for m in cluster.receivers[2].messages if hasattr(m, "prev_index")]
        replied = [m.index for m in cluster.receivers[2].messages if hasattr(m, "index")]
        for numbers in (appended, replied):
            assert numbers == sorted(set(numbers))
            assert len(numbers) > 100
        assert cluster.nodes[1].links()[TWO].epoch >= 101
        assert cluster.nodes[1].counters["frames_bad"] == cluster.nodes[2].counters["frames_bad"] == 0


def _last(cluster: Cluster, field: str) -> int:
    return max(getattr(message, field, 0) for message in cluster.receivers[2].messages)


async def test_a_channel_that_was_cut_hands_out_nothing_more() -> None:
    """Old-epoch frames that had already arrived are void (trap S54 at the level of connections)."""
    async with Cluster(1, 2) as cluster:
        await cluster.connected()
        receiver = cluster.receivers[2]
        original = receiver.on_message

        def cut_at_first(message: object, size: int) -> None:
            original(message, size)  # type: ignore[arg-type]
            cluster.nodes[2]._take_down(cluster.nodes[2]._links[ONE], "test")

        receiver.on_message = cut_at_first  # type: ignore[method-assign]
        for number in range(1, 20):
            cluster.nodes[1].send(TWO, append(1, number))  # they travel in one WebSocket message
        await until(lambda: cluster.nodes[2].links()[ONE].epoch == 2)
        assert [m.prev_index for m in receiver.messages] == [0]


async def test_a_process_that_is_gone_is_reported_within_milliseconds() -> None:
    """Both the dialler (1) and the accepting side (3) learn that 2's port refuses, long before an election timer."""
    async with Cluster(1, 2, 3) as cluster:
        await cluster.connected()
        began = time.perf_counter()
        await cluster.nodes[2].close()
        await until(lambda: all(("refused", 2) in cluster.receivers[member].changes for member in (1, 3)))
        assert time.perf_counter() - began < 0.5
        before = cluster.receivers[3].changes.count(("refused", 2))
        await until(lambda: cluster.receivers[3].changes.count(("refused", 2)) > before)  # and again, with each attempt
        assert cluster.receivers[3].changes.index(("disconnected", 2)) < cluster.receivers[3].changes.index(
            ("refused", 2)
        )


async def test_a_restarted_node_is_found_again() -> None:
    async with Cluster(1, 2, 3) as cluster:
        await cluster.connected()
        for member in (1, 3):
            await cluster.restart(member)
            await cluster.connected()
        assert cluster.nodes[2].counters["reconnects"] == 2
        cluster.nodes[2].send(THREE, reply(2, 7))
        await until(lambda: cluster.receivers[3].messages == [reply(2, 7)])


async def test_a_full_queue_drops_the_newest_and_spares_the_control_lane() -> None:
    async with Cluster(1, 2) as cluster:
        await cluster.connected()
        for number in range(1, 41):
            cluster.nodes[1].send(TWO, append(1, number, size=1 << 20))  # 40 MiB at once, the bound is 16
        cluster.nodes[1].send(TWO, reply(1, 1))
        counters = cluster.nodes[1].counters
        assert counters["messages_dropped_data"] >= 12  # 16 MiB wait, and the kernel's buffers take a few more
        await until(lambda: len(cluster.receivers[2].messages) == counters["messages_sent_data"] + 1)
        appended = [m.prev_index + 1 for m in cluster.receivers[2].messages if hasattr(m, "prev_index")]
        assert appended == list(range(1, len(appended) + 1))
        assert cluster.receivers[2].messages.index(reply(1, 1)) < 3
        cluster.nodes[1].send(TWO, append(1, 1, size=5 << 20))  # larger than any message may be
        assert counters["messages_dropped_data"] == 41 - counters["messages_sent_data"]


async def test_sending_without_a_link_is_counted_and_harmless() -> None:
    async with Cluster(1, 2) as cluster:
        await cluster.connected()
        await cluster.nodes[2].close()
        await until(lambda: not cluster.nodes[1].links()[TWO].connected)
        cluster.nodes[1].send(TWO, reply(1, 1))
        cluster.nodes[1].send(NodeId(9), reply(1, 1))
        assert cluster.nodes[1].counters["messages_dropped_control"] == 2


async def test_a_silent_connection_is_closed() -> None:
    """F40: a peer that neither reads nor writes nor closes."""
    async with Cluster(1, 2, settings=settings(keepalive_ms=20, silence_ms_max=60)) as cluster:
        await cluster.connected()
        for channel in cluster.nodes[2]._links[ONE].lanes.values():
            channel.keep_alive = lambda _now, slept: 0  # type: ignore[method-assign,assignment]
        await until(lambda: cluster.nodes[1].counters["silences"] == 1)
        assert ("disconnected", 2) in cluster.receivers[1].changes
        await cluster.connected()


async def test_idle_connections_stay() -> None:
    async with Cluster(1, 2, settings=settings(keepalive_ms=10, silence_ms_max=100)) as cluster:
        await cluster.connected()
        await asyncio.sleep(0.3)
        assert cluster.nodes[1].counters["connects"] == 1


async def test_a_node_that_overslept_accuses_nobody() -> None:
    """A stopped process finds old times on waking, and its peers' pings still unread: it must not cut them off."""
    async with Cluster(1, 2, settings=settings(keepalive_ms=20, silence_ms_max=60)) as cluster:
        await cluster.connected()
        time.sleep(0.2)  # the whole process, both loops
        await asyncio.sleep(0.05)
        assert cluster.nodes[1].counters["silences"] == cluster.nodes[2].counters["silences"] == 0


async def test_close_is_bounded_even_when_a_peer_does_not_read() -> None:
    async with Cluster(1, 2) as cluster:
        await cluster.connected()
        channel = cluster.nodes[1]._links[TWO].lanes["data"]
        channel._write = None  # type: ignore[method-assign,assignment]
        for channel_of_peer in cluster.nodes[2]._links[ONE].lanes.values():
            channel_of_peer._websocket._req.transport.pause_reading()  # type: ignore[union-attr]
        for number in range(1, 16):
            cluster.nodes[1].send(TWO, append(1, number, size=1 << 20))
        began = time.perf_counter()
        await cluster.nodes[1].close()
        assert time.perf_counter() - began < 1.0


async def test_a_cluster_of_one_needs_no_secret_and_finishes_at_once() -> None:
    cluster = Cluster(1)
    cluster.make(1, secret=b"")
    await cluster.begin(1)
    assert cluster.rosters[1].is_bootstrapped
    await cluster.nodes[1].close()
    with pytest.raises(ConfigInvalid, match="secret"):
        Cluster(1, 2).make(1, secret=b"short")


async def test_a_receiver_that_raises_fails_the_node() -> None:
    """P3: a bug behind the transport must not vanish in a handler's log."""
    async with Cluster(1, 2) as cluster:
        await cluster.connected()

        def broken(_message: object, _size: int) -> None:
            raise KeyError("bug")

        for sender, receiver in ((1, 2), (2, 1)):
            cluster.receivers[receiver].on_message = broken  # type: ignore[method-assign]
            cluster.nodes[sender].send(NodeId(receiver), reply(sender, 1))
            await until(lambda: cluster.failures)
            assert isinstance(cluster.failures.pop(), KeyError)
            await asyncio.sleep(0)
            if receiver == 2:
                await cluster.connected()


def test_every_counter_is_declared() -> None:
    assert len(set(COUNTERS)) == len(COUNTERS)
    assert set(addresses(1, 2)) == {1, 2}


# ── members that come and go ────────────────────────────────────────────────────────────────────────


def members_of(cluster: Cluster, *ids: int) -> dict[NodeId, str]:
    return {NodeId(id_): cluster.ports[id_] for id_ in ids}


async def test_a_member_that_is_added_is_dialled_and_one_that_is_removed_is_cut() -> None:
    async with Cluster(1, 2, 3) as cluster:
        await cluster.connected()
        for member in (1, 2):
            cluster.nodes[member].set_members(members_of(cluster, 1, 2))
        await until(lambda: ("disconnected", 3) in cluster.receivers[1].changes)
        assert cluster.nodes[1].links().keys() == {TWO}
        cluster.nodes[1].send(THREE, reply(1, 1))
        assert cluster.nodes[1].counters["messages_dropped_control"] == 1
        assert cluster.is_connected(1, 2)
        cluster.nodes[1].set_members(members_of(cluster, 1, 2, 3))
        await cluster.connected(1, 3)
        cluster.nodes[1].send(THREE, reply(1, 2))
        await until(lambda: reply(1, 2) in cluster.receivers[3].messages)


async def test_a_member_that_moves_is_dialled_where_it_is() -> None:
    async with Cluster(1, 2) as cluster:
        await cluster.connected()
        await cluster.nodes[2].close()
        old = cluster.ports.pop(2)
        cluster.make(2)
        await cluster.begin(2)
        assert cluster.ports[2] != old
        cluster.nodes[1].set_members(members_of(cluster, 1, 2))
        await cluster.connected()


async def test_the_larger_id_dials_once_the_link_was_down_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smaller does not know where the other is."""
    monkeypatch.setattr("kvnode.transport.tending.LATE_MS", 20)
    cluster = Cluster(1, 2)
    cluster.make(1)
    cluster.make(2)
    real, cluster.ports[2] = cluster.ports[2], "127.0.0.1:1"
    await cluster.begin(1)
    cluster.ports[2] = real
    await cluster.begin(2)
    try:
        await cluster.connected()
        for _ in range(3):
            epoch = cluster.nodes[1].links()[TWO].epoch
            cut(cluster, 1, 2, "data")
            await until(lambda before=epoch: cluster.is_connected() and cluster.nodes[1].links()[TWO].epoch > before)  # type: ignore[misc]
    finally:
        await cluster.__aexit__()


async def test_both_dialling_at_once_settles(monkeypatch: pytest.MonkeyPatch) -> None:
    """After any number of losses there is one pair again, on both sides, and it stays."""
    monkeypatch.setattr("kvnode.transport.tending.LATE_MS", 0)
    rng = random.Random(6)
    async with Cluster(1, 2, settings=settings(reconnect_ms_min=1, reconnect_ms_max=3)) as cluster:
        for number in range(1, 31):

            def works(number: int = number) -> bool:
                """Both sides hold the same dial, and it carries messages both ways."""
                here, there = cluster.nodes[1]._links[TWO], cluster.nodes[2]._links[ONE]
                cluster.nodes[1].send(TWO, reply(1, number))
                cluster.nodes[2].send(ONE, reply(2, number))
                return (
                    cluster.is_connected()
                    and here._current == there._current
                    and reply(1, number) in cluster.receivers[2].messages
                    and reply(2, number) in cluster.receivers[1].messages
                )

            await until(works)
            node = rng.choice((1, 2))
            cut(cluster, node, 3 - node, rng.choice(("control", "data")))
        for node in cluster.nodes.values():
            assert node.counters["frames_bad"] == 0


async def test_a_node_that_was_away_is_found_by_members_it_has_not_heard_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """Member 4 knows 1 and 2; they have read nothing of it yet and learn of it when it dials."""
    monkeypatch.setattr("kvnode.transport.tending.LATE_MS", 20)
    async with Cluster(1, 2) as cluster:
        await cluster.connected()
        found = [Member(NodeId(id_), 1000 + id_, cluster.ports[id_]) for id_ in (1, 2)]
        four = Directory(4)
        four.identity.cluster_id = cluster.rosters[1].cluster_id
        cluster.make(4, directory=four, joined=(20, found))
        await cluster.begin(4)
        await cluster.connected(1, 4)
        cluster.nodes[1].send(NodeId(4), reply(1, 1))
        cluster.nodes[4].send(ONE, reply(4, 2))
        await until(lambda: reply(1, 1) in cluster.receivers[4].messages)
        await until(lambda: reply(4, 2) in cluster.receivers[1].messages)
        assert NodeId(4) in cluster.rosters[1].members
        # 1 is told that this member is on another directory: the connection does not outlive it
        other = configuration_of(cluster, {1: 1001, 2: 1002, 4: 99})
        cluster.rosters[1].on_configuration(other, Index(20), other)
        cluster.nodes[1].set_members(cluster.rosters[1].members)
        assert not cluster.nodes[1].links()[NodeId(4)].connected
        assert "wiped or replaced" in cluster.nodes[1].links()[NodeId(4)].refused


def configuration_of(cluster: Cluster, incarnations: dict[int, int]) -> Configuration:
    members = tuple(Member(NodeId(id_), found, cluster.ports[id_]) for id_, found in incarnations.items())
    ids = tuple(member.id for member in members)
    return Configuration(ids, members=members, last_id=max(ids))


async def test_a_removed_member_does_not_come_back_by_dialling() -> None:
    async with Cluster(1, 2, 3) as cluster:
        await cluster.connected()
        found = configuration_of(cluster, {2: 1002, 3: 1003})
        for member in (2, 3):
            cluster.rosters[member].on_configuration(found, Index(20), found)
            cluster.nodes[member].set_members(cluster.rosters[member].members)
        await until(lambda: cluster.rosters[1].was_removed)
        await until(lambda: "removed from the cluster" in cluster.nodes[1].links()[TWO].refused)
        assert cluster.nodes[2].links().keys() == {THREE}
        assert cluster.is_connected(2, 3)


async def test_a_member_of_a_lower_feature_level_is_cut_and_refused() -> None:
    """An upgrade that goes on one node at a time, and one that was forgotten."""
    cluster = Cluster(1, 2, 3)
    cluster.make(1)
    cluster.make(2)
    cluster.make(3, feature_level_max=1)
    for member in (1, 2, 3):
        await cluster.begin(member)
    try:
        await cluster.connected()
        levels = {peer: link.feature_level for peer, link in cluster.nodes[1].links().items()}
        assert levels == {2: FEATURE_LEVEL, 3: 1}
        raised = configuration_of(cluster, {1: 1001, 2: 1002, 3: 1003})
        raised = msgspec.structs.replace(raised, feature_level=2)
        cluster.rosters[1].on_configuration(raised, Index(9), raised)
        cluster.nodes[1].set_members(cluster.rosters[1].members)
        assert cluster.is_connected(1, 2)
        assert "member 3 knows feature level 1, the cluster uses 2" in cluster.nodes[1].links()[THREE].refused
        await until(lambda: "feature level 1" in cluster.nodes[3].links()[ONE].refused)
        await cluster.restart(3)
        await cluster.connected()
    finally:
        await cluster.__aexit__()


@pytest.mark.parametrize("address", ["nowhere", "a" * 70 + ".example:7501", "127.0.0.1:99999"])
async def test_an_address_that_is_none_ends_nobody(address: str) -> None:
    async with Cluster(1, 2) as cluster:
        await cluster.connected()
        cluster.nodes[1].set_members({**members_of(cluster, 1, 2), THREE: address})
        await until(lambda: cluster.nodes[1].links()[THREE].refused)
        assert cluster.is_connected()
        cluster.nodes[1].set_members(members_of(cluster, 1, 2))


async def test_without_a_secret_nobody_is_talked_to() -> None:
    cluster = Cluster(1)
    node = cluster.make(1, secret=b"")
    await cluster.begin(1)
    node.set_members({ONE: cluster.ports[1], TWO: "127.0.0.1:1"})
    assert "cluster.secret_file" in node.links()[TWO].refused
    await node.close()
