"""Linearizable reads: learn a read index under a fresh number, then wait until it is applied here.

Reads that arrive while a round is under way gather and share the *next* one, never the running one: a
confirmation proves leadership only for reads that arrived before it began (trap R4). Every round has a number
that is never used again. A failed round (leader changed) is asked again under a new number by whoever waits.

Bounds: one round under way, `WAITING_MAX` reads waiting; beyond that `Overloaded`.

Source: Raft thesis §6.4.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable

from kvnode import perturb
from kvnode.errors import Overloaded
from kvnode.ids import Index
from kvnode.observe.metrics import Histogram

WAITING_MAX = 65_536
RETRY_AFTER_MS = 100


class RoundFailed(Exception):
    """The round was not confirmed; nothing was read. Ask again once a leader is known."""


class Reads:
    """Reads waiting for their round or for their index. Lives on the node's loop."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        wake: Callable[[], None],
        elapsed_ns: Callable[[], int],
        first_number: int = 0,
    ) -> None:
        """`first_number` lies above every number of an earlier life: a leader may answer one of those late."""
        self._loop = loop
        self._wake = wake
        self._number = first_number
        self._gathering: list[asyncio.Future[None]] = []
        self._asked: list[asyncio.Future[None]] = []  # in the round under way
        self._asked_number = 0  # 0 = no round under way
        self._behind: list[tuple[Index, int, list[asyncio.Future[None]]]] = []  # heap by index
        self._behind_count = 0  # reads in it, those given up included: a state that does not move must not hoard them
        self._applied = Index(0)
        self._elapsed_ns = elapsed_ns
        self._asked_ns = 0
        self.round_seconds = Histogram()

    def wait(self) -> asyncio.Future[None]:
        """Done once this node's applied state reflects everything committed before this call.

        Raises `RoundFailed` from the future. Raises: Overloaded.
        """
        if len(self._gathering) + self._behind_count >= WAITING_MAX:
            raise Overloaded("too many reads are waiting", retry_after_ms=RETRY_AFTER_MS)
        future: asyncio.Future[None] = self._loop.create_future()
        self._gathering.append(future)
        if not self._asked_number:
            self._wake()
        return future

    def take_request(self) -> int:
        """Number of a new round for the reads gathered so far; 0 if there are none or one is under way."""
        if self._asked_number or not self._gathering:
            return 0
        self._number += 1
        self._asked_number = self._number
        self._asked_ns = self._elapsed_ns()
        many = 1 if perturb.at("round-of-one") else len(self._gathering)
        self._asked, self._gathering = self._gathering[:many], self._gathering[many:]
        return self._number

    def ready(self, number: int, index: Index) -> None:
        """Round `number` is confirmed: its reads may go on once `index` is applied."""
        if number != self._asked_number:
            return
        self.round_seconds.observe((self._elapsed_ns() - self._asked_ns) / 1e9)
        futures = self._end_round()
        if index <= self._applied:
            _finish(futures)
        else:
            heapq.heappush(self._behind, (index, number, futures))
            self._behind_count += len(futures)

    def failed(self, number: int) -> None:
        """Round `number` will not be confirmed."""
        if number == self._asked_number:
            _fail(self._end_round(), RoundFailed())

    def applied(self, index: Index) -> None:
        """The applied state has reached `index`."""
        self._applied = index
        while self._behind and self._behind[0][0] <= index:
            futures = heapq.heappop(self._behind)[2]
            self._behind_count -= len(futures)
            _finish(futures)

    def fail_all(self, error: Exception) -> None:
        """The node stops."""
        _fail(self._end_round() + self._gathering, error)
        self._gathering = []
        for _, _, futures in self._behind:
            _fail(futures, error)
        self._behind = []
        self._behind_count = 0

    def _end_round(self) -> list[asyncio.Future[None]]:
        futures, self._asked = self._asked, []
        self._asked_number = 0
        if self._gathering:
            self._wake()
        return futures


def _finish(futures: list[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)


def _fail(futures: list[asyncio.Future[None]], error: Exception) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(error)
