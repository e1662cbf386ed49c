"""``GET /v1/watch``: changes as they happen, one JSON object a line, or as server-sent events.

Lines of one revision follow each other; all but the last say ``"more": true``, and only the last event of a revision
carries an id, so a browser that reconnects (``Last-Event-ID``) gets each revision whole and once. The items of a list
carry none: a list that broke off begins again.

What one revision looks like is rendered once for all who watch it alike and kept with it (`ChangeSet.rendered`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from msgspec import UNSET

from kvnode.api import query, shapes
from kvnode.api.answer import Answer
from kvnode.api.call import Call
from kvnode.api.http.listing import parse_range
from kvnode.api.streaming import Outlet, TooSlow
from kvnode.errors import BadKey, BadRequest
from kvnode.kv.events import Cancelled, Changes, ChangeSet, Event, Listed, Progress, Started, Synced, WatchPart
from kvnode.kv.interface import WatchStream
from kvnode.kv.keys import ONE_KEY
from kvnode.kv.requests import PROGRESS_MS_MAX, PROGRESS_MS_MIN, KeyValue, Watch

KIND_LINES = "Content-Type: application/x-ndjson\r\nX-Accel-Buffering: no\r\n"
KIND_EVENTS = "Content-Type: text/event-stream\r\nX-Accel-Buffering: no\r\n"

AT_ONCE = 128
"""Lines rendered without letting others have their turn."""

_KINDS = {b"put", b"delete"}


async def watch(call: Call) -> Answer:
    request = _parse(call)
    options = call.options()
    call.refuse_body()
    stream = call.app.kv.watch(request, options)
    try:
        started = await anext(stream)  # what is refused is refused with a status
        assert isinstance(started, Started), started
        as_events = "text/event-stream" in call.headers.get("Accept", "")
        extra = call.app.staleness_line(options)
        kind = KIND_EVENTS if as_events else KIND_LINES
        if call.is_head:
            await stream.aclose()
            return call.answer(200, b"", kind=kind, revision=started.revision, extra=extra, length=False)
        voice = _Voice(as_events=as_events, previous=request.previous, chunked=call.request.version.minor > 0)

        async def produce(outlet: Outlet) -> None:
            await _tell(stream, voice, outlet, started)

        return call.stream(produce, kind=kind, revision=started.revision, extra=extra)
    except BaseException:
        await stream.aclose()
        raise


def _parse(call: Call) -> Watch:
    given = call.parameters
    start, end = _range_of(call)
    kinds = set(given["events"].split(b",")) if "events" in given else _KINDS
    if not kinds <= _KINDS:
        raise BadRequest("events= takes put, delete, or put,delete", parameter="events")
    from_revision = query.parse_integer(given["from_rev"], "from_rev", least=1) if "from_rev" in given else 0
    list_first = call.flag("list")
    if list_first and from_revision:
        raise BadRequest("give list, or from_rev, not both: a list is followed by what comes after it")
    last_id = call.headers.get("Last-Event-ID")
    if last_id:  # a browser comes back, with the parameters it began with
        from_revision = query.parse_integer(last_id.encode("utf-8", "replace"), "Last-Event-ID") + 1
        list_first = False
    progress_ms = 0
    if "progress" in given:
        progress_ms = query.parse_duration_ms(given["progress"], "progress", most_ms=PROGRESS_MS_MAX)
        if progress_ms < PROGRESS_MS_MIN:
            raise BadRequest(f"progress= is at least {PROGRESS_MS_MIN}ms", parameter="progress")
    return Watch(
        start,
        end,
        from_revision,
        list_first,
        call.flag("prev"),
        puts=b"put" in kinds,
        deletes=b"delete" in kinds,
        progress_ms=progress_ms,
    )


def _range_of(call: Call) -> tuple[bytes, bytes]:
    given = call.parameters.get
    key = given("key")
    if key is None:
        return parse_range(given("prefix"), given("start"), given("end"), call.app.config.limits.key_bytes_max)
    if call.parameters.keys() & {"prefix", "start", "end"}:
        raise BadRequest("give key, or prefix, or start and end", parameter="key")
    if not key:
        raise BadKey("the key is empty")
    return key, ONE_KEY


async def _tell(stream: WatchStream, voice: _Voice, outlet: Outlet, started: Started) -> None:
    """The body: every part of the stream, until it or the client's patience ends."""
    resume = started.from_revision
    is_listing = False
    try:
        async for part in stream:
            if isinstance(part, Cancelled):
                outlet.end(outlet.frame(voice.say(_last_words(part))))
                return
            is_listing = is_listing or isinstance(part, Listed)
            for number, (framed, last) in enumerate(voice.render(part, outlet.frame)):
                if number:  # a long part: others have their turn between its pieces
                    await asyncio.sleep(0)
                await outlet.write(framed)
                resume = max(resume, last + 1)
            is_listing = is_listing and not isinstance(part, Synced)
    except TooSlow:
        slow = Cancelled("slow", 0 if is_listing else resume)
        outlet.end(outlet.frame(voice.say(_last_words(slow))))
        outlet.linger()
    finally:
        await stream.aclose()


def _last_words(part: Cancelled) -> shapes.WatchLine:
    return shapes.WatchLine(
        type="cancelled",
        code=part.code,
        resume_rev=part.resume_revision,
        compact_revision=part.compact_revision or UNSET,
    )


class _Voice:
    """How one stream speaks: in lines or in events, with or without what was replaced."""

    def __init__(self, *, as_events: bool, previous: bool, chunked: bool) -> None:
        self._as_events = as_events
        self._previous = previous
        self._form = f"{as_events:d}{previous:d}{chunked:d}"

    def render(self, part: WatchPart, frame: Callable[[bytes], bytes]) -> Iterator[tuple[bytes, int]]:
        """What to write, in pieces that are not long in the making; and the revision that is whole after each, or 0."""
        match part:
            case Changes():
                yield from self._changes(part.sets, frame)
            case Listed():
                for first in range(0, len(part.items), AT_ONCE):
                    yield frame(b"".join(map(self._item, part.items[first : first + AT_ONCE]))), 0
            case Synced():
                mark = shapes.WatchLine(type="synced", revision=part.revision)
                yield frame(self.say(mark, part.revision)), part.revision
            case Progress():
                mark = shapes.WatchLine(type="progress", revision=part.revision)
                yield frame(self.say(mark, part.revision)), part.revision

    def _changes(self, sets: Iterable[ChangeSet], frame: Callable[[bytes], bytes]) -> Iterator[tuple[bytes, int]]:
        """As few pieces as may be: each costs a system call."""
        small: list[bytes] = []
        last = 0
        for each in sets:
            if len(each.events) <= AT_ONCE:
                rendered = each.rendered.get(self._form)
                if rendered is None:
                    rendered = each.rendered[self._form] = frame(b"".join(self._lines(each)))
                small.append(rendered)
            else:
                if small:
                    yield b"".join(small), last
                    small = []
                lines = self._lines(each)
                for first in range(0, len(each.events), AT_ONCE):
                    is_whole = first + AT_ONCE >= len(each.events)
                    yield frame(b"".join(islice(lines, AT_ONCE))), each.revision if is_whole else 0
            last = each.revision
        if small:
            yield b"".join(small), last

    def _lines(self, each: ChangeSet) -> Iterator[bytes]:
        left = len(each.events)
        for event in each.events:
            left -= 1
            yield self.say(self._line(event, more=left > 0), 0 if left else each.revision)

    def _line(self, event: Event, *, more: bool) -> shapes.WatchLine:
        line = shapes.watch_line(event.kv, more=more)
        if self._previous:
            line.prev = shapes.previous_of(event.previous)
        return line

    def _item(self, kv: KeyValue) -> bytes:
        return self.say(shapes.watch_line(kv))

    def say(self, line: shapes.WatchLine, event_id: int = 0) -> bytes:
        """One line, or one event; an `event_id` says that one can resume after it."""
        data = shapes.encode(line)
        if not self._as_events:
            return data + b"\n"
        return b"id: %d\ndata: %b\n\n" % (event_id, data) if event_id else b"data: %b\n\n" % data
