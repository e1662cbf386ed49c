"""The only file that reads the operating system's time."""

from __future__ import annotations

import time

# CLOCK_MONOTONIC stops while the machine is suspended; lease and freshness arithmetic must not.
_BOOT_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class SystemClock:
    """The machine's clocks, as a `kvnode.clocks.clock.Clock`."""

    def monotonic_ms(self) -> int:
        return time.clock_gettime_ns(_BOOT_CLOCK) // 1_000_000

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def elapsed_ns(self) -> int:
        return time.perf_counter_ns()
