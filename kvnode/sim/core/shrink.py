"""Shrinking: from a failing seed to a short list of faults and requests that still fails in the same way.

First the rates of the links and the like are turned to zero where the failure survives that, then events are left out,
half of them at once, then quarters, down to single ones (delta debugging; source: Zeller & Hildebrandt, 2002). Every
event has a generator of its own, so leaving some out shifts nothing of the others but what they cause. The result is
another run, of course, and its failure the same only by name; it is for reading, and the seed remains the proof.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import msgspec

from kvnode.sim.core.faults import FAULTS
from kvnode.sim.core.run import run_seed
from kvnode.sim.core.script import KNOBS, Event, Script, draw_script
from kvnode.sim.core.shape import draw_shape
from kvnode.sim.report import SeedReport

RUNS_MAX = 500


class Shrunk(msgspec.Struct, frozen=True):
    script: Script
    report: SeedReport  # of running it
    runs: int
    events_before: int

    def text(self) -> str:
        off = ", ".join(self.script.off) or "none"
        left = f"{len(self.script.events)} of {self.events_before} events"
        lines = [f"seed {self.script.seed}: {left} still fail after {self.runs} runs; rates turned to zero: {off}"]
        lines += [f"  at {event.at_ms} ms: {event.kind}" for event in self.script.events]
        lines.append(f"  {self.report.failure}")
        return "\n".join(lines)


def signature(failure: str) -> str:
    """What makes two failures the same: the invariant, or else the kind of error."""
    found = re.search(r"\bI\d+", failure)
    return found[0] if found else failure.partition(":")[0]


def shrink(
    seed: int, run: Callable[[Script], SeedReport] = lambda script: run_seed(script.seed, script=script)
) -> Shrunk | None:
    """None if the seed does not fail. `run` makes one run of a script."""
    script = draw_script(seed, draw_shape(seed, tuple(FAULTS)))
    report = run(script)
    if report.verdict != "failed":
        return None
    return _Shrinking(script, report, run).shrunk()


class _Shrinking:
    def __init__(self, script: Script, report: SeedReport, run: Callable[[Script], SeedReport]) -> None:
        self._script = script
        self._report = report
        self._run = run
        self._runs = 1
        self._events_before = len(script.events)

    def shrunk(self) -> Shrunk:
        for knob in KNOBS:
            self._try(msgspec.structs.replace(self._script, off=(*self._script.off, knob)))
        size = max(1, len(self._script.events) // 2)
        while True:
            self._leave_out(size)
            if size == 1 or self._runs >= RUNS_MAX:
                break
            size //= 2
        return Shrunk(self._script, self._report, self._runs, self._events_before)

    def _leave_out(self, size: int) -> None:
        """Every run of `size` consecutive events once, the newest first: what came after the failure goes at once."""
        end = len(self._script.events)
        while end > 0 and self._runs < RUNS_MAX:
            events: tuple[Event, ...] = self._script.events
            first = max(0, end - size)
            self._try(msgspec.structs.replace(self._script, events=events[:first] + events[end:]))
            end = first

    def _try(self, script: Script) -> None:
        """Keep the shorter script if it fails in the same way."""
        self._runs += 1
        report = self._run(script)
        if report.verdict == "failed" and signature(report.failure) == signature(self._report.failure):
            self._script, self._report = script, report
