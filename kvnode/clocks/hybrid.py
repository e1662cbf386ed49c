"""Hybrid clock: timestamps that order like a logical clock and read like a date.

A timestamp is one unsigned 64-bit integer: the upper 48 bits are Unix milliseconds, the lower 16 a counter.
Packed integers compare as (milliseconds, counter). When the counter overflows it carries into the
milliseconds, so the sequence never repeats. Owned by exactly one object per node (never handed around as a value).

Invariant: every timestamp returned by `next` is greater than everything returned or observed before, unless `rewind`
took that back: a stamp exists with its log entry, and entries that are cut were never seen by anybody.

Source: Kulkarni, Demirbas et al., "Logical Physical Clocks" (OPODIS 2014); packing in milliseconds, not the
paper's NTP units.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

COUNTER_BITS = 16
_COUNTER_MASK = (1 << COUNTER_BITS) - 1


class HybridClock:
    """Last timestamp seen or issued; the leader stamps log entries with it."""

    __slots__ = ("_last",)

    def __init__(self, last: int = 0) -> None:
        self._last = last

    @property
    def last(self) -> int:
        """The greatest timestamp issued or observed."""
        return self._last

    def next(self, wall_ms: int) -> int:
        """A new timestamp: at least the wall clock, greater than every earlier one."""
        last = self._last
        wall = wall_ms << COUNTER_BITS
        self._last = stamp = wall if wall > last else last + 1
        return stamp

    def observe(self, stamp: int) -> None:
        """Never again issue a timestamp at or below `stamp` (Lamport's receive rule)."""
        self._last = max(self._last, stamp)

    def rewind(self, stamp: int) -> None:
        """Everything above `stamp` stood in entries that are no more."""
        self._last = stamp


def latest_at(wall_ms: int) -> int:
    """The greatest timestamp of that millisecond."""
    return wall_ms << COUNTER_BITS | _COUNTER_MASK


def wall_part_ms(stamp: int) -> int:
    """Unix milliseconds of a timestamp."""
    return stamp >> COUNTER_BITS


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def to_text(stamp: int) -> str:
    """``2026-11-22T10:00:00.123Z.0007``: UTC, milliseconds, then the counter."""
    instant = _EPOCH + timedelta(milliseconds=stamp >> COUNTER_BITS)
    return f"{instant:%Y-%m-%dT%H:%M:%S}.{instant.microsecond // 1000:03d}Z.{stamp & _COUNTER_MASK:04d}"


def from_text(text: str) -> int:
    """The timestamp that `to_text` wrote. Raises ValueError."""
    date, zone, counter = text.partition("Z.")
    instant = datetime.fromisoformat(date).replace(tzinfo=UTC)
    if not zone or not counter.isdigit() or int(counter) > _COUNTER_MASK:
        raise ValueError(f"{text!r} is not a hybrid timestamp")
    return (instant - _EPOCH) // timedelta(milliseconds=1) << COUNTER_BITS | int(counter)
