"""Local health: how far this node trusts itself. A node that is slow hears answers late, and blames others for it.

The score rises when this node misses what it should have heard (answers, helpers' nacks), is accused by others, or
notices that it stood still; it falls with each probe that is answered. Its own probe interval and timeout are
stretched by (score + 1), so that it accuses later the less it trusts itself.

Source: Lifeguard §4.1 (local health multiplier); hashicorp/memberlist `awareness.go`.
"""

from __future__ import annotations


class LocalHealth:
    """A score from 0 (well) to `score_max` - 1."""

    def __init__(self, score_max: int) -> None:
        self._score_max = score_max
        self.score = 0

    def change(self, by: int) -> None:
        self.score = min(max(self.score + by, 0), self._score_max - 1)

    def stretch(self, ms: int) -> int:
        return ms * (self.score + 1)
