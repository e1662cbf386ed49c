"""The table of scenarios in docs/testing.md is whole, and every file it names exists."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "testing.md").read_text(encoding="utf-8")
SECTION = PAGE.split("## Scenarios", 1)[1].split("\n## ", 1)[0]
ROW = re.compile(r"^\| S(\d+)(?:–S(\d+))? \| (.+) \|$", re.MULTILINE)


def test_every_scenario_of_the_core_has_one_row() -> None:
    rows = [(int(first), int(last or first)) for first, last, _ in ROW.findall(SECTION)]
    assert [number for first, last in rows for number in range(first, last + 1)] == list(range(1, 42))


def test_the_files_named_exist() -> None:
    named = re.findall(r"`((?:golden|[a-z]+)/[^`]+\.(?:txt|py))`", SECTION)
    assert len(named) > 41
    assert [name for name in named if not (TESTS / name.removeprefix("tests/")).is_file()] == []


def test_every_golden_script_of_the_core_is_mentioned() -> None:
    scripts = sorted(path.stem for path in (TESTS / "golden" / "raft").glob("*.txt"))
    assert [script for script in scripts if script not in SECTION] == []
