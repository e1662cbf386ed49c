"""Long poll: wait until a key has a version newer than one that is known (`Await`)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from kvnode.clocks.clock import Clock
from kvnode.config import LimitsSection
from kvnode.errors import Compacted
from kvnode.kv.interface import LOCALLY, Options
from kvnode.kv.requests import NEWEST, Await, History, RangeReply, ReadRequest
from kvnode.machine.machine import StateMachine
from kvnode.node import admission
from kvnode.node.changes import Changes


class LongPolls:
    """Lives on the node's loop; `read` is how the node reads. Bounded by `Changes`."""

    def __init__(
        self,
        *,
        machine: StateMachine,
        changes: Changes,
        limits: LimitsSection,
        clock: Clock,
        read: Callable[[ReadRequest, Options], Awaitable[RangeReply]],
    ) -> None:
        self._machine = machine
        self._changes = changes
        self._limits = limits
        self._clock = clock
        self._read = read

    async def wait(self, request: Await, options: Options) -> RangeReply:
        """Each look is a read as `options` want it; only the one that a change has called for is local.

        That one shows at least the change, and so at least what the look before it showed.
        """
        admission.check_await(request, options, self._limits)
        until_ms = self._clock.monotonic_ms() + request.wait_ms
        newest = History(request.key, limit=1)
        after = request.after_revision
        is_known_absent = False
        look = options
        while True:
            change = self._changes.wait(request.key)  # before the look: a change right after it must not be missed
            try:
                reply = await self._read(newest, look)
                found = reply.items[0].mod_revision if reply.items else 0
                if after == NEWEST:
                    after = found
                    is_known_absent = not found or not reply.items[0].version
                if found > after:
                    return RangeReply(reply.revision, reply.items, 1)
                if not found and not is_known_absent and 0 < after < self._machine.compact_revision:
                    raise self._deletion_given_up(request, after)
                left_ms = until_ms - self._clock.monotonic_ms()
                if left_ms <= 0:
                    return RangeReply(reply.revision, (), 0)
                look = LOCALLY if await self._changed(change, left_ms) else options
            finally:
                self._changes.forget(request.key, change)

    def _deletion_given_up(self, request: Await, after: int) -> Compacted:
        """If it was deleted after the version that the caller knows, nothing would ever come to tell so."""
        return Compacted(
            f"{request.key!r} is absent, and what happened to it after revision {after} is not kept",
            compact_revision=self._machine.compact_revision,
        )

    @staticmethod
    async def _changed(change: asyncio.Future[None], within_ms: int) -> bool:
        try:
            async with asyncio.timeout(within_ms / 1e3):
                await change
        except TimeoutError:
            return False
        return True
