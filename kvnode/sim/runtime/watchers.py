"""Watchers of a simulated cluster: they follow changes on whatever node serves them, and move on when it does not.

A watcher that has lost its node, or has had enough of it, resumes at another one right after the last revision that
came whole. Some begin in the past, some in the future, some list first. When the clients have finished each goes on
until it has seen everything that clients were told of. In the end every stream is held against the log that the nodes
applied (`kvnode.check.watches`): each change once, in order, whole revisions, nothing missing.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

from kvnode.check.watches import Change, Message, Stream, check
from kvnode.errors import Compacted, KvnodeError
from kvnode.ids import NodeId
from kvnode.kv.events import Cancelled, Changes, Listed, Progress, Started, Synced, WatchPart
from kvnode.kv.interface import Options
from kvnode.kv.keys import ONE_KEY, prefix_end
from kvnode.kv.requests import KeyValue, Watch

PROGRESS_MS = 200
SILENCE_S = 4.0
"""A node from which nothing comes for so long, marks included, is given up."""

PAUSE_S = 0.05
KINDS: tuple[tuple[Literal["put", "delete"], ...], ...] = (("put", "delete"), ("put", "delete"), ("put",), ("delete",))


class Opened(Protocol):
    """Opens a stream at a member, which may have to come up first, and hands its parts over until told to stop."""

    def __call__(
        self, member: NodeId, request: Watch, options: Options, on_part: Callable[[WatchPart], bool]
    ) -> asyncio.Future[None] | None: ...


class Watchers:
    """All watchers of a run. `streams` is what each was told, one a node it was at."""

    def __init__(
        self,
        open_: Opened,
        members: list[NodeId],
        fork: Callable[[str], random.Random],
        *,
        count: int,
        prefix: str,
        keys: int,
    ) -> None:
        """They watch the `keys` of the clients: those with `prefix`, or one of them."""
        self.streams: list[Stream] = []
        self.goal = 0  # once the clients are done: the newest revision any was told of
        self._open = open_
        self._members = members
        self._prefix = prefix
        self._keys = keys
        self._fork = fork
        self._count = count
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        for number in range(self._count):
            self._tasks.append(loop.create_task(self._live(number), name=f"watcher-{number}"))

    async def finish(self, goal: int) -> None:
        """Returns when each has seen everything up to `goal`."""
        self.goal = max(goal, 1)
        await asyncio.gather(*self._tasks)

    async def _live(self, number: int) -> None:
        rng = self._fork(f"watcher-{number}")
        key = f"{self._prefix}{rng.randrange(self._keys)}" if rng.random() < 0.3 else ""
        kinds = rng.choice(KINDS)
        how = rng.choice(("now", "now", "past", "list", "future"))
        begins = {"past": 2, "future": rng.randint(2, 60)}.get(how, 0)
        before: _Reading | None = None
        while before is None or not self.goal or before.finished < self.goal:
            await asyncio.sleep(rng.expovariate(1 / PAUSE_S))
            is_new = before is None
            lists = is_new and how == "list"
            reading = _Reading(self, before.finished + 1 if before is not None else begins, lists=lists)
            request = Watch(
                (key or self._prefix).encode(),
                ONE_KEY if key else prefix_end(self._prefix.encode()),
                reading.asked_from,
                list_first=lists,
                previous=rng.random() < 0.5,
                puts="put" in kinds,
                deletes="delete" in kinds,
                progress_ms=PROGRESS_MS,
            )
            await self._read(rng, request, reading)
            if reading.floor:  # what it was to go on with has been dropped: it begins where history does
                before, begins = None, 0 if how == "list" else reading.floor
                continue
            if not reading.is_worth_keeping:
                continue
            self.streams.append(
                Stream(
                    len(self.streams) + 1,
                    reading.begins,
                    prefix="" if key else self._prefix,
                    key=key,
                    kinds=kinds,
                    listed=lists,
                    resumes=before.number if before is not None else 0,
                    messages=tuple(reading.messages),
                )
            )
            reading.number = len(self.streams)
            before = reading

    async def _read(self, rng: random.Random, request: Watch, reading: _Reading) -> None:
        """At one node, for as long as that goes well."""
        loop = asyncio.get_running_loop()
        options = Options(timeout_ms=rng.choice((300, 2_000)), consistency=rng.choice(("linearizable", "stale")))
        ends_s = loop.time() + rng.expovariate(1 / 2.0)
        reading.may_go_on = lambda: loop.time() < ends_s or (self.goal > 0 and loop.time() < ends_s + SILENCE_S)
        ended = self._open(rng.choice(self._members), request, options, reading.on_part)
        if ended is None:
            return
        try:
            while not ended.done():
                heard = reading.heard
                await asyncio.wait({ended}, timeout=SILENCE_S)
                if reading.heard == heard:
                    break
            if ended.done():
                ended.result()
        except Compacted as error:
            reading.floor = error.detail["compact_revision"]
        except KvnodeError:
            pass  # the node has gone, or could not begin: another one
        finally:
            reading.is_given_up = True
            ended.cancel()


class _Reading:
    """What came of one stream at one node."""

    def __init__(self, watchers: Watchers, asked_from: int, *, lists: bool) -> None:
        self.asked_from = asked_from
        self.begins = asked_from
        self.finished = asked_from - 1
        self.messages: list[Message] = []
        self.heard = 0
        self.number = 0
        self.floor = 0  # it could not begin: history begins here
        self.is_given_up = False
        self.may_go_on: Callable[[], bool] = lambda: True
        self._watchers = watchers
        self._has_begun = False
        self._has_listed = not lists

    @property
    def is_worth_keeping(self) -> bool:
        """It began; what resumes it goes on after it. A list that broke off is begun again."""
        return self._has_begun and self._has_listed

    def on_part(self, part: WatchPart) -> bool:
        if self.is_given_up:
            return False
        self.heard += 1
        match part:
            case Started():
                assert not self.asked_from or part.from_revision == self.asked_from, (part, self.asked_from)
                self.begins = part.from_revision
                self.finished = part.from_revision - 1
                self._has_begun = True
            case Cancelled():
                self.messages.append(Message("cancelled", code=part.code, resume_rev=part.resume_revision))
                self.finished = max(self.finished, part.resume_revision - 1)
            case _:
                self.messages += told(part)
                if not isinstance(part, Listed):
                    self.finished = self.messages[-1].revision
                self._has_listed = self._has_listed or isinstance(part, Synced)
        if self._watchers.goal and self.finished >= self._watchers.goal and self._has_listed:
            return False
        return self.may_go_on()


def told(part: WatchPart) -> list[Message]:
    """The part as lines of a stream."""
    match part:
        case Changes():
            return [
                Message(
                    "put" if event.kv.version else "delete",
                    each.revision,
                    event.kv.key.decode(),
                    event.kv.value.decode() if event.kv.version else None,
                    event.previous.value.decode() if event.previous is not None else None,
                    more=number < len(each.events),
                )
                for each in part.sets
                for number, event in enumerate(each.events, start=1)
            ]
        case Listed():
            return [Message("put", kv.mod_revision, kv.key.decode(), kv.value.decode()) for kv in part.items]
        case Synced():
            return [Message("synced", part.revision)]
        case Progress():
            return [Message("progress", part.revision)]
        case _:
            return []


def judge_watched(streams: Sequence[Stream], changes: Mapping[int, Sequence[KeyValue]]) -> None:
    """Raises: AssertionError that names what a stream got wrong (I23)."""
    log = [
        Change(revision, kv.key.decode(), kv.value.decode() if kv.version else None)
        for revision, versions in sorted(changes.items())
        for kv in versions
    ]
    problems = check(streams, log)
    assert not problems, ("I23", problems[:5])
