"""The event heap: virtual time, and what happens next in it. Events of one instant happen in the order they came."""

from __future__ import annotations

import heapq
from collections.abc import Callable


class EventHeap:
    """`at` plans an event, `run_for` lets time pass."""

    def __init__(self) -> None:
        self.now_ms = 0
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._sequence = 0

    def at(self, delay_ms: int, event: Callable[[], None]) -> None:
        self._sequence += 1
        heapq.heappush(self._heap, (self.now_ms + delay_ms, self._sequence, event))

    def run_for(self, ms: int) -> None:
        end, heap, pop = self.now_ms + ms, self._heap, heapq.heappop
        while heap and heap[0][0] <= end:
            self.now_ms, _, event = pop(heap)
            event()
        self.now_ms = end
