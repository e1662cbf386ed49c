"""AvailableCalls: the calls of `Available` as requests, for whoever reaches a node by some way: HTTP, another thread.

A request is what travels; `perform` has a plane carry it out where it arrives.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, assert_never

import msgspec

from kvnode.kv.available import (
    NOTHING_SEEN,
    PAGE_ITEMS,
    ApPage,
    ApRead,
    ApWritten,
    Available,
    EventPage,
    Resolve,
    Seen,
    TimelineEvent,
)
from kvnode.kv.interface import TIMEOUT_MS_DEFAULT, Options, as_bytes


class ApGet(msgspec.Struct, frozen=True):
    key: bytes
    resolve: Resolve | None
    seen: Seen


class ApPut(msgspec.Struct, frozen=True):
    key: bytes
    value: bytes
    context: str | None
    seen: Seen


class ApDelete(msgspec.Struct, frozen=True):
    key: bytes
    context: str | None
    seen: Seen


class ApList(msgspec.Struct, frozen=True):
    prefix: bytes
    after: bytes | None
    limit: int
    seen: Seen


class EventPost(msgspec.Struct, frozen=True):
    fields: bytes
    seen: Seen


class EventsRead(msgspec.Struct, frozen=True):
    cursor: str
    stable: bool
    allow_late: bool
    limit: int
    wait_ms: int


AvailableRequest = ApGet | ApPut | ApDelete | ApList | EventPost | EventsRead


class AvailableCalls(Available):
    """`Available`, each call as a request that `ask_available` carries out at some node."""

    @abstractmethod
    async def ask_available(self, request: AvailableRequest, options: Options) -> Any: ...

    async def ap_get(
        self,
        key: str | bytes,
        *,
        resolve: Resolve | None = None,
        seen: Seen = NOTHING_SEEN,
        timeout_ms: int = TIMEOUT_MS_DEFAULT,
    ) -> ApRead:
        """One key of the keyspace that needs no quorum; see `Available.ap_get`."""
        found: ApRead = await self.ask_available(ApGet(as_bytes(key), resolve, seen), Options(timeout_ms))
        return found

    async def ap_put(
        self,
        key: str | bytes,
        value: str | bytes,
        *,
        context: str | None = None,
        seen: Seen = NOTHING_SEEN,
        timeout_ms: int = TIMEOUT_MS_DEFAULT,
    ) -> ApWritten:
        """Write there; replaces what `context` covers, or nothing."""
        request = ApPut(as_bytes(key), as_bytes(value), context, seen)
        written: ApWritten = await self.ask_available(request, Options(timeout_ms))
        return written

    async def ap_delete(
        self,
        key: str | bytes,
        *,
        context: str | None = None,
        seen: Seen = NOTHING_SEEN,
        timeout_ms: int = TIMEOUT_MS_DEFAULT,
    ) -> ApWritten:
        """Delete what `context` covers, or all that the node has that is asked."""
        written: ApWritten = await self.ask_available(ApDelete(as_bytes(key), context, seen), Options(timeout_ms))
        return written

    async def ap_list(
        self,
        prefix: str | bytes = b"",
        *,
        after: bytes | None = None,
        limit: int = PAGE_ITEMS,
        seen: Seen = NOTHING_SEEN,
        timeout_ms: int = TIMEOUT_MS_DEFAULT,
    ) -> ApPage:
        """A page of its keys; see `Available.ap_list`."""
        page: ApPage = await self.ask_available(ApList(as_bytes(prefix), after, limit, seen), Options(timeout_ms))
        return page

    async def post_event(
        self, fields: bytes, *, seen: Seen = NOTHING_SEEN, timeout_ms: int = TIMEOUT_MS_DEFAULT
    ) -> TimelineEvent:
        """Put an event of your own into the cluster's timeline; `fields`: a JSON object."""
        event: TimelineEvent = await self.ask_available(EventPost(fields, seen), Options(timeout_ms))
        return event

    async def events(
        self,
        cursor: str = "",
        *,
        stable: bool = False,
        allow_late: bool = False,
        limit: int = PAGE_ITEMS,
        wait_ms: int = 0,
    ) -> EventPage:
        """The timeline after `cursor`; see `Available.events`, and `kvnode.kv.available.follow_events`."""
        page: EventPage = await self.ask_available(EventsRead(cursor, stable, allow_late, limit, wait_ms), Options())
        return page


async def perform(plane: Available, request: AvailableRequest, options: Options) -> Any:
    """The call that `request` stands for."""
    timeout_ms = options.timeout_ms
    match request:
        case ApGet(key, resolve, seen):
            return await plane.ap_get(key, resolve=resolve, seen=seen, timeout_ms=timeout_ms)
        case ApPut(key, value, context, seen):
            return await plane.ap_put(key, value, context=context, seen=seen, timeout_ms=timeout_ms)
        case ApDelete(key, context, seen):
            return await plane.ap_delete(key, context=context, seen=seen, timeout_ms=timeout_ms)
        case ApList(prefix, after, limit, seen):
            return await plane.ap_list(prefix, after=after, limit=limit, seen=seen, timeout_ms=timeout_ms)
        case EventPost(fields, seen):
            return await plane.post_event(fields, seen=seen, timeout_ms=timeout_ms)
        case EventsRead(cursor, stable, allow_late, limit, wait_ms):
            return await plane.events(cursor, stable=stable, allow_late=allow_late, limit=limit, wait_ms=wait_ms)
        case _:
            assert_never(request)
