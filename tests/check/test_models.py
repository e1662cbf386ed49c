"""The sequential model against the store itself: written apart, they must give the same answers."""

from __future__ import annotations

from random import Random

from msgspec.structs import replace

from kvnode.check.history import MUST_EXIST, Operation
from kvnode.check.models import Store
from kvnode.config import LimitsSection
from kvnode.ids import Index
from kvnode.kv.keys import TO_THE_END
from kvnode.kv.requests import Compare, Delete, Put, PutReply, Range, RangeReply, Refusal, Txn, TxnReply
from kvnode.machine.machine import StateMachine
from kvnode.storage.memory_backend import MemoryBackend

KEYS = ("a", "b", "c")


def random_operation(random: Random, number: int, model: Store) -> Operation:
    shared = Operation(client=1, op="get", call=number, ret=number)
    key = random.choice(KEYS)
    found = model.items.get(key)
    exp = random.choice([-1, -1, 0, MUST_EXIST, found.mod if found else 0, random.randint(1, 30)])
    match random.choice(["put", "put", "delete", "get", "range", "txn"]):
        case "put":
            return replace(shared, op="put", key=key, arg=f"v{number}", exp=exp)
        case "delete":
            return replace(shared, op="delete", key=key, exp=exp)
        case "txn":
            return replace(shared, op="txn", parts=random_parts(random, shared, number, model))
        case "range":
            return replace(shared, op="range", key=random.choice(["", "a"]))
    return replace(shared, key=key)


def random_parts(random: Random, shared: Operation, number: int, model: Store) -> tuple[Operation, ...]:
    parts: list[Operation] = []
    for place, key in enumerate(random.sample(KEYS, k=random.randint(1, 3))):
        found = model.items.get(key)
        exp = random.choice([-1, -1, found.mod if found else 0])
        kind = random.choice(["put", "delete", "get", "put get", "delete get"])
        if "put" in kind:
            parts.append(replace(shared, op="put", key=key, arg=f"v{number}.{place}", exp=exp))
        if "delete" in kind:
            parts.append(replace(shared, op="delete", key=key, exp=exp))
        if "get" in kind:
            parts.append(replace(shared, op="get", key=key, exp=exp if kind == "get" else -1))
    return tuple(parts)


class RealStore:
    """Answers operations of a history by the state machine of a node."""

    def __init__(self) -> None:
        self.machine = StateMachine(MemoryBackend(), LimitsSection())

    def answer(self, operation: Operation) -> Operation:
        key = operation.key.encode()
        match operation.op:
            case "get":
                return self._read(operation, self.machine.range(Range(key)))
            case "range":
                reply = self.machine.range(Range(key, TO_THE_END if not key else b"b"))
                shown = [(kv.key, kv.value, kv.mod_revision, kv.version) for kv in reply.items]
                return replace(operation, note=repr(shown), rev=reply.revision)
            case "put":
                return self._written(operation, Put(key, (operation.arg or "").encode(), if_revision=operation.exp))
            case "delete":
                return self._written(operation, Delete(key, if_revision=operation.exp))
        return self._txn(operation)

    def _apply(self, request: Put | Delete | Txn) -> object:
        index = Index(self.machine.applied_index + 1)
        return self.machine.apply(index, index, request).result

    def _written(self, operation: Operation, request: Put | Delete) -> Operation:
        reply = self._apply(request)
        if isinstance(reply, Refusal):
            assert reply.code == "compare_failed"
            return replace(operation, held=False, mod=reply.found, rev=reply.revision)
        count = 0 if isinstance(reply, PutReply) else reply.deleted
        return replace(operation, rev=reply.revision, count=count)

    def _txn(self, operation: Operation) -> Operation:
        compares = tuple(
            Compare(part.key.encode(), "mod_revision", "=", part.exp) for part in operation.parts if part.exp != -1
        )
        requests = {"put": lambda part: Put(part.key.encode(), (part.arg or "").encode())}
        requests["delete"] = lambda part: Delete(part.key.encode())
        requests["get"] = lambda part: Range(part.key.encode())
        reply = self._apply(Txn(compares, tuple(requests[part.op](part) for part in operation.parts)))
        assert isinstance(reply, TxnReply), reply
        if not reply.succeeded:
            return replace(operation, held=False, rev=reply.revision)
        parts = []
        for part, result in zip(operation.parts, reply.results, strict=True):
            if isinstance(result, RangeReply):
                parts.append(self._read(part, result))
            else:
                parts.append(part if isinstance(result, PutReply) else replace(part, count=result.deleted))
        return replace(operation, parts=tuple(parts), rev=reply.revision)

    @staticmethod
    def _read(operation: Operation, reply: RangeReply) -> Operation:
        if not reply.items:
            return replace(operation, rev=reply.revision)
        kv = reply.items[0]
        return replace(operation, out=kv.value.decode(), mod=kv.mod_revision, rev=reply.revision)


def as_told(operation: Operation) -> Operation:
    """What the two have in common: no revision for the reads inside a transaction, items as text."""
    shown = [(item.key.encode(), item.value.encode(), item.mod, item.version) for item in operation.items]
    note = repr(shown) if operation.op == "range" else ""
    return replace(operation, parts=tuple(replace(part, rev=0) for part in operation.parts), items=(), note=note)


def test_the_model_answers_as_the_store_does():
    kinds: dict[tuple[str, bool], int] = {}
    for seed in range(60):
        random = Random(seed)
        model, real = Store(), RealStore()
        for number in range(60):
            operation = random_operation(random, number, model)
            expected = as_told(model.answer(operation))
            told = real.answer(operation)
            parts = tuple(replace(part, rev=0) for part in told.parts)
            assert replace(told, parts=parts) == expected, (seed, number)
            kinds[operation.op, expected.held] = kinds.get((operation.op, expected.held), 0) + 1
    assert min(kinds.values()) > 100, kinds
