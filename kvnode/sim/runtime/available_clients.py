"""Clients of the plane that needs no quorum: writers and readers of its keyspace, users who post, and who follow along.

They ask any node, in whatever minority it is, carry contexts and tokens from one to another, or none at all. Each read
is judged at once (`dots`); what was read of the timeline is kept and judged at the end (`available_judge`).
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kvnode.clocks.version_vector import Dot, VersionVector
from kvnode.errors import BadContext, Conflict, KvnodeError, NotReady
from kvnode.ids import NodeId
from kvnode.kv.available import (
    NOTHING_SEEN,
    ApRead,
    ApWritten,
    EventPage,
    Seen,
    TimelineEvent,
    seen_also,
)
from kvnode.node.available import AvailablePlane
from kvnode.sim.runtime.dots import dot_of
from kvnode.wire.ap_context import decode_context

if TYPE_CHECKING:
    from kvnode.sim.runtime.cluster import Cluster
    from kvnode.sim.runtime.member import Member
    from kvnode.sim.runtime.workload import Workload

PREFIX = "ap"
KINDS = {"get": 4, "put": 3, "blind": 2, "delete": 1, "blind_delete": 1, "list": 1, "post": 2, "forget": 1}
"""`forget`: no client asks for that; here it comes more often than once in half a minute, so that deletions meet it."""
PATIENCE_S = 5.0
TIMEOUTS_MS = (100, 500, 2_000)
WAIT_MS = 300

GIVES_UP = 0.3
"""How often a client that is behind no node, or ahead of it, begins anew."""


@dataclass(frozen=True)
class PlaneMix:
    """What the clients of a world are."""

    writers: int = 2
    pause_s: float = 0.2
    keys: int = 3
    readers: int = 1
    stable_readers: int = 1
    tokens: float = 0.5  # share of writers that carry tokens
    roams: float = 0.3
    damages: float = 0.0  # share of starts that find the store of the plane damaged
    is_mute: bool = False  # nothing of gossip arrives until the very end: the consistent store does not need it


@dataclass
class Stream:
    """What one reader was shown of the timeline, in order."""

    is_stable: bool
    events: list[TimelineEvent] = field(default_factory=list)
    cursor: str = ""


class AvailableClients:
    """All of them in one run."""

    def __init__(
        self,
        cluster: Cluster,
        workload: Workload,
        mix: PlaneMix,
        fork: Callable[[str], random.Random],
        is_astray: Callable[[NodeId], bool],
    ) -> None:
        """`is_astray`: whether a member's process runs on what is not its own; nobody listens to that."""
        self.streams: list[Stream] = []
        self.posted: list[TimelineEvent] = []
        self.counts: dict[str, int] = {}
        self._cluster = cluster
        self._workload = workload
        self._mix = mix
        self._fork = fork
        self._is_astray = is_astray
        self._values = 0

    def start(self) -> None:
        mix, join = self._mix, self._workload.join
        for number in range(mix.writers):
            join(self._write(self._fork(f"ap-writer-{number}")), f"ap-writer-{number}")
        for number in range(mix.readers + mix.stable_readers):
            self.streams.append(Stream(is_stable=number >= mix.readers))
            join(self._follow(self._fork(f"ap-reader-{number}"), self.streams[-1]), f"ap-reader-{number}")

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    def value(self) -> bytes:
        self._values += 1
        return b"%d" % self._values

    # ── asking ──────────────────────────────────────────────────────────────────────────────────────

    async def ask(self, member: NodeId, ask: Callable[[AvailablePlane], Awaitable[Any]]) -> Any:
        """None: there was no answer, or it was a refusal."""
        found = self._cluster.members.get(member)
        if found is None or found.plane is None or member in self._cluster.failures or self._is_astray(member):
            return None
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await found.ask_plane(ask)
        except KvnodeError as error:
            self.count(f"refused_{error.code}")
        except TimeoutError:
            self.count("given_up")
        return None

    # ── the keyspace ────────────────────────────────────────────────────────────────────────────────

    async def _write(self, rng: random.Random) -> None:
        mix = self._mix
        writer = Writer(self, rng, has_token=rng.random() < mix.tokens)
        member = rng.choice(self._cluster.ids)
        kinds, weights = list(KINDS), list(KINDS.values())
        while not self._workload.is_over:
            await asyncio.sleep(rng.expovariate(1.0 / mix.pause_s))
            if rng.random() < mix.roams or member not in self._cluster.ids:
                member = rng.choice(self._cluster.ids)
            (kind,) = rng.choices(kinds, weights)
            await writer.request(member, kind, f"{PREFIX}{rng.randrange(mix.keys)}".encode())

    def judge_read(self, member: NodeId, read: ApRead, vector: VersionVector) -> None:
        """By what the node had when it answered."""
        known = vector
        if read.context:
            found = self._cluster.members.get(member)
            cluster_id = found.data.identity.cluster_id if found is not None else 0
            if cluster_id:
                known = known.merge(decode_context(read.context, cluster_id, read.key).vector)
        dots = [dot_of(row) for row in read.dots] if read.values else []
        # Values come in their own order, dots in theirs: each value is unique in the run.
        by_value = {write.value: write.dot for write in self._cluster.dots.by_key.get(read.key, {}).values()}
        shown = [(by_value.get(value, _NO_DOT), value) for value in read.values]
        assert sorted(dot for dot, _ in shown) == sorted(dots), ("V2: values and their dots", read, shown)
        self._cluster.dots.judge_read(read.key, shown, known)

    def written(self, key: bytes, reply: ApWritten) -> None:
        if reply.token_dot is not None:
            self._cluster.dots.acknowledged(reply.token_dot, key)

    # ── the timeline ────────────────────────────────────────────────────────────────────────────────

    async def _follow(self, rng: random.Random, stream: Stream) -> None:
        member = rng.choice(self._cluster.ids)
        while not self._workload.is_over:
            await asyncio.sleep(rng.expovariate(1.0 / self._mix.pause_s))
            if rng.random() < self._mix.roams or member not in self._cluster.ids:
                member = rng.choice(self._cluster.ids)
            await self.read_on(member, stream, limit=rng.choice((1, 3, 1_000)), wait_ms=rng.choice((0, WAIT_MS)))

    async def read_on(self, member: NodeId, stream: Stream, *, limit: int = 1_000, wait_ms: int = 0) -> bool:
        """One page; whether there was one."""
        page: EventPage | None = await self.ask(
            member, lambda plane: plane.events(stream.cursor, stable=stream.is_stable, limit=limit, wait_ms=wait_ms)
        )
        if page is None:
            return False
        ranks = [(event.lamport, event.member, event.incarnation, event.seq) for event in page.events]
        assert ranks == sorted(set(ranks)), ("LC2: a page out of order", page)
        stream.events += page.events
        stream.cursor = page.cursor
        self.count("event_pages")
        return bool(page.events)


class Writer:
    """One client: what it has read, and what it has seen."""

    def __init__(
        self,
        clients: AvailableClients,
        rng: random.Random,
        *,
        has_token: bool,
        timeouts_ms: Sequence[int] = TIMEOUTS_MS,
    ) -> None:
        self._timeouts_ms = timeouts_ms
        self._clients = clients
        self._rng = rng
        self._has_token = has_token
        self._seen: Seen = NOTHING_SEEN
        self._contexts: dict[bytes, str] = {}

    async def request(self, member: NodeId, kind: str, key: bytes) -> bool:
        """Whether it was answered."""
        clients, rng = self._clients, self._rng
        timeout_ms = rng.choice(self._timeouts_ms)
        seen = self._seen
        context = self._contexts.get(key) if kind in ("put", "delete") else None
        value = clients.value()

        async def ask(plane: AvailablePlane) -> tuple[Any, int, VersionVector]:
            reply: Any
            match kind:
                case "get":
                    reply = await plane.ap_get(key, seen=seen, timeout_ms=timeout_ms)
                case "list":
                    reply = await plane.ap_list(PREFIX.encode(), seen=seen, timeout_ms=timeout_ms)
                case "forget":
                    reply = plane._eventual.forget(plane._node, plane._addresses)
                case "post":
                    fields = json.dumps({"n": value.decode()}).encode()
                    reply = await plane.post_event(fields, seen=seen, timeout_ms=timeout_ms)
                case "put" | "blind":
                    reply = await plane.ap_put(key, value, context=context, seen=seen, timeout_ms=timeout_ms)
                case _:
                    reply = await plane.ap_delete(key, context=context, seen=seen, timeout_ms=timeout_ms)
            return reply, plane.lamport_time, plane._eventual.keyspace.vector

        async def ask_or_learn(plane: AvailablePlane) -> tuple[Any, int, VersionVector] | None:
            try:
                return await ask(plane)
            except Conflict as error:
                self._contexts[key] = error.detail["context"]
                raise
            except BadContext:  # it is of another node, which is ahead; or what it covers was lost
                self._forget(self._contexts, key)
                raise
            except NotReady:
                if rng.random() < GIVES_UP:
                    self._seen = NOTHING_SEEN
                raise

        answer = await clients.ask(member, ask_or_learn)
        if answer is None:
            return False
        reply, lamport, vector = answer
        clients.count(kind)
        self._learn(member, kind, key, reply, vector)
        self._note(reply, lamport)
        return True

    def _forget(self, contexts: dict[bytes, str], key: bytes) -> None:
        if self._rng.random() < GIVES_UP:
            contexts.pop(key, None)

    def _learn(self, member: NodeId, kind: str, key: bytes, reply: Any, vector: VersionVector) -> None:
        clients = self._clients
        match kind:
            case "forget":
                for _ in range(reply):
                    clients.count("forgotten")
            case "get":
                self._check_seen(vector)
                clients.judge_read(member, reply, vector)
                if reply.context:
                    self._contexts[key] = reply.context
            case "list":
                self._check_seen(vector)
                for item in reply.items:
                    clients.judge_read(member, item, vector)
            case "post":
                assert reply.lamport > self._seen.lamport, ("LC4: an event is not after its cause", reply, self._seen)
                clients.posted.append(reply)
            case _:
                clients.written(key, reply)
                self._contexts[key] = reply.context

    def _check_seen(self, vector: VersionVector) -> None:
        for row in self._seen.dots:
            assert vector.covers(dot_of(row)), ("V4: a read does not cover its token", row, vector)

    def _note(self, reply: Any, lamport: int) -> None:
        if not self._has_token:
            return
        dots: tuple[Any, ...] = ()
        if isinstance(reply, ApRead):
            dots = reply.dots
        elif isinstance(reply, ApWritten) and reply.token_dot is not None:
            dots = (reply.token_dot,)
        self._seen = seen_also(self._seen, lamport, dots)


_NO_DOT = Dot(dot_of((1, 0, 1)).origin, 1 << 62)


def plane_of(member: Member) -> AvailablePlane:
    """Of one that takes part."""
    assert member.plane is not None, member.id
    return member.plane
