"""Give up history without waiting for a command that does it."""

from __future__ import annotations

from typing import Any

from kvnode.machine.machine import StateMachine


def give_up_below(machine: StateMachine, revision: int) -> None:
    """The oldest revision that can be asked for is this one now; 0: all can. Nothing is removed."""
    owner: Any = getattr(machine, "_compaction", machine)
    owner.compact_revision = revision
