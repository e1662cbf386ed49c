"""The clients' history is judged with what the store shows at the end; a contradiction leaves a report to read."""

from __future__ import annotations

from pathlib import Path

from kvnode.check.history import Operation, Seen
from scripts.faults.aftermath import judge

PUT = Operation(client=1, op="put", call=1, ret=2, key="c/0/1", arg="v1", rev=2)


def test_what_was_acknowledged_and_is_there_is_no_problem(tmp_path: Path):
    assert judge([PUT], {"c/0/1": Seen("c/0/1", "v1", 2, 1)}, tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_a_lost_write_is_told_and_reported(tmp_path: Path):
    problems = judge([PUT], {}, tmp_path)
    assert problems
    assert "c/0/1" in (tmp_path / "verdict.txt").read_text(encoding="utf-8")
    assert "<" in (tmp_path / "verdict.html").read_text(encoding="utf-8")


def test_giving_up_is_a_problem_and_reported(tmp_path: Path):
    (problem,) = judge([PUT], {"c/0/1": Seen("c/0/1", "v1", 2, 1)}, tmp_path, budget=0)
    assert problem.startswith("the checker gave up: history: UNKNOWN (1 operation: ")
    assert "This is not a pass" in (tmp_path / "verdict.txt").read_text(encoding="utf-8")
