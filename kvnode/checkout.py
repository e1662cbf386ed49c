"""The checkout that the running code comes from, for reports that somebody will want to repeat."""

from __future__ import annotations

import hashlib
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


def source_digest(package: Path = Path(__file__).parent) -> bytes:
    """32 bytes of SHA-256 over a package's modules (kvnode's), with their names: the same code, the same digest."""
    whole = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        content = path.read_bytes()
        whole.update(f"{path.relative_to(package).as_posix()} {len(content)}\n".encode())
        whole.update(content)
    return whole.digest()
