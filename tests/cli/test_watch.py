"""`kvnode watch` as a process: what it prints, what it survives, how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from click.testing import CliRunner

from kvnode.cli.main import cli
from tests.cli.cluster import ServedNode
from tests.machine.floor import give_up_below


@pytest.fixture
def put(shared: ServedNode) -> Callable[[str, str], None]:
    def run(key: str, value: str) -> None:
        assert CliRunner().invoke(cli, ["put", key, value, "--endpoint", shared.endpoint]).exit_code == 0

    return run


@contextmanager
def watching(shared: ServedNode, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "kvnode", "watch", *arguments]
    environment = {**os.environ, "KVNODE_ENDPOINTS": f"127.0.0.1:1,{shared.endpoint}"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def line(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    return process.stdout.readline()


def test_what_is_there_and_what_becomes_of_it(shared: ServedNode, put: Callable[[str, str], None]) -> None:
    put("plain/a", "1")
    with watching(shared, "plain/", "--prefix", "--list") as process:
        revision, rest = line(process).split(b" ", 1)
        assert rest == b"put plain/a 1\n"
        put("plain/b", "two words")
        assert line(process).split(b" ", 1)[1] == b"put plain/b two words\n"
        CliRunner().invoke(cli, ["del", "plain/a", "--endpoint", shared.endpoint])
        assert line(process).split(b" ", 1) == [b"%d" % (int(revision) + 2), b"delete plain/a\n"]
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_json_is_what_the_http_interface_says(shared: ServedNode, put: Callable[[str, str], None]) -> None:
    put("json", "1")
    put("json", "2")
    first = shared.node.machine.revision - 1
    with watching(shared, "json", "--from-rev", str(first), "--prev", "-o", "json") as process:
        found = [json.loads(line(process)) for _ in range(2)]
    assert [(each["type"], each["revision"], each["value"]) for each in found] == [
        ("put", first, "1"),
        ("put", first + 1, "2"),
    ]
    assert (found[0]["prev"], found[1]["prev"]["value"]) == (None, "1")


def test_dropped_history_is_an_error(shared: ServedNode, put: Callable[[str, str], None]) -> None:
    put("gone", "1")
    give_up_below(shared.node.machine, shared.node.machine.revision)
    try:
        result = CliRunner().invoke(cli, ["watch", "gone", "--from-rev", "1", "--endpoint", shared.endpoint])
    finally:
        give_up_below(shared.node.machine, 0)
    assert result.exit_code == 1
    assert "[compacted]" in result.stderr


def test_wrong_usage() -> None:
    assert CliRunner().invoke(cli, ["watch"]).exit_code == 2
    assert CliRunner().invoke(cli, ["watch", "k", "--list", "--from-rev", "3"]).exit_code == 2
    nobody = CliRunner().invoke(cli, ["watch", "k", "--endpoint", "127.0.0.1:1", "--timeout", "100ms"])
    assert nobody.exit_code == 3
