"""Throttle: fewer writes a second to a node's disk, by a control group (version 1, blkio)."""

from __future__ import annotations

import os
from pathlib import Path

from scripts.faults.undo import Undo

ROOT = Path("/sys/fs/cgroup/blkio")
PREFIX = "kvnode-chaos-"


def reason_against() -> str:
    if not (ROOT / "blkio.throttle.write_iops_device").exists():
        return "no version 1 blkio control group is mounted"
    return "" if os.access(ROOT, os.W_OK) else "the blkio control group is not ours to write"


class Throttle:
    """One control group of this run. Processes are moved into it for the time of a fault, and back."""

    def __init__(self, name: str, undo: Undo) -> None:
        self._undo = undo
        self._group = ROOT / f"{PREFIX}{name}"
        self._devices: set[str] = set()

    def slow(self, pid: int, device: str, writes_per_second: int) -> None:
        if not self._group.exists():
            self._undo.register(f"control group {self._group}", self.release)
            self._group.mkdir()
        (self._group / "blkio.throttle.write_iops_device").write_text(f"{device} {writes_per_second}", encoding="ascii")
        self._devices.add(device)
        (self._group / "cgroup.procs").write_text(str(pid), encoding="ascii")

    def heal(self) -> None:
        if not self._group.exists():
            return
        for device in sorted(self._devices):
            (self._group / "blkio.throttle.write_iops_device").write_text(f"{device} 0", encoding="ascii")
        self._devices.clear()
        for pid in (self._group / "cgroup.procs").read_text(encoding="ascii").split():
            (ROOT / "cgroup.procs").write_text(pid, encoding="ascii")

    def release(self) -> None:
        if self._group.exists():
            self.heal()
            self._group.rmdir()
