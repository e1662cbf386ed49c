"""`kvnode lock` and `kvnode elect`: real processes against the real front door."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import Result

from kvnode import errors
from kvnode.cli.main import EXIT_CODES, LOST
from kvnode.kv.requests import Campaign, LeaseRevoke, QueueRead
from tests.cli.cluster import ServedNode

WAIT_S = 20

pytestmark = pytest.mark.slow


def begin(shared: ServedNode, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "kvnode", *arguments],
        env={**os.environ, "KVNODE_ENDPOINTS": shared.endpoint},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def done(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=WAIT_S)
    return process.returncode, out, err


def lock(shared: ServedNode, *arguments: str) -> tuple[int, str, str]:
    return done(begin(shared, *arguments))


def holders(shared: ServedNode, name: str) -> list[bytes]:
    queue = asyncio.run(shared.node.execute(QueueRead(name.encode())))
    return [kv.value for kv in queue.waiting]


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextmanager
def taken(shared: ServedNode, name: str) -> Iterator[int]:
    """Somebody else holds it. → The token."""
    granted = asyncio.run(shared.node.execute(Campaign(name.encode(), 30_000, b"ann")))
    try:
        yield granted.put.create_revision
    finally:
        asyncio.run(shared.node.execute(LeaseRevoke(granted.id)))


def test_the_command_runs_with_the_token_in_its_environment_and_ends_as_it_ended(shared: ServedNode) -> None:
    shell = 'echo "$KVNODE_LOCK_NAME $KVNODE_LOCK_TOKEN $KVNODE_LOCK_LEASE $1"; exit 7'
    code, out, err = lock(shared, "lock", "a/ü", "--", "sh", "-c", shell, "sh", "--ttl")
    assert (code, err) == (7, "")
    name, token, lease, argument = out.split()
    assert (name, argument) == ("a/ü", "--ttl")
    campaign = [request for request in shared.node.executed if isinstance(request, Campaign)][-1]
    assert (campaign.name, campaign.ttl_ms) == ("a/ü".encode(), 30_000)
    assert int(token) >= 2
    assert shared.node.executed[-1] == LeaseRevoke(int(lease)), "let go"
    assert lock(shared, "lock", "b", "--", "sh", "-c", "kill -9 $$")[0] == 128 + 9


def test_a_command_that_cannot_run(shared: ServedNode, tmp_path: Path) -> None:
    code, _, err = lock(shared, "lock", "a", "--", "there-is-no-such-command")
    assert code == 127
    assert "cannot run there-is-no-such-command" in err
    (tmp_path / "script").write_text("echo")
    assert lock(shared, "lock", "a", "--", str(tmp_path / "script"))[0] == 126
    assert holders(shared, "a") == []


def test_another_holds_it(shared: ServedNode) -> None:
    with taken(shared, "busy"):
        code, out, err = lock(shared, "lock", "busy", "--no-wait", "--", "echo", "ran")
        assert (code, out) == (1, "")
        assert "[lock_held]" in err
        assert lock(shared, "lock", "busy", "--wait", "200ms", "--", "echo", "ran")[0] == 1
        waiting = begin(shared, "lock", "busy", "--owner", "bob", "--", "echo", "ran")
        until(lambda: holders(shared, "busy") == [b"ann", b"bob"])
        assert waiting.poll() is None
    assert done(waiting) == (0, "ran\n", "")


def test_waiting_goes_on_through_failures_and_says_so_once(shared: ServedNode) -> None:
    shared.node.refuse_next(*[errors.LeadershipLost("who knows")] * 3)
    code, out, err = lock(shared, "lock", "flaky", "--", "echo", "ran")
    assert (code, out) == (0, "ran\n")
    assert err == "kvnode: who knows [leadership_lost]; still trying\n"
    assert shared.node.refusals == deque()
    with taken(shared, "flaky"):
        waiting = begin(shared, "lock", "flaky", "--", "echo", "ran")
        until(lambda: len(holders(shared, "flaky")) == 2)
        waiting.send_signal(signal.SIGTERM)
        assert done(waiting)[0] == 128 + signal.SIGTERM
    until(lambda: holders(shared, "flaky") == [])


def test_without_a_command_it_is_held_until_interrupted(shared: ServedNode) -> None:
    holding = begin(shared, "lock", "free", "--owner", "me")
    assert holding.stdout is not None
    told = json.loads(holding.stdout.readline())
    assert told == {"name": "free", "owner": "me", "lease": told["lease"], "token": told["token"], "ttl_ms": 30_000}
    assert holders(shared, "free") == [b"me"]
    holding.send_signal(signal.SIGINT)
    assert done(holding) == (0, "", "")
    assert holders(shared, "free") == []


def test_a_signal_is_passed_on_and_the_lock_let_go_when_the_command_has_ended(shared: ServedNode) -> None:
    shell = "trap 'echo told; exit 3' TERM; echo ready; while :; do sleep 0.1; done"
    holding = begin(shared, "lock", "passed", "--", "sh", "-c", shell)
    assert holding.stdout is not None
    assert holding.stdout.readline() == "ready\n"
    holding.send_signal(signal.SIGTERM)
    code, out, _ = done(holding)  # the shell may mention that its `sleep` was told, too
    assert (code, out) == (3, "told\n")
    assert holders(shared, "passed") == []


def end(shared: ServedNode, name: str) -> None:
    queue = asyncio.run(shared.node.execute(QueueRead(name.encode())))
    asyncio.run(shared.node.execute(LeaseRevoke(queue.waiting[0].lease)))


def test_a_lost_lock_ends_the_command_and_all_it_started(shared: ServedNode) -> None:
    shell = "sleep 100 & echo $!; trap 'echo told; exit 0' TERM; wait"
    holding = begin(shared, "lock", "lost", "--ttl", "1s", "--", "sh", "-c", shell)
    assert holding.stdout is not None
    child = int(holding.stdout.readline())
    end(shared, "lost")
    code, out, err = done(holding)
    assert (code, out) == (LOST, "told\n")
    assert "the lock was lost; ending sh" in err
    assert "'lost' was lost while it was held" in err
    until(lambda: not Path(f"/proc/{child}").exists() or "(zombie)" in Path(f"/proc/{child}/status").read_text())


def test_a_command_that_does_not_end_is_killed_after_the_grace(shared: ServedNode) -> None:
    shell = "trap '' TERM; echo ready; while :; do sleep 0.1; done"
    holding = begin(shared, "elect", "lost", "--ttl", "1s", "--grace", "300ms", "--", "sh", "-c", shell)
    assert holding.stdout is not None
    assert holding.stdout.readline() == "ready\n"
    end(shared, "lost")
    code, _, err = done(holding)
    assert code == LOST
    assert code in EXIT_CODES
    assert "the leadership was lost" in err


def test_who_has_it(shared: ServedNode, run: Callable[..., Result]) -> None:
    free = run("lock", "seen", "--show")
    assert (free.exit_code, free.stdout) == (1, "")
    assert run("elect", "seen", "--show").exit_code == 1
    with taken(shared, "seen") as token:
        waiting = begin(shared, "lock", "seen", "--owner", "bob")
        until(lambda: len(holders(shared, "seen")) == 2)
        first, second = run("lock", "seen", "--show").stdout.splitlines()
        assert first == f"holds {token} ann"
        assert second.startswith("waits ")
        assert second.endswith(" bob")
        assert json.loads(run("lock", "seen", "--show", "-o", "json").stdout)["holder"]["token"] == token
        assert run("elect", "seen", "--show").stdout == f"holds {token} ann\n"
        assert json.loads(run("elect", "seen", "--show", "-o", "json").stdout)["value"] == "ann"
        waiting.send_signal(signal.SIGINT)
        assert done(waiting)[0] == 130


def test_usage(run: Callable[..., Result]) -> None:
    assert run("lock", "a", "--show", "--", "echo").exit_code == 2
    assert run("lock", "a", "--wait", "1s", "--no-wait").exit_code == 2
    assert run("lock").exit_code == 2


def test_no_node_answers(tmp_path: Path, run: Callable[..., Result]) -> None:
    refused = run("lock", "a", "--no-wait", "--endpoint", "127.0.0.1:9", "--timeout", "200ms", "--", "echo")
    assert refused.exit_code == 3
    assert "Kv-Outcome: not-applied" in refused.stderr


LAUNCHER = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, shared: ServedNode, *arguments: str) -> None:
        self._ours, theirs = os.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, sys.executable, "-m", "kvnode", *arguments],
            env={**os.environ, "KVNODE_ENDPOINTS": shared.endpoint},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        self.shown = b""

    def type(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def read_until(self, words: bytes) -> None:
        deadline = time.monotonic() + WAIT_S
        while words not in self.shown:
            assert select.select([self._ours], [], [], deadline - time.monotonic())[0], self.shown
            self.shown += os.read(self._ours, 1024)

    def end(self) -> int:
        code = self.process.wait(WAIT_S)
        os.close(self._ours)
        return code


def test_on_a_terminal_the_command_reads_and_ctrl_c_is_its_own(shared: ServedNode) -> None:
    reading = Terminal(shared, "lock", "tty", "--", "sh", "-c", 'echo ready; read line; echo "got $line"')
    reading.read_until(b"ready")
    reading.type(b"\x1a")  # Ctrl-Z: not heard
    reading.type(b"hello\n")
    reading.read_until(b"got hello")
    assert reading.end() == 0
    # Not a child of the shell's: a shell that is interrupted while it starts one waits for that all the same.
    busy = Terminal(shared, "lock", "tty", "--", "sh", "-c", "echo ready; exec sleep 100")
    busy.read_until(b"ready")
    busy.type(b"\x03")
    assert busy.end() == 128 + signal.SIGINT
    assert holders(shared, "tty") == []
