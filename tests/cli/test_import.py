"""`kvnode import` against the real front door: what is checked before, what is written, what is told."""

from __future__ import annotations

import json
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from kvnode import errors
from kvnode.cli.main import cli
from kvnode.client.http import Caller
from kvnode.client.importer import Importer
from kvnode.kv.requests import Put
from tests.cli.cluster import ServedNode, serving
from tests.cli.test_progress import on_a_terminal
from tests.client.test_importer import LOST, Once, ScriptedNode

Run = Callable[..., Result]

KEYS = {b"app/a": b"1", b"app/b": b"", b"app/\xff\x00": bytes(range(256)), "app/ü\n".encode(): b"two\nlines"}


@pytest.fixture
def served() -> Iterator[ServedNode]:
    with serving(ScriptedNode()) as found:
        yield found


@pytest.fixture
def node(served: ServedNode) -> ScriptedNode:
    assert isinstance(served.node, ScriptedNode)
    return served.node


@pytest.fixture
def run(served: ServedNode, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.setenv("KVNODE_ENDPOINTS", served.endpoint)
    monkeypatch.chdir(tmp_path)
    return lambda *arguments, stdin=b"": CliRunner().invoke(cli, arguments, input=stdin)


@pytest.fixture
def file(run: Run, node: ScriptedNode) -> Path:
    """An export of KEYS, which are gone."""
    for key, value in KEYS.items():
        node.put(key, value)
    assert run("export", "--prefix", "app/", "-f", "app.jsonl").exit_code == 0
    for key in KEYS:
        node.delete(key)
    return Path("app.jsonl")


def listed(run: Run, prefix: str) -> list[dict[str, Any]]:
    """What is there, without what an import makes anew."""
    lines = run("ls", prefix, "-o", "json").stdout.splitlines()
    new = {"create_revision", "mod_revision", "version", "time"}
    return [{name: value for name, value in json.loads(line).items() if name not in new} for line in lines]


def test_what_was_exported_comes_back(run: Run, node: ScriptedNode) -> None:
    for key, value in KEYS.items():
        node.put(key, value)
    before = listed(run, "app/")
    assert len(before) == 4
    run("export", "--prefix", "app/", "-f", "app.jsonl")
    run("del", "app/", "--prefix")
    result = run("import", "app.jsonl")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "4 created\n", "")
    assert listed(run, "app/") == before
    looks = len(node.executed)
    again = run("import", "app.jsonl", "-o", "json")
    assert len(node.executed) == looks + 4, "looked at once: there was nothing to write"
    assert json.loads(again.stdout) == {
        "revision": 5,
        "cluster_id": "00000000000000aa",
        "created": 0,
        "overwritten": 0,
        "same": 4,
        "skipped": 0,
        "leased": 0,
        "failed": 0,
        "unknown": 0,
        "whole": True,
        "dry_run": False,
    }
    assert len(node.done) == 4


def test_under_another_prefix(run: Run, file: Path) -> None:
    assert run("import", "app.jsonl").exit_code == 0
    assert run("import", "app.jsonl", "--prefix-map", "app/=copy=/").stdout == "4 created\n"
    assert run("ls", "copy=/").stdout_bytes == run("ls", "app/").stdout_bytes.replace(b"app/", b"copy=/")
    assert run("import", "app.jsonl", "--prefix-map", "apple").exit_code == 2
    other = run("import", "app.jsonl", "--prefix-map", "app/a=b")
    assert (other.exit_code, "not all of them start with 'app/a'" in other.stderr) == (2, True)
    assert run("import", "app.jsonl", "--prefix-map", "=deep/").stdout == "4 created\n"
    assert [item["key"] for item in listed(run, "deep/")][:2] == ["deep/app/a", "deep/app/b"]


def test_the_largest_values_travel(run: Run, node: ScriptedNode) -> None:
    values = {b"big/text": b"x" * (1 << 20), b"big/bytes": b"\xff" * (1 << 20), b"big/escaped": b'"' * (1 << 20)}
    for key, value in values.items():
        node.put(key, value)
    assert run("export", "--prefix", "big/", "-f", "big.jsonl").exit_code == 0
    assert run("import", "big.jsonl", "--prefix-map", "big/=copy/").stdout == "3 created\n"
    for key, value in values.items():
        assert run("get", f"copy/{key[4:].decode()}").stdout_bytes == value


def test_keys_with_another_value(run: Run, node: ScriptedNode, file: Path) -> None:
    node.put(b"app/a", b"mine")
    node.put(b"app/b", b"mine")
    fails = run("import", "app.jsonl")
    assert (fails.exit_code, fails.stdout) == (1, "0 created, 2 failed\n")
    assert "line 2: app/a: has another value, of revision 10" in fails.stderr
    assert "line 3: app/b: " in fails.stderr
    assert "[conflict]; nothing was written" in fails.stderr
    assert node.attempts == []
    dry = run("import", "app.jsonl", "--dry-run", "--on-conflict", "overwrite")
    assert (dry.exit_code, dry.stdout) == (0, "2 would be created, 2 would be overwritten\n")
    assert run("import", "app.jsonl", "--dry-run").exit_code == 1
    assert node.attempts == []
    assert run("import", "app.jsonl", "--on-conflict", "skip").stdout == "2 created, 2 keep another value\n"
    assert run("get", "app/a").stdout == "mine"
    assert (
        run("import", "app.jsonl", "--on-conflict", "overwrite").stdout
        == "0 created, 2 overwritten, 2 had their value already\n"
    )
    assert run("get", "app/a").stdout == "1"


def test_what_is_damaged_is_refused_before_anything_is_written(run: Run, node: ScriptedNode, file: Path) -> None:
    whole = file.read_bytes()
    lines = whole.splitlines(keepends=True)
    for data, code, words in [
        (b"".join(lines[:-1]), 5, "cut off after 4 keys"),
        (whole[:-200], 5, "cut off after 3 keys"),
        (whole.replace(b'"value":"1"', b'"value":"2"'), 5, "the digest differs"),
        (whole.replace(b'"kvnode_export":1', b'"kvnode_export":2'), 1, "an export of version 2"),
        (b"something else\n", 1, "no export of kvnode"),
    ]:
        file.write_bytes(data)
        result = run("import", "app.jsonl")
        assert (result.exit_code, words in result.stderr) == (code, True), result.stderr
        assert "nothing was written" in result.stderr
        assert len(result.stderr.splitlines()) == 1
    assert node.attempts == []


def test_partial_takes_what_is_there(run: Run, file: Path) -> None:
    whole = file.read_bytes()
    file.write_bytes(b"".join(whole.splitlines(keepends=True)[:3]) + b'{"key":"app/c","va')
    result = run("import", "app.jsonl", "--partial")
    assert (result.exit_code, result.stdout) == (0, "2 created\n")
    assert "app.jsonl is not whole; its 2 keys were taken" in result.stderr
    file.write_bytes(whole.replace(b'"value":"1"', b'"value":"2"'))
    edited = run("import", "app.jsonl", "--partial", "--on-conflict", "overwrite", "-o", "json")
    assert json.loads(edited.stdout)["whole"] is False
    assert run("get", "app/a").stdout == "2"


def test_standard_input_is_checked_as_it_goes(run: Run, node: ScriptedNode) -> None:
    for number in range(1_000):
        node.put(b"many/%04d" % number, b"v")
    whole = run("export", "--prefix", "many/").stdout_bytes
    good = run("import", "-", "--prefix-map", "many/=good/", stdin=whole)
    assert (good.exit_code, good.stdout) == (0, "1000 created\n")
    assert "standard input is checked as it is read" in good.stderr
    cut = run("import", "-", "--prefix-map", "many/=cut/", stdin=whole[:-300])
    assert cut.exit_code == 5
    assert "cut off after 998 keys" in cut.stderr
    assert "keys were written" in cut.stderr
    node.put(b"good/0001", b"mine")
    result = run("import", "-", "--prefix-map", "many/=good/", stdin=whole)
    assert (result.exit_code, "line 3: good/0001: has another value" in result.stderr) == (1, True)


def test_keys_under_a_lease_are_left_out(run: Run, served: ServedNode, node: ScriptedNode) -> None:
    """Imported without its lease, a place in the queue of a lock would hold it for ever."""
    run("put", "app/kept", "1")
    run("put", "app/service", "alive", "--ttl", "60s")
    caller = Caller([served.endpoint], 5_000)
    token = caller.call("POST", "/v1/locks/app/lock").json()["token"]
    assert run("export", "--prefix", "app/", "-f", "app.jsonl").exit_code == 0
    caller.call("DELETE", "/v1/locks/app/lock", {"token": str(token)})
    run("del", "app/", "--prefix")
    result = run("import", "app.jsonl")
    assert (result.exit_code, result.stdout) == (0, "1 created, 2 left out\n")
    assert "left out because they were under a lease: 2 (--with-leased)" in result.stderr
    assert run("ls", "app/").stdout == "app/kept\n"
    assert caller.call("GET", "/v1/locks/app/lock").json()["holder"] is None
    assert run("import", "app.jsonl", "--with-leased").stdout == "2 created, 1 had their value already\n"
    assert [item["lease"] for item in listed(run, "app/")] == [0, 0, 0]


def test_what_is_too_large_for_the_cluster_is_named(run: Run, node: ScriptedNode, file: Path) -> None:
    arguments = ("import", "app.jsonl", "--prefix-map", "app/=" + "x" * 4_095)
    compared = run(*arguments)
    assert (compared.exit_code, compared.stdout) == (1, "0 created, 2 failed\n")
    result = run(*arguments, "--on-conflict", "skip")
    assert (result.exit_code, result.stdout) == (1, "2 created, 2 failed\n")
    assert "line 4: xxx" in result.stderr
    assert "[too_large]" in result.stderr
    assert "not all was imported; 2 keys were written" in result.stderr


def test_lost_answers_and_the_exit_code(run: Run, node: ScriptedNode, file: Path) -> None:
    node.before = Once(errors.NoLeader("none"), times=1 << 30)
    result = run("import", "app.jsonl", "--timeout", "100ms")
    assert (result.exit_code, "[no_leader]; nothing was written" in result.stderr) == (3, True)
    node.before = Once(LOST, times=1 << 30)
    result = run("import", "app.jsonl", "--timeout", "100ms")
    assert (result.exit_code, result.stdout) == (4, "0 created, 4 unknown\n")
    assert "0 keys were written, 4 more may have been; given again, it goes on" in result.stderr
    node.before = lambda put: None
    node.after = Once(LOST)
    assert run("import", "app.jsonl").stdout == "4 created\n"
    assert run("import", "app.jsonl", "--endpoint", "127.0.0.1:1", "--timeout", "100ms").exit_code == 3


def test_interrupted_and_given_again(run: Run, node: ScriptedNode, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(2_000):
        node.put(b"many/%04d" % number, b"v")
    assert run("export", "--prefix", "many/", "-f", "many.jsonl").exit_code == 0
    write = Importer.write

    def until_ctrl_c(*arguments: Any) -> Any:
        for number, tally in enumerate(work := write(*arguments)):
            if number == 4:
                work.close()
                raise KeyboardInterrupt
            yield tally

    arguments = ("import", "many.jsonl", "--prefix-map", "many/=copy/")
    with monkeypatch.context() as patch:
        patch.setattr(Importer, "write", until_ctrl_c)
        result = run(*arguments)
    done = len(node.done)
    assert 0 < done < 2_000
    assert (result.exit_code, result.stdout) == (4, f"{done} created\n")
    assert f"interrupted; {done} keys were written; given again, it goes on" in result.stderr
    assert run(*arguments).stdout == f"{2_000 - done} created, {done} had their value already\n"
    assert len(node.done) == 2_000, "each once"


def test_interrupted_before_anything_was_written(run: Run, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ctrl_c(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Importer, "compare", ctrl_c)
    result = run("import", "app.jsonl")
    assert (result.exit_code, result.stdout) == (3, "0 created\n")
    assert result.stderr == "kvnode: interrupted; nothing was written\n"


@pytest.mark.slow
def test_a_bar_on_a_terminal(run: Run, served: ServedNode, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = file.absolute()
    monkeypatch.chdir(Path(__file__).parent.parent.parent)
    code, out, shown = on_a_terminal(
        sys.executable, "-m", "kvnode", "import", str(path), "--endpoint", served.endpoint, "--on-conflict", "skip"
    )
    assert (code, out) == (0, "4 created\n")
    assert re.search(r"checking .*100%.*importing .*100%.*4 keys", shown, re.DOTALL)


@pytest.mark.slow
def test_a_pipe_by_name_is_a_stream(run: Run, file: Path) -> None:
    whole = file.read_bytes()
    os.mkfifo("pipe")
    thread = threading.Thread(target=lambda: Path("pipe").write_bytes(whole))
    thread.start()
    result = run("import", "pipe")
    thread.join(10)
    assert (result.exit_code, result.stdout) == (0, "4 created\n")
    assert "pipe is checked as it is read" in result.stderr


@pytest.mark.parametrize("name", ["missing.jsonl", "."])
def test_what_cannot_be_read(run: Run, name: str) -> None:
    result = run("import", name)
    assert result.exit_code == 2
    assert f"cannot read {name}" in result.stderr


def test_put_is_what_travels(node: ScriptedNode, run: Run, file: Path) -> None:
    """The condition stands in every write: nothing is overwritten that was not seen."""
    assert run("import", "app.jsonl").exit_code == 0
    assert {request.if_revision for request in node.executed if isinstance(request, Put)} == {0}
