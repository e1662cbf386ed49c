"""Suspicion: a member that did not answer has time to refute before it is dead; the more others agree, the less.

The time runs from `ms_max` down to `ms_min` as independent accusers join: a lone accuser may be the sick one. Where
there are too few members for anybody to agree (three), the least time applies at once.

Source: Lifeguard §4.2 (local health aware suspicion): max - (max - min) · log(c + 1) / log(k + 1).
"""

from __future__ import annotations

from math import ceil, log, log10

from kvnode.gossip.settings import GossipSettings
from kvnode.ids import NodeId


def suspicion_ms_min(members: int, settings: GossipSettings) -> int:
    """Least time from suspect to dead in a group of so many."""
    return ceil(settings.suspicion_factor * max(1.0, log10(max(members, 1))) * settings.probe_interval_ms)


class Suspicion:
    """One member suspected by `first`, at one number."""

    def __init__(self, first: NodeId, members: int, settings: GossipSettings, now_ms: int) -> None:
        wanted = max(settings.suspicion_factor - 2, 0)
        self._wanted = wanted if members - 2 >= wanted else 0  # those who could agree: all but the two at odds
        self._ms_min = suspicion_ms_min(members, settings)
        self._ms_max = self._ms_min * settings.suspicion_max_factor
        self._since_ms = now_ms
        self._accusers: dict[NodeId, None] = {first: None}

    def confirm(self, by: NodeId) -> bool:
        """Somebody else suspects it, too → whether that counts, and is worth telling."""
        if by in self._accusers or len(self._accusers) > self._wanted:
            return False
        self._accusers[by] = None
        return True

    @property
    def deadline_ms(self) -> int:
        """When it is dead, unless it refutes."""
        if self._wanted == 0:
            return self._since_ms + self._ms_min
        agreed = log(len(self._accusers)) / log(self._wanted + 1)  # 0 with the first alone, 1 with all that are wanted
        return self._since_ms + max(self._ms_min, ceil(self._ms_max - (self._ms_max - self._ms_min) * agreed))
