"""Pace: at most so many bytes a second, and what may go at once after a pause. Sans-IO.

A leaky bucket kept as one number: when the bytes let through so far would have left at the rate itself (the generic
cell rate algorithm).
"""

from __future__ import annotations

BURST_BYTES = 256 << 10
"""May be ahead of the rate."""


class Pace:
    """Shared by all that must keep the rate together."""

    def __init__(self, bytes_per_s: int) -> None:
        assert bytes_per_s > 0, bytes_per_s
        self._bytes_per_s = bytes_per_s
        self._due_us = 0  # when all let through until now has left, at the rate

    def delay_ms(self, size: int, now_ms: int) -> int:
        """Let `size` bytes through; returns for how many ms they have to wait, rounded up."""
        now_us = now_ms * 1_000
        self._due_us = max(self._due_us, now_us) + self._cost_us(size)
        return max(0, -((now_us + self._cost_us(BURST_BYTES) - self._due_us) // 1_000))

    def _cost_us(self, size: int) -> int:
        return -(-size * 1_000_000 // self._bytes_per_s)
