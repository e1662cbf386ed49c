"""Reads under the leader's lease, on whole nodes: they save rounds, and no clock within the bound is fooled."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from kvnode.errors import KvnodeError
from kvnode.ids import NodeId
from kvnode.kv.interface import Options
from kvnode.kv.requests import Put, Range, RangeReply, ReadRequest
from kvnode.node.node import Node
from kvnode.sim.runtime.cluster import Cluster
from tests.node.scenario import simulate

ON: dict[str, object] = {"raft.leader_lease_reads": True}
T_S = 0.3


def lease_reads(node: Node) -> int:
    count = node.counters()["kvnode_lease_reads_total"]
    assert isinstance(count, int)
    return count


async def read(node: Node, timeout_ms: int = 2_000) -> bytes | None:
    reply = await node.execute(Range(b"k"), Options(timeout_ms=timeout_ms))
    return reply.items[0].value if reply.items else None


async def led(cluster: Cluster) -> tuple[Node, list[NodeId]]:
    leader = await cluster.elect()
    await leader.execute(Put(b"k", b"old"))
    member = cluster.members[leader.id]
    await cluster.until(lambda: member.raft.has_lease(member.clock.monotonic_ms()))
    return leader, [member for member in cluster.ids if member != leader.id]


async def write_elsewhere(cluster: Cluster, members: list[NodeId]) -> None:
    """A write through those who are cut off from the old leader, once they have one of their own."""
    while True:
        try:
            await cluster.kv(members[0]).execute(Put(b"k", b"new"), Options(timeout_ms=500))
        except KvnodeError:
            await asyncio.sleep(0.005)
        else:
            return


def test_the_leader_answers_without_a_round_and_everybody_else_asks_it() -> None:
    async def scenario(cluster: Cluster) -> None:
        leader, others = await led(cluster)
        rounds = leader.counters()["kvnode_read_index_seconds"].count
        before = lease_reads(leader)
        for _ in range(50):
            assert await read(leader) == b"old"
        listed = await leader.execute(Range(b"a", b"z"))
        assert [item.key for item in listed.items] == [b"k"]
        assert lease_reads(leader) == before + 51
        assert leader.counters()["kvnode_read_index_seconds"].count == rounds
        other = cluster.nodes()[others[0]]
        assert await read(other) == b"old"
        assert lease_reads(other) == 0

    simulate(scenario, **ON)


def test_it_is_off_by_default() -> None:
    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.elect()
        await leader.execute(Put(b"k", b"v"))
        assert await read(leader) == b"v"
        assert lease_reads(leader) == 0

    simulate(scenario)


def test_what_was_acknowledged_anywhere_is_seen() -> None:
    async def scenario(cluster: Cluster) -> None:
        leader, others = await led(cluster)
        for number in range(100):
            member = cluster.ids[number % 3]
            await cluster.kv(member).put("k", f"{number}")
            assert await read(leader) == b"%d" % number
        assert lease_reads(leader) >= 100
        assert others

    simulate(scenario, **ON)


def test_s37_lease_read_snapshot_then_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pause between the view and the check, in which another leader was elected and wrote: no stale answer."""

    async def scenario(cluster: Cluster) -> None:
        leader, others = await led(cluster)
        path = leader._path
        look = path._look
        gone = asyncio.Event()

        async def paused(request: ReadRequest, deadline_ms: int) -> RangeReply:
            reply = await look(request, deadline_ms)
            await gone.wait()
            return reply

        monkeypatch.setattr(path, "_look", paused)
        reading = asyncio.ensure_future(read(leader))
        await asyncio.sleep(0.001)
        cluster.network.isolate(leader.id)
        await write_elsewhere(cluster, others)
        monkeypatch.setattr(path, "_look", look)
        gone.set()
        await asyncio.sleep(0.01)
        assert not reading.done(), "it asks for a confirmation now, which nobody gives"
        cluster.network.heal()
        assert await reading == b"new"

    simulate(scenario, **ON)


@pytest.mark.parametrize(("leaders", "others"), [(1.0, 1.0), (0.9, 1.1), (1.1, 0.9), (0.9, 0.9), (1.1, 1.1)])
def test_s40_drift_at_the_bound(leaders: float, others: float) -> None:
    """A leader that is cut off and whose clock is as slow, and theirs as fast, as the bound allows."""

    async def scenario(cluster: Cluster) -> None:
        leader, rest = await led(cluster)
        for member in cluster.ids:
            cluster.members[member].clock.set_rate(leaders if member == leader.id else others)
        await asyncio.sleep(2.0)
        assert await read(leader) == b"old"
        cluster.network.isolate(leader.id)
        answered = 0
        writing = asyncio.ensure_future(write_elsewhere(cluster, rest))
        while not writing.done():
            try:
                assert await read(leader, timeout_ms=1) == b"old"
            except KvnodeError:
                pass
            else:
                answered += 1
            await asyncio.sleep(0.0005)
        assert answered > 50, "for a while it may go on"
        for _ in range(100):
            with pytest.raises(KvnodeError):
                await read(leader, timeout_ms=1)
            await asyncio.sleep(0.001)

    simulate(scenario, **ON)


def test_a_voter_that_restarts_does_not_shorten_a_lease() -> None:
    """S38 on whole nodes: the leader's quorum is a voter that restarts and another that is cut off from the leader."""

    async def scenario(cluster: Cluster) -> None:
        leader, (restarted, cut_off) = await led(cluster)
        cluster.network.cut(leader.id, cut_off)
        await asyncio.sleep(2 * T_S)
        assert await read(leader) == b"old"
        cluster.kill(restarted)
        await cluster.start(restarted)
        cluster.network.cut(leader.id, restarted)
        began = cluster.loop.time()
        writing = asyncio.ensure_future(write_elsewhere(cluster, [cut_off, restarted]))
        while not writing.done():
            with contextlib.suppress(KvnodeError):
                assert await read(leader, timeout_ms=1) == b"old"
            await asyncio.sleep(0.001)
        assert cluster.loop.time() - began >= T_S
        with pytest.raises(KvnodeError):
            await read(leader, timeout_ms=1)

    simulate(scenario, **ON)


def test_a_leader_that_dies_is_replaced_without_the_shortcut() -> None:
    async def scenario(cluster: Cluster) -> None:
        leader, others = await led(cluster)
        cluster.kill(leader.id)
        began = cluster.loop.time()
        await write_elsewhere(cluster, others)
        assert T_S - 0.06 < cluster.loop.time() - began < 3 * T_S
        assert await read(cluster.nodes()[others[0]]) == b"new"

    simulate(scenario, **ON)
