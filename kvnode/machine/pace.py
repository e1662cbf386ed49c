"""Pace: long work in slices, so that the event loop is never held for longer than one of them.

A piece of work is a generator. It counts its steps on a `Pace` and yields when none are left; whoever drives it
renews the pace and resumes it. What a slice did must be harmless to see: between two slices anything may be
read, applied entries may be flushed and evicted, and the process may end.

A step is what takes a few microseconds: a row visited, a version added, `STEP_BYTES` of values copied. Counting
steps, not time, keeps the work the same on every node and in every test.
"""

from __future__ import annotations

import heapq
from collections.abc import Generator, Iterator, Sequence
from itertools import islice
from typing import TypeVar

Result = TypeVar("Result")

Work = Generator[None, None, Result]
"""Yields at the end of each slice, returns its result after the last."""

SLICE_STEPS = 1_000
"""Two to four milliseconds."""

STEP_BYTES = 4 << 10

SORTED_AT_ONCE = 4_096
"""Keys that take a slice to sort; nothing else runs meanwhile."""


class Pace:
    """The steps left in the present slice; may fall below zero by the last step's cost."""

    __slots__ = ("left", "steps")

    def __init__(self, steps: int = SLICE_STEPS) -> None:
        self.steps = steps
        self.left = steps

    def renew(self) -> None:
        self.left = self.steps


def in_one_go(work: Work[Result], pace: Pace) -> Result:
    """Drive `work` to its end without a pause."""
    while True:
        pace.renew()
        try:
            next(work)
        except StopIteration as end:
            result: Result = end.value
            return result


def in_order(keys: Sequence[bytes], pace: Pace) -> Work[Iterator[bytes]]:
    """As `sorted`, in slices: of very many keys the sorting alone takes too long. `keys` must stay as they are."""
    pieces: list[list[bytes]] = []
    for first in range(0, len(keys), SORTED_AT_ONCE):
        if pace.left <= 0:
            yield
        pieces.append(sorted(keys[first : first + SORTED_AT_ONCE]))
        pace.left -= len(pieces[-1]) // 4
    return heapq.merge(*pieces)


def first_in_order(keys: Sequence[bytes], most: int, pace: Pace) -> Work[tuple[bytes, ...]]:
    """The lowest `most` of `keys`, ascending."""
    ordered = yield from in_order(keys, pace)
    found: list[bytes] = []
    while len(found) < most and (piece := list(islice(ordered, min(SORTED_AT_ONCE, most - len(found))))):
        found += piece
        pace.left -= len(piece) // 4
        if pace.left <= 0:
            yield
    return tuple(found)
