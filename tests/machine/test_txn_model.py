"""Transactions of every form against a plain model, which is written from the words of etcd's API, not from the code.

The store under test works in slices of two steps, over a backend that takes everything in after each entry, or nothing;
a twin does it in one go in memory. Both must tell and keep the same, to the rolling digest.
"""

from __future__ import annotations

import operator
import random
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvnode.config import LimitsSection
from kvnode.ids import Index, Term
from kvnode.kv import keys
from kvnode.kv.keys import ONE_KEY, TO_THE_END
from kvnode.kv.requests import (
    Compare,
    CompareOp,
    CompareTarget,
    Delete,
    DeleteReply,
    LeaseGrant,
    Put,
    PutReply,
    Range,
    RangeReply,
    Refusal,
    Txn,
    TxnReply,
    WriteRequest,
)
from kvnode.machine.machine import StateMachine
from kvnode.storage.memory_backend import MemoryBackend

LEASE, NO_LEASE = 1, 77
KEYS = [b"a", b"b", b"c", b"d"]
BEFORE = [Put(b"a", b"x", LEASE), Put(b"b", b"y"), Put(b"d", b"", LEASE)]
ENDS = [ONE_KEY, TO_THE_END, b"a", b"b", b"c", b"e"]
COMPARED = {"=": operator.eq, "!=": operator.ne, "<": operator.lt, ">": operator.gt}


class Item(NamedTuple):
    value: bytes
    create: int
    mod: int
    version: int
    lease: int


State = dict[bytes, Item]


class Refused(Exception):
    """With the code of the refusal."""


class Model:
    def __init__(self) -> None:
        self.past: list[State] = [{}, {}]  # by revision
        self.now: State = {}

    @property
    def revision(self) -> int:
        return len(self.past) - 1

    def apply(self, request: Put | Delete | Txn) -> Any:
        """What is answered, as `told` puts it: of a refusal the code."""
        self.now = dict(self.past[-1])
        self.changed = False
        try:
            if isinstance(request, Txn):
                chosen = self.path(request)
                self.check_duplicates(request.success if chosen[0] else request.failure)
                leaves = list(flat(chosen))
                for put in (leaf for leaf in leaves if isinstance(leaf, Put)):
                    self.check_put(put, self.past[-1])
                for read in (leaf for leaf in leaves if isinstance(leaf, Range)):
                    if read.revision > self.revision:
                        raise Refused("future_revision")
                answer = self.run(chosen)
            else:
                if isinstance(request, Put):
                    self.check_put(request, self.past[-1])
                answer = self.one(request)
        except Refused as refused:
            return refused.args[0]
        if self.changed:
            self.past.append(self.now)
        return answer

    def path(self, txn: Txn) -> tuple[bool, list[Any]]:
        """(succeeded, operations that run), a transaction inside as such a pair; all on the state before."""
        succeeded = all(self.holds(compare) for compare in txn.compare)
        chosen = txn.success if succeeded else txn.failure
        return succeeded, [self.path(each) if isinstance(each, Txn) else each for each in chosen]

    def holds(self, compare: Compare) -> bool:
        before = self.past[-1]
        found = [before[key] for key in sorted(before) if keys.contains(compare.key, compare.end, key)]
        return all(holds_for(compare, item) for item in found) if found else holds_for(compare, None)

    def check_duplicates(self, operations: tuple[Any, ...]) -> None:
        for one in operations:
            if isinstance(one, Txn):
                self.check_duplicates(one.success)
                self.check_duplicates(one.failure)
            for other in operations:
                if one is other:
                    continue
                for key in may_put(one):
                    if key in may_put(other) or any(keys.contains(*span, key) for span in may_delete(other)):
                        raise Refused("bad_request")

    def check_put(self, put: Put, before: State) -> None:
        if (put.keep_value or put.keep_lease) and put.key not in before:
            raise Refused("key_not_found")
        if put.lease == NO_LEASE:
            raise Refused("lease_not_found")

    def run(self, chosen: tuple[bool, list[Any]]) -> Any:
        succeeded, operations = chosen
        results = [self.run(each) if isinstance(each, tuple) else self.one(each) for each in operations]
        return self.revision + self.changed, succeeded, results

    def one(self, request: Any) -> Any:
        made, before = self.revision + 1, self.now.get(getattr(request, "key", b""))
        match request:
            case Put(key=key):
                value = before.value if before and request.keep_value else request.value
                lease = before.lease if before and request.keep_lease else request.lease
                create, version = (before.create, before.version + 1) if before else (made, 1)
                self.now[key] = Item(value, create, made, version, lease)
                self.changed = True
                return made, before is None, create, version, (key, before) if before else None
            case Delete():
                gone = {key: self.now.pop(key) for key in self.inside(self.now, request)}
                self.changed = self.changed or bool(gone)
                return self.revision + self.changed, len(gone), list(gone.items())
            case Range():
                state = self.past[request.revision] if request.revision else self.now
                there = self.inside(state, request)
                if request.descending:
                    there.reverse()
                shown = there if request.end == ONE_KEY or not request.limit else there[: request.limit]
                items = [(key, state[key]._replace(value=b"") if request.keys_only else state[key]) for key in shown]
                at = request.revision or self.revision + self.changed
                if request.count_only:
                    return at, [], len(there), False
                return at, items, len(there) if request.counted else len(shown), len(shown) < len(there)

    def inside(self, state: State, span: Delete | Range) -> list[bytes]:
        return [key for key in sorted(state) if keys.contains(span.start, span.end, key)]


def holds_for(compare: Compare, item: Item | None) -> bool:
    if compare.target == "value":
        return item is not None and COMPARED[compare.op](item.value, compare.value)
    found = {
        "version": item.version if item else 0,
        "create_revision": item.create if item else 0,
        "mod_revision": item.mod if item else 0,
        "lease": item.lease if item else 0,
        "exists": int(item is not None),
    }[compare.target]
    return COMPARED[compare.op](found, compare.value)


def may_put(operation: Any) -> set[bytes]:
    if isinstance(operation, Txn):
        return set().union(*map(may_put, (*operation.success, *operation.failure)))
    return {operation.key} if isinstance(operation, Put) else set()


def may_delete(operation: Any) -> set[tuple[bytes, bytes]]:
    if isinstance(operation, Txn):
        return set().union(*map(may_delete, (*operation.success, *operation.failure)))
    return {(operation.start, operation.end)} if isinstance(operation, Delete) else set()


def flat(chosen: tuple[bool, list[Any]]) -> Any:
    for each in chosen[1]:
        if isinstance(each, tuple):
            yield from flat(each)
        else:
            yield each


def told(reply: Any) -> Any:
    """A reply in the model's words."""

    def item(kv: Any) -> tuple[bytes, Item]:
        return kv.key, Item(kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease)

    match reply:
        case Refusal():
            return reply.code
        case TxnReply():
            return reply.revision, reply.succeeded, [told(each) for each in reply.results]
        case PutReply():
            previous = None if reply.previous is None else item(reply.previous)
            return reply.revision, reply.created, reply.create_revision, reply.version, previous
        case DeleteReply():
            return reply.revision, reply.deleted, [item(kv) for kv in reply.previous]
        case RangeReply():
            return reply.revision, [item(kv) for kv in reply.items], reply.count, reply.more


OPS: tuple[CompareOp, ...] = ("=", "!=", "<", ">")
NUMBERS: tuple[CompareTarget, ...] = ("version", "create_revision", "mod_revision", "lease", "exists")

# ── what is asked ───────────────────────────────────────────────────────────────────────────────────


class Caller:
    """Makes a request of a number: Hypothesis chooses and drops whole requests, which is fast."""

    def __init__(self, number: int) -> None:
        self.chance = random.Random(number)

    def entry(self) -> Put | Delete | Txn:
        kind = self.chance.randrange(8)
        if kind == 0:
            return self.put()
        if kind == 1:
            return self.delete()
        txn = self.txn(0)
        return Txn(txn.compare, txn.success, (*txn.failure, Txn((), ())))  # of level 4, whatever else is in it

    def txn(self, depth: int) -> Txn:
        some = self.chance.choices([0, 1, 2], k=3)
        compares = tuple(self.compare() for _ in range(some[0]))
        success, failure = (tuple(self.operation(depth) for _ in range(number)) for number in some[1:])
        return Txn(compares, success, failure)

    def operation(self, depth: int) -> Put | Delete | Range | Txn:
        kind = self.chance.randrange(8)
        if kind < 3 and depth < 3:
            return self.txn(depth + 1)
        return self.put() if kind < 6 else self.delete() if kind == 6 else self.read()

    def span(self) -> tuple[bytes, bytes]:
        return self.chance.choice(KEYS), self.chance.choice(ENDS)

    def delete(self) -> Delete:
        return Delete(*self.span(), return_previous=True)

    def put(self) -> Put:
        key, value = self.chance.choice(KEYS), self.chance.choice([b"", b"x", b"y"])
        return self.chance.choice(
            [
                Put(key, value, self.chance.choice([0, 0, 0, LEASE, LEASE, NO_LEASE]), return_previous=True),
                Put(key, b"", self.chance.choice([0, LEASE]), return_previous=True, keep_value=True),
                Put(key, value, return_previous=True, keep_lease=True),
                Put(key, b"", return_previous=True, keep_value=True, keep_lease=True),
            ]
        )

    def read(self) -> Range:
        descending, keys_only, count_only, counted = (self.chance.random() < 0.5 for _ in range(4))
        limit, revision = self.chance.randrange(4), self.chance.choice([0, 0, 0, 0, 0, 1, 2, 99])
        return Range(*self.span(), limit, revision, descending, keys_only, count_only, counted)

    def compare(self) -> Compare:
        (key, end), op = self.span(), self.chance.choice(OPS)
        if self.chance.random() < 0.3:
            return Compare(key, "value", op, self.chance.choice([b"", b"x", b"y"]), end)
        target = self.chance.choice(NUMBERS)
        return Compare(key, target, op, self.chance.randrange(5), end)


entries = st.integers(0, 1 << 40).map(lambda number: Caller(number).entry())


@pytest.mark.parametrize("is_flushed", [True, False])
@settings(max_examples=100, deadline=None)
@given(st.lists(entries, min_size=1, max_size=20))
def test_transactions_do_what_the_model_does(is_flushed: bool, asked: list[Put | Delete | Txn]) -> None:
    model = Model()
    machine = StateMachine(MemoryBackend(), LimitsSection(), slice_steps=2)
    twin = StateMachine(MemoryBackend(), LimitsSection())
    requests: list[WriteRequest] = [LeaseGrant(60_000), *BEFORE, *asked]
    for number, request in enumerate(requests, start=1):
        applied = machine.apply(Index(number), number, request)
        assert twin.apply(Index(number), number, request) == applied
        assert twin.hash_at() == machine.hash_at()
        if isinstance(request, Put | Delete | Txn):
            assert told(applied.result) == model.apply(request)
        assert machine.revision == model.revision
        leased = machine.leases.get(LEASE)
        assert leased is not None
        assert sorted(leased.keys) == sorted(key for key, item in model.past[-1].items() if item.lease)
        everything = machine.range(Range(b"", TO_THE_END))
        assert told(everything)[1] == sorted(model.past[-1].items())
        if is_flushed and (cut := machine.cut(Term(1))) is not None:
            machine.backend.commit(cut)
            machine.evict(cut)
