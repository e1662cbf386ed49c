"""``kvnode wal``: what it prints and how it exits."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner, Result

from kvnode.cli.wal import wal
from tests.storage.test_wal_verify import make, simple
from tests.storage.wal_world import entry, persist


def run(*arguments: str) -> Result:
    return CliRunner().invoke(wal, arguments)


def test_dump_prints_one_json_object_a_line(tmp_path: Path) -> None:
    make(tmp_path / "wal", *simple(20))
    result = run("dump", str(tmp_path))
    assert result.exit_code == 0
    assert [json.loads(line)["index"] for line in result.stdout.splitlines()] == list(range(1, 21))
    limited = run("dump", str(tmp_path), "--from", "7", "--limit", "3")
    assert [json.loads(line)["index"] for line in limited.stdout.splitlines()] == [7, 8, 9]
    everything = run("dump", str(tmp_path / "wal"), "--all")
    assert "hard_state" in everything.stdout


def test_verify_prints_a_table_and_succeeds(tmp_path: Path) -> None:
    one = make(tmp_path / "n1" / "wal", *simple(20), member=1)
    other = make(tmp_path / "n2" / "wal", *simple(15), member=2)
    result = run("verify", one, other)
    assert result.exit_code == 0
    head, first, second, verdict = result.stdout.splitlines()
    assert head.split()[:3] == ["log", "member", "entries"]
    assert first.split()[:4] == [one, "1", "1-20", "1"]
    assert second.split()[:3] == [other, "2", "1-15"]
    assert verdict == "The 2 logs match."
    assert run("verify", one).stdout.splitlines()[-1] == "No violation found."


def test_verify_exits_1_and_names_each_violation(tmp_path: Path) -> None:
    one = make(tmp_path / "n1", *simple(20), member=1)
    other = make(tmp_path / "n2", *simple(19), [persist(20, entry(20, text=b"other"))], member=2)
    result = run("verify", one, other)
    assert result.exit_code == 1
    assert f"{one} and {other}, index 20: different entries of one term 1" in result.stderr
    assert "1 violation found." in result.stderr


def test_a_directory_without_a_log_is_an_error(tmp_path: Path) -> None:
    for command in ("dump", "verify"):
        result = run(command, str(tmp_path))
        assert result.exit_code == 1
        assert "holds no log" in result.stderr


def test_a_dump_does_not_end_quietly_at_damage(tmp_path: Path) -> None:
    home = make(tmp_path / "wal", *simple(20))
    line = [json.loads(text) for text in run("dump", home).stdout.splitlines()][9]
    file = Path(home) / line["segment"]
    data = bytearray(file.read_bytes())
    data[line["offset"] + 8] ^= 1
    file.write_bytes(data)
    result = run("dump", home)
    assert result.exit_code == 1
    assert f"offset {line['offset']}: no valid record" in result.stderr
    assert result.stdout == ""
