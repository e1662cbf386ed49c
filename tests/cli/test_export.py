"""`kvnode export` against the real front door: one revision however long it takes, a file that is whole or absent."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from kvnode import errors
from kvnode.cli.main import cli
from kvnode.client.export_file import Reader
from kvnode.client.patience import PatientCaller
from kvnode.kv.interface import Options
from kvnode.kv.requests import Delete, Put, Range
from tests.cli.cluster import ServedNode, serving
from tests.cli.test_kv import dead_endpoint
from tests.cli.test_progress import on_a_terminal
from tests.client.local_node import LocalNode
from tests.machine.floor import give_up_below

Run = Callable[..., Result]


class BusyNode(LocalNode):
    """After each page of a listing other writers come: `between`."""

    def __init__(self) -> None:
        super().__init__()
        self.between: Callable[[], Any] = lambda: None

    async def execute(self, request: Any, options: Options = Options()) -> Any:  # noqa: B008
        reply = await super().execute(request, options)
        if isinstance(request, Range):
            self.between()
        return reply

    def write(self, *requests: Put | Delete) -> None:
        for request in requests:
            index: Any = self.machine.applied_index + 1
            self.machine.apply(index, self.clock.next(1_790_000_000_000), request)


@pytest.fixture
def served() -> Iterator[ServedNode]:
    with serving(BusyNode()) as found:
        yield found


@pytest.fixture
def node(served: ServedNode) -> BusyNode:
    assert isinstance(served.node, BusyNode)
    return served.node


@pytest.fixture
def run(served: ServedNode, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.setenv("KVNODE_ENDPOINTS", served.endpoint)
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(cli, arguments)


def exported(file: str) -> dict[bytes, bytes]:
    with open(file, "rb") as lines:
        return {entry.kv.key: entry.kv.value for entry in Reader(lines)}


def test_all_keys_are_of_one_revision_while_writes_go_on(run: Run, node: BusyNode) -> None:
    """Ten thousand keys, ten pages; between them keys before and behind are changed, deleted and made."""
    before = {b"app/%05d" % number: b"value %d" % number for number in range(10_000)}
    node.write(*(Put(key, value) for key, value in before.items()), Put(b"apq", b""), Put(b"ap", b""))
    revision = node.machine.revision
    rounds = iter(range(1_000))

    def between() -> None:
        number = next(rounds)
        for key in (b"app/%05d" % number, b"app/%05d" % (9_999 - number)):
            node.write(Put(key, b"changed"), Put(key + b"/new", b"new"))
        node.write(Delete(b"app/%05d" % (5_000 + number)))

    node.between = between
    result = run("export", "--prefix", "app/", "-f", "app.jsonl")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith(f"10000 keys at revision {revision} in app.jsonl, ")
    assert next(rounds) == 10, "as many pages as it takes"
    assert exported("app.jsonl") == before


def test_the_past_can_be_exported(run: Run, node: BusyNode) -> None:
    node.write(Put(b"a", b"1"), Put(b"b", b"1"))
    revision = node.machine.revision
    node.write(Put(b"a", b"2"), Delete(b"b"))
    assert run("export", "--at-rev", str(revision), "-f", "then.jsonl").exit_code == 0
    assert exported("then.jsonl") == {b"a": b"1", b"b": b"1"}
    time = json.loads(run("history", "b", "-o", "json").stdout.splitlines()[1])["time"]
    assert run("export", "--at-time", time, "-f", "then.jsonl", "--force").exit_code == 0
    assert exported("then.jsonl") == {b"a": b"1", b"b": b"1"}
    assert run("export", "--at-time", time, "--at-rev", "2").exit_code == 2
    future = run("export", "--at-rev", "999")
    assert (future.exit_code, "[future_revision]" in future.stderr, future.stdout) == (1, True, "")


def test_what_one_node_has_can_be_exported_without_a_leader(run: Run, node: BusyNode) -> None:
    node.write(*(Put(b"%05d" % number, b"") for number in range(1_500)))
    asked: list[Options] = []
    execute = node.execute

    async def noting(request: Any, options: Options = Options()) -> Any:  # noqa: B008
        asked.append(options)
        return await execute(request, options)

    node.execute = noting  # type: ignore[method-assign]
    assert run("export", "--stale", "-f", "all.jsonl").exit_code == 0
    assert len(exported("all.jsonl")) == 1_500
    assert {options.consistency for options in asked} == {"stale"}
    assert len(asked) >= 2, "also of the second page"


def test_nothing_is_an_export_too(run: Run) -> None:
    result = run("export", "--prefix", "none/", "-f", "none.jsonl", "-o", "json")
    assert result.exit_code == 0
    assert exported("none.jsonl") == {}
    summary = json.loads(result.stdout)
    assert summary["bytes"] == Path("none.jsonl").stat().st_size
    assert (summary["items"], summary["revision"], summary["cluster_id"]) == (0, 1, "00000000000000aa")


def test_standard_output_is_the_file_and_nothing_else(run: Run, node: BusyNode) -> None:
    node.write(Put(b"\xff", b"\x00\xff"), Put(b"text", b"two\nlines"))
    result = run("export", "-o", "json")
    Path("out.jsonl").write_bytes(result.stdout_bytes)
    assert exported("out.jsonl") == {b"\xff": b"\x00\xff", b"text": b"two\nlines"}
    assert json.loads(result.stderr)["items"] == 2
    with open("out.jsonl", "rb") as file:
        header = Reader(file).header
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", header.time)


def test_a_file_that_is_there_is_not_replaced_unasked(run: Run, node: BusyNode) -> None:
    Path("kept").write_text("mine")
    refused = run("export", "-f", "kept")
    assert (refused.exit_code, "kept is there already; --force" in refused.stderr) == (1, True)
    assert not node.executed
    assert Path("kept").read_text() == "mine"
    assert run("export", "-f", "kept", "--force").exit_code == 0
    assert stat.S_IMODE(Path("kept").stat().st_mode) == 0o600, "as private as what it was made from"
    Path("link").symlink_to("kept")
    assert run("export", "-f", "link", "--force").exit_code == 0
    assert Path("link").is_symlink()
    assert exported("kept") == {}
    node.between = lambda: Path("late").write_text("theirs")
    late = run("export", "-f", "late")
    assert (late.exit_code, "has come into being meanwhile" in late.stderr) == (1, True)
    assert Path("late").read_text() == "theirs"
    assert sorted(os.listdir()) == ["kept", "late", "link"], "nothing is left aside"


@pytest.mark.parametrize("file", ["missing/file", ".", os.devnull])
def test_what_cannot_be_the_file_is_wrong_usage(run: Run, file: str) -> None:
    assert run("export", "-f", file, "--force").exit_code == 2


def test_history_that_is_given_up_meanwhile(run: Run, node: BusyNode) -> None:
    node.write(*(Put(b"%05d" % number, b"") for number in range(1_500)))
    revision = node.machine.revision

    def between() -> None:
        node.write(Put(b"more", b""))
        give_up_below(node.machine, node.machine.revision)

    node.between = between
    result = run("export", "-f", "all.jsonl")
    assert (result.exit_code, result.stdout) == (1, "")
    for words in ("[compacted]", "was not written", "export again, in smaller prefixes", "history.retention_ms"):
        assert words in result.stderr
    assert os.listdir() == []
    old = run("export", "-f", "all.jsonl", "--at-rev", str(revision))
    assert (old.exit_code, f"--at-rev {revision + 1}, or later" in old.stderr) == (1, True)
    cut = run("export")
    assert (cut.exit_code, "what was written is cut off" in cut.stderr) == (1, True)


def test_nobody_there_and_no_leader_for_a_while(run: Run, node: BusyNode, served: ServedNode) -> None:
    nobody = run("export", "-f", "all.jsonl", "--endpoint", dead_endpoint(), "--timeout", "100ms")
    assert (nobody.exit_code, os.listdir()) == (3, [])
    node.write(*(Put(b"%05d" % number, b"") for number in range(2_500)))
    failures = iter([errors.NoLeader("none"), errors.Timeout("late"), errors.NoLeader("none")])
    node.between = lambda: node.refuse_next(*failures)  # before the second page
    endpoints = f"{dead_endpoint()},{served.endpoint}"
    assert run("export", "-f", "all.jsonl", "--endpoint", endpoints).exit_code == 0
    assert len(exported("all.jsonl")) == 2_500


def test_interrupted(run: Run, node: BusyNode, monkeypatch: pytest.MonkeyPatch) -> None:
    node.write(*(Put(b"%05d" % number, b"") for number in range(2_500)))
    read = PatientCaller.read
    calls = iter(range(100))

    def until_ctrl_c(*arguments: Any) -> Any:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return read(*arguments)

    monkeypatch.setattr(PatientCaller, "read", until_ctrl_c)
    result = run("export", "-f", "all.jsonl")
    assert result.exit_code == 3
    assert re.fullmatch(r"kvnode: interrupted; all\.jsonl was not written\n", result.stderr)
    assert os.listdir() == []


def test_a_full_disk(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    result = run("export", "-f", "all.jsonl")
    assert (result.exit_code, "cannot write" in result.stderr, "No space left" in result.stderr) == (5, True, True)
    assert os.listdir() == []


@pytest.mark.slow
def test_a_reader_that_has_enough(run: Run, node: BusyNode, served: ServedNode) -> None:
    node.write(*(Put(b"%05d" % number, b"x" * 1_000) for number in range(2_500)))
    command = [sys.executable, "-m", "kvnode", "export", "--endpoint", served.endpoint]
    root = Path(__file__).parent.parent.parent
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=root) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(10) == 1


@pytest.mark.slow
def test_a_bar_on_a_terminal_unless_the_file_goes_there(
    node: BusyNode, served: ServedNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parent.parent.parent)
    node.write(*(Put(b"%05d" % number, b"") for number in range(2_500)))
    command = [sys.executable, "-m", "kvnode", "export", "--endpoint", served.endpoint]
    code, out, shown = on_a_terminal(*command, "-f", str(tmp_path / "all.jsonl"))
    assert code == 0
    assert out.startswith("2500 keys at revision 2501 in ")
    assert "exporting" in shown
    assert "100%" in shown
    assert "2500 keys" in shown
