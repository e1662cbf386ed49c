"""Claims: what an operation's answer says about the store just before it, and what it changed.

Every checker reasons with these, so that what an answer means is written down once. A transaction's later parts see
its earlier ones; what they say about these is decided here, and an answer that contradicts itself is a claim too.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

from kvnode.check.history import ANY, MUST_EXIST, Operation

ABSENT, PRESENT = 0, -1
"""`Claim.mod` of a key that was not there, and of one that was, at a revision not told."""


class Claim(NamedTuple):
    """At that moment `key` was absent, or held `value` (None: not told), written at revision `mod`."""

    key: str
    value: str | None
    mod: int  # ABSENT, PRESENT, or the revision

    def __str__(self) -> str:
        if self.mod == ABSENT:
            return f"{self.key} does not exist"
        value = "something" if self.value is None else self.value
        return f"{self.key} is {value}" + (f", written at revision {self.mod}" if self.mod > 0 else "")


class Effect(NamedTuple):
    """`key` got `value`; None: it was deleted."""

    key: str
    value: str | None


class Account(NamedTuple):
    """One operation in these terms. The same fields say of an unanswered write what it needs and would do."""

    operation: Operation
    claims: tuple[Claim, ...] = ()  # all true
    refuted: tuple[Claim, ...] = ()  # not all true (empty: nothing said)
    effects: tuple[Effect, ...] = ()  # at most one for each key
    contradiction: str = ""  # the answer contradicts itself


def account(operation: Operation, keys: Sequence[str] = ()) -> Account:
    """What `operation` says. `keys`: all keys of the history, sorted; a range speaks of those below its prefix."""
    if operation.status != "ok":
        return Account(operation, tuple(conditions(operation)), (), tuple(_intended(operation)))
    if not operation.held:
        return _refused(operation)
    match operation.op:
        case "get":
            return Account(operation, (_seen(operation),))
        case "range":
            return Account(operation, tuple(_listed(operation, keys)))
        case _:
            return _applied(operation)


def conditions(operation: Operation) -> list[Claim]:
    """What must be true for the operation to take effect."""
    return [
        Claim(part.key, None, PRESENT if part.exp == MUST_EXIST else part.exp)
        for part in operation.steps
        if part.exp != ANY
    ]


def _intended(operation: Operation) -> list[Effect]:
    effects = {part.key: Effect(part.key, part.arg) for part in operation.steps if part.op in {"put", "delete"}}
    return list(effects.values())


def _refused(operation: Operation) -> Account:
    wanted = conditions(operation)
    if operation.op == "txn":
        return Account(operation, (), tuple(wanted))
    found = Claim(operation.key, None, operation.mod or ABSENT)
    contradiction = ""
    if wanted[0].mod == found.mod or (wanted[0].mod == PRESENT and found.mod > 0):
        contradiction = "the condition is said to have failed, but what was found fulfils it"
    return Account(operation, (found,), tuple(wanted), (), contradiction)


def _applied(operation: Operation) -> Account:
    """A put, a delete or a transaction whose conditions held."""
    claims = conditions(operation)
    effects: dict[str, Effect] = {}
    contradiction = ""
    for part in operation.steps:
        own = effects.get(part.key)
        if part.op == "put":
            effects[part.key] = Effect(part.key, part.arg)
        elif part.op == "get" and own is not None:
            if part.out != own.value:
                contradiction = f"a part reads {part.out} from {part.key}, where an earlier part left {own.value}"
        elif part.op == "get":
            claims.append(_seen(part))
        elif own is not None:
            if part.count:
                contradiction = f"a part deletes {part.key}, which an earlier part has deleted"
        elif part.count:
            claims.append(Claim(part.key, None, PRESENT))
            effects[part.key] = Effect(part.key, None)
        else:
            claims.append(Claim(part.key, None, ABSENT))
    return Account(operation, tuple(claims), (), tuple(effects.values()), contradiction)


def _seen(operation: Operation) -> Claim:
    if operation.out is None:
        return Claim(operation.key, None, ABSENT)
    return Claim(operation.key, operation.out, operation.mod or PRESENT)


def _listed(operation: Operation, keys: Sequence[str]) -> list[Claim]:
    claims = [Claim(item.key, item.value, item.mod or PRESENT) for item in operation.items]
    there = {item.key for item in operation.items}
    for place in range(bisect_left(keys, operation.key), len(keys)):
        key = keys[place]
        if not key.startswith(operation.key):
            break
        if key not in there:
            claims.append(Claim(key, None, ABSENT))
    return claims


def keys_of(operations: Sequence[Operation]) -> list[str]:
    """Every key that the history names, sorted."""
    found = dict.fromkeys(part.key for operation in operations if operation.op != "range" for part in operation.steps)
    found.update(dict.fromkeys(item.key for operation in operations for item in operation.items))
    return sorted(found)
