"""Soft limits of space: what is over one, in words, looked at now and then. What to refuse is for whoever asks."""

from __future__ import annotations

from collections.abc import Callable

from kvnode.clocks.clock import Clock

CHECK_MS = 1_000
"""How long an answer holds."""


class SoftLimit:
    """Lives on the node's loop."""

    def __init__(self, look: Callable[[], str], clock: Clock) -> None:
        """`look`: what is over its limit, in words; "" if nothing is."""
        self._look = look
        self._clock = clock
        self._checked_ms = -CHECK_MS
        self.alarm = ""  # what `look` said last

    def is_reached(self) -> bool:
        """As it was within the last `CHECK_MS`."""
        now_ms = self._clock.monotonic_ms()
        if now_ms - self._checked_ms >= CHECK_MS:
            self._checked_ms = now_ms
            self.alarm = self._look()
        return bool(self.alarm)


def shortage(free_bytes: int, free_bytes_min: int) -> str:
    """Of a disk, in words; "" if there is none."""
    return f"the disk has {free_bytes} bytes free, less than {free_bytes_min}" if free_bytes < free_bytes_min else ""
