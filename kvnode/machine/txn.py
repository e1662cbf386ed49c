"""Transactions: compares decide between two lists of operations; the chosen one happens at one revision or not at all.

First all compares decide, also those of transactions inside, as far as they are reached: on the state before. What is
left is a *plan*, the operations that will run. They run in order, and each sees what the earlier ones did; a read at an
explicit revision sees that revision. The revision in an inner answer is the new one from the first change on, the old
one before it.

A refused operation refuses the whole transaction. Of the operations of one list, what one may put no other may put or
delete; a transaction inside may do what either of its lists may. Two deletes may overlap, the second finds nothing. All
deletes together are held to the limit of one, so are the keys that compares of ranges look at.

Changes gather in a draft and are merged at the end. Compares, operations and the merging may all take many slices;
nobody reads the new revision before.

Members of an older version know no transaction that needs feature level 4 (`kvnode.kv.stored`). How any other is judged
must stay as it is, to which of several refusals it gets: the rolling digest covers that.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeVar

from kvnode.config import LimitsSection
from kvnode.ids import Revision
from kvnode.kv import keys
from kvnode.kv.events import Event
from kvnode.kv.requests import (
    TXN_DEPTH_MAX,
    TXN_TOTAL_FACTOR,
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
from kvnode.kv.stored import NESTED_LEVEL, level_of
from kvnode.machine.mvcc import Versions
from kvnode.machine.operations import Operations
from kvnode.machine.pace import Pace, Work
from kvnode.machine.recent import Recent


@dataclass(slots=True)
class _Plan:
    """What will run of a transaction, and of those inside it."""

    succeeded: bool
    operations: list[Put | Delete | Range | _Plan] = field(default_factory=list)


@dataclass(slots=True)
class _Course:
    """One transaction under way: the state it began with, and what its operations have come to so far."""

    revision: Revision  # before it
    compact_revision: int
    time: int
    events: list[Event]
    pace: Pace
    compared: int = 0  # keys that compares of ranges have looked at
    deleted: int = 0
    reply_bytes: int = 0


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
        course = _Course(revision, compact_revision, time, events, pace)
        refusal = check_shape(request, self._limits, revision)
        if refusal is not None:
            return refusal
        plan = yield from self._decide(request, course)
        if isinstance(plan, Refusal):
            return plan
        if changes_twice(request.success if plan.succeeded else request.failure):
            return Refusal("bad_request", "a transaction may change a key only once", revision)
        if level_of(request) == NESTED_LEVEL:
            refusal = yield from self._check_before(plan, course)
            if refusal is not None:
                return refusal
        self._recent.begin()
        reply = yield from self._run(plan, course)
        if isinstance(reply, Refusal):
            self._recent.drop()
            events.clear()
            return reply
        yield from self._recent.keep(pace)
        return reply

    # ── on the state before ─────────────────────────────────────────────────────────────────────────

    def _decide(self, request: Txn, course: _Course) -> Work[_Plan | Refusal]:
        """Which operations will run."""
        plan = _Plan(succeeded=True)
        for compare in request.compare:
            held: bool | Refusal | None
            if course.pace.left <= 0:
                yield
            course.pace.left -= 1
            if compare.end == keys.ONE_KEY:
                held = holds(compare, self._versions.current(compare.key) if compare.key else None)
            else:
                held = yield from self._holds_for_all(compare, course)
            if isinstance(held, Refusal):
                return held
            if held is None:
                return Refusal("bad_request", f"{compare.target} cannot be compared so", course.revision)
            plan.succeeded = plan.succeeded and held
        for operation in request.success if plan.succeeded else request.failure:
            if not isinstance(operation, Txn):
                plan.operations.append(operation)
                continue
            inner = yield from self._decide(operation, course)
            if isinstance(inner, Refusal):
                return inner
            plan.operations.append(inner)
        return plan

    def _holds_for_all(self, compare: Compare, course: _Course) -> Work[bool | Refusal | None]:
        """As `holds`, for every key of a range. It looks no further than the first for which it does not."""
        most = self._limits.delete_keys_max
        is_empty = True
        scan = self._versions.scan(compare.key, compare.end, course.revision)
        while True:
            with closing(scan.slice(course.pace)) as slice_:
                for kv in slice_:
                    is_empty = False
                    course.compared += 1
                    if course.compared > most:
                        words = f"the compares of one transaction look at most at {most} keys of ranges"
                        return Refusal("too_large", words, course.revision)
                    held = holds(compare, kv)
                    if not held:
                        return held
            if scan.done:
                return holds(compare, None) if is_empty else True
            yield

    def _check_before(self, plan: _Plan, course: _Course) -> Work[Refusal | None]:
        """What etcd checks before any change: first of all puts, then of all reads."""
        for operation in _leaves(plan):
            if isinstance(operation, Put):
                if course.pace.left <= 0:
                    yield
                course.pace.left -= 1
                refusal = self._operations.check_put(operation, course.revision)
                if refusal is not None:
                    return refusal
        for operation in _leaves(plan):
            if isinstance(operation, Range):
                refusal = check_readable(operation.revision, course.revision, course.compact_revision)
                if refusal is not None:
                    return refusal
        return None

    # ── the changes ─────────────────────────────────────────────────────────────────────────────────

    def _run(self, plan: _Plan, course: _Course) -> Work[TxnReply | Refusal]:
        results: list[OperationReply] = []
        for operation in plan.operations:
            reply: OperationReply | Refusal
            if course.pace.left <= 0:
                yield
            course.pace.left -= 1
            if isinstance(operation, _Plan):
                reply = yield from self._run(operation, course)
            else:
                reply = yield from self._operate(operation, course)
            if isinstance(reply, Refusal):
                return reply
            course.reply_bytes += _reply_bytes(reply)
            if course.reply_bytes > self._limits.page_bytes_max:
                words = f"the answer exceeds {self._limits.page_bytes_max} bytes"
                return Refusal("too_large", words, course.revision)
            results.append(reply)
        return TxnReply(course.revision + bool(course.events), plan.succeeded, tuple(results))

    def _operate(self, operation: Put | Delete | Range, course: _Course) -> Work[OperationReply | Refusal]:
        revision, time, events = course.revision, course.time, course.events
        if isinstance(operation, Put):
            return self._operations.put(operation, revision, time, events)
        if isinstance(operation, Range):
            at = operation.revision or revision + bool(events)
            return check_readable(operation.revision, revision, course.compact_revision) or (
                yield from self._operations.range(operation, at, course.pace)
            )
        if operation.end == keys.ONE_KEY:
            reply = self._operations.delete_one(operation, revision, time, events)
        else:
            reply = yield from self._operations.delete_range(
                operation, revision, time, events, course.pace, already=course.deleted
            )
        if isinstance(reply, DeleteReply):
            course.deleted += reply.deleted
        return reply


def check_shape(request: Txn, limits: LimitsSection, revision: Revision) -> Refusal | None:
    """Whether a transaction is within the limits, whatever the state; None: it is.

    A list inside has what the longest list around it leaves of the limit (as in etcd).
    """
    most = limits.txn_operations_max
    total = 0
    waiting = [(request, most, 1)]
    while waiting:
        txn, allowed, depth = waiting.pop()
        if depth > TXN_DEPTH_MAX:
            return Refusal("too_large", f"transactions are nested at most {TXN_DEPTH_MAX} deep", revision)
        longest = max(len(txn.compare), len(txn.success), len(txn.failure))
        if longest > allowed:
            return Refusal("too_large", f"a transaction has at most {most} compares and operations", revision)
        total += len(txn.compare) + len(txn.success) + len(txn.failure)
        if total > TXN_TOTAL_FACTOR * most:
            words = f"a transaction has at most {TXN_TOTAL_FACTOR * most} compares and operations in all"
            return Refusal("too_large", words, revision)
        for operation in (*txn.success, *txn.failure):
            if isinstance(operation, Txn):
                waiting.append((operation, allowed - longest, depth + 1))
    return None


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


class _Duplicate(Exception):
    """A list may change a key twice."""


@dataclass(slots=True)
class _Changes:
    """What an operation may change: keys it may put, ascending, and ranges it may delete."""

    puts: list[bytes]
    deletes: list[tuple[bytes, bytes]]


def changes_twice(operations: tuple[Operation, ...]) -> bool:
    """Whether one operation of a list may put what another may put or delete."""
    try:
        _changes_of(operations)
    except _Duplicate:
        return True
    return False


def _changes_of(operations: tuple[Operation, ...]) -> _Changes:
    """Raises: _Duplicate."""
    several = [changes for operation in operations if (changes := _changes_of_one(operation)) is not None]
    puts = sorted(key for changes in several for key in changes.puts)
    if any(key == following for key, following in pairwise(puts)):
        raise _Duplicate
    for changes in several:
        for start, end in changes.deletes:
            if _count(puts, start, end) > _count(changes.puts, start, end):  # some are another operation's
                raise _Duplicate
    return _Changes(puts, [deleted for changes in several for deleted in changes.deletes])


def _changes_of_one(operation: Operation) -> _Changes | None:
    """Raises: _Duplicate."""
    match operation:
        case Put(key=key):
            return _Changes([key], [])
        case Delete(start=start, end=end):
            return _Changes([], [(start, end)])
        case Txn():
            one, other = _changes_of(operation.success), _changes_of(operation.failure)
            return _Changes(sorted({*one.puts, *other.puts}), one.deletes + other.deletes)
        case Range():
            return None


def _count(ordered: list[bytes], start: bytes, end: bytes) -> int:
    """How many of the keys lie in a range."""
    first = bisect_left(ordered, start)
    if end == keys.ONE_KEY:
        return bisect_right(ordered, start) - first
    return max(0, (len(ordered) if end == keys.TO_THE_END else bisect_left(ordered, end)) - first)


def _leaves(plan: _Plan) -> Iterator[Put | Delete | Range]:
    """All operations that will run, in order."""
    for operation in plan.operations:
        if isinstance(operation, _Plan):
            yield from _leaves(operation)
        else:
            yield operation


def _reply_bytes(reply: OperationReply) -> int:
    """What it shows; a transaction inside has been counted by its parts."""
    shown: tuple[KeyValue, ...]
    match reply:
        case PutReply(previous=previous):
            shown = () if previous is None else (previous,)
        case DeleteReply(previous=several):
            shown = several
        case RangeReply(items=items):
            shown = items
        case TxnReply():
            shown = ()
    return sum(len(kv.key) + len(kv.value) for kv in shown)
