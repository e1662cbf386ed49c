"""`kvnode serve` as a process: it starts, answers, stops on a signal with 0, and says why when it cannot start."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from kvnode import errors
from kvnode.bench.process import free_ports
from kvnode.cli.main import cli
from kvnode.client.http import Caller, fetch

pytestmark = [pytest.mark.slow, pytest.mark.system]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--join", "nowhere", "--secret-file", "s"), "cluster.join: 'nowhere'"),
        (("--join", "127.0.0.1:1,also-nowhere", "--secret-file", "s"), "cluster.join: 'also-nowhere'"),
        (("--join", "127.0.0.1:1"), "cluster.secret_file must be set"),
        (("--replace", "3"), "cluster.replace goes with cluster.join"),
        (("--join", "127.0.0.1:1", "--secret-file", "s", "--replace", "three"), "replace"),
        (("--join", "127.0.0.1:1", "--secret-file", "s", "--peer", "0.0.0.0:7501"), "nobody can be told"),
        (("--peer", "10.0.0.4:7501"), "set peer.insecure = true"),
        (("--client", "10.0.0.4:7401"), "set client.insecure = true"),
        (("--name", "x" * 65), "name"),
        (("--data-dir", ""), "data_dir"),
    ],
)
def test_options_stand_for_settings_and_are_checked_like_them(arguments: tuple[str, ...], word: str):
    refused = CliRunner().invoke(cli, ["serve", *arguments], env={"KVNODE_CONFIG": None})
    assert refused.exit_code == 5
    assert word in refused.stderr


def serve(directory: Path, client: int, peer: int, *more: str) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KVNODE_")}
    settings = [
        f"client.listen=127.0.0.1:{client}",
        f"peer.listen=127.0.0.1:{peer}",
        f"cluster.members=1=127.0.0.1:{peer}",
        "node.data_dir=data",
        "storage.allow_unsafe_filesystem=true",
        "log.format=json",
    ]
    command = [sys.executable, "-m", "kvnode", "serve", *(word for one in settings for word in ("--set", one)), *more]
    return subprocess.Popen(command, cwd=directory, env=environment, stderr=subprocess.PIPE)


def wait_ready(endpoint: str) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            if fetch(endpoint, "/readyz", 1_000).status == 200:
                return
        except errors.KvnodeError:
            assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_it_serves_until_a_signal(tmp_path: Path, loop: str):
    client, peer = free_ports(2)
    process = serve(tmp_path, client, peer, "--loop", loop)
    assert process.stderr is not None
    with process.stderr:
        wait_ready(f"127.0.0.1:{client}")
        assert Caller([f"127.0.0.1:{client}"], 5_000).call("PUT", "/v1/kv/k", {}, b"v").status == 200
        process.send_signal(signal.SIGTERM)
        lines = [json.loads(line) for line in process.stderr]
        assert process.wait(20) == 0
    assert {line["node"] for line in lines} == {1}
    events = [line["event"] for line in lines]
    assert events[-1] == "node.stopped"
    assert {"node.started", "election.won", "node.stopping"} <= set(events)


def test_an_address_in_use_is_fatal_and_named(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = serve(tmp_path, port, free_ports(1)[0])
        _, said = process.communicate(timeout=30)
    assert process.returncode == 5
    assert str(port) in said.decode()
    assert "Traceback" not in said.decode()
