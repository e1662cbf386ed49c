"""Event: one happening, as the node that saw it wrote it down; and the bounded log of one origin's events.

An origin numbers its events from 1 without gaps, over all its boots, and stamps each with a greater Lamport time than
the one before. So one number per origin says what somebody holds, and what is missing is seen.

The log is a ring: at its bound the oldest go. What is gone is counted, never passed over in silence.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from kvnode.clocks.lamport import TIME_MAX
from kvnode.clocks.version_vector import COUNTER_MAX, INCARNATION_MAX, Origin
from kvnode.ids import NodeId
from kvnode.kv.available import EVENT_BYTES_MAX

KIND_CHARS_MAX = 64


class TimelineLimits(msgspec.Struct, frozen=True):
    """Bounds of the timeline."""

    events_per_origin: int = 10_000
    bytes_per_origin: int = 4 << 20
    event_bytes: int = EVENT_BYTES_MAX  # of the fields of one event
    origins: int = 1_024  # members, and their former incarnations; events of further ones are refused


VECTOR_ORIGINS_MAX = TimelineLimits().origins + 1
"""In a vector of events: as many as a timeline keeps, and the node's own."""


class Event(msgspec.Struct, frozen=True, array_like=True):
    """One event of one origin. Append fields with defaults, never reorder."""

    member: NodeId
    incarnation: int
    boot: int  # of the process that recorded it; never falls within an origin
    seq: int  # from 1, contiguous within an origin
    lamport: int  # strictly grows within an origin
    wall_ms: int  # its clock then, in Unix milliseconds: for people, never for order
    kind: str
    fields: bytes  # a JSON object
    is_ranked: bool  # recorded under a voter's promise: it has a place in the final order

    @property
    def origin(self) -> Origin:
        """Whose event it is."""
        return Origin(self.member, self.incarnation)


Rank = tuple[int, int, int, int]


def rank(event: Event) -> Rank:
    """The total order: causes before effects, and the same on all nodes."""
    return event.lamport, event.member, event.incarnation, event.seq


def check_event(event: Event, limits: TimelineLimits) -> None:
    """Raises ValueError for what no node of ours records."""
    numbers = (event.boot, event.wall_ms)
    if not (1 <= event.member <= COUNTER_MAX and 0 <= event.incarnation <= INCARNATION_MAX):
        raise ValueError("the origin of an event is out of range")
    if not (1 <= event.seq <= COUNTER_MAX and 1 <= event.lamport <= TIME_MAX and 0 <= min(numbers) <= max(numbers)):
        raise ValueError("a number of an event is out of range")
    if max(numbers) > COUNTER_MAX:
        raise ValueError("a number of an event is out of range")
    check_content(event.kind, event.fields, limits)


def check_content(kind: str, fields: bytes, limits: TimelineLimits) -> None:
    """Raises ValueError."""
    if not 1 <= len(kind) <= KIND_CHARS_MAX:
        raise ValueError(f"the kind of an event has 1 to {KIND_CHARS_MAX} characters")
    if len(fields) > limits.event_bytes:
        raise ValueError(f"an event has {len(fields)} bytes, at most {limits.event_bytes} are allowed")
    try:
        msgspec.json.decode(fields, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"an event is not a JSON object: {error}") from error


class EventLog:
    """What is kept of one origin: contiguous, the newest, within the bounds. Never empty once it has begun."""

    __slots__ = ("_bytes", "_events", "_late", "_limits", "_start")

    def __init__(self, limits: TimelineLimits) -> None:
        self._limits = limits
        self._events: list[Event] = []
        self._start = 0  # the events before it in the list are gone
        self._bytes = 0
        self._late: set[int] = set()

    def __len__(self) -> int:
        return len(self._events) - self._start

    @property
    def bytes(self) -> int:
        """Of the events kept, about."""
        return self._bytes

    @property
    def first(self) -> int:
        """Number of the oldest event kept; 1 if there is none."""
        return self._events[self._start].seq if self._events else 1

    @property
    def last(self) -> Event | None:
        """The newest event."""
        return self._events[-1] if self._events else None

    @property
    def last_seq(self) -> int:
        """Number of the newest event; 0 if there is none."""
        return self._events[-1].seq if self._events else 0

    def is_late(self, seq: int) -> bool:
        """Whether that event came below a time that had been handed out as final."""
        return seq in self._late

    def after(self, seq: int) -> Iterator[Event]:
        """Those kept beyond `seq`, in order. Not to be held over a change."""
        for index in range(self._start + max(0, seq + 1 - self.first), len(self._events)):
            yield self._events[index]

    def append(self, event: Event, *, is_late: bool) -> list[int]:
        """Takes the next one. Returns the numbers of those that had to go for it.

        An event beyond the next one means that those between are kept nowhere: what is held before them goes, too.
        """
        gone: list[int] = []
        if self._events and event.seq != self.last_seq + 1:
            gone.extend(range(self.first, self.last_seq + 1))
            self._events, self._start, self._bytes, self._late = [], 0, 0, set()
        self._events.append(event)
        self._bytes += _size(event)
        if is_late:
            self._late.add(event.seq)
        while self._is_too_much():
            oldest = self._events[self._start]
            self._start += 1
            self._bytes -= _size(oldest)
            self._late.discard(oldest.seq)
            gone.append(oldest.seq)
        if self._start > len(self._events) // 2:
            del self._events[: self._start]
            self._start = 0
        return gone

    def _is_too_much(self) -> bool:
        count = len(self._events) - self._start
        limits = self._limits
        return count > 1 and (count > limits.events_per_origin or self._bytes > limits.bytes_per_origin)


def _size(event: Event) -> int:
    return len(event.fields) + len(event.kind) + 64
