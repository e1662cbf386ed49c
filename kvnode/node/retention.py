"""Retention: what the leader gives up of the past, and when. A duty.

Age: the revision that was the newest `history.retention_ms` ago becomes the floor, so that exactly this far back can be
read. The present is the hybrid time of the newest entry: no wall clock by itself gives up what cannot be had back, and
where nothing happens nothing has to go. Size: while history exceeds `history.budget_bytes` the floor moves up
`history.compact_revisions` at a time, each step swept before the next, and never beyond the newest revision.

What lies below the floor is swept one entry of `history.sweep_changes` after the other, a millisecond or two of work
on each node. The next waits three times as long as the last took from its proposal to its application (`duties`), so
that sweeping slows down with the cluster; the further it is behind the floor the more an entry takes: it keeps up.
"""

from __future__ import annotations

from kvnode.clocks import hybrid
from kvnode.config import HistorySection
from kvnode.kv.requests import Compact, Sweep
from kvnode.machine.machine import StateMachine

BACKLOG_PART = 64
MORE_MAX = 8
"""An entry takes this part of the revisions to be swept, if that is more than usual, up to so many times as much."""

LOOK_MS = 1_000
"""An age is looked up this often: it takes a dozen seeks."""


class Retention:
    """Lives on the node's loop; see `duties`."""

    def __init__(self, machine: StateMachine, settings: HistorySection) -> None:
        self._machine = machine
        self._settings = settings
        self._compacted_ms = 0
        self._looked_ms = 0

    def begin(self, now_ms: int) -> None:
        """Counts from now: an earlier leader may have compacted just before."""
        self._compacted_ms = self._looked_ms = now_ms

    def end(self) -> None:
        """Nothing is kept."""

    def decide(self, now_ms: int) -> Compact | Sweep | None:
        machine = self._machine
        if now_ms - self._looked_ms >= LOOK_MS:
            self._looked_ms = now_ms
            if (revision := self._aged(now_ms)) is not None:
                self._compacted_ms = now_ms
                return Compact(revision)
        if machine.swept_revision < machine.compact_revision:
            return self._sweep(machine.compact_revision - machine.swept_revision)
        return self._within_budget()

    def _sweep(self, behind: int) -> Sweep:
        least = self._settings.sweep_changes
        return Sweep(self._machine.compact_revision, min(max(least, behind // BACKLOG_PART), MORE_MAX * least))

    def _aged(self, now_ms: int) -> int | None:
        """The floor that age asks for, if it is time to move it."""
        settings, machine = self._settings, self._machine
        time = machine.applied_time - (settings.retention_ms << hybrid.COUNTER_BITS)
        if not settings.retention_ms or time <= 0:
            return None
        revision = machine.revision_at(time)
        due = revision - max(machine.compact_revision, 1)
        if due <= 0 or (due < settings.compact_revisions and now_ms - self._compacted_ms < settings.compact_ms):
            return None
        return revision

    def _within_budget(self) -> Compact | None:
        settings, machine = self._settings, self._machine
        if not settings.budget_bytes or machine.history_bytes <= settings.budget_bytes:
            return None
        revision = min(machine.revision, machine.compact_revision + settings.compact_revisions)
        return Compact(revision) if revision > machine.compact_revision else None
