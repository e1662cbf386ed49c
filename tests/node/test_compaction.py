"""Compaction on a cluster: given up on all nodes alike, removed everywhere, by age, by size and on request."""

from __future__ import annotations

import asyncio

import pytest

from kvnode.errors import BadRequest, Compacted, FutureRevision, NoSpace
from kvnode.kv.interface import KV, Options
from kvnode.kv.keys import TO_THE_END
from kvnode.kv.requests import Await, Delete, History, Put, Range, Sweep, Txn
from kvnode.machine.machine import StateMachine
from kvnode.sim.runtime.cluster import Cluster
from tests.node.scenario import simulate

STALE = Options(consistency="stale")


def machine_of(cluster: Cluster, member: int) -> StateMachine:
    return cluster.kv(member)._machine  # type: ignore[attr-defined,no-any-return]


async def swept(cluster: Cluster) -> None:
    await cluster.settle()
    for _ in range(100):
        machines = [machine_of(cluster, member) for member in cluster.ids]
        if all(machine.swept_revision == machine.compact_revision for machine in machines):
            break
        await asyncio.sleep(0.1)
    await cluster.settle()
    assert len({(m.compact_revision, m.swept_revision, m.logical_bytes, m.live_bytes) for m in machines}) == 1
    assert machines[0].swept_revision == machines[0].compact_revision
    assert len({machine.hash_at() for machine in machines}) == 1


async def fill(kv: KV, puts: int) -> None:
    for number in range(puts):
        await kv.put(f"k{number % 5}", f"{number}")


def test_what_is_given_up_is_refused_on_every_node_and_removed_on_every_node() -> None:
    async def scenario(cluster: Cluster) -> None:
        await fill(cluster.kv(1), 40)
        await cluster.kv(2).delete("k0")
        await cluster.kv(2).put("k1", "last")
        reply = await cluster.kv(3).compact(42)
        assert (reply.revision, reply.compact_revision) == (43, 42)
        for member in cluster.ids:
            kv = cluster.kv(member)
            for request in (Range(b"k1", revision=41), History(b"k1", revision=41), Range(b"", TO_THE_END, revision=1)):
                with pytest.raises(Compacted) as refused:
                    await kv.execute(request)
                assert refused.value.detail == {"compact_revision": 42}
            assert (await kv.get("k1", revision=42)) is not None
        await swept(cluster)
        for member in cluster.ids:
            status = cluster.members[member].node.status()
            assert (status.compact_revision, status.swept_revision) == (42, 42)
            assert status.history_bytes == 2 * 68 + 66, "what 42 and 43 hide, and the deletion that 42 is"
            assert [kv.key for kv in (await cluster.kv(member).range("", TO_THE_END)).items] == [
                b"k1",
                b"k2",
                b"k3",
                b"k4",
            ]
        with pytest.raises(FutureRevision):
            await cluster.kv(1).compact(44)
        assert (await cluster.kv(1).compact(1)).compact_revision == 42, "once more does no harm"
        for wrong in (0, -1, 1 << 63):
            with pytest.raises(BadRequest):
                await cluster.kv(1).compact(wrong)
        with pytest.raises(BadRequest):
            await cluster.kv(1).execute(Sweep(5, 5))  # type: ignore[call-overload]

    simulate(scenario)


def test_age_gives_up_exactly_what_is_older_than_the_retention() -> None:
    async def scenario(cluster: Cluster) -> None:
        kv = cluster.kv(1)
        for number in range(40):
            await kv.put("k", f"{number}")
            await asyncio.sleep(1.0)
        await swept(cluster)
        machine = machine_of(cluster, 1)
        floor = machine.compact_revision
        assert 40 - 10 - 5 <= floor - 1 <= 40 - 10 + 1, "ten seconds are kept, and a compaction interval"
        newest = machine.applied_time
        await cluster.kv(2).execute(Range(b"k"), Options(at_time=newest - (10_000 << 16)))
        with pytest.raises(Compacted):
            await cluster.kv(2).execute(Range(b"k"), Options(at_time=newest - (20_000 << 16)))
        await asyncio.sleep(100.0)
        assert machine.compact_revision == floor, "where nothing happens nothing grows old"

    simulate(scenario, **{"history.retention_ms": 10_000, "history.compact_ms": 2_000})


def test_compaction_is_proposed_by_number_of_revisions_before_the_time() -> None:
    async def scenario(cluster: Cluster) -> None:
        await fill(cluster.kv(1), 100)
        await asyncio.sleep(2.0)
        await fill(cluster.kv(1), 1)
        await asyncio.sleep(2.0)
        await swept(cluster)
        assert machine_of(cluster, 2).compact_revision >= 100

    simulate(scenario, **{"history.retention_ms": 1_000, "history.compact_revisions": 50, "history.compact_ms": 10**9})


def test_history_stays_within_its_budget() -> None:
    async def scenario(cluster: Cluster) -> None:
        for _ in range(10):
            await fill(cluster.kv(1), 100)
            await asyncio.sleep(1.0)
            await swept(cluster)
            machine = machine_of(cluster, 2)
            assert machine.history_bytes <= 4_000
        assert machine.history_bytes > 4_000 - 20 * 70, "no more is given up than needed"
        await cluster.kv(1).put("k", "v" * 10_000)
        await cluster.kv(1).put("k", "v" * 10_000)
        await asyncio.sleep(1.0)
        assert machine.compact_revision == machine.revision, "as far as it goes"
        assert machine.history_bytes > 4_000, "what the newest revision superseded stays readable until the next"

    simulate(scenario, **{"history.budget_bytes": 4_000, "history.compact_revisions": 10, "history.retention_ms": 0})


def test_the_quota_lets_compaction_pass_which_makes_room_again() -> None:
    async def scenario(cluster: Cluster) -> None:
        kv = cluster.kv(1)
        for _ in range(21):
            await kv.put("k", "v" * 50_000)
        await asyncio.sleep(1.1)
        assert cluster.nodes()[1].status().short_of_space, "before anybody is refused"
        with pytest.raises(NoSpace):
            await kv.put("k", "more")
        revision = (await kv.range("k")).revision
        await kv.compact(revision)
        await swept(cluster)
        await asyncio.sleep(1.1)
        status = cluster.nodes()[1].status()
        assert not status.short_of_space, "though nobody has written since"
        assert not any("quota" in alarm for alarm in status.alarms), status.alarms
        await kv.put("k", "again")

    simulate(scenario, **{"storage.quota_bytes": 1 << 20})


def test_a_new_leader_goes_on_where_the_old_one_stopped() -> None:
    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.elect()
        await fill(leader, 600)
        await leader.compact(600)
        await asyncio.sleep(0.2)
        machine = machine_of(cluster, leader.id)
        assert 0 < machine.swept_revision < 600, "it is in the midst of it"
        cluster.crash(leader.id)
        await cluster.elect()
        await cluster.start(leader.id)
        await swept(cluster)
        assert machine_of(cluster, leader.id).swept_revision == 600

    simulate(scenario, **{"history.sweep_changes": 10})


def test_a_long_poll_for_a_deletion_that_was_given_up_is_told_so() -> None:
    async def scenario(cluster: Cluster) -> None:
        kv = cluster.kv(1)
        put = await kv.put("k", "v")
        await kv.delete("k")
        last = (await kv.put("else", "v")).revision
        await kv.compact(last)
        with pytest.raises(Compacted):
            await kv.execute(Await(b"k", put.revision, 1_000))
        for after in (-1, 0, last):
            reply = await kv.execute(Await(b"k", after, 100))
            assert reply.items == ()
        waiting = asyncio.create_task(kv.execute(Await(b"else", last, 5_000)))
        await asyncio.sleep(0.1)
        await kv.execute(Txn((), (Delete(b"else"), Put(b"k", b"w"))))
        await kv.compact(last + 1)
        assert [(each.mod_revision, each.version) for each in (await waiting).items] == [(last + 1, 0)]

    simulate(scenario)
