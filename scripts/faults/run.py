"""One leg of a run: a fresh cluster on one kind of network, faults and calm in turn under recording clients, a verdict.

A leg in which nothing is contradicted but which got too little done between the faults is `useless`, not passed.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import Literal

from scripts.faults import aftermath
from scripts.faults.capability import Reasons
from scripts.faults.kinds import KINDS
from scripts.faults.schedule import Episode, episodes
from scripts.faults.stage import CALM_OPERATIONS, Setting, Stage
from scripts.faults.undo import Undo

Verdict = Literal["passed", "failed", "useless"]


@dataclass
class Leg:
    """What a leg came to."""

    setting: Setting
    verdict: Verdict = "useless"
    problems: list[str] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    idle: Counter[str] = field(default_factory=Counter)  # faults drawn that found nothing to strike
    episodes: int = 0
    seconds: float = 0.0
    operations: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    exits: Counter[str] = field(default_factory=Counter)
    carried: Counter[str] = field(default_factory=Counter)
    complaints: Counter[str] = field(default_factory=Counter)
    leader_changes: int = 0
    restarts: int = 0
    calm_s_longest: float = 0.0


class Run:
    """Runs one leg of `seconds`. `show` takes a line of progress; `stop` ends the leg early, verdict included.

    `only`: kinds of faults to choose from; empty: all that can be done here.
    """

    def __init__(
        self,
        setting: Setting,
        seconds: float,
        only: frozenset[str],
        reasons: Reasons,
        undo: Undo,
        show: Callable[[str], None],
        stop: asyncio.Event,
    ) -> None:
        self._setting = setting
        self._seconds = seconds
        self._only = only
        self._reasons = reasons
        self._undo = undo
        self._show = show
        self._stop = stop
        self._began = monotonic()
        self.leg = Leg(setting)

    async def run(self) -> Leg:
        leg = self.leg
        async with Stage(self._setting, self._reasons, self._undo) as stage:
            try:
                await self._suffer(stage)
                self._show(f"[{self._setting.network}] healed; waiting until all are level, then judging")
                leg.problems = list(dict.fromkeys([*leg.problems, *await stage.judge()]))
            finally:
                self._count(stage)
        if leg.problems:
            leg.verdict = "failed"
        elif leg.episodes and leg.faults and leg.operations["ok"] >= CALM_OPERATIONS * leg.episodes:
            leg.verdict = "passed"
        return leg

    async def _suffer(self, stage: Stage) -> None:
        leg, where = self.leg, stage.where
        drawn = episodes(f"{self._setting.seed}:{self._setting.network}", self._available())
        await self._calm(stage, 1.0)
        while not self._is_over() and not leg.problems:
            episode = next(drawn)
            words = await self._strike(stage, episode)
            leg.episodes += 1
            self._progress(stage, episode, words)
            await self._hold(episode.hold_s)
            await where.heal()
            await self._calm(stage, episode.calm_s)
            leg.problems += [*where.cluster.unexpected, *where.pulse.two_leaders]

    def _available(self) -> frozenset[str]:
        """Kinds of faults that this network, this machine and the choice made allow."""
        networks = {"hosts": {"loss", "slow link", "resets"}, "proxies": {"proxies"}, "loopback": set()}
        wanted = {"processes", "strace", "images", "throttle", *networks[self._setting.network]}
        can = {name for name in wanted if not self._reasons[name]}
        if self._setting.network != "loopback":
            can.add("network")
        names = {name for name, kind in KINDS.items() if kind.needs in can}
        return frozenset(names & self._only if self._only else names)

    async def _strike(self, stage: Stage, episode: Episode) -> list[str]:
        words = []
        for name in episode.kinds:
            try:
                done = await KINDS[name].strike(stage.where, episode.rng(name))
            except (OSError, ValueError) as error:  # a node may die under the hand that reaches for it
                done = ""
                words.append(f"{name} found nothing: {type(error).__name__} {error}")
            if done:
                self.leg.faults[name] += 1
                words.append(f"{name} {done}")
            else:
                self.leg.idle[name] += 1
        return words

    async def _calm(self, stage: Stage, seconds: float) -> None:
        waited, problem = await stage.calm(seconds, stop=self._stop)
        self.leg.calm_s_longest = max(self.leg.calm_s_longest, waited)
        self.leg.problems += [problem] if problem else []

    async def _hold(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stop.wait()
        except TimeoutError:
            return

    def _is_over(self) -> bool:
        return self._stop.is_set() or monotonic() - self._began >= self._seconds

    def _progress(self, stage: Stage, episode: Episode, words: list[str]) -> None:
        counts = stage.journal.counts
        self._show(
            f"[{self._setting.network} {monotonic() - self._began:5.0f} s] ok {counts['ok']} fail {counts['fail']} "
            f"unknown {counts['info']} · leaders {stage.where.pulse.leader_changes + 1} · "
            f"faults {self.leg.faults.total()} · {episode.number}: {'; '.join(words) or 'nothing to strike'}"
        )

    def _count(self, stage: Stage) -> None:
        leg, where = self.leg, stage.where
        leg.seconds = monotonic() - self._began
        leg.operations, leg.kinds = stage.journal.counts, stage.journal.kinds
        leg.exits, leg.restarts = where.cluster.exits, where.cluster.restarts
        leg.leader_changes = where.pulse.leader_changes
        leg.complaints = aftermath.complaints(where.cluster)
        if where.proxies is not None:
            leg.carried = where.proxies.counts
