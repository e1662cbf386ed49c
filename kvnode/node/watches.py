"""Watches: who watches this node's applied state, and what is new to them (I23).

Told of each entry once it is applied completely, and only then. The events go into one ring for all (`recent_events`),
those who watch any of it are woken (`audience`), and each reads on from its position at its own pace (`watch_stream`).

Revisions are announced in order, each once its audiences are known: with one look for most, in slices for an entry that
changed very many keys. `next` is the first that has not been announced; nobody is told of it, nor of a mark beyond it.

Costs nothing while nobody watches, and an idle watcher costs nothing but memory. Bounded by `limits.watches_max`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from kvnode.clocks.clock import Clock
from kvnode.errors import Compacted, KvnodeError, NotReady, Overloaded
from kvnode.kv.events import ChangeSet, Event
from kvnode.kv.requests import Watch
from kvnode.machine.machine import StateMachine
from kvnode.machine.pace import Pace, Work
from kvnode.node.audience import Audience, Audiences, Filter, Waker, Watcher
from kvnode.node.range_reads import RangeReads
from kvnode.node.recent_events import Entry, RecentEvents

AT_ONCE = 64
"""An entry that takes more steps finds its audiences in slices."""

UNANNOUNCED_MAX = 4_096
"""Entries that wait for that; beyond it every watcher reads the store instead."""

RETRY_AFTER_MS = 1_000


class Watches:
    """All streams of one node. Lives on its loop."""

    def __init__(
        self,
        machine: StateMachine,
        range_reads: RangeReads,
        *,
        watches_max: int,
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
    ) -> None:
        self.machine = machine
        self.range_reads = range_reads
        self.loop = loop
        self.clock = clock
        self.ring = RecentEvents(machine.revision + 1)
        self.next = self.ring.next
        self.is_watched = False  # cheap: asked at each entry applied
        self.is_closed = False
        self.open = 0
        self.pages_read = 0  # of the store, since the start
        self.cancelled = 0  # streams, since the start
        self._watches_max = watches_max
        self._audiences = Audiences()
        self._waker = Waker(loop)
        self._unannounced: deque[Entry] = deque()

    # ── at apply ────────────────────────────────────────────────────────────────────────────────────

    def applied(self, events: tuple[Event, ...]) -> None:
        """The entry that made these is applied: all of it can be read."""
        if not events:
            return
        entry = self.ring.add(events[0].kv.mod_revision, events)
        if self._unannounced or len(events) * self._audiences.look_up_steps > AT_ONCE:
            if len(self._unannounced) >= UNANNOUNCED_MAX:
                self._overrun()
                return
            self._unannounced.append(entry)
            if len(self._unannounced) == 1:
                self.range_reads.run(self._announce_in_slices).add_done_callback(_retrieve)
            return
        if len(events) == 1:
            self.next += 1
            for audience in self._audiences.of(events[0]):
                self._waker.wake(audience.changed(self.next - 1, self.ring.first))
            return
        found: dict[Audience, list[Event]] = {}
        self._look_up(events, found)
        self._announce(entry, found)

    def _announce_in_slices(self, pace: Pace) -> Work[None]:
        while self._unannounced:
            entry = self._unannounced[0]
            found: dict[Audience, list[Event]] = {}
            events = entry.whole.events
            size = max(1, AT_ONCE // self._audiences.look_up_steps)
            for first in range(0, len(events), size):
                if pace.left <= 0:
                    yield
                pace.left -= self._look_up(events[first : first + size], found)
            if not self._unannounced or self._unannounced[0] is not entry:
                return  # meanwhile nobody watched any more
            self._announce(entry, found)
            self._unannounced.popleft()

    def _look_up(self, events: tuple[Event, ...], found: dict[Audience, list[Event]]) -> int:
        """Sort events by the audiences they concern; the steps it took."""
        steps = len(events) * self._audiences.look_up_steps
        for event in events:
            for audience in self._audiences.of(event):
                found.setdefault(audience, []).append(event)
                steps += 1
        return steps

    def _announce(self, entry: Entry, found: dict[Audience, list[Event]]) -> None:
        whole = entry.whole
        if any(len(events) < len(whole.events) for events in found.values()):
            entry.parts = {
                audience: whole if len(events) == len(whole.events) else ChangeSet(whole.revision, tuple(events))
                for audience, events in found.items()
            }
        self.next = whole.revision + 1
        for audience in found:
            self._waker.wake(audience.changed(whole.revision, self.ring.first))

    def _overrun(self) -> None:
        """Looking up whom entries concern has fallen behind without end: it may concern anybody."""
        self._unannounced.clear()
        first, self.next = self.next, self.ring.next
        for audience in self._audiences:
            self._waker.wake(audience.overrun(first, self.next))

    def on_store_replaced(self) -> None:
        """A snapshot took the machine on, past entries that were never applied here: all is to be read from the store.

        Nobody's place changes: what a stream has not read yet it reads now, or hears that it is compacted.
        """
        if not self.is_watched:
            return
        self._unannounced.clear()
        first, self.next = self.next, self.machine.revision + 1
        self.ring = RecentEvents(self.next)
        for audience in self._audiences:
            self._waker.wake(audience.overrun(first, self.next))

    # ── those who watch ─────────────────────────────────────────────────────────────────────────────

    async def enter(self, request: Watch, reach: Callable[[], Awaitable[None]]) -> tuple[int, Watcher]:
        """One more, and the revision it begins at; `reach` returns when the applied state is new enough for it.

        Counted in `open` by now, or when this fails not at all. Raises: Overloaded, Compacted, what `reach` raises.
        """
        if self.open >= self._watches_max:
            raise Overloaded(f"this node serves {self.open} watches, as many as it may", retry_after_ms=RETRY_AFTER_MS)
        self.open += 1
        try:
            await reach()
            if self.is_closed:
                raise NotReady("the node is stopping")
            floor, revision = self.machine.compact_revision, self.machine.revision
            if 0 < request.from_revision < floor:
                raise Compacted(
                    f"the changes of revision {request.from_revision} are dropped; {floor} is the oldest there is",
                    compact_revision=floor,
                )
        except BaseException:
            self.open -= 1
            raise
        if not self.is_watched:
            self.ring = RecentEvents(revision + 1)
            self.next = self.ring.next
            self.is_watched = True
        wanted = Filter(request.start, request.end, request.puts, request.deletes)
        # What is applied and not announced yet may have been looked up without a new audience: it reads the store.
        audience = self._audiences.join(wanted, since=self.ring.next)
        return revision, Watcher(audience, request.from_revision or revision + 1, self.clock.monotonic_ms())

    def leave(self, watcher: Watcher) -> None:
        self.open -= 1
        self._audiences.leave(watcher)
        if not self._audiences:
            self.is_watched = False
            self._unannounced.clear()
            self.ring = RecentEvents(self.ring.next)  # what it held is free

    def close(self) -> None:
        """The node stops: every stream ends, and says so."""
        self.is_closed = True
        for audience in self._audiences:
            self._waker.wake(audience.parked)
        self._waker.wake_all()


def _retrieve(future: asyncio.Future[None]) -> None:
    """Only a bug may end an announcement, or the node's end."""
    error = None if future.cancelled() else future.exception()
    if error is not None and not isinstance(error, KvnodeError):
        raise error
