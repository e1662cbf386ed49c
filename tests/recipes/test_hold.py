"""Holding a lock over real nodes, in virtual time: kept while the block runs, let go after it, and its loss is told."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager

import pytest

from kvnode.errors import Fenced, LockHeld
from kvnode.ids import NodeId
from kvnode.kv.requests import Command, LeaseRevoke, Put
from kvnode.recipes import hold, lock
from kvnode.recipes.hold import Held
from kvnode.recipes.kept_lease import Standing
from kvnode.sim.runtime.cluster import Cluster
from tests.node.scenario import simulate

TTL_MS = 6_000


def now_ms() -> int:
    return round(asyncio.get_running_loop().time() * 1e3)


def locked(cluster: Cluster, member: int, owner: str, wait_ms: int = 0) -> AbstractAsyncContextManager[Held]:
    return hold.lock(cluster.kv(member), "deploy", ttl_ms=TTL_MS, wait_ms=wait_ms, owner=owner, now_ms=now_ms)


async def holder(cluster: Cluster, member: int = 1) -> bytes | None:
    found = await lock.holder(cluster.kv(member), b"deploy")
    return found and found.value


def test_it_is_held_longer_than_its_ttl_and_then_let_go() -> None:
    async def scenario(cluster: Cluster) -> None:
        async with locked(cluster, 2, "ann") as held:
            assert (held.name, held.value, held.ttl_ms) == (b"deploy", b"ann", TTL_MS)
            await cluster.kv(3).execute(Command(Put(b"state", b"mine"), fence=held.fence))
            for _ in range(40):
                assert held.standing is Standing.SURE
                assert await holder(cluster) == b"ann"
                with pytest.raises(LockHeld):
                    await locked(cluster, 3, "bob").__aenter__()
                await asyncio.sleep(0.5)
        assert await holder(cluster) is None
        async with locked(cluster, 3, "bob") as later:
            assert later.token > held.token

    simulate(scenario)


def test_one_who_waited_longer_than_the_ttl_is_sure_when_its_block_begins() -> None:
    async def scenario(cluster: Cluster) -> None:
        async def hold_long() -> None:
            async with locked(cluster, 1, "ann"):
                await asyncio.sleep(3 * TTL_MS / 1e3)

        holding = asyncio.ensure_future(hold_long())
        await asyncio.sleep(0.5)
        async with locked(cluster, 2, "bob", wait_ms=60_000) as held:
            assert now_ms() >= 3 * TTL_MS
            assert held.standing is Standing.SURE
            await asyncio.sleep(2 * TTL_MS / 1e3)
            assert held.standing is Standing.SURE
        await holding

    simulate(scenario)


def test_a_lease_that_somebody_ends_is_a_loss_and_leaving_the_block_says_so() -> None:
    async def scenario(cluster: Cluster) -> None:
        with pytest.raises(Fenced, match="'deploy' was lost while it was held") as told:  # noqa: PT012
            async with locked(cluster, 2, "ann") as held:
                await cluster.kv(1).execute(LeaseRevoke(held.lease))
                with pytest.raises(Fenced):
                    await cluster.kv(3).execute(Command(Put(b"state", b"late"), fence=held.fence))
                await held.lost()
                assert held.standing is Standing.LOST
                assert now_ms() < TTL_MS
        assert told.value.detail == {"token": held.token}
        with pytest.raises(Fenced, match="ended by another"):
            async with locked(cluster, 2, "ann") as held:
                await cluster.kv(1).execute(LeaseRevoke(held.lease))

    simulate(scenario)


def test_an_error_of_the_block_is_not_hidden_and_the_lock_is_let_go() -> None:
    async def scenario(cluster: Cluster) -> None:
        with pytest.raises(ZeroDivisionError):
            async with locked(cluster, 2, "ann"):
                raise ZeroDivisionError
        assert await holder(cluster) is None

        async def held_for_ever() -> None:
            async with locked(cluster, 2, "ann"):
                await asyncio.sleep(1e6)

        holding = asyncio.ensure_future(held_for_ever())
        await asyncio.sleep(TTL_MS / 1e3)
        holding.cancel()
        with pytest.raises(asyncio.CancelledError):
            await holding
        await asyncio.sleep(0.5)
        assert await holder(cluster) is None

    simulate(scenario)


def test_a_holder_cut_off_knows_that_it_lost_before_another_holds() -> None:
    """The property that the belief is for: at no moment do two believe that they hold it."""

    async def scenario(cluster: Cluster) -> None:
        for turn in range(3):
            await one_turn(cluster, 1 + turn, 1 + (turn + 1) % 3)

    async def one_turn(cluster: Cluster, cut: int, other: int) -> None:
        alone = NodeId(cut)
        with pytest.raises(Fenced):  # noqa: PT012
            async with locked(cluster, cut, "ann") as held:
                waiting = asyncio.ensure_future(_acquired(cluster, other, held))
                await asyncio.sleep(0.1 + 0.7 * cut)
                cluster.network.isolate(alone)
                believed_until = await _until_lost(held)
                granted = await waiting
                assert believed_until <= granted
                cluster.network.heal()
                await cluster.elect()
                await asyncio.sleep(3)

    async def _acquired(cluster: Cluster, member: int, before: Held) -> int:
        async with locked(cluster, member, "bob", wait_ms=120_000) as held:
            assert held.token > before.token
            assert before.standing is Standing.LOST
            return now_ms()

    async def _until_lost(held: Held) -> int:
        await held.lost()
        return now_ms()

    simulate(scenario)
