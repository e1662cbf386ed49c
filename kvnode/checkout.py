"""The checkout that the running code comes from, for reports that somebody will want to repeat."""

from __future__ import annotations

import subprocess
from pathlib import Path


def revision() -> str:
    """The checkout's commit; "-dirty" if files differ from it; "unknown" outside one."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)  # noqa: S603 - all ours
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return found.stdout.strip() or "unknown"
