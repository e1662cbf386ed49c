"""What needs no quorum, on the runtime's simulator: directed scenarios, and what its judges have to see."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from kvnode.clocks.version_vector import Dot, Origin, VersionVector
from kvnode.errors import KvnodeError, Timeout
from kvnode.gossip.finality import Electorate
from kvnode.gossip.key_state import BLIND, Context
from kvnode.ids import NodeId
from kvnode.kv.available import NOTHING_SEEN, EventPage, seen_also
from kvnode.kv.interface import Options
from kvnode.kv.requests import Put
from kvnode.node.available import AvailablePlane
from kvnode.sim.loop import run_virtual
from kvnode.sim.runtime.cluster import Cluster
from kvnode.sim.runtime.dots import Dots
from kvnode.sim.runtime.member import DATA_DIR, Member
from kvnode.sim.runtime.run import run_seed
from kvnode.storage.available_store import NAME as STORE


def simulate(scenario: Callable[[Cluster], Awaitable[None]], *, size: int = 3) -> None:
    async def main() -> None:
        cluster = Cluster(1, size, has_processes=True, has_plane=True)
        try:
            await cluster.start_all()
            await cluster.until(lambda: all(member in open_planes(cluster) for member in cluster.ids))
            await cluster.elect()
            await scenario(cluster)
            assert not cluster.errors, cluster.errors
        finally:
            cluster.end_all()

    run_virtual(main(), rng=random.Random(1))


def open_planes(cluster: Cluster) -> dict[NodeId, AvailablePlane]:
    planes = {member: found.plane for member, found in cluster.members.items()}
    return {member: plane for member, plane in planes.items() if plane is not None and not plane._driver._is_closed}


def watermarks(cluster: Cluster) -> list[int]:
    return [plane._story.timeline._finality.watermark for plane in open_planes(cluster).values()]


async def put(cluster: Cluster, member: NodeId, value: bytes) -> None:
    await cluster.members[member].ask(Put(b"k", value), Options(timeout_ms=5_000))


def test_the_store_needs_nothing_of_gossip() -> None:
    """Votes, terms and leases are none of its business: with all of it cut off a leader is replaced as ever (GO6)."""

    async def scenario(cluster: Cluster) -> None:
        assert cluster.ways is not None
        cluster.ways.is_mute = True
        await cluster.until(
            lambda: all(
                other.status == "dead"
                for member, plane in open_planes(cluster).items()
                for other in plane.alive_members()
                if other.id != member
            ),
            within_s=60.0,
        )
        first = await cluster.elect()
        await put(cluster, first.id, b"one")
        assert cluster.observer.leader_changes == 1
        cluster.kill(first.id)
        second = await cluster.elect()
        await put(cluster, second.id, b"two")
        assert second.id != first.id

    simulate(scenario)


def test_one_of_three_answers_what_needs_no_quorum() -> None:
    async def scenario(cluster: Cluster) -> None:
        last, *others = cluster.ids
        for other in others:
            cluster.crash(other, silently=True)
        member = cluster.members[last]
        written = await member.ask_plane(lambda plane: plane.ap_put(b"k", b"alone"))
        read = await member.ask_plane(lambda plane: plane.ap_get(b"k"))
        assert (read.values, read.dots) == ((b"alone",), (written.token_dot,))
        event = await member.ask_plane(lambda plane: plane.post_event(b"{}"))
        page: EventPage = await member.ask_plane(lambda plane: plane.events())
        assert event.seq in {shown.seq for shown in page.events if shown.member == last}
        with pytest.raises(KvnodeError):
            await member.ask(Put(b"k", b"v"), Options(timeout_ms=1_000))

    simulate(scenario)


def test_writes_of_both_sides_of_a_partition_stand_side_by_side() -> None:
    async def scenario(cluster: Cluster) -> None:
        one, other, third = (cluster.members[member] for member in cluster.ids)
        cluster.network.isolate(one.id)
        await one.ask_plane(lambda plane: plane.ap_put(b"k", b"left"))
        await other.ask_plane(lambda plane: plane.ap_put(b"k", b"right"))
        cluster.network.heal()
        planes = open_planes(cluster).values()
        await cluster.until(lambda: len({plane._eventual.keyspace.digest() for plane in planes}) == 1, within_s=60.0)
        read = await third.ask_plane(lambda plane: plane.ap_get(b"k"))
        assert read.values == (b"left", b"right")
        await third.ask_plane(lambda plane: plane.ap_delete(b"k", context=read.context))
        await cluster.until(lambda: len({plane._eventual.keyspace.digest() for plane in planes}) == 1, within_s=60.0)
        assert (await one.ask_plane(lambda plane: plane.ap_get(b"k"))).values == ()

    simulate(scenario)


def test_nothing_is_answered_before_the_disk_has_it() -> None:
    async def scenario(cluster: Cluster) -> None:
        member = cluster.members[cluster.ids[0]]
        member.workers["available"].hang()
        for write in (
            lambda plane: plane.ap_put(b"k", b"v", timeout_ms=500),
            lambda plane: plane.post_event(b"{}", timeout_ms=500),
        ):
            with pytest.raises(Timeout):
                await member.ask_plane(write)
        assert (await member.ask_plane(lambda plane: plane.ap_get(b"k"))).values == ()

    simulate(scenario)


def test_the_clock_of_events_does_not_go_back_behind_a_promise() -> None:
    """LC5: what a node promised of its idle time it still knows after a kill, though it recorded nothing then."""

    async def scenario(cluster: Cluster) -> None:
        member = cluster.ids[0]
        far = 5_000
        await cluster.members[member].ask_plane(lambda plane: plane.ap_get(b"k", seen=seen_also(NOTHING_SEEN, far, ())))
        await cluster.until(lambda: watermarks(cluster)[0] >= far, within_s=30.0)
        ceiling = cluster.members[member].data.lamport_ceiling()
        assert ceiling > far
        cluster.network.isolate(member)
        cluster.kill(member)
        cluster.begin(member)
        await cluster.until(lambda: member in open_planes(cluster))
        event = await cluster.members[member].ask_plane(lambda plane: plane.post_event(b"{}"))
        assert event.lamport > ceiling

    simulate(scenario)


def test_the_final_order_goes_on_after_stores_were_lost_though_nothing_happens() -> None:
    """Who lost its store waits to have heard everybody; equal digests have to do, as they lead to no pull."""

    async def scenario(cluster: Cluster) -> None:
        assert cluster.ways is not None
        cluster.ways.is_mute = True
        for lost in cluster.ids[:4]:
            cluster.kill(lost)
            disk = cluster.disk_of(lost)
            disk.sync_everything()
            disk.flip_bit(f"{DATA_DIR}/{STORE}", 9)
            cluster.dots.damaged(lost)
            cluster.begin(lost)
        await cluster.until(lambda: len(open_planes(cluster)) == 7)
        await asyncio.sleep(5.0)
        cluster.ways.is_mute = False
        goal = max(plane.lamport_time for plane in open_planes(cluster).values())
        await cluster.until(lambda: min(watermarks(cluster)) >= goal, within_s=60.0)

    simulate(scenario, size=7)


def test_who_has_to_agree_never_goes_back_across_restarts_either() -> None:
    """A start begins with an older state, and with the configurations of that time; a voter's name must not count by
    these, or it hands out as final what a voter that was added since may still precede."""

    async def scenario(cluster: Cluster) -> None:
        told: list[tuple[int, tuple[NodeId, ...]]] = []
        open_own = Member._open_plane

        def opened(member: Member) -> AvailablePlane:
            plane = open_own(member)
            tell = plane._story.set_electorate

            def telling(electorate: Electorate) -> None:
                if member.id in watched:
                    told.append((electorate.configuration, electorate.voters))
                tell(electorate)

            plane._story.set_electorate = telling  # type: ignore[method-assign]
            return plane

        watched: list[NodeId] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Member, "_open_plane", opened)
            joined = await cluster.join(lambda: cluster.ids[0])
            await cluster.until(lambda: len(cluster.configuration.voters) == 4, within_s=30.0)
            await cluster.until(lambda: len(open_planes(cluster)) == 4)
            await cluster.until(lambda: min(watermarks(cluster)) > 0, within_s=30.0)
            finality = open_planes(cluster)[joined]._story.timeline._finality
            assert not finality._is_founder
            newest = (open_planes(cluster)[joined]._story._electorate.configuration, cluster.configuration.voters)
            for member in (joined, cluster.ids[0]):
                watched[:] = [member]
                told.clear()
                cluster.kill(member)
                cluster.begin(member)
                await cluster.until(lambda: len(open_planes(cluster)) == 4)
                await cluster.until(lambda member=member: cluster.members[member].node.applied_index >= newest[0])
                assert told
                assert set(told) == {newest}

    simulate(scenario)


def test_a_world_with_all_of_it_passes_and_was_worth_it() -> None:
    report = run_seed(40)
    assert report.verdict == "passed", f"{report.failure}\n{report.detail}"
    assert report.counts["ap_writes"] >= 20
    assert report.counts["ap_reads_judged"] >= 20
    assert report.counts["ap_post"] >= 3
    assert report.counts["ap_final_orders"] == 1


# ── the judge ───────────────────────────────────────────────────────────────────────────────────────


ORIGIN = Origin(NodeId(1), 7)
FIRST, SECOND = Dot(ORIGIN, 1), Dot(ORIGIN, 2)


def two_writes(replaces: Context) -> Dots:
    dots = Dots()
    dots._made(NodeId(1), FIRST, b"k", b"one", BLIND)
    dots._made(NodeId(1), SECOND, b"k", b"two", replaces)
    return dots


@pytest.mark.parametrize(
    ("replaces", "shown", "is_right"),
    [
        pytest.param(BLIND, [(FIRST, b"one"), (SECOND, b"two")], True, id="side-by-side"),
        pytest.param(BLIND, [(SECOND, b"two")], False, id="lost"),
        pytest.param(Context(VersionVector({ORIGIN: 1})), [(SECOND, b"two")], True, id="replaced"),
        pytest.param(Context(VersionVector({ORIGIN: 1})), [(FIRST, b"one"), (SECOND, b"two")], False, id="back-again"),
        pytest.param(BLIND, [(FIRST, b"one"), (SECOND, b"else")], False, id="another-value"),
    ],
)
def test_the_judge_of_reads(replaces: Context, shown: list[tuple[Dot, bytes]], *, is_right: bool) -> None:
    dots = two_writes(replaces)
    known = VersionVector({ORIGIN: 2})
    if is_right:
        dots.judge_read(b"k", shown, known)
    else:
        with pytest.raises(AssertionError, match=r"V\d"):
            dots.judge_read(b"k", shown, known)


def test_the_judge_sees_a_dot_that_is_used_again_and_an_acknowledged_write_that_is_lost() -> None:
    dots = two_writes(BLIND)
    dots.acknowledged((1, 7, 2), b"k")
    assert [write.dot for write in dots.missing(VersionVector({ORIGIN: 1}), [NodeId(1)])] == [SECOND]
    assert dots.missing(VersionVector({ORIGIN: 2}), [NodeId(1)]) == []
    with pytest.raises(AssertionError, match="V1"):
        dots._made(NodeId(1), SECOND, b"other", b"three", BLIND)
