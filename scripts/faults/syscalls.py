"""Strace as an injector: kill a node at its N-th fdatasync, let its writes fail, or make them slow.

Two ways. *Under* strace from the first instruction (`under`), for faults of the start; the node stays our child (`-D`).
*Attached* to a running node (`Injector.attach`), for faults under load. `when=N` counts per thread, and the log has a
thread of its own, so N means the N-th call of the log.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from kvnode.bench.process import stat_fields
from scripts.faults.undo import Undo


def under(injections: Sequence[str], trace_file: Path | None = None) -> list[str]:
    """A command line that runs the rest of it traced: `fdatasync:signal=KILL:when=3` and the like."""
    output = str(trace_file) if trace_file is not None else "/dev/null"
    return ["strace", "-D", "-f", "-qq", "-o", output, *_expressions(injections), "--"]


def _expressions(injections: Sequence[str]) -> list[str]:
    """Only the calls that matter are traced: the others cost nothing then."""
    calls = ",".join(sorted({injection.split(":")[0] for injection in injections}))
    return ["-e", f"trace={calls}", *(part for injection in injections for part in ("-e", f"inject={injection}"))]


class Injector:
    """Straces attached to running nodes, at most one a node."""

    def __init__(self, undo: Undo) -> None:
        self._undo = undo
        self._attached: dict[int, subprocess.Popen[bytes]] = {}

    def attach(self, pid: int, injections: Sequence[str]) -> None:
        """Returns before strace holds the process; if that is gone by then, nothing is injected."""
        assert pid not in self._attached, pid
        command = ["strace", "-f", "-qq", "-o", "/dev/null", *_expressions(injections), "-p", str(pid)]
        strace = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._attached[pid] = strace
        self._undo.register(f"strace of {pid}", lambda: _end(strace))

    def detach_all(self) -> None:
        """SIGTERM makes strace let its process go; a process it has killed ends it by itself."""
        for pid in list(self._attached):
            del self._attached[pid]
            self._undo.now(f"strace of {pid}")


def _end(strace: subprocess.Popen[bytes]) -> None:
    strace.send_signal(signal.SIGTERM)
    try:
        strace.wait(5)
    except subprocess.TimeoutExpired:
        strace.kill()
        strace.wait()


def reap_strays() -> None:
    """As the first process of a process namespace we inherit what `strace -D` leaves behind: its ended tracers."""
    if os.getpid() != 1:
        return
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            state, parent, *_ = stat_fields(int(entry.name))
            name = (entry / "comm").read_text(encoding="ascii", errors="replace").strip()
            if state == "Z" and parent == "1" and name == "strace":
                os.waitpid(int(entry.name), os.WNOHANG)
