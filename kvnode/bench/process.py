"""Process: one server process that this program started, watched, measured and ended. Linux's /proc where measured."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

STOP_S = 10.0


@dataclass(frozen=True)
class Memory:
    """Bytes. `private`: heap and stacks, nobody else's; `mapped`: pages of files, its program's and its store's."""

    private: int
    mapped: int
    resident: int


class Process:
    """Started at once; its output goes to a file. Only ever signals the process it started itself."""

    def __init__(
        self,
        command: list[str],
        output: Path,
        *,
        environment: dict[str, str] | None = None,
        own_session: bool = False,  # Ctrl-C in our terminal then does not reach it
    ) -> None:
        self.output = output
        with output.open("ab") as sink:
            self._process = subprocess.Popen(  # noqa: S603 - the command is this program's own
                command,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=own_session,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative: ended by that signal."""
        return self._process.poll()

    def signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.signal(signal.SIGKILL)
        self._process.wait()

    def wait(self, limit_s: float = STOP_S) -> int:
        """Its exit code. Raises: subprocess.TimeoutExpired."""
        return self._process.wait(limit_s)

    def stop(self) -> int:
        """SIGTERM; SIGKILL if that does not help in time."""
        self.signal(signal.SIGTERM)
        try:
            return self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._process.wait()

    def last_output(self, lines: int = 20) -> str:
        text = self.output.read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def cpu_seconds(self) -> float:
        """Processor time used so far, user and system."""
        fields = stat_fields(self.pid)
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> Memory:
        """What it holds of memory now."""
        kibibytes = {
            name: int(rest.split()[0])
            for name, _, rest in (
                line.partition(":")
                for line in Path(f"/proc/{self.pid}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]
            )
        }
        private, resident = kibibytes["Anonymous"] * 1024, kibibytes["Rss"] * 1024
        return Memory(private=private, mapped=resident - private, resident=resident)

    def resident_bytes(self) -> int:
        for line in Path(f"/proc/{self.pid}/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        return 0


def stat_fields(pid: int) -> list[str]:
    """/proc/PID/stat from its third field on: state, parent, … Raises: OSError if there is no such process."""
    return Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()


def free_ports(count: int) -> list[int]:
    """Loopback ports nobody listens on, this process's own until it ends: no other caller is given them.

    Below the ranges that kernels hand out for outgoing connections (Linux from 32768, gVisor from 16000): such a
    connection would hold the port when a server wants it back after a restart. Raises: OSError if none is found.
    """
    found: list[int] = []
    rng = random.Random()
    for _ in range(1000):
        port = rng.randrange(10_000, 16_000)
        if port in _given or _listens(port) or not _reserve(port):
            continue
        _given.add(port)
        found.append(port)
        if len(found) == count:
            return found
    raise OSError("no free ports")


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


_given: set[int] = set()
_reserved: list[socket.socket] = []  # open as long as the process lives


def _reserve(port: int) -> bool:
    """A name that only one process of a network namespace can hold, and that leaves no file.

    Only Linux has them; elsewhere two processes may still be given the same port.
    """
    if sys.platform != "linux":
        return True
    mark = socket.socket(socket.AF_UNIX)
    try:
        mark.bind(f"\0kvnode-port-{port}")
    except OSError:
        mark.close()
        return False
    _reserved.append(mark)
    return True
