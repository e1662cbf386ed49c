"""Clock: the one door through which time enters kvnode.

`monotonic_ms` decides every timeout; it counts suspended time (boot-time clock) and never jumps.
`wall_ms` is for people and for the hybrid clock and decides no timeout.
"""

from typing import Protocol


class Clock(Protocol):
    """Integer milliseconds. Replaced by a virtual clock in tests and in the simulator."""

    def monotonic_ms(self) -> int:
        """Milliseconds since an arbitrary start; never goes back; goes on while the machine is suspended."""
        ...

    def wall_ms(self) -> int:
        """Milliseconds since 1970-01-01 UTC as the machine believes. May jump."""
        ...

    def elapsed_ns(self) -> int:
        """Nanoseconds since an arbitrary start, at the best resolution there is: for measuring, never for deciding."""
        ...
