"""The supervisor of `kvnode dev`, over a small stand-in for a node: starts, merges, reports deaths, stops."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kvnode.cli import supervisor
from kvnode.cli.supervisor import Member, Supervisor

NODE = """
import http.server, os, signal, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
    def log_message(self, *arguments): pass
if sys.argv[2] == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    signal.signal(signal.SIGTERM, lambda *_: (print("bye", flush=True), os._exit(0)))
server = http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
print("pid", os.getpid(), os.environ["MARK"], flush=True)
server.serve_forever()
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Stage:
    """A supervisor over stand-in nodes, with what it said, and waiting for it to say more."""

    def __init__(self, directory: Path, manners: list[str]) -> None:
        program = directory / "node.py"
        program.write_text(NODE)
        self.said: list[str] = []
        self.reader_left = False
        members = []
        for number, manner in enumerate(manners, 1):
            port = free_port()
            command = (sys.executable, str(program), str(port), manner)
            members.append(Member(f"n{number}", command, f"restart {number}", f"127.0.0.1:{port}"))
        self.supervisor = Supervisor(
            members, {"MARK": "here"}, say=self._say, colour=False, on_ready=lambda: self._say("READY")
        )
        self.task = asyncio.create_task(self.supervisor.run())

    def _say(self, text: str) -> None:
        if self.reader_left:
            raise BrokenPipeError
        self.said.append(text)

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not holds():
                await asyncio.sleep(0.01)

    def pid(self, name: str) -> int:
        line = next(line for line in self.said if line.startswith(f"{name} | pid"))
        return int(line.split()[3])


@pytest.mark.slow
async def test_nodes_run_until_a_signal_and_a_dead_one_stays_dead(tmp_path):
    stage = Stage(tmp_path, ["polite", "polite"])
    await stage.until(lambda: "READY" in stage.said)
    assert any(line.startswith("n1 | pid") and line.endswith("here") for line in stage.said)
    os.kill(stage.pid("n2"), signal.SIGKILL)
    await stage.until(lambda: any("restart 2" in line for line in stage.said))
    assert any("n2 was ended by SIGKILL" in line for line in stage.said)
    os.kill(os.getpid(), signal.SIGTERM)
    assert await stage.task == 0
    assert "n1 | bye" in stage.said
    with pytest.raises(ProcessLookupError):
        os.kill(stage.pid("n1"), 0)


@pytest.mark.slow
async def test_a_node_that_ignores_sigterm_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "STOP_MS", 200)
    stage = Stage(tmp_path, ["stubborn"])
    await stage.until(lambda: "READY" in stage.said)
    os.kill(os.getpid(), signal.SIGINT)
    assert await stage.task == 0
    assert any("n1 did not stop in time" in line for line in stage.said)


@pytest.mark.slow
async def test_dev_ends_when_no_node_is_left(tmp_path):
    stage = Stage(tmp_path, ["polite"])
    await stage.until(lambda: "READY" in stage.said)
    os.kill(stage.pid("n1"), signal.SIGKILL)
    assert await stage.task == 1
    assert "dev: no node is left" in stage.said


@pytest.mark.slow
async def test_dev_stops_its_nodes_when_nobody_reads_its_output(tmp_path):
    stage = Stage(tmp_path, ["polite", "polite"])
    await stage.until(lambda: "READY" in stage.said)
    stage.reader_left = True
    os.kill(stage.pid("n2"), signal.SIGKILL)  # makes the supervisor speak
    await stage.task
    with pytest.raises(ProcessLookupError):
        os.kill(stage.pid("n1"), 0)
