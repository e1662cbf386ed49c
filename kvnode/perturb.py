"""Perturbation points: places where a node may as well act another way, and where a simulation makes it.

Each stands for what load, luck or a slow machine brings about once in a million turns: a batch of one, a queue that is
full, entries that have left memory just now. All of it is correct behaviour, so every promise must hold with it. In
production nobody listens, and a point is one comparison.

Source: the BUGGIFY macro of FoundationDB (Zhou et al., SIGMOD 2021, §4). Points have names here, so that a run can
count where it struck.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

POINTS = {
    "apply-one": "a slice of applying ends after one entry",
    "append-dropped": "an append of a peer finds no room in the update queue",
    "batch-of-one": "a write goes to the disk without those gathered behind it",
    "drain-one": "a turn takes one message and leaves the others to later turns",
    "entries-forgotten": "committed entries have left memory and are read back from the log",
    "flush-early": "the store is flushed long before its bounds",
    "queue-full": "the update queue has no room for a proposal",
    "ring-of-one": "the ring of recent events keeps the newest revision only, and watchers read the store",
    "round-of-one": "a round confirms one read, the others wait for the next",
    "segment-full": "a segment of the log has no room for the next write",
}
"""Every point, with what happens at it."""

_listener: Callable[[str], bool] | None = None


def at(point: str) -> bool:
    """Whether to act as `POINTS` says at this point now; never, unless somebody listens."""
    return _listener is not None and _listener(point)


@contextmanager
def listening(listener: Callable[[str], bool]) -> Iterator[None]:
    """Let `listener` decide at every point, inside. For the whole process: one simulation at a time."""
    global _listener  # noqa: PLW0603 - the points lie deep in production code, which must not carry a parameter for this
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before
