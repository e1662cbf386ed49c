"""Trace: the events of a simulated run in order, as one rolling hash, the last few of them, or all of them.

Equal seeds give equal traces, whatever PYTHONHASHSEED, the machine or the day: that is what "deterministic" means and
what `kvnode sim --twice` checks. An event is a tuple of plain values and message structs; its bytes are MessagePack,
so nothing of it depends on addresses, on the order of sets, or on Python's `hash()`.
"""

from __future__ import annotations

import hashlib
from collections import deque

import msgspec

LAST_EVENTS = 60
"""How many events before a failure are shown."""

LINE_MAX = 180

RECORDED_MAX = 2_000_000
"""Events kept of a run recorded whole; a longer run is compared up to here."""

_encode = msgspec.msgpack.Encoder().encode


class Trace:
    """Events go in, `hash()` comes out. `is_recorded`: every event is kept, to find the first one that differs."""

    def __init__(self, *, is_recorded: bool = False) -> None:
        self.count = 0
        self._hasher = hashlib.blake2b(digest_size=8)
        self._last: deque[tuple[object, ...]] = deque(maxlen=RECORDED_MAX if is_recorded else LAST_EVENTS)

    def add(self, *event: object) -> None:
        """`event` must not change afterwards: it is kept as it is, and made text only when somebody reads it."""
        self.count += 1
        self._hasher.update(_encode(event))
        self._last.append(event)

    def hash(self) -> str:
        return f"{self._hasher.hexdigest()}-{self.count}"

    def lines(self, count: int = RECORDED_MAX) -> list[str]:
        """The newest events that are still known, oldest first."""
        events = list(self._last)[-count:]
        return [" ".join(str(part) for part in event) for event in events]

    def shortened(self, count: int) -> list[str]:
        """As `lines`, for people: one screen line each."""
        return [line if len(line) <= LINE_MAX else line[: LINE_MAX - 1] + "…" for line in self.lines(count)]


def first_difference(one: list[str], other: list[str]) -> str:
    """Where two recorded traces part, as text; empty if they are equal."""
    for number, (left, right) in enumerate(zip(one, other, strict=False), start=1):
        if left != right:
            return f"event {number} differs:\n  {left}\n  {right}"
    if len(one) != len(other):
        number = min(len(one), len(other))
        longer = one if len(one) > number else other
        return f"one run ends after {number} events, the other goes on with:\n  {longer[number]}"
    return ""
