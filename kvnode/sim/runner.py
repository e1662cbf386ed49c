"""Runner: many seeds of one or both tiers in worker processes, with progress, a summary and an exit code.

Which seeds: `start`, `start + 1`, …; a fresh start is drawn by the caller and printed with every failure's replay
command, so nothing is lost when the screen is. With two tiers the next seed goes to the one that has used less
processor time. The run ends when all seeds are done, when its time is over, or by Ctrl-C; always with a summary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import IO

import msgspec

from kvnode.sim import summary
from kvnode.sim.core.shrink import shrink
from kvnode.sim.pool import run_jobs
from kvnode.sim.report import SeedReport, Tier
from kvnode.sim.summary import Tally
from kvnode.sim.trace import first_difference
from kvnode.sim.worker import Job, tier_module

CPU_LIMIT_S = 120.0
"""Processor time one seed may take; the slowest takes a few seconds."""

PLAIN_EVERY_S = 15.0
SCREEN_EVERY_S = 0.2
PASSED, FAILED, INTERRUPTED = 0, 1, 130


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to run. `seeds` is a number a tier; None: as many as fit into `seconds`."""

    tiers: tuple[Tier, ...]
    start: int
    seeds: int | None
    jobs: int
    seconds: float | None = None
    cpu_limit_s: float = CPU_LIMIT_S

    def __post_init__(self) -> None:
        assert self.tiers, "no tier"
        assert self.jobs >= 1, self.jobs
        assert self.seeds is not None or self.seconds is not None, "without an end"


class Screen:
    """Where a long run tells how far it is: one line rewritten on a terminal, a line now and then elsewhere."""

    def __init__(self, out: IO[str]) -> None:
        self._out = out
        self._is_terminal = out.isatty()
        self._every_s = SCREEN_EVERY_S if self._is_terminal else PLAIN_EVERY_S
        self._said_at = time.monotonic()
        self._width = 0

    def progress(self, line: Callable[[], str]) -> None:
        now = time.monotonic()
        if now - self._said_at < self._every_s:
            return
        self._said_at = now
        text = line()
        if self._is_terminal:
            self._out.write("\r" + text.ljust(self._width))
            self._width = len(text)
        else:
            self._out.write(text + "\n")
        self._out.flush()

    def say(self, text: str) -> None:
        if self._is_terminal and self._width:
            self._out.write("\r" + " " * self._width + "\r")
            self._width = 0
        self._out.write(text + "\n")
        self._out.flush()


def run(plan: Plan, out: IO[str], *, json_file: Path | None = None, is_verbose: bool = False) -> int:
    """Run the plan and print what came of it; an exit code. Raises: TierMissing."""
    tallies = {tier: Tally(tier, marks_of(tier), getattr(tier_module(tier), "RARE_MARKS", ())) for tier in plan.tiers}
    screen, began, is_interrupted = Screen(out), time.monotonic(), False
    lines = json_file.open("wb") if json_file is not None else None
    try:
        with closing(run_jobs(_feed(plan, tallies), plan.jobs)) as answers:
            for done in answers:
                if done is not None:
                    _note(done.report, tallies, screen, lines, is_verbose=is_verbose)
                screen.progress(lambda: _progress_line(plan, tallies, time.monotonic() - began))
    except KeyboardInterrupt:
        is_interrupted = True
    finally:
        if lines is not None:
            lines.close()
    screen.say(summary.summary_text(list(tallies.values()), time.monotonic() - began, is_interrupted=is_interrupted))
    if any(tally.complaints() for tally in tallies.values()):
        return FAILED
    return INTERRUPTED if is_interrupted else PASSED


def marks_of(tier: Tier) -> Mapping[str, str]:
    """The coverage marks a tier promises to meet, with their meaning. Raises: TierMissing."""
    marks: Mapping[str, str] = getattr(tier_module(tier), "MARKS", {})
    return marks


def _feed(plan: Plan, tallies: Mapping[Tier, Tally]) -> Iterator[Job]:
    """The jobs, one by one, as workers become free."""
    ends_at = None if plan.seconds is None else time.monotonic() + plan.seconds
    given = dict.fromkeys(plan.tiers, 0)
    while ends_at is None or time.monotonic() < ends_at:
        open_ = [tier for tier in plan.tiers if plan.seeds is None or given[tier] < plan.seeds]
        if not open_:
            return
        tier = min(open_, key=lambda tier: (tallies[tier].cpu_s, given[tier]))
        yield Job(tier, plan.start + given[tier], plan.cpu_limit_s)
        given[tier] += 1


def _note(
    report: SeedReport, tallies: Mapping[Tier, Tally], screen: Screen, lines: IO[bytes] | None, *, is_verbose: bool
) -> None:
    tallies[report.tier].add(report)
    if lines is not None:
        lines.write(msgspec.json.encode(report) + b"\n")
    if report.verdict == "failed":
        screen.say(summary.failure_text(report))
    elif is_verbose:
        counts = ", ".join(f"{count} {name}" for name, count in sorted(report.counts.items()))
        screen.say(
            f"{report.tier} seed {report.seed}: {report.verdict}, {report.virtual_ms / 1000:.1f} simulated s "
            f"in {report.real_s:.2f} s, trace {report.trace}; {counts}"
        )


def _progress_line(plan: Plan, tallies: Mapping[Tier, Tally], elapsed_s: float) -> str:
    parts = []
    for tier, tally in tallies.items():
        of = f"/{plan.seeds}" if plan.seeds is not None else ""
        parts.append(
            f"{tier} {tally.seeds}{of} seeds, {tally.seeds / elapsed_s:.1f}/s, {tally.ratio:.0f}x real time, "
            f"{len(tally.failures)} failed, {len(tally.useless)} useless"
        )
    clock = f"{elapsed_s:.0f} s" + (f" of {plan.seconds:.0f}" if plan.seconds is not None else "")
    return f"{clock}: " + "; ".join(parts)


def replay(tier: Tier, seed: int, out: IO[str]) -> int:
    """One seed, in a worker like all others, with everything it can tell; an exit code. Raises: TierMissing."""
    marks_of(tier)
    jobs = iter([Job(tier, seed, CPU_LIMIT_S)])
    with closing(run_jobs(jobs, workers=1)) as answers:
        report = next(done.report for done in answers if done is not None)
    if report.verdict == "failed":
        out.write(summary.failure_text(report) + "\n")
    out.write(
        f"{tier} seed {seed}: {report.verdict}; {report.virtual_ms / 1000:.1f} simulated s in {report.real_s:.2f} s, "
        f"{report.steps} steps, trace {report.trace}\n"
    )
    for title, table in (("counts", report.counts), ("marks", report.marks)):
        text = ", ".join(f"{name} {number}" for name, number in sorted(table.items()))
        out.write(f"  {title}: {text or 'none'}\n")
    return FAILED if report.verdict == "failed" else PASSED


def shrink_core(seed: int, out: IO[str]) -> int:
    """Print the shortest script found of what happens in a failing seed; an exit code."""
    found = shrink(seed)
    out.write(f"core seed {seed} does not fail\n" if found is None else found.text() + "\n")
    return PASSED if found is None else FAILED


def twice(plan: Plan, out: IO[str]) -> int:
    """Run every seed of the plan in two processes with different PYTHONHASHSEED; an exit code. Raises: TierMissing."""
    assert plan.seeds is not None, "a number of seeds"
    for tier in plan.tiers:
        marks_of(tier)
    differing = 0
    jobs = [
        Job(tier, seed, plan.cpu_limit_s) for seed in range(plan.start, plan.start + plan.seeds) for tier in plan.tiers
    ]
    hashes: list[dict[tuple[Tier, int], str]] = []
    for hash_seed in ("1", "2"):
        with closing(run_jobs(iter(jobs), plan.jobs, hash_seed)) as answers:
            reports = [done.report for done in answers if done is not None]
        hashes.append({(report.tier, report.seed): f"{report.trace} {report.failure}" for report in reports})
    for job in jobs:
        one, other = (table[job.tier, job.seed] for table in hashes)
        if one != other:
            differing += 1
            out.write(f"{job.tier} seed {job.seed} is not deterministic: {one} and {other}\n{_where_they_part(job)}\n")
        elif not one.strip():
            differing += 1
            out.write(f"{job.tier} seed {job.seed} has no trace: nothing is known of its determinism\n")
    out.write(f"{len(jobs)} seeds run twice under different PYTHONHASHSEED: {differing} differ\n")
    return FAILED if differing else PASSED


def _where_they_part(job: Job) -> str:
    recorded = msgspec.structs.replace(job, with_events=True)
    traces = []
    for hash_seed in ("1", "2"):
        with closing(run_jobs(iter([recorded]), 1, hash_seed)) as answers:
            traces.append(next(done.events for done in answers if done is not None))
    return first_difference(*traces) or "the recorded events are equal: what differs is not an event"
