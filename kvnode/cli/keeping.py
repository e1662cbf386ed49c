"""Keeping things from a shell: a lease alive, a lock held, a command running while it is held.

The command runs in a process group of its own, so that all it has started can be ended together, and nothing else. A
signal that would end ``kvnode lock`` is passed on to the group instead; the lock is let go when the command has ended.
On a terminal the group is put in the foreground, where it may read, and gets Ctrl-C itself. Ctrl-Z is ignored there: a
command that is stopped would go on holding.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import Sequence

import click
import msgspec

from kvnode.client.client import Client
from kvnode.client.locks import Acquire, wait_in_turns
from kvnode.clocks.system import SystemClock
from kvnode.errors import KvnodeError, LeaseNotFound, LockHeld, TryAgain, Unknown
from kvnode.kv.interface import Options
from kvnode.kv.requests import LeaseKeepAlive
from kvnode.recipes.hold import Held, holding
from kvnode.recipes.kept_lease import KeptLease
from kvnode.recipes.lock import Place

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
CANNOT_RUN, NOT_FOUND = 126, 127  # as shells say it
_POLL_S = 0.02

_now_ms = SystemClock().monotonic_ms


class Work(msgspec.Struct, frozen=True):
    """What is to be held, and what is to be done meanwhile."""

    endpoints: list[str]
    name: Acquire
    command: tuple[str, ...]
    timeout_ms: int
    grace_ms: int
    noun: str  # "lock", "leadership"


def run_holding(work: Work) -> int:
    """Until the command has ended, or a signal came. → The exit status. Raises: KvnodeError; Fenced if it was lost."""
    return asyncio.run(_Holding(work).run())


def keep_alive(endpoints: Sequence[str], lease: int, timeout_ms: int) -> str:
    """Until a signal came (""), or the lease is lost: why. Raises: KvnodeError if it could not be renewed at first."""
    return asyncio.run(_keep_alive(endpoints, lease, timeout_ms))


async def _keep_alive(endpoints: Sequence[str], lease: int, timeout_ms: int) -> str:
    loop = asyncio.get_running_loop()
    asked_to_stop = asyncio.Event()
    async with Client(endpoints) as client:

        async def renew(timeout_ms: int) -> None:
            await client.execute(LeaseKeepAlive(lease), Options(timeout_ms=timeout_ms))

        sent_ms = _now_ms()
        begun = await client.execute(LeaseKeepAlive(lease), Options(timeout_ms=timeout_ms))
        for number in SIGNALS:
            loop.add_signal_handler(number, asked_to_stop.set)
        kept = KeptLease(renew, begun.ttl_ms, sent_ms, now_ms=_now_ms)
        tasks = [asyncio.ensure_future(kept.keep()), asyncio.ensure_future(asked_to_stop.wait())]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        return kept.why_lost


class _Holding:
    """One run of ``kvnode lock`` or ``kvnode elect``."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._process: Process | None = None
        self._is_starting = False  # the command: it may run already, but is not known yet
        self._early: list[int] = []  # signals that came then
        self._told = ""  # what went wrong last while waiting
        self._signal = 0  # that ended the wait, or the holding without a command
        self._was_held = False

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        running = asyncio.ensure_future(self._hold())
        for number in SIGNALS:
            loop.add_signal_handler(number, self._on_signal, number, running)
        try:
            return await running
        except asyncio.CancelledError:
            return 0 if self._was_held else 128 + self._signal

    def _on_signal(self, number: int, running: asyncio.Future[int]) -> None:
        if self._process is not None:
            self._signal_group(number)
        elif self._is_starting:
            self._early.append(number)
        elif not self._signal:
            self._signal = number
            running.cancel()

    async def _hold(self) -> int:
        work = self._work
        async with (
            Client(work.endpoints) as client,
            holding(client, lambda: self._acquire(client), work.name.ttl_ms) as held,
        ):
            if not work.command:
                self._was_held = True
                click.echo(self._line(held))
                await held.lost()
                return 0  # leaving the block raises
            return await self._run_command(held)

    async def _acquire(self, client: Client) -> Place:
        options = Options(timeout_ms=self._work.timeout_ms)
        return await wait_in_turns(
            lambda request: client.acquire(request, options),
            self._work.name,
            now_ms=_now_ms,
            again=(LockHeld, TryAgain, Unknown, LeaseNotFound),  # a place that nobody knows of ends by itself
            on_failure=self._still_waiting,
        )

    def _still_waiting(self, error: KvnodeError) -> None:
        if error.code != self._told and not isinstance(error, LockHeld):
            click.echo(f"kvnode: {error.message} [{error.code}]; still trying", err=True)
        self._told = error.code

    def _line(self, held: Held) -> str:
        word = "owner" if self._work.name.kind == "locks" else "value"
        texts = {"name": held.name.decode(errors="replace"), word: held.value.decode(errors="replace")}
        return json.dumps({**texts, "lease": held.lease, "token": held.token, "ttl_ms": held.ttl_ms})

    async def _run_command(self, held: Held) -> int:
        work = self._work
        environment = {
            "KVNODE_LOCK_NAME": os.fsdecode(held.name),
            "KVNODE_LOCK_TOKEN": str(held.token),
            "KVNODE_LOCK_LEASE": str(held.lease),
        }
        with _Terminal() as terminal:
            self._is_starting = True
            try:
                process = await asyncio.create_subprocess_exec(
                    *work.command, env={**os.environ, **environment}, process_group=0
                )
            except OSError as error:
                click.echo(f"kvnode: cannot run {work.command[0]}: {error.strerror}", err=True)
                return NOT_FOUND if isinstance(error, FileNotFoundError) else CANNOT_RUN
            self._process = process
            for number in self._early:
                self._signal_group(number)
            terminal.give_to(process.pid)
            ended, lost = asyncio.ensure_future(process.wait()), asyncio.ensure_future(held.lost())
            await asyncio.wait([ended, lost], return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                click.echo(f"kvnode: the {work.noun} was lost; ending {work.command[0]}", err=True)
                await self._end_group()
            lost.cancel()
            code = await ended
        return code if code >= 0 else 128 - code

    async def _end_group(self) -> None:
        """Ask all of the group to end, and kill what is left after the grace."""
        self._signal_group(signal.SIGTERM)
        self._signal_group(signal.SIGCONT)  # what is stopped hears nothing else
        until_ms = _now_ms() + self._work.grace_ms
        while self._signal_group(0):
            if _now_ms() >= until_ms:
                self._signal_group(signal.SIGKILL)
                return
            await asyncio.sleep(_POLL_S)

    def _signal_group(self, number: int) -> bool:
        """False: none of it is left."""
        assert self._process is not None
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return False
        except PermissionError:  # somebody else's by now: `sudo`, say
            return True
        return True


class _Terminal:
    """Hands the terminal to a process group, and takes it back. Does nothing where we are not in the foreground."""

    def __init__(self) -> None:
        self._is_ours = sys.stdin.isatty() and os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()

    def __enter__(self) -> _Terminal:
        if self._is_ours:
            signal.signal(signal.SIGTSTP, signal.SIG_IGN)  # the command inherits that
        return self

    def give_to(self, group: int) -> None:
        if self._is_ours:
            os.tcsetpgrp(sys.stdin.fileno(), group)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGCONT)  # it may have tried to read already

    def __exit__(self, *_: object) -> None:
        if self._is_ours:
            signal.signal(signal.SIGTTOU, signal.SIG_IGN)
            os.tcsetpgrp(sys.stdin.fileno(), os.getpgrp())
