"""A plane among others: pulls page by page and again after a failure, pings by HTTP, and what nobody should send."""

from __future__ import annotations

import asyncio
import contextlib
import random
from itertools import pairwise
from typing import Any

import msgspec
import pytest

from kvnode.errors import IdentityRefused, StorageFailed
from kvnode.gossip.event import Event
from kvnode.gossip.messages import Packet, Ping, PullReply, PullRequest, Rumor, Status, Summary
from kvnode.gossip.timeline_rows import EventsDelta, encode_delta
from kvnode.ids import Index, NodeId
from kvnode.node import gossip_driver
from kvnode.node.available import AvailablePlane
from kvnode.node.roster import base_configuration
from kvnode.observe import metrics
from kvnode.wire.gossip_tags import decode_answer, decode_exchange, encode_answer, encode_exchange, encode_packet
from kvnode.wire.limits import CodecError
from tests.node.plane_world import World, all_events, kinds, play

A, B, C = NodeId(1), NodeId(2), NodeId(3)


def statuses(plane: AvailablePlane) -> dict[int, str]:
    return {int(member.id): member.status for member in plane.alive_members()}


def state(plane: AvailablePlane) -> tuple[Any, ...]:
    """What gossip could change."""
    return (
        plane._eventual.keyspace.digest(),
        plane._story.timeline.digest(),
        plane.lamport_time,
        [(row.rumor, row.status) for row in plane._driver.gossip.table()],
    )


# ── pulls ───────────────────────────────────────────────────────────────────────────────────────────


def test_a_large_difference_comes_in_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gossip_driver, "PAGE_BYTES", 20_000)

    async def scenario(world: World) -> None:
        await world.start(1, 2)
        await world.level()
        world.isolate(B)
        for number in range(100):
            await world.planes[A].ap_put(b"%03d" % number, bytes(2_000))
            await world.planes[A].post_event(b'{"text":"%s"}' % (b"x" * 1_000))
        world.cut.clear()
        await world.level(60)
        driver = world.planes[B]._driver
        assert driver.pages > 8
        assert driver.pages / driver.pulls > 2
        assert (await world.planes[B].ap_get(b"099")).values == (bytes(2_000),)

    play(scenario)


def test_a_pull_that_fails_is_tried_again_ever_less_often() -> None:
    async def scenario(world: World) -> None:
        await world.start(1, 2)
        await world.level()
        begun: list[float] = []
        world.tamper = lambda answer: begun.append(world.loop.time()) or b"nonsense"  # type: ignore[func-returns-value]
        await world.planes[A].ap_put(b"k", b"v")
        await asyncio.sleep(30)
        pauses = [later - sooner for sooner, later in pairwise(begun)]
        assert 5 < len(begun) < 20
        assert max(pauses) > 4 > 0.5 > min(pauses)
        assert world.planes[B]._driver.pulls_failed >= 5
        assert statuses(world.planes[B])[1] == "alive"
        world.tamper = lambda answer: answer
        await world.level(15)

    play(scenario, size=2)


def test_a_peer_that_always_has_more_and_brings_nothing_is_left_alone() -> None:
    async def scenario(world: World) -> None:
        await world.start(1, 2)
        await world.level()
        answers = 0

        def nothing(answer: bytes) -> bytes:
            nonlocal answers
            answers += 1
            found = decode_answer(answer)
            assert isinstance(found, PullReply)
            return encode_answer(msgspec.structs.replace(found, keyspace=b"", events=b"", more=True))

        world.tamper = nothing
        await world.planes[A].ap_put(b"k", b"v")
        await asyncio.sleep(10)
        assert 0 < answers < 20 * (gossip_driver.REPEATED_MAX + 1)

    play(scenario, size=2)


def test_pages_are_refused_while_the_disk_does_not_keep_up() -> None:
    async def scenario(world: World) -> None:
        await world.start(1, 2)
        await world.level()
        plane = world.planes[B]
        world.workers[B].hang()
        plane._rows._waiting_bytes_max = 1
        await world.planes[A].ap_put(b"k1", b"v")
        await world.planes[A].post_event(b"{}")
        await asyncio.sleep(1)
        await world.planes[A].ap_put(b"k2", b"v")
        await world.planes[A].post_event(b"{}")
        await asyncio.sleep(5)
        assert plane._driver.pulls_failed > 0
        world.workers[B].resume()
        await world.level(15)

    play(scenario, size=2)


def test_a_short_disk_takes_no_pages_and_takes_them_when_there_is_room() -> None:
    async def scenario(world: World) -> None:
        free_bytes = 1 << 40
        await world.start(1)
        await world.start(2, free_bytes=lambda: free_bytes)
        await world.level()
        await world.planes[A].ap_put(b"k", b"v")
        await world.level()
        free_bytes = 1
        await asyncio.sleep(1.1)
        await world.planes[A].ap_put(b"k2", b"v")
        await asyncio.sleep(3)
        assert (await world.planes[B].ap_get(b"k2")).values == ()
        assert world.planes[B]._driver.pulls_failed > 0
        free_bytes = 1 << 40
        await world.level(15)

    play(scenario, size=2)


def test_a_store_that_is_an_old_copy_ends_the_node() -> None:
    async def scenario(world: World) -> None:
        """Others know events of this origin that it does not: it must not number anything any more."""
        await world.start(1, 2)
        await world.level()
        plane = world.planes[B]
        origin = plane._story.timeline.origin
        event = Event(
            *origin, 1, plane._story.timeline.vector.get(origin) + 5, plane.lamport_time + 1, 0, "x", b"{}", True
        )

        def foreign(answer: bytes) -> bytes:
            found = decode_answer(answer)
            return encode_answer(msgspec.structs.replace(found, events=encode_delta(EventsDelta((event,)))))

        world.tamper = foreign
        await world.planes[A].post_event(b"{}")
        await world.until(lambda: world.failures)
        assert isinstance(world.failures[0], StorageFailed | IdentityRefused)
        assert "ap/ is an old copy" in str(world.failures[0])
        world.tamper = lambda answer: answer

    play(scenario, size=2, fails=True)


# ── pings by HTTP ───────────────────────────────────────────────────────────────────────────────────


def test_where_datagrams_are_lost_pings_go_by_http() -> None:
    async def scenario(world: World) -> None:
        await world.start()
        await world.until(lambda: set(statuses(world.planes[A]).values()) == {"alive"})
        world.drops_datagrams = True
        await asyncio.sleep(30)
        for plane in world.planes.values():
            assert set(statuses(plane).values()) == {"alive"}
            assert plane.available_counters()["kvnode_gossip_probes_by_http_total"] > 5
        found = await kinds(world.planes[A])
        assert found.count("member.datagrams_blocked") == 6  # once by each of each other
        assert "member.suspect" not in found
        await world.planes[A].ap_put(b"k", b"v")
        await world.level(70)  # by the exchange of tables

    play(scenario)


def test_a_page_on_its_way_does_not_make_a_ping_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gossip_driver, "PAGE_BYTES", 2_000)

    async def scenario(world: World) -> None:
        """The transport takes one exchange at a time to a member, and refuses another."""
        await world.start(1, 2)
        await world.level()
        wire = world.wires[B]
        plain, under_way = wire.exchange, 0

        async def one_at_a_time(to: NodeId, request: bytes) -> bytes:
            nonlocal under_way
            if under_way:
                raise ConnectionAbortedError("too many exchanges")
            under_way += 1
            try:
                await asyncio.sleep(0.3)
                return await plain(to, request)
            finally:
                under_way -= 1

        wire.exchange = one_at_a_time  # type: ignore[method-assign]
        world.cut.add(frozenset((A, B)))
        for number in range(60):
            await world.planes[A].ap_put(b"%d" % number, bytes(1_000))
        world.cut.clear()
        await asyncio.sleep(0.5)
        world.drops_datagrams = True
        await asyncio.sleep(15)
        assert world.planes[B]._driver.pages > 20
        assert "member.suspect" not in await kinds(world.planes[B])

    play(scenario, size=2)


def test_an_accusation_comes_before_what_refutes_it() -> None:
    async def scenario(world: World) -> None:
        """Whoever hears of it by gossip is past it by the clock (LC3)."""
        await world.start()
        await world.until(lambda: set(statuses(world.planes[A]).values()) == {"alive"})
        for _ in range(10):
            for one, other in ((A, B), (B, C), (A, C)):
                world.cut = {frozenset((one, other))}
                await asyncio.sleep(4)
        world.cut.clear()
        await world.level()
        accused: dict[int, int] = {}
        refuted = 0
        for event in await all_events(world.planes[A]):
            fields = msgspec.json.decode(event.fields)
            if event.kind == "member.suspect":
                accused[fields["member"]] = fields["number"]
            elif event.kind == "member.refuted":
                refuted += 1
                assert accused.get(event.member, -1) >= fields["number"] - 1, event
        assert refuted > 5

    play(scenario, gossip__helpers=0)


# ── what nobody should send ─────────────────────────────────────────────────────────────────────────


def test_rubbish_is_counted_and_changes_nothing() -> None:
    async def scenario(world: World) -> None:
        await world.start()
        await world.level()
        await world.until(lambda: set(statuses(world.planes[A]).values()) == {"alive"})
        plane, rng = world.planes[A], random.Random(1)
        before = state(plane)
        bodies = [b"", b"\x00", b"\xc1", *(rng.randbytes(rng.randrange(1, 300)) for _ in range(300))]
        bodies.append(encode_packet(Packet(Summary(lamport=-1))))
        bodies.append(encode_packet(Packet(Summary(), (Rumor(NodeId(-1), 1, Status.DEAD),))))
        bodies.append(encode_packet(Packet(Summary(), (Ping(A, 1),) * 500)))
        for body in bodies:
            world.deliver(B, A, body)
            with pytest.raises(CodecError):
                plane._driver.on_exchange(B, body)
        assert world.wires[A].counters["gossip_bad"] == len(bodies)
        for vector in (((5, 5, 0),), ((2, 1, 1), (1, 1, 1)), ((1, 1, 1 << 70),), ((1, -1, 1),)):
            with pytest.raises((CodecError, OverflowError)):
                plane._driver.on_exchange(
                    B, encode_exchange(PullRequest(Summary(), keyspace=vector, want_keyspace=True))
                )
        assert state(plane) == before

    play(scenario)


def test_messages_that_were_changed_anywhere_end_nobody() -> None:
    async def scenario(world: World) -> None:
        await world.start()
        await world.planes[B].ap_put(b"k", b"v")
        await world.level()
        plane, rng = world.planes[A], random.Random(2)
        driver = world.planes[B]._driver
        vector = driver._eventual.keyspace.vector.to_row()
        request = PullRequest(
            driver.summary(), vector, vector, driver.gossip.rumors(), want_keyspace=True, want_events=True
        )
        packet = Packet(driver.summary(), (Ping(A, 1), driver.gossip.own, *driver.gossip.rumors()))
        for body in (encode_exchange(request), encode_packet(packet)):
            decode_exchange(body)
            for _ in range(500):
                changed = bytearray(body)
                for _ in range(rng.randrange(1, 4)):
                    changed[rng.randrange(len(changed))] = rng.randrange(256)
                world.deliver(B, A, bytes(changed))
                with contextlib.suppress(CodecError):
                    decode_answer(plane._driver.on_exchange(B, bytes(changed)))
        assert world.wires[A].counters["gossip_bad"] > 100
        await asyncio.sleep(30)
        assert set(statuses(plane).values()) == {"alive"}

    play(scenario)


def test_vectors_of_strangers_and_of_the_future_change_nothing() -> None:
    async def scenario(world: World) -> None:
        await world.start()
        await world.planes[A].ap_put(b"k", b"v")
        await world.planes[A].ap_delete(b"k")
        await world.level()
        plane = world.planes[A]
        own = plane._eventual.keyspace.origin
        before = state(plane)
        vector = ((own.member, own.incarnation, 1 << 40), (77, 1, 5))
        for member in (B, C, NodeId(77)):
            request = PullRequest(Summary(), vector, vector, (), True, True, b"\xff" * 100)
            reply = decode_answer(plane._driver.on_exchange(member, encode_exchange(request)))
            assert isinstance(reply, PullReply)
        world.deliver(NodeId(77), A, encode_packet(Packet(Summary(keyspace=7), (Ping(A, 1), Rumor(NodeId(77), 1, 1)))))
        assert state(plane) == before
        await asyncio.sleep(70)
        # What is said to be everywhere is, at most, what is here.
        assert plane._eventual.keyspace.vector.get(own) == 2
        assert NodeId(77) not in plane._eventual._known

    play(scenario)


# ── members of an older version ─────────────────────────────────────────────────────────────────────


def test_a_member_that_does_not_know_gossip_is_unknown_and_not_dead() -> None:
    async def scenario(world: World) -> None:
        world.levels = {B: 3, C: 2}
        await world.start(1, 2)  # C is there, and answers nothing of this
        await world.until(lambda: statuses(world.planes[A]) == {1: "alive", 2: "alive", 3: "unknown"})
        await asyncio.sleep(60)
        for plane in world.planes.values():
            assert statuses(plane)[3] == "unknown"
            assert plane.available_counters()["kvnode_gossip_members"]["unknown"] == 1
            assert not {"member.suspect", "member.dead"} & set(await kinds(plane))
        assert C not in world.wires[A].addresses
        assert all(to != C for to, _ in world.wires[A].exchanges)
        world.levels = {B: 3, C: 3}  # upgraded
        await world.start(3)
        await world.until(lambda: statuses(world.planes[A])[3] == "alive")
        await world.level()

    play(scenario)


def test_who_was_never_met_is_found_dead() -> None:
    async def scenario(world: World) -> None:
        world.levels = {A: 3, B: 3, C: 0}
        await world.start(1, 2)
        await world.until(lambda: statuses(world.planes[A])[3] == "dead", 60)
        addresses = {one.id: one.peer_address for one in world.planes[A].alive_members()}
        assert addresses == {member: f"127.0.0.1:{7500 + member}" for member in (A, B, C)}
        counters = world.planes[A].available_counters()
        assert counters["kvnode_gossip_probes_failed_total"] > 0
        assert counters["kvnode_gossip_suspicions_total"] > 0
        assert counters["kvnode_gossip_exchanges_failed_total"] > 0
        # The final order stands still without it, and what is not final is there all the same.
        await world.planes[A].post_event(b"{}")
        await asyncio.sleep(5)
        assert world.planes[A].available_counters()["kvnode_timeline_lag"] > counters["kvnode_timeline_lag"]
        assert "user" in await kinds(world.planes[A])
        assert (await world.planes[A].events(stable=True)).events == ()

    play(scenario)


def test_a_node_that_claims_an_older_level_leaves_gossip_alone() -> None:
    async def scenario(world: World) -> None:
        world.levels = {A: 3, B: 3, C: 3}
        await world.start(1, feature_level=2)
        await asyncio.sleep(60)
        assert statuses(world.planes[A]) == {1: "alive", 2: "unknown", 3: "unknown"}
        assert (world.wires[A].exchanges, world.wires[A].counters["datagrams_sent"]) == ([], 0)
        await world.planes[A].ap_put(b"k", b"v")  # alone it goes on
        assert (await world.planes[A].ap_get(b"k")).values == (b"v",)

    play(scenario)


def test_a_removed_member_is_forgotten() -> None:
    async def scenario(world: World) -> None:
        await world.start()
        await world.until(lambda: set(statuses(world.planes[A]).values()) == {"alive"})
        before = base_configuration(world.data[A].identity)
        after = msgspec.structs.replace(
            before, voters=(A, B), members=tuple(member for member in before.members if member.id != C)
        )
        for member in (A, B):
            world.planes[member].set_members(after, after, Index(5))
        await asyncio.sleep(1)
        assert statuses(world.planes[A]) == {1: "alive", 2: "alive"}
        assert set(world.planes[A]._driver._lines) == {B}

    play(scenario)


# ── what is counted ─────────────────────────────────────────────────────────────────────────────────


def test_everything_that_a_plane_counts_is_declared_and_every_declaration_counted() -> None:
    async def scenario(world: World) -> None:
        await world.start()
        await world.planes[A].ap_put(b"k", b"1")
        await world.planes[B].ap_put(b"k", b"2")
        await world.planes[A].post_event(b"{}")
        await world.level()
        await world.until(lambda: set(statuses(world.planes[A]).values()) == {"alive"})
        counters = world.planes[A].available_counters()
        text = metrics.render(counters).decode()
        assert [name for name in counters if name not in text] == []
        mine = ("kvnode_gossip_", "kvnode_ap_", "kvnode_events", "kvnode_timeline_", "kvnode_lamport_")
        assert sorted(name for name in metrics.BY_NAME if name.startswith(mine)) == sorted(counters)
        assert counters["kvnode_ap_siblings"] == 2
        assert counters["kvnode_ap_conflicts_total"] >= 1
        assert counters["kvnode_gossip_members"]["alive"] == 3
        assert counters["kvnode_events_posted_total"] == 1
        assert counters["kvnode_lamport_time"] > 0
        assert len(counters["kvnode_gossip_members"]) == 5  # statuses, never members

    play(scenario)
