"""A node's available plane: what is told is durable, what is asked is bounded, and an end leaves nobody waiting."""

from __future__ import annotations

import asyncio

import pytest

from kvnode.clocks.lamport import LamportClock
from kvnode.errors import ConnectionLost, NoSpace, NotReady, Overloaded, StorageFailed, Timeout
from kvnode.gossip.messages import Packet, PullReply, PullRequest, Summary
from kvnode.gossip.timeline_rows import decode_delta
from kvnode.ids import NodeId
from kvnode.kv.available import Seen
from kvnode.node import eventual, story
from kvnode.wire.gossip_tags import decode_answer, decode_exchange, encode_exchange
from kvnode.wire.limits import CodecError
from tests.node.plane_world import World, all_events, kinds, play

A, B, C = NodeId(1), NodeId(2), NodeId(3)


# ── what is told is durable ─────────────────────────────────────────────────────────────────────────


def test_a_put_is_durable_before_anybody_sees_it() -> None:
    async def scenario(world: World) -> None:
        await world.start()
        await world.level()
        plane = world.planes[A]
        before = plane._driver.summary()
        world.workers[A].hang()
        put = asyncio.ensure_future(plane.ap_put(b"k", b"v"))
        await asyncio.sleep(1)
        assert not put.done()
        assert (await plane.ap_get(b"k")).values == ()
        assert plane._driver.summary().keyspace == before.keyspace
        request = PullRequest(Summary(), want_keyspace=True, want_events=True)
        answer = decode_answer(plane._driver.on_exchange(B, encode_exchange(request)))
        assert b"v" not in answer.keyspace
        assert (await world.planes[B].ap_get(b"k")).values == ()
        world.workers[A].resume()
        written = await put
        assert written.token_dot is not None
        assert (await plane.ap_get(b"k")).values == (b"v",)
        await world.level()
        assert (await world.planes[C].ap_get(b"k")).values == (b"v",)

    play(scenario)


def test_an_event_is_durable_before_anybody_sees_it() -> None:
    async def scenario(world: World) -> None:
        await world.start()
        await world.level()
        plane = world.planes[A]
        world.workers[A].hang()
        post = asyncio.ensure_future(plane.post_event(b'{"a":1}'))
        await asyncio.sleep(1)
        assert not post.done()
        assert "user" not in await kinds(plane)
        answer = decode_answer(plane._driver.on_exchange(B, encode_exchange(PullRequest(Summary(), want_events=True))))
        assert all(event.kind != "user" for event in decode_delta(answer.events, plane._story._limits).events)
        world.workers[A].resume()
        event = await post
        await world.level()
        assert (await all_events(world.planes[B]))[-1].id == event.id

    play(scenario)


def test_many_writers_share_a_commit() -> None:
    async def scenario(world: World) -> None:
        await world.start(1)
        plane = world.planes[A]
        before = plane._rows.writes
        await asyncio.gather(*(plane.ap_put(b"%d" % number, b"v") for number in range(100)))
        assert plane._rows.writes - before <= 3
        assert plane._rows.submissions >= 100
        counters = plane.available_counters()
        assert (counters["kvnode_ap_writes_total"], counters["kvnode_ap_keys"]) == (100, 100)
        assert counters["kvnode_ap_commit_seconds"].count == counters["kvnode_ap_commits_total"]
        assert counters["kvnode_ap_commit_seconds"].total > 0

    play(scenario)


def test_a_failed_write_ends_the_node_with_a_clear_message() -> None:
    async def scenario(world: World) -> None:
        await world.start(1)
        plane = world.planes[A]
        await plane.ap_put(b"k", b"v")

        def fail(*_: object) -> None:
            raise StorageFailed("a commit to the store failed: no space left on device")

        plane._rows._store.write = fail  # type: ignore[method-assign]
        put = asyncio.ensure_future(plane.ap_put(b"k2", b"v"))
        waiting = asyncio.ensure_future(plane.events(cursor=(await plane.events()).cursor, wait_ms=60_000))
        with pytest.raises(ConnectionLost, match="may have taken effect"):
            await put
        await waiting
        assert [type(error) for error in world.failures] == [StorageFailed]
        assert "no space left" in str(world.failures[0])
        with pytest.raises(NotReady):
            await plane.ap_get(b"k")
        plane.record("node.failed", {})  # whoever tells it more is not hurt by it
        await plane.leave()
        await asyncio.sleep(10)
        assert len(world.failures) == 1

    play(scenario, size=1, fails=True)


def test_a_failed_ceiling_ends_the_node() -> None:
    async def scenario(world: World) -> None:
        await world.start(1)
        plane = world.planes[A]
        await asyncio.sleep(1)

        def fail(_: int) -> None:
            raise StorageFailed("lamport: no")

        world.data[A].save_lamport_ceiling = fail  # type: ignore[method-assign]
        posts = [plane.post_event(b"{}") for _ in range(LamportClock.BLOCK)]
        found = await asyncio.gather(*posts, return_exceptions=True)
        assert isinstance(found[-1], ConnectionLost)
        assert [str(error) for error in world.failures] == ["lamport: no"]

    play(scenario, size=1, fails=True)


def test_a_short_disk_refuses_what_grows() -> None:
    async def scenario(world: World) -> None:
        await world.start(1)
        plane = world.planes[A]
        await plane.ap_put(b"k", b"v")
        world.free_bytes = 1
        await asyncio.sleep(1)
        with pytest.raises(NoSpace, match="1 bytes free"):
            await plane.ap_put(b"k2", b"v")
        with pytest.raises(NoSpace):
            await plane.post_event(b"{}")
        plane.record("still.told", {})
        await plane.ap_delete(b"k")
        assert (await plane.ap_get(b"k")).values == ()
        assert plane._eventual.keyspace.counts()["staged"] == 0
        assert "still.told" in await kinds(plane)

    play(scenario, size=1)


# ── restarts ────────────────────────────────────────────────────────────────────────────────────────


def test_a_restart_restores_everything() -> None:
    async def scenario(world: World) -> None:
        await world.start()
        plane = world.planes[A]
        written = await plane.ap_put(b"k", b"v")
        posted = await plane.post_event(b'{"a":1}')
        await world.level()
        vector, events, time = plane._eventual.keyspace.vector, plane._story.timeline.vector, plane.lamport_time
        world.kill(A)
        again = world.open(A)
        assert again._eventual.keyspace.vector == vector
        assert all(again._story.timeline.vector.get(origin) >= n for origin, n in events.entries())
        assert again.lamport_time >= time
        assert (await again.ap_get(b"k")).context == written.context
        assert posted.id in [event.id for event in await all_events(again)]
        assert (await again.post_event(b"{}")).lamport > time
        assert (await again.ap_put(b"k", b"w")).token_dot[:2] == written.token_dot[:2]

    play(scenario)


@pytest.mark.parametrize("how", ["lost", "damaged"])
def test_a_store_that_is_gone_begins_anew_and_is_filled_by_the_others(how: str) -> None:
    async def scenario(world: World) -> None:
        await world.start()
        plane = world.planes[A]
        first = await plane.ap_put(b"k", b"v")
        await plane.post_event(b'{"a":1}')
        await world.level()
        world.kill(A)
        if how == "lost":
            world.disks[A].unlink("/data/ap")
        else:
            world.disks[A].flip_bit("/data/ap", 40)
        await world.start(1)
        plane = world.planes[A]
        second = await plane.ap_put(b"k2", b"v")
        assert second.token_dot[1] != first.token_dot[1]
        assert second.token_dot[2] == 1
        await world.level()
        assert (await plane.ap_get(b"k")).values == (b"v",)
        assert "user" in await kinds(plane)
        assert ("available.damaged" in await kinds(world.planes[B])) == (how == "damaged")
        # It promises again once it has heard everybody, so the final order goes on.
        await plane.post_event(b'{"a":2}')
        await world.until(lambda: plane._story.watermark_lag() == 0)
        stable = (await world.planes[C].events(stable=True)).events
        assert [event.fields for event in stable if event.kind == "user"][-1] == b'{"a":2}'

    play(scenario)


def test_who_was_not_heard_is_pulled_from_whatever_its_digests_say() -> None:
    async def scenario(world: World) -> None:
        await world.start()
        await world.level()
        world.kill(A)
        world.disks[A].unlink("/data/ap")
        world.isolate(A)
        await world.start(1)
        plane = world.planes[A]
        await asyncio.sleep(1.5)
        assert set(plane._story.unheard()) == {B, C}
        world.cut.clear()
        world.drops_datagrams = True

        def no_digest(answer: bytes) -> bytes:
            return answer if isinstance(decode_answer(answer), PullReply) else b"lost"

        def deaf(*_: object) -> Packet:
            raise CodecError("not heard")

        world.tamper, plane._driver._answer_probe = no_digest, deaf  # type: ignore[method-assign]
        await world.until(lambda: not plane._story.unheard(), 5)
        asked = [decode_exchange(request) for _, request in world.wires[A].exchanges]
        assert not any(isinstance(one, PullRequest) and one.members for one in asked[-2:])
        assert {to for to, _ in world.wires[A].exchanges} == {B, C}

    play(scenario)


def test_the_same_digest_counts_as_heard() -> None:
    async def scenario(world: World) -> None:
        await world.start()
        await world.level()
        plane = world.planes[A]
        heard = []
        plane._story.timeline.heard = lambda member, time: heard.append((member, time))  # type: ignore[method-assign]
        digest = plane._story.timeline.digest()
        plane._driver._note(B, Summary(events=digest, lamport=5))
        plane._driver._note(B, Summary(events=digest + 1, lamport=6))
        plane._driver._note(B, Summary(events=digest, lamport=1 << 62))  # no honest node's time
        assert heard == [(B, 5)]
        assert plane._story.times_refused == 1

    play(scenario)


# ── tokens, and lists of those who wait ─────────────────────────────────────────────────────────────


def test_a_read_with_a_token_waits_until_the_write_arrives() -> None:
    async def scenario(world: World) -> None:
        await world.start()
        await world.level()
        world.isolate(B)
        written = await world.planes[A].ap_put(b"k", b"v")
        assert written.token_dot is not None
        seen = Seen(world.planes[A].lamport_time, (written.token_dot,))
        began_s = world.loop.time()
        with pytest.raises(NotReady, match="does not have write 1 of member 1 yet"):
            await world.planes[B].ap_get(b"k", seen=seen, timeout_ms=2_000)
        assert world.loop.time() - began_s == pytest.approx(2.0, abs=0.01)
        waiting = asyncio.ensure_future(world.planes[B].ap_get(b"k", seen=seen, timeout_ms=60_000))
        listing = asyncio.ensure_future(world.planes[B].ap_list(seen=seen, timeout_ms=60_000))
        await asyncio.sleep(1)
        assert world.planes[B].available_counters()["kvnode_ap_reads_waiting"] == 2
        world.cut.clear()
        assert (await waiting).values == (b"v",)
        assert [item.key for item in (await listing).items] == [b"k"]
        assert world.planes[B]._eventual.readers == 0

    play(scenario)


def test_the_deadline_bounds_all_writes_of_a_token_together() -> None:
    async def scenario(world: World) -> None:
        await world.start(1, 2)
        await world.level()
        world.isolate(B)
        written = await world.planes[A].ap_put(b"k", b"v")
        assert written.token_dot is not None
        world.loop.call_later(0.8, world.cut.clear)
        began_s = world.loop.time()
        with pytest.raises(NotReady, match="write 1 of member 3"):
            await world.planes[B].ap_get(b"k", seen=Seen(0, (written.token_dot, (3, 7, 1))), timeout_ms=2_000)
        assert world.loop.time() - began_s == pytest.approx(2.0, abs=0.01)

    play(scenario)


def test_lists_of_those_who_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        await world.start(1)
        plane = world.planes[A]
        monkeypatch.setattr(eventual, "READERS_MAX", 2)
        monkeypatch.setattr(story, "FOLLOWERS_MAX", 2)
        await asyncio.sleep(1)
        seen = Seen(0, ((2, 7, 1),))
        reads = [asyncio.ensure_future(plane.ap_get(b"k", seen=seen, timeout_ms=500)) for _ in range(2)]
        cursor = (await plane.events()).cursor
        follows = [asyncio.ensure_future(plane.events(cursor, wait_ms=500)) for _ in range(2)]
        await asyncio.sleep(0.01)
        with pytest.raises(Overloaded, match="too many reads wait"):
            await plane.ap_get(b"k", seen=seen)
        with pytest.raises(Overloaded, match="too many readers wait"):
            await plane.events(cursor, wait_ms=500)
        for read in reads:
            with pytest.raises(NotReady):
                await read
        await asyncio.gather(*follows)
        assert (plane._eventual.readers, plane._story.followers) == (0, 0)

    play(scenario, size=1)


def test_events_that_wait_for_the_ceiling_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        await world.start(1)
        plane = world.planes[A]
        monkeypatch.setattr(story, "WAITING_MAX", 3)
        await asyncio.sleep(1)
        world.workers[A].hang()
        plane._story.lamport._ceiling = plane.lamport_time  # nothing can be stamped until the disk answers
        plane.record("own.1", {})
        posts = [asyncio.ensure_future(plane.post_event(b"{}", timeout_ms=500)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="too many events wait"):
            await plane.post_event(b"{}")
        plane.record("own.2", {})  # in place of the older one
        assert (plane._story.dropped, len(plane._story._waiting)) == (1, 3)
        for post in posts:
            with pytest.raises(Timeout):
                await post
        del plane._story._waiting[2]
        with pytest.raises(Timeout):
            await plane.post_event(b"{}", timeout_ms=500)
        plane.record("own.3", {})  # only users' events wait
        assert (plane._story.dropped, len(plane._story._waiting)) == (2, 3)
        world.workers[A].resume()
        await asyncio.sleep(0.1)
        found = await kinds(plane)
        assert found.count("user") == 3
        assert not {"own.1", "own.2", "own.3"} & set(found)

    play(scenario, size=1)


def test_writers_are_bounded_by_what_the_disk_takes() -> None:
    async def scenario(world: World) -> None:
        await world.start(1)
        plane = world.planes[A]
        plane._rows._waiting_bytes_max = 2 << 20
        world.workers[A].hang()
        value = bytes(60_000)
        puts = [asyncio.ensure_future(plane.ap_put(b"%d" % number, value)) for number in range(100)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        refused = [put for put in puts if put.done()]
        assert 50 < len(refused) < 100
        assert {type(put.exception()) for put in refused} == {Overloaded}
        plane.record("told.later", {})
        world.workers[A].resume()
        await asyncio.wait([put for put in puts if put not in refused])
        await asyncio.sleep(0.5)
        assert plane._eventual.keyspace.counts()["keys"] == 100 - len(refused)
        assert "told.later" in await kinds(plane)

    play(scenario, size=1)


def test_a_write_that_is_not_durable_in_time_is_not_known() -> None:
    async def scenario(world: World) -> None:
        await world.start(1)
        plane = world.planes[A]
        world.workers[A].hang()
        with pytest.raises(Timeout, match="may be later"):
            await plane.ap_put(b"k", b"v", timeout_ms=100)
        world.workers[A].resume()
        await asyncio.sleep(0.01)
        assert (await plane.ap_get(b"k")).values == (b"v",)

    play(scenario, size=1)


# ── the end ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", ["stop", "halt"])
def test_an_end_leaves_nobody_waiting(how: str) -> None:
    async def scenario(world: World) -> None:
        await world.start()
        await world.level()
        plane = world.planes[A]
        cursor = (await plane.events()).cursor
        world.workers[A].hang()
        waiting = [
            asyncio.ensure_future(plane.ap_get(b"k", seen=Seen(0, ((2, 7, 1),)), timeout_ms=60_000)),
            asyncio.ensure_future(plane.ap_put(b"k", b"v")),
            asyncio.ensure_future(plane.post_event(b"{}")),
        ]
        follower = asyncio.ensure_future(plane.events(cursor, wait_ms=60_000))
        world.gate.clear()  # pulls are under way
        await world.planes[B].ap_put(b"k2", b"v")
        await world.until(lambda: any(task.get_name().startswith("gossip-pull") for task in asyncio.all_tasks()))
        if how == "halt":
            plane.halt()
        else:
            world.workers[A].resume()
            await plane.stop()
        _, pending = await asyncio.wait([*waiting, follower], timeout=0.1)
        assert not pending
        told = [event.kind for event in follower.result().events]
        assert told == [] if how == "halt" else told[-1] == "user"  # a clean stop lets the disk take the last events
        errors = [task.exception() for task in waiting]
        assert isinstance(errors[0], ConnectionLost)
        if how == "halt":
            assert all(isinstance(error, ConnectionLost) for error in errors)
        else:
            assert errors[1] is None  # what was on its way to the disk is there
        assert plane._eventual.readers == plane._story.followers == 0
        world.gate.set()
        exchanges = len(world.wires[A].exchanges)
        sent = world.wires[A].counters["datagrams_sent"]
        await asyncio.sleep(5)
        assert (len(world.wires[A].exchanges), world.wires[A].counters["datagrams_sent"]) == (exchanges, sent)
        assert not plane._driver._tasks
        world.workers[A].resume()
        await plane.stop()
        await plane.stop()
        assert world.wires[A].closed
        assert plane._rows._closing
        for refused in (plane.ap_get(b"k"), plane.ap_put(b"k", b"v"), plane.post_event(b"{}"), plane.events()):
            with pytest.raises(NotReady):
                await refused
        plane.record("too.late", {})
        plane.changed()

    play(scenario)


def test_a_stop_ends_in_quiet_whatever_is_on_its_way_and_keeps_the_last_events() -> None:
    async def scenario(world: World) -> None:
        """Each commit that ends has something to follow it: a promise, a ceiling, the next events."""
        told = 0
        for turn in range(8):
            await world.start(1)
            plane = world.planes[A]
            for number in range(600 if turn == 0 else 20):
                plane.record("told", {"n": number})
                told += 1
            await asyncio.sleep(turn / 2e3)
            await world.stop(1, leave=turn % 2 == 0)
        found = await kinds(world.open(A))
        assert found.count("told") == told
        assert found.count("node.stopping") == 4

    play(scenario, size=1)


def test_a_stop_does_not_wait_for_ever_for_a_disk_that_hangs() -> None:
    async def scenario(world: World) -> None:
        await world.start(1)
        plane = world.planes[A]
        await asyncio.sleep(1)
        world.workers[A].hang()
        posts = [asyncio.ensure_future(plane.post_event(b"{}", timeout_ms=60_000)) for _ in range(3)]
        await asyncio.sleep(0.1)
        began_s = world.loop.time()
        await plane.stop()
        assert world.loop.time() - began_s < 1.5
        assert {type(found) for found in await asyncio.gather(*posts, return_exceptions=True)} == {ConnectionLost}
        world.workers[A].resume()  # it ends after all, and has something to follow it
        await asyncio.sleep(1)

    play(scenario, size=1)


def test_who_leaves_tells_it() -> None:
    async def scenario(world: World) -> None:
        await world.start()
        await world.until(lambda: all(member.status == "alive" for member in world.planes[B].alive_members()))
        await world.stop(1, leave=True)
        await world.until(lambda: world.planes[B].alive_members()[0].status == "left", 1)
        await world.until(lambda: world.planes[C].alive_members()[0].status == "left", 1)
        await asyncio.sleep(0.5)
        found = await kinds(world.planes[B])
        assert "member.left" in found
        assert "node.stopping" in found
        assert "member.suspect" not in found

    play(scenario)


def test_a_plane_that_never_started_ends_as_well() -> None:
    async def scenario(world: World) -> None:
        plane = world.open(A)
        await plane.leave()

    play(scenario, size=1)
