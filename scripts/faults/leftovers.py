"""Leftovers: what a run has made and is still there. After a proper end there is nothing.

What others have on this machine is none of it, also where there is no sandbox around us: their loop devices, the cables
of their containers, the control groups of another run.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from kvnode.bench.process import stat_fields
from scripts.faults import throttle

_CABLE = re.compile(r"^ *(veth\d):", re.MULTILINE)  # as the hub names them: at most seven nodes


def leftovers(home: Path) -> list[str]:
    """Processes, mounts, cables and control groups. `home`: what the names of all the run's directories begin with."""
    return [
        *(f"process {pid}" for pid in _children()),
        *(
            f"mount {place}"
            for place in mounts_below(home.parent, Path("/proc/self/mounts").read_text(encoding="utf-8"))
        ),
        *(f"link {name}" for name in _CABLE.findall(Path("/proc/net/dev").read_text(encoding="ascii"))),
        *(f"control group {path}" for path in throttle.ROOT.glob(f"{throttle.PREFIX}{home.name}*")),
    ]


def mounts_below(directory: Path, mounts: str) -> list[str]:
    """Mount points in `directory`, of a table as /proc has it (blanks are written \\040)."""
    beginning = str(directory.resolve()).replace(" ", "\\040") + "/"
    places = [line.split()[1] for line in mounts.splitlines()]
    return [place for place in places if place.startswith(beginning)]


def _children() -> list[int]:
    """Of this process, and alive."""
    found = []
    for child in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text(encoding="ascii").split():
        try:
            if stat_fields(int(child))[0] != "Z":
                found.append(int(child))
        except OSError:
            continue  # it has ended meanwhile
    return found
