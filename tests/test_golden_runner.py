"""Golden scripts: what is compared, what is set-up, what a rewrite keeps."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden_runner import parse, run_script

SCRIPT = """\
# What it proves.
say nothing-of-this

# Why this comes next.
say a; say b
say c
----
{trace}
"""


def say(command: str) -> list[str]:
    verb, word = command.split()
    assert verb == "say", "no such command"
    return [word]


def script(folder: Path, trace: str) -> Path:
    path = folder / "script.txt"
    path.write_text(SCRIPT.format(trace=trace), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def _compare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KVNODE_GOLDEN_REWRITE", raising=False)


def test_a_trace_is_compared_and_set_up_is_not(tmp_path: Path) -> None:
    run_script(script(tmp_path, "a\nb\nc"), say)
    with pytest.raises(AssertionError, match=r"script\.txt, block at line 4"):
        run_script(script(tmp_path, "a\nb"), say)


def test_a_rewrite_changes_traces_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVNODE_GOLDEN_REWRITE", "1")
    path = script(tmp_path, "old")
    run_script(path, say)
    assert path.read_text(encoding="utf-8") == SCRIPT.format(trace="a\nb\nc")


def test_an_error_names_the_command(tmp_path: Path) -> None:
    path = tmp_path / "script.txt"
    path.write_text("# Proves nothing.\nsay a; shout b\n", encoding="utf-8")
    with pytest.raises(AssertionError, match="no such command") as caught:
        run_script(path, say)
    assert caught.value.__notes__ == ["script.txt, block at line 1: shout b"]


def test_a_script_says_what_it_proves() -> None:
    with pytest.raises(AssertionError, match="comment on what it proves"):
        parse("say a\n")
