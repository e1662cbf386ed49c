"""Runs the processes of a development cluster: merges their output, watches them die, stops them together.

A node that dies stays dead, so that one can watch the others go on; the supervisor says so and prints the command
that starts it again in another terminal. Each node runs in a process group of its own: Ctrl-C reaches the supervisor
only, which asks every node to stop (SIGTERM), and ends those that have not after `STOP_MS` (SIGKILL).
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import Callable, Mapping, Sequence

import msgspec

from kvnode.cli.main import OK, REFUSED
from kvnode.client.http import fetch
from kvnode.errors import KvnodeError

STOP_MS = 10_000
_READY_POLL_MS = 100
_LINE_BYTES_MAX = 1 << 20
_COLOURS = ("36", "33", "35", "32", "34", "31")  # cyan, yellow, magenta, green, blue, red


class Member(msgspec.Struct, frozen=True):
    """One node to run."""

    name: str  # n1, n2 …: the prefix of its lines
    command: tuple[str, ...]
    shown_command: str  # what a person types to start it again
    endpoint: str  # its client listener


class Supervisor:
    """Starts all members, reports on them, and stops them. `run` is called once."""

    def __init__(
        self,
        members: Sequence[Member],
        environment: Mapping[str, str],
        *,
        say: Callable[[str], None],
        colour: bool,
        ready_ms: int = 30_000,
        on_ready: Callable[[], None],
    ) -> None:
        self._members = members
        self._environment = environment
        self._print = say
        self._colour = colour
        self._ready_ms = ready_ms
        self._on_ready = on_ready
        self._processes: dict[str, Process] = {}
        self._stopping = asyncio.Event()
        self._signals = 0

    async def run(self) -> int:
        """Until a signal, or until no node is left. Returns the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_signal)
        try:
            async with asyncio.TaskGroup() as tasks:
                for position, member in enumerate(self._members):
                    self._processes[member.name] = await self._start(member)
                    tasks.create_task(self._watch(position, member))
                readiness = tasks.create_task(self._announce_ready())
                await self._stopping.wait()
                readiness.cancel()
                await self._stop()
        finally:
            self._kill()  # nothing is left running unless something above failed
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                loop.remove_signal_handler(number)
        return OK if self._signals else REFUSED

    async def _start(self, member: Member) -> Process:
        process = await asyncio.create_subprocess_exec(
            *member.command,
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=STDOUT,
            env={**os.environ, **self._environment},
            process_group=0,
            limit=_LINE_BYTES_MAX,
        )
        self._say(f"dev: {member.name} is process {process.pid}, clients at {member.endpoint}")
        return process

    async def _watch(self, position: int, member: Member) -> None:
        process = self._processes[member.name]
        prefix = f"{member.name} | "
        if self._colour:
            prefix = f"\x1b[{_COLOURS[position % len(_COLOURS)]}m{prefix}\x1b[0m"
        assert process.stdout is not None
        async for line in process.stdout:
            self._say(prefix + line.decode("utf-8", "replace").rstrip("\n"))
        code = await process.wait()
        if not self._stopping.is_set():
            self._say(f"dev: {member.name} {_ending(code)}; the others go on. Start it again in another terminal with:")
            self._say(f"  {member.shown_command}")
            if all(other.returncode is not None for other in self._processes.values()):
                self._say("dev: no node is left")
                self._stopping.set()

    async def _announce_ready(self) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._ready_ms / 1000
        waiting = list(self._members)
        while waiting and loop.time() < deadline:
            alive = [member for member in waiting if self._processes[member.name].returncode is None]
            answers = await asyncio.gather(*(asyncio.to_thread(_is_ready, member.endpoint) for member in alive))
            waiting = [member for member, ready in zip(alive, answers, strict=True) if not ready]
            if waiting:
                await asyncio.sleep(_READY_POLL_MS / 1000)
        if waiting:
            names = ", ".join(member.name for member in waiting)
            self._say(f"dev: still not ready after {self._ready_ms // 1000} s: {names}; their lines above say why")
        elif all(process.returncode is None for process in self._processes.values()):
            self._on_ready()

    async def _stop(self) -> None:
        running = [process for process in self._processes.values() if process.returncode is None]
        if running:
            self._say("dev: stopping")
        for process in running:
            process.terminate()
        _, late = await asyncio.wait(
            [asyncio.ensure_future(process.wait()) for process in self._processes.values()], timeout=STOP_MS / 1000
        )
        if late:
            self._kill()

    def _say(self, text: str) -> None:
        try:
            self._print(text)
        except OSError:  # whoever read the output has left, as in `kvnode dev | head`: nobody watches, so stop
            self._stopping.set()

    def _on_signal(self) -> None:
        self._signals += 1
        if self._signals > 1:  # the person insists
            self._kill()
        self._stopping.set()

    def _kill(self) -> None:
        for name, process in self._processes.items():
            if process.returncode is None:
                process.kill()
                self._say(f"dev: {name} did not stop in time and is killed")


def _is_ready(endpoint: str) -> bool:
    try:
        return fetch(endpoint, "/readyz", timeout_ms=1_000).status == 200
    except KvnodeError:
        return False


def _ending(code: int) -> str:
    if code >= 0:
        return f"exited with code {code}"
    return f"was ended by {signal.Signals(-code).name}"


def say(text: str) -> None:
    """One line to standard output."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
