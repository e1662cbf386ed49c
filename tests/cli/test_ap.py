"""`kvnode ap` against the real front door: bytes, contexts, several values, forms of output, exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from click.testing import Result

from kvnode import errors
from tests.api.fake_available import FakeAvailable

Run = Callable[..., Result]


@pytest.fixture
def run(run_alone: Run) -> Run:
    return partial(run_alone, "ap")


def test_put_get_delete(run: Run, tmp_path: Path) -> None:
    value = bytes(range(256))
    assert run("put", "raw", "-", stdin=value).exit_code == 0
    assert run("get", "raw").stdout_bytes == value
    file = tmp_path / "value"
    file.write_bytes(value[::-1])
    assert run("put", "raw", f"@{file}", "--replace").exit_code == 0
    assert run("get", "raw").stdout_bytes == value[::-1]
    gone = run("delete", "raw")
    assert gone.exit_code == 0
    missing = run("get", "raw")
    assert (missing.exit_code, missing.stdout) == (1, "")
    assert "[key_not_found]" in missing.stderr
    assert run("put", "raw", "again", "--context", gone.stdout.strip()).exit_code == 0
    assert run("get", "raw").stdout == "again"


@pytest.mark.parametrize("key", ["a b+c", "ü", "..", "x/../y", "-dash", "%41", "a\nb"])
def test_keys_arrive_unchanged(run: Run, key: str) -> None:
    assert run("put", "--", key, key).exit_code == 0
    assert run("get", "--", key).stdout_bytes == key.encode()
    assert run("list", "-o", "plain", "--", key).stdout_bytes == key.encode() + b"\n"


def test_several_values(run: Run) -> None:
    run("put", "k", "one")
    run("put", "k", "two\x1b[31m")
    several = run("get", "k")
    assert several.exit_code == 1
    assert [line.split("  ")[1] for line in several.stdout.splitlines()] == ["one", "two\\x1b[31m"]
    assert "2 values were written apart" in several.stderr
    assert run("get", "k", "--resolve", "lww").stdout == "two\x1b[31m"
    shown = run("get", "k", "-o", "json")
    assert shown.exit_code == 0
    answer = json.loads(shown.stdout)
    assert [each["value"] for each in answer["siblings"]] == ["one", "two\x1b[31m"]
    put = run("put", "k", "three", "--context", answer["context"], "-o", "json")
    assert json.loads(put.stdout).keys() == {"context", "time"}
    assert run("get", "k").stdout == "three"
    run("put", "k", "four")
    assert run("put", "k", "five", "--replace").exit_code == 0
    assert run("get", "k").stdout == "five"
    assert json.loads(run("get", "k", "-o", "json").stdout)["value"] == "five"


def test_the_first_write_may_replace_nothing(run: Run) -> None:
    assert run("put", "new", "v", "--replace").exit_code == 0
    assert run("get", "new").stdout == "v"


def test_lists(run: Run, plane: FakeAvailable) -> None:
    for n in range(3):
        run("put", f"a/{n}", str(n))
    run("put", "a/1", "x")
    run("put", "b", "v")
    assert run("list", "a/").stdout == "a/0\na/1\na/2\n"
    assert run("list", "a/", "--limit", "2").stdout == "a/0\na/1\n"
    items = [json.loads(line) for line in run("list", "-o", "json").stdout.splitlines()]
    assert [item["key"] for item in items] == ["a/0", "a/1", "a/2", "b"]
    table = [line.split() for line in run("list", "-o", "table").stdout.splitlines()]
    assert [row[::2] for row in table] == [
        ["key", "value"],
        ["a/0", "0"],
        ["a/1", "1"],
        ["a/1", "x"],
        ["a/2", "2"],
        ["b", "v"],
    ]
    assert run("list", "none/").stdout == ""


def test_long_lists_come_page_by_page(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvnode.cli.ap._PAGE_ITEMS", 2)
    for n in range(5):
        run("put", str(n), "v")
    assert run("list").stdout == "0\n1\n2\n3\n4\n"


def test_refusals_and_outcomes(run: Run, plane: FakeAvailable) -> None:
    refused = run("put", "k", "v", "--context", "OTk5")
    assert refused.exit_code == 1
    assert "[bad_context]" in refused.stderr
    assert "Kv-Outcome: not-applied" in refused.stderr
    plane.fail = errors.Timeout("not durable in time")
    unknown = run("put", "k", "v")
    assert unknown.exit_code == 4
    assert "Kv-Outcome: unknown" in unknown.stderr
    assert run("delete", "k").exit_code == 4
    assert run("put", "k", "v", "--replace").exit_code == 3, "nothing was written: it did not come to that"
    assert run("get", "k").exit_code == 3
    assert run("list").exit_code == 3
    assert run("put", "k", "v", "--replace", "--context", "c").exit_code == 2
    assert run("get", "k", "--resolve", "newest").exit_code == 2
