"""Pulse: asks every node for its status again and again, and keeps who leads and how often that changed."""

from __future__ import annotations

import asyncio
from typing import Any

from scripts.faults.nodes import ChaosCluster

_INTERVAL_S = 0.25


class Pulse:
    """What the nodes said last. `leaders` holds every (term, leader) that was ever claimed."""

    def __init__(self, cluster: ChaosCluster) -> None:
        self._cluster = cluster
        self.statuses: dict[int, dict[str, Any]] = {}
        self.leaders: dict[int, int] = {}  # term → leader, as the leaders themselves said
        self.two_leaders: list[str] = []

    @property
    def term(self) -> int:
        """The highest term that somebody led in; 0 before there was one."""
        return max(self.leaders, default=0)

    @property
    def leader(self) -> int:
        """The node that led in the highest term seen; 0 before there was one."""
        return self.leaders.get(self.term, 0)

    @property
    def leader_changes(self) -> int:
        return max(0, len(self.leaders) - 1)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.gather(*(self._ask(node) for node in self._cluster.ids))
            await asyncio.sleep(_INTERVAL_S)

    async def _ask(self, node: int) -> None:
        try:
            async with asyncio.timeout(1.0):
                status = await self._cluster.status(node)
        except (OSError, TimeoutError, ValueError):
            self.statuses.pop(node, None)
            return
        self.statuses[node] = status
        if status.get("role") == "leader":
            known = self.leaders.setdefault(status["term"], node)
            if known != node:
                self.two_leaders.append(f"nodes {known} and {node} both lead in term {status['term']}")
