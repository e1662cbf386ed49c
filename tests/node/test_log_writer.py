"""Group commit: one batch at the disk, the rest gathers, nothing leaves before it is durable (WL2, WL3, R11)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from kvnode.clocks.system import SystemClock
from kvnode.errors import StorageFailed
from kvnode.ids import Index, NodeId, Term, WriteNumber
from kvnode.node.log_writer import LogWriter
from kvnode.raft.messages import Entry, LogPosition, VoteReply
from kvnode.raft.output import Install, Persist, Send


class ManualWorker:
    """Jobs run when the test says so."""

    def __init__(self) -> None:
        self.jobs: list[tuple] = []

    def submit(self, job, on_done, on_failed) -> None:
        self.jobs.append((job, on_done, on_failed))

    def run_one(self) -> None:
        job, on_done, on_failed = self.jobs.pop(0)
        try:
            result = job()
        except BaseException as error:  # noqa: BLE001
            on_failed(error)
        else:
            on_done(result)

    async def close(self) -> None:
        while self.jobs:
            self.run_one()


class RecordingLog:
    bytes_used = 0

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.marks = 0
        self.done: list[str] = []  # in order, what is done beside recording batches
        self.closed = False
        self.error: Exception | None = None

    def write(self, batch: Sequence[Persist]) -> None:
        if self.error:
            raise self.error
        self.batches.append([write.number for write in batch])
        self.done.append(f"wrote {self.batches[-1]}")

    def mark(self) -> None:
        self.marks += 1

    def reset(self, position: LogPosition, time: int) -> None:
        self.done.append(f"log begins after {position.index}")

    def trim(self, applied_index: Index, bytes_kept: int) -> LogPosition:
        assert not self.closed
        self.done.append(f"trimmed up to {applied_index}")
        return LogPosition(Term(1), applied_index)

    def read(self, first, last, bytes_max):
        raise AssertionError

    def close(self) -> None:
        self.closed = True


class Bench:
    def __init__(self, batch_bytes_max: int = 1 << 20) -> None:
        self.log, self.worker = RecordingLog(), ManualWorker()
        self.persisted: list[int] = []
        self.failed: list[BaseException] = []
        self.sent: list[Send] = []
        self.writer = LogWriter(
            self.log,
            self.worker,
            loop=asyncio.get_running_loop(),
            clock=SystemClock(),
            batch_bytes_max=batch_bytes_max,
            switch_store=lambda: self.log.done.append("store switched"),
            on_persisted=self.persisted.append,
            on_failed=self.failed.append,
            send=self.sent.append,
        )

    def submit(self, number: int, size: int = 10, install: Install | None = None) -> None:
        entry = Entry(Term(1), Index(number), 1, 2, bytes(size))
        self.writer.submit(Persist(WriteNumber(number), Index(0), (entry,), None, Index(0), install))


def reply(after: int) -> Send:
    return Send(NodeId(2), VoteReply(Term(1), NodeId(1), True), WriteNumber(after))


async def test_what_arrives_during_a_write_is_joined_into_the_next_batch() -> None:
    bench = Bench()
    bench.submit(1)
    bench.submit(2)
    bench.submit(3)
    assert len(bench.worker.jobs) == 1, "batch k+1 is not written before batch k's fsync returned"
    bench.worker.run_one()
    assert bench.persisted == [1]
    bench.worker.run_one()
    assert bench.log.batches == [[1], [2, 3]]
    assert bench.persisted == [1, 3]


async def test_an_install_comes_after_what_was_written_before_and_the_store_comes_first() -> None:
    """The commit point is the store's: a start that finds it switched begins the log anew, not the other way round."""
    bench = Bench()
    bench.submit(1)
    bench.submit(2)
    bench.submit(3, install=Install(LogPosition(Term(1), Index(9)), 1, keeps_log=False))
    bench.submit(4)
    bench.submit(5, install=Install(LogPosition(Term(1), Index(20)), 1, keeps_log=True))
    await bench.worker.close()
    assert bench.log.done == [
        "wrote [1]",
        "wrote [2]",
        "store switched",
        "log begins after 9",
        "wrote [3, 4]",
        "store switched",
        "wrote [5]",
    ]
    assert bench.persisted == [1, 5]


async def test_a_batch_is_bounded_by_bytes_but_holds_at_least_one_write() -> None:
    bench = Bench(batch_bytes_max=250)
    for number in range(1, 6):
        bench.submit(number, 100)
    await bench.worker.close()
    assert bench.log.batches[0] == [1]
    assert all(len(batch) <= 2 for batch in bench.log.batches)
    assert [n for batch in bench.log.batches for n in batch] == [1, 2, 3, 4, 5]


async def test_messages_leave_exactly_when_their_write_is_durable() -> None:
    bench = Bench()
    bench.submit(1)
    bench.submit(2)
    early, late = reply(1), reply(2)
    bench.writer.send_when_durable(late)
    bench.writer.send_when_durable(early)
    assert bench.sent == []
    bench.worker.run_one()
    assert bench.sent == [early]
    bench.worker.run_one()
    assert bench.sent == [early, late]
    bench.writer.send_when_durable(reply(2))
    assert len(bench.sent) == 3, "already durable: at once"


async def test_a_failed_write_is_final_and_nothing_held_ever_leaves() -> None:
    bench = Bench()
    bench.submit(1)
    bench.submit(2)
    bench.writer.send_when_durable(reply(1))
    bench.log.error = StorageFailed("fdatasync: Input/output error")
    bench.worker.run_one()
    assert bench.failed == [bench.log.error]
    bench.log.error = None
    bench.submit(3)
    assert bench.worker.jobs == [], "a later fsync may lie: never retried"
    assert bench.sent == []
    assert bench.persisted == []
    await bench.writer.close()
    assert bench.log.closed, "a dead log gives up its files and writes nothing"


async def test_close_finishes_what_was_submitted_then_closes_the_log() -> None:
    bench = Bench()
    for number in range(1, 4):
        bench.submit(number)
    await bench.writer.close()
    assert [n for batch in bench.log.batches for n in batch] == [1, 2, 3]
    assert bench.log.closed


async def test_age_of_the_write_at_the_disk_is_known_while_it_hangs() -> None:
    bench = Bench()
    now_ms = SystemClock().monotonic_ms()
    assert bench.writer.in_flight_ms(now_ms) == 0
    bench.submit(1)
    assert bench.writer.in_flight_ms(now_ms + 5_000) >= 4_000
    bench.worker.run_one()
    assert bench.writer.in_flight_ms(now_ms + 5_000) == 0


async def test_a_closed_writer_sets_no_timer_when_its_last_batch_is_written() -> None:
    """An embedded node's loop goes on after the node: a late mark would be sent to a thread that has ended."""
    bench = Bench()
    bench.submit(1)
    await bench.writer.close()
    assert bench.persisted == [1]
    assert bench.writer._mark_timer is None


async def test_a_closed_log_is_not_trimmed() -> None:
    """The last flush of a clean end may be reported after the log was closed."""
    bench = Bench()
    trimmed: list[LogPosition] = []
    bench.writer.trim(Index(3), 0, trimmed.append)
    await bench.writer.close()
    bench.writer.trim(Index(4), 0, trimmed.append)
    assert not bench.worker.jobs
    assert bench.log.done == ["trimmed up to 3"]
    assert trimmed == [LogPosition(Term(1), Index(3))]
