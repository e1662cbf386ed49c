"""RealDisk under the suite that the fake one passes too."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvnode.storage.realdisk import RealDisk
from tests.disk_suite import DiskSuite


class TestRealDisk(DiskSuite):
    @pytest.fixture
    def disk(self) -> RealDisk:
        return RealDisk()

    @pytest.fixture
    def home(self, tmp_path: Path) -> str:
        return str(tmp_path)

    def test_files_and_directories_are_private(self, disk: RealDisk, home: str) -> None:
        disk.mkdir(f"{home}/d")
        disk.open(f"{home}/d/f", create=True).close()
        assert (Path(home) / "d").stat().st_mode & 0o777 == 0o700
        assert (Path(home) / "d" / "f").stat().st_mode & 0o777 == 0o600
