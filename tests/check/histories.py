"""Random histories that are legal by construction: clients over the sequential model, with real time.

Every operation takes effect at one moment between its call and its return; an unanswered one at any moment after its
call, or never. The seed decides everything.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from random import Random
from typing import Literal

from msgspec.structs import replace

from kvnode.check.history import ANY, MUST_EXIST, Operation, Seen
from kvnode.check.models import Store, Version


@dataclass
class Shape:
    """What a history is made of."""

    clients: int = 4
    keys: int = 3
    operations: int = 40
    unanswered: float = 0.1  # share of operations
    refused: float = 0.05
    kinds: tuple[str, ...] = ("put", "put", "get", "get", "get", "delete", "cas", "create", "stale", "range", "txn")
    think: int = 20  # time between operations, at most
    takes: int = 100  # time to the effect, and from there to the answer, at most


@dataclass
class History:
    operations: list[Operation]
    final: dict[str, Seen]
    revision: int


@dataclass
class _Client:
    number: int
    known: dict[str, int] = field(default_factory=dict)  # what it believes each key's revision to be


def legal(seed: int, shape: Shape) -> History:
    return _Generator(Random(seed), shape).run()


class _Generator:
    def __init__(self, random: Random, shape: Shape) -> None:
        self.random = random
        self.shape = shape
        self.store = Store()
        self.past: list[tuple[int, dict[str, Version]]] = [(1, {})]  # states for stale reads
        self.stale: dict[tuple[int, int], int] = {}  # (client, node) → newest revision shown
        self.events: list[tuple[int, int, str, _Client, Operation | None]] = []
        self.sequence = 0
        self.values = 0
        self.clients = 0
        self.operations: list[Operation] = []

    def run(self) -> History:
        for _ in range(self.shape.clients):
            self._schedule(self.random.randint(0, 50), "call", self._client(), None)
        started = 0
        while self.events:
            now, _, what, client, operation = heapq.heappop(self.events)
            if what == "call":
                if started < self.shape.operations:
                    started += 1
                    self._call(now, client)
            elif what == "effect":
                assert operation is not None
                self._effect(now, client, operation)
            else:
                assert operation is not None
                self.store.answer(operation)
                self._remember()
        self.operations.sort(key=lambda operation: operation.call)
        return History(self.operations, self.store.seen(), self.store.revision)

    def _client(self) -> _Client:
        self.clients += 1
        return _Client(self.clients)

    def _schedule(self, time: int, what: str, client: _Client, operation: Operation | None) -> None:
        self.sequence += 1
        heapq.heappush(self.events, (time, self.sequence, what, client, operation))

    def _call(self, now: int, client: _Client) -> None:
        random, shape = self.random, self.shape
        operation = self._operation(now, client)
        effect = now + random.randint(1, shape.takes)
        chance = random.random()
        if chance < shape.unanswered and operation.consistency != "stale":
            if random.random() < 0.6:
                self._schedule(now + random.randint(1, 8 * shape.takes), "late", client, operation)
            self.operations.append(replace(operation, status="info"))
            self._schedule(effect + random.randint(1, shape.takes), "call", self._client(), None)
        elif chance < shape.unanswered + shape.refused:
            ret = effect + random.randint(1, shape.takes)
            self.operations.append(replace(operation, status="fail", ret=ret))
            self._schedule(ret + random.randint(1, shape.think), "call", client, None)
        else:
            self._schedule(effect, "effect", client, operation)

    def _effect(self, now: int, client: _Client, operation: Operation) -> None:
        ret = now + self.random.randint(1, self.shape.takes)
        if operation.consistency == "stale":
            done = self._stale(client, operation)
        else:
            done = self.store.answer(operation)
            self._remember()
        self.operations.append(replace(done, ret=ret))
        for part in done.steps:
            if part.op == "put" and done.held:
                client.known[part.key] = done.rev
            elif part.op != "range":
                client.known[part.key] = part.mod
        for item in done.items:
            client.known[item.key] = item.mod
        self._schedule(ret + self.random.randint(1, self.shape.think), "call", client, None)

    def _stale(self, client: _Client, operation: Operation) -> Operation:
        """Answer from an older state, but none older than this client has seen at this node."""
        least = self.stale.get((client.number, operation.node), 1)
        revision, items = self.random.choice([state for state in self.past[-6:] if state[0] >= least] or self.past[-1:])
        self.stale[client.number, operation.node] = revision
        view = Store()
        view.revision, view.items = revision, items
        return view.answer(operation)

    def _remember(self) -> None:
        if self.store.revision > self.past[-1][0]:
            self.past.append((self.store.revision, dict(self.store.items)))

    def _operation(self, now: int, client: _Client) -> Operation:
        kind = self.random.choice(self.shape.kinds)
        key = self._key()
        shared = Operation(client=client.number, op="get", call=now, node=self.random.randint(1, 3))
        match kind:
            case "get" | "stale":
                consistency: Literal["linearizable", "stale"] = "stale" if kind == "stale" else "linearizable"
                return replace(shared, key=key, consistency=consistency)
            case "range":
                return replace(shared, op="range", key="k")
            case "put":
                return replace(shared, op="put", key=key, arg=self._value())
            case "create":
                return replace(shared, op="put", key=key, arg=self._value(), exp=0)
            case "cas":
                return replace(shared, op="put", key=key, arg=self._value(), exp=self._expected(client, key))
            case "delete":
                exp = self.random.choice([ANY, ANY, self._expected(client, key)])
                return replace(shared, op="delete", key=key, exp=exp)
        return replace(shared, op="txn", key="", parts=self._parts(shared, client))

    def _parts(self, shared: Operation, client: _Client) -> tuple[Operation, ...]:
        parts = []
        keys = self.random.sample(range(self.shape.keys), k=min(self.shape.keys, self.random.randint(1, 3)))
        for key in (f"k{number}" for number in keys):
            exp = self._expected(client, key) if self.random.random() < 0.4 else ANY
            match self.random.choice(["put", "put", "get", "delete", "put-get"]):
                case "put":
                    parts.append(replace(shared, op="put", key=key, arg=self._value(), exp=exp))
                case "put-get":
                    parts.append(replace(shared, op="put", key=key, arg=self._value(), exp=exp))
                    parts.append(replace(shared, op="get", key=key))
                case "get":
                    parts.append(replace(shared, op="get", key=key, exp=exp))
                case _:
                    parts.append(replace(shared, op="delete", key=key, exp=exp))
        return tuple(parts)

    def _expected(self, client: _Client, key: str) -> int:
        return self.random.choice([client.known.get(key, 0), client.known.get(key, 0), MUST_EXIST, 0])

    def _key(self) -> str:
        return f"k{self.random.randrange(self.shape.keys)}"

    def _value(self) -> str:
        self.values += 1
        return f"v{self.values}"
