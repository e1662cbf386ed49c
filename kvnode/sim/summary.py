"""Tally and summary of many runs: what was found, what really happened, and whether it was worth anything."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from kvnode.checkout import revision
from kvnode.sim.report import SeedReport, Tier

USELESS_SHARE_MAX = 0.10
"""More useless runs than this, and the whole proves too little: the run fails."""

USELESS_JUDGED_FROM = 100
MARKS_JUDGED_FROM = 300
RARE_MARKS_JUDGED_FROM = 100_000
"""From so many seeds on, a share of useless ones means something, and every coverage mark must have been met."""

FAILURES_SHOWN = 20


@dataclass
class Tally:
    """All runs of one tier. `marks`: every coverage mark of the tier, with the situation it stands for."""

    tier: Tier
    marks: Mapping[str, str]
    rare: Collection[str] = ()  # those of them that many seeds may miss
    seeds: int = 0
    useless: list[int] = field(default_factory=list)
    failures: list[SeedReport] = field(default_factory=list)
    virtual_s: float = 0.0
    cpu_s: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    marks_hit: Counter[str] = field(default_factory=Counter)
    states: dict[int, bool] = field(default_factory=dict)
    states_lately: int = 0  # how many states only the newest tenth of the seeds has met
    _states_after: list[int] = field(default_factory=list)

    def add(self, report: SeedReport) -> None:
        self.seeds += 1
        self.virtual_s += report.virtual_ms / 1000
        self.cpu_s += report.real_s
        self.counts.update(report.counts)
        self.marks_hit.update(report.marks)
        self.states.update(dict.fromkeys(report.states, True))
        self._states_after.append(len(self.states))
        self.states_lately = len(self.states) - self._states_after[self.seeds * 9 // 10 - 1 if self.seeds > 1 else 0]
        if report.verdict == "failed":
            self.failures.append(report)
        elif report.verdict == "useless":
            self.useless.append(report.seed)

    @property
    def ratio(self) -> float:
        """Simulated seconds per second of processor time, checks included."""
        return self.virtual_s / self.cpu_s if self.cpu_s else 0.0

    def missing_marks(self) -> list[str]:
        return [name for name in self.marks if not self.marks_hit[name]]

    def _wanted_marks(self) -> list[str]:
        """Those of the missing ones that so many seeds should have met."""
        if self.seeds < MARKS_JUDGED_FROM:
            return []
        return [name for name in self.missing_marks() if name not in self.rare or self.seeds >= RARE_MARKS_JUDGED_FROM]

    def complaints(self) -> list[str]:
        """Why the runs as a whole do not pass, in sentences; none if they do."""
        found = []
        if self.failures:
            found.append(f"{self.tier}: {len(self.failures)} of {self.seeds} seeds failed")
        if self.seeds >= USELESS_JUDGED_FROM and len(self.useless) > USELESS_SHARE_MAX * self.seeds:
            found.append(
                f"{self.tier}: {len(self.useless)} of {self.seeds} runs were useless, more than "
                f"{USELESS_SHARE_MAX:.0%}: {_some(self.useless)}"
            )
        if missing := self._wanted_marks():
            found.append(f"{self.tier}: never met in {self.seeds} seeds: {', '.join(missing)}")
        return found


def replay_command(report: SeedReport) -> str:
    return f"make sim TIER={report.tier} SEED={report.seed}"


def failure_text(report: SeedReport) -> str:
    """One failed seed: what, where, and how to see it again."""
    parts = [f"FAILED {report.tier} seed {report.seed}: {report.failure}", f"  replay: {replay_command(report)}"]
    if report.detail:
        parts.append("\n".join(f"  {line}" for line in report.detail.splitlines()))
    return "\n".join(parts)


def summary_text(tallies: list[Tally], wall_s: float, *, is_interrupted: bool) -> str:
    """Everything a reader of the log must know about the whole run."""
    lines = ["", f"revision {revision()}, Python {platform.python_version()}, {wall_s:.1f} s"]
    if is_interrupted:
        lines.append("interrupted: what follows is as far as it got")
    for tally in tallies:
        lines += _tier_lines(tally, wall_s)
    complaints = [complaint for tally in tallies for complaint in tally.complaints()]
    for tally in tallies:
        for report in tally.failures[:FAILURES_SHOWN]:
            lines.append(f"  {tally.tier} seed {report.seed}: {report.failure.splitlines()[0][:200]}")
            lines.append(f"    replay: {replay_command(report)}")
        if len(tally.failures) > FAILURES_SHOWN:
            lines.append(f"  … and {len(tally.failures) - FAILURES_SHOWN} more")
    lines.append(
        "; ".join(complaints) if complaints else "passed" if any(t.seeds for t in tallies) else "nothing was run"
    )
    return "\n".join(lines)


def _tier_lines(tally: Tally, wall_s: float) -> list[str]:
    lines = [
        "",
        f"{tally.tier}: {tally.seeds} seeds, {tally.seeds / wall_s if wall_s else 0:.1f} seeds/s; "
        f"{tally.virtual_s:.0f} simulated s in {tally.cpu_s:.1f} s of processor time = {tally.ratio:.0f}x, "
        f"checks included; {len(tally.failures)} failed, {len(tally.useless)} useless"
        + (f" ({_some(tally.useless)})" if tally.useless else ""),
    ]
    lines += _columns({name: str(count) for name, count in sorted(tally.counts.items())})
    if tally.states:
        lines.append(
            f"  {len(tally.states)} abstract states met, {tally.states_lately} of them first by the last tenth"
        )
    if tally.marks:
        lines.append("  coverage marks:")
        lines += _columns({name: str(tally.marks_hit[name]) for name in tally.marks if tally.marks_hit[name]})
        lines += [f"  NOT MET {name}: {tally.marks[name]}" for name in tally.missing_marks()]
    return lines


def _columns(cells: Mapping[str, str], across: int = 3) -> list[str]:
    """Name and number, a few pairs a line."""
    width = max((len(name) for name in cells), default=0)
    pairs = [f"{name:<{width}} {value:>9}" for name, value in cells.items()]
    return ["  " + "   ".join(pairs[first : first + across]).rstrip() for first in range(0, len(pairs), across)]


def _some(seeds: list[int], shown: int = 10) -> str:
    return ", ".join(map(str, seeds[:shown])) + (" …" if len(seeds) > shown else "")
