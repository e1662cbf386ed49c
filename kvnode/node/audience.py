"""Audience: all watchers of one range and the same kinds of change; and which audiences a change concerns.

A change looks its audiences up instead of asking every watcher: those of exactly its key and those of its prefixes are
found in dictionaries, so 10 000 watchers of different keys cost a change as much as one. Only ranges that are not
prefixes are gone through one by one.

A watcher that has seen everything is *parked*: what comes up is either not for it, or wakes it up. So an idle watcher
needs no work to keep its position new.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Iterator

import msgspec

from kvnode.kv import keys
from kvnode.kv.events import Event
from kvnode.kv.keys import ONE_KEY

WAKES_A_TURN = 100
"""Each takes up to 30 µs to be told."""

TRIMMED_AT = 1_024
"""A list of revisions that is so long is freed of those the ring has dropped."""


class Filter(msgspec.Struct, frozen=True):
    """What one audience wants."""

    start: bytes
    end: bytes
    puts: bool
    deletes: bool


class Watcher:
    """One reader: a position, and a future while it is parked."""

    __slots__ = ("audience", "next", "parked", "said_ms")

    def __init__(self, audience: Audience, next_revision: int, now_ms: int) -> None:
        self.audience = audience
        self.next = next_revision  # everything that matches below it has been read, or lies before its start
        self.parked: asyncio.Future[None] | None = None
        self.said_ms = now_ms  # when it was told anything last


class Audience:
    """Watchers that share a filter, and the recent revisions that concern them."""

    __slots__ = ("filter", "parked", "revisions", "since", "watchers")

    def __init__(self, wanted: Filter, since: int) -> None:
        self.filter = wanted
        self.watchers = 0
        self.parked: dict[Watcher, None] = {}
        self.revisions: list[int] = []  # ascending: all from `since` on that concern it, and that somebody may not have
        self.since = since

    def wants(self, event: Event) -> bool:
        """Of an event in its range."""
        return self.filter.puts if event.kv.version else self.filter.deletes

    def changed(self, revision: int, ring_first: int) -> list[Watcher]:
        """This revision concerns us: whoever is parked reads from it on, and is to be woken."""
        revisions = self.revisions
        if len(revisions) >= TRIMMED_AT:
            del revisions[: bisect_left(revisions, ring_first)]
        revisions.append(revision)
        return self._unpark(revision, revision + 1)

    def overrun(self, first: int, next_revision: int) -> list[Watcher]:
        """Any revision from `first` to before `next_revision` may concern us: they are to be read from the store."""
        self.revisions = []
        self.since = next_revision
        return self._unpark(first, next_revision)

    def _unpark(self, first: int, next_revision: int) -> list[Watcher]:
        parked, self.parked = self.parked, {}
        woken: list[Watcher] = []
        for watcher in parked:
            if watcher.next >= next_revision:  # it begins in the future
                self.parked[watcher] = None
            else:
                watcher.next = max(watcher.next, first)
                woken.append(watcher)
        return woken

    def park(self, watcher: Watcher, future: asyncio.Future[None], next_revision: int) -> None:
        """It has read everything below `next_revision`, the first that is not announced yet. `future`: it is woken."""
        watcher.next = max(watcher.next, next_revision)
        watcher.parked = future
        self.parked[watcher] = None
        if len(self.parked) == self.watchers:  # nobody is behind
            self.revisions = []
            self.since = max(self.since, next_revision)

    def unpark(self, watcher: Watcher, next_revision: int) -> bool:
        """It goes on for whatever reason; whether it still has read everything below `next_revision`."""
        watcher.parked = None
        if watcher not in self.parked:
            return False
        del self.parked[watcher]
        watcher.next = max(watcher.next, next_revision)
        return True

    def leave(self, watcher: Watcher) -> None:
        self.watchers -= 1
        self.parked.pop(watcher, None)


class Waker:
    """Wakes watchers, only so many a turn of the loop, so that heartbeats and all else come in between."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: deque[Watcher] = deque()
        self._turn_scheduled = False

    def wake(self, watchers: Iterable[Watcher]) -> None:
        self._waiting.extend(watchers)
        if not self._turn_scheduled:
            self._turn()

    def wake_all(self) -> None:
        """The node stops."""
        for watcher in self._waiting:
            _wake(watcher)
        self._waiting.clear()

    def _turn(self) -> None:
        self._turn_scheduled = bool(self._waiting)
        if self._turn_scheduled:
            self._loop.call_soon(self._turn)
        for _ in range(min(len(self._waiting), WAKES_A_TURN)):
            _wake(self._waiting.popleft())


def _wake(watcher: Watcher) -> None:
    if watcher.parked is not None and not watcher.parked.done():
        watcher.parked.set_result(None)


class Audiences:
    """All of them, found by key."""

    def __init__(self) -> None:
        self._all: dict[Filter, Audience] = {}
        self._by_key: dict[bytes, list[Audience]] = {}
        self._by_prefix: dict[bytes, list[Audience]] = {}
        self._lengths: dict[int, int] = {}  # of the prefixes: how many audiences have one of this length
        self._others: list[Audience] = []

    def __iter__(self) -> Iterator[Audience]:
        return iter(self._all.values())

    def __len__(self) -> int:
        return len(self._all)

    @property
    def look_up_steps(self) -> int:
        """What it takes to find those that one event concerns."""
        return 1 + (len(self._others) + len(self._lengths)) // 16

    def join(self, wanted: Filter, since: int) -> Audience:
        """The audience of a new watcher, made if it is the first; `since`: the first revision that is not known yet."""
        audience = self._all.get(wanted)
        if audience is None:
            audience = self._all[wanted] = Audience(wanted, since)
            self._place(wanted).append(audience)
            if _is_prefix(wanted):
                length = len(wanted.start)
                self._lengths[length] = self._lengths.get(length, 0) + 1
        audience.watchers += 1
        return audience

    def leave(self, watcher: Watcher) -> None:
        audience = watcher.audience
        audience.leave(watcher)
        if audience.watchers:
            return
        wanted = audience.filter
        del self._all[wanted]
        place = self._place(wanted)
        place.remove(audience)
        if wanted.end == ONE_KEY:
            if not place:
                del self._by_key[wanted.start]
        elif _is_prefix(wanted):
            if not place:
                del self._by_prefix[wanted.start]
            length = len(wanted.start)
            self._lengths[length] -= 1
            if not self._lengths[length]:
                del self._lengths[length]

    def of(self, event: Event) -> Iterator[Audience]:
        """Those that an event concerns."""
        key = event.kv.key
        for audience in self._by_key.get(key, ()):
            if audience.wants(event):
                yield audience
        for length in self._lengths:
            if length <= len(key):
                for audience in self._by_prefix.get(key[:length], ()):
                    if audience.wants(event):
                        yield audience
        for audience in self._others:
            if keys.contains(audience.filter.start, audience.filter.end, key) and audience.wants(event):
                yield audience

    def _place(self, wanted: Filter) -> list[Audience]:
        if wanted.end == ONE_KEY:
            return self._by_key.setdefault(wanted.start, [])
        if _is_prefix(wanted):
            return self._by_prefix.setdefault(wanted.start, [])
        return self._others


def _is_prefix(wanted: Filter) -> bool:
    return wanted.end != ONE_KEY and wanted.end == keys.prefix_end(wanted.start)
