"""Every call to the disk fails once, with every error: the log ends, nothing is retried, a start finds it whole.

Scenarios S69 and S70 at the level of the log and of the data directory, faults F13 to F16 and F24. What the node
makes of it is in ``test_node_disk_errors.py``.
"""

from __future__ import annotations

import errno
import os
import random
import re
from pathlib import Path

import pytest

from kvnode.errors import LogCorrupted, StorageFailed
from kvnode.ids import Index
from kvnode.sim.choices import RandomChoices
from kvnode.sim.disk import FakeDisk, FsyncFailure
from kvnode.sim.fault_plan import CHANGING
from kvnode.storage.datadir import DataDir, PeerBoot
from kvnode.storage.realdisk import RealDisk
from kvnode.storage.wal import Wal
from tests.storage.crash_states import crash_states
from tests.storage.second_opinion import SecondOpinion
from tests.storage.wal_world import (
    ROOM,
    Expected,
    Step,
    entry,
    go_on,
    new_disk,
    open_wal,
    persist,
    recover,
    segments,
    view,
)

CALLS = (*CHANGING, "open", "exists", "listdir", "size", "pread", "close", "filesystem")
ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EMFILE, errno.EDQUOT)

# One step for each kind of change that an fsync covers.
LIFE: dict[str, Step] = {
    "vote": [persist(1, state=(2, 3))],
    "append": [persist(2, entry(5, 2, b"x" * 300))],
    "mark": "mark",
    "truncate": [persist(3, entry(5, 3), cut=5, state=(3, 1), commit=4)],
    "roll": [persist(4, entry(6, 3, b"y" * 1900))],
    "roll again": [persist(5, entry(7, 3, b"z" * 1900), commit=6)],
}


def torn_start() -> tuple[FakeDisk, Expected]:
    """A log over two segments whose last write is torn, with a leftover beside it: a start has everything to do."""
    steps: list[Step] = [
        [persist(1, entry(1, text=b"a" * 1500), state=(1, 2))],
        [persist(2, entry(2, text=b"b" * 1500), commit=1)],
        [persist(3, entry(3), commit=2)],
        [persist(4, entry(4), commit=3)],
    ]
    disk, expected = new_disk(), Expected()
    wal, _ = recover(disk, expected, **ROOM)
    go_on(wal, steps, expected)
    offset = wal._writer.offset
    wal.write([persist(5, entry(5))])
    disk = disk.kill()
    disk.flip_bit(segments(disk)[-1], offset + 20)
    return disk, expected


def live(disk: FakeDisk, expected: Expected) -> None:
    wal, _ = recover(disk, expected, salts=5, **ROOM)
    go_on(wal, list(LIFE.values()), expected)
    assert wal.read(Index(1), Index(7), 1 << 20) == expected.entries
    wal.close()


def test_s70_enospc_everywhere(tmp_path: Path) -> None:
    """F14, F15, F16, F24: each call of a start, of a life and of reading; once, or from then on for ever."""
    image, before = torn_start()
    total = image.kill()
    live(total, before.copy())
    cases: dict[str, int] = {}
    opinion = SecondOpinion(tmp_path)
    for kind in CALLS:
        for number in range(1, total.count(kind) + 1):
            for lasting in (False, True):
                number_of_all = sum(cases.values())
                error = ERRORS[number_of_all % len(ERRORS)]
                cases[kind] = cases.get(kind, 0) + 1
                disk, expected = image.kill(), before.copy()
                failure = OSError(error, os.strerror(error))
                disk.fail_at(number, failure, kind=kind, short_write=100 * (number % 3), lasting=lasting)
                where = f"{kind} {number} {errno.errorcode[error]}"
                try:
                    live(disk, expected)
                    failed = False
                except StorageFailed as refusal:
                    failed = bool(re.search(r"the log( in /wal)? failed: ", refusal.message))
                except LogCorrupted as refusal:
                    failed = kind == "pread" and error == errno.EIO and refusal.repairable
                # A read that failed once is tried again: whatever is read is verified.
                assert failed or (kind == "pread" and error == errno.EIO and not lasting), where
                healed = disk.kill()  # space is back, the process starts again
                opinion.judge(healed, where, **ROOM)
                lost = disk.crash(RandomChoices(random.Random(number_of_all)))
                opinion.judge(lost, where, **ROOM)
                recover(lost, expected.copy(), salts=7, **ROOM)
                live_on(healed, expected)
    print(f"S70: {sum(cases.values())} failures: {cases}; {opinion.counts}")
    assert set(cases) >= {
        "create",
        "open",
        "pread",
        "pwrite",
        "preallocate",
        "fdatasync",
        "rename",
        "fsync_dir",
        "close",
    }
    assert not opinion.refused


def live_on(disk: FakeDisk, expected: Expected) -> None:
    """Start, append, start: the log goes on where it was."""
    wal, _ = recover(disk, expected, salts=6, **ROOM)
    term = expected.term + 1
    go_on(wal, [[persist(1, entry(len(expected.entries) + 1, term), state=(term, 1))]], expected)
    assert view(open_wal(disk.kill(), salts=8, **ROOM)[1]) == expected.view


def test_s70_while_a_prefix_is_dropped() -> None:
    """Whatever call fails, what lies above the mark stays."""
    image, before = torn_start()
    recover(image, before, **ROOM)
    image = image.kill()

    def drop(disk: FakeDisk) -> None:
        wal, _ = open_wal(disk, applied=4, salts=5, **ROOM)
        wal.drop_prefix(Index(3))
        wal.close()

    total = image.kill()
    drop(total)
    assert total.count("unlink")
    for kind in CALLS:
        for number in range(1, total.count(kind) + 1):
            disk = image.kill()
            disk.fail_at(number, OSError(errno.ENOSPC, "full"), kind=kind)
            with pytest.raises(StorageFailed):
                drop(disk)
            for after in (disk.kill(), disk.crash(RandomChoices(random.Random(number)))):
                _, found = open_wal(after, applied=4, salts=6, **ROOM)
                assert (found.last_index, found.hard_state.term) == (4, 1), (kind, number)
                assert found.base.index <= 3


def settled_start() -> tuple[FakeDisk, Expected]:
    image, before = torn_start()
    recover(image, before, salts=5, **ROOM)[0].close()
    return image.kill(), before


def syncs_of(image: FakeDisk, at: str) -> range:
    """The numbers of the fdatasyncs that step `at` of LIFE makes after a start on `image`."""
    disk = image.kill()
    wal, _ = open_wal(disk, salts=5, **ROOM)
    go_on(wal, steps_before(at), Expected())
    first = disk.count("fdatasync") + 1
    go_on(wal, [LIFE[at]], Expected())
    return range(first, disk.count("fdatasync") + 1)


def steps_before(at: str) -> list[Step]:
    return list(LIFE.values())[: list(LIFE).index(at)]


def assert_dead(wal: Wal, disk: FakeDisk) -> None:
    changes = disk.changes
    with pytest.raises(StorageFailed, match="cannot be used any more"):
        wal.write([persist(9, state=(9, 0))])
    with pytest.raises(StorageFailed, match="cannot be used any more"):
        wal.mark()
    with pytest.raises(StorageFailed, match="cannot be read"):
        wal.read(Index(1), Index(2), 100)
    assert disk.changes == changes, "a dead log touched the disk"


@pytest.mark.parametrize("at", list(LIFE))
@pytest.mark.parametrize("personality", [one for one in FsyncFailure if one is not FsyncFailure.LATE])
def test_s69_fsync_error_personalities(personality: FsyncFailure, at: str, tmp_path: Path) -> None:
    """Each fdatasync of a vote, an append, a truncation and a roll fails in each way file systems have.

    The write is not acknowledged, the log is dead without another call to the disk, and a start finds what was
    acknowledged, or one step further: after the process died, and after the power went as well, in every way.
    """
    image, before = settled_start()
    opinion = SecondOpinion(tmp_path)
    numbers = syncs_of(image, at)
    assert numbers
    for number in numbers:
        disk, expected = image.kill(), before.copy()
        disk.fsync_failure = personality
        disk.fail_at(number, OSError(errno.EIO, "Input/output error"), kind="fdatasync")
        wal, _ = recover(disk, expected, salts=5, **ROOM)
        go_on(wal, steps_before(at), expected)
        with pytest.raises(StorageFailed, match="Input/output error"):
            go_on(wal, [LIFE[at]], expected)
        assert_dead(wal, disk)
        for after, how in crash_states(disk, seed=number, runs_max=80, sampled=8):
            opinion.judge(after, how, **ROOM)
            recover(after, expected.copy(), salts=7, **ROOM)
        again = disk.kill()
        recover(again, expected, salts=8, **ROOM)
        for after, _how in crash_states(again, seed=number, runs_max=80, sampled=8):
            recover(after, expected.copy(), salts=9, **ROOM)
    print(f"S69 {at}, {personality.value}: {opinion.counts}")


@pytest.mark.parametrize("at", list(LIFE))
def test_s69_an_fsync_error_that_comes_late_ends_the_log_when_it_comes(at: str) -> None:
    """The kernel calls the write durable and tells of its loss at the next fsync of that file.

    Until then nobody can know. From then on the log is dead, and a start writes once more what it read, so that a
    power loss afterwards takes nothing. Whether any error comes is the file system's: a closed file keeps its secret.
    """
    image, before = settled_start()
    surfaced = 0
    for number in syncs_of(image, at):
        disk, expected = image.kill(), before.copy()
        disk.fsync_failure = FsyncFailure.LATE
        disk.fail_at(number, OSError(errno.EIO, "Input/output error"), kind="fdatasync")
        wal, _ = recover(disk, expected, salts=5, **ROOM)
        go_on(wal, steps_before(at), expected)
        try:
            go_on(wal, [LIFE[at], [persist(8, state=(8, 0))], "mark"], expected)
        except StorageFailed:
            surfaced += 1
            assert_dead(wal, disk)
            again = disk.kill()
            recover(again, expected, salts=8, **ROOM)
            for after, _how in crash_states(again, seed=number, runs_max=80, sampled=8):
                recover(after, expected.copy(), salts=9, **ROOM)
    assert surfaced


# The data directory

HOME = "/data/n1"


def use_directory(disk: FakeDisk, seed: int = 1) -> DataDir:
    rng = random.Random(seed)
    data = DataDir.open(
        disk,
        HOME,
        member=1,
        cluster_name="local",
        random_u64=lambda: rng.getrandbits(64),
        allow_unsafe_filesystem=False,
    )
    data.save_peer_boot(2, PeerBoot(data.boot.counter, 7))
    data.close()
    return data


@pytest.mark.parametrize("start", ["first", "later"])
def test_s70_every_call_of_a_data_directory(start: str) -> None:
    """F16: a start on a full or read-only disk says which directory it is about, and changes nothing of who this is."""
    image = FakeDisk()
    if start == "later":
        use_directory(image)
        image = image.kill()
    total = image.kill()
    known = use_directory(total)
    cases = 0
    for kind in CALLS:
        for number in range(1, total.count(kind) + 1):
            error = ERRORS[cases % len(ERRORS)]
            cases += 1
            disk = image.kill()
            disk.fail_at(number, OSError(error, os.strerror(error)), kind=kind, lasting=bool(cases % 2))
            with pytest.raises(StorageFailed, match=HOME):
                use_directory(disk)
            again = use_directory(disk.kill(), seed=2)
            assert again.boot.counter >= known.boot.counter
            if start == "later":
                assert again.identity == known.identity
    assert cases > 30


# The machine's own calls


class Stutter:
    """``os`` calls that move a few bytes at a time, as a signal or a nearly full disk makes them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
        self.calls = 0
        pwrite, pread = os.pwrite, os.pread

        def some_written(descriptor: int, data: bytes | memoryview, offset: int) -> int:
            self.calls += 1
            with memoryview(data) as view_:
                return pwrite(descriptor, view_[:most], offset)

        def some_read(descriptor: int, length: int, offset: int) -> bytes:
            self.calls += 1
            return pread(descriptor, min(length, most), offset)

        monkeypatch.setattr(os, "pwrite", some_written)
        monkeypatch.setattr(os, "pread", some_read)


def test_f14_short_writes_and_reads_of_the_machine_are_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stutter = Stutter(monkeypatch, 777)
    expected, home = Expected(), str(tmp_path)
    wal, _ = open_wal(RealDisk(), create=True, home=home, **ROOM)
    steps: list[Step] = [
        [persist(1, entry(1, text=b"a" * 2000), state=(1, 2))],
        [persist(2, entry(2, text=b"b" * 2000))],
    ]
    go_on(wal, steps, expected)
    assert wal.read(Index(1), Index(2), 1 << 20) == expected.entries
    wal.close()
    calls = stutter.calls
    assert calls > 20
    assert view(open_wal(RealDisk(), home=home, **ROOM)[1]) == expected.view
    monkeypatch.undo()
    assert view(open_wal(RealDisk(), home=home, **ROOM)[1]) == expected.view
    assert stutter.calls > calls


def test_f14_a_full_disk_in_the_middle_of_a_write_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first piece fits, the next one does not: the log is dead, and a start finds what was there before."""
    expected, home, room = Expected(), str(tmp_path), [0]
    wal, _ = open_wal(RealDisk(), create=True, home=home, **ROOM)
    go_on(wal, [[persist(1, entry(1), state=(1, 2))]], expected)
    pwrite = os.pwrite

    def until_full(descriptor: int, data: bytes | memoryview, offset: int) -> int:
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        room.pop()
        with memoryview(data) as view_:
            return pwrite(descriptor, view_[:100], offset)

    monkeypatch.setattr(os, "pwrite", until_full)
    batch = [persist(2, entry(2, text=b"b" * 500))]
    expected.begin(batch)
    with pytest.raises(StorageFailed, match="No space left on device"):
        wal.write(batch)
    monkeypatch.undo()
    with pytest.raises(StorageFailed, match="cannot be used any more"):
        wal.write(batch)
    found = open_wal(RealDisk(), home=home, **ROOM)[1]
    assert found.report.torn is not None
    assert view(found) == (expected.allowed[0])
