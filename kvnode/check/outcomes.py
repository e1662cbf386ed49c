"""Outcomes: what was acknowledged is there, what was refused is nowhere, and nothing happened twice (I12, I29).

No search and no order are needed, so any number of clients and operations can be judged, and what it finds is the
easiest to understand. Values are unique, so a value names its write.

    unexpected         a value that nobody tried to write to that key
    refused-but-seen   a value whose write was answered "not applied", which is a promise for ever
    early              a value that was read before its write was called
    applied-twice      a value seen at two revisions, or at another than the one its writer was told
    lost               an acknowledged write that the final state lacks, and that nothing can have replaced
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from kvnode.check.claims import Account, Claim
from kvnode.check.describe import describe
from kvnode.check.history import Operation, Seen, first_call
from kvnode.check.verdict import Problem


def check(accounts: Sequence[Account], final: Mapping[str, Seen] | None) -> list[Problem]:
    """`accounts` of the whole history; `final`: what the store held in the end, if that was read."""
    start = first_call(account.operation for account in accounts)
    writers: dict[tuple[str, str | None], Operation] = {
        (effect.key, effect.value): account.operation
        for account in accounts
        for effect in account.effects
        if effect.value is not None
    }
    sightings = [
        (claim, account.operation)
        for account in accounts
        if account.operation.status == "ok"
        for claim in account.claims
        if claim.value is not None
    ]
    problems = list(_sightings(sightings, writers, final or {}, start))
    if final is not None:
        problems += _lost(accounts, final, start)
    return problems


def _sightings(
    sightings: Sequence[tuple[Claim, Operation]],
    writers: Mapping[tuple[str, str | None], Operation],
    final: Mapping[str, Seen],
    start: int,
) -> Iterator[Problem]:
    everything: list[tuple[Claim, Operation | None]] = [*sightings]
    everything += [(Claim(key, seen.value, seen.mod), None) for key, seen in final.items()]
    seen_at: dict[tuple[str, str | None], tuple[int, Operation | None]] = {}
    told: dict[tuple[str, str | None, str], bool] = {}
    for claim, reader in everything:
        name = (claim.key, claim.value)
        writer = writers.get(name)
        by = f"by {describe(reader, start=start)}" if reader is not None else "in the final state"
        operations = tuple(operation for operation in (reader, writer) if operation is not None)
        rule = message = ""
        if writer is None:
            rule, message = "unexpected", f"{claim}, seen {by}, but nobody wrote that value to {claim.key}"
        elif writer.status == "fail":
            rule = "refused-but-seen"
            message = f"{claim}, seen {by}, but its write was refused as not applied: {describe(writer, start=start)}"
        elif reader is not None and reader.ret is not None and reader.ret < writer.call:
            rule, message = "early", f"{claim}, seen {by}, before it was written: {describe(writer, start=start)}"
        elif claim.mod > 0:
            first, witness = seen_at.setdefault(name, (claim.mod, reader))
            acknowledged = writer.rev if writer.status == "ok" else 0
            if acknowledged and claim.mod != acknowledged:
                rule = "applied-twice"
                message = f"{claim}, seen {by}, but its writer was told another: {describe(writer, start=start)}"
            elif claim.mod != first:
                rule = "applied-twice"
                message = f"{claim}, seen {by}, but it was also seen at revision {first}"
                operations += (witness,) if witness is not None else ()
        if rule and (claim.key, claim.value, rule) not in told:
            told[claim.key, claim.value, rule] = True
            yield Problem(rule, message, operations)


def _lost(accounts: Sequence[Account], final: Mapping[str, Seen], start: int) -> Iterator[Problem]:
    """The newest acknowledged write of each key must be what is there, or something newer must be."""
    newest: dict[str, tuple[int, str | None, Operation]] = {}
    unsure: dict[str, list[Operation]] = {}  # writes of a key that may have come after
    for account in accounts:
        operation = account.operation
        if operation.status == "fail":
            continue
        for key, value in account.effects:
            if operation.status == "info" or not operation.rev:
                unsure.setdefault(key, []).append(operation)
            elif key not in newest or newest[key][0] < operation.rev:
                newest[key] = (operation.rev, value, operation)
    for key, (revision, value, operation) in newest.items():
        seen = final.get(key)
        there = ""
        if seen is not None and seen.mod < revision:
            there = f"is {seen.value} of revision {seen.mod}"
        elif seen is None and value is not None and not any(_can_delete(other, key) for other in unsure.get(key, ())):
            there = "does not exist"
        if there:
            yield Problem("lost", f"{key} {there} in the end, but {describe(operation, start=start)}", (operation,))


def _can_delete(operation: Operation, key: str) -> bool:
    return any(part.op == "delete" and part.key == key for part in operation.steps)
