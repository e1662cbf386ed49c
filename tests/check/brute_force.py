"""The slowest checkers: every order of a tiny history that respects real time, every choice of unanswered writes.

Shares nothing with the checkers but the history's format. Written to be obviously right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf

from msgspec.structs import replace

from kvnode.check.history import ANY, MUST_EXIST, Operation
from kvnode.check.models import Store


def orders(operations: Sequence[Operation]) -> Iterator[list[Operation]]:
    """All orders of all answered operations and any of the unanswered writes."""
    took_part = [
        operation
        for operation in operations
        if operation.status == "ok" or (operation.status == "info" and operation.op not in {"get", "range"})
    ]
    yield from _orders(took_part, [])


def _orders(left: list[Operation], done: list[Operation]) -> Iterator[list[Operation]]:
    if all(operation.status == "info" for operation in left):
        yield done
    for operation in left:
        if any(_end(other) < operation.call for other in left):
            continue
        yield from _orders([other for other in left if other is not operation], [*done, operation])


def _end(operation: Operation) -> float:
    return inf if operation.ret is None else operation.ret


def is_linearizable(operations: Sequence[Operation]) -> bool:
    """By values alone; a revision in a condition is a name for the value that somebody was told it has."""
    names: dict[tuple[str, int], str | None] = {}
    answered = [operation for operation in operations if operation.status == "ok" and operation.held]
    for operation in answered:
        written = {part.key for part in operation.parts if part.op == "put"}
        for part in operation.steps:
            if part.op == "get" and part.out is not None and part.key not in written:
                names[part.key, part.mod] = part.out
        for item in operation.items:
            names[item.key, item.mod] = item.value
    for operation in answered:
        for part in operation.steps:
            if part.op == "put":
                names[part.key, operation.rev] = part.arg
    told = set(names.values())

    def could_be(state: dict[str, str], key: str, revision: int) -> bool:
        if revision == 0 or key not in state:
            return revision == 0 and key not in state
        if revision == MUST_EXIST:
            return True
        if (key, revision) in names:
            return names[key, revision] == state[key]
        return state[key] not in told

    def could_fail(state: dict[str, str], key: str, revision: int) -> bool:
        unnamed = revision > 0 and (key, revision) not in names
        return unnamed or not could_be(state, key, revision)

    def step(state: dict[str, str], operation: Operation) -> dict[str, str] | None:
        key = operation.key
        match operation.op:
            case "txn":
                return transact(state, operation)
            case "get":
                return state if state.get(key) == operation.out else None
            case "range":
                there = {found: value for found, value in state.items() if found.startswith(key)}
                return state if there == {item.key: item.value for item in operation.items} else None
        if not operation.held:
            contradicts = operation.exp == operation.mod or (operation.exp == MUST_EXIST and operation.mod > 0)
            if contradicts or not could_fail(state, key, operation.exp):
                return None
            return state if could_be(state, key, operation.mod) else None
        if operation.exp != ANY and not could_be(state, key, operation.exp):
            return None
        if operation.op == "put":
            assert operation.arg is not None
            return {**state, key: operation.arg}
        if operation.status == "ok" and (key in state) != (operation.count > 0):
            return None
        return {found: value for found, value in state.items() if found != key}

    def transact(state: dict[str, str], operation: Operation) -> dict[str, str] | None:
        conditions = [(part.key, part.exp) for part in operation.parts if part.exp != ANY]
        if not operation.held:
            return state if any(could_fail(state, *condition) for condition in conditions) else None
        if not all(could_be(state, *condition) for condition in conditions):
            return None
        after: dict[str, str] | None = state
        for part in operation.parts:
            if after is None:
                return None
            if operation.status == "ok" or part.op != "get":
                after = step(after, replace(part, exp=ANY, status=operation.status))
        return after

    def explains(order: list[Operation]) -> bool:
        state: dict[str, str] | None = {}
        for operation in order:
            assert state is not None
            state = step(state, operation)
            if state is None:
                return False
        return True

    return any(explains(order) for order in orders(operations))


def is_exactly_explained(operations: Sequence[Operation]) -> bool:
    """By the sequential model with all its revisions: every field of every answer is as the model gives it."""

    def explains(order: list[Operation]) -> bool:
        store = Store()
        for operation in order:
            expected = store.answer(operation)
            if operation.status == "ok" and replace(expected, ret=operation.ret) != operation:
                return False
        return True

    return any(explains(order) for order in orders(operations))
