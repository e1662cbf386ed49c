"""Awaited: futures that are done once a number that only grows has reached their goal. A heap, and who still waits."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Iterable


class Awaited:
    """Lives on one loop. The owner bounds it by `count`.

    Who gives up and does not say so is counted until the goal is reached, which may be never: see `give_up`.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, list[asyncio.Future[None]]]] = []
        self._number = 0  # breaks ties, in the order they came
        self._live: dict[asyncio.Future[None], bool] = {}
        self._given_up = 0  # futures in the heap that are not live

    @property
    def count(self) -> int:
        return len(self._live)

    def add(self, goal: int, futures: list[asyncio.Future[None]]) -> None:
        self._number += 1
        heapq.heappush(self._heap, (goal, self._number, futures))
        self._live.update(dict.fromkeys(futures, True))

    def give_up(self, future: asyncio.Future[None]) -> None:
        """Nobody waits for this any more. Idempotent. They are swept out once they are more than those that wait."""
        if self._live.pop(future, False):
            self._given_up += 1
            if self._given_up > len(self._live):
                live = [(goal, number, [f for f in all_ if f in self._live]) for goal, number, all_ in self._heap]
                self._heap = [each for each in live if each[2]]
                heapq.heapify(self._heap)
                self._given_up = 0

    def reached(self, value: int) -> None:
        heap = self._heap
        while heap and heap[0][0] <= value:
            futures = heapq.heappop(heap)[2]
            for future in futures:
                if not self._live.pop(future, False):
                    self._given_up -= 1
            finish(futures)

    def fail_all(self, error: Exception) -> None:
        for _, _, futures in self._heap:
            fail(futures, error)
        self._heap = []
        self._live = {}
        self._given_up = 0


def finish(futures: Iterable[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)


def fail(futures: list[asyncio.Future[None]], error: Exception) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(error)
