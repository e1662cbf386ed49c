"""Timeline: what happened in the cluster as one story, the same on every node, causes before effects.

Each origin keeps a log of its own events (`event.py`); nodes pull from each other what they lack, page by page, and
every node shows the merge of all logs in the order of (Lamport time, member, incarnation, number). A reader continues
by a cursor that says how far it has read of each origin; by a Lamport time it would miss what arrives late.

The final order (`is_stable`) holds what was recorded under a voter's promise (`finality.py`) and lies at or below the
watermark. What a node shows of it is at any moment the beginning of one sequence, the same on all nodes.

What the shell has to do, in this order:

- Make the rows of `take_changes` durable in one commit, with the clock's ceiling if one is asked for, then tell
  `on_durable`; one commit at a time. Until then an own event is shown to nobody and counts for nobody, so that its
  number is never given to another. The events of others are shown at once; if a crash takes them they come again, and
  cursors still fit.
- After each merge, each own event and each new configuration: `promise`, then `watermark`.
- Carry `digest` in every packet; whoever sees another one pulls.

Invariants: numbers of an origin are contiguous but for what rings dropped, and that is counted wherever it would show;
nothing is merged at or below the watermark without being marked late; the watermark never falls.

Source: patterns LC1 to LC7; Lamport (1978).
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec

from kvnode.clocks.lamport import JUMP_MAX
from kvnode.clocks.version_vector import Origin, VersionVector
from kvnode.gossip.event import Event, EventLog, TimelineLimits, check_content, rank
from kvnode.gossip.finality import CLOSED, Electorate, Finality, Report
from kvnode.gossip.timeline_rows import (
    EVENT,
    REPORT,
    STATE_KEY,
    EventsDelta,
    TimelineState,
    event_key,
    event_value,
    read_event,
    read_report,
    read_state,
    report_row,
)
from kvnode.ids import NodeId

Row = tuple[bytes, bytes]

_EVENT_OVERHEAD_BYTES = 96


class Merged(NamedTuple):
    """What a page brought."""

    events: tuple[Event, ...] = ()  # new here
    lamport: int = 0  # the greatest time among them, for the clock to observe
    refused: int = 0  # events that are not merged: out of order, a jump of time, one origin too many
    is_behind_itself: bool = False  # others hold events of this origin that it does not know: its store is an old copy


class ShownEvent(NamedTuple):
    """One event of a page for readers."""

    event: Event
    is_late: bool  # it arrived at or below a time that had been handed out as final
    gap: int  # so many events of its origin just before it, not read yet, are no longer kept


class TimelinePage(NamedTuple):
    """Events in their order. `cursor` continues after them, on any node."""

    events: tuple[ShownEvent, ...]
    cursor: VersionVector
    watermark: int
    more: bool


class Timeline:
    """All events this node holds, its own among them."""

    def __init__(
        self,
        origin: Origin,
        boot: int,
        limits: TimelineLimits | None = None,
        *,
        is_founder: bool,
        rows: Iterable[Row] = (),
    ) -> None:
        """`rows`: what the store of this origin holds, all keys with `PREFIX`. Raises ValueError if they do not fit.

        `boot`: counts the starts of the member, whatever became of its store: a later one than the first without any
        rows means that the store was lost. `is_founder`: a voter of the cluster's first configuration.
        """
        self._origin = origin
        self._boot = boot
        self._limits = limits or TimelineLimits()
        self._logs: dict[Origin, EventLog] = {}
        self._vector: VersionVector | None = None
        self._pending: list[Event] = []  # own events that are not durable yet
        self._being_written: int | None = None  # the last own event in the commit under way
        self._changed: dict[bytes, bytes] = {}
        self._removed: dict[bytes, None] = {}
        rows = sorted(rows)
        state = next((read_state(value) for key, value in rows if key == STATE_KEY), None)
        self._is_renewed = state.is_renewed if state else boot > 1
        self._finality = Finality(
            origin, is_founder=is_founder, is_renewed=self._is_renewed, origins_max=self._limits.origins
        )
        self._restore(rows, state)
        if state is None:
            self._store_state()

    # -- what is known ------------------------------------------------------------------------------------------------

    @property
    def origin(self) -> Origin:
        """Whose own events are recorded here."""
        return self._origin

    @property
    def vector(self) -> VersionVector:
        """Of each origin the last event held; own ones once they are durable."""
        if self._vector is None:
            self._vector = VersionVector({origin: log.last_seq for origin, log in self._logs.items() if log.last_seq})
        return self._vector

    @property
    def lamport(self) -> int:
        """The greatest time of any event here: after a restart the clock has to observe it."""
        newest = [log.last.lamport for log in self._logs.values() if log.last]
        return max([*newest, *(event.lamport for event in self._pending)], default=0)

    def digest(self) -> int:
        """64 bits over everything a pull could bring: two nodes with the same have nothing to tell each other."""
        packed = msgspec.msgpack.encode((self.vector.to_row(), self._finality.reports()))
        return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "big")

    # -- own events ---------------------------------------------------------------------------------------------------

    def record(self, kind: str, fields: bytes, *, lamport: int, wall_ms: int) -> Event:
        """Something happened here. Shown once it is durable. `lamport`: from a tick. Raises ValueError: `fields`."""
        check_content(kind, fields, self._limits)
        before = self._pending[-1] if self._pending else self._last_of(self._origin)
        seq, floor = (before.seq + 1, before.lamport) if before else (1, 0)
        assert lamport > floor, (lamport, floor)
        is_ranked = self._finality.is_promising
        event = Event(*self._origin, self._boot, seq, lamport, wall_ms, kind, fields, is_ranked)
        self._pending.append(event)
        self._changed[event_key(self._origin, seq)] = event_value(event, is_late=False)
        return event

    def on_durable(self) -> tuple[Event, ...]:
        """What `take_changes` gave is durable. Returns the own events that may be shown from now on."""
        seq, self._being_written = self._being_written or 0, None
        shown = tuple(event for event in self._pending if event.seq <= seq)
        del self._pending[: len(shown)]
        for event in shown:
            self._append(event)
        return shown

    def promise(self, lamport: int, electorate: Electorate) -> tuple[Report, ...]:
        """Reports what this node may promise now. `lamport`: the clock's `promised_time`. Returns what is new."""
        if self._pending:
            lamport = min(lamport, self._pending[0].lamport - 1)
        held = self.vector
        is_saved = not self._changed and self._being_written is None
        made = self._finality.promise(lamport, held, electorate, is_saved=is_saved)
        self._changed.update(report_row(report) for report in made)
        return tuple(made)

    # -- exchange -----------------------------------------------------------------------------------------------------

    def delta(self, since: VersionVector, bytes_max: int) -> EventsDelta:
        """What somebody that holds `since` lacks; of more than `bytes_max`, the first page."""
        events: list[Event] = []
        starts: dict[Origin, int] = {}
        size = 0
        for event in self._beyond(since):
            size += len(event.fields) + len(event.kind) + _EVENT_OVERHEAD_BYTES
            if events and size > bytes_max:
                break
            events.append(event)
            first = self._logs[event.origin].first
            if first > since.get(event.origin) + 1:
                starts[event.origin] = first
        else:
            return EventsDelta(tuple(events), VersionVector(starts).to_row(), self._finality.reports())
        return EventsDelta(tuple(events), VersionVector(starts).to_row(), more=True)

    def merge(self, delta: EventsDelta, *, time: int) -> Merged:
        """Takes a page. `time`: that of the clock, which then has to observe `Merged.lamport`.

        What does not fit is left out, with everything of its origin that follows; the rest is merged.
        """
        starts = {Origin(NodeId(member), incarnation): seq for member, incarnation, seq in delta.starts}
        fresh: list[Event] = []
        broken: set[Origin] = set()  # asked for membership only
        refused = 0
        is_behind_itself = False
        for event in delta.events:
            origin = event.origin
            last = self._last_of(origin)
            held = last.seq if last else 0
            if event.seq <= held:
                continue
            if origin == self._origin:
                is_behind_itself |= event.seq > held + len(self._pending)
            elif origin in broken or not self._fits(event, starts, time):
                broken.add(origin)
                refused += 1
            else:
                is_late = event.lamport <= self._finality.watermark or self._finality.is_closed(origin, event.seq)
                self._changed[event_key(origin, event.seq)] = event_value(event, is_late=is_late)
                self._append(event, is_late=is_late)
                fresh.append(event)
        for report in delta.reports:
            if (report.origin != self._origin or report.lamport != CLOSED) and self._finality.take(report):
                self._changed.update([report_row(report)])
        return Merged(tuple(fresh), max((event.lamport for event in fresh), default=0), refused, is_behind_itself)

    def heard(self, member: NodeId, time: int) -> None:
        """Nothing is left of what `member` held when its clock stood at `time`: a page without `more` was merged whole.

        A packet that carries the digest of this timeline says the same.
        """
        self._finality.heard(member, time)

    def unheard(self, electorate: Electorate) -> tuple[NodeId, ...]:
        """Whom this node has to hear before it may promise; to be pulled from whatever their digests say."""
        return self._finality.unheard(electorate)

    @property
    def is_promising(self) -> bool:
        """What is recorded here now has a place in the final order."""
        return self._finality.is_promising

    @property
    def counts(self) -> tuple[int, int]:
        """Events held, and their bytes."""
        return sum(map(len, self._logs.values())), sum(log.bytes for log in self._logs.values())

    # -- reading ------------------------------------------------------------------------------------------------------

    def watermark(self, electorate: Electorate) -> int:
        """Up to this time the final order is complete here; never falls."""
        before = self._finality.watermark
        now = self._finality.advance(electorate, self.vector.get, self._logs)
        if now != before:
            self._store_state()
        return now

    def page(
        self, cursor: VersionVector, *, limit: int, is_stable: bool = False, allow_late: bool = False
    ) -> TimelinePage:
        """What is beyond `cursor`. `is_stable`: of the final order only; `allow_late`: with late and unranked ones.

        A reader that stays with one way of reading gets nothing twice, and nothing is left out but what that way
        leaves out: the cursor passes that, so that it is not looked at again with every page.
        """
        shown: list[ShownEvent] = []
        read: dict[Origin, int] = {}
        watermark = self._finality.watermark
        more = False
        for event in self._beyond(cursor):
            if is_stable and event.lamport > watermark:
                break
            log = self._logs[event.origin]
            is_late = log.is_late(event.seq)
            gap = 0 if event.origin in read else max(0, log.first - 1 - cursor.get(event.origin))
            if is_stable and not allow_late and (is_late or not event.is_ranked):
                if not gap:  # else the next that is shown has to tell of it
                    read[event.origin] = event.seq
                continue
            if len(shown) == limit:
                more = True
                break
            read[event.origin] = event.seq
            shown.append(ShownEvent(event, is_late, gap))
        return TimelinePage(tuple(shown), cursor.merge(VersionVector(read)), watermark, more)

    # -- the store ----------------------------------------------------------------------------------------------------

    def take_changes(self) -> tuple[tuple[Row, ...], tuple[bytes, ...]]:
        """(rows to write, keys to remove) since the last time, for one commit; followed by `on_durable`."""
        assert self._being_written is None, "a commit is under way"
        self._being_written = self._pending[-1].seq if self._pending else 0
        changes = tuple(self._changed.items()), tuple(self._removed)
        self._changed, self._removed = {}, {}
        return changes

    def _restore(self, rows: Iterable[Row], state: TimelineState | None) -> None:
        for key, value in rows:
            if key[:2] == EVENT:
                event, is_late = read_event(key, value)
                last = self._last_of(event.origin)
                if last and not (event.seq == last.seq + 1 and _grows(event, last)):
                    raise ValueError("the stored events of an origin do not follow each other")
                self._append(event, is_late=is_late)
            elif key[:2] == REPORT:
                self._finality.take(read_report(value))
            elif key != STATE_KEY:
                raise ValueError(f"a row of the timeline has the unknown key {key.hex()}")
        if state:
            self._finality.watermark = state.watermark

    def _store_state(self) -> None:
        self._changed[STATE_KEY] = msgspec.msgpack.encode(TimelineState(self._finality.watermark, self._is_renewed))

    def _append(self, event: Event, *, is_late: bool = False) -> None:
        log = self._logs.get(event.origin)
        if log is None:
            log = self._logs[event.origin] = EventLog(self._limits)
        for gone in log.append(event, is_late=is_late):
            key = event_key(event.origin, gone)
            self._changed.pop(key, None)
            self._removed[key] = None
        self._vector = None

    def _last_of(self, origin: Origin) -> Event | None:
        log = self._logs.get(origin)
        return log.last if log else None

    def _fits(self, event: Event, starts: dict[Origin, int], time: int) -> bool:
        """Whether it can be merged: the next of its origin, or the first that is kept anywhere."""
        last = self._last_of(event.origin)
        if event.lamport > time + JUMP_MAX or (last and not _grows(event, last)):
            return False
        if last is None and len(self._logs) >= self._limits.origins:
            return False
        return event.seq == (last.seq if last else 0) + 1 or event.seq == starts.get(event.origin)

    def _beyond(self, since: VersionVector) -> Iterator[Event]:
        return heapq.merge(*(log.after(since.get(origin)) for origin, log in self._logs.items()), key=rank)


def _grows(event: Event, last: Event) -> bool:
    return event.lamport > last.lamport and event.boot >= last.boot
