"""Available: what a node offers without a leader and without a quorum.

Three things, beside the linearizable store and never part of it: a keyspace that always takes writes and keeps
concurrent ones apart (`ap_*`), one causally ordered timeline of what happened in the cluster (`events`), and who is
alive as gossip sees it (`AvailableNode.alive_members`). `Node`, `Client` and the embedded node implement `Available`;
front ends are written against it, as they are against `KV`.

*Origin*: a member together with the incarnation of its `ap/` store, which begins anew when the store is lost. It
numbers its writes (*dots*) and its events from 1 without gaps, so one number per origin says what somebody has.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from typing import Any, Literal

import msgspec

from kvnode.ids import NodeId
from kvnode.kv.interface import TIMEOUT_MS_DEFAULT, AliveStatus

VALUE_BYTES_MAX = 64 * 1024
"""Of one value of the keyspace: a whole key, all its siblings, must fit into a page between nodes."""

SIBLINGS_MAX = 32
"""A write without context that would make more is refused; one with context always passes."""

EVENT_BYTES_MAX = 4 * 1024
"""Of the JSON object that a posted event is."""

EVENT_KIND = "user"
"""The kind of posted events. All others are the cluster's own."""

PAGE_ITEMS = 1_000
PAGE_ITEMS_MAX = 10_000
"""Of keys. A page of events holds at most `PAGE_ITEMS`."""

PAGE_BYTES_MAX = 8 * 1024 * 1024
"""Front ends end a page of keys before the one that would make it larger."""

WAIT_MS_MAX = 60_000
"""How long `events` waits for something new."""

Resolve = Literal["lww", "max", "union"]
"""How siblings become one value. lww: newest hybrid time, then member. max: the last in byte order. union: JSON arrays
merged. What is stored keeps its siblings: only a write with the context replaces them."""

RESOLUTIONS: tuple[Resolve, ...] = ("lww", "max", "union")

DotRow = tuple[int, int, int]
"""One write of the keyspace: member, incarnation, number from 1."""


class Seen(msgspec.Struct, frozen=True, gc=False):
    """What a client has seen of this plane, by its token: answers must not go back behind it."""

    lamport: int = 0  # an event that it posts comes after this time
    dots: tuple[DotRow, ...] = ()  # writes that a read must cover: at most one an origin, the one seen last at the end


NOTHING_SEEN = Seen()

SEEN_DOTS_MAX = 8
"""Of one token. Beyond it the one seen longest ago goes: by then it has spread, or its origin is cut off."""


def seen_also(seen: Seen, lamport: int, dots: tuple[DotRow, ...] = ()) -> Seen:
    """`seen`, and these as well."""
    newest = {(member, incarnation): n for member, incarnation, n in seen.dots}
    for member, incarnation, n in dots:
        newest[member, incarnation] = max(n, newest.pop((member, incarnation), 0))
    rows = tuple((member, incarnation, n) for (member, incarnation), n in newest.items())
    return Seen(max(seen.lamport, lamport), rows[-SEEN_DOTS_MAX:])


class ApRead(msgspec.Struct, frozen=True):
    """One key of the always-writable keyspace. No values: there is none, but a write still goes by the context."""

    key: bytes
    values: tuple[bytes, ...]  # siblings in canonical order: value bytes, then dot; the same on all nodes
    times: tuple[int, ...]  # hybrid timestamps of their writes, in the same order
    context: str  # opaque; sent back with the write that replaces what was read. "" if nothing was ever here
    dots: tuple[DotRow, ...] = ()  # what a later read must cover to show no less; of a deletion: the deleting one


class ApWritten(msgspec.Struct, frozen=True):
    """A put or delete that is durable on the node that took it."""

    context: str  # covers this write and what it replaced
    token_dot: DotRow | None  # None: there was nothing to delete
    time: int = 0  # hybrid timestamp


class ApPage(msgspec.Struct, frozen=True):
    """Keys in byte order, without those that have no value."""

    items: tuple[ApRead, ...]
    more: bool


class TimelineEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One event. Ordered by (lamport, member, incarnation, seq): causes before effects, the same on all nodes."""

    member: NodeId
    incarnation: int
    seq: int  # from 1 without gaps within (member, incarnation)
    boot: int  # of the process that recorded it
    lamport: int
    wall_ms: int  # its clock then, in Unix milliseconds: for people, never for order
    kind: str
    node: str = ""  # name of the member, as known where it is read
    fields: bytes = b"{}"  # a JSON object
    late: bool = False  # it came below a time that had been handed out as final
    gap: int = 0  # so many events of this origin just before it are no longer kept

    @property
    def id(self) -> str:
        """Unique for ever in its cluster."""
        return f"{self.member}-{self.incarnation:016x}-{self.seq}"


class EventPage(msgspec.Struct, frozen=True):
    """Part of the timeline, in its order."""

    events: tuple[TimelineEvent, ...]
    cursor: str  # opaque; continues after these, on any node
    watermark: int  # Lamport time up to which nothing new can appear
    more: bool  # another page is there already


class AliveMember(msgspec.Struct, frozen=True, kw_only=True):
    """One member as gossip on this node sees it. A hint for people and for the choice of a node; it decides nothing."""

    id: NodeId
    status: AliveStatus
    number: int = 0  # SWIM's incarnation number: a member raises it to refute a suspicion
    incarnation: str = ""  # of its data directory, 16 hex digits; "" until it is known
    rtt_ms: float | None = None  # of the newest answer to a probe of ours
    since_ms: int | None = None  # it has had this status for so long
    last_heard_ms: int | None = None  # so long ago
    role: str = ""  # leader, follower, candidate, learner, observer; "" until it has told
    peer_address: str = ""
    client_url: str = ""
    version: str = ""
    applied_index: int | None = None


class Available(ABC):
    """The plane that needs no quorum. Every call is answered by the node that is asked, from what it has."""

    @abstractmethod
    async def ap_get(
        self,
        key: bytes,
        *,
        resolve: Resolve | None = None,
        seen: Seen = NOTHING_SEEN,
        timeout_ms: int = TIMEOUT_MS_DEFAULT,
    ) -> ApRead:
        """One key; `resolve`: as one value, with the context of all its siblings.

        Raises: NotReady if `seen` has not arrived here by the deadline; Conflict for a union of what is no JSON array.
        """

    @abstractmethod
    async def ap_put(
        self,
        key: bytes,
        value: bytes,
        *,
        context: str | None = None,
        seen: Seen = NOTHING_SEEN,
        timeout_ms: int = TIMEOUT_MS_DEFAULT,
    ) -> ApWritten:
        """Write; replaces what `context` covers and stands beside the rest. Durable here when answered.

        Raises: BadContext; Conflict (detail `context`) for a write without context beyond `SIBLINGS_MAX`; TooLarge;
        Overloaded or NoSpace (not applied); Timeout (unknown).
        """

    @abstractmethod
    async def ap_delete(
        self,
        key: bytes,
        *,
        context: str | None = None,
        seen: Seen = NOTHING_SEEN,
        timeout_ms: int = TIMEOUT_MS_DEFAULT,
    ) -> ApWritten:
        """Delete what `context` covers, without one what this node has; concurrent writes survive. Else as `ap_put`."""

    @abstractmethod
    async def ap_list(
        self,
        prefix: bytes = b"",
        *,
        after: bytes | None = None,
        limit: int = PAGE_ITEMS,
        seen: Seen = NOTHING_SEEN,
        timeout_ms: int = TIMEOUT_MS_DEFAULT,
    ) -> ApPage:
        """A page of the keys that start with `prefix`, those after `after`. Raises: as `ap_get`."""

    @abstractmethod
    async def post_event(
        self, fields: bytes, *, seen: Seen = NOTHING_SEEN, timeout_ms: int = TIMEOUT_MS_DEFAULT
    ) -> TimelineEvent:
        """Record a user's event; its Lamport time is greater than `seen.lamport`. Durable here when answered.

        `fields`: a JSON object of at most `EVENT_BYTES_MAX`. Raises: BadRequest, TooLarge, else as `ap_put`.
        """

    @abstractmethod
    async def events(
        self,
        cursor: str = "",
        *,
        stable: bool = False,
        allow_late: bool = False,
        limit: int = PAGE_ITEMS,
        wait_ms: int = 0,
    ) -> EventPage:
        """What follows `cursor`, "" from the oldest that is kept; waits up to `wait_ms` until there is something.

        `stable`: only the prefix of the timeline that is final, the same on all nodes. It stands still while a voter
        cannot be heard. `allow_late`: also events without a place in it, of learners and such that came too late.
        Raises: BadEncoding for a cursor that is not one of ours.
        """


async def follow_events(
    available: Available, cursor: str = "", *, stable: bool = False, allow_late: bool = False, limit: int = PAGE_ITEMS
) -> AsyncIterator[EventPage]:
    """Pages for ever, each with something in it."""
    while True:
        page = await available.events(
            cursor, stable=stable, allow_late=allow_late, limit=limit, wait_ms=WAIT_MS_MAX // 2
        )
        cursor = page.cursor
        if page.events:
            yield page


class AvailableNode(Available):
    """What a front end may also see of the node."""

    @property
    @abstractmethod
    def lamport_time(self) -> int:
        """The greatest Lamport time issued or seen here; cheap."""

    @abstractmethod
    def alive_members(self) -> tuple[AliveMember, ...]:
        """The members as gossip sees them, this node among them, by id; never waits."""

    @abstractmethod
    def available_counters(self) -> dict[str, Any]:
        """Plain numbers of this plane, by metric name (`kvnode.observe.metrics`)."""
