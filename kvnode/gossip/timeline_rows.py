"""The timeline as bytes: pages between nodes, and the rows of its store. All MessagePack arrays.

    key in the store                                          value
    "te", member u64, incarnation u64, seq u64                [event, is late]
    "tr", member u64, incarnation u64                         report: the newest of this origin
    "tw"                                                      [watermark handed out, is renewed]

Numbers in keys are big-endian, so that the rows of an origin come in its order. Everything that is wrong with bytes
that came from elsewhere is a ValueError.
"""

from __future__ import annotations

import struct
from typing import TypeVar

import msgspec

from kvnode.clocks.version_vector import COUNTER_MAX, Origin, VectorRow, VersionVector
from kvnode.gossip.event import Event, TimelineLimits, check_event
from kvnode.gossip.finality import Report, check_report

PREFIX = b"t"
"""Of all keys of the timeline in a store that others use, too."""

EVENT = b"te"
REPORT = b"tr"
STATE_KEY = b"tw"

_EVENT_KEY = struct.Struct(">2sQQQ")
_REPORT_KEY = struct.Struct(">2sQQ")

_T = TypeVar("_T")


class EventsDelta(msgspec.Struct, frozen=True, array_like=True):
    """One page of what somebody lacks: events in their total order, so in order of each origin, too."""

    events: tuple[Event, ...] = ()
    starts: VectorRow = ()  # (member, incarnation, seq): of this origin nothing before seq is kept; where that matters
    reports: tuple[Report, ...] = ()  # all that are known; only with the last page, for they speak of all pages
    more: bool = False


class TimelineState(msgspec.Struct, frozen=True, array_like=True):
    """What is stored once."""

    watermark: int = 0
    is_renewed: bool = False


def encode_delta(delta: EventsDelta) -> bytes:
    """Inverse of `decode_delta`."""
    return msgspec.msgpack.encode(delta)


def decode_delta(data: bytes, limits: TimelineLimits) -> EventsDelta:
    """A page that is in range; whether it fits to what is held, `Timeline.merge` sees. Raises ValueError."""
    delta = _decoded(data, EventsDelta)
    VersionVector.from_row(delta.starts)
    if max(len(delta.starts), len(delta.reports)) > limits.origins:
        raise ValueError("a page of events speaks of too many origins")
    for event in delta.events:
        check_event(event, limits)
    for report in delta.reports:
        check_report(report)
    return delta


def event_key(origin: Origin, seq: int) -> bytes:
    """Where an event is stored."""
    return _EVENT_KEY.pack(EVENT, *origin, seq)


def event_value(event: Event, *, is_late: bool) -> bytes:
    """Inverse of `read_event`."""
    return msgspec.msgpack.encode((event, is_late))


def read_event(key: bytes, value: bytes) -> tuple[Event, bool]:
    """The event, and whether it came late. Raises ValueError."""
    event, is_late = _decoded(value, tuple[Event, bool])
    if not 1 <= event.seq <= COUNTER_MAX or key != event_key(event.origin, event.seq):
        raise ValueError("an event is stored under a key that is not its own")
    return event, is_late


def report_row(report: Report) -> tuple[bytes, bytes]:
    """Key and value."""
    return _REPORT_KEY.pack(REPORT, *report.origin), msgspec.msgpack.encode(report)


def read_report(value: bytes) -> Report:
    """Raises ValueError."""
    report = _decoded(value, Report)
    check_report(report)
    return report


def read_state(value: bytes) -> TimelineState:
    """Raises ValueError."""
    return _decoded(value, TimelineState)


def _decoded(data: bytes, type_: type[_T]) -> _T:
    try:
        return msgspec.msgpack.decode(data, type=type_)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"not a {getattr(type_, '__name__', 'row')} of the timeline: {error}") from error
