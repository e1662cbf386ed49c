"""AvailableAnswers: what a node answers without a leader and without a quorum, from what it has: `kv.available`.

Turns what clients say (contexts, tokens, cursors, deadlines) into calls of keyspace and timeline, and back.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager

from kvnode.clocks.clock import Clock
from kvnode.clocks.version_vector import Dot, Origin
from kvnode.errors import Conflict, NotReady, Timeout
from kvnode.gossip.event import Event
from kvnode.gossip.key_state import Context, KeyState
from kvnode.gossip.keyspace import Written
from kvnode.gossip.resolve import resolve as resolve_siblings
from kvnode.ids import NodeId
from kvnode.kv.available import (
    EVENT_KIND,
    NOTHING_SEEN,
    PAGE_ITEMS,
    ApPage,
    ApRead,
    ApWritten,
    AvailableNode,
    DotRow,
    EventPage,
    Resolve,
    Seen,
    TimelineEvent,
)
from kvnode.kv.interface import TIMEOUT_MS_DEFAULT
from kvnode.node.eventual import Eventual
from kvnode.node.story import Story
from kvnode.wire.ap_context import decode_context, encode_context
from kvnode.wire.event_cursor import decode_event_cursor, encode_event_cursor

SHOWN_AT_ONCE = 500
"""Keys of a listing that are made ready in one turn of the loop."""


class AvailableAnswers(AvailableNode):
    """The calls of clients; who is alive, and the life of it all, are `AvailablePlane`'s."""

    def __init__(self, *, cluster_id: int, eventual: Eventual, story: Story, clock: Clock) -> None:
        self._cluster_id = cluster_id
        self._eventual = eventual
        self._story = story
        self._clock = clock
        self._names: dict[NodeId, str] = {}
        self._is_closed = False  # takes part no more

    @property
    def lamport_time(self) -> int:
        return self._story.time()

    # ── the keyspace ────────────────────────────────────────────────────────────────────────────────

    async def ap_get(
        self,
        key: bytes,
        *,
        resolve: Resolve | None = None,
        seen: Seen = NOTHING_SEEN,
        timeout_ms: int = TIMEOUT_MS_DEFAULT,
    ) -> ApRead:
        await self._reach(seen, timeout_ms)
        return self._shown(key, self._eventual.keyspace.read(key), resolve)

    async def ap_put(
        self,
        key: bytes,
        value: bytes,
        *,
        context: str | None = None,
        seen: Seen = NOTHING_SEEN,
        timeout_ms: int = TIMEOUT_MS_DEFAULT,
    ) -> ApWritten:
        self._observe(seen)
        known = self._context(context, key)
        async with _within(timeout_ms):
            written = await self._refusing(key, self._eventual.put(key, value, known))
        return self._written(key, written)

    async def ap_delete(
        self,
        key: bytes,
        *,
        context: str | None = None,
        seen: Seen = NOTHING_SEEN,
        timeout_ms: int = TIMEOUT_MS_DEFAULT,
    ) -> ApWritten:
        self._observe(seen)
        known = self._context(context, key)
        async with _within(timeout_ms):
            written = await self._eventual.delete(key, known)
        return self._written(key, written)

    async def ap_list(
        self,
        prefix: bytes = b"",
        *,
        after: bytes | None = None,
        limit: int = PAGE_ITEMS,
        seen: Seen = NOTHING_SEEN,
        timeout_ms: int = TIMEOUT_MS_DEFAULT,
    ) -> ApPage:
        await self._reach(seen, timeout_ms)
        found, more = self._eventual.list(prefix, after, limit)
        items: list[ApRead] = []
        for first in range(0, len(found), SHOWN_AT_ONCE):
            if first:
                await asyncio.sleep(0)  # others have their turn
            items += [self._shown(key, state, None) for key, state in found[first : first + SHOWN_AT_ONCE]]
        return ApPage(tuple(items), more)

    async def _reach(self, seen: Seen, timeout_ms: int) -> None:
        self._check_open()
        self._observe(seen)
        deadline_ms = self._clock.monotonic_ms() + timeout_ms
        for member, incarnation, n in seen.dots:
            left_ms = max(0, deadline_ms - self._clock.monotonic_ms())
            await self._eventual.reach(Dot(Origin(NodeId(member), incarnation), n), left_ms)
        self._check_open()

    def _observe(self, seen: Seen) -> None:
        """What happens here from now on comes after what the caller has seen. Raises: NotReady."""
        if not self._story.observe_client(seen.lamport):
            raise NotReady("the token names a Lamport time that is far ahead of what this node has heard of")

    async def _refusing(self, key: bytes, write: Awaitable[Written]) -> Written:
        """A refusal that carries a context carries it as clients know it."""
        try:
            return await write
        except Conflict as error:
            context = error.detail.get("context")
            if isinstance(context, Context):
                error.detail["context"] = encode_context(context, self._cluster_id, key)
            raise

    def _context(self, text: str | None, key: bytes) -> Context | None:
        self._check_open()
        return None if text is None else decode_context(text, self._cluster_id, key)

    def _shown(self, key: bytes, state: KeyState | None, resolve: Resolve | None) -> ApRead:
        if state is None:
            return ApRead(key, (), (), "")
        context = encode_context(Context(state.context), self._cluster_id, key)
        siblings = state.in_order
        dots = tuple(map(_row, state.dots))
        if resolve is not None and len(siblings) > 1:
            value = resolve_siblings(state, resolve)
            assert value is not None
            return ApRead(key, (value,), (max(sibling.time for sibling in siblings),), context, dots)
        return ApRead(key, tuple(one.value for one in siblings), tuple(one.time for one in siblings), context, dots)

    def _written(self, key: bytes, written: Written) -> ApWritten:
        state, dot = written.state, written.dot
        own = next((sibling.time for sibling in state.siblings if sibling.dot == dot), 0)
        return ApWritten(encode_context(written.context, self._cluster_id, key), _row(dot) if dot else None, own)

    # ── the timeline ────────────────────────────────────────────────────────────────────────────────

    async def post_event(
        self, fields: bytes, *, seen: Seen = NOTHING_SEEN, timeout_ms: int = TIMEOUT_MS_DEFAULT
    ) -> TimelineEvent:
        self._check_open()
        self._observe(seen)
        async with _within(timeout_ms):
            event = await self._story.post(EVENT_KIND, fields)
        return self._event(event, is_late=False, gap=0)

    async def events(
        self,
        cursor: str = "",
        *,
        stable: bool = False,
        allow_late: bool = False,
        limit: int = PAGE_ITEMS,
        wait_ms: int = 0,
    ) -> EventPage:
        self._check_open()
        after = decode_event_cursor(cursor)
        deadline_ms = self._clock.monotonic_ms() + wait_ms
        while True:
            page = self._story.timeline.page(after, limit=limit, is_stable=stable, allow_late=allow_late)
            left_ms = deadline_ms - self._clock.monotonic_ms()
            if page.events or left_ms <= 0 or self._is_closed:
                break
            after = page.cursor
            await self._story.news(left_ms)
        events = tuple(self._event(shown.event, is_late=shown.is_late, gap=shown.gap) for shown in page.events)
        return EventPage(events, encode_event_cursor(page.cursor), page.watermark, page.more)

    def _event(self, event: Event, *, is_late: bool, gap: int) -> TimelineEvent:
        return TimelineEvent(
            member=event.member,
            incarnation=event.incarnation,
            seq=event.seq,
            boot=event.boot,
            lamport=event.lamport,
            wall_ms=event.wall_ms,
            kind=event.kind,
            node=self._names.get(event.member, ""),
            fields=event.fields,
            late=is_late,
            gap=gap,
        )

    def _check_open(self) -> None:
        if self._is_closed:
            raise NotReady("the node is stopping")


@asynccontextmanager
async def _within(timeout_ms: int) -> AsyncIterator[None]:
    """A write that is not durable in time: whether it will be, is not known. Raises: Timeout."""
    try:
        async with asyncio.timeout(timeout_ms / 1e3):
            yield
    except TimeoutError:
        raise Timeout("the write was not durable on this node in time; it may be later") from None


def _row(dot: Dot) -> DotRow:
    return (dot.origin.member, dot.origin.incarnation, dot.n)
