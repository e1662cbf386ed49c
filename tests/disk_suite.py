"""What every `Disk` must do, run over the real and the simulated one.

Subclass `DiskSuite` and provide the fixtures `disk` and `home` (an existing directory on that disk).
"""

from __future__ import annotations

import pytest

from kvnode.storage.disk import Disk


class DiskSuite:
    def test_creates_writes_and_reads(self, disk: Disk, home: str) -> None:
        file = disk.open(f"{home}/a", create=True)
        assert (file.size(), file.path) == (0, f"{home}/a")
        file.pwrite(0, b"hello")
        file.pwrite(5, bytearray(b" wor"))
        file.pwrite(9, memoryview(b"ld"))
        assert file.pread(0, 100) == b"hello world"
        assert file.pread(6, 5) == b"world"
        assert file.pread(11, 5) == b""
        assert file.pread(500, 5) == b""
        file.close()

    def test_bytes_stay_when_reopened(self, disk: Disk, home: str) -> None:
        first = disk.open(f"{home}/a", create=True)
        first.pwrite(0, b"x" * 5000)
        first.fdatasync()
        first.close()
        again = disk.open(f"{home}/a")
        assert again.pread(0, 6000) == b"x" * 5000
        again.pwrite(2, b"yy")
        again.fsync()
        assert again.pread(0, 6) == b"xxyyxx"
        again.close()

    def test_two_handles_see_one_file(self, disk: Disk, home: str) -> None:
        one = disk.open(f"{home}/a", create=True)
        other = disk.open(f"{home}/a")
        one.pwrite(0, b"abc")
        assert other.pread(0, 3) == b"abc"
        one.close()
        assert other.pread(0, 3) == b"abc"
        other.close()

    def test_a_write_past_the_end_leaves_zeros_between(self, disk: Disk, home: str) -> None:
        file = disk.open(f"{home}/a", create=True)
        file.pwrite(4, b"x")
        assert file.pread(0, 10) == b"\0\0\0\0x"
        file.close()

    def test_an_empty_write_changes_nothing(self, disk: Disk, home: str) -> None:
        file = disk.open(f"{home}/a", create=True)
        file.pwrite(100, b"")
        assert file.size() == 0
        file.close()

    def test_preallocate_grows_with_zeros_and_never_shrinks(self, disk: Disk, home: str) -> None:
        file = disk.open(f"{home}/a", create=True)
        file.pwrite(0, b"abc")
        file.preallocate(8192)
        assert file.size() == 8192
        assert file.pread(0, 8192) == b"abc" + bytes(8189)
        file.preallocate(10)
        assert file.size() == 8192
        file.close()

    def test_truncate_shrinks_and_grows(self, disk: Disk, home: str) -> None:
        file = disk.open(f"{home}/a", create=True)
        file.pwrite(0, b"abcdef")
        file.truncate(2)
        assert file.pread(0, 10) == b"ab"
        file.truncate(4)
        assert file.pread(0, 10) == b"ab\0\0"
        file.close()

    def test_create_refuses_an_existing_file(self, disk: Disk, home: str) -> None:
        disk.open(f"{home}/a", create=True).close()
        with pytest.raises(FileExistsError):
            disk.open(f"{home}/a", create=True)

    def test_absent_files_are_reported(self, disk: Disk, home: str) -> None:
        for call in (
            lambda: disk.open(f"{home}/none"),
            lambda: disk.open(f"{home}/none/a", create=True),
            lambda: disk.unlink(f"{home}/none"),
            lambda: disk.rename(f"{home}/none", f"{home}/other"),
            lambda: disk.listdir(f"{home}/none"),
            lambda: disk.fsync_dir(f"{home}/none"),
        ):
            with pytest.raises(FileNotFoundError):
                call()
        assert not disk.exists(f"{home}/none")

    def test_mkdir_makes_parents_and_repeats(self, disk: Disk, home: str) -> None:
        disk.mkdir(f"{home}/p/q/r")
        disk.mkdir(f"{home}/p/q/r")
        assert disk.exists(f"{home}/p/q/r")
        assert disk.listdir(f"{home}/p") == ["q"]

    def test_mkdir_refuses_a_file_in_its_place(self, disk: Disk, home: str) -> None:
        disk.open(f"{home}/a", create=True).close()
        with pytest.raises(FileExistsError):
            disk.mkdir(f"{home}/a")

    def test_listdir_is_sorted(self, disk: Disk, home: str) -> None:
        for name in ("b", "a", "10", "9"):
            disk.open(f"{home}/{name}", create=True).close()
        disk.mkdir(f"{home}/c")
        assert disk.listdir(home) == ["10", "9", "a", "b", "c"]

    def test_rename_replaces_the_target(self, disk: Disk, home: str) -> None:
        for name in ("old", "new"):
            file = disk.open(f"{home}/{name}", create=True)
            file.pwrite(0, name.encode())
            file.close()
        disk.rename(f"{home}/new", f"{home}/old")
        disk.fsync_dir(home)
        assert disk.listdir(home) == ["old"]
        moved = disk.open(f"{home}/old")
        assert moved.pread(0, 10) == b"new"
        moved.close()

    def test_an_open_handle_survives_rename_and_unlink(self, disk: Disk, home: str) -> None:
        file = disk.open(f"{home}/a", create=True)
        disk.rename(f"{home}/a", f"{home}/b")
        disk.unlink(f"{home}/b")
        file.pwrite(0, b"still")
        assert file.pread(0, 5) == b"still"
        assert disk.listdir(home) == []
        file.close()

    def test_a_lock_is_held_until_released(self, disk: Disk, home: str) -> None:
        held = disk.lock(f"{home}/LOCK")
        assert disk.exists(f"{home}/LOCK")
        with pytest.raises(BlockingIOError):
            disk.lock(f"{home}/LOCK")
        held.release()
        disk.lock(f"{home}/LOCK").release()

    def test_a_closed_file_is_refused(self, disk: Disk, home: str) -> None:
        file = disk.open(f"{home}/a", create=True)
        file.close()
        with pytest.raises((OSError, ValueError)):
            file.pwrite(0, b"late")

    def test_free_space_and_file_system_are_told(self, disk: Disk, home: str) -> None:
        assert disk.free_bytes(home) > 0
        assert isinstance(disk.filesystem(home), str)
