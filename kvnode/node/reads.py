"""Linearizable reads: learn a read index under a fresh number, then wait until it is applied here.

What is confirmed at the end of a round was true when it was asked: from then on this node's state is known to be *fresh
as of* that moment, by its own clock, once the index is applied. That is what bounded reads go by (`fresh_ms`).

Reads that arrive while a round is under way gather and share the *next* one, never the running one: a
confirmation proves leadership only for reads that arrived before it began (trap R4). Every round has a number
that is never used again. A failed round (leader changed) is asked again under a new number by whoever waits.

Bounds: one round under way, `WAITING_MAX` reads waiting; beyond that `Overloaded`.

Source: Raft thesis §6.4.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from kvnode import perturb
from kvnode.errors import Overloaded
from kvnode.ids import Index, Revision
from kvnode.node.awaited import Awaited, fail, finish
from kvnode.observe.metrics import Histogram

WAITING_MAX = 65_536
RETRY_AFTER_MS = 100
NEVER_MS = -(1 << 62)
CONFIRMED_MAX = 64
"""Confirmed rounds whose index is not applied yet. Of more than that the oldest are forgotten: they tell the least."""


class RoundFailed(Exception):
    """The round was not confirmed; nothing was read. Ask again once a leader is known."""


class Reads:
    """Reads waiting for their round or for their index. Lives on the node's loop."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        wake: Callable[[], None],
        elapsed_ns: Callable[[], int],
        now_ms: Callable[[], int],
        first_number: int = 0,
    ) -> None:
        """`first_number` lies above every number of an earlier life: a leader may answer one of those late."""
        self._loop = loop
        self._wake = wake
        self._number = first_number
        self._gathering: list[asyncio.Future[None]] = []
        self._asked: list[asyncio.Future[None]] = []  # in the round under way
        self._asked_number = 0  # 0 = no round under way
        self._behind = Awaited()  # by index
        self._unseen = Awaited()  # by revision
        self._applied = Index(0)
        self._revision = Revision(0)
        self._asked_ms = 0
        self._is_renewing = False
        self._confirmed: deque[tuple[Index, int]] = deque()  # (index, asked at), both ascending, not applied yet
        self.fresh_ms = NEVER_MS
        """The state applied here reflects everything that was committed up to this moment of the node's own clock."""
        self._now_ms = now_ms
        self._elapsed_ns = elapsed_ns
        self._asked_ns = 0
        self.round_seconds = Histogram()

    def wait(self) -> asyncio.Future[None]:
        """Done once this node's applied state reflects everything committed before this call.

        Raises `RoundFailed` from the future. Raises: Overloaded.
        """
        future = self._new_future()
        self._gathering.append(future)
        if not self._asked_number:
            self._wake()
        return future

    def wait_for_index(self, index: Index) -> asyncio.Future[None]:
        """Done once `index`, which is committed, is applied here. Raises: Overloaded."""
        future = self._new_future()
        if index <= self._applied:
            future.set_result(None)
        else:
            self._behind.add(index, [future])
        return future

    def wait_for_revision(self, revision: int) -> asyncio.Future[None]:
        """Done once the state applied here has reached `revision`. Raises: Overloaded."""
        future = self._new_future()
        if revision <= self._revision:
            future.set_result(None)
        else:
            self._unseen.add(revision, [future])
        return future

    def give_up_revision(self, future: asyncio.Future[None]) -> None:
        """A wait for a revision is over, one way or the other: it may be one that never comes. Idempotent."""
        self._unseen.give_up(future)

    def _new_future(self) -> asyncio.Future[None]:
        if len(self._gathering) + self._behind.count + self._unseen.count >= WAITING_MAX:
            raise Overloaded("too many reads are waiting", retry_after_ms=RETRY_AFTER_MS)
        return self._loop.create_future()

    def renew(self) -> None:
        """Ask for a confirmation that no read waits for, unless one is under way."""
        if not self._asked_number and not self._is_renewing:
            self._is_renewing = True
            self._wake()

    def take_request(self) -> int:
        """Number of a new round for the reads gathered so far; 0 if there are none or one is under way."""
        if self._asked_number or not (self._gathering or self._is_renewing):
            return 0
        self._is_renewing = False
        self._number += 1
        self._asked_number = self._number
        self._asked_ns = self._elapsed_ns()
        self._asked_ms = self._now_ms()
        many = 1 if perturb.at("round-of-one") else len(self._gathering)
        self._asked, self._gathering = self._gathering[:many], self._gathering[many:]
        return self._number

    def ready(self, number: int, index: Index) -> None:
        """Round `number` is confirmed: its reads may go on once `index` is applied."""
        if number != self._asked_number:
            return
        self.round_seconds.observe((self._elapsed_ns() - self._asked_ns) / 1e9)
        futures = self._end_round()
        self._on_confirmed(index, self._asked_ms)
        if index <= self._applied:
            finish(futures)
        else:
            self._behind.add(index, futures)

    def _on_confirmed(self, index: Index, asked_ms: int) -> None:
        confirmed = self._confirmed
        while confirmed and confirmed[-1][0] >= index:
            confirmed.pop()  # known sooner, and older
        confirmed.append((index, asked_ms))
        if len(confirmed) > CONFIRMED_MAX:
            confirmed.popleft()
        self._freshen()

    def _freshen(self) -> None:
        confirmed = self._confirmed
        while confirmed and confirmed[0][0] <= self._applied:
            self.fresh_ms = max(self.fresh_ms, confirmed.popleft()[1])

    def failed(self, number: int) -> None:
        """Round `number` will not be confirmed."""
        if number == self._asked_number:
            fail(self._end_round(), RoundFailed())

    def applied(self, index: Index, revision: Revision) -> None:
        """The applied state has reached `index`, and with it `revision`."""
        self._applied, self._revision = index, revision
        self._freshen()
        self._behind.reached(index)
        self._unseen.reached(revision)

    def fail_all(self, error: Exception) -> None:
        """The node stops."""
        fail(self._end_round() + self._gathering, error)
        self._gathering = []
        self._behind.fail_all(error)
        self._unseen.fail_all(error)

    def _end_round(self) -> list[asyncio.Future[None]]:
        futures, self._asked = self._asked, []
        self._asked_number = 0
        if self._gathering:
            self._wake()
        return futures
