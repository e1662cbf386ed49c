"""Leases under directed faults, on processes with loops and clocks of their own (S78–S80, LE-T3, LE-T4)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from kvnode.errors import KvnodeError, LeaseNotFound, TryAgain, Unknown
from kvnode.ids import NodeId
from kvnode.kv.interface import Options
from kvnode.kv.requests import LeaseGrant, LeaseKeepAlive, LeaseRead, LeaseRenew, Put
from kvnode.sim.runtime.cluster import Cluster
from tests.sim.test_runtime_scenarios import followers, simulate

TTL_MS = 4_000
TTL_S = TTL_MS / 1e3


async def leased(cluster: Cluster, member: int) -> int:
    """A lease with the key `k`."""
    lease = (await cluster.kv(member).execute(LeaseGrant(TTL_MS))).id
    await cluster.kv(member).execute(Put(b"k", b"v", lease))
    return lease


async def there(cluster: Cluster, member: int) -> bool:
    return await cluster.kv(member).get(b"k") is not None


async def gone_at(cluster: Cluster, member: int) -> float:
    while True:
        try:
            if not await there(cluster, member):
                return cluster.loop.time()
        except (TryAgain, Unknown):
            pass
        await asyncio.sleep(0.02)


async def renewed(cluster: Cluster, member: int, lease: int) -> float:
    """When a renewal that was answered had been sent."""
    while True:
        sent = cluster.loop.time()
        try:
            await cluster.kv(member).execute(LeaseKeepAlive(lease))
        except (TryAgain, Unknown):
            await asyncio.sleep(0.02)
        else:
            return sent


def test_s78_old_leader_does_not_revoke() -> None:
    """etcd #15247: a leader stops for longer than the TTL, its successor renews the lease, the old one goes on."""

    async def scenario(cluster: Cluster) -> None:
        old = (await cluster.elect()).id
        lease = await leased(cluster, old)
        loop = cluster.members[old].own_loop
        assert loop is not None
        loop.pause()
        other = followers(cluster, old)[0]
        last = 0.0
        for _ in range(8):
            await asyncio.sleep(TTL_S / 4)
            last = await renewed(cluster, other, lease)
        loop.resume()
        await asyncio.sleep(TTL_S / 2)
        assert await there(cluster, other), "the one that was stuck has carried out its old decision"
        assert await there(cluster, old)
        assert TTL_S <= await gone_at(cluster, other) - last < TTL_S + 1.5

    simulate(scenario)


def test_le_t4_a_stopped_or_deposed_leader_acknowledges_no_renewal() -> None:
    """A renewal that only an old leader has heard of would not hold at the new one."""

    async def scenario(cluster: Cluster) -> None:
        old = (await cluster.elect()).id
        lease = await leased(cluster, old)
        other = followers(cluster, old)[0]
        cluster.network.isolate(old)
        asked = asyncio.ensure_future(cluster.kv(old).execute(LeaseKeepAlive(lease), Options(timeout_ms=2_000)))
        with pytest.raises(KvnodeError):
            await asked
        await gone_at(cluster, other)
        cluster.network.heal()
        with pytest.raises(LeaseNotFound):
            await cluster.kv(old).execute(LeaseKeepAlive(lease))
        second = await leased(cluster, other)
        leader = (await cluster.elect()).id
        loop = cluster.members[leader].own_loop
        assert loop is not None
        loop.pause()
        asked = asyncio.ensure_future(cluster.kv(leader).execute(LeaseKeepAlive(second), Options(timeout_ms=1_000)))
        await gone_at(cluster, followers(cluster, leader)[0])
        loop.resume()
        with pytest.raises(KvnodeError):
            await asked

    simulate(scenario)


@pytest.mark.parametrize("fault", ["kill", "transfer", "pause"])
@pytest.mark.parametrize("silent_for", [0.1, 0.6], ids=["no-checkpoint", "checkpoint"])
def test_s80_lease_never_early_after_failover(silent_for: float, fault: str) -> None:
    """Of a renewal just before its end the next leader knows nothing, or has an old checkpoint: not to be believed."""

    async def scenario(cluster: Cluster) -> None:
        for _ in range(3):
            leader = (await cluster.elect()).id
            other = followers(cluster, leader)[0]
            await asyncio.sleep(0.5)
            lease = await leased(cluster, other)
            await asyncio.sleep(TTL_S * silent_for)
            sent = await renewed(cluster, other, lease)
            if fault == "kill":
                cluster.kill(leader)
            elif fault == "pause":
                loop = cluster.members[leader].own_loop
                assert loop is not None
                loop.pause()
            else:
                await cluster.members[leader].node.transfer_leadership(other)
            assert TTL_S <= await gone_at(cluster, other) - sent < TTL_S + 1.5
            if fault == "kill":
                await cluster.start(leader)
            elif fault == "pause":
                loop.resume()

    simulate(scenario)


@pytest.mark.parametrize("jump_ms", [-10 * 365 * 86_400_000, -60_000, 60_000, 10 * 365 * 86_400_000])
def test_s80_lease_with_jumping_wall_clock(jump_ms: int) -> None:
    async def scenario(cluster: Cluster) -> None:
        leader = (await cluster.elect()).id
        other = followers(cluster, leader)[0]
        lease = await leased(cluster, leader)
        sent = cluster.loop.time()
        for member in cluster.ids:
            cluster.members[member].clock.wall_offset_ms += jump_ms
            await asyncio.sleep(0.1)
        assert (await cluster.kv(other).execute(LeaseRead(lease))).remaining_ms > TTL_MS - 1_000
        assert TTL_S - 0.1 <= await gone_at(cluster, other) - sent < TTL_S + 1.5

    simulate(scenario)


def test_s79_revoke_races_keepalive() -> None:
    """A renewal that comes once the end is proposed waits for its fate, and is told it."""

    async def scenario(cluster: Cluster) -> None:
        leader = (await cluster.elect()).id
        await asyncio.sleep(0.5)
        lease = await leased(cluster, leader)
        sent = cluster.loop.time()
        outcomes: list[tuple[float, str]] = []

        async def renew_at(moment: float) -> None:
            await asyncio.sleep(sent + moment - cluster.loop.time())
            try:
                await cluster.kv(leader).execute(LeaseKeepAlive(lease))
            except LeaseNotFound:
                outcomes.append((moment, "gone"))
            else:
                outcomes.append((moment, "kept"))

        await asyncio.gather(*(renew_at(TTL_S + 0.02 * step) for step in range(10)))
        outcomes.sort()
        fates = [fate for _, fate in outcomes]
        assert fates in (["kept"] * 10, ["gone"] * 10), "kept by the first or by none"
        assert await there(cluster, leader) == (fates[0] == "kept")

    simulate(scenario)


def test_a_checkpoint_is_taken_back_before_the_renewal_is_answered() -> None:
    """LE2: else the next leader would go by the checkpoint."""

    async def scenario(cluster: Cluster) -> None:
        leader = (await cluster.elect()).id
        await asyncio.sleep(0.5)
        lease = await leased(cluster, leader)
        table: Callable[[NodeId], object] = lambda member: cluster.members[member].node._machine.leases.get(lease)  # noqa: E731
        assert table(leader).remaining_ms == 0
        await asyncio.sleep(TTL_S * 0.6)
        noted, before = table(leader).remaining_ms, table(leader).renewals
        assert 0 < noted < TTL_MS
        await renewed(cluster, followers(cluster, leader)[0], lease)
        assert (table(leader).remaining_ms, table(leader).renewals) == (0, before + 1)
        applied = [step.request for step in cluster.applied.steps]
        assert LeaseRenew(lease) in applied

    simulate(scenario)
