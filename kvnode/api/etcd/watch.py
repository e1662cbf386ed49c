"""The Watch service: one stream of messages about several watches, each a stream of the store's changes (`KV.watch`).

Each watch has a task that reads its changes and says them, one part at a time. They take turns at the stream, and who
has the turn waits until there is room for what it says: so a client that reads slowly holds up its watches and nothing
else, and costs no memory but a part for each, since a watch is a position in the store's history. It is never cancelled
for being slow; one that does not read at all is cut off (`kvnode.api.streaming`) and begins again where it was.

A watch that is to begin now begins after everything that was acknowledged before, on any node; where no leader can
say what that is, after what is applied here, as in etcd: it opens there too, and is silent. Changes up to the revision
that it began at are history: many revisions are one message, with the current revision in its header. Those after it
are live: each is a message of its own.
"""

from __future__ import annotations

import asyncio
import random
from bisect import bisect_right
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress

import msgspec

from kvnode.api.etcd.context import NO_LEADER, STOPPED, Context
from kvnode.api.etcd.errors import Code, EtcdError, translated
from kvnode.api.etcd.kv_messages import interval
from kvnode.api.etcd.method import Carriage, Duplex, Method
from kvnode.api.etcd.proto_json import decimal
from kvnode.api.etcd.watch_messages import (
    FilterType,
    WatchCreateRequest,
    WatchRequest,
    WatchResponse,
    events_json,
    fragments,
    in_pieces,
)
from kvnode.api.streaming import TooSlow
from kvnode.errors import Compacted, KvnodeError, NoLeader, Rejected, Timeout
from kvnode.kv.events import Cancelled, Changes, ChangeSet, Progress, Started, WatchPart
from kvnode.kv.interface import Options, WatchStream
from kvnode.kv.requests import Watch

PROGRESS_MS = 600_000
"""A watch that asked for it and has nothing to say says that, so often; up to `PROGRESS_JITTER` later."""

PROGRESS_JITTER = 0.1

NOBODY = -1
"""The watch id of what is said about no watch."""

KEY_MISSING = b"\x00"

WRITE_BYTES = 64 << 10
"""Messages are written together until they are so long."""

MARKS_AT_ONCE = 64
"""Marks said without letting others have their turn."""

LOOK_S = 0.005
LOOKS_MAX = 200
"""How often, and how many times, one looks whether all watches of a stream are level, to say so."""

RANGE_EMPTY = "mvcc: watcher range is empty"
ID_TAKEN = "mvcc: duplicate watch ID provided on the WatchStream"


class _Watch:
    """One watch of a stream."""

    def __init__(self, watch_id: int, asked: WatchCreateRequest, request: Watch) -> None:
        self.id = watch_id
        self.fragment = asked.fragment
        self.previous = asked.prev_kv
        self.is_mute = {FilterType.NOPUT, FilterType.NODELETE} <= set(asked.filters)
        self.request = request
        self.began_at = 0  # revision
        self.stream: WatchStream | None = None  # before its start, and between two
        self.task: asyncio.Task[None] | None = None
        self.is_told = True  # nothing is in its hands that is not written yet

    @property
    def read_up_to(self) -> int:
        """Everything that concerns it up to this revision has been written; 0: something has not."""
        return self.stream.read_up_to if self.stream is not None and self.is_told else 0


def _request(asked: WatchCreateRequest, bounds: tuple[bytes, bytes]) -> Watch:
    filters = set(asked.filters)
    is_mute = {FilterType.NOPUT, FilterType.NODELETE} <= filters  # the store refuses to watch for nothing
    progress_ms = int(PROGRESS_MS * random.uniform(1, 1 + PROGRESS_JITTER)) if asked.progress_notify else 0
    return Watch(
        *bounds,
        max(asked.start_revision, 1) if asked.start_revision else 0,
        previous=asked.prev_kv,
        puts=is_mute or FilterType.NOPUT not in filters,
        deletes=is_mute or FilterType.NODELETE not in filters,
        progress_ms=progress_ms,
    )


class WatchSession:
    """The watches of one client's stream."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._watches: dict[int, _Watch] = {}
        self._next_id = 0  # the least that may be given to a watch which asks for none
        self._first: list[bytes] = []  # what is said before there is a carriage
        self._carriage: Carriage | None = None
        self._group: asyncio.TaskGroup | None = None
        self._turn = asyncio.Lock()
        self._end: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self._marks_due = 0  # progress that was asked for
        self._marker: asyncio.Task[None] | None = None

    # ── its life ────────────────────────────────────────────────────────────────────────────────────

    async def begin(self, request: WatchRequest) -> None:
        """The first request, while the answer has no head yet. Raises: EtcdError, KvnodeError; then it is closed."""
        try:
            await self._take(request)
        except BaseException:
            await self.aclose()
            raise

    async def run(self, requests: AsyncIterator[WatchRequest], carriage: Carriage, *, ends: bool) -> None:
        """Say everything, until something ends the stream, which may be the end of the requests (`ends`).

        Raises: what ended it: EtcdError, KvnodeError, TooSlow, ConnectionError. It is closed by then.
        """
        self._carriage = carriage
        open_streams = self._context.gateway.open_streams
        open_streams[self] = self._over
        try:
            async with asyncio.TaskGroup() as self._group:
                tasks: list[asyncio.Task[None] | None] = [self._group.create_task(self._listen(requests, ends=ends))]
                if self._context.needs_leader:
                    tasks.append(self._group.create_task(self._mind_leader()))
                end = await self._end
                tasks += [self._marker, *(watch.task for watch in self._watches.values())]
                for task in tasks:
                    if task is not None:
                        task.cancel()
        finally:
            del open_streams[self]
            await self.aclose()
        if end is not None:
            raise end

    async def aclose(self) -> None:
        """Give back what the watches hold. Idempotent."""
        watches, self._watches = self._watches, {}
        for watch in watches.values():
            if watch.stream is not None:
                await watch.stream.aclose()

    def _over(self, end: Exception | None = None) -> None:
        """The stream ends, for the first reason there is."""
        if not self._end.done():
            self._end.set_result(end)

    async def _listen(self, requests: AsyncIterator[WatchRequest], *, ends: bool) -> None:
        try:
            await self._say(*self._first)
            for watch in list(self._watches.values()):
                self._start(watch)
            async for request in requests:
                await self._take(request)
        except (EtcdError, KvnodeError, TooSlow, ConnectionError) as error:
            self._over(error)
        else:
            if ends:
                self._over()

    async def _mind_leader(self) -> None:
        await self._context.gateway.leader_loss.wait()
        self._over(EtcdError(Code.UNAVAILABLE, NO_LEADER))

    # ── what is asked ───────────────────────────────────────────────────────────────────────────────

    async def _take(self, request: WatchRequest) -> None:
        if request.create_request is not None:
            await self._create(request.create_request)
        elif request.cancel_request is not None:
            await self._cancel(request.cancel_request.watch_id)
        elif request.progress_request is not None:
            await self._promise_mark()

    async def _create(self, asked: WatchCreateRequest) -> None:
        bounds = interval(asked.key or KEY_MISSING, asked.range_end)
        if bounds is None:
            await self._refuse(RANGE_EMPTY)
            return
        if asked.watch_id in self._watches and asked.watch_id:
            await self._refuse(ID_TAKEN)
            return
        watch = _Watch(asked.watch_id or self._free_id(), asked, _request(asked, bounds))
        self._watches[watch.id] = watch
        try:
            watch.began_at = (await self._open(watch, watch.request)).revision
        except Compacted as error:
            await self._say(self._message(self._context.admin.revision, watch.id, created=True))
            await self._lose(watch, error.detail["compact_revision"])
        except Rejected as error:
            del self._watches[watch.id]
            told = translated(error)
            await self._refuse(f"rpc error: code = {_name(told.code)} desc = {told.message}")
            return
        else:
            await self._say(self._message(watch.began_at, watch.id, created=True))
            self._start(watch)
        if not asked.watch_id:
            self._next_id = watch.id + 1

    def _free_id(self) -> int:
        free = self._next_id
        while free in self._watches:
            free += 1
        return free

    async def _cancel(self, watch_id: int) -> None:
        watch = self._watches.get(watch_id)
        if watch is None:
            return
        if watch.task is not None:
            watch.task.cancel()
            await asyncio.wait([watch.task])  # it says nothing any more
        if watch.stream is not None:
            await watch.stream.aclose()
        if self._watches.get(watch_id) is watch:  # else its task has ended it just before, and said so
            await self._say(self._message(self._context.admin.revision, watch_id, canceled=True))
            del self._watches[watch_id]

    async def _promise_mark(self) -> None:
        if self._group is None:  # there is no carriage yet, and no watch either
            await self._say(self._message(self._context.admin.revision, NOBODY))
            return
        self._marks_due += 1
        if self._marker is None or self._marker.done():
            self._marker = self._group.create_task(self._say_marks())

    async def _say_marks(self) -> None:
        """What was asked for, once all watches have said everything; not at all if that does not come soon."""
        try:
            for _ in range(LOOKS_MAX):
                async with self._turn:  # nobody else says anything between the look and the mark
                    revision = self._read_up_to()
                    marks = min(self._marks_due, MARKS_AT_ONCE) if revision else 0
                    self._marks_due -= marks
                    await self._write(*[self._message(revision, NOBODY)] * marks)
                if not self._marks_due:
                    return
                await asyncio.sleep(0 if revision else LOOK_S)
            self._marks_due = 0
        except (TooSlow, ConnectionError) as error:
            self._over(error)

    def _read_up_to(self) -> int:
        """All watches have said everything up to this revision; 0: not all have."""
        return min((watch.read_up_to for watch in self._watches.values()), default=self._context.admin.revision)

    # ── what is said ────────────────────────────────────────────────────────────────────────────────

    async def _open(self, watch: _Watch, request: Watch) -> Started:
        options = self._context.options(serializable=True)
        if not request.from_revision and self._context.admin.members().leader is not None:
            within_ms = self._context.config.limits.no_leader_ms
            now = msgspec.structs.replace(options, consistency="linearizable", timeout_ms=within_ms)
            with suppress(NoLeader, Timeout):
                return await self._open_with(watch, request, now)
        return await self._open_with(watch, request, options)

    async def _open_with(self, watch: _Watch, request: Watch, options: Options) -> Started:
        stream = self._context.kv.watch(request, options)
        try:
            started = await anext(stream)
        except BaseException:
            await stream.aclose()
            raise
        assert isinstance(started, Started), started
        watch.stream = stream
        return started

    def _start(self, watch: _Watch) -> None:
        if self._group is not None and watch.task is None:
            watch.task = self._group.create_task(self._tell(watch))

    async def _tell(self, watch: _Watch) -> None:
        """Everything about one watch."""
        try:
            while self._watches.get(watch.id) is watch:
                assert watch.stream is not None
                part = await anext(watch.stream)
                watch.is_told = False
                await self._tell_part(watch, part)
                watch.is_told = True
        except (EtcdError, KvnodeError, TooSlow, ConnectionError) as error:
            self._over(error)

    async def _tell_part(self, watch: _Watch, part: WatchPart) -> None:
        match part:
            case Changes():
                if not watch.is_mute:
                    await self._tell_changes(watch, part.sets)
            case Progress():
                await self._say(self._message(part.revision, watch.id))
            case Cancelled(code="compacted"):
                await self._lose(watch, part.compact_revision)
            case Cancelled(code="stopping"):
                raise EtcdError(Code.UNAVAILABLE, STOPPED)
            case Cancelled():  # whoever is too slow for the store goes on where it was: etcd never gives one up
                try:
                    await self._open(watch, msgspec.structs.replace(watch.request, from_revision=part.resume_revision))
                except Compacted as error:
                    await self._lose(watch, error.detail["compact_revision"])

    async def _lose(self, watch: _Watch, compact_revision: int) -> None:
        """What it would have read next is dropped."""
        await self._say(self._message(0, watch.id, canceled=True, compact_revision=compact_revision))
        del self._watches[watch.id]

    async def _tell_changes(self, watch: _Watch, sets: Sequence[ChangeSet]) -> None:
        messages: list[bytes] = []
        size = 0
        for one, revision in self._apart(watch, sets):
            parts = fragments(one, self._context.config.limits.request_bytes_max) if watch.fragment else []
            for number in range(max(len(parts), 1)):
                if len(parts) > 1:
                    events = await in_pieces(parts[number], previous=watch.previous)
                else:
                    events = b",".join([await events_json(each, previous=watch.previous) for each in one])
                is_last = number + 1 >= len(parts)
                messages.append(
                    self._message(revision, watch.id, fragment=not is_last, events=msgspec.Raw(b"[%b]" % events))
                )
                size += len(events)
                if size > WRITE_BYTES:
                    await self._say(*messages)
                    messages, size = [], 0
        if messages:
            await self._say(*messages)

    def _apart(self, watch: _Watch, sets: Sequence[ChangeSet]) -> Iterator[tuple[Sequence[ChangeSet], int]]:
        """What is one message, and the revision in its header: history together, what is live each on its own."""
        past = bisect_right(sets, watch.began_at, key=lambda each: each.revision)
        if past:
            yield sets[:past], self._context.admin.revision
        for each in sets[past:]:
            yield (each,), each.revision

    def _message(
        self,
        revision: int,
        watch_id: int,
        *,
        created: bool = False,
        canceled: bool = False,
        compact_revision: int = 0,
        cancel_reason: str = "",
        fragment: bool = False,
        events: msgspec.Raw | None = None,
    ) -> bytes:
        message = WatchResponse(
            header=self._context.header_at(revision),
            watch_id=decimal(watch_id),
            created=created,
            canceled=canceled,
            compact_revision=decimal(compact_revision),
            cancel_reason=cancel_reason,
            fragment=fragment,
        )
        if events is not None:
            message.events = events
        return b'{"result":%b}' % msgspec.json.encode(message)

    async def _refuse(self, reason: str) -> None:
        revision = self._context.admin.revision
        await self._say(self._message(revision, NOBODY, created=True, canceled=True, cancel_reason=reason))

    async def _say(self, *messages: bytes) -> None:
        async with self._turn:
            await self._write(*messages)

    async def _write(self, *messages: bytes) -> None:
        """For who has the turn."""
        carriage = self._carriage
        if carriage is None:
            self._first += messages
        elif messages:
            await carriage.write(b"".join(map(carriage.frame, messages)))


def _name(code: Code) -> str:
    """As gRPC writes it in a text."""
    return "".join(word.capitalize() for word in code.name.split("_"))


METHODS: dict[str, Method] = {"watch": Duplex(WatchRequest, WatchSession)}
