"""The sequential model: what the store does when one operation comes after the other. The checks' specification.

A map with one revision for the whole store. An empty store is at revision 1; each operation that changes something
makes the next revision, and all its changes carry it. A put of the same value is a change, a delete of nothing is none,
a condition that fails changes nothing. A key's version counts its puts since it was last absent. Conditions of a
transaction see the state before it, its parts see what earlier parts did.

Written from the description of the store, not from its code, so that the two can be wrong only independently.
"""

from __future__ import annotations

from typing import NamedTuple

from msgspec.structs import replace

from kvnode.check.history import ANY, MUST_EXIST, Operation, Seen

EMPTY_REVISION = 1


class Version(NamedTuple):
    value: str | None  # None: written by an operation whose value nobody saw
    mod: int
    version: int


class Store:
    """The store after some operations."""

    def __init__(self) -> None:
        self.revision = EMPTY_REVISION
        self.items: dict[str, Version] = {}

    def answer(self, operation: Operation) -> Operation:
        """Carry the operation out; returns it with the answer that it must get. Its own answer is not looked at."""
        match operation.op:
            case "get":
                return self._get(operation, self.revision)
            case "range":
                return replace(operation, items=self._range(operation.key), rev=self.revision)
            case "put" | "delete":
                found = self._mod(operation.key)
                if not holds(operation.exp, found):
                    return replace(operation, held=False, mod=found, count=0, rev=self.revision)
                done = self._change(operation, self.revision + 1)
                self.revision += done.op == "put" or done.count
                return replace(done, held=True, mod=0, rev=self.revision)
            case "txn":
                return self._txn(operation)

    def seen(self) -> dict[str, Seen]:
        """All items, as a final state."""
        return {item.key: item for item in self._range("")}

    def _txn(self, operation: Operation) -> Operation:
        if not all(holds(part.exp, self._mod(part.key)) for part in operation.parts):
            return replace(operation, held=False, rev=self.revision)
        made = self.revision + 1
        parts = tuple(self._get(part, 0) if part.op == "get" else self._change(part, made) for part in operation.parts)
        if any(part.op == "put" or part.count for part in parts):
            self.revision = made
        return replace(operation, held=True, parts=parts, rev=self.revision)

    def _change(self, operation: Operation, made: int) -> Operation:
        before = self.items.get(operation.key)
        if operation.op == "put":
            self.items[operation.key] = Version(operation.arg, made, before.version + 1 if before else 1)
            return operation
        if before is None:
            return replace(operation, count=0)
        del self.items[operation.key]
        return replace(operation, count=1)

    def _get(self, operation: Operation, revision: int) -> Operation:
        found = self.items.get(operation.key)
        if found is None:
            return replace(operation, out=None, mod=0, rev=revision)
        return replace(operation, out=found.value, mod=found.mod, rev=revision)

    def _range(self, prefix: str) -> tuple[Seen, ...]:
        return tuple(
            Seen(key, version.value or "", version.mod, version.version)
            for key, version in sorted(self.items.items())
            if key.startswith(prefix)
        )

    def _mod(self, key: str) -> int:
        found = self.items.get(key)
        return found.mod if found else 0


def holds(exp: int, found: int) -> bool:
    """Whether a condition holds for a key last written at `found` (0: absent)."""
    if exp == ANY:
        return True
    return found != 0 if exp == MUST_EXIST else found == exp
