"""Big deletes and reads of many keys beside everything else: nobody waits for them, no crash between slices loses any.

Virtual time does not pass while Python computes, so what is counted here are turns of the loop and slices.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from kvnode.errors import ConnectionLost
from kvnode.ids import Index
from kvnode.kv.interface import Options
from kvnode.kv.keys import TO_THE_END
from kvnode.kv.requests import Delete, DeleteReply, Put, Range, Txn
from kvnode.machine.machine import Applied, StateMachine
from kvnode.sim.loop import run_virtual
from kvnode.sim.runtime.cluster import Cluster

KEYS = 10_000
PATIENT = Options(timeout_ms=60_000)
ALL = Delete(b"k", b"l")
COUNT = Range(b"k", b"l", count_only=True)


def simulate(scenario: Callable[[Cluster], Awaitable[None]], **settings: object) -> None:
    """Run `scenario` on three started nodes, whose storage is made for `KEYS` keys written at once."""

    async def main() -> None:
        cluster = Cluster(1, 3, {"storage.segment_bytes": 1 << 20, **settings})
        await cluster.start_all()
        await scenario(cluster)
        assert not cluster.failures, cluster.failures

    run_virtual(main())


async def fill(cluster: Cluster) -> None:
    leader = await cluster.elect()
    for first in range(0, KEYS, 100):
        operations = tuple(Put(b"k%06d" % number, b"v") for number in range(first, first + 100))
        await leader.execute(Txn((), operations))
    await cluster.settle()


def machine_of(cluster: Cluster, member: int) -> StateMachine:
    return cluster.kv(member)._machine  # type: ignore[attr-defined,no-any-return]


def in_the_middle(machine: StateMachine) -> asyncio.Event:
    """Set after some slices of the next long command."""
    reached = asyncio.Event()
    resume, slices = machine.resume, 0

    def counted() -> Applied | None:
        nonlocal slices
        slices += 1
        if slices == 5:
            reached.set()
        return resume()

    machine.resume = counted  # type: ignore[method-assign]
    return reached


def test_puts_and_reads_go_on_while_tens_of_thousands_of_keys_are_deleted() -> None:
    async def scenario(cluster: Cluster) -> None:
        await fill(cluster)
        leader = await cluster.elect()
        term, revision = leader.term, leader.revision
        machine = machine_of(cluster, leader.id)
        deletion = asyncio.ensure_future(leader.execute(ALL, PATIENT))
        await in_the_middle(machine).wait()
        put = asyncio.ensure_future(leader.execute(Put(b"k", b"beside it"), PATIENT))
        pinned = Range(b"k", b"l", count_only=True, revision=revision)
        stale = Options(timeout_ms=60_000, consistency="stale")
        counts = [asyncio.ensure_future(leader.execute(pinned, stale))]
        turns = 0
        while machine.is_unfinished:
            assert leader.revision == revision
            assert (await leader.execute(Range(b"k000100"), stale)).count == 1
            await asyncio.sleep(0)
            turns += 1
        assert turns > KEYS // 1_000
        counts.append(asyncio.ensure_future(leader.execute(pinned, PATIENT)))
        reply = await deletion
        assert isinstance(reply, DeleteReply)
        assert (reply.deleted, reply.revision) == (KEYS, revision + 1)
        await put
        assert [(await count).count for count in counts] == [KEYS, KEYS]
        assert (await leader.execute(COUNT)).count == 1, "the put came after"
        assert leader.term == term
        await cluster.settle()

    simulate(scenario)


@pytest.mark.parametrize("end", ["crash", "kill"])
def test_a_node_that_dies_between_two_slices_loses_nothing(end: str) -> None:
    async def scenario(cluster: Cluster) -> None:
        await fill(cluster)
        leader = await cluster.elect()
        follower = next(member for member in cluster.ids if member != leader.id)
        deletion = asyncio.ensure_future(leader.execute(ALL, PATIENT))
        reached = {member: in_the_middle(machine_of(cluster, member)) for member in (leader.id, follower)}
        for victim, event in reached.items():
            await event.wait()
            assert machine_of(cluster, victim).is_unfinished
            getattr(cluster, end)(victim)
        await asyncio.gather(deletion, return_exceptions=True)
        await cluster.start(follower)
        await cluster.start(leader.id)
        new = await cluster.elect()
        await cluster.settle()
        assert (await new.execute(COUNT)).count == 0, "committed, though nobody could be told"
        await new.put("k", "after")
        await cluster.settle()

    simulate(scenario)


def test_many_long_reads_share_each_turn_and_do_not_notice_writes() -> None:
    """One turn of the loop takes one slice of all of them together; a flush or delete in between is not seen."""

    async def scenario(cluster: Cluster) -> None:
        await fill(cluster)
        leader = await cluster.elect()
        machine = machine_of(cluster, leader.id)
        pace = leader._path._range_reads._pace
        revision, stale = leader.revision, Options(timeout_ms=60_000, consistency="stale")
        requests = [
            Range(b"", TO_THE_END, count_only=True, revision=revision, descending=bool(n % 2)) for n in range(8)
        ]
        reads = [asyncio.ensure_future(leader.execute(request, stale)) for request in requests]
        await asyncio.sleep(0)
        others = [asyncio.ensure_future(leader.execute(ALL, PATIENT))]
        turns = 0
        while not all(read.done() for read in reads):
            await asyncio.sleep(0)
            turns += 1
            assert pace.left > -10
        assert turns > 5 * KEYS // 1_000
        assert [read.result().count for read in reads] == [KEYS] * 8
        await asyncio.gather(*others)
        assert (await leader.execute(COUNT)).count == 0
        assert machine.applied_index > Index(0)

    simulate(scenario, **{"storage.flush_ms": 10})


def test_a_read_ends_with_its_caller_and_with_its_node() -> None:
    async def scenario(cluster: Cluster) -> None:
        await fill(cluster)
        leader = await cluster.elect()
        reads = leader._path._range_reads
        stale = Options(timeout_ms=60_000, consistency="stale")
        one = asyncio.ensure_future(leader.execute(COUNT, stale))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert reads._waiting
        one.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
        assert not reads._waiting
        other = asyncio.ensure_future(leader.execute(COUNT, stale))
        await asyncio.sleep(0)
        cluster.kill(leader.id)
        with pytest.raises(ConnectionLost):
            await other

    simulate(scenario)
