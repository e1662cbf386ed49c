"""Watching over HTTP: lines of a stream as parts, and one stream made of many connections.

A stream outlives its node. When the connection ends, however it ends, the next one begins at another node right after
the last revision that came whole, so each revision is seen once; a revision that had come in part is dropped and comes
again. While nothing changes the node sends marks, by which a dead connection is told from a quiet store.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Self

import msgspec

from kvnode.client import bodies
from kvnode.errors import Compacted, ConnectionLost, KvnodeError, TryAgain, Unknown
from kvnode.kv.events import Cancelled, Changes, ChangeSet, Event, Listed, Progress, Started, Synced, WatchPart
from kvnode.kv.interface import WatchStream
from kvnode.kv.keys import ONE_KEY, TO_THE_END
from kvnode.kv.requests import KeyValue, Watch

PROGRESS_MS = 10_000
"""How often a node is to send a mark, unless the caller asked for another pace."""

SILENT_MARKS = 3
"""A connection on which so many marks are overdue is dead."""


class Connection(msgspec.Struct, frozen=True):
    """One open answer: the revision it began at, and its bytes as they come; b"" at the end."""

    revision: int
    read: Callable[[], Awaitable[bytes]]
    close: Callable[[], None]


Open = Callable[[dict[str, bytes], int], Awaitable[Connection]]
"""Opens the stream at some node; given the parameters, and after how many milliseconds of silence it is dead."""

Pause = Callable[[KvnodeError, int], Awaitable[bool]]
"""Before an attempt after this error, the so many-th since there was an answer; False: give up."""


class ClientStream(WatchStream):
    """See `KV.watch`."""

    def __init__(self, request: Watch, open_: Open, pause: Pause) -> None:
        self._request = request
        self._open = open_
        self._pause = pause
        self._lines = Lines(request)
        self._connection: Connection | None = None
        self._parts: list[WatchPart] = []  # read and not handed over yet; the next one last
        self._failures = 0  # since something came
        self._is_over = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> WatchPart:
        try:
            while not self._parts:
                if self._is_over:
                    raise StopAsyncIteration
                await self._read_on()
        except BaseException:
            await self.aclose()
            raise
        return self._parts.pop()

    async def aclose(self) -> None:
        self._is_over = True
        self._disconnect()

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    async def _read_on(self) -> None:
        try:
            if self._connection is None:
                await self._connect()
                return
            data = await self._connection.read()
            if not data:
                raise ConnectionLost("the stream ended without a word")
            self._failures = 0
            self._take(self._lines.feed(data))
        except Compacted as error:
            if not self._lines.has_begun:
                raise
            floor = error.detail["compact_revision"]
            self._end(Cancelled("compacted", floor, floor))
        except (TryAgain, Unknown) as error:
            self._disconnect()
            self._failures += 1
            if not await self._pause(error, self._failures):
                raise

    async def _connect(self) -> None:
        request, lines = self._request, self._lines
        progress_ms = request.progress_ms or PROGRESS_MS
        query = watch_query(request, progress_ms, 0 if lines.is_listing else lines.next)
        self._connection = await self._open(query, SILENT_MARKS * progress_ms)
        started = lines.begin(self._connection.revision)
        if started is not None:
            self._parts.append(started)

    def _take(self, parts: Iterable[WatchPart]) -> None:
        for part in parts:
            if isinstance(part, Cancelled):
                if part.code == "compacted":
                    self._end(part)
                    return
                self._disconnect()  # slow, or the node goes away: on with it elsewhere
                return
            if not isinstance(part, Progress) or self._request.progress_ms:
                self._parts.insert(0, part)

    def _end(self, part: WatchPart) -> None:
        self._parts.insert(0, part)
        self._is_over = True
        self._disconnect()


class Lines:
    """Bytes of a stream → parts; knows where to resume. Pure."""

    def __init__(self, request: Watch) -> None:
        self._request = request
        self._rest = b""
        self._events: list[Event] = []  # of a revision that has not come whole
        self.next = request.from_revision  # where to resume; 0: not known yet
        self.is_listing = request.list_first
        self.has_begun = False

    def begin(self, revision: int) -> Started | None:
        """A connection begins, at that revision of the store: what had come in part comes again."""
        self._rest = b""
        self._events = []
        if self.has_begun and not self.is_listing:
            return None
        self.has_begun = True
        if not self.next or self.is_listing:
            self.next = revision + 1
        return Started(revision, self.next)

    def feed(self, data: bytes) -> list[WatchPart]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        parts: list[WatchPart] = []
        items: list[KeyValue] = []
        sets: list[ChangeSet] = []
        for line in lines:
            if not line:
                continue
            message = bodies.decode(line)
            kind, revision = message["type"], message.get("revision", 0)
            if kind in {"put", "delete"}:
                event = _event(message)
                if self.is_listing:
                    items.append(event.kv)
                    continue
                self._events.append(event)
                if not message.get("more"):
                    sets.append(ChangeSet(revision, tuple(self._events)))
                    self._events = []
                    self.next = revision + 1
                continue
            parts += _gathered(items, sets)
            items, sets = [], []
            if kind == "cancelled":
                parts.append(Cancelled(message["code"], message["resume_rev"], message.get("compact_revision", 0)))
                return parts
            self.next = revision + 1
            self.is_listing = False
            parts.append(Synced(revision) if kind == "synced" else Progress(revision))
        return parts + _gathered(items, sets)


def _gathered(items: list[KeyValue], sets: list[ChangeSet]) -> list[WatchPart]:
    parts: list[WatchPart] = [Listed(tuple(items))] if items else []
    return [*parts, Changes(tuple(sets))] if sets else parts


def watch_query(request: Watch, progress_ms: int, from_revision: int) -> dict[str, bytes]:
    """The parameters of ``GET /v1/watch``. `from_revision` 0: from now on, after a list if one is asked for."""
    if request.end == ONE_KEY:
        query = {"key": request.start}
    else:
        query = {"start": request.start}
        if request.end != TO_THE_END:
            query["end"] = request.end
    if from_revision:
        query["from_rev"] = b"%d" % from_revision
    elif request.list_first:
        query["list"] = b"1"
    if request.previous:
        query["prev"] = b"1"
    if not (request.puts and request.deletes):
        query["events"] = b"put" if request.puts else b"delete"
    return query | {"progress": b"%dms" % progress_ms}


def _event(message: dict[str, Any]) -> Event:
    is_put = message["type"] == "put"
    item = {
        "lease": 0,
        **message,
        "mod_revision": message["revision"],
        "create_revision": message.get("create_revision", 0),
        "version": message.get("version", 0) if is_put else 0,
    }
    previous = message.get("prev")
    return Event(bodies.key_value(item), None if previous is None else bodies.key_value(previous))
