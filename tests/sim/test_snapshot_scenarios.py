"""Directed scenarios on the runtime's simulator: logs that are trimmed, snapshots, members that come and go."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from kvnode.config import LimitsSection
from kvnode.errors import LogCorrupted, MemberRemoved, StateDiverged
from kvnode.ids import NodeId
from kvnode.kv.events import Changes, WatchPart
from kvnode.kv.interface import Options
from kvnode.kv.members import RemoveMember
from kvnode.kv.requests import LeaseGrant, Put, Range, Watch
from kvnode.machine.machine import StateMachine
from kvnode.sim.loop import run_virtual
from kvnode.sim.runtime.applied import StrayLog, WatchedMachine
from kvnode.sim.runtime.cluster import LOG_DIRECTORY, Cluster
from kvnode.sim.runtime.member import DATA_DIR
from kvnode.wire.frames import FEATURE_LEVEL
from tests.sim.test_runtime_scenarios import followers

RECEIVING = f"{DATA_DIR}/snap/receiving"

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


async def fall_behind(cluster: Cluster, member: NodeId, *, count: int = 100) -> NodeId:
    """`member` is down while everybody else trims their logs above what it has. Returns the leader."""
    leader = (await cluster.elect()).id
    assert leader != member
    has = cluster.members[member].raft.last_index
    cluster.kill(member)
    await write(cluster, leader, count)
    others = [other for other in cluster.members if other != member]
    await cluster.until(lambda: all(cluster.members[other].wal.first_index > has + 1 for other in others))
    return leader


async def equal(cluster: Cluster) -> None:
    """All members are in one state at one index."""

    def are_equal() -> bool:
        nodes = [cluster.nodes().get(member) for member in cluster.ids]
        return len({(node.status().applied_index, node.status().state_hash) if node else None for node in nodes}) == 1

    await cluster.until(are_equal, within_s=60.0)
    assert not cluster.failures.keys() - cluster.removed.keys(), cluster.failures


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


def received(cluster: Cluster, member: NodeId) -> int:
    """How much of a snapshot is on its disk."""
    disk = cluster.disks[member]
    return len(disk.durable_content(RECEIVING)) if member in cluster.nodes() and disk.exists(RECEIVING) else 0


def test_the_log_goes_no_further_than_the_store() -> None:
    """Flushes take a second: by the end of one much more is applied. A start must find what is between the two."""

    async def scenario(cluster: Cluster) -> None:
        leader = (await cluster.elect()).id
        for member in cluster.members.values():
            member.workers["flusher"].delay_s = 1.0
        for first in range(0, 400, 10):
            await write(cluster, leader, 10, first=first)
            await asyncio.sleep(0.05)
            for member in cluster.ids:
                (stored,) = [
                    StateMachine(backend, LimitsSection()) for backend in cluster.stores[member].backends.values()
                ]
                assert cluster.members[member].wal.first_index <= stored.applied_index + 1
        assert cluster.observer.marks["log_trimmed"]
        for member in cluster.ids:
            cluster.crash(member)
        for member in cluster.ids:
            cluster.begin(member)
        await equal(cluster)

    simulate(scenario)


def is_receiving(cluster: Cluster, member: NodeId) -> bool:
    """Some of a snapshot is on its disk."""
    return member in cluster.nodes() and cluster.disks[member].exists(RECEIVING)


def test_a_watch_goes_on_through_the_jump() -> None:
    """Revisions that the snapshot holds and nobody here has applied are told all the same, once, in order."""

    async def scenario(cluster: Cluster) -> None:
        leader = (await cluster.elect()).id
        away = followers(cluster, leader)[0]
        seen: list[int] = []

        def on_part(part: WatchPart) -> bool:
            if isinstance(part, Changes):
                seen.extend(made.revision for made in part.sets)
            return True

        watch = cluster.members[away].watch(Watch(b"k", b"l", from_revision=2), Options(consistency="stale"), on_part)
        await write(cluster, leader, 5)
        await cluster.until(lambda: len(seen) == 5)
        cluster.network.isolate(away)
        last = await write(cluster, leader, 100)
        has = cluster.members[away].raft.last_index
        others = [leader, *(other for other in followers(cluster, leader) if other != away)]
        await cluster.until(lambda: all(cluster.members[other].wal.first_index > has + 1 for other in others))
        cluster.network.heal()
        await cluster.until(lambda: installed(cluster) == 1)
        await equal(cluster)
        await cluster.until(lambda: watch.done() or (seen and seen[-1] == last))
        assert not watch.done(), watch
        assert seen == list(range(2, last + 1))
        watch.cancel()

    simulate(scenario)


@pytest.mark.parametrize("how", ["flap", "silence", "kill follower", "power loss", "kill leader", "rot"])
def test_a_snapshot_that_is_broken_in_the_middle_comes_all_the_same(how: str) -> None:
    async def scenario(cluster: Cluster) -> None:
        leader = (await cluster.elect()).id
        away = followers(cluster, leader)[0]
        await write(cluster, leader, 200, size=4_000)
        await fall_behind(cluster, away)
        cluster.network.rot = 1.0 if how == "rot" else 0.0
        cluster.begin(away)
        await cluster.until(lambda: is_receiving(cluster, away))
        if how == "flap":
            for link in cluster.network._snapshots_between(leader, away):
                cluster.network.end_snapshot(link)
        elif how == "silence":
            cluster.network.silence(leader, away)
            await asyncio.sleep(5.0)
            cluster.network.heal()
        elif how == "kill follower":
            cluster.kill(away)
            cluster.begin(away)
        elif how == "power loss":
            cluster.crash(away)
            cluster.begin(away)
        elif how == "kill leader":
            cluster.kill(leader)
            await cluster.elect()
            cluster.begin(leader)
        else:
            await asyncio.sleep(3.0)
            assert installed(cluster) == 0
            assert cluster.network.counts["blocks_rotten"] > 0
            cluster.network.rot = 0.0
        await cluster.until(lambda: installed(cluster) == 1, within_s=60.0)
        await equal(cluster)

    simulate(scenario, peer__snapshot_bytes_per_s=200_000)


def test_a_transfer_goes_on_where_it_was() -> None:
    async def scenario(cluster: Cluster) -> None:
        leader = (await cluster.elect()).id
        away = followers(cluster, leader)[0]
        await write(cluster, leader, 200, size=4_000)
        await fall_behind(cluster, away)
        cluster.begin(away)
        await cluster.until(lambda: is_receiving(cluster, away) and received(cluster, away) > 300_000)
        for link in cluster.network._snapshots_between(leader, away):
            cluster.network.end_snapshot(link)
        await cluster.until(lambda: installed(cluster) == 1, within_s=60.0)
        assert cluster.observer.marks.get("snapshot_resumed")
        await equal(cluster)

    simulate(scenario, peer__snapshot_bytes_per_s=200_000)


@pytest.mark.parametrize("part", range(6))
def test_power_is_lost_at_every_disk_operation_of_an_install(part: int) -> None:
    """reliability §5.8: whatever was done, the start afterwards finds one whole state and a log that fits it."""

    async def install_interrupted(cluster: Cluster, away: NodeId, operation: int) -> None:
        await fall_behind(cluster, away, count=40)
        before = installed(cluster)
        cluster.begin(away)
        # The leader tries again after a pause that grows with what failed.
        await cluster.until(lambda: is_receiving(cluster, away) or installed(cluster) > before, within_s=60.0)
        disk = cluster.disks[away]
        disk.crash_at(disk.changes + operation)
        await cluster.until(lambda: away not in cluster.members or installed(cluster) > before, within_s=60.0)
        if away in cluster.members:
            cluster.crash(away)
        cluster.begin(away)
        await equal(cluster)
        await write(cluster, away, 3)

    async def scenario(cluster: Cluster) -> None:
        leader = (await cluster.elect()).id
        away = followers(cluster, leader)[0]
        for operation in range(1 + part, 49, 6):
            await install_interrupted(cluster, away, operation)
        if part == 0:
            assert cluster.observer.marks.get("install_finished_at_start"), cluster.observer.marks

    simulate(scenario, seed=part)


def test_s57_two_snapshots_in_quick_succession() -> None:
    """Another leader has a newer one while the first is under way: one of them is installed, then what follows."""

    async def scenario(cluster: Cluster) -> None:
        leader = (await cluster.elect()).id
        away = followers(cluster, leader)[0]
        await write(cluster, leader, 200, size=4_000)
        await fall_behind(cluster, away)
        cluster.begin(away)
        await cluster.until(lambda: is_receiving(cluster, away))
        cluster.kill(leader)
        other = (await cluster.elect()).id
        cluster.begin(leader)
        await write(cluster, other, 60)
        await cluster.until(lambda: installed(cluster) >= 1, within_s=60.0)
        await equal(cluster)
        assert (await cluster.kv(away).execute(Range(b"k9"))).items

    simulate(scenario, peer__snapshot_bytes_per_s=200_000)


@pytest.mark.parametrize("is_behind", [False, True])
def test_a_damaged_log_is_made_good_by_a_snapshot(is_behind: bool) -> None:
    """In quarantine, with a store that may be ahead of what is left of its log (I16)."""

    async def scenario(cluster: Cluster) -> None:
        leader = (await cluster.elect()).id
        victim = followers(cluster, leader)[0]
        await write(cluster, leader, 100)
        await equal(cluster)
        if is_behind:
            await fall_behind(cluster, victim)
        else:
            cluster.kill(victim)
        disk = cluster.disk_of(victim)
        disk.sync_everything()
        oldest, *others = [path for path in disk.files() if path.startswith(f"{LOG_DIRECTORY}/0")]
        assert len(others) >= 2
        disk.flip_bit(oldest, len(disk.durable_content(oldest)) // 2, 3)
        for other in followers(cluster, victim):
            cluster.network.cut(victim, other)
        cluster.begin(victim)
        await cluster.until(lambda: victim in cluster.failures, within_s=20.0)  # the scrubber has found it
        assert isinstance(cluster.failures[victim], LogCorrupted)
        cluster.kill(victim)
        cluster.network.heal()
        cluster.begin(victim)
        await cluster.until(lambda: victim in cluster.nodes())
        found = cluster.observer.marks
        assert found.get("quarantine_entered") == 1
        await cluster.until(lambda: found.get("quarantine_left") == 1, within_s=30.0)
        await equal(cluster)
        assert installed(cluster) == 1, "what was lost is long trimmed"
        cluster.kill(leader)
        await write(cluster, victim, 5)

    simulate(scenario, storage__tail_bytes=32 << 10, storage__scrub_every_s=1)


# ── members ─────────────────────────────────────────────────────────────────────────────────────────


async def voters(cluster: Cluster, *ids: int) -> None:
    """Until the applied configuration has these voters, and no learners."""

    def is_so() -> bool:
        found = cluster.configuration
        return found.voters == ids and not found.learners

    await cluster.until(is_so, within_s=30.0)


async def remove(cluster: Cluster, through: int, member: int) -> None:
    await cluster.change_members(lambda: NodeId(through), RemoveMember(NodeId(member)))


def test_a_wiped_member_comes_back_as_a_new_one_and_the_old_one_goes() -> None:
    async def scenario(cluster: Cluster) -> None:
        leader = (await cluster.elect()).id
        lost = followers(cluster, leader)[0]
        await fall_behind(cluster, lost)
        address = cluster.configs[lost].peer_address
        joined = await cluster.join(lambda: leader, replaces=lost, address=address)
        assert joined == 4
        await voters(cluster, *sorted({1, 2, 3, 4} - {lost}))
        assert lost in cluster.removed
        await equal(cluster)
        assert installed(cluster) == 1
        await write(cluster, joined, 5)
        cluster.begin(lost)
        await cluster.until(lambda: lost in cluster.failures, within_s=30.0)
        assert isinstance(cluster.failures[lost], MemberRemoved)
        assert not cluster.members[lost].connections

    simulate(scenario)


def test_3_to_5_to_3_with_the_leader_among_those_that_go() -> None:
    async def scenario(cluster: Cluster) -> None:
        leader = (await cluster.elect()).id
        await write(cluster, leader, 100)
        for _ in range(2):
            await cluster.join(lambda: leader)
        await voters(cluster, 1, 2, 3, 4, 5)
        await remove(cluster, leader, leader)
        await cluster.until(lambda: (found := cluster.leader()) is not None and found.id != leader)
        assert leader in cluster.removed
        await cluster.until(lambda: leader in cluster.failures, within_s=30.0)
        assert isinstance(cluster.failures[leader], MemberRemoved)
        other = (await cluster.elect()).id
        await remove(cluster, other, min(set(cluster.ids) - {other, 4, 5}))
        assert len(cluster.configuration.voters) == 3
        await write(cluster, other, 20)
        await equal(cluster)

    simulate(scenario)


def test_a_restart_of_all_keeps_the_configuration() -> None:
    """Its entries are long trimmed: the store has it."""

    async def scenario(cluster: Cluster) -> None:
        leader = (await cluster.elect()).id
        joined = await cluster.join(lambda: leader)
        await voters(cluster, 1, 2, 3, 4)
        await remove(cluster, leader, followers(cluster, leader)[0])
        await equal(cluster)
        await cluster.until(lambda: cluster.configuration.feature_level == FEATURE_LEVEL)
        index, found = cluster.applied.configurations[-1]
        await write(cluster, leader, 100)
        await equal(cluster)
        await cluster.until(
            lambda: all(cluster.members[member].wal.first_index > index for member in cluster.ids), within_s=20.0
        )
        for member in list(cluster.members):
            cluster.kill(member)
        for member in cluster.ids:
            cluster.begin(member)
        await cluster.until(lambda: len(cluster.nodes()) == 3)
        await cluster.elect()
        assert {cluster.members[member].raft.configuration for member in cluster.ids} == {found}
        await write(cluster, joined, 5)
        await equal(cluster)

    simulate(scenario)


@pytest.mark.parametrize("who", ["leader", "follower"])
def test_a_member_whose_state_differs_ends_for_good_and_is_replaced(who: str) -> None:
    async def scenario(cluster: Cluster) -> None:
        leader = (await cluster.elect()).id
        victim = leader if who == "leader" else followers(cluster, leader)[0]
        await cluster.until(lambda: cluster.configuration.feature_level == FEATURE_LEVEL)
        await write(cluster, leader, 20)
        machine = cluster.members[victim].node._machine
        assert isinstance(machine, WatchedMachine)
        machine._log = StrayLog()  # the simulator's own comparison would be faster
        machine.digest = bytes(len(machine.digest))
        await cluster.until(lambda: victim in cluster.failures, within_s=10.0)
        assert isinstance(cluster.failures[victim], StateDiverged)
        cluster.kill(victim)
        cluster.begin(victim)
        await cluster.until(lambda: victim in cluster.failures)
        assert isinstance(cluster.failures[victim], StateDiverged)
        cluster.kill(victim)
        other = (await cluster.elect()).id
        joined = await cluster.join(lambda: other, replaces=victim)
        await voters(cluster, *sorted({1, 2, 3, joined} - {victim}))
        await write(cluster, joined, 10)
        await equal(cluster)

    simulate(scenario, storage__check_every_s=1)
