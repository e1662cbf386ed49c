"""Durable before acknowledged, seen from outside: the kernel's own record of what a one-node cluster does.

Under strace, for every PUT: the log write that holds its key, then an fdatasync of the log that returned 0 after it
and was begun after it, and only then the 200. Sequentially and with eight in flight (group commit).
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from kvnode.bench.process import Process
from tests.system.cluster import RealCluster
from tests.system.conftest import MakeCluster

pytestmark = pytest.mark.system

CALLS = "pwrite64,pwritev,pwritev2,fdatasync,fsync,write,writev,sendto,sendmsg"
IN_FLIGHT = 8
PUTS = 40


def _strace_works(directory: Path) -> str:
    """Why it does not; "" if it does."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    command = ["strace", "-f", "-y", "-o", str(directory / "probe"), "true"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return "" if done.returncode == 0 else f"strace does not work here: {done.stderr.strip()[:200]}"


class TracedCluster(RealCluster):
    """A cluster of one whose process runs under strace."""

    @property
    def trace_file(self) -> Path:
        return self.home / "trace"

    def command(self, node: int) -> list[str]:
        flags = ["-f", "-y", "-s", "100000", "-e", f"trace={CALLS}", "-o", str(self.trace_file)]
        return ["strace", *flags, *super().command(node)]

    def stop(self) -> None:
        """The traced process first: strace ends with it."""
        for process in self.processes.values():
            for child in _children(process):
                os.kill(child, signal.SIGKILL)
        super().stop()


def _children(process: Process) -> list[int]:
    try:
        text = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="ascii")
    except OSError:
        return []
    return [int(pid) for pid in text.split()]


class Trace:
    """Lines of strace's output; a call that was interrupted by another thread's line has its begin and its end."""

    def __init__(self, text: str) -> None:
        self.lines = text.splitlines()

    def first(self, pattern: str, start: int) -> int:
        """Number of the first line from `start` on that matches. Raises: AssertionError."""
        compiled = re.compile(pattern)
        for number in range(start, len(self.lines)):
            if compiled.search(self.lines[number]):
                return number
        raise AssertionError(f"no line matches {pattern!r} from line {start} on")

    def ended(self, begun: int) -> int:
        """Number of the line on which the call begun on line `begun` returned 0."""
        line = self.lines[begun]
        if "<unfinished ...>" not in line:
            assert line.endswith("= 0"), line
            return begun
        thread = line.split(maxsplit=1)[0]
        number = self.first(rf"^{thread} +<\.\.\. f(data)?sync resumed", begun + 1)
        assert self.lines[number].endswith("= 0"), self.lines[number]
        return number


async def test_every_put_is_durable_before_its_answer(tmp_path: Path, make_cluster: MakeCluster) -> None:
    reason = _strace_works(tmp_path)
    if reason:
        pytest.skip(reason)
    del make_cluster  # the traced cluster ends its processes itself
    cluster = TracedCluster(tmp_path / "traced", 1)
    try:
        await cluster.started()
        keys = [f"traced-{number:03d}-key" for number in range(PUTS)]
        for key in keys[: PUTS // 2]:
            await put(cluster, key)
        for first in range(PUTS // 2, PUTS, IN_FLIGHT):
            await asyncio.gather(*(put(cluster, key) for key in keys[first : first + IN_FLIGHT]))
    finally:
        cluster.stop()
    trace = Trace(cluster.trace_file.read_text(encoding="utf-8", errors="replace"))
    for key in keys:
        written = trace.first(rf"pwrite\w*\(\d+<[^>]*/wal/[^>]*>.*{key}", 0)
        synced = trace.ended(trace.first(r"f(data)?sync\(\d+<[^>]*/wal/", written + 1))
        answered = trace.first(rf"(write|writev|sendto|sendmsg)\(.*HTTP/1\.1 200.*{key}", 0)
        assert synced < answered, f"{key}: answered on line {answered}, durable on line {synced} of the trace"


async def put(cluster: RealCluster, key: str) -> None:
    """The request id is echoed, so the answer can be told apart in the trace."""
    answer = await cluster.call(1, "PUT", f"/v1/kv/{key}", b"value", X_Request_Id=key)
    assert answer.status == 200, answer
