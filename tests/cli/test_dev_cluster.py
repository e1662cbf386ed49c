"""`kvnode dev` for real: three processes, one killed and started again by the printed command, all stopped together."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvnode import errors
from kvnode.bench.process import free_ports
from kvnode.client.http import Caller, fetch

pytestmark = [pytest.mark.slow, pytest.mark.system]


class Dev:
    """A running `kvnode dev` and what it has printed so far."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        ports = free_ports(6)
        self.endpoints = [f"127.0.0.1:{port}" for port in ports[:3]]
        peers = [f"127.0.0.1:{port}" for port in ports[3:]]
        (directory / "config").mkdir()
        members = ", ".join(f'"{number}={peer}"' for number, peer in enumerate(peers, 1))
        for number in (1, 2, 3):
            (directory / f"config/node{number}.toml").write_text(
                f'[node]\nid = {number}\ndata_dir = "data/n{number}"\n'
                f'[cluster]\nmembers = [{members}]\nsecret_file = "data/secret"\n'
                f'[client]\nlisten = "{self.endpoints[number - 1]}"\n[peer]\nlisten = "{peers[number - 1]}"\n'
            )
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("KVNODE_")}
        command = [sys.executable, "-m", "kvnode", "dev", "--nodes", "3"]
        self.process = subprocess.Popen(
            command, cwd=directory, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.lines: list[str] = []
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    def find(self, pattern: str, timeout_s: float = 30) -> re.Match[str]:
        """The first line that matches, waiting for it."""
        deadline = time.monotonic() + timeout_s
        while True:
            for line in list(self.lines):
                if found := re.search(pattern, line):
                    return found
            assert time.monotonic() < deadline, f"no line matches {pattern!r}:\n" + "\n".join(self.lines)
            assert self.process.poll() is None, "\n".join(self.lines)
            time.sleep(0.02)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.reader.join(10)


@pytest.fixture
def dev(tmp_path: Path) -> Iterator[Dev]:
    started = Dev(tmp_path)
    yield started
    started.close()


def read_when_ready(endpoint: str, key: str, timeout_s: float = 20) -> bytes:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return Caller([endpoint], 2_000).call("GET", f"/v1/kv/{key}").body
        except errors.TryAgain:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_killed_node_is_reported_and_comes_back_by_the_printed_command(dev: Dev):
    dev.find(r"^dev: ready, 3 nodes")
    assert Caller(dev.endpoints[:1], 5_000).call("PUT", "/v1/kv/greeting", {}, b"hello").status == 200
    assert read_when_ready(dev.endpoints[2], "greeting") == b"hello"

    leader = fetch(dev.endpoints[0], "/v1/status", 2_000).json()["leader"]
    pid = int(dev.find(rf"^dev: n{leader} is process (\d+)")[1])
    os.kill(pid, signal.SIGKILL)
    dev.find(rf"^dev: n{leader} was ended by SIGKILL")
    shown = dev.find(r"^  (.*kvnode serve --config config/node\d\.toml)$")[1]
    survivors = [endpoint for number, endpoint in enumerate(dev.endpoints, 1) if number != leader]
    for endpoint in survivors:
        assert read_when_ready(endpoint, "greeting") == b"hello"

    again = subprocess.Popen(
        ["/usr/bin/env", *shlex.split(shown)],
        cwd=dev.directory,
        env=dev.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert read_when_ready(dev.endpoints[leader - 1], "greeting") == b"hello"
    finally:
        again.terminate()
        assert again.wait(20) == 0

    dev.process.send_signal(signal.SIGINT)
    assert dev.process.wait(20) == 0
    for endpoint in dev.endpoints:
        with pytest.raises(errors.TryAgain):
            fetch(endpoint, "/livez", 1_000)
    assert (dev.directory / "data/secret").stat().st_mode & 0o777 == 0o600


def test_a_second_cluster_on_the_same_ports_is_refused_by_name(dev: Dev):
    dev.find(r"^dev: ready, 3 nodes")
    second = subprocess.run(
        [sys.executable, "-m", "kvnode", "dev"],
        cwd=dev.directory,
        env=dev.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert second.returncode == 5
    assert all(endpoint in second.stderr for endpoint in dev.endpoints)
    assert "in use" in second.stderr


def test_the_doctor_is_content_with_a_sound_cluster_and_names_a_dead_node(dev: Dev):
    """All over real processes: HTTP, a directory in use, and one whose node was killed."""

    def doctor(*arguments: str) -> tuple[int, str, list[dict[str, Any]]]:
        done = subprocess.run(
            [sys.executable, "-m", "kvnode", "doctor", *arguments, "-o", "json"],
            cwd=dev.directory,
            env=dev.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        reports = json.loads(done.stdout)["reports"]
        return done.returncode, done.stderr, [one for report in reports for one in report["findings"]]

    dev.find(r"^dev: ready, 3 nodes")
    assert Caller(dev.endpoints[:1], 5_000).call("PUT", "/v1/kv/greeting", {}, b"hello").status == 200
    for endpoint in dev.endpoints:
        read_when_ready(endpoint, "greeting")
    status, told, findings = doctor(dev.endpoints[0])
    assert (status, told) == (0, ""), findings
    assert "all 3 states compared are equal" in next(one["what"] for one in findings if one["check"] == "divergence")

    pid = int(dev.find(r"^dev: n3 is process (\d+)")[1])
    grave = [one for one in doctor("data/n3")[2] if one["check"] in {"lock", "log", "store"}]
    assert [(one["level"], one["check"]) for one in grave] == [("note", "lock"), ("ok", "log")]
    assert f"in use by process {pid}" in grave[0]["what"]

    os.kill(pid, signal.SIGKILL)
    dev.find(r"^dev: n3 was ended by SIGKILL")
    status, _, findings = doctor(dev.endpoints[0])
    assert status == 1
    assert [one["what"][:8] for one in findings if one["check"] == "reachable"] == ["node 3 ("]
    assert any("0 more may fail before writes stop" in one["what"] for one in findings if one["check"] == "quorum")
    left = [(one["level"], one["check"]) for one in doctor("data/n3")[2]]
    assert {("ok", "lock"), ("ok", "log"), ("ok", "store")} <= set(left)
