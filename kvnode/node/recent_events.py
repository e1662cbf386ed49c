"""RecentEvents: the newest revisions, once for all who watch, bounded in events and in bytes.

A ring by revision. Watchers hold a position in it and nothing else, so a slow one costs no memory; it finds out that
the ring has passed it, and reads the store instead. The newest revision is always kept, however big it is.

Beside what a revision changed stand the *parts* of it that audiences watch, where that is not all of it.
"""

from __future__ import annotations

from collections.abc import Hashable

from kvnode import perturb
from kvnode.kv.events import ChangeSet, Event

EVENTS_MAX = 16_384
BYTES_MAX = 16 << 20
"""Of keys, values and what they replaced. In memory the ring takes up to three times that: objects, rendered lines."""

EVENT_BYTES = 200
"""What an event is counted as beside its keys and values."""

SUMMED_UP_MAX = 4_096


class Entry:
    """One revision in the ring."""

    __slots__ = ("bytes", "parts", "whole")

    def __init__(self, whole: ChangeSet) -> None:
        self.whole = whole
        self.parts: dict[Hashable, ChangeSet] | None = None  # None: who watches any of it watches all of it
        # Summing up very many would take too long; such a revision has the ring for itself.
        self.bytes = sum(map(_size, whole.events)) if len(whole.events) <= SUMMED_UP_MAX else BYTES_MAX

    def part(self, audience: Hashable) -> ChangeSet:
        return self.whole if self.parts is None else self.parts[audience]


class RecentEvents:
    """Revisions from `first` to `next` - 1, without a gap."""

    def __init__(self, next_revision: int, *, events_max: int = EVENTS_MAX, bytes_max: int = BYTES_MAX) -> None:
        self.first = self.next = next_revision
        self._events_max = events_max
        self._bytes_max = bytes_max
        self._entries: dict[int, Entry] = {}
        self._events = self._bytes = 0

    def add(self, revision: int, events: tuple[Event, ...]) -> Entry:
        """Keep the next revision, and forget the oldest for it."""
        assert revision == self.next, (revision, self.next)
        entry = Entry(ChangeSet(revision, events))
        self._entries[revision] = entry
        self.next = revision + 1
        self._events += len(events)
        self._bytes += entry.bytes
        is_short = perturb.at("ring-of-one")
        while self.first < revision and (is_short or self._events > self._events_max or self._bytes > self._bytes_max):
            oldest = self._entries.pop(self.first)
            self.first += 1
            self._events -= len(oldest.whole.events)
            self._bytes -= oldest.bytes
        return entry

    def get(self, revision: int) -> Entry:
        return self._entries[revision]


def _size(event: Event) -> int:
    kv, previous = event.kv, event.previous
    size = EVENT_BYTES + len(kv.key) + len(kv.value)
    return size if previous is None else size + len(previous.key) + len(previous.value)
