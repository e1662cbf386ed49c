"""Histories made wrong: each mutation is what some bug of a store would leave behind, or just noise.

A mutation returns None if the history offers nothing to spoil in that way.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from msgspec.structs import replace

from kvnode.check.history import Operation
from tests.check.histories import History

Mutation = Callable[[Random, History], History | None]


def _with(history: History, old: Operation, new: Operation) -> History:
    operations = [new if operation is old else operation for operation in history.operations]
    return History(operations, history.final, history.revision)


def _changes(operation: Operation) -> bool:
    """A single write that was acknowledged and did something."""
    if operation.status != "ok" or not operation.held:
        return False
    return operation.op == "put" or (operation.op == "delete" and operation.count > 0)


def stale_read(random: Random, history: History) -> History | None:
    """A linearizable read is answered with the value and revision before one that had been acknowledged."""
    puts: dict[str, list[Operation]] = {}
    for operation in history.operations:
        if operation.op == "put" and _changes(operation):
            puts.setdefault(operation.key, []).append(operation)
    pairs = [
        (read, older)
        for read in history.operations
        if read.op == "get" and read.status == "ok" and read.consistency == "linearizable" and read.out is not None
        for older in puts.get(read.key, ())
        for newer in puts[read.key]
        if older.rev < newer.rev and (newer.ret or 0) < read.call
    ]
    if not pairs:
        return None
    read, older = random.choice(pairs)
    return _with(history, read, replace(read, out=older.arg, mod=older.rev, rev=older.rev))


def lost_write(random: Random, history: History) -> History | None:
    """A write that did nothing is acknowledged, with the revision of the store as it was."""
    lost = [operation for operation in history.operations if operation.op == "put" and operation.status == "fail"]
    if not lost:
        return None
    chosen = random.choice(lost)
    before = [
        operation.rev
        for operation in history.operations
        if _changes(operation) and operation.ret is not None and operation.ret < chosen.call
    ]
    return _with(history, chosen, replace(chosen, status="ok", rev=max(before, default=1) + 1, exp=-1))


def swapped_revisions(random: Random, history: History) -> History | None:
    """Two writes, one after the other in time, are told each other's revisions."""
    writes = [operation for operation in history.operations if _changes(operation)]
    pairs = [(one, other) for one in writes for other in writes if (one.ret or 0) < other.call]
    if not pairs:
        return None
    one, other = random.choice(pairs)
    history = _with(history, one, replace(one, rev=other.rev))
    return _with(history, other, replace(other, rev=one.rev))


def duplicated_effect(random: Random, history: History) -> History | None:
    """An acknowledged put is seen again, at a later revision than it was told."""
    pairs = [
        (read, put)
        for read in history.operations
        if read.op == "get" and read.status == "ok" and read.out is not None and read.consistency == "linearizable"
        for put in history.operations
        if put.op == "put" and _changes(put) and put.key == read.key and put.rev < read.mod
    ]
    if not pairs:
        return None
    read, put = random.choice(pairs)
    return _with(history, read, replace(read, out=put.arg))


def fail_that_shows_up(random: Random, history: History) -> History | None:
    """A write whose value was read had been refused as not applied."""
    seen = {operation.out for operation in history.operations if operation.op == "get"}
    seen |= {item.value for operation in history.operations for item in operation.items}
    seen |= {item.value for item in history.final.values()}
    puts = [
        operation
        for operation in history.operations
        if operation.op == "put" and operation.status == "ok" and operation.held and operation.arg in seen
    ]
    if not puts:
        return None
    chosen = random.choice(puts)
    return _with(history, chosen, replace(chosen, status="fail", rev=0))


def acknowledged_but_gone(random: Random, history: History) -> History | None:
    """The final state lacks what was acknowledged last."""
    acknowledged = {operation.arg for operation in history.operations if operation.op == "put" and _changes(operation)}
    there = [key for key, seen in history.final.items() if seen.value in acknowledged and not _deletable(history, key)]
    if not there:
        return None
    gone = random.choice(sorted(there))
    final = {key: seen for key, seen in history.final.items() if key != gone}
    return History(history.operations, final, history.revision)


def _deletable(history: History, key: str) -> bool:
    """Whether an unanswered delete of the key exists: then its absence is no proof of anything."""
    return any(
        part.op == "delete" and part.key == key
        for operation in history.operations
        if operation.status == "info"
        for part in operation.steps
    )


def condition_ignored(random: Random, history: History) -> History | None:
    """A write whose condition failed is said to have held."""
    refused = [operation for operation in history.operations if operation.op == "put" and not operation.held]
    if not refused:
        return None
    chosen = random.choice(refused)
    return _with(history, chosen, replace(chosen, held=True, mod=0, rev=chosen.rev + 1))


def torn_range(random: Random, history: History) -> History | None:
    """A range shows one item of an older state than the others."""
    puts = [operation for operation in history.operations if operation.op == "put" and _changes(operation)]
    choices = [
        (read, place, put)
        for read in history.operations
        if read.op == "range" and read.status == "ok" and read.consistency == "linearizable"
        for place, item in enumerate(read.items)
        for put in puts
        if put.key == item.key and put.rev < item.mod
    ]
    if not choices:
        return None
    read, place, put = random.choice(choices)
    items = list(read.items)
    items[place] = replace(items[place], value=put.arg, mod=put.rev, version=0)
    return _with(history, read, replace(read, items=tuple(items)))


MUTATIONS: dict[str, Mutation] = {
    "stale read": stale_read,
    "lost write": lost_write,
    "swapped revisions": swapped_revisions,
    "duplicated effect": duplicated_effect,
    "fail that shows up": fail_that_shows_up,
    "acknowledged but gone": acknowledged_but_gone,
    "condition ignored": condition_ignored,
    "torn range": torn_range,
}


def noise(random: Random, history: History) -> History:
    """Change an answer or a time at random. What comes out may be legal by chance."""
    place = random.randrange(len(history.operations))
    old = history.operations[place]
    values = [None, *(part.arg for one in history.operations for part in one.steps if part.op == "put")]
    match random.choice(["answer", "answer", "time", "status", "rev"]):
        case "answer" if old.op == "get" and old.status == "ok":
            value = random.choice(values)
            new = replace(old, out=value, mod=random.randint(2, 6) if value else 0)
        case "answer" if old.op == "delete" and old.held and old.status == "ok":
            new = replace(old, count=1 - old.count)
        case "answer" if old.op == "put" and old.exp != -1 and old.status == "ok":
            new = replace(old, held=not old.held, mod=random.choice([0, 2, 3]) if old.held else 0)
        case "answer" if old.op == "txn" and old.status == "ok" and old.held:
            parts = list(old.parts)
            chosen = random.randrange(len(parts))
            value = random.choice(values)
            if parts[chosen].op == "get":
                parts[chosen] = replace(parts[chosen], out=value, mod=random.randint(2, 6) if value else 0)
            elif parts[chosen].op == "delete":
                parts[chosen] = replace(parts[chosen], count=1 - parts[chosen].count)
            new = replace(old, parts=tuple(parts))
        case "answer" if old.op == "txn" and old.status == "ok" and any(part.exp != -1 for part in old.parts):
            new = replace(old, held=True, parts=tuple(replace(part, rev=0) for part in old.parts))
        case "answer" if old.op == "range" and old.items:
            kept = random.randrange(len(old.items))
            new = replace(old, items=old.items[:kept] + old.items[kept + 1 :])
        case "status" if old.op == "put" and old.status != "info" and old.held:
            new = replace(old, status="fail" if old.status == "ok" else "ok", rev=random.randint(2, 6))
        case "rev" if old.rev:
            new = replace(old, rev=max(1, old.rev + random.choice([-2, -1, 1, 2])))
        case _ if old.ret is not None:  # nearer to one moment: fewer orders are possible
            moment = random.randint(old.call, old.ret)
            new = replace(old, call=moment, ret=moment + 1)
        case _:
            return history
    return _with(history, old, new)
