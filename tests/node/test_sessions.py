"""Named writes on a running cluster: one effect and one answer, whatever happens to nodes and answers (I20).

What the tables do by themselves is `tests/machine/test_sessions.py`'s; here are leaders, logs, restarts and clocks.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kvnode.errors import (
    BadRequest,
    CompareFailed,
    Conflict,
    Fenced,
    KvnodeError,
    Overloaded,
    SequenceTooOld,
    SessionExpired,
    TryAgain,
    Unknown,
)
from kvnode.ids import NodeId
from kvnode.kv.interface import Options
from kvnode.kv.requests import (
    ANY_REVISION,
    Command,
    Compare,
    Delete,
    Fence,
    Put,
    Range,
    SessionEnd,
    SessionOpen,
    Txn,
)
from kvnode.machine.exactly_once import ExactlyOnce
from kvnode.sim.runtime.cluster import Cluster
from tests.node.scenario import simulate


async def opened(cluster: Cluster, member: int = 1, ttl_ms: int = 3_600_000) -> int:
    reply = await cluster.kv(member).execute(SessionOpen(ttl_ms))
    return reply.session


async def insisting(cluster: Cluster, member: int, command: Command) -> Any:
    """A client that asks one node again and again until it is told something certain."""
    async with asyncio.timeout(20.0):
        while True:
            try:
                return await cluster.kv(member).execute(command, Options(timeout_ms=1_000))
            except (TryAgain, Unknown):
                await asyncio.sleep(0.05)


def tables(cluster: Cluster, member: NodeId) -> ExactlyOnce:
    return cluster.members[member].node._machine.exactly_once


async def versions(cluster: Cluster, member: int, key: str) -> int:
    return len((await cluster.kv(member).history(key)).items)


def test_s76_duplicate_request_every_hop() -> None:
    """Repeats on every node at any time: beside the first, after a failover, after a restart of everybody (IR-T2)."""

    async def scenario(cluster: Cluster) -> None:
        session = await opened(cluster)
        writes = [
            Command(Put(b"k", b"v", if_revision=0, return_previous=True), session, 1),
            Command(Put(b"k", b"w", return_previous=True), key=b"once"),
            Command(Txn((Compare(b"k", "version", "=", 2),), (Put(b"k", b"x"), Range(b"k"))), session, 2),
            Command(Delete(b"", b"l", return_previous=True), session, 3),
        ]
        first = [await cluster.kv(1 + number % 3).execute(write) for number, write in enumerate(writes)]
        refused = Command(Put(b"k", b"v", if_revision=7), session, 4)
        with pytest.raises(CompareFailed) as refusal:
            await cluster.kv(2).execute(refused)
        await cluster.kv(2).put("k", "somebody else's")
        revision = 6

        async def repeat(members: list[NodeId]) -> None:
            for member in members:
                assert [await insisting(cluster, member, write) for write in writes] == first
                with pytest.raises(CompareFailed) as again:
                    await insisting(cluster, member, refused)
                assert (again.value.message, again.value.detail) == (refusal.value.message, refusal.value.detail)

        await repeat(cluster.ids)
        together = await asyncio.gather(*(insisting(cluster, m, write) for write in writes for m in cluster.ids))
        assert [together[3 * number] for number in range(4)] == first
        leader = (await cluster.elect()).id
        cluster.kill(leader)
        await cluster.until(lambda: (now := cluster.leader()) is not None and now.id != leader)
        await repeat(sorted(cluster.members))
        await asyncio.sleep(0.5)  # the new leader has begun its duties
        await repeat(sorted(cluster.members))
        for member in sorted(cluster.members):
            cluster.crash(member)
        await cluster.start_all()
        await cluster.elect()
        await repeat(cluster.ids)
        await asyncio.sleep(0.5)
        await repeat(cluster.ids)
        await cluster.settle()
        assert {node.revision for node in cluster.nodes().values()} == {revision}
        assert await versions(cluster, 1, "k") == 5
        found = await cluster.kv(3).get("k")
        assert found is not None
        assert found.value == b"somebody else's"

    simulate(scenario)


def test_f44_an_answer_lost_with_its_leader_is_given_by_the_next() -> None:
    """The leader is cut off with the write in its log: its client hears nothing, asks elsewhere, and is told once."""

    async def scenario(cluster: Cluster) -> None:
        session = await opened(cluster)
        for number in range(8):
            leader = await cluster.elect()
            command = Command(Put(b"k", b"%d" % number), session, number + 1, number)
            asked = asyncio.ensure_future(leader.execute(command, Options(timeout_ms=700)))
            await asyncio.sleep(0.0002 * number)  # before it leaves, on its way, acknowledged by a majority
            cluster.network.isolate(leader.id)
            other = next(member for member in cluster.ids if member != leader.id)
            reply = await insisting(cluster, other, command)
            assert reply.version == number + 1
            [first] = await asyncio.gather(asked, return_exceptions=True)
            assert first == reply or isinstance(first, Unknown | TryAgain), first
            cluster.network.heal()
            await cluster.settle()
        assert await versions(cluster, 1, "k") == 8

    simulate(scenario)


def test_f88_a_client_that_leaves_in_the_middle_finds_its_answer() -> None:
    async def scenario(cluster: Cluster) -> None:
        session = await opened(cluster)
        for number in range(12):
            command = Command(Put(b"k", b"%d" % number), session, number + 1)
            asked = asyncio.ensure_future(cluster.kv(2).execute(command))
            await asyncio.sleep(0.0002 * number)
            asked.cancel()
            assert (await insisting(cluster, 3, command)).version == number + 1
        await cluster.settle()
        assert await versions(cluster, 1, "k") == 12

    simulate(scenario)


def test_s77_session_expiry_deterministic() -> None:
    """It ends by an entry, on all nodes alike; what comes late is refused and changes nothing (IR-T3)."""

    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.elect()
        kept, lost = await opened(cluster, 1, 2_000), await opened(cluster, 2, 1_000)
        write = Command(Put(b"k", b"v"), lost, 1)
        await cluster.kv(3).execute(write)
        opened_at = cluster.loop.time()
        while cluster.loop.time() < opened_at + 5.0:
            await cluster.kv(1).execute(Command(Put(b"busy", b"v"), kept, int(cluster.loop.time() * 10)))
            if cluster.loop.time() < opened_at + 0.9:
                assert tables(cluster, leader.id).sessions.get(lost) is not None
            await asyncio.sleep(0.5)
        await cluster.settle()
        assert [tables(cluster, member).sessions.ids() for member in cluster.ids] == [[kept]] * 3
        ends = [step for step in cluster.applied.steps if isinstance(step.request, SessionEnd)]
        assert [step.request.sessions[0][0] for step in ends if isinstance(step.request, SessionEnd)] == [lost]
        before = [node.revision for node in cluster.nodes().values()]
        for member in cluster.ids:
            with pytest.raises(SessionExpired):
                await cluster.kv(member).execute(write)
        await cluster.settle()
        assert [node.revision for node in cluster.nodes().values()] == before
        assert await versions(cluster, 1, "k") == 1

    simulate(scenario)


def test_after_a_change_of_leader_everything_gets_its_whole_time_again() -> None:
    async def scenario(cluster: Cluster) -> None:
        first = await cluster.elect()
        session = await opened(cluster, ttl_ms=2_000)
        await cluster.kv(1).execute(Command(Put(b"k", b"v"), key=b"once"))
        await asyncio.sleep(1.8)
        cluster.kill(first.id)
        await cluster.until(lambda: (now := cluster.leader()) is not None and now.id != first.id)
        leader = await cluster.elect()
        since = cluster.loop.time()
        await asyncio.sleep(1.5)
        assert tables(cluster, leader.id).sessions.get(session) is not None
        assert len(tables(cluster, leader.id).keys) == 1
        await cluster.until(lambda: len(tables(cluster, leader.id).sessions) == 0)
        await cluster.until(lambda: len(tables(cluster, leader.id).keys) == 0)
        assert 1.9 < cluster.loop.time() - since < 2.5

    simulate(scenario, limits__idempotency_ms=2_000)


def test_a_leader_that_led_before_begins_anew() -> None:
    """While somebody else led, or nobody, its clock was not the one to go by: clients may not have got through."""

    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.elect()
        other = next(node for node in cluster.nodes().values() if node.id != leader.id)
        session = await opened(cluster, ttl_ms=2_000)
        await asyncio.sleep(1.5)
        await leader.transfer_leadership(other.id)
        await cluster.until(lambda: other.status().role == "leader" and other.is_ready())
        await asyncio.sleep(0.2)
        await other.transfer_leadership(leader.id)
        await cluster.until(lambda: leader.status().role == "leader" and leader.is_ready())
        await asyncio.sleep(1.5)
        assert tables(cluster, leader.id).sessions.get(session) is not None
        await cluster.until(lambda: len(tables(cluster, leader.id).sessions) == 0, within_s=1.0)

    simulate(scenario)


def test_an_idempotency_key_is_kept_for_its_window_however_often_it_is_asked_for() -> None:
    async def scenario(cluster: Cluster) -> None:
        command = Command(Put(b"k", b"v"), key=b"once")
        first = await cluster.kv(1).execute(command)
        since = cluster.loop.time()
        while cluster.loop.time() < since + 0.95:
            assert await cluster.kv(2).execute(command) == first
            await asyncio.sleep(0.1)
        with pytest.raises(Conflict):
            await cluster.kv(3).execute(Command(Put(b"k", b"w"), key=b"once"))
        await cluster.until(lambda: not any(len(tables(cluster, member).keys) for member in cluster.ids), within_s=1.0)
        assert (await cluster.kv(2).execute(command)).version == 2
        others = [Command(Put(b"k", b"v"), key=b"%d" % number) for number in range(200)]
        for other in others:
            await cluster.kv(1).execute(other)
            await asyncio.sleep(0.02)
        await cluster.until(lambda: not len(tables(cluster, NodeId(1)).keys), within_s=2.0)

    simulate(scenario, limits__idempotency_ms=1_000)


def test_many_sessions_are_looked_at_in_turns() -> None:
    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.elect()
        await asyncio.gather(*(opened(cluster, ttl_ms=1_000) for _ in range(1_500)))
        assert len(tables(cluster, leader.id).sessions) == 1_500
        await cluster.until(lambda: not any(len(tables(cluster, m).sessions) for m in cluster.ids), within_s=2.0)
        await cluster.settle()

    simulate(scenario)


def test_what_is_refused_before_or_without_being_executed() -> None:
    async def scenario(cluster: Cluster) -> None:
        kv = cluster.kv(1)
        session = await opened(cluster)
        put = Put(b"k", b"v")
        refused: list[tuple[Any, type[KvnodeError]]] = [
            (Command(put, session, 0), BadRequest),
            (Command(put, session, 2, 2), BadRequest),
            (Command(put, session, 2, key=b"x"), BadRequest),
            (Command(put, sequence=2), BadRequest),
            (Command(put, key=bytes(256)), BadRequest),
            (Command(put, fence=Fence(b"lock", 1)), Fenced),
            (Command(Put(b"k", b"v", if_revision=-5), session, 1), BadRequest),
            (SessionOpen(1), BadRequest),
            (SessionOpen(1 << 40), BadRequest),
            (SessionEnd((), 5), BadRequest),
            (Command(put, session + 1, 1), SessionExpired),
        ]
        for request, error in refused:
            with pytest.raises(error):
                await kv.execute(request)
        for sequence in (1, 2):
            await kv.execute(Command(put, session, sequence))
        with pytest.raises(Overloaded) as full:
            await kv.execute(Command(put, session, 3))
        assert not full.value.may_have_applied
        await kv.execute(Command(put, session, 3, 2))
        with pytest.raises(SequenceTooOld):
            await kv.execute(Command(put, session, 2))
        with pytest.raises(Conflict):
            await kv.execute(Command(Put(b"k", b"v", if_revision=ANY_REVISION, return_previous=True), session, 3))
        assert (await kv.execute(SessionEnd(((session, 0),)))).sessions == 1
        assert await versions(cluster, 1, "k") == 3

    simulate(scenario, limits__session_answers_max=2)
