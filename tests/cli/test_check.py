"""``kvnode check``: what it prints, what it writes, how it exits."""

from __future__ import annotations

from pathlib import Path
from random import Random

import msgspec
from click.testing import CliRunner, Result

from kvnode.check.history import encode_lines
from kvnode.cli.check import check
from tests.check.histories import History, Shape, legal
from tests.check.mutations import acknowledged_but_gone, stale_read


def run(*arguments: str) -> Result:
    return CliRunner().invoke(check, arguments)


def save(path: Path, history: History) -> str:
    path.write_bytes(b"".join(encode_lines(history.operations)))
    return str(path)


def save_final(path: Path, history: History) -> str:
    path.write_bytes(b"".join(msgspec.json.encode(seen) + b"\n" for seen in history.final.values()))
    return str(path)


def test_a_legal_history_exits_0(tmp_path: Path):
    history = legal(1, Shape())
    final = save_final(tmp_path / "final", history)
    result = run(save(tmp_path / "history", history), "--final", final)
    assert (result.exit_code, result.stdout.partition(" (")[0]) == (0, "history: ok")


def test_an_illegal_one_exits_1_and_is_drawn(tmp_path: Path):
    history = stale_read(Random(1), legal(1, Shape()))
    assert history is not None
    page = tmp_path / "timeline.html"
    result = run(save(tmp_path / "history", history), "--html", str(page))
    assert result.exit_code == 1
    assert "First impossible point" in result.stdout
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_lost_write_shows_in_the_final_state(tmp_path: Path):
    history = acknowledged_but_gone(Random(1), legal(1, Shape()))
    assert history is not None
    path = save(tmp_path / "history", history)
    assert run(path).exit_code == 0
    result = run(path, "--final", save_final(tmp_path / "final", history))
    assert result.exit_code == 1
    assert "in the end" in result.stdout


def test_giving_up_exits_4(tmp_path: Path):
    result = run(save(tmp_path / "history", legal(2, Shape())), "--budget", "3")
    assert result.exit_code == 4
    assert "UNKNOWN" in result.stdout


def test_others_may_write(tmp_path: Path):
    history = legal(3, Shape(unanswered=0.0, keys=2, kinds=("put", "get")))
    own = History([one for one in history.operations if one.key == "k0"], {}, 0)
    path = save(tmp_path / "history", own)
    assert run(path).exit_code == 1
    assert run(path, "--others-write").exit_code == 0


def test_a_file_that_holds_no_history_exits_2(tmp_path: Path):
    path = tmp_path / "history"
    path.write_text('{"client": 1, "op": "put"}\n')
    result = run(str(path))
    assert result.exit_code == 2
    assert "line 1 is no operation" in result.stderr
    path.write_text('{"client": 1, "op": "get", "key": "k", "call": 5, "ret": 4}\n')
    result = run(str(path))
    assert result.exit_code == 2
    assert "operation 1: returned before it was called" in result.stderr


def test_a_file_that_holds_no_final_state_exits_2(tmp_path: Path):
    final = tmp_path / "final"
    final.write_text('{"key": "k", "value": "v", "mod": 2}\n{"key": "m"}\n')
    result = run(save(tmp_path / "history", legal(1, Shape())), "--final", str(final))
    assert result.exit_code == 2
    assert "line 2 is no item of a final state" in result.stderr
