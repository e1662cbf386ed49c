"""Staging: writes of this origin that are not durable yet, in the batches in which they go to the store.

A write joins the newest batch until the store takes that; the next one begins another. Batches become durable in their
order, and only then is what they hold shown.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from kvnode.gossip.key_state import KeyState


class Staged(NamedTuple):
    """A key as its newest staged write leaves it."""

    state: KeyState  # it holds what earlier batches hold
    before: KeyState | None  # what was shown of the key as it was staged


class Batch(msgspec.Struct):
    """Writes that are taken to the store together."""

    states: dict[bytes, Staged]
    n: int  # newest dot among them
    mark: int = 0  # 0: not taken yet


class Staging:
    """Batches, oldest first; all but the last are on their way to the store."""

    def __init__(self) -> None:
        self._batches: deque[Batch] = deque()

    @property
    def newest(self) -> int:
        """The number of the newest write; 0 if there is none."""
        return self._batches[-1].n if self._batches else 0

    @property
    def keys(self) -> int:
        """How many, one in several batches counted several times."""
        return sum(len(batch.states) for batch in self._batches)

    def put(self, key: bytes, staged: Staged, n: int) -> None:
        """The write `n` of this origin has left `key` so."""
        if not self._batches or self._batches[-1].mark:
            self._batches.append(Batch({}, n))
        self._batches[-1].states[key] = staged
        self._batches[-1].n = n

    def get(self, key: bytes) -> Staged | None:
        """As the newest staged write of `key` leaves it."""
        for batch in reversed(self._batches):
            staged = batch.states.get(key)
            if staged is not None:
                return staged
        return None

    def take(self, mark: int) -> None:
        """What is staged now goes to the store under `mark`."""
        if self._batches and self._batches[-1].mark == 0:
            self._batches[-1].mark = mark

    def durable(self, mark: int) -> Iterator[Batch]:
        """Batches up to `mark`, each no longer staged once it is given out."""
        while self._batches and 0 < self._batches[0].mark <= mark:
            yield self._batches.popleft()
