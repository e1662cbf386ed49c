"""Directed scenarios on the runtime's simulator: processes with loops, clocks and directories of their own."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from kvnode.errors import KvnodeError
from kvnode.ids import NodeId
from kvnode.kv.interface import Options
from kvnode.kv.requests import Put, Range
from kvnode.sim.disk import FakeDisk
from kvnode.sim.loop import run_virtual
from kvnode.sim.runtime.cluster import Cluster


def simulate(scenario: Callable[[Cluster], Awaitable[None]], *, size: int = 3, **settings: object) -> None:
    async def main() -> None:
        named = {name.replace("__", "."): value for name, value in settings.items()}
        cluster = Cluster(1, size, named, has_processes=True)
        try:
            await cluster.start_all()
            await cluster.until(lambda: len(cluster.nodes()) == size)
            await cluster.elect()
            await scenario(cluster)
            assert not cluster.errors, cluster.errors
        finally:
            cluster.end_all()

    run_virtual(main(), rng=random.Random(1))


async def put(cluster: Cluster, member: int, value: bytes, timeout_ms: int = 5_000) -> int:
    reply = await cluster.kv(member).execute(Put(b"k", value), Options(timeout_ms=timeout_ms))
    return reply.revision


def followers(cluster: Cluster, leader: int) -> list[NodeId]:
    return [member for member in cluster.ids if member != leader]


@pytest.mark.parametrize("timeouts", [0.5, 1.0, 2.0, 10.0])
def test_s35_paused_leader_read(timeouts: float) -> None:
    """Reads queued at a leader that was stopped while another took over are never older than what that one wrote."""

    async def scenario(cluster: Cluster) -> None:
        old = (await cluster.elect()).id
        await put(cluster, old, b"old")
        loop = cluster.members[old].own_loop
        assert loop is not None
        loop.pause()
        queued = [asyncio.ensure_future(cluster.kv(old).execute(Range(b"k"))) for _ in range(5)]
        await asyncio.sleep(0.3 * timeouts)
        other = followers(cluster, old)[0]
        write = asyncio.ensure_future(put(cluster, other, b"new"))
        if timeouts > 5:
            await write  # the others have long elected another leader
        loop.resume()
        written = await write
        for answer in await asyncio.gather(*queued):
            if timeouts > 5:
                assert answer.items[0].value == b"new"
                assert answer.revision >= written
        assert (await cluster.kv(old).execute(Range(b"k"))).items[0].value == b"new"

    simulate(scenario)


def test_f52_a_frozen_leader_that_is_cut_off_confirms_no_read() -> None:
    """It notices nothing: for its clock no time passes, so no quorum is missed. Only the read round protects."""

    async def scenario(cluster: Cluster) -> None:
        old = (await cluster.elect()).id
        await put(cluster, old, b"old")
        clock = cluster.members[old].clock
        clock.set_rate(0.0)
        cluster.network.isolate(old)
        written = await put(cluster, followers(cluster, old)[0], b"new")
        assert cluster.nodes()[old].status().role == "leader", "it still believes so"
        read = asyncio.ensure_future(cluster.kv(old).execute(Range(b"k")))
        await asyncio.sleep(3.0)
        assert not read.done()
        clock.set_rate(1.0)
        cluster.network.heal()
        answer = await read
        assert (answer.revision, answer.items[0].value) == (written, b"new")

    simulate(scenario)


def test_s41_stale_reads_only_when_asked_and_never_back() -> None:
    async def scenario(cluster: Cluster) -> None:
        leader = (await cluster.elect()).id
        cut_off = followers(cluster, leader)[0]
        await put(cluster, leader, b"1")
        await cluster.settle()
        cluster.network.isolate(cut_off)
        await put(cluster, leader, b"2")
        stale = Options(consistency="stale")
        found = await cluster.kv(cut_off).execute(Range(b"k"), stale)
        assert found.items[0].value == b"1"
        with pytest.raises(KvnodeError):
            await cluster.kv(cut_off).execute(Range(b"k"), Options(timeout_ms=1_000))
        cluster.network.heal()
        seen = found.revision
        for number in range(20):
            await put(cluster, leader, b"%d" % (10 + number))
            answer = await cluster.kv(cut_off).execute(Range(b"k"), stale)
            assert answer.revision >= seen
            seen = answer.revision

    simulate(scenario)


def test_s71_hung_disk_leader() -> None:
    """Heartbeats need no disk; a leader whose disk hangs goes all the same, and another takes over."""

    async def scenario(cluster: Cluster) -> None:
        old = (await cluster.elect()).id
        cluster.members[old].workers["log"].hang()
        lost = asyncio.ensure_future(put(cluster, old, b"hangs", timeout_ms=1_000))
        await cluster.until(lambda: cluster.members[old].node.status().role != "leader", within_s=2.0)
        other = followers(cluster, old)[0]
        await put(cluster, other, b"goes on")
        with pytest.raises(KvnodeError):
            await lost
        cluster.members[old].workers["log"].resume()
        await cluster.settle()
        assert cluster.observer.marks["hung_disk_step_down"] == 1

    simulate(scenario, storage__stall_ms=500)


def test_s71_slow_disk_no_election_storm() -> None:
    """Ten times the fsync latency on every member, below the stall limit: slower, and no election."""

    async def scenario(cluster: Cluster) -> None:
        term = (await cluster.elect()).term
        for member in cluster.members.values():
            member.workers["log"].delay_s = 0.2
        for number in range(10):
            await put(cluster, 1 + number % 3, b"%d" % number)
        assert (await cluster.elect()).term == term

    simulate(scenario)


def test_s89_peer_connection_flap() -> None:
    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.elect()
        term = leader.term
        other = followers(cluster, leader.id)[0]
        writes = []
        for number in range(30):
            cluster.network.flap(leader.id, other)
            writes.append(await put(cluster, leader.id, b"%d" % number))
            await asyncio.sleep(0.05)
        assert writes == sorted(writes)
        assert cluster.nodes()[leader.id].term == term, "a flapping link to one follower is no reason to elect"
        await cluster.settle()

    simulate(scenario)


def test_f61_a_wiped_directory_is_refused_by_its_peers() -> None:
    async def scenario(cluster: Cluster) -> None:
        leader = (await cluster.elect()).id
        victim = followers(cluster, leader)[0]
        cluster.kill(victim)
        kept, cluster.disks[victim] = cluster.disks[victim], FakeDisk(random.Random(3))
        store = cluster.stores.pop(victim)
        cluster.begin(victim)
        await asyncio.sleep(5.0)
        wiped = cluster.members[victim]
        assert not wiped.takes_part
        assert not wiped.transport.connected
        assert set(wiped.transport.refusals.values()) == {"wrong_incarnation"}
        await put(cluster, leader, b"meanwhile")
        cluster.kill(victim)
        cluster.disks[victim] = kept
        cluster.stores[victim] = store
        cluster.begin(victim)
        await cluster.until(lambda: cluster.members[victim].takes_part)
        await cluster.settle()

    simulate(scenario)


def test_f66_an_old_backup_copied_back_is_refused() -> None:
    """Its boot counter went back, or is that of another start: its peers know a newer life of this member."""

    async def scenario(cluster: Cluster) -> None:
        leader = (await cluster.elect()).id
        victim = followers(cluster, leader)[0]
        for _ in range(2):
            cluster.kill(victim)
            backup = cluster.disks[victim].kill()
            cluster.begin(victim)
            await cluster.until(lambda: len(cluster.members[victim].connections) == 2)
        cluster.kill(victim)
        cluster.disks[victim] = backup
        cluster.begin(victim)
        await asyncio.sleep(3.0)
        restored = cluster.members[victim]
        assert not restored.transport.connected
        assert set(restored.transport.refusals.values()) <= {"cloned", "stale_boot"}
        assert any("member" in alarm for alarm in cluster.nodes()[leader].status().alarms)

    simulate(scenario)


def test_f60_a_member_with_another_setting_of_the_cluster_is_refused_by_its_key() -> None:
    async def scenario(cluster: Cluster) -> None:
        leader = (await cluster.elect()).id
        victim = followers(cluster, leader)[0]
        cluster.kill(victim)
        right = cluster.configs[victim]
        wrong = cluster.reconfigured(victim, {"limits.key_bytes_max": 100})
        cluster.configs[victim] = wrong
        cluster.begin(victim)
        await asyncio.sleep(2.0)
        assert not cluster.members[victim].transport.connected
        assert set(cluster.members[victim].transport.refusals.values()) == {"setting_differs"}
        cluster.kill(victim)
        cluster.configs[victim] = right
        cluster.begin(victim)
        await cluster.until(lambda: len(cluster.members[victim].connections) == 2)

    simulate(scenario)


def test_s87_an_exception_in_the_core_ends_the_process() -> None:
    async def main() -> None:
        cluster = Cluster(1, 3, has_processes=True)
        try:
            await cluster.start_all()
            await cluster.until(lambda: len(cluster.nodes()) == 3)
            leader = (await cluster.elect()).id
            victim = followers(cluster, leader)[0]

            def broken(*_: object) -> None:
                raise ZeroDivisionError("a bug in the core")

            cluster.members[victim].raft.step = broken  # type: ignore[method-assign]
            await cluster.until(lambda: victim in cluster.failures)
            assert isinstance(cluster.failures[victim], ZeroDivisionError)
            with pytest.raises(KvnodeError):
                await put(cluster, victim, b"x", timeout_ms=500)
            await put(cluster, leader, b"the others go on")
        finally:
            cluster.end_all()

    run_virtual(main(), rng=random.Random(1))
