"""Command: a tool of the system, run to its end. One that fails is no finding about kvnode."""

from __future__ import annotations

import subprocess


class CommandFailed(subprocess.SubprocessError):
    """What was run, and what it said."""


def run(*command: str) -> str:
    """What it said. Raises: CommandFailed, TimeoutExpired; FileNotFoundError without the tool."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise CommandFailed(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout
