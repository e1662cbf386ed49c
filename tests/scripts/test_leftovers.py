"""What a run left behind is found; what others have on this machine is not taken for it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from scripts.faults import throttle
from scripts.faults.leftovers import leftovers, mounts_below


def test_after_a_proper_end_there_is_nothing(tmp_path: Path):
    assert [found for found in leftovers(tmp_path / "1-7") if not found.startswith("process")] == []


def test_a_child_that_lives_is_found_until_it_has_ended(tmp_path: Path):
    with subprocess.Popen(["sleep", "60"]) as child:
        assert f"process {child.pid}" in leftovers(tmp_path / "1-7")
        child.kill()
        while f"process {child.pid}" in leftovers(tmp_path / "1-7"):
            pass  # it is a zombie in a moment: nobody has waited for it
    assert f"process {child.pid}" not in leftovers(tmp_path / "1-7")


def test_control_groups_of_another_run_are_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(throttle, "ROOT", tmp_path)
    for run in ("20260101-000000-7-hosts", "20260101-000001-7-hosts"):
        (tmp_path / f"{throttle.PREFIX}{run}").mkdir()
    found = [found for found in leftovers(tmp_path / "20260101-000001-7") if found.startswith("control group")]
    assert found == [f"control group {tmp_path}/{throttle.PREFIX}20260101-000001-7-hosts"]


def test_mounts_of_others_are_not_ours(tmp_path: Path):
    home = tmp_path / "a place"
    home.mkdir()
    shown = str(home).replace(" ", "\\040")
    table = f"""\
/dev/loop0 /snap/core/1 squashfs ro 0 0
/dev/sdb1 {shown} ext4 rw 0 0
/dev/loop1 {shown}/1-7-hosts/disk1 ext4 rw 0 0
"""
    assert mounts_below(home, table) == [f"{shown}/1-7-hosts/disk1"]
