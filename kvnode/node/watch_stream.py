"""NodeStream: one stream of changes, read by its consumer at the consumer's own pace.

    position             what the next part is
    -------------------  -----------------------------------------------------------------------------
    not announced yet    the stream is parked until something for it comes, or a mark is due
    in the ring          the change sets that concern its audience, shared by all of it
    before the ring      a page of the store's changes (`machine.changelog`), all such readers in turn
    below the floor      it is cancelled as compacted, and told where history begins now

So a slow reader holds up nobody, misses nothing, and costs a position. A start above what is applied waits and shows
nothing older. A mark is never ahead of what was read: a parked stream has read all that is announced.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterable
from itertools import groupby
from typing import Self

from kvnode.errors import Compacted, KvnodeError
from kvnode.kv import keys
from kvnode.kv.events import Cancelled, Changes, ChangeSet, Event, Listed, Progress, Started, Synced, WatchPart
from kvnode.kv.interface import WatchStream
from kvnode.kv.requests import Range, RangeReply, Watch
from kvnode.machine.changelog import ChangesAsked
from kvnode.node.audience import Watcher
from kvnode.node.watches import Watches

SETS_MAX = 256
PART_BYTES = 256 << 10
"""A part has at most so many change sets, and ends with the one that makes it so big."""

LIST_ITEMS = 256


class NodeStream(WatchStream):
    """See `KV.watch`. Leaves when it is closed, cancelled, failed or forgotten."""

    __slots__ = (
        "__weakref__",
        "_is_over",
        "_list_from",
        "_list_revision",
        "_reach",
        "_request",
        "_watcher",
        "_watches",
    )

    def __init__(self, watches: Watches, request: Watch, reach: Callable[[], Awaitable[None]]) -> None:
        """`reach` returns when the applied state is new enough to begin at."""
        self._watches = watches
        self._request = request
        self._reach = reach
        self._watcher: Watcher | None = None  # before the start, and after the end
        self._is_over = False
        self._list_from: bytes | None = request.start if request.list_first else None  # None: nothing (more) to list
        self._list_revision = 0  # of the list, until `Synced` has been said

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> WatchPart:
        if self._is_over:
            raise StopAsyncIteration
        try:
            part = await (self._start() if self._watcher is None else self._next_part(self._watcher))
        except BaseException:
            self._leave()
            raise
        if type(part) is Cancelled:
            self._watches.cancelled += 1
            self._leave()
        elif self._watcher is not None:
            self._watcher.said_ms = self._watches.clock.monotonic_ms()
        return part

    async def aclose(self) -> None:
        self._leave()

    @property
    def read_up_to(self) -> int:
        watcher = self._watcher
        if watcher is None or watcher not in watcher.audience.parked:
            return 0
        return self._watches.next - 1

    def _leave(self) -> None:
        self._is_over = True
        if self._watcher is not None:
            self._watches.leave(self._watcher)
            self._watcher = None

    def __del__(self) -> None:
        """A consumer that just walks away; possibly on another thread."""
        if self._watcher is not None:
            watcher, watches = self._watcher, self._watches
            if not watches.loop.is_closed():
                watches.loop.call_soon_threadsafe(watches.leave, watcher)

    async def _start(self) -> Started:
        revision, self._watcher = await self._watches.enter(self._request, self._reach)
        self._list_revision = revision if self._request.list_first else 0
        return Started(revision, self._watcher.next)

    async def _next_part(self, watcher: Watcher) -> WatchPart:
        watches = self._watches
        try:
            while True:
                if watches.is_closed:
                    return Cancelled("stopping", 0 if self._list_revision else watcher.next)
                part: WatchPart | None
                if self._list_revision:
                    part = await self._list(self._list_revision)
                elif watcher.next >= max(watches.next, watcher.audience.since):
                    part = await self._wait(watcher)
                elif watcher.next >= max(watches.ring.first, watcher.audience.since):
                    part = self._take(watcher)
                else:
                    part = await self._catch_up(watcher)
                if part is not None:
                    return part
        except Compacted as error:
            floor = error.detail["compact_revision"]
            return Cancelled("compacted", 0 if self._list_revision else floor, floor)
        except KvnodeError:
            if not watches.is_closed:
                raise
            return Cancelled("stopping", 0 if self._list_revision else watcher.next)

    async def _list(self, revision: int) -> Listed | Synced | None:
        """The next page of what is there at `revision`, or the word that this was all."""
        if self._list_from is None:
            self._list_revision = 0
            return Synced(revision)
        machine, end = self._watches.machine, self._request.end
        page = Range(self._list_from, end, LIST_ITEMS, revision)
        reply: RangeReply
        if end == keys.ONE_KEY:
            reply = machine.range(page)
        else:
            reply = await self._watches.range_reads.read(page)
        self._list_from = reply.items[-1].key + b"\x00" if reply.more else None
        return Listed(reply.items) if reply.items else None

    async def _wait(self, watcher: Watcher) -> Progress | None:
        watches, audience, progress_ms = self._watches, watcher.audience, self._request.progress_ms
        future = watches.loop.create_future()
        audience.park(watcher, future, watches.next)
        timer = None
        if progress_ms:
            left_ms = watcher.said_ms + progress_ms - watches.clock.monotonic_ms()
            timer = watches.loop.call_later(max(0, left_ms) / 1e3, _knock, future)
        try:
            await future
        finally:
            if timer is not None:
                timer.cancel()
            is_level = audience.unpark(watcher, watches.next)
        return self._mark_if_due(watcher) if is_level else None

    def _take(self, watcher: Watcher) -> Changes | None:
        watches, audience = self._watches, watcher.audience
        revisions = audience.revisions
        sets: list[ChangeSet] = []
        size = 0
        at = bisect_left(revisions, watcher.next)
        while at < len(revisions) and len(sets) < SETS_MAX and size < PART_BYTES:
            entry = watches.ring.get(revisions[at])
            sets.append(entry.part(audience))
            size += entry.bytes
            at += 1
        watcher.next = revisions[at] if at < len(revisions) else max(watcher.next, watches.next)
        return Changes(tuple(sets)) if sets else None

    async def _catch_up(self, watcher: Watcher) -> Changes | Progress | None:
        watches, request = self._watches, self._request
        asked = ChangesAsked(
            request.start,
            request.end,
            first=watcher.next,
            last=watches.machine.revision,
            puts=request.puts,
            deletes=request.deletes,
            previous=request.previous,
        )
        found = await watches.range_reads.run(lambda pace: watches.machine.changes(asked, pace))
        watches.pages_read += 1
        watcher.next = found.next
        if not found.events:
            return self._mark_if_due(watcher)
        return Changes(tuple(_by_revision(found.events)))

    def _mark_if_due(self, watcher: Watcher) -> Progress | None:
        """Everything below `watcher.next` has been read; but what is before a start in the future is not known yet."""
        now_ms = self._watches.clock.monotonic_ms()
        if not self._request.progress_ms or now_ms < watcher.said_ms + self._request.progress_ms:
            return None
        watcher.said_ms = now_ms
        if watcher.next > self._watches.machine.revision + 1:
            return None
        return Progress(watcher.next - 1)


def _knock(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _by_revision(events: Iterable[Event]) -> list[ChangeSet]:
    of = groupby(events, lambda event: event.kv.mod_revision)
    return [ChangeSet(revision, tuple(group)) for revision, group in of]
