"""Transactions: compares decide between two lists of operations; the chosen one happens at one revision or not at all.

Compares see the state before the transaction. Operations run in order, and each sees what the earlier ones of
its transaction did; a read at an explicit revision sees that revision. The revision in an inner answer is the
new one from the first change on, the old one before it.

A refused operation refuses the whole transaction. Per list, a key may be put once and may not also lie in
a deleted range; two deletes may overlap, the second finds nothing. All deletes together are held to the limit of one.

Changes gather in a draft and are merged at the end. Both may take many slices; nobody reads the new revision before.
"""

from __future__ import annotations

from typing import TypeVar

from kvnode.config import LimitsSection
from kvnode.ids import Revision
from kvnode.kv import keys
from kvnode.kv.events import Event
from kvnode.kv.requests import (
    Compare,
    Delete,
    DeleteReply,
    KeyValue,
    Operation,
    OperationReply,
    Put,
    PutReply,
    Range,
    RangeReply,
    Refusal,
    Txn,
    TxnReply,
)
from kvnode.machine.mvcc import Versions
from kvnode.machine.operations import Operations
from kvnode.machine.pace import Pace, Work
from kvnode.machine.recent import Recent


class Transactions:
    """Applies `Txn` requests over one store."""

    def __init__(self, versions: Versions, recent: Recent, operations: Operations, limits: LimitsSection) -> None:
        self._versions = versions
        self._recent = recent
        self._operations = operations
        self._limits = limits

    def apply(
        self, request: Txn, revision: Revision, compact_revision: int, time: int, events: list[Event], *, pace: Pace
    ) -> Work[TxnReply | Refusal]:
        refusal = self._check_shape(request, revision)
        if refusal is not None:
            return refusal
        succeeded = True
        for compare in request.compare:
            held = holds(compare, self._versions.current(compare.key) if compare.key else None)
            if held is None:
                return Refusal("bad_request", f"{compare.target} cannot be compared so", revision)
            succeeded = succeeded and held
        chosen = request.success if succeeded else request.failure
        if _puts_twice(chosen):
            return Refusal("bad_request", "a transaction may change a key only once", revision)
        self._recent.begin()
        results = yield from self._run(chosen, revision, compact_revision, time, events, pace=pace)
        if isinstance(results, Refusal):
            self._recent.drop()
            events.clear()
            return results
        yield from self._recent.keep(pace)
        return TxnReply(revision + bool(events), succeeded, tuple(results))

    def _check_shape(self, request: Txn, revision: Revision) -> Refusal | None:
        most = self._limits.txn_operations_max
        if max(len(request.compare), len(request.success), len(request.failure)) > most:
            return Refusal("too_large", f"a transaction has at most {most} compares and operations", revision)
        compares = request.compare
        operations = (*request.success, *request.failure)
        if any(compare.end != keys.ONE_KEY for compare in compares) or any(map(_is_new, operations)):
            return Refusal("bad_request", "not offered yet", revision)
        return None

    def _run(
        self,
        operations: tuple[Operation, ...],
        revision: Revision,
        compact_revision: int,
        time: int,
        events: list[Event],
        *,
        pace: Pace,
    ) -> Work[list[OperationReply] | Refusal]:
        results: list[OperationReply] = []
        reply_bytes = deleted = 0
        for operation in operations:
            reply: OperationReply | Refusal
            if isinstance(operation, Put):
                reply = self._operations.put(operation, revision, time, events)
            elif isinstance(operation, Delete):
                if operation.end == keys.ONE_KEY:
                    reply = self._operations.delete_one(operation, revision, time, events)
                else:
                    reply = yield from self._operations.delete_range(
                        operation, revision, time, events, pace, already=deleted
                    )
                if isinstance(reply, DeleteReply):
                    deleted += reply.deleted
            else:
                assert isinstance(operation, Range), "nested ones are refused before"
                at = operation.revision or revision + bool(events)
                reply = check_readable(operation.revision, revision, compact_revision) or (
                    yield from self._operations.range(operation, at, pace)
                )
            if isinstance(reply, Refusal):
                return reply
            reply_bytes += _reply_bytes(reply)
            if reply_bytes > self._limits.page_bytes_max:
                return Refusal("too_large", f"the answer exceeds {self._limits.page_bytes_max} bytes", revision)
            results.append(reply)
        return results


def _is_new(operation: Operation) -> bool:
    return isinstance(operation, Txn) or (isinstance(operation, Range) and operation.counted)


def check_readable(wanted: int, revision: Revision, compact_revision: int) -> Refusal | None:
    """Whether a read may ask for revision `wanted` (0: the newest); None: it may."""
    if wanted < 0:
        return Refusal("bad_request", f"{wanted} is not a revision", revision)
    if wanted > revision:
        return Refusal("future_revision", f"revision {wanted} lies above the store's {revision}", revision)
    if 0 < wanted < compact_revision:
        return Refusal("compacted", f"revision {wanted} lies below the compacted {compact_revision}", revision)
    return None


def holds(compare: Compare, kv: KeyValue | None) -> bool | None:
    """Whether one condition holds; None if it compares things that cannot be compared.

    An absent key has no value: a compare of its value never holds, whatever the operator (as in etcd).
    """
    wanted = compare.value
    found: int
    if compare.target == "value":
        if not isinstance(wanted, bytes):
            return None
        if kv is None:
            return False
        return _ordered(kv.value, compare.op, wanted)
    if not isinstance(wanted, int):
        return None
    match compare.target:
        case "version":
            found = kv.version if kv else 0
        case "create_revision":
            found = kv.create_revision if kv else 0
        case "mod_revision":
            found = kv.mod_revision if kv else 0
        case "lease":
            found = kv.lease if kv else 0
        case "exists":
            found = int(kv is not None)
    return _ordered(found, compare.op, wanted)


_Ordered = TypeVar("_Ordered", int, bytes)


def _ordered(found: _Ordered, op: str, wanted: _Ordered) -> bool | None:
    match op:
        case "=":
            return found == wanted
        case "!=":
            return found != wanted
        case "<":
            return found < wanted
        case ">":
            return found > wanted
    return None


def _puts_twice(operations: tuple[Operation, ...]) -> bool:
    """Whether a key is put twice, or put and deleted, by the same list."""
    put: set[bytes] = set()
    for operation in operations:
        if isinstance(operation, Put):
            if operation.key in put:
                return True
            put.add(operation.key)
    return any(
        keys.contains(operation.start, operation.end, key)
        for operation in operations
        if isinstance(operation, Delete)
        for key in put
    )


def _reply_bytes(reply: OperationReply) -> int:
    shown: tuple[KeyValue, ...]
    if isinstance(reply, TxnReply):
        return sum(map(_reply_bytes, reply.results))
    match reply:
        case PutReply(previous=previous):
            shown = () if previous is None else (previous,)
        case DeleteReply(previous=several):
            shown = several
        case RangeReply(items=items):
            shown = items
    return sum(len(kv.key) + len(kv.value) for kv in shown)
