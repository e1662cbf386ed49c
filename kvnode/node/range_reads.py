"""RangeReads: reads of many keys, or many changes, share each turn of the loop, so that no number of them holds it up.

All of them together may take one slice a turn, in the order they came and round and round; a short one on a quiet
node is answered at once. Between two slices a read holds nothing but its position and its revision.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from kvnode.kv.requests import RangeReply, ReadRequest
from kvnode.machine.machine import StateMachine
from kvnode.machine.pace import Pace, Work

Result = TypeVar("Result")

TURN_STEPS = 250
"""Half a millisecond to one, of each turn of the loop. A write takes several turns, and waits in each."""


class RangeReads:
    """Reads of ranges under way. Lives on the node's loop. Bounded by the requests in flight and the watches open."""

    def __init__(self, machine: StateMachine, loop: asyncio.AbstractEventLoop) -> None:
        self._machine = machine
        self._loop = loop
        self._pace = Pace(TURN_STEPS)  # of this turn of the loop
        self._turn_scheduled = False
        self._waiting: deque[tuple[Work[Any], asyncio.Future[Any]]] = deque()

    def read(self, request: ReadRequest) -> asyncio.Future[RangeReply]:
        """The answer, possibly there at once. Cancelling it ends the read."""
        return self.run(lambda pace: self._machine.read(request, pace))

    def run(self, begin: Callable[[Pace], Work[Result]]) -> asyncio.Future[Result]:
        """As `read`, of any work that takes slices."""
        future: asyncio.Future[Result] = self._loop.create_future()
        self._waiting.append((begin(self._pace), future))
        if not self._turn_scheduled:
            self._schedule_turn()
        if len(self._waiting) == 1 and self._pace.left > 0:
            self._take_slice()
        return future

    def fail_all(self, error: Exception) -> None:
        """The node stops."""
        for work, future in self._waiting:
            work.close()
            if not future.done():
                future.set_exception(error)
        self._waiting.clear()

    def _schedule_turn(self) -> None:
        self._turn_scheduled = True
        self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._turn_scheduled = False
        self._pace.renew()
        while self._waiting and self._pace.left > 0:
            self._take_slice()
        if self._waiting or self._pace.left < self._pace.steps:
            self._schedule_turn()

    def _take_slice(self) -> None:
        work, future = self._waiting.popleft()
        if future.done():  # cancelled
            work.close()
            return
        try:
            next(work)
        except StopIteration as end:
            future.set_result(end.value)
        except Exception as error:  # noqa: BLE001 - belongs to whoever asked
            future.set_exception(error)
        else:
            self._waiting.append((work, future))
