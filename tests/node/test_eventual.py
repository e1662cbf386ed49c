"""Writes of the always-writable keyspace on one node: what an answer says holds after a crash."""

from __future__ import annotations

import asyncio

import pytest

from kvnode.clocks.version_vector import Origin
from kvnode.errors import Conflict
from kvnode.gossip.key_state import Context
from kvnode.gossip.keyspace import Keyspace, KeyspaceLimits
from kvnode.ids import NodeId
from kvnode.node.available_log import DurableRows
from kvnode.node.eventual import Eventual
from tests.node.test_available_log import RecordingStore
from tests.node.test_log_writer import ManualWorker

ORIGIN = Origin(NodeId(1), 7)


class WallClock:
    def __init__(self, wall: int = 1_000_000) -> None:
        self.wall = wall

    def wall_ms(self) -> int:
        return self.wall

    def monotonic_ms(self) -> int:
        return 0


class Bench:
    """One node's keyspace on a disk that works only when it is told to."""

    def __init__(self, keyspace: Keyspace | None = None, wall: int = 1_000_000) -> None:
        self.store, self.worker = RecordingStore(), ManualWorker()
        self.keyspace = keyspace or Keyspace(ORIGIN, KeyspaceLimits(siblings_max=2))
        self.eventual = Eventual(
            self.keyspace,
            DurableRows(self.worker, self.store, self._failed),
            clock=WallClock(wall),
            clock_drift_ms=500,
            loop=asyncio.get_running_loop(),
            on_news=lambda: None,
        )
        self.flush()

    def flush(self) -> None:
        while self.worker.jobs:
            self.worker.run_one()

    def rows_on_disk(self) -> list[tuple[bytes, bytes]]:
        rows: dict[bytes, bytes] = {}
        for written, removed in self.store.writes:
            rows.update(written)
            for key in removed:
                rows.pop(key, None)
        return sorted(rows.items())

    @staticmethod
    def _failed(error: BaseException) -> None:
        raise error


async def _turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_deletion_that_finds_nothing_waits_for_the_one_that_left_nothing() -> None:
    bench = Bench()
    put = asyncio.ensure_future(bench.eventual.put(b"k", b"v", None))
    await _turns()
    bench.flush()
    await put
    first = asyncio.ensure_future(bench.eventual.delete(b"k", None))
    second = asyncio.ensure_future(bench.eventual.delete(b"k", None))
    await _turns()
    assert not second.done(), "acknowledged, but a crash now would bring the value back"
    bench.flush()
    await asyncio.gather(first, second)


async def test_a_deletion_that_finds_nothing_where_nothing_is_under_way_is_answered_at_once() -> None:
    bench = Bench()
    written = await asyncio.wait_for(bench.eventual.delete(b"k", None), 1)
    assert written.dot is None
    assert not bench.worker.jobs


async def test_a_refusal_shows_no_write_that_is_not_durable() -> None:
    """Its context covers dots. Those that a crash takes back are given to other values afterwards."""
    bench = Bench()
    waiting = [asyncio.ensure_future(bench.eventual.put(b"k", b"%d" % n, None)) for n in range(2)]
    await _turns()
    refused = asyncio.ensure_future(bench.eventual.put(b"k", b"one too many", None))
    await _turns()
    assert not refused.done()
    bench.flush()
    await asyncio.gather(*waiting)
    with pytest.raises(Conflict) as caught:
        await refused
    context = caught.value.detail["context"]
    assert isinstance(context, Context)
    restarted = Keyspace.restore(ORIGIN, bench.rows_on_disk())
    assert restarted.vector.includes(context.vector)


async def test_times_go_on_above_the_own_ones_of_before_a_restart() -> None:
    """The wall clock was set back meanwhile: the newer value still wins by time."""
    bench = Bench(wall=9_000_000)
    put = asyncio.ensure_future(bench.eventual.put(b"k", b"older", None))
    await _turns()
    bench.flush()
    await put
    again = Bench(Keyspace.restore(ORIGIN, bench.rows_on_disk()), wall=1_000_000)
    put = asyncio.ensure_future(again.eventual.put(b"k", b"newer", None))
    await _turns()
    again.flush()
    state = (await put).state
    assert max(state.siblings, key=lambda sibling: sibling.time).value == b"newer"
