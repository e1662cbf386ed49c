"""Lamport clock: a counter that orders what happened by cause and effect, without any wall clock.

If one thing can have influenced another, its time is smaller. The converse does not hold: a smaller time proves
nothing about cause. Owned by exactly one object per node, carried by every message between nodes.

A restart must not stamp anew what was stamped before. So times are issued only up to a *ceiling* that is durable, a
block ahead; a restart begins at the ceiling and leaves the rest of the block unused. A received time may lie above
the ceiling; until the next ceiling is durable nothing is stamped, and nothing may be promised beyond `promised_time`:
a crash would take the receipt back as if the message had never come.

The ceiling has to outlive the store of the events that are stamped: whoever loses that store goes on above its old
times all the same. It belongs beside the boot counter.

Source: Lamport, "Time, Clocks, and the Ordering of Events in a Distributed System" (1978).
"""

from __future__ import annotations

TIME_MAX = (1 << 63) - 2
"""The last time there is; one below the greatest signed 64-bit number, which reports use for "never again"."""

JUMP_MAX = 1 << 32
"""How far a received time may lie above one's own; beyond it a single bad message would use up the numbers."""


class LamportClock:
    """The newest time issued or seen, and the durable bound up to which times may be issued."""

    BLOCK = 1024

    __slots__ = ("_ceiling", "_time")

    def __init__(self, ceiling: int = 0) -> None:
        """`ceiling`: the greatest ever made durable by this member, 0 for its first start."""
        assert 0 <= ceiling <= TIME_MAX, ceiling
        self._time = ceiling
        self._ceiling = ceiling

    @property
    def time(self) -> int:
        """The greatest time issued or seen."""
        return self._time

    @property
    def promised_time(self) -> int:
        """Whatever is stamped from now on, even after a crash, is stamped above this."""
        return min(self._time, self._ceiling)

    @property
    def can_tick(self) -> bool:
        """Whether the next time is covered by the durable ceiling."""
        return self._time < self._ceiling

    @property
    def needs_ceiling(self) -> int | None:
        """A ceiling to make durable, then to tell `raised`; asked for when less than half a block is left."""
        if self._ceiling - self._time >= self.BLOCK // 2 or self._ceiling == TIME_MAX:
            return None
        return min(self._time + self.BLOCK, TIME_MAX)

    def tick(self) -> int:
        """The time of something that happens here now. Only if `can_tick`."""
        assert self.can_tick, (self._time, self._ceiling)
        self._time += 1
        return self._time

    def observe(self, seen: int) -> bool:
        """A message came that carries `seen`: what happens from now on is later. False: refused, nothing adopted."""
        if not 0 <= seen <= TIME_MAX or seen - self._time > JUMP_MAX:
            return False
        self._time = max(self._time, seen)
        return True

    def follow(self, seen: int) -> bool:
        """As `observe`, of a time that a member is at; one too far ahead is approached, `JUMP_MAX` with each message.

        A member that was away, or is new, would else never come level with one that has gone on for longer than that.
        """
        is_adopted = self.observe(seen)
        if not is_adopted and self._time + JUMP_MAX < seen <= TIME_MAX:
            self._time += JUMP_MAX
        return is_adopted

    def raised(self, ceiling: int) -> None:
        """`ceiling` is durable."""
        assert ceiling <= TIME_MAX, ceiling
        self._ceiling = max(self._ceiling, ceiling)
