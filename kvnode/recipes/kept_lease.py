"""A lease that is kept alive while it is held, and what its holder may believe meanwhile.

The leader ends a lease its TTL after the last renewal reached it. The holder cannot know when that was; it knows when
it *sent* each renewal, which was earlier. So it counts from the sending of the last renewal that was acknowledged, by
its own monotonic clock, which goes on while the machine is suspended:

* **sure**: less than two thirds of the TTL ago, and no renewal has failed since. The lease lives, unless somebody
  revoked it; clocks may differ in rate by a third;
* **in doubt**: a renewal got no answer, or is overdue (the process was paused, say). The lease may live;
* **lost**: a renewal was refused, or the whole TTL has passed. Final, also if a later answer says otherwise.

Renewals leave every third of the TTL; one without an answer within a sixth is sent again, so that every node of three
has been asked before the end. A belief does not fence: see `kvnode.recipes.lock`.

Source: Gray and Cheriton (1989); requirement LE4 of the pattern catalogue.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from enum import Enum

from kvnode.errors import Fenced, KvnodeError, NotFound

LOOK_MS_MAX = 1_000
"""Timers may stop while the machine is suspended: the clock is looked at this often."""

PATIENCE_MS_MAX = 5_000


class Standing(Enum):
    """What the holder of a lease may believe of it."""

    SURE = "sure"
    IN_DOUBT = "in doubt"
    LOST = "lost"


class Belief:
    """When renewals were sent and what became of them → what may be believed. Pure."""

    def __init__(self, ttl_ms: int, sent_ms: int) -> None:
        """`sent_ms`: when the request was sent that began the lease, or renewed it."""
        self._ttl_ms = ttl_ms
        self._sent_ms = sent_ms
        self._has_failed = False  # the renewal after that one
        self.why_lost = ""

    @property
    def lost_at_ms(self) -> int:
        """Unless a renewal is acknowledged before."""
        return self._sent_ms + self._ttl_ms

    @property
    def due_at_ms(self) -> int:
        """When the next renewal is to be sent, unless one has failed."""
        return self._sent_ms + self._ttl_ms // 3

    def standing(self, now_ms: int) -> Standing:
        if not self.why_lost and now_ms >= self.lost_at_ms:
            self.why_lost = f"no renewal was answered for {now_ms - self._sent_ms} ms, and it lives for {self._ttl_ms}"
        if self.why_lost:
            return Standing.LOST
        if self._has_failed or now_ms - self._sent_ms >= self._ttl_ms * 2 // 3:
            return Standing.IN_DOUBT
        return Standing.SURE

    def on_renewed(self, sent_ms: int, now_ms: int) -> None:
        """The renewal sent then is acknowledged, now."""
        if self.standing(now_ms) is not Standing.LOST:
            self._sent_ms = sent_ms
            self._has_failed = False

    def on_no_answer(self) -> None:
        self._has_failed = True

    def on_refused(self, why: str) -> None:
        self.why_lost = self.why_lost or why


class KeptLease:
    """Renews a lease in the background: `keep` runs as a task of its own."""

    def __init__(
        self,
        renew: Callable[[int], Awaitable[object]],
        ttl_ms: int,
        sent_ms: int,
        *,
        now_ms: Callable[[], int],
    ) -> None:
        """`renew` sends one renewal and waits so many milliseconds for its answer. Raises: NotFound, Fenced if refused.

        `now_ms` is a boot-time clock; `sent_ms`, by it, when the request was sent that began the lease.
        """
        self._renew = renew
        self._now_ms = now_ms
        self._belief = Belief(ttl_ms, sent_ms)
        self._patience_ms = max(1, min(ttl_ms // 6, PATIENCE_MS_MAX))
        self._again_ms = max(1, ttl_ms // 24)
        self._is_lost = asyncio.Event()

    @property
    def standing(self) -> Standing:
        return self._belief.standing(self._now_ms())

    @property
    def why_lost(self) -> str:
        """In words; "" while it is not."""
        return self._belief.why_lost

    async def lost(self) -> str:
        """Wait until it is lost; why."""
        await self._is_lost.wait()
        return self.why_lost

    async def keep(self) -> None:
        """Until it is lost."""
        renewing = asyncio.ensure_future(self._keep_renewing())
        try:
            while self.standing is not Standing.LOST and not renewing.done():
                left_ms = self._belief.lost_at_ms - self._now_ms()
                await asyncio.wait([renewing], timeout=min(left_ms, LOOK_MS_MAX) / 1e3)
            if renewing.done():
                renewing.result()
        except Exception as error:
            self._belief.on_refused(f"it could not be renewed: {error!r}")
            raise
        finally:
            renewing.cancel()
            if self._belief.why_lost:
                self._is_lost.set()

    async def _keep_renewing(self) -> None:
        due_ms = self._belief.due_at_ms
        while True:
            if self.standing is Standing.LOST:
                return
            left_ms = due_ms - self._now_ms()
            if left_ms > 0:
                await asyncio.sleep(min(left_ms, LOOK_MS_MAX) / 1e3)
                continue
            sent_ms = self._now_ms()
            try:
                await self._renew(self._patience_ms)
            except (NotFound, Fenced) as error:
                self._belief.on_refused(error.message)
                return
            except KvnodeError:
                self._belief.on_no_answer()
                due_ms = self._now_ms() + self._again_ms
            else:
                self._belief.on_renewed(sent_ms, self._now_ms())
                due_ms = self._belief.due_at_ms
