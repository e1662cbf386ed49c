"""Awaited: futures that are done once a number that only grows has reached their goal. A heap, and a count of it."""

from __future__ import annotations

import asyncio
import heapq


class Awaited:
    """Lives on one loop. The owner bounds it by `count`: those given up stay in it until their goal is reached."""

    def __init__(self) -> None:
        self.count = 0
        self._heap: list[tuple[int, int, list[asyncio.Future[None]]]] = []
        self._number = 0  # breaks ties, in the order they came

    def add(self, goal: int, futures: list[asyncio.Future[None]]) -> None:
        self._number += 1
        heapq.heappush(self._heap, (goal, self._number, futures))
        self.count += len(futures)

    def reached(self, value: int) -> None:
        heap = self._heap
        while heap and heap[0][0] <= value:
            futures = heapq.heappop(heap)[2]
            self.count -= len(futures)
            finish(futures)

    def fail_all(self, error: Exception) -> None:
        for _, _, futures in self._heap:
            fail(futures, error)
        self._heap = []
        self.count = 0


def finish(futures: list[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)


def fail(futures: list[asyncio.Future[None]], error: Exception) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(error)
