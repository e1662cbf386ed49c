"""AvailablePlane: what a node offers without a leader and without a quorum, put together.

Owns the gossip driver, the keyspace, the timeline and their store from start to end; beside the consistent core, never
part of it. Of that core it takes three things, all of them hints or labels: who the configuration names, what happened
(facts become events), and how far this node has applied. It gives back none: gossip never changes voters, terms or
leases (GO6).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from kvnode.clocks.clock import Clock
from kvnode.clocks.version_vector import Dot, Origin
from kvnode.errors import Conflict, ConnectionLost, NotReady, Timeout
from kvnode.gossip.finality import Electorate
from kvnode.gossip.key_state import Context, KeyState
from kvnode.gossip.keyspace import Written
from kvnode.gossip.messages import Status
from kvnode.gossip.output import GossipFact
from kvnode.gossip.resolve import resolve as resolve_siblings
from kvnode.ids import Index, NodeId
from kvnode.kv.available import (
    EVENT_KIND,
    NOTHING_SEEN,
    PAGE_ITEMS,
    AliveMember,
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
from kvnode.kv.interface import TIMEOUT_MS_DEFAULT, AliveStatus
from kvnode.node import available_counters
from kvnode.node.available_log import DurableRows
from kvnode.node.eventual import Eventual
from kvnode.node.gossip_driver import GossipDriver
from kvnode.node.own_events import OwnEvents
from kvnode.node.story import Story
from kvnode.observe.log import get_logger
from kvnode.raft.messages import Configuration
from kvnode.raft.output import Fact
from kvnode.wire.ap_context import decode_context, encode_context
from kvnode.wire.event_cursor import decode_event_cursor, encode_event_cursor
from kvnode.wire.frames import FEATURE_LEVEL_TIMES

SHOWN_AT_ONCE = 500
"""Keys of a listing that are made ready in one turn of the loop."""

FORGET_S = 30.0
"""How often tombstones are looked for that every member has."""

DESCRIBE_S = 1.0
"""How often what this node tells of itself is brought up to date, and what it sees of others looked at."""

LEAVE_MS = 500
"""A clean stop spends so long at most on telling others."""

SETTLE_MS = 1_000
"""… and so long on what has still to reach the disk."""

_STATUS: dict[int, AliveStatus] = {
    Status.UNKNOWN: "unknown",
    Status.ALIVE: "alive",
    Status.SUSPECT: "suspect",
    Status.DEAD: "dead",
    Status.LEFT: "left",
}

log = get_logger("available")


class AvailablePlane(AvailableNode):
    """One node's part in it. Lives on the node's loop."""

    def __init__(
        self,
        *,
        node: NodeId,
        cluster_id: int,
        rows: DurableRows,
        eventual: Eventual,
        story: Story,
        driver: GossipDriver,
        clock: Clock,
        loop: asyncio.AbstractEventLoop,
        describe: Callable[[], dict[str, Any]],
        on_failed: Callable[[BaseException], None],
        gossip_counters: Callable[[], Mapping[str, int]] = dict,
        feature_level: int = FEATURE_LEVEL_TIMES,
        feature_levels: Callable[[], Mapping[NodeId, int]] = dict,
        reaches_quorum: Callable[[], bool | None] = lambda: None,
    ) -> None:
        """`describe`: what this node tells of itself (`Gossip.describe`), looked at once a second.

        `feature_level`: what this node claims to know; `feature_levels`: what others claim, 0 for who was not met yet.
        `reaches_quorum`: whether it sees a majority of the voters; None: it cannot tell.
        """
        self._node = node
        self._cluster_id = cluster_id
        self._rows = rows
        self._eventual = eventual
        self._story = story
        self._driver = driver
        self._clock = clock
        self._loop = loop
        self._describe = describe
        self._on_failed = on_failed
        self._gossip_counters = gossip_counters
        self._feature_level = feature_level
        self._feature_levels = feature_levels
        self._reaches_quorum = reaches_quorum
        self._own_events = OwnEvents()
        self._names: dict[NodeId, str] = {}
        self._members: tuple[NodeId, ...] = ()
        self._addresses: dict[NodeId, str] = {}
        self._gossiping: dict[NodeId, str] = {}  # those that the configuration names and that know gossip
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._is_started = False
        self._is_closed = False  # takes part no more
        self._is_released = False  # … and holds nothing any more
        self._is_telling = False

    # ── life ────────────────────────────────────────────────────────────────────────────────────────

    async def start(self) -> None:
        """Take part in gossip. Raises OSError if the port of datagrams is taken."""
        await self._driver.start()
        if self._is_closed:  # meanwhile
            return
        self._is_started = True
        self.record("node.started", {})
        self._tend_description()
        self._tend_tombstones()

    async def leave(self) -> None:
        """Tell the others that this node leaves on purpose, within `LEAVE_MS`."""
        if self._is_started and not self._is_closed:
            self.record("node.stopping", {})
            await self._driver.leave(LEAVE_MS)

    async def stop(self, *, abandon: bool = False) -> None:
        """End; what was written is made durable unless it is to be abandoned. Idempotent, and safe after `halt`."""
        abandon = abandon or self._is_closed
        self._end()
        if self._is_released:
            return
        self._is_released = True
        try:
            await self._driver.close()
            await self._story.settle(0 if abandon else SETTLE_MS)
        finally:
            await self._rows.close(abandon=abandon)
            self._refuse("the node is stopping")

    def halt(self) -> None:
        """Stop at once, as a killed process does, or one that failed. Port and store are `stop`'s to give back."""
        self._end()
        self._story.finish()
        self._driver.halt()
        self._refuse("the node was stopped")

    def _end(self) -> None:
        self._is_closed = True
        for timer in self._timers.values():
            timer.cancel()

    def _refuse(self, why: str) -> None:
        error = ConnectionLost(f"{why}; the request may have taken effect")
        self._story.close(error)
        self._eventual.close(error)

    def changed(self) -> None:
        """There is something new that others lack. They are told at the end of the turn, of all that it brought."""
        if not (self._is_closed or self._is_telling):
            self._is_telling = True
            self._loop.call_soon(self._guarded, self._tell)

    def _tell(self) -> None:
        self._is_telling = False
        if not self._is_closed:
            self._driver.changed()

    @property
    def clock_hook(self) -> Story:
        """The Lamport clock as messages between nodes carry it: `time` and `observe`."""
        return self._story

    # ── what the consistent core tells ──────────────────────────────────────────────────────────────

    def set_members(self, in_force: Configuration, committed: Configuration, index: Index) -> None:
        """Whom the configuration in force names, or the newest known to be `committed`, with the entry at `index`.

        Who has to agree is read off the latter, which never goes back: after a restart what is applied, and what is in
        force, are those of an older state until the log has been read again.
        """
        if self._is_closed:
            return
        named = {member.id: member for member in (*in_force.members, *committed.members)}
        self._names = {member.id: member.name for member in named.values()}
        self._members = tuple(sorted(named))
        self._addresses = {member.id: member.address for member in named.values()}
        self._own_events.removed(self._names)
        self._tell_driver()
        members = tuple(sorted(member.id for member in committed.members))
        self._story.set_electorate(Electorate(index, tuple(sorted(committed.voters)), members))

    def _tell_driver(self) -> None:
        """Gossip goes on between members that know of it; the others would only look dead.

        Who was not met yet is taken for one that does: if it is not there, that is what gossip has to find out.
        """
        levels, own = self._feature_levels(), self._feature_level
        known = {
            member: address
            for member, address in self._addresses.items()
            if member == self._node or min(own, levels.get(member) or FEATURE_LEVEL_TIMES) >= FEATURE_LEVEL_TIMES
        }
        if known != self._gossiping:
            self._gossiping = known
            self._driver.set_members(known)

    def on_raft_fact(self, fact: Fact) -> None:
        """Something happened in the consistent core."""
        told = self._own_events.of_raft(fact)
        if told is not None:
            self.record(*told)

    def on_gossip_fact(self, fact: GossipFact) -> None:
        """Something happened in gossip."""
        told = self._own_events.of_gossip(fact)
        if told is not None:
            log.info(told[0], node=self._node, **told[1])
            self.record(*told)

    def record(self, kind: str, fields: dict[str, Any]) -> None:
        """Something else happened that belongs into the timeline."""
        if not self._is_closed:
            self._story.record(kind, fields)

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

    def _event(self, event: Any, *, is_late: bool, gap: int) -> TimelineEvent:
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

    # ── who is alive ────────────────────────────────────────────────────────────────────────────────

    @property
    def lamport_time(self) -> int:
        return self._story.time()

    def alive_members(self) -> tuple[AliveMember, ...]:
        now_ms = self._clock.monotonic_ms()
        gossip = self._driver.gossip
        own = gossip.own
        found = [
            AliveMember(
                id=self._node,
                status="alive",
                number=own.number,
                incarnation=f"{own.incarnation:016x}",
                role=own.role,
                peer_address=own.address,
                client_url=own.client_url,
                version=own.version,
                applied_index=own.applied_index,
            )
        ]
        for state in gossip.table():
            rumor = state.rumor
            found.append(
                AliveMember(
                    id=rumor.member,
                    status=_STATUS[state.status],
                    number=rumor.number,
                    incarnation=f"{rumor.incarnation:016x}" if rumor.incarnation else "",
                    rtt_ms=None if state.rtt_ms is None else round(state.rtt_ms, 3),
                    since_ms=now_ms - state.since_ms,
                    last_heard_ms=None if state.last_heard_ms < 0 else now_ms - state.last_heard_ms,
                    role=rumor.role,
                    peer_address=rumor.address,
                    client_url=rumor.client_url,
                    version=rumor.version,
                    applied_index=rumor.applied_index or None,
                )
            )
        silent = [member for member in self._members if member not in self._gossiping]
        found += [
            AliveMember(id=member, status="unknown", peer_address=self._addresses[member])
            for member in silent
            if member != self._node
        ]
        return tuple(sorted(found, key=lambda member: member.id))

    def available_counters(self) -> dict[str, Any]:
        return available_counters.collect(
            rows=self._rows,
            eventual=self._eventual,
            story=self._story,
            driver=self._driver,
            traffic=self._gossip_counters(),
            members=self.alive_members(),
        )

    # ── from time to time ───────────────────────────────────────────────────────────────────────────

    def _tend_description(self) -> None:
        self._timers["describe"] = self._loop.call_later(DESCRIBE_S, self._guarded, self._tend_description)
        self._driver.describe(self._describe())
        self._driver.catch_up()
        self._tell_driver()
        told = self._own_events.of_quorum(self._reaches_quorum())
        if told is not None:
            self.record(*told)

    def _tend_tombstones(self) -> None:
        self._timers["forget"] = self._loop.call_later(FORGET_S, self._guarded, self._tend_tombstones)
        self._eventual.forget(self._node, self._members)

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - a bug must end the node, not go unseen in a timer
            self._on_failed(error)

    def _check_open(self) -> None:
        if self._is_closed:
            raise NotReady("the node is stopping")


def _within(timeout_ms: int) -> Any:
    return _Deadline(timeout_ms)


class _Deadline:
    """A write that is not durable in time: whether it will be, is not known."""

    def __init__(self, timeout_ms: int) -> None:
        self._timeout = asyncio.timeout(timeout_ms / 1e3)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, *raised: Any) -> None:
        try:
            await self._timeout.__aexit__(*raised)
        except TimeoutError:
            raise Timeout("the write was not durable on this node in time; it may be later") from None


def _row(dot: Dot) -> DotRow:
    return (dot.origin.member, dot.origin.incarnation, dot.n)
