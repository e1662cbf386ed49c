"""Power loss and kill -9 after every file operation: the log is what was acknowledged, or a write further.

Scenarios S64, S67, S68, S69, S74 and S75 of the reliability list.
"""

from __future__ import annotations

import errno
import random

import pytest

from kvnode.errors import StorageFailed
from kvnode.ids import Index
from kvnode.sim.choices import RandomChoices, Replay
from kvnode.sim.disk import FakeDisk, FsyncFailure, SimulatedCrash
from tests.storage.wal_world import (
    HOME,
    Expected,
    Step,
    crash_everywhere,
    entry,
    go_on,
    new_disk,
    open_wal,
    outcomes,
    persist,
    recover,
    run,
    view,
)

SMALL: list[Step] = [
    [persist(1, state=(1, 2))],
    [persist(2, entry(1), entry(2)), persist(3, entry(3), commit=1)],
    "mark",
    [persist(4, entry(4, text=b"x" * 700), commit=3)],
    [persist(5, entry(4, 2), entry(5, 2), cut=4, state=(2, 3), commit=3)],
    [persist(6, entry(6, 2)), persist(7, entry(6, 3), cut=6, state=(3, 0), commit=5)],
    "close",
]

ROLLING: list[Step] = [
    [persist(1, entry(1, text=b"a" * 1500), state=(1, 2))],
    [persist(2, entry(2, text=b"b" * 1500), commit=1)],
    [persist(3, entry(3, text=b"c" * 1500), commit=2)],
    [persist(4, entry(4, text=b"d" * 1500), commit=3)],
    "mark",
    [persist(5, entry(5, text=b"e" * 1500), commit=4)],
    [persist(6, entry(6, text=b"f" * 9000), commit=5)],  # larger than a segment
    [persist(7, entry(7))],
]

CONFLICT: list[Step] = [
    [persist(1, entry(1, text=b"a" * 1500), state=(1, 2))],
    [persist(2, entry(2, text=b"b" * 1500))],
    [persist(3, entry(3, text=b"c" * 1500))],
    [persist(4, entry(4, text=b"d" * 1500))],
    [persist(5, entry(5, text=b"e" * 1500))],
    [persist(6, entry(2, 2), entry(3, 2), cut=2, state=(2, 0))],  # the cut goes through three segments
    [persist(7, entry(4, 2, text=b"f" * 1500))],
    [persist(8, entry(5, 3), cut=5, state=(3, 1)), persist(9, entry(4, 3), cut=4)],
]

SCRIPTS = {"small": SMALL, "rolling": ROLLING}


def continue_and_check(disk: FakeDisk, expected: Expected, where: str) -> None:
    """Recover, append, lose power or be killed, start again: the same log, nothing lost, nothing resurfaces (S67)."""
    try:
        wal, _ = recover(disk, expected, salts=8)
        term = expected.term + 1
        go_on(wal, [[persist(1, entry(len(expected.entries) + 1, term, b"new"), state=(term, 1))]], expected)
        recover(disk.crash(Replay([])), expected.copy(), salts=9)  # everything unsynced is lost
        again = disk.kill()
        recover(again, expected, salts=9)[0].close()
        recover(again.kill(), expected, salts=10)
    except Exception as error:
        raise AssertionError(where) from error


@pytest.mark.parametrize("script", SCRIPTS)
def test_crash_after_every_operation_keeps_the_acknowledged_log(script: str) -> None:
    for disk, expected, where in crash_everywhere(lambda disk, expected: run(disk, SCRIPTS[script], expected)):
        continue_and_check(disk, expected, where)


def test_crash_inside_a_truncation_across_segments_shows_the_old_or_the_new_suffix() -> None:
    for disk, expected, where in crash_everywhere(lambda disk, expected: run(disk, CONFLICT, expected), sampled=6):
        continue_and_check(disk, expected, where)


def test_truncation_really_crossed_three_segments() -> None:
    disk = new_disk()
    run(disk, CONFLICT[:5], Expected())
    assert len([path for path in disk.files() if path.endswith(".wal")]) >= 3


def test_crash_during_recovery_changes_nothing() -> None:
    """Torn logs are recovered with a crash before each operation of the recovery itself (S67)."""
    rng = random.Random(5)
    torn: list[tuple[FakeDisk, Expected]] = []
    for disk, expected, _ in crash_everywhere(lambda disk, expected: run(disk, SMALL, expected), exhaustive_max=0):
        if expected.made and rng.random() < 0.06:
            torn.append((disk, expected))
    assert len(torn) > 10
    for image, expected in torn:
        change = 0
        while True:
            change += 1
            disk, now = image.kill(), expected.copy()
            disk.crash_at(disk.changes + change)
            try:
                recover(disk, now)
                break
            except SimulatedCrash:
                for after, taken in outcomes(disk, exhaustive_max=0, sampled=3, seed=change):
                    continue_and_check(after, expected.copy(), f"recovery crashed before {change}, choices {taken}")


def test_crash_while_dropping_a_prefix_keeps_what_is_above() -> None:
    """S64 for the low-water mark: files may come back, entries above the mark may not go."""
    steps: list[Step] = [*ROLLING[:5], "drop 2", "drop 4"]

    def check(disk: FakeDisk, expected: Expected, where: str) -> None:
        try:
            wal, recovered = open_wal(disk, create=not expected.made, applied=min(4, len(expected.allowed[0][0])))
            last = recovered.last_index
            assert last in {len(entries) for entries, _, _ in expected.allowed}, last
            assert recovered.base.index <= 4
            wal.write([persist(1, entry(last + 1, 5), state=(5, 1))])
            _, again = open_wal(disk.kill(), applied=min(4, last))
            assert again.last_index == last + 1
        except Exception as error:
            raise AssertionError(where) from error

    for disk, expected, where in crash_everywhere(lambda disk, expected: run(disk, steps, expected)):
        check(disk, expected, where)


def test_torn_write_then_append_then_crash_never_brings_the_remnants_back() -> None:
    """S67: a hole in a batch, its later records intact; append over and crash again, twice."""
    rng = random.Random(11)
    for round_ in range(120):
        disk, expected = new_disk(round_), Expected()
        wal, _ = recover(disk, expected)
        for life in range(3):
            number = len(expected.entries)
            term = life + 1
            go_on(wal, [[persist(1, entry(number + 1, term), state=(term, 0))]], expected)
            batch = [persist(2, *(entry(number + 2 + i, term, bytes([65 + life]) * 400) for i in range(6)))]
            # power goes between the write and its fdatasync
            disk.crash_at(disk.changes + 2)
            expected.begin(batch)
            with pytest.raises(SimulatedCrash):
                wal.write(batch)
            disk = disk.crash(RandomChoices(rng))
            wal, _ = recover(disk, expected, salts=100 * round_ + life)


@pytest.mark.parametrize("personality", list(FsyncFailure))
def test_failed_fsync_is_final_and_the_next_start_trusts_only_what_is_durable(personality: FsyncFailure) -> None:
    """S69: the write is not acknowledged, nothing is retried; a restart without power loss, then a power loss."""
    steps: list[Step] = [*SMALL[:4], [persist(5, entry(5, text=b"y" * 600), commit=4)], *ROLLING[5:6]]
    steps[5] = [persist(6, entry(6, text=b"z" * 4000))]  # makes the log roll
    total = new_disk()
    run(total, steps, Expected())
    created = new_disk()
    open_wal(created, create=True)
    for number in range(created.count("fdatasync") + 1, total.count("fdatasync") + 1):
        disk, expected = new_disk(), Expected()
        disk.fsync_failure = personality
        disk.fail_at(number, OSError(errno.EIO, "broken"), kind="fdatasync")
        wal, _ = open_wal(disk, create=True)
        expected.made = True
        try:
            go_on(wal, steps, expected)
            assert personality is FsyncFailure.LATE, "the error was swallowed"
            continue  # the error never surfaced: no later fsync on that handle
        except StorageFailed:
            pass
        before = disk.changes
        with pytest.raises(StorageFailed):
            wal.write([persist(9, entry(len(expected.entries) + 1))])
        with pytest.raises(StorageFailed):
            wal.mark()
        with pytest.raises(StorageFailed):
            wal.read(Index(1), Index(2), 100)
        assert disk.changes == before, "a dead log touched the disk"
        restarted = disk.kill()
        wal, _ = recover(restarted, expected, salts=20)
        for seed in range(4):
            lost = restarted.crash(RandomChoices(random.Random(seed)))
            recover(lost, expected.copy(), salts=21)
        go_on(wal, [[persist(1, entry(len(expected.entries) + 1, 3), state=(3, 1))]], expected)
        recover(restarted.crash(RandomChoices(random.Random(9))), expected, salts=22)


@pytest.mark.parametrize("kind", ["pwrite", "preallocate", "create", "rename", "fsync_dir", "fdatasync"])
@pytest.mark.parametrize("short", [0, 100])
def test_any_failing_call_ends_the_log_and_loses_nothing(kind: str, short: int) -> None:
    """F14, F15, F16: an error of any call is final; the disk then holds what was acknowledged."""
    total = new_disk()
    run(total, ROLLING, Expected())
    start = new_disk().count(kind)
    for number in range(start + 1, total.count(kind) + 1):
        disk, expected = new_disk(), Expected()
        disk.fail_at(number, OSError(errno.ENOSPC, "full"), kind=kind, short_write=short)
        with pytest.raises(StorageFailed):
            run(disk, ROLLING, expected)
        recover(disk.kill(), expected)


def test_acknowledged_means_durable_on_a_single_node() -> None:
    """S74: whatever the power loss, an acknowledged entry is there."""
    disk, expected = new_disk(), Expected()
    wal, _ = recover(disk, expected)
    rng = random.Random(3)
    for number in range(1, 40):
        go_on(wal, [[persist(number, entry(number), state=(1, 1) if number == 1 else None)]], expected)
        for _ in range(3):
            _, found = open_wal(disk.crash(RandomChoices(rng)))
            assert view(found) == expected.view


def test_reused_bytes_of_an_older_segment_are_never_records() -> None:
    """S75: old records, complete with chain and numbers, under a new salt."""
    disk, expected = new_disk(), Expected()
    run(disk, [[persist(1, entry(1), state=(1, 1))], [persist(2, entry(2), entry(3))]], expected)
    name = next(path for path in disk.files() if path.endswith(".wal"))
    old = disk.content(name)
    other = new_disk()
    wal, _ = open_wal(other, create=True, salts=99)
    assert [path for path in other.files() if path.endswith(".wal")] == [name]
    other.damage(name, 4096, old[4096:])
    _, found = open_wal(other.kill())
    assert found.report.torn is not None
    assert view(found) == ((), 0, 0)
    assert wal.read(Index(1), Index(3), 1 << 20) == []


def test_leftovers_of_a_crash_are_swept_and_strangers_left_alone() -> None:
    disk, expected = new_disk(), Expected()
    run(disk, SMALL, expected)
    assert disk.exists(f"{HOME}/next.tmp")
    disk.open(f"{HOME}/notes.txt", create=True).close()
    disk = disk.kill()
    _, found = recover(disk, expected)
    assert found.report.unknown == (f"{HOME}/notes.txt",)
    assert disk.exists(f"{HOME}/notes.txt")
    assert not disk.exists(f"{HOME}/next.tmp")


def test_a_full_disk_is_an_error_and_the_log_goes_on_when_there_is_room_again() -> None:
    """F15: whatever call meets the end of the space, nothing acknowledged is lost."""
    total = new_disk()
    run(total, ROLLING, Expected())
    for capacity in range(0, 200_000, 1_499):
        disk, expected = new_disk(), Expected()
        disk.capacity_bytes = capacity
        try:
            run(disk, ROLLING, expected)
            break
        except StorageFailed:
            pass
        disk = disk.kill()
        disk.capacity_bytes = 1 << 30
        continue_and_check(disk, expected, f"capacity {capacity}")
    assert 8192 < capacity < 199_000
