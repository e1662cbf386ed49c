"""Rows of the available plane: joined while the disk is busy, told in order, never before they are durable."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

import pytest

from kvnode import perturb
from kvnode.errors import NoSpace, NotReady, Overloaded, StorageFailed
from kvnode.machine.backend import Row
from kvnode.node.available_log import DurableRows
from kvnode.node.soft_limit import SoftLimit, shortage
from kvnode.node.worker import ThreadWorker
from kvnode.storage.available_shelf import MemoryShelf
from kvnode.storage.available_store import AvailableStore
from tests.node.test_log_writer import ManualWorker


class RecordingStore:
    def __init__(self) -> None:
        self.writes: list[tuple[dict[bytes, bytes], list[bytes]]] = []
        self.closed = False
        self.error: Exception | None = None

    def write(self, rows: Sequence[Row], removed: Sequence[bytes]) -> None:
        assert not self.closed
        if self.error:
            raise self.error
        self.writes.append((dict(rows), list(removed)))

    def close(self) -> None:
        self.closed = True


class StillClock:
    now_ms = 0

    def monotonic_ms(self) -> int:
        return self.now_ms

    def wall_ms(self) -> int:
        return self.now_ms

    def elapsed_ns(self) -> int:
        return self.now_ms * 1_000_000


class Bench:
    def __init__(self, waiting_bytes_max: int = 1 << 20) -> None:
        self.store, self.worker = RecordingStore(), ManualWorker()
        self.durable: list[int] = []
        self.failed: list[BaseException] = []
        self.log = DurableRows(self.worker, self.store, self.failed.append, waiting_bytes_max=waiting_bytes_max)

    def submit(self, number: int, size: int = 1) -> None:
        self.log.check_room(size)
        self.log.submit([(b"%d" % number, bytes(size))], (), partial(self.durable.append, number))


def test_nobody_is_told_before_the_rows_are_durable() -> None:
    bench = Bench()
    bench.submit(1)
    assert (bench.durable, bench.store.writes) == ([], [])
    bench.worker.run_one()
    assert (bench.durable, len(bench.store.writes)) == ([1], 1)


def test_what_comes_during_a_write_is_joined_into_the_next() -> None:
    bench = Bench()
    for number in range(1, 6):
        bench.submit(number)
    assert len(bench.worker.jobs) == 1
    bench.worker.run_one()
    assert bench.durable == [1]
    bench.worker.run_one()
    assert bench.durable == [1, 2, 3, 4, 5]
    assert [len(rows) for rows, _ in bench.store.writes] == [1, 4]
    assert (bench.log.writes, bench.log.submissions, bench.log.waiting_bytes) == (2, 5, 0)


def test_of_a_key_the_last_row_counts() -> None:
    bench = Bench()
    bench.submit(0)
    for rows, removed in (([(b"a", b"1"), (b"b", b"1")], []), ([(b"c", b"1")], [b"a"]), ([(b"b", b"2")], [b"c"])):
        bench.log.submit(rows, removed, lambda: None)
    bench.log.submit([(b"a", b"3")], [], lambda: None)
    bench.worker.run_one()
    bench.worker.run_one()
    assert bench.store.writes[1] == ({b"a": b"3", b"b": b"2"}, [b"c"])


def test_a_caller_may_submit_when_it_is_told() -> None:
    bench = Bench()

    def again() -> None:
        bench.durable.append(1)
        bench.submit(3)

    bench.log.submit([(b"1", b"")], (), again)
    bench.submit(2)
    while bench.worker.jobs:
        bench.worker.run_one()
    assert bench.durable == [1, 2, 3]


def test_what_waits_is_bounded_and_what_is_refused_is_not_taken() -> None:
    bench = Bench(waiting_bytes_max=1_000)
    bench.submit(1, size=5_000)
    bench.submit(2, size=5_000)  # alone behind the write: else it could never be taken
    assert bench.log.waiting_bytes > 5_000
    with pytest.raises(Overloaded) as found:
        bench.submit(3)
    assert found.value.detail["retry_after_ms"] > 0
    with pytest.raises(Overloaded):
        bench.log.check_room()
    bench.worker.run_one()
    bench.log.check_room(1 << 30)
    bench.submit(4, size=100)
    bench.submit(5, size=100)
    bench.log.check_room(100)
    with pytest.raises(Overloaded):
        bench.log.check_room(1_000)
    bench.worker.run_one()
    bench.worker.run_one()
    assert bench.durable == [1, 2, 4, 5]


def test_what_has_changed_in_memory_is_taken_whatever_it_weighs() -> None:
    bench = Bench(waiting_bytes_max=1_000)
    bench.submit(1)
    bench.submit(2)
    bench.log.submit([(b"3", bytes(5_000))], (), partial(bench.durable.append, 3))
    bench.worker.run_one()
    bench.worker.run_one()
    assert bench.durable == [1, 2, 3]


def test_a_short_disk_takes_deletions_only() -> None:
    free, clock = [100], StillClock()
    log = DurableRows(
        ManualWorker(), RecordingStore(), [].append, space=SoftLimit(lambda: shortage(free[0], 200), clock)
    )
    with pytest.raises(NoSpace, match="100 bytes free, less than 200"):
        log.check_room(1)
    log.check_room(1, grows=False)
    free[0] = 300
    with pytest.raises(NoSpace):
        log.check_room(1)  # looked at once a second
    clock.now_ms += 1_000
    log.check_room(1)


def test_many_small_rows_are_bounded_too() -> None:
    bench = Bench(waiting_bytes_max=10_000)
    taken = 0
    with suppress(Overloaded):
        for number in range(1_000):
            bench.submit(number, size=0)
            taken += 1
    assert 100 < taken < 200


def test_a_failed_write_is_final() -> None:
    bench = Bench()
    bench.submit(1)
    bench.submit(2)
    bench.store.error = StorageFailed("no")
    bench.worker.run_one()
    assert bench.failed == [bench.store.error]
    bench.store.error = None
    assert bench.worker.jobs == []
    with pytest.raises(StorageFailed):
        bench.submit(3)
    assert (bench.durable, bench.store.writes) == ([], [])


async def test_of_writes_that_were_handed_over_at_the_end_none_is_told_behind_one_that_failed() -> None:
    bench = Bench()
    bench.submit(1)
    bench.submit(2)
    bench.store.error = StorageFailed("no")
    await bench.log.close()
    assert (bench.durable, bench.failed, bench.store.closed) == ([], [bench.store.error], True)


def test_a_caller_that_breaks_is_as_final_as_the_disk() -> None:
    bench = Bench()
    bench.log.submit([(b"1", b"")], (), [].pop)
    bench.submit(2)
    with pytest.raises(IndexError):
        bench.worker.run_one()  # the workers hand it to `on_failed`, see below


async def test_closing_finishes_what_was_submitted() -> None:
    bench = Bench()
    for number in (1, 2, 3):
        bench.submit(number)
    await bench.log.close()
    assert (bench.durable, bench.store.closed) == ([1, 2, 3], True)
    with pytest.raises(NotReady):
        bench.submit(4)


async def test_abandoning_leaves_only_what_is_at_the_disk() -> None:
    bench = Bench()
    for number in (1, 2, 3):
        bench.submit(number)
    await bench.log.close(abandon=True)
    assert (bench.durable, bench.store.closed) == ([1], True)


async def test_on_a_thread_with_a_store() -> None:
    loop = asyncio.get_running_loop()
    shelf = MemoryShelf()
    store = AvailableStore.open(shelf, member=1, cluster_id=1, random_u64=lambda: 7)
    durable: list[int] = []
    failed: list[BaseException] = []
    log = DurableRows(ThreadWorker(loop, "ap"), store, failed.append)
    for number in range(200):
        log.submit([(b"%03d" % number, b"v")], (), partial(durable.append, number))
        if number % 20 == 0:
            await asyncio.sleep(0.001)
    await log.close()
    assert durable == list(range(200))
    assert log.writes < 150
    again = AvailableStore.open(shelf, member=1, cluster_id=1, random_u64=lambda: 8)
    assert (again.incarnation, len(again.rows()), failed) == (7, 200, [])


async def test_a_caller_that_breaks_ends_the_node_on_a_thread_too() -> None:
    store = AvailableStore.open(MemoryShelf(), member=1, cluster_id=1, random_u64=lambda: 7)
    failed: list[BaseException] = []
    log = DurableRows(ThreadWorker(asyncio.get_running_loop(), "ap"), store, failed.append)
    log.submit([(b"1", b"")], (), [].pop)
    await log.close()
    assert [type(error) for error in failed] == [IndexError]


def test_the_simulator_may_keep_writes_apart() -> None:
    bench = Bench()
    with perturb.listening(lambda point: point == "batch-of-one"):
        for number in (1, 2, 3):
            bench.submit(number)
    while bench.worker.jobs:
        bench.worker.run_one()
    assert (bench.durable, len(bench.store.writes)) == ([1, 2, 3], 3)
