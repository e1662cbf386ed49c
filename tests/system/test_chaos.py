"""The harness itself, without any privilege: a short run passes, says what it skipped, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.system

ROOT = Path(__file__).parent.parent.parent


def start(home: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "scripts/chaos.py",
        "--home",
        str(home),
        "--seed",
        "1",
        "--network",
        "proxies",
        *arguments,
    ]
    environment = {**os.environ, "KVNODE_CHAOS_SANDBOX": "none"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.timeout(240)
def test_a_short_run_passes_and_leaves_nothing(tmp_path: Path) -> None:
    run = start(tmp_path, "--minutes", "0.12", "--faults", "kill", "--faults", "partition")
    said, _ = run.communicate(timeout=200)
    assert run.returncode == 0, said
    assert "proxies, 3 nodes, seed 1: PASSED" in said
    assert "images     skipped: mounting a loop device needs root" in said
    assert "faults that struck: 0" not in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.timeout(240)
def test_an_interrupt_ends_the_run_with_its_verdict(tmp_path: Path) -> None:
    run = start(tmp_path, "--minutes", "10", "--faults", "kill")
    assert run.stdout is not None
    for line in run.stdout:
        if line.startswith("[proxies"):
            break
    run.send_signal(signal.SIGINT)
    said, _ = run.communicate(timeout=200)
    assert run.returncode == 0, said
    assert "verdict: proxies passed" in said
