"""ReadOnlyDisk reads what is there and changes nothing, whatever it is asked."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from kvnode.storage.readonly_disk import ReadOnlyDisk


def test_it_reads(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"hello")
    disk = ReadOnlyDisk()
    file = disk.open(f"{tmp_path}/a")
    assert (file.pread(1, 3), file.size()) == (b"ell", 5)
    with pytest.raises(OSError, match="Bad file descriptor"):
        file.pwrite(0, b"x")
    file.close()
    assert disk.listdir(str(tmp_path)) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"hello"


@pytest.mark.parametrize(
    "change",
    [
        lambda disk, home: disk.open(f"{home}/new", create=True),
        lambda disk, home: disk.mkdir(f"{home}/new"),
        lambda disk, home: disk.rename(f"{home}/a", f"{home}/new"),
        lambda disk, home: disk.unlink(f"{home}/a"),
        lambda disk, home: disk.fsync_dir(home),
        lambda disk, home: disk.lock(f"{home}/new"),
    ],
)
def test_it_refuses_every_change(tmp_path: Path, change: Callable[[ReadOnlyDisk, str], object]) -> None:
    (tmp_path / "a").write_bytes(b"hello")
    with pytest.raises(OSError, match="reading only") as refused:
        change(ReadOnlyDisk(), str(tmp_path))
    assert refused.value.errno == errno.EROFS
    assert [file.name for file in tmp_path.iterdir()] == ["a"]
