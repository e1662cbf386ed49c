"""Scene: what the course of a scenario is written with. Whatever does not come about in time raises `Failed`."""

from __future__ import annotations

import asyncio
import random
from time import monotonic

from scripts.faults.stage import Stage

LEADER_S = 30.0
"""How long a new leader may take: generous, for a machine that has other work."""


class Failed(Exception):
    """What went wrong, as a sentence. The stage is judged all the same, and its evidence kept."""


class Scene:
    """A stage under load, and random numbers of the scenario's own."""

    def __init__(self, stage: Stage, rng: random.Random, notes: list[str]) -> None:
        self.rng = rng
        self.where = stage.where
        self.cluster = stage.cluster
        self.journal = stage.journal
        self._stage = stage
        self._notes = notes

    def note(self, figures: str) -> None:
        """To be printed, never to be judged: how long an election takes depends on the machine."""
        self._notes.append(figures)

    @property
    def done(self) -> int:
        """Requests that have succeeded so far."""
        return self.journal.counts["ok"]

    async def leader(self, other_than: int = 0) -> int:
        """Who leads, as its own status says now."""
        try:
            async with asyncio.timeout(LEADER_S):
                while True:
                    for node, status in sorted(self.where.pulse.statuses.items()):
                        if node != other_than and status["role"] == "leader" and status["leader"] == node:
                            return node
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise Failed(f"no leader{f' but {other_than}' if other_than else ''} in {LEADER_S:.0f} s") from None

    async def served(self, how: str) -> None:
        """Until the clients have got writes through."""
        before, began = self.journal.kinds["put"], monotonic()
        while self.journal.kinds["put"] < before + 10:
            if monotonic() - began > LEADER_S:
                raise Failed(f"no service {how} in {LEADER_S:.0f} s")
            await asyncio.sleep(0.05)

    async def recover(self, seconds: float, after: str = "") -> float:
        """Heal everything, then at least so many seconds of calm → how long that took."""
        await self.where.heal()
        waited, problem = await self._stage.calm(seconds)
        if problem:
            raise Failed(f"after {after}: {problem}" if after else problem)
        return waited
