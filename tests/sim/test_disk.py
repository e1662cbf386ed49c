"""FakeDisk: what it promises like any disk, and what it may lose."""

from __future__ import annotations

import errno
import itertools
import random

import pytest

from kvnode.sim.choices import RandomChoices, every_choice
from kvnode.sim.disk import FakeDisk, FakeFile, FsyncFailure, SimulatedCrash
from tests.disk_suite import DiskSuite


class TestFakeDisk(DiskSuite):
    @pytest.fixture
    def disk(self) -> FakeDisk:
        disk = FakeDisk()
        disk.mkdir("/home")
        return disk

    @pytest.fixture
    def home(self) -> str:
        return "/home"


def made(size: int = 0, **options: object) -> tuple[FakeDisk, FakeFile]:
    """A disk with one durable file /d/f of `size` bytes "o"."""
    disk = FakeDisk(**options)  # type: ignore[arg-type]
    disk.mkdir("/d")
    disk.fsync_dir("/")
    file = disk.open("/d/f", create=True)
    file.pwrite(0, b"o" * size)
    file.fsync()
    disk.fsync_dir("/d")
    return disk, file


def outcomes(disk: FakeDisk, path: str = "/d/f", cuts: int = 0) -> list[bytes]:
    return sorted({disk.crash(choices, cuts=cuts).content(path) for choices in every_choice()})


def test_nothing_synced_is_ever_lost() -> None:
    disk, file = made(1000)
    file.pwrite(0, b"n" * 300)
    file.fdatasync()
    assert outcomes(disk, cuts=3) == [b"n" * 300 + b"o" * 700]


def test_any_subset_of_unsynced_sectors_survives() -> None:
    disk, file = made(1536)
    file.pwrite(0, b"n" * 1536)
    expected = [b"".join(letters) for letters in itertools.product((b"n" * 512, b"o" * 512), repeat=3)]
    assert outcomes(disk) == sorted(expected)


def test_a_sector_may_be_torn_in_the_middle() -> None:
    disk, file = made(512)
    file.pwrite(0, b"n" * 512)
    half = (b"n" * 256, b"o" * 256)
    expected = {b"o" * 512, b"n" * 512, half[0] + half[1], half[1] + half[0]}
    assert outcomes(disk, cuts=1) == sorted(expected)


def test_overlapping_writes_survive_independently() -> None:
    disk, file = made(4)
    file.pwrite(0, b"11")
    file.pwrite(1, b"22")
    assert outcomes(disk) == sorted([b"oooo", b"11oo", b"o22o", b"122o"])


def test_a_longer_size_may_survive_without_its_data() -> None:
    disk, file = made(0)
    file.pwrite(0, b"data")
    assert outcomes(disk) == sorted([b"", b"data", bytes(4), b"\xa5" * 4])


def test_an_unsynced_preallocation_may_be_lost_or_hold_garbage() -> None:
    disk, file = made(2)
    file.preallocate(4)
    assert outcomes(disk) == sorted([b"oo", b"oo\0\0", b"oo\xa5\xa5"])
    file.fdatasync()
    assert outcomes(disk) == [b"oo\0\0"]


def test_an_unsynced_truncation_may_be_undone() -> None:
    disk, file = made(4)
    file.truncate(1)
    assert outcomes(disk) == [b"o", b"oooo"]


def names_after(disk: FakeDisk) -> list[tuple[str, ...]]:
    return sorted({tuple(disk.crash(choices).files()) for choices in every_choice()})


def test_fsync_of_a_file_does_not_keep_its_name() -> None:
    disk, _ = made(4)
    new = disk.open("/d/new", create=True)
    new.pwrite(0, b"x")
    new.fsync()
    assert names_after(disk) == [("/d/f",), ("/d/f", "/d/new")]
    disk.fsync_dir("/d")
    assert names_after(disk) == [("/d/f", "/d/new")]
    assert outcomes(disk, "/d/new") == [b"x"]


def test_the_directory_itself_needs_its_parent_synced() -> None:
    disk = FakeDisk()
    disk.mkdir("/d")
    disk.open("/d/f", create=True).fsync()
    disk.fsync_dir("/d")
    assert names_after(disk) == [(), ("/d/f",)]
    disk.fsync_dir("/")
    assert names_after(disk) == [("/d/f",)]


def test_a_rename_may_leave_either_name_both_or_none() -> None:
    disk, _ = made(4)
    disk.rename("/d/f", "/d/g")
    assert names_after(disk) == [(), ("/d/f",), ("/d/f", "/d/g"), ("/d/g",)]


def test_two_names_of_one_file_show_one_content_after_a_crash() -> None:
    disk, file = made(512)
    file.pwrite(0, b"n" * 512)
    disk.rename("/d/f", "/d/g")
    for choices in every_choice():
        crashed = disk.crash(choices, cuts=0)
        if crashed.files() == ["/d/f", "/d/g"]:
            assert crashed.content("/d/f") == crashed.content("/d/g")


def test_an_unlinked_file_may_come_back() -> None:
    disk, _ = made(4)
    disk.unlink("/d/f")
    assert names_after(disk) == [(), ("/d/f",)]


def test_kill_keeps_what_was_written_and_releases_locks() -> None:
    disk, file = made(0)
    disk.lock("/d/LOCK")
    file.pwrite(0, b"x" * 700)
    again = disk.kill()
    assert again.content("/d/f") == b"x" * 700
    assert again.durable_content("/d/f") == b""
    again.lock("/d/LOCK")
    assert b"" in outcomes(again)  # a power loss after the restart still loses it


def test_crash_and_kill_leave_the_disk_itself_as_it_was() -> None:
    disk, file = made(3)
    file.pwrite(0, b"new")
    other = disk.kill().open("/d/f")
    other.pwrite(0, b"xxx")
    other.fsync()
    assert disk.content("/d/f") == b"new"
    assert outcomes(disk) == [b"new", b"ooo"]


def test_the_same_seed_crashes_the_same_way() -> None:
    def once() -> bytes:
        disk, file = made(4000, rng=random.Random(3))
        file.pwrite(100, b"n" * 8000)
        return disk.crash(RandomChoices(random.Random(5)), cuts=511).content("/d/f")

    assert once() == once()


def test_crash_at_every_change_stops_before_it() -> None:
    def work(disk: FakeDisk) -> None:
        disk.mkdir("/d")
        disk.fsync_dir("/")
        file = disk.open("/d/f", create=True)
        file.pwrite(0, b"1")
        file.pwrite(1, b"2")

    whole = FakeDisk()
    work(whole)
    assert [step.kind for step in whole.trace] == ["mkdir", "fsync_dir", "create", "pwrite", "pwrite"]
    seen = []
    for change in range(1, whole.changes + 1):
        disk = FakeDisk()
        disk.crash_at(change)
        with pytest.raises(SimulatedCrash):
            work(disk)
        with pytest.raises(SimulatedCrash):
            disk.exists("/d")  # the dead do not look either
        after = disk.kill()
        seen.append(after.content("/d/f") if after.files() else None)
    assert seen == [None, None, None, b"", b"1"]


def test_fail_at_counts_changes_or_calls_of_a_kind() -> None:
    disk, file = made(4)
    disk.fail_at(disk.changes + 2, OSError(errno.ENOSPC, "full"))
    disk.fail_at(2, kind="pread")
    file.pread(0, 1)
    with pytest.raises(OSError, match="error") as caught:
        file.pread(0, 1)
    assert caught.value.errno == errno.EIO
    file.pwrite(0, b"1")
    with pytest.raises(OSError, match="full"):
        file.pwrite(1, b"2")
    assert file.pread(0, 4) == b"1ooo"
    file.pwrite(1, b"2")
    assert disk.count("pread") == 3


def test_a_lasting_failure_stays() -> None:
    disk, file = made(4)
    disk.fail_at(1, OSError(errno.EROFS, "read-only"), kind="fdatasync", lasting=True)
    for _ in range(3):
        with pytest.raises(OSError, match="read-only"):
            file.fdatasync()


def test_a_short_write_writes_its_part() -> None:
    disk, file = made(4)
    disk.fail_at(disk.changes + 1, short_write=2)
    with pytest.raises(OSError, match="error"):
        file.pwrite(0, b"nnnn")
    assert file.pread(0, 4) == b"nnoo"


def test_a_full_disk_takes_what_fits() -> None:
    disk, file = made(100, capacity_bytes=150)
    assert disk.free_bytes("/d") == 50
    with pytest.raises(OSError, match="No space") as caught:
        file.pwrite(100, b"n" * 60)
    assert caught.value.errno == errno.ENOSPC
    assert file.size() == 150
    file.pwrite(0, b"n")  # within the size: needs no room
    with pytest.raises(OSError, match="No space"):
        file.preallocate(200)
    disk.capacity_bytes = 1000
    file.preallocate(200)
    disk.unlink("/d/f")
    assert disk.free_bytes("/d") == 800  # the open handle still holds the blocks
    file.close()
    assert disk.free_bytes("/d") == 1000


def failed_sync(personality: FsyncFailure) -> tuple[FakeDisk, FakeFile]:
    disk, file = made(4, fsync_failure=personality)
    disk.fail_at(2, kind="fdatasync")
    file.fdatasync()
    file.pwrite(0, b"n")
    return disk, file


def test_clean_new_shows_new_bytes_that_no_later_fsync_writes() -> None:
    disk, file = failed_sync(FsyncFailure.CLEAN_NEW)
    with pytest.raises(OSError, match="error"):
        file.fdatasync()
    file.fdatasync()  # lies
    assert disk.content("/d/f") == b"nooo"
    assert disk.durable_content("/d/f") == b"oooo"
    assert disk.kill().content("/d/f") == b"nooo"


def test_clean_old_shows_old_bytes_again() -> None:
    disk, file = failed_sync(FsyncFailure.CLEAN_OLD)
    with pytest.raises(OSError, match="error"):
        file.fdatasync()
    assert disk.content("/d/f") == b"oooo"


def test_once_per_fd_tells_each_open_handle_once() -> None:
    disk, file = failed_sync(FsyncFailure.ONCE_PER_FD)
    other = disk.open("/d/f")
    with pytest.raises(OSError, match="error"):
        file.fdatasync()
    with pytest.raises(OSError, match="error"):
        other.fsync()
    other.fsync()
    disk.open("/d/f").fsync()
    assert disk.durable_content("/d/f") == b"oooo"


def test_a_late_failure_is_told_by_the_next_fsync() -> None:
    disk, file = failed_sync(FsyncFailure.LATE)
    file.fdatasync()  # lies
    assert disk.durable_content("/d/f") == b"oooo"
    with pytest.raises(OSError, match="error"):
        file.fdatasync()


def test_damage_reaches_durable_bytes() -> None:
    disk, file = made(1536)
    file.pwrite(512, b"n" * 512)
    file.fsync()
    disk.flip_bit("/d/f", 0, 3)
    assert file.pread(0, 2) == bytes([ord("o") ^ 8]) + b"o"
    disk.zero_sector("/d/f", 2)
    disk.swap_sectors("/d/f", 1, 2)
    assert disk.durable_content("/d/f")[512:] == bytes(512) + b"n" * 512
    assert disk.stale_sector("/d/f", 1)
    assert disk.content("/d/f")[512:1024] == b"o" * 512
    assert not disk.stale_sector("/d/f", 2)
    disk.unreadable_sector("/d/f", 2)
    file.pread(0, 1024)
    with pytest.raises(OSError, match="error"):
        file.pread(1000, 100)
