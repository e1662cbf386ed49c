"""How far a long command has come: lines for logs, a bar for terminals."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from kvnode.cli.progress import EVERY_S, Progress


def test_a_line_every_few_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    now_s = 0.0
    with Progress("importing", 1_000, now_s=lambda: now_s) as progress:
        for time_s in (EVERY_S - 1, EVERY_S, EVERY_S + 1, 2 * EVERY_S):
            now_s = time_s
            progress.advance(100, 7)
        progress.finish()
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == "kvnode: importing: 14 keys (20 %)\nkvnode: importing: 28 keys (40 %)\n"


def test_without_a_total_there_is_no_part_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    now_s = 0.0
    with Progress("exporting", now_s=lambda: now_s) as progress:
        now_s = EVERY_S
        progress.advance(5, 5)
        progress.finish()
    assert capsys.readouterr().err == "kvnode: exporting: 5 keys\n"


def on_a_terminal(*command: str, environment: dict[str, str] | None = None) -> tuple[int, str, str]:
    """→ (exit code, standard output, what the terminal shows of standard error)."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=theirs, env={**os.environ, "TERM": "xterm", **(environment or {})}
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            piece = os.read(ours, 65_536)
        except OSError:  # all have closed it
            break
        if not piece:
            break
        shown += piece
    os.close(ours)
    out, _ = process.communicate(timeout=30)
    return process.returncode, out.decode(), shown.decode()


@pytest.mark.slow
def test_a_bar_on_a_terminal() -> None:
    code = """
from kvnode.cli.progress import Progress
with Progress("importing", 1000) as progress:
    progress.advance(300, 3)
    progress.advance(600, 6)
    progress.finish()
"""
    status, out, shown = on_a_terminal(sys.executable, "-c", code)
    assert (status, out) == (0, "")
    assert "importing" in shown
    assert "100%" in shown
    assert "9 keys" in shown
