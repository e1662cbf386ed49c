"""A plane that needs no quorum, in one dictionary: dots, contexts, a timeline; as one node shows them."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import msgspec

from kvnode.errors import BadContext, BadEncoding, Conflict, KvnodeError, NotReady
from kvnode.ids import NodeId
from kvnode.kv.available import (
    NOTHING_SEEN,
    PAGE_ITEMS,
    SIBLINGS_MAX,
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

MEMBER, INCARNATION = 1, 0xA1
START_MS = 1_795_341_600_000  # 2026-11-22T10:00:00Z


class FakeAvailable(AvailableNode):
    """Answers at once. `fail` makes calls raise; `asked` keeps what arrived."""

    def __init__(self) -> None:
        self.keys: dict[bytes, dict[int, bytes]] = {}  # siblings by number
        self.contexts: dict[bytes, int] = {}  # the newest number a key has seen
        self.n = 0
        self.arrived: set[DotRow] = set()  # dots of other members
        self.timeline: list[TimelineEvent] = []
        self.members: tuple[AliveMember, ...] = ()
        self.lamport = 0
        self.watermark = 0
        self.fail: KvnodeError | None = None
        self.fail_next: KvnodeError | None = None
        self.asked: list[tuple[object, ...]] = []
        self.news = asyncio.Condition()
        self.waited: list[int] = []

    @property
    def lamport_time(self) -> int:
        return self.lamport

    def alive_members(self) -> tuple[AliveMember, ...]:
        return self.members

    def available_counters(self) -> dict[str, Any]:
        return {}

    def _check(self) -> None:
        failure, self.fail_next = self.fail or self.fail_next, None
        if failure is not None:
            raise failure

    async def ap_get(
        self, key: bytes, *, resolve: Resolve | None = None, seen: Seen = NOTHING_SEEN, timeout_ms: int = 5_000
    ) -> ApRead:
        self.asked.append(("get", key, resolve, seen, timeout_ms))
        self._await(seen)
        read = self._read(key)
        if resolve is None or not read.values:
            return read
        by_value = sorted(zip(read.values, read.times, strict=True))
        value, time = by_value[-1] if resolve == "max" else max(by_value, key=lambda pair: pair[1])
        if resolve == "union":
            try:
                value = json.dumps(sorted({item for each in read.values for item in json.loads(each)})).encode()
            except ValueError:
                raise Conflict("a value is no JSON array") from None
        return ApRead(key, (value,), (time,), read.context, read.dots)

    async def ap_put(
        self,
        key: bytes,
        value: bytes,
        *,
        context: str | None = None,
        seen: Seen = NOTHING_SEEN,
        timeout_ms: int = 5_000,
    ) -> ApWritten:
        self.asked.append(("put", key, value, context, seen, timeout_ms))
        self._check()
        covered = self._covered(context)
        siblings = {n: old for n, old in self.keys.get(key, {}).items() if n > covered}
        if context is None and len(siblings) >= SIBLINGS_MAX:
            raise Conflict("too many siblings", context=self._read(key).context)
        return self._write(key, {**siblings, self.n + 1: value})

    async def ap_delete(
        self, key: bytes, *, context: str | None = None, seen: Seen = NOTHING_SEEN, timeout_ms: int = 5_000
    ) -> ApWritten:
        self.asked.append(("delete", key, context, seen, timeout_ms))
        self._check()
        covered = self.n if context is None else self._covered(context)
        if not self.contexts.get(key):
            return ApWritten("", None)
        return self._write(key, {n: old for n, old in self.keys.get(key, {}).items() if n > covered})

    async def ap_list(
        self,
        prefix: bytes = b"",
        *,
        after: bytes | None = None,
        limit: int = PAGE_ITEMS,
        seen: Seen = NOTHING_SEEN,
        timeout_ms: int = 5_000,
    ) -> ApPage:
        self.asked.append(("list", prefix, after, limit, seen, timeout_ms))
        self._await(seen)
        found = [key for key in sorted(self.keys) if key.startswith(prefix) and (after is None or key > after)]
        found = [key for key in found if self.keys[key]]
        return ApPage(tuple(map(self._read, found[:limit])), len(found) > limit)

    async def post_event(self, fields: bytes, *, seen: Seen = NOTHING_SEEN, timeout_ms: int = 5_000) -> TimelineEvent:
        self.asked.append(("post", fields, seen, timeout_ms))
        self._check()
        self.lamport = max(self.lamport, seen.lamport)
        return await self.happen("user", fields)

    async def events(
        self,
        cursor: str = "",
        *,
        stable: bool = False,
        allow_late: bool = False,
        limit: int = PAGE_ITEMS,
        wait_ms: int = 0,
    ) -> EventPage:
        self.asked.append(("events", cursor, stable, allow_late, limit, wait_ms))
        self._check()
        if cursor and not cursor.startswith("c"):
            raise BadEncoding("the cursor is not one of ours")
        at = int(cursor[1:] or "0")
        async with self.news:
            if wait_ms and len(self.timeline) <= at:
                self.waited.append(wait_ms)
                try:
                    async with asyncio.timeout(wait_ms / 1e3):
                        await self.news.wait()
                except TimeoutError:
                    pass
                self._check()
        found = [one for one in self.timeline[at:] if not stable or one.lamport <= self.watermark]
        page = tuple(found[:limit])
        return EventPage(page, f"c{at + len(page)}", self.watermark, len(found) > limit)

    async def happen(self, kind: str, fields: bytes = b"{}", **more: Any) -> TimelineEvent:
        event = self.record(kind, fields, **more)
        await self.wake()
        return event

    def record(self, kind: str, fields: bytes = b"{}", **more: Any) -> TimelineEvent:
        """Without a word to those who wait."""
        self.lamport += 1
        event = TimelineEvent(
            member=NodeId(MEMBER),
            node="one",
            incarnation=INCARNATION,
            boot=3,
            seq=len(self.timeline) + 1,
            lamport=self.lamport,
            wall_ms=START_MS + self.lamport,
            kind=kind,
            fields=fields,
        )
        event = msgspec.structs.replace(event, **more)
        self.timeline.append(event)
        return event

    async def wake(self) -> None:
        async with self.news:
            self.news.notify_all()

    def _await(self, seen: Seen) -> None:
        self._check()
        own = {(MEMBER, INCARNATION, n) for n in range(1, self.n + 1)}
        missing = [dot for dot in seen.dots if dot not in own | self.arrived]
        if missing:
            raise NotReady(f"what the token has seen is not here yet: {missing}")

    def _read(self, key: bytes) -> ApRead:
        found = sorted((value, n) for n, value in self.keys.get(key, {}).items())
        newest = self.contexts.get(key, 0)
        return ApRead(
            key,
            tuple(value for value, _ in found),
            tuple((START_MS + n) << 16 for _, n in found),
            _context(newest) if newest else "",
            ((MEMBER, INCARNATION, newest),) if newest else (),
        )

    def _write(self, key: bytes, siblings: dict[int, bytes]) -> ApWritten:
        self.n += 1
        self.lamport += 1
        self.keys[key] = siblings
        self.contexts[key] = self.n
        return ApWritten(_context(self.n), (MEMBER, INCARNATION, self.n), (START_MS + self.n) << 16)

    def _covered(self, context: str | None) -> int:
        if context is None:
            return 0
        try:
            n = int(base64.b64decode(context, validate=True))
        except ValueError:
            raise BadEncoding("the context is not one of ours") from None
        if n > self.n:
            raise BadContext("the context is of the future, or of another cluster")
        return n


def _context(n: int) -> str:
    return base64.b64encode(b"%d" % n).decode()
