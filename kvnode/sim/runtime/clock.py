"""One node's clocks, none of them right: skewed, drifting, frozen, jumping, and standing still in a suspend.

`time_s` is what the node's monotonic (boot-time) clock says, a line over true time whose slope may change. The event
loop's own clock is that less the time spent suspended, as CLOCK_MONOTONIC is CLOCK_BOOTTIME less it (F53). The wall
clock is the monotonic one plus an offset that may be changed to make it jump.
"""

from __future__ import annotations

from collections.abc import Callable

WALL_START_MS = 1_700_000_000_000


class NodeClock:
    """A `kvnode.clocks.clock.Clock` over true simulated time. `on_changed` hears that timers are due at other times."""

    def __init__(self, true_s: Callable[[], float], *, start_s: float = 0.0, rate: float = 1.0) -> None:
        self.wall_offset_ms = WALL_START_MS
        self.on_changed: Callable[[], None] | None = None
        self._true_s = true_s
        self._from_true_s = true_s()
        self._from_s = start_s
        self._rate = rate
        self._suspended_s = 0.0

    @property
    def rate(self) -> float:
        """Seconds that pass here in a true second; 0: frozen."""
        return self._rate

    def set_rate(self, rate: float) -> None:
        assert rate >= 0, rate
        self._from_s, self._from_true_s = self.time_s(), self._true_s()
        self._rate = rate
        if self.on_changed is not None:
            self.on_changed()

    def suspended(self, seconds: float) -> None:
        """The machine slept for so long, by this clock: the loop's clock did not see it pass."""
        self._suspended_s += seconds

    def time_s(self) -> float:
        return self._from_s + (self._true_s() - self._from_true_s) * self._rate

    def loop_s(self) -> float:
        """What the event loop's timers go by."""
        return self.time_s() - self._suspended_s

    def true_delay_s(self, loop_when_s: float) -> float | None:
        """True seconds until the loop's clock shows `loop_when_s`; None: never, as it is now."""
        left_s = loop_when_s - self.loop_s()
        if left_s <= 0:
            return 0.0
        return left_s / self._rate if self._rate else None

    def monotonic_ms(self) -> int:
        return int(self.time_s() * 1e3 + 1e-6)

    def wall_ms(self) -> int:
        return self.monotonic_ms() + self.wall_offset_ms

    def elapsed_ns(self) -> int:
        return int(self.time_s() * 1e9)
