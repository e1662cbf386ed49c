"""Clients: they ask the nodes of a simulated cluster for everything the store can do, and record what they were told.

A client has one request open at a time, at the node it happens to be connected to; after an answer that leaves the
outcome open it goes on under a new number, as the history's format wants it (`kvnode.check.history`). Values are unique
in the run. Times are the simulator's, one clock for all clients.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from kvnode.check.history import ANY, Operation, Seen
from kvnode.clocks import hybrid
from kvnode.errors import BadRequest, Compacted, CompareFailed, KvnodeError, TryAgain, Unknown
from kvnode.ids import NodeId
from kvnode.kv.interface import Options
from kvnode.kv.keys import prefix_end
from kvnode.kv.requests import (
    Await,
    Compact,
    Compare,
    Delete,
    DeleteReply,
    History,
    KeyValue,
    OperationReply,
    Put,
    Range,
    RangeReply,
    Txn,
    TxnReply,
)
from kvnode.kv.requests import Operation as StoreOperation
from kvnode.sim.runtime import holders

PREFIX = "k"
OTHER_KINDS = ("delete", "range", "txn", "stale", "past", "bounded", "causal", "await")
PATIENCE_S = 5.0
"""A client gives up on a node that is silent for so much longer than the request's deadline."""


class Asked(Protocol):
    """Carries a request to a member, which may have to come up first, and its answer back. Raises: KvnodeError."""

    def __call__(
        self, member: NodeId, request: Any, options: Options, on_sent: Callable[[], None]
    ) -> Awaitable[Any]: ...


WEIGHTS: Mapping[str, int] = {"put": 4, "get": 4} | dict.fromkeys(OTHER_KINDS, 1)


@dataclass(frozen=True)
class Mix:
    """What clients do, and how much of it."""

    clients: int = 6
    pause_s: float = 0.05  # mean time between an answer and the next request
    keys: int = 5
    weights: Mapping[str, int] = field(default_factory=lambda: WEIGHTS)
    conditional: float = 0.4  # share of writes that ask for a revision
    padding: int = 0  # bytes that some values carry besides their number
    timeouts_ms: tuple[int, ...] = (50, 300, 2_000)
    roams: float = 0.1  # chance to change the node before a request
    holders: int = 0  # clients that take locks
    watchers: int = 3


class Workload:
    """All clients of a run. `operations` is the history, in the order in which requests ended."""

    def __init__(
        self,
        ask: Asked,
        members: list[NodeId],
        mix: Mix,
        fork: Callable[[str], random.Random],
        served_by: Callable[[NodeId], int],
    ) -> None:
        """`served_by` numbers the process that a member is now: another life of it may show an older state."""
        self.served_by = served_by
        self.operations: list[Operation] = []
        self.looked_back: list[tuple[Range | History, int, RangeReply]] = []  # request, time it named, answer
        self.given_up: list[tuple[int, int, int]] = []  # (revision or 0, time, floor told) of reads refused for it
        self.awaited: list[tuple[Await, RangeReply]] = []
        self.bounded: list[tuple[float, float, int]] = []  # asked at (s), bound (s), revision of the answer
        self.leases = holders.Told()
        self.is_over = False
        self.patience_s = PATIENCE_S
        self._ask = ask
        self._members = members
        self._mix = mix
        self._fork = fork
        self._clients = 0
        self._values = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._loop = asyncio.get_running_loop()

    def start(self) -> None:
        for number in range(self._mix.clients):
            self._tasks.append(self._loop.create_task(self._live(number), name=f"client-{number}"))
        for number in range(self._mix.holders):
            holder = holders.live(self, self.leases, self._fork(f"holder-{number}"), self._members)
            self._tasks.append(self._loop.create_task(holder, name=f"holder-{number}"))

    def join(self, client: Coroutine[Any, Any, None], name: str) -> None:
        """A client of another kind, which ends soon after `is_over`."""
        self._tasks.append(self._loop.create_task(client, name=name))

    async def finish(self) -> None:
        """No new requests; returns when every open one has been answered."""
        self.is_over = True
        await asyncio.gather(*self._tasks)

    @property
    def newest(self) -> int:
        """The newest revision that any client was told of."""
        return max((operation.rev for operation in self.operations), default=0)

    @property
    def open_requests(self) -> int:
        return sum(not task.done() for task in self._tasks)

    def number(self) -> int:
        """A client number nobody has used."""
        self._clients += 1
        return self._clients

    def value(self, rng: random.Random) -> str:
        self._values += 1
        return f"{self._values}" + "." * (self._mix.padding if rng.random() < 0.25 else 0)

    async def _live(self, number: int) -> None:
        rng = self._fork(f"client-{number}")
        client = Client(self, rng, self._fork(f"forms-{number}"), self._members[number % len(self._members)])
        kinds = list(self._mix.weights)
        weights = list(self._mix.weights.values())
        while not self.is_over:
            await asyncio.sleep(rng.expovariate(1.0 / self._mix.pause_s))
            if rng.random() < self._mix.roams or client.member not in self._members:
                client.member = rng.choice(self._members)
            (kind,) = rng.choices(kinds, weights)
            await client.request(kind, f"{PREFIX}{rng.randrange(self._mix.keys)}")

    @property
    def pause_s(self) -> float:
        return self._mix.pause_s

    @property
    def keys(self) -> int:
        return self._mix.keys

    def condition(self, known: int, rng: random.Random) -> int:
        return known if rng.random() < self._mix.conditional else ANY

    def options(self, rng: random.Random, *, stale: bool = False) -> Options:
        timeout_ms = rng.choice(self._mix.timeouts_ms)
        return Options(timeout_ms=timeout_ms, consistency="stale" if stale else "linearizable")

    async def ask(self, member: NodeId, request: Any, options: Options, on_sent: Callable[[], None]) -> Any:
        return await self._ask(member, request, options, on_sent)

    def now_ns(self) -> int:
        return int(self._loop.time() * 1e9)


class Client:
    """One request after the other."""

    def __init__(self, load: Workload, rng: random.Random, forms: random.Random, member: NodeId) -> None:
        """`forms` chooses among ways to say the same."""
        self.member = member
        self._load = load
        self._rng = rng
        self._forms = forms
        self._number = load.number()
        self._known: dict[str, int] = {}  # key → the revision last heard of
        self._served_by = 0  # the process life that has the open request
        self._newest = 1  # of the revisions it was told
        self._newest_time = 0  # of the writes it was told of
        self._floor = 0  # the oldest revision that it was told to be readable

    async def request(self, kind: str, key: str) -> None:
        if kind == "past":
            await self._look_back(key)
            return
        if kind == "compact":
            await self._compact()
            return
        if kind == "await":
            await self._await_newer(key)
            return
        asked, request = self._make(kind, key)
        options = self._options(kind)
        asked = msgspec.structs.replace(
            asked, consistency="linearizable" if options.consistency == "linearizable" else "stale"
        )
        least, began_s = self._newest, self._load.now_ns() / 1e9
        try:
            async with asyncio.timeout(options.timeout_ms / 1e3 + PATIENCE_S):
                reply = await self._load.ask(self.member, request, options, self._on_sent)
        except CompareFailed as error:
            found = error.detail["revision"]
            self._known[key] = found
            self._end(asked, held=False, mod=found)
        except KvnodeError as error:
            self._end(asked, status="info" if error.may_have_applied else "fail", note=error.code)
        except TimeoutError:
            self._end(asked, status="info", note="gave up")
        else:
            if kind == "causal":
                assert reply.revision >= least, ("misses what its caller has seen", least, reply)
            if kind == "bounded":
                self._load.bounded.append((began_s, options.max_staleness_ms / 1e3, reply.revision))
            self._answered(kind, asked, reply)

    def _on_sent(self) -> None:
        self._served_by = self._load.served_by(self.member)

    def _options(self, kind: str) -> Options:
        options = self._load.options(self._rng, stale=kind == "stale")
        if kind == "causal":
            return msgspec.structs.replace(options, consistency="causal", least_revision=self._newest)
        if kind == "bounded":
            bound_ms = self._rng.choice((20, 200, 2_000))
            return msgspec.structs.replace(options, consistency="bounded", max_staleness_ms=bound_ms)
        return options

    async def _await_newer(self, key: str) -> None:
        """A long poll, often for what is there already, sometimes for what never comes."""
        rng, least = self._rng, self._newest
        request = Await(key.encode(), rng.choice((0, self._newest, self._newest)), rng.choice((0, 50, 1_000)))
        options = self._load.options(rng)
        try:
            async with asyncio.timeout((2 * options.timeout_ms + request.wait_ms) / 1e3 + PATIENCE_S):
                reply = await self._load.ask(self.member, request, options, self._on_sent)
        except (TryAgain, Unknown, TimeoutError):
            return
        except Compacted as error:
            self._on_given_up(request.after_revision, 0, error)
            return
        assert reply.revision >= least, ("misses what its caller has seen", least, reply)
        self._load.awaited.append((request, reply))

    async def _compact(self) -> None:
        """Give up some of the past, or what is given up already."""
        revision = self._rng.choice((1, self._rng.randint(1, self._newest), self._newest))
        options = self._load.options(self._rng)
        try:
            async with asyncio.timeout(options.timeout_ms / 1e3 + PATIENCE_S):
                reply = await self._load.ask(self.member, Compact(revision), options, self._on_sent)
        except (TryAgain, Unknown, TimeoutError):
            return
        assert revision <= reply.compact_revision <= reply.revision, (revision, reply)
        assert reply.compact_revision >= self._floor, ("I22: the floor went back", self._floor, reply)
        self._floor = reply.compact_revision

    def _on_given_up(self, revision: int, time: int, error: Compacted) -> None:
        self._floor = max(self._floor, error.detail["compact_revision"])
        self._load.given_up.append((revision, time, error.detail["compact_revision"]))

    async def _look_back(self, key: str) -> None:
        """What was once told cannot lie in the future, wherever one asks, unless that is a time."""
        rng = self._rng
        revision = time = 0
        floor = self._floor
        if rng.random() < 0.5:
            revision = rng.choice((self._newest, rng.randint(1, self._newest)))
        else:
            time = max(1, self._newest_time + rng.choice((-1, 0, 1, rng.randint(-2_000, 50) << hybrid.COUNTER_BITS)))
        request = rng.choice((Range(key.encode(), revision=revision), History(key.encode(), revision=revision)))
        options = msgspec.structs.replace(self._load.options(rng), at_time=time)
        try:
            async with asyncio.timeout(options.timeout_ms / 1e3 + PATIENCE_S):
                reply = await self._load.ask(self.member, request, options, self._on_sent)
        except (TryAgain, Unknown, TimeoutError):
            return
        except BadRequest:
            if revision or time <= self._newest_time:
                raise
            return  # by the clock of the node that was asked it lies in the future
        except Compacted as error:
            self._on_given_up(revision, time, error)
            return
        assert reply.revision >= floor, ("given up and shown all the same", floor, request, time, reply)
        self._load.looked_back.append((request, time, reply))

    def _make(self, kind: str, key: str) -> tuple[Operation, Any]:
        rng, load = self._rng, self._load
        asked = Operation(client=self._number, op="get", call=load.now_ns(), key=key)
        expected = load.condition(self._known.get(key, 0), rng)
        match kind:
            case "put":
                value = load.value(rng)
                put = Put(key.encode(), value.encode(), if_revision=expected)
                return msgspec.structs.replace(asked, op="put", arg=value, exp=expected), put
            case "delete":
                return msgspec.structs.replace(asked, op="delete", exp=expected), Delete(
                    key.encode(), if_revision=expected
                )
            case "range":
                whole = Range(PREFIX.encode(), prefix_end(PREFIX.encode()), limit=2 * self._load.keys)
                return msgspec.structs.replace(asked, op="range", key=PREFIX), whole
            case "txn":
                return self._make_txn(asked, key)
            case _:
                return asked, Range(key.encode())

    def _make_txn(self, asked: Operation, key: str) -> tuple[Operation, Txn]:
        rng, load = self._rng, self._load
        parts: list[Operation] = []
        operations: list[StoreOperation] = []
        compares: list[Compare] = []
        others = [f"{PREFIX}{number}" for number in range(8) if f"{PREFIX}{number}" in self._known]
        for each in dict.fromkeys([key, *rng.sample(others, min(len(others), rng.choice((0, 1, 2))))]):
            part = msgspec.structs.replace(asked, key=each)
            kind = rng.choice(("put", "put", "get", "delete"))
            if kind != "get":
                part = msgspec.structs.replace(part, exp=load.condition(self._known.get(each, 0), rng))
                if part.exp != ANY:
                    compares.append(Compare(each.encode(), "mod_revision", "=", part.exp))
            if kind == "put":
                value = load.value(rng)
                part = msgspec.structs.replace(part, op="put", arg=value)
                operations.append(Put(each.encode(), value.encode()))
            elif kind == "delete":
                part = msgspec.structs.replace(part, op="delete")
                operations.append(Delete(each.encode()))
            else:
                operations.append(Range(each.encode()))
            parts.append(part)
        txn = Txn(tuple(compares), tuple(operations))
        return (
            msgspec.structs.replace(asked, op="txn", key="", parts=tuple(parts)),
            in_new_forms(txn, self._forms) if self._forms.random() < 0.5 else txn,
        )

    # ── answers ─────────────────────────────────────────────────────────────────────────────────────

    def _answered(self, kind: str, asked: Operation, reply: Any) -> None:
        match kind:
            case "put":
                self._newest_time = max(self._newest_time, reply.time)
                self._known[asked.key] = reply.revision
                self._end(asked, rev=reply.revision)
            case "delete":
                self._known[asked.key] = 0
                self._end(asked, rev=reply.revision, count=reply.deleted)
            case "range":
                self._end(asked, rev=reply.revision, items=tuple(map(seen, reply.items)))
            case "txn":
                parts = tuple(map(_part, asked.parts, results_of(reply))) if reply.succeeded else asked.parts
                self._end(asked, rev=reply.revision, held=reply.succeeded, parts=parts)
            case _:
                item = reply.items[0] if reply.items else None
                self._known[asked.key] = item.mod_revision if item is not None else 0
                out = item.value.decode() if item is not None else None
                self._end(asked, rev=reply.revision, out=out, mod=self._known[asked.key])

    def _end(self, asked: Operation, **what: Any) -> None:
        ret = None if what.get("status") == "info" else self._load.now_ns()
        self._newest = max(self._newest, what.get("rev", 0))
        self._load.operations.append(msgspec.structs.replace(asked, ret=ret, node=self._served_by, **what))
        if ret is None:
            self._number = self._load.number()


def in_new_forms(txn: Txn, forms: random.Random) -> Txn:
    """The same in forms that need feature level 4: whatever is asked inside, is asked of the state before all of it."""
    known = {compare.key for compare in txn.compare if compare.value}

    def operation(asked: StoreOperation) -> StoreOperation:
        match asked:
            case Range(start=key):
                return Range(key, key + b"\x00", limit=1, counted=True)
            case Put(key=key) if key in known:
                return msgspec.structs.replace(asked, keep_lease=True)
        return asked

    compares = tuple(msgspec.structs.replace(compare, end=compare.key + b"\x00") for compare in txn.compare)
    operations = tuple(map(operation, txn.success))
    first = forms.randrange(len(operations) + 1)
    return Txn(compares, (*operations[:first], Txn(forms.choice((compares, txn.compare)), operations[first:])))


def results_of(reply: TxnReply) -> Iterator[OperationReply]:
    """Of all operations that ran, in order. Transactions inside ask for nothing that the one around has not asked."""
    assert reply.succeeded, ("a compare inside saw what was done around it", reply)
    for result in reply.results:
        if isinstance(result, TxnReply):
            yield from results_of(result)
        else:
            assert not isinstance(result, RangeReply) or result.count == len(result.items), result
            yield result


def seen(item: KeyValue) -> Seen:
    return Seen(item.key.decode(), item.value.decode(), item.mod_revision, item.version)


def _part(asked: Operation, reply: Any) -> Operation:
    if isinstance(reply, RangeReply):
        item = reply.items[0] if reply.items else None
        if item is None:
            return msgspec.structs.replace(asked, rev=reply.revision)
        return msgspec.structs.replace(asked, rev=reply.revision, out=item.value.decode(), mod=item.mod_revision)
    if isinstance(reply, DeleteReply):
        return msgspec.structs.replace(asked, rev=reply.revision, count=reply.deleted)
    return msgspec.structs.replace(asked, rev=reply.revision)
