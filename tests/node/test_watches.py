"""Watches on one node: who is woken by what, the ring and what it has dropped, marks, bounds, ends (SW1–SW6, I23)."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from itertools import pairwise
from typing import Any

import pytest

from kvnode.check.watches import Change, Message, Stream, check
from kvnode.config import LimitsSection
from kvnode.errors import BadRequest, Compacted, Overloaded
from kvnode.ids import Index, Term
from kvnode.kv import keys
from kvnode.kv.events import Cancelled, Changes, Listed, Progress, Started, Synced, WatchPart
from kvnode.kv.interface import Options
from kvnode.kv.requests import Compact, Delete, Put, Txn, Watch, WriteRequest
from kvnode.machine import changelog
from kvnode.machine.machine import StateMachine
from kvnode.node import recent_events, watch_stream
from kvnode.node import watches as watches_module
from kvnode.node.admission import check_watch
from kvnode.node.audience import WAKES_A_TURN
from kvnode.node.range_reads import RangeReads
from kvnode.node.watch_stream import NodeStream
from kvnode.node.watches import Watches
from kvnode.sim.loop import run_virtual
from kvnode.sim.runtime.clock import NodeClock
from kvnode.storage.memory_backend import MemoryBackend
from tests.machine.floor import give_up_below

ALL = (b"", keys.TO_THE_END)


class Rig:
    """A state machine that is told to apply, its watches, and virtual time."""

    def __init__(self, watches_max: int = 100) -> None:
        loop = asyncio.get_running_loop()
        self.machine = StateMachine(MemoryBackend(), LimitsSection())
        self.history: list[Change] = []
        self.watches = Watches(
            self.machine,
            RangeReads(self.machine, loop),
            watches_max=watches_max,
            loop=loop,
            clock=NodeClock(loop.time),
        )

    def apply(self, request: WriteRequest) -> int:
        index = Index(self.machine.applied_index + 1)
        applied = self.machine.apply(index, index, request)
        if self.watches.is_watched:
            self.watches.applied(applied.events)
        self.history += [
            Change(
                event.kv.mod_revision,
                event.kv.key.decode("latin-1"),
                event.kv.value.decode() if event.kv.version else None,
            )
            for event in applied.events
        ]
        return int(self.machine.revision)

    def put(self, key: str, value: str = "v") -> int:
        return self.apply(Put(key.encode(), value.encode()))

    def flush(self) -> None:
        cut = self.machine.cut(Term(1))
        if cut is not None:
            self.machine.backend.commit(cut)
            self.machine.evict(cut)

    def stream(self, start: bytes = b"", end: bytes = keys.TO_THE_END, **more: Any) -> NodeStream:
        async def reach() -> None:
            await asyncio.sleep(0)

        return NodeStream(self.watches, Watch(start, end, **more), reach)

    async def begin(self, start: bytes = b"", end: bytes = keys.TO_THE_END, **more: Any) -> NodeStream:
        stream = self.stream(start, end, **more)
        assert isinstance(await anext(stream), Started)
        return stream


def simulate(scenario: Callable[[Rig], Awaitable[None]], **rig: Any) -> None:
    async def main() -> None:
        await scenario(Rig(**rig))

    run_virtual(main())


async def changes(stream: NodeStream, count: int) -> list[tuple[int, str]]:
    """(revision, key) of the next `count` events; nothing else may come."""
    found: list[tuple[int, str]] = []
    async with asyncio.timeout(10):
        while len(found) < count:
            part = await anext(stream)
            assert isinstance(part, Changes), part
            found += [(event.kv.mod_revision, event.kv.key.decode()) for event in part.events]
    return found


async def silence(stream: NodeStream, within_s: float = 1.0) -> None:
    """Nothing comes; the stream is over then, since its reader was cancelled."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(within_s):
            pytest.fail(f"came: {await anext(stream)}")


def messages(part: WatchPart) -> list[Message]:
    match part:
        case Changes():
            return [
                Message(
                    "put" if event.kv.version else "delete",
                    each.revision,
                    event.kv.key.decode(),
                    event.kv.value.decode() if event.kv.version else None,
                    event.previous.value.decode() if event.previous is not None else None,
                    number < len(each.events) - 1,
                )
                for each in part.sets
                for number, event in enumerate(each.events)
            ]
        case Listed():
            return [Message("put", kv.mod_revision, kv.key.decode(), kv.value.decode()) for kv in part.items]
        case Synced():
            return [Message("synced", part.revision)]
        case Progress():
            return [Message("progress", part.revision)]
        case Cancelled():
            return [Message("cancelled", code=part.code, resume_rev=part.resume_revision)]
        case _:
            return []


def test_a_stream_tells_how_far_it_has_been_read_while_its_reader_waits() -> None:
    async def scenario(rig: Rig) -> None:
        rig.put("before")
        stream = rig.stream(b"k", keys.ONE_KEY, from_revision=1)
        assert stream.read_up_to == 0
        await anext(stream)
        assert stream.read_up_to == 0, "the history is not read yet"
        part = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.1)
        assert stream.read_up_to == 2
        rig.put("other")
        assert stream.read_up_to == 3
        rig.put("k")
        assert stream.read_up_to == 0, "there is something to read"
        assert isinstance(await part, Changes)
        assert stream.read_up_to == 0, "what was handed out may not have been dealt with"
        await stream.aclose()
        assert stream.read_up_to == 0

    simulate(scenario)


def test_each_watcher_gets_what_it_watches() -> None:
    async def scenario(rig: Rig) -> None:
        exact, prefix, span, everything, tail = [
            await rig.begin(*bounds)
            for bounds in (
                (b"b", keys.ONE_KEY),
                (b"b", keys.prefix_end(b"b")),
                (b"b", b"bb"),
                ALL,
                (b"\xff", keys.prefix_end(b"\xff")),
            )
        ]
        for key in ("a", "b", "ba", "bb", "c"):
            rig.put(key)
        rig.apply(Put(b"\xff\xff", b"v"))
        assert await changes(exact, 1) == [(3, "b")]
        assert await changes(prefix, 3) == [(3, "b"), (4, "ba"), (5, "bb")]
        assert await changes(span, 2) == [(3, "b"), (4, "ba")]
        part = await anext(tail)
        assert isinstance(part, Changes)
        assert part.events[0].kv.key == b"\xff\xff"
        part = await anext(everything)
        assert isinstance(part, Changes)
        assert len(part.sets) == 6
        for stream in (exact, prefix, span, everything, tail):
            await silence(stream)
        assert rig.watches.open == 0
        assert not rig.watches.is_watched

    simulate(scenario)


def test_a_revision_comes_whole_and_only_what_is_watched_of_it() -> None:
    async def scenario(rig: Rig) -> None:
        some, whole = await rig.begin(b"k", b"l"), await rig.begin()
        puts = await rig.begin(deletes=False)
        rig.put("old")
        rig.apply(Txn((), (Put(b"k1", b""), Put(b"x", b""), Put(b"k2", b""), Delete(b"old"))))
        part = await anext(some)
        assert isinstance(part, Changes)
        assert [[event.kv.key for event in each.events] for each in part.sets] == [[b"k1", b"k2"]]
        assert len(await changes(whole, 5)) == 5
        assert await changes(puts, 4) == [(2, "old"), (3, "k1"), (3, "x"), (3, "k2")]

    simulate(scenario)


def test_what_all_of_an_audience_sees_is_one_object() -> None:
    """Rendered once for all: 1 000 watchers of one prefix share it, and so do watchers of its keys."""

    async def scenario(rig: Rig) -> None:
        streams = [await rig.begin(b"k", keys.prefix_end(b"k")) for _ in range(3)] + [await rig.begin(b"k", b"")]
        rig.put("k")
        parts = [await anext(stream) for stream in streams]
        assert len({id(part.sets[0]) for part in parts if isinstance(part, Changes)}) == 1

    simulate(scenario)


def test_only_those_a_change_concerns_are_woken() -> None:
    async def scenario(rig: Rig) -> None:
        idle = [await rig.begin(b"k%d" % number, b"") for number in range(50)]
        waiting = [asyncio.ensure_future(anext(stream)) for stream in idle]
        other = await rig.begin(b"other", b"")
        reading = asyncio.ensure_future(anext(other))
        await asyncio.sleep(0.1)
        for _ in range(10):
            rig.put("other")
        futures = [watcher.parked for audience in rig.watches._audiences for watcher in audience.parked]
        assert len(futures) == 50
        assert not any(future is None or future.done() for future in futures)
        assert len((await reading).events) == 10  # type: ignore[union-attr]
        assert not any(each.done() for each in waiting)

    simulate(scenario)


def test_the_past_is_read_from_the_store_and_meets_the_present_without_a_gap() -> None:
    async def scenario(rig: Rig) -> None:
        for number in range(400):
            rig.put(f"k{number % 7}")
        rig.flush()
        for number in range(400):
            rig.put(f"k{number % 7}")
        stream = await rig.begin(from_revision=2)
        for number in range(50):
            rig.put(f"k{number % 7}")
        found = await changes(stream, 850)
        assert [revision for revision, _ in found] == list(range(2, 852))
        rig.put("live")
        assert await changes(stream, 1) == [(852, "live")]

    simulate(scenario)


def test_a_watcher_that_the_ring_has_passed_misses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """etcd #17529: lost under starvation."""
    monkeypatch.setattr(recent_events, "EVENTS_MAX", 8)

    async def scenario(rig: Rig) -> None:
        slow, quick = await rig.begin(), await rig.begin()
        for number in range(100):
            rig.put(f"k{number}")
            if number % 4 == 0:
                await changes(quick, 1 if number == 0 else 4)
            if number == 50:
                rig.flush()
        assert rig.watches.pages_read == 0, "who keeps up reads the ring alone"
        assert [revision for revision, _ in await changes(slow, 100)] == list(range(2, 102))
        assert rig.watches.pages_read > 0
        rig.put("live")
        assert await changes(slow, 1) == [(102, "live")]

    monkeypatch.setattr(recent_events.RecentEvents.__init__, "__kwdefaults__", {"events_max": 8, "bytes_max": 1 << 20})
    simulate(scenario)


def test_the_ring_is_bounded_in_events_and_bytes() -> None:
    async def scenario(rig: Rig) -> None:
        ring = recent_events.RecentEvents(2, events_max=10, bytes_max=5_000)
        for revision in range(2, 40):
            events = rig.machine.apply(Index(revision - 1), revision, Put(b"k", bytes(100))).events
            ring.add(revision, events)
            assert ring.next - ring.first <= 10
        assert ring.first == 30
        events = rig.machine.apply(Index(39), 40, Put(b"k", bytes(10_000))).events
        ring.add(40, events)
        assert (ring.first, ring.next) == (40, 41), "the newest stays, however big"

    simulate(scenario)


def test_a_start_in_the_future_waits_and_shows_nothing_older() -> None:
    """etcd #20221, #15271: no time travel."""

    async def scenario(rig: Rig) -> None:
        stream = await rig.begin(from_revision=7, progress_ms=100)
        reading = asyncio.ensure_future(anext(stream))
        present = await rig.begin()
        for number in range(4):
            rig.put(f"k{number}")
            await asyncio.sleep(0.3)
            assert not reading.done(), "neither an event nor a mark below the start"
        assert len(await changes(present, 4)) == 4
        assert rig.put("k5") == 6
        assert await reading == Progress(6)
        reading = asyncio.ensure_future(anext(stream))
        rig.put("k6")
        part = await reading
        assert isinstance(part, Changes)
        assert [each.revision for each in part.sets] == [7]

    simulate(scenario)


def test_a_mark_is_never_ahead_of_what_has_come() -> None:
    """etcd #15220. Whoever has not read yet is told nothing about what it has not read."""

    async def scenario(rig: Rig) -> None:
        stream = await rig.begin(b"k", b"", progress_ms=100)
        rig.put("other")
        assert await anext(stream) == Progress(2)
        rig.put("other")
        rig.put("k")
        await asyncio.sleep(1.0)
        assert await changes(stream, 1) == [(4, "k")]
        assert await anext(stream) == Progress(4)
        reading = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.0999)
        rig.put("k")
        await asyncio.sleep(0.0002)  # the mark was due when the change had woken the stream
        part = await reading
        assert isinstance(part, Changes), part

    simulate(scenario)


def test_marks_come_while_much_that_does_not_match_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changelog, "CHANGES_MAX", 4)

    async def scenario(rig: Rig) -> None:
        for _ in range(20):
            rig.put("other")
        rig.put("k")
        stream = await rig.begin(b"k", b"", from_revision=2, progress_ms=100)
        await asyncio.sleep(0.2)
        assert await anext(stream) == Progress(5)
        assert await changes(stream, 1) == [(22, "k")]

    simulate(scenario)


def test_more_than_fits_into_a_part_comes_in_several() -> None:
    async def scenario(rig: Rig) -> None:
        stream = await rig.begin()
        for number in range(1_000):
            rig.put(f"k{number}")
        assert [revision for revision, _ in await changes(stream, 1_000)] == list(range(2, 1_002))
        for number in range(20):
            rig.put(f"k{number}", "x" * 50_000)
        assert [revision for revision, _ in await changes(stream, 20)] == list(range(1_002, 1_022))
        assert rig.watches.pages_read == 0

    simulate(scenario)


@pytest.mark.parametrize("end", [keys.ONE_KEY, keys.TO_THE_END])
def test_a_list_shows_one_revision_and_what_follows_has_no_gap(end: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_stream, "LIST_ITEMS", 3)

    async def scenario(rig: Rig) -> None:
        for number in range(10):
            rig.put(f"k{number}", f"{number}")
        stream = await rig.begin(b"k1", end, list_first=True)
        said: list[Message] = []
        for number in range(30):
            rig.put(f"k{number % 12}", f"later {number}")
            if number % 10 == 0:
                said += messages(await anext(stream))
        last = 37 if end == keys.ONE_KEY else 41
        while said[-1].revision < last:
            said += messages(await anext(stream))
        asked = Stream(1, 11, key="k1" if end == keys.ONE_KEY else "", prefix="", listed=True, messages=tuple(said))
        history = [change for change in rig.history if change.key >= "k1"]
        assert check([asked], history) == []

    simulate(scenario)


def test_below_the_floor_it_is_compacted_at_the_start_and_later() -> None:
    """SW5, F83; etcd #18089, #19179: a deletion at the floor is told."""

    async def scenario(rig: Rig) -> None:
        rig.put("k")
        rig.apply(Delete(b"k"))
        rig.put("k")
        give_up_below(rig.machine, 3)
        with pytest.raises(Compacted):
            await anext(rig.stream(from_revision=2))
        assert rig.watches.open == 0
        assert await changes(await rig.begin(from_revision=3), 2) == [(3, "k"), (4, "k")]
        behind = await rig.begin(from_revision=3)
        give_up_below(rig.machine, 4)
        assert await anext(behind) == Cancelled("compacted", 4, 4)
        with pytest.raises(StopAsyncIteration):
            await anext(behind)
        assert rig.watches.cancelled == 1

    simulate(scenario)


def test_a_list_whose_revision_is_compacted_begins_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_stream, "LIST_ITEMS", 1)

    async def scenario(rig: Rig) -> None:
        rig.put("a")
        rig.put("b")
        stream = await rig.begin(list_first=True)
        assert isinstance(await anext(stream), Listed)
        rig.put("c")
        give_up_below(rig.machine, 4)
        assert await anext(stream) == Cancelled("compacted", 0, 4)

    simulate(scenario)


def test_many_changes_of_one_entry_are_announced_in_slices_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(rig: Rig) -> None:
        for number in range(3_000):
            rig.put(f"k{number:04}")
        exact, prefix = await rig.begin(b"k2999", b""), await rig.begin(b"k1", keys.prefix_end(b"k1"))
        rig.apply(Delete(b"", keys.TO_THE_END))
        late = await rig.begin(b"k0000", b"", from_revision=3_002)  # it was looked up for the others already
        rig.put("k2999")
        rig.put("k0000")
        assert rig.watches.next < rig.machine.revision
        assert await changes(exact, 2) == [(3_002, "k2999"), (3_003, "k2999")]
        found = await changes(prefix, 1_000)
        assert {revision for revision, _ in found} == {3_002}
        assert await changes(late, 2) == [(3_002, "k0000"), (3_004, "k0000")]
        assert rig.watches.next == rig.machine.revision + 1

    simulate(scenario)


def test_what_is_applied_faster_than_it_can_be_announced_is_read_from_the_store(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watches_module, "UNANNOUNCED_MAX", 5)

    async def scenario(rig: Rig) -> None:
        spans = [await rig.begin(b"a%04d" % number, b"z") for number in range(2_000)]
        future = await rig.begin(b"k", b"", from_revision=20)
        waiting = [asyncio.ensure_future(anext(stream)) for stream in (*spans[:-1], future)]
        await asyncio.sleep(0.1)
        for number in range(20):
            rig.put("k", f"{number}")
            if number < 12:
                assert len(rig.watches._unannounced) <= 5
        assert await changes(spans[-1], 20) == [(revision, "k") for revision in range(2, 22)]
        parts = await asyncio.gather(*waiting)
        assert {part.sets[0].revision for part in parts[:-1] if isinstance(part, Changes)} == {2}
        assert isinstance(parts[-1], Changes)
        assert parts[-1].sets[0].revision == 20
        assert rig.watches.pages_read > 0
        rig.put("k", "live")
        assert await changes(spans[-1], 1) == [(22, "k")]

    simulate(scenario, watches_max=3_000)


def test_many_are_woken_in_turns_with_others_in_between() -> None:
    async def scenario(rig: Rig) -> None:
        streams = [await rig.begin() for _ in range(1_000)]
        waiting = [asyncio.ensure_future(anext(stream)) for stream in streams]
        await asyncio.sleep(0.1)
        rig.put("k")
        woken = []
        while not all(each.done() for each in waiting):
            await asyncio.sleep(0)
            woken.append(sum(each.done() for each in waiting))
        assert max(after - before for before, after in pairwise([0, *woken])) <= WAKES_A_TURN
        assert len(woken) >= 5

    simulate(scenario, watches_max=2_000)


def test_the_last_to_leave_ends_an_announcement_under_way() -> None:
    async def scenario(rig: Rig) -> None:
        for number in range(3_000):
            rig.put(f"k{number:04}")
        stream = await rig.begin()
        rig.apply(Delete(b"", b"k2"))
        await stream.aclose()
        again = await rig.begin()
        rig.apply(Delete(b"", keys.TO_THE_END))
        rig.put("k")
        found = await changes(again, 1_001)
        assert [revision for revision, _ in found] == [3_003] * 1_000 + [3_004]

    simulate(scenario)


def test_watches_are_bounded_and_counted() -> None:
    async def scenario(rig: Rig) -> None:
        streams = [await rig.begin() for _ in range(3)]
        with pytest.raises(Overloaded):
            await anext(rig.stream())
        await streams[0].aclose()
        await streams[0].aclose()
        assert rig.watches.open == 2
        await rig.begin()

    simulate(scenario, watches_max=3)


def test_who_just_walks_away_leaves_nothing_behind() -> None:
    async def scenario(rig: Rig) -> None:
        stream = await rig.begin()
        assert rig.watches.open == 1
        del stream
        gc.collect()
        await asyncio.sleep(0.01)
        assert rig.watches.open == 0
        assert not len(rig.watches._audiences)

    simulate(scenario)


def test_a_node_that_stops_tells_everybody_where_to_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_stream, "LIST_ITEMS", 1)

    async def scenario(rig: Rig) -> None:
        rig.put("k")
        rig.put("l")
        parked, behind = await rig.begin(), await rig.begin(from_revision=2)
        listing = await rig.begin(list_first=True)
        await anext(listing)
        reading = asyncio.ensure_future(anext(parked))
        await asyncio.sleep(0.1)
        rig.watches.close()
        assert await reading == Cancelled("stopping", 4)
        assert await anext(behind) == Cancelled("stopping", 2)
        assert await anext(listing) == Cancelled("stopping", 0)
        assert rig.watches.open == 0

    simulate(scenario)


def test_nothing_is_kept_while_nobody_watches() -> None:
    async def scenario(rig: Rig) -> None:
        rig.put("k")
        assert rig.watches.ring.next == 2
        stream = await rig.begin()
        rig.put("k")
        assert (rig.watches.ring.first, rig.watches.ring.next) == (3, 4)
        await stream.aclose()
        assert rig.watches.ring.first == rig.watches.ring.next

    simulate(scenario)


@pytest.mark.parametrize("seed", range(8))
def test_random_watchers_see_the_projection_of_the_history(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Starts in the past, now and in the future, readers of any pace, a tiny ring, flushes in between; each resumes."""
    defaults = {"events_max": 12, "bytes_max": 1 << 20}
    monkeypatch.setattr(recent_events.RecentEvents.__init__, "__kwdefaults__", defaults)
    chance = random.Random(seed)
    streams: list[Stream] = []

    async def follow(rig: Rig, number: int, rng: random.Random, until: int) -> None:
        first = rng.choice((0, 2, rng.randint(2, until)))
        shape = rng.choice((("", ""), ("k1", ""), ("", "k2"), ("k", "")))
        start, end = shape[0].encode(), keys.prefix_end(shape[0].encode())
        if shape[1]:
            start, end = shape[1].encode(), keys.ONE_KEY
        kinds: tuple[str, ...] = rng.choice((("put", "delete"), ("put",), ("delete",)))
        resumed = 0
        while True:
            number += 1_000
            asked = {"puts": "put" in kinds, "deletes": "delete" in kinds, "previous": rng.random() < 0.5}
            async with aclosing(rig.stream(start, end, from_revision=first, progress_ms=200, **asked)) as stream:
                began = await anext(stream)
                assert isinstance(began, Started)
                said: list[Message] = []
                finished = began.from_revision - 1
                for _ in range(rng.randint(1, 12)):
                    part = await anext(stream)
                    said += messages(part)
                    finished = said[-1].revision
                    await asyncio.sleep(rng.choice((0, 0, 0.05, 0.5)))
            streams.append(
                Stream(number, began.from_revision, *shape, kinds, resumes=resumed, messages=tuple(said))  # type: ignore[arg-type]
            )
            if finished >= until:
                return
            first, resumed = finished + 1, number

    async def scenario(rig: Rig) -> None:
        until = 150
        readers = [
            asyncio.ensure_future(follow(rig, number, random.Random(f"{seed}/{number}"), until)) for number in range(12)
        ]
        while rig.machine.revision < until:
            key = f"k{chance.randrange(20)}".encode()
            rig.apply(
                chance.choice(
                    (
                        Put(key, b"%d" % rig.machine.revision),
                        Delete(key),
                        Txn((), (Put(key, b"t"), Put(b"z" + key, b"t"), Delete(b"k1"))),
                        Delete(b"k1", b"k2"),
                    )
                )
                if chance.random() < 0.5
                else Put(key, b"%d" % rig.machine.revision)
            )
            if chance.random() < 0.1:
                rig.flush()
            if chance.random() < 0.5:
                await asyncio.sleep(chance.choice((0, 0.01, 0.2)))
        await asyncio.gather(*readers)
        assert check(streams, rig.history) == []
        assert not rig.watches.is_watched

    simulate(scenario)
    assert len(streams) > 12


@pytest.mark.parametrize(
    "request_",
    [
        Watch(b""),
        Watch(b"k", from_revision=-1),
        Watch(b"k", from_revision=1 << 63),
        Watch(b"k", from_revision=3, list_first=True),
        Watch(b"k", puts=False, deletes=False),
        Watch(b"k", progress_ms=99),
        Watch(b"k", progress_ms=3_600_001),
    ],
)
def test_what_cannot_be_watched(request_: Watch) -> None:
    with pytest.raises(BadRequest):
        check_watch(request_, Options(), LimitsSection())
    with pytest.raises(BadRequest):
        check_watch(Watch(b"k"), Options(at_time=1), LimitsSection())


# ── a snapshot ──────────────────────────────────────────────────────────────────────────────────────


class Ahead(Rig):
    """Another node's machine, which becomes this one's."""

    def give_to(self, rig: Rig) -> None:
        self.flush()
        rig.machine.take_over(StateMachine(self.machine.backend, LimitsSection()))
        rig.watches.on_store_replaced()


def test_a_snapshot_is_told_without_gap_or_repetition() -> None:
    """What the entries in between changed comes out of the new store; nobody reads anything twice (canary 36)."""

    async def scenario(rig: Rig) -> None:
        ahead = Ahead()
        for key in ("a", "b", "c"):
            rig.put(key)
            ahead.put(key)
        parked, behind = await rig.begin(from_revision=2), await rig.begin(from_revision=2)
        future = await rig.begin(from_revision=7)
        assert await changes(parked, 3) == [(2, "a"), (3, "b"), (4, "c")]
        waiting = [asyncio.ensure_future(anext(stream)) for stream in (parked, future)]
        await asyncio.sleep(0.01)
        for key in ("d", "e", "f", "g"):
            ahead.put(key)
        ahead.give_to(rig)
        first = await waiting[0]
        assert isinstance(first, Changes)
        assert [each.revision for each in first.sets] == [5, 6, 7, 8]
        assert await changes(behind, 7) == [(2, "a"), (3, "b"), (4, "c"), (5, "d"), (6, "e"), (7, "f"), (8, "g")]
        late = await waiting[1]
        assert isinstance(late, Changes)
        assert [each.revision for each in late.sets] == [7, 8]
        for stream in (parked, behind, future):
            await silence(stream)

    simulate(scenario)


def test_changes_after_a_snapshot_come_from_the_ring_again() -> None:
    async def scenario(rig: Rig) -> None:
        ahead = Ahead()
        stream = await rig.begin()
        ahead.put("a")
        ahead.give_to(rig)
        assert await changes(stream, 1) == [(2, "a")]
        pages = rig.watches.pages_read
        waiting = asyncio.ensure_future(changes(stream, 1))
        await asyncio.sleep(0.01)
        rig.put("b")
        assert await waiting == [(3, "b")]
        assert rig.watches.pages_read == pages

    simulate(scenario)


def test_what_the_snapshot_has_given_up_ends_a_stream_as_compacted() -> None:
    async def scenario(rig: Rig) -> None:
        ahead = Ahead()
        stream = await rig.begin(from_revision=2)
        for key in ("a", "b", "c"):
            ahead.put(key)
        ahead.apply(Compact(4))
        ahead.give_to(rig)
        assert await anext(stream) == Cancelled("compacted", 4, 4)

    simulate(scenario)
