"""Runs the golden scripts of the core (tests/golden/raft); `tests.raft.conversation` is their language."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden_runner import run_script
from tests.raft.conversation import Conversation

SCRIPTS = sorted((Path(__file__).parents[1] / "golden" / "raft").glob("*.txt"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_golden(path: Path) -> None:
    run_script(path, Conversation())
