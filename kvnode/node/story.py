"""Story: this node's part in the cluster's timeline, and its readers.

An event of this node gets its Lamport time only below the durable ceiling, and is shown to nobody, here or elsewhere,
before it is durable itself: that is what makes its number final. Until the ceiling has risen events wait in order,
`WAITING_MAX` of them; beyond that the oldest of this node's own gives way and is counted, and a user's is refused.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable
from typing import Any

from kvnode.clocks.clock import Clock
from kvnode.clocks.lamport import LamportClock
from kvnode.errors import BadRequest, Overloaded, StorageFailed
from kvnode.gossip.event import Event, TimelineLimits, check_content
from kvnode.gossip.finality import Electorate
from kvnode.gossip.timeline import Timeline
from kvnode.gossip.timeline_rows import decode_delta
from kvnode.ids import NodeId
from kvnode.node.available_log import DurableRows
from kvnode.wire.limits import CodecError

WAITING_MAX = 1_000

FOLLOWERS_MAX = 1_000
"""Readers that wait for something new; further ones are refused."""

ROOM_BYTES = 1 << 20
RETRY_S = 0.1
"""While the disk has less room than that left, nothing is stamped; looked at again after this."""

SETTLE_LOOK_MS = 20


class Story:
    """Lives on the node's loop."""

    def __init__(
        self,
        timeline: Timeline,
        lamport: LamportClock,
        rows: DurableRows,
        *,
        limits: TimelineLimits,
        clock: Clock,
        loop: asyncio.AbstractEventLoop,
        save_ceiling: Callable[[int, Callable[[], None]], None],
        on_news: Callable[[], None],
    ) -> None:
        """`save_ceiling(ceiling, then)`: make it durable, then call back on the loop.

        `on_news`: there is something that others lack, or that readers here can see.
        """
        self.timeline = timeline
        self.lamport = lamport
        self.recorded = self.posted = self.dropped = self.refused = self.times_refused = 0  # for metrics
        self._is_closed = False
        self._electorate = Electorate(0, (), ())
        self._rows = rows
        self._limits = limits
        self._clock = clock
        self._loop = loop
        self._save_ceiling = save_ceiling
        self._on_news = on_news
        self._waiting: deque[tuple[str, bytes, asyncio.Future[Event] | None]] = deque()
        self._posted: dict[int, asyncio.Future[Event]] = {}  # on their way to the disk, by number
        self._is_writing = False
        self._is_raising = False
        self._retry: asyncio.TimerHandle | None = None
        self._told = 0  # the digest that others and readers know of
        self._followers: dict[asyncio.Future[None], None] = {}
        lamport.observe(timeline.lamport)

    # ── own events ──────────────────────────────────────────────────────────────────────────────────

    def record(self, kind: str, fields: dict[str, Any]) -> None:
        """Something happened to this node. Never refused, never waits; fields that are too large are left out."""
        if self._is_closed:
            return
        if len(self._waiting) >= WAITING_MAX and not self._drop_oldest():
            self.dropped += 1  # all that wait are users'
            return
        encoded = json.dumps(fields, separators=(",", ":")).encode()
        self._waiting.append((kind, encoded if len(encoded) <= self._limits.event_bytes else b"{}", None))
        self._stamp()

    async def post(self, kind: str, fields: bytes) -> Event:
        """An event of a user; returned once it is durable here. Raises: BadRequest, Overloaded, NoSpace."""
        try:
            check_content(kind, fields, self._limits)
        except ValueError as error:
            raise BadRequest(str(error)) from error
        if len(self._waiting) >= WAITING_MAX:
            raise Overloaded("too many events wait for the disk")
        self._rows.check_room()
        future: asyncio.Future[Event] = self._loop.create_future()
        self._waiting.append((kind, fields, future))
        self._stamp()
        event = await future
        self.posted += 1
        return event

    def _stamp(self) -> None:
        """Give the waiting their times, as far as the durable ceiling allows, and hand them to the disk."""
        if self._is_closed:
            return
        while self._waiting and self.lamport.can_tick and self._has_room():
            kind, fields, future = self._waiting.popleft()
            event = self.timeline.record(kind, fields, lamport=self.lamport.tick(), wall_ms=self._clock.wall_ms())
            self.recorded += 1
            if future is not None:
                self._posted[event.seq] = future
        self._raise_ceiling()
        self._keep()

    def _keep(self) -> None:
        """Make what has changed durable, one commit at a time."""
        if self._is_closed or self._is_writing or not self._has_room():
            return
        rows, removed = self.timeline.take_changes()
        if rows or removed:
            self._is_writing = True
            self._rows.submit(rows, removed, self._kept)
        else:
            self.timeline.on_durable()

    def _kept(self) -> None:
        self._is_writing = False
        for event in self.timeline.on_durable():
            future = self._posted.pop(event.seq, None)
            if future is not None and not future.done():
                future.set_result(event)
        self.advance()

    def _has_room(self) -> bool:
        """Whether the disk keeps up; if not, look again soon."""
        try:
            self._rows.check_room(ROOM_BYTES, grows=False)  # rings take the place of what they drop
        except Overloaded:
            if self._retry is None:
                self._retry = self._loop.call_later(RETRY_S, self._try_again)
            return False
        return True

    def _try_again(self) -> None:
        self._retry = None
        self._stamp()
        self.advance()

    def _drop_oldest(self) -> bool:
        for place, (_, _, future) in enumerate(self._waiting):
            if future is None:
                del self._waiting[place]
                self.dropped += 1
                return True
        return False

    # ── the clock ───────────────────────────────────────────────────────────────────────────────────

    def time(self) -> int:
        """The newest time issued or seen here, as every message carries it (LC3)."""
        return self.lamport.time

    def observe(self, seen: int) -> bool:
        """A time that came with a member's message. False: it is too far ahead to be adopted at once."""
        return self._observe(seen, self.lamport.follow)

    def observe_client(self, seen: int) -> bool:
        """A time that a client claims to have seen. False: it is too far ahead to be believed, and ignored."""
        return self._observe(seen, self.lamport.observe)

    def _observe(self, seen: int, adopt: Callable[[int], bool]) -> bool:
        if seen <= self.lamport.time:
            return True
        is_credible = adopt(seen)
        self.times_refused += not is_credible
        self._raise_ceiling()
        return is_credible

    def _raise_ceiling(self) -> None:
        """Ask for a higher ceiling before it is needed."""
        wanted = self.lamport.needs_ceiling
        if wanted is not None and not self._is_raising and not self._is_closed:
            self._is_raising = True
            self._save_ceiling(wanted, lambda: self._raised(wanted))

    def _raised(self, ceiling: int) -> None:
        self._is_raising = False
        self.lamport.raised(ceiling)
        self._stamp()
        self.advance()

    # ── others ──────────────────────────────────────────────────────────────────────────────────────

    def set_electorate(self, electorate: Electorate) -> None:
        """Who has to agree before something is final."""
        if electorate != self._electorate:
            self._electorate = electorate
            self.advance()

    def merge(self, data: bytes, peer: NodeId, peer_time: int) -> None:
        """A page of `peer`'s, whose clock stood at `peer_time`.

        Raises: CodecError, Overloaded: nothing is taken then; StorageFailed, see below.
        """
        self._rows.check_room(2 * len(data) + ROOM_BYTES, grows=False)
        try:
            delta = decode_delta(data, self._limits)
        except ValueError as error:
            raise CodecError(f"a page of events of member {peer}: {error}") from error
        merged = self.timeline.merge(delta, time=self.lamport.time)
        self.refused += merged.refused
        self.observe(merged.lamport)
        if merged.is_behind_itself:
            raise StorageFailed(
                f"member {peer} has events of this node that its own store does not know: ap/ is an old copy. Remove "
                "it and start again: what it held comes back from the others"
            )
        if not delta.more and not merged.refused:
            self.timeline.heard(peer, peer_time)
        self.advance()

    def heard(self, peer: NodeId, digest: int, time: int) -> None:
        """`peer` showed what it holds, when its clock stood at `time`: if the same is held here, nothing is left."""
        if digest == self.timeline.digest():
            self.timeline.heard(peer, time)
            if not self.timeline.is_promising:
                self.advance()

    def unheard(self) -> tuple[NodeId, ...]:
        """From whom to pull whatever its digests say: what this node may promise waits for them."""
        return self.timeline.unheard(self._electorate)

    def watermark_lag(self) -> int:
        """How far the final order is behind the clock, in Lamport time."""
        return max(0, self.lamport.time - self.timeline.watermark(self._electorate))

    def advance(self) -> None:
        """Promise what can be promised, see how far the final order reaches, and tell of it if anything is new."""
        if self._is_closed:
            return
        self.timeline.promise(self.lamport.promised_time, self._electorate)
        self.timeline.watermark(self._electorate)
        self._keep()
        digest = self.timeline.digest()
        if digest != self._told:
            self._told = digest
            self.wake()
            self._on_news()

    # ── readers ─────────────────────────────────────────────────────────────────────────────────────

    @property
    def followers(self) -> int:
        """Readers that wait for something new."""
        return len(self._followers)

    def wake(self) -> None:
        """Let everybody who follows the timeline look again."""
        followers, self._followers = self._followers, {}
        for future in followers:
            if not future.done():
                future.set_result(None)

    async def news(self, within_ms: int) -> None:
        """Return when there may be something new, or after `within_ms`. Raises: Overloaded."""
        if self._is_closed:
            return
        if len(self._followers) >= FOLLOWERS_MAX:
            raise Overloaded("too many readers wait for events")
        await self._next_wake(within_ms)

    async def _next_wake(self, within_ms: int) -> None:
        future: asyncio.Future[None] = self._loop.create_future()
        self._followers[future] = None
        timer = self._loop.call_later(within_ms / 1e3, _wake, future)
        try:
            await future
        finally:
            timer.cancel()
            self._followers.pop(future, None)

    async def settle(self, within_ms: int) -> None:
        """Let what has been recorded reach the disk, as far as it gets in that time; then hand nothing more to it."""
        deadline_ms = self._clock.monotonic_ms() + within_ms
        while (self._is_writing or self._waiting) and not self._is_closed:  # closed meanwhile: `halt`
            left_ms = deadline_ms - self._clock.monotonic_ms()
            if left_ms <= 0:
                break
            await self._next_wake(min(left_ms, SETTLE_LOOK_MS))
        self.finish()

    def finish(self) -> None:
        """Nothing more goes to the disk; what is on its way there is still answered. Nobody waits for what may come."""
        self._is_closed = True
        if self._retry is not None:
            self._retry.cancel()
        self.wake()

    def close(self, error: BaseException) -> None:
        """Nobody is answered any more."""
        self.finish()
        for future in [*(future for _, _, future in self._waiting), *self._posted.values()]:
            if future is not None and not future.done():
                future.set_exception(error)
        self._waiting.clear()
        self._posted.clear()


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
