"""What a recorder must get right before a history can be judged. What breaks this tells about the recorder only.

a client has one operation open at a time, and none after one without an answer
ok and fail have `ret` ≥ `call`, info has none
every value is written by one put of the history, whatever its status
shapes: parts in transactions only, items of a range in order and below its prefix, values with their puts
a condition that did not hold needs a condition
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from kvnode.check.describe import describe
from kvnode.check.history import ANY, MUST_EXIST, Operation, first_call


class MalformedHistory(ValueError):
    """The history cannot be judged. The message names the operation."""


def check(operations: Sequence[Operation]) -> None:
    """Raises: MalformedHistory at the first operation that no correct recorder writes."""
    start = first_call(operations)

    def refuse(operation: Operation, why: str) -> MalformedHistory:
        return MalformedHistory(f"operation {place[id(operation)]}: {why}: {describe(operation, start=start)}")

    place = {id(operation): number for number, operation in enumerate(operations, start=1)}
    for operation in operations:
        why = next(_mistakes(operation), None)
        if why is not None:
            raise refuse(operation, why)
    values: dict[str, Operation] = {}
    for operation in operations:
        for put in operation.steps:
            if put.op != "put":
                continue
            assert put.arg is not None
            if put.arg in values:
                other = place[id(values[put.arg])]
                raise refuse(operation, f"value {put.arg} is written by operation {other}, too")
            values[put.arg] = operation
    clients: dict[int, list[Operation]] = {}
    for operation in operations:
        clients.setdefault(operation.client, []).append(operation)
    for history in clients.values():
        history.sort(key=lambda operation: (operation.call, operation.ret is None, operation.ret))
        for before, after in pairwise(history):
            if before.ret is None:
                raise refuse(after, f"its client goes on after operation {place[id(before)]}, which has no answer")
            if after.call < before.ret:
                raise refuse(after, f"its client has operation {place[id(before)]} open")


def _mistakes(operation: Operation) -> Iterator[str]:
    """Lazily, as only the first is told."""
    if operation.status == "info":
        if operation.ret is not None:
            yield "without an answer, but with a time of return"
    elif operation.ret is None:
        yield "answered, but without a time of return"
    elif operation.ret < operation.call:
        yield "returned before it was called"
    if operation.rev < 0 or operation.mod < 0 or operation.sequence < 0:
        yield "a negative revision or sequence"
    if operation.consistency == "stale" and operation.op not in {"get", "range"}:
        yield "only reads can be stale"
    yield from _shape_mistakes(operation, inside=False)
    if operation.op == "txn":
        if not operation.parts:
            yield "a transaction without parts"
        for part in operation.parts:
            yield from _shape_mistakes(part, inside=True)
        written = [part.key for part in operation.parts if part.op == "put"]
        deleted = [part.key for part in operation.parts if part.op == "delete"]
        if len(set(written)) < len(written) or not set(written).isdisjoint(deleted):
            yield "a transaction that changes a key twice"


def _shape_mistakes(operation: Operation, *, inside: bool) -> Iterator[str]:
    if inside and operation.op in {"txn", "range"}:
        yield f"a {operation.op} inside a transaction"
    if operation.op != "txn" and operation.parts:
        yield f"a {operation.op} with parts"
    if not operation.key and operation.op not in {"txn", "range"}:
        yield "no key"
    if (operation.arg is not None) != (operation.op == "put"):
        yield "a put needs a value, and nothing else has one"
    if operation.op != "get" and operation.out is not None:
        yield "only a get has a value read"
    if operation.op == "get" and operation.out is None and operation.held and operation.mod:
        yield "a revision read, but no value"
    conditional = operation.op in {"put", "delete"} or (inside and operation.op == "get")
    if operation.exp < MUST_EXIST or (operation.exp != ANY and not conditional):
        yield f"{operation.exp} is no condition of a {operation.op}"
    has_condition = operation.exp != ANY or any(part.exp != ANY for part in operation.parts)
    if not operation.held and not has_condition:
        yield "a condition that failed, but none was asked"
    if not 0 <= operation.count <= (operation.op == "delete"):
        yield f"{operation.count} deleted"
    if operation.op != "range" and operation.items:
        yield f"a {operation.op} with items"
    keys = [item.key for item in operation.items]
    if any(first >= second for first, second in pairwise(keys)):
        yield "items out of order"
    if any(not key.startswith(operation.key) for key in keys):
        yield "an item outside of the range"
