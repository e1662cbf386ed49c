"""Fault plan: counts the calls of a fake and makes chosen ones fail, or ends the process there.

*Changing* operations share one counter, `changes`; each kind of call, reads included, has its own (`count(kind)`).
`fail_at(n)` makes one call raise, `crash_at(n)` makes change n and everything after it raise SimulatedCrash, so
`for n in range(1, changes + 2)` visits the moment before every change and the one after the last.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

CHANGING = (
    "create",
    "mkdir",
    "pwrite",
    "preallocate",
    "truncate",
    "fdatasync",
    "fsync",
    "rename",
    "unlink",
    "fsync_dir",
    "lock",
)
_TRACE_MAX = 10_000


class SimulatedCrash(BaseException):
    """The process is gone. Not an Exception: a dead process handles nothing."""


class Operation(NamedTuple):
    """One call, as listed in `FakeDisk.trace`. `change` is its number among the changing ones, 0 for the others."""

    kind: str
    path: str
    offset: int
    length: int
    change: int


@dataclass(slots=True)
class PlannedFailure:
    at: int
    kind: str  # "" counts changing operations
    error: OSError
    short_write: int
    lasting: bool


class FaultPlan:
    """Base of FakeDisk: what is counted, what was called, what will fail."""

    def __init__(self) -> None:
        self.changes = 0
        self.trace: deque[Operation] = deque(maxlen=_TRACE_MAX)
        self._counts: dict[str, int] = {}
        self._failures: list[PlannedFailure] = []
        self._crash_at = 0
        self._crashed = False

    def crash_at(self, change: int) -> None:
        """The `change`-th changing operation does not happen; it and every call after it raise SimulatedCrash."""
        self._crash_at = change

    def fail_at(
        self,
        number: int,
        error: OSError | None = None,
        *,
        kind: str = "",
        short_write: int = 0,
        lasting: bool = False,
    ) -> None:
        """Make the `number`-th changing operation (or the `number`-th of `kind`), counted from the disk's start, raise.

        `error` is EIO unless given. A failing pwrite first writes `short_write` bytes; a failing fsync acts as
        `fsync_failure` says; nothing else has any effect. `lasting`: all later ones that match fail too.
        """
        error = error if error is not None else OSError(errno.EIO, os.strerror(errno.EIO))
        self._failures.append(PlannedFailure(number, kind, error, short_write, lasting))

    def is_to_fail(self, kind: str, *, after: int) -> bool:
        """Whether a call of `kind` behind the first `after` ones is planned to fail."""
        return any(failure.kind == kind and (failure.lasting or failure.at > after) for failure in self._failures)

    def count(self, kind: str) -> int:
        """Calls of one kind so far, failed ones included."""
        return self._counts.get(kind, 0)

    @property
    def crashed(self) -> bool:
        """The moment of `crash_at` has come."""
        return self._crashed

    def begin(self, kind: str, path: str, offset: int = 0, length: int = 0) -> PlannedFailure | None:
        """Count and trace one call. Returns the failure planned for it, raises SimulatedCrash past the crash."""
        change = self.changes + 1 if kind in CHANGING else 0
        if self._crashed or (change and change == self._crash_at):
            self._crashed = True
            raise SimulatedCrash(f"{kind} {path}")
        self.changes += 1 if change else 0
        self._counts[kind] = self._counts.get(kind, 0) + 1
        self.trace.append(Operation(kind, path, offset, length, change))
        for failure in self._failures:
            number = self._counts[kind] if failure.kind == kind else 0 if failure.kind else change
            if number and (number == failure.at or (failure.lasting and number > failure.at)):
                return failure
        return None

    def run(self, kind: str, path: str) -> None:
        """`begin` for a call whose failure has no effect of its own."""
        failure = self.begin(kind, path)
        if failure is not None:
            raise failure.error
