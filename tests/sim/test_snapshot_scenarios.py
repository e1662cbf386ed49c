"""Directed scenarios of a cluster's life, simulated: trimmed logs, snapshots, members that come and go."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

from kvnode.ids import NodeId
from kvnode.kv.interface import Options
from kvnode.kv.requests import LeaseGrant, Put
from kvnode.sim.loop import run_virtual
from kvnode.sim.runtime.cluster import Cluster
from tests.sim.test_runtime_scenarios import followers

SMALL: dict[str, object] = {
    "storage.segment_bytes": 8 << 10,
    "storage.tail_bytes": 0,
    "storage.flush_versions": 5,
    "storage.flush_ms": 50,
}
"""Settings under which a log is trimmed all the time."""


def simulate(
    scenario: Callable[[Cluster], Awaitable[None]], *, size: int = 3, seed: int = 1, **settings: object
) -> Cluster:
    made: list[Cluster] = []

    async def main() -> None:
        named = {name.replace("__", "."): value for name, value in settings.items()}
        cluster = Cluster(seed, size, {**SMALL, **named}, has_processes=True)
        made.append(cluster)
        try:
            await cluster.start_all()
            await cluster.until(lambda: len(cluster.nodes()) == size)
            await cluster.elect()
            await scenario(cluster)
            assert not cluster.errors, cluster.errors
        finally:
            cluster.end_all()

    run_virtual(main(), rng=random.Random(seed))
    return made[0]


async def write(cluster: Cluster, member: int, count: int, *, first: int = 0, size: int = 500) -> int:
    """`count` puts; returns the last revision."""
    revision = 0
    for number in range(first, first + count):
        value = b"%d " % number + b"." * size
        reply = await cluster.kv(member).execute(Put(b"k%d" % (number % 50), value), Options(timeout_ms=5_000))
        revision = reply.revision
    return revision


async def fall_behind(cluster: Cluster, member: NodeId) -> NodeId:
    """`member` is down while everybody else trims their logs above what it has. Returns the leader."""
    leader = (await cluster.elect()).id
    assert leader != member
    has = cluster.members[member].raft.last_index
    cluster.kill(member)
    await write(cluster, leader, 100)
    others = [other for other in cluster.members if other != member]
    await cluster.until(lambda: all(cluster.members[other].wal.first_index > has + 1 for other in others))
    return leader


async def equal(cluster: Cluster, among: list[NodeId] | None = None) -> None:
    """All are in one state at one index."""
    await cluster.until(lambda: all(member in cluster.nodes() for member in among or cluster.ids))
    await cluster.settle()


def installed(cluster: Cluster) -> int:
    return cluster.observer.marks.get("snapshot_installed", 0)


def test_a_follower_that_was_away_comes_back_by_a_snapshot() -> None:
    """Keys, leases, sessions are equal: all of it is in the digest. What follows goes by the log again."""

    async def scenario(cluster: Cluster) -> None:
        leader = (await cluster.elect()).id
        away = followers(cluster, leader)[0]
        granted = await cluster.kv(leader).execute(LeaseGrant(60_000), Options(timeout_ms=5_000))
        await cluster.kv(leader).execute(Put(b"held", b"x", lease=granted.id), Options(timeout_ms=5_000))
        await fall_behind(cluster, away)
        cluster.begin(away)
        await equal(cluster)
        assert installed(cluster) == 1
        machine = cluster.members[away].node._machine
        assert machine.leases.get(granted.id) is not None
        await write(cluster, away, 10)
        await equal(cluster)
        assert installed(cluster) == 1

    simulate(scenario)
