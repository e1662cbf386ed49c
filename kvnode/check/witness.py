"""Witness: the order that the answers themselves claim, checked in linear time.

Every answer names a revision, so the total order is known: a write makes its revision, a read shows the store between
two. Checked: no revision is made twice; the order respects real time; and the sequential model, taken through the
operations in that order, gives every answer that was given. If nothing is open after that, the order is a proof.

Unanswered writes have no revision of their own. One whose value was seen is placed at the revision it was seen with.
For others there is only indirect evidence: a key that was there and is not, a revision that no answer explains. It is
accepted if some unanswered write can be the cause, and refused if none can; each such guess is told in `gaps`, and
never turns a history that some order explains into a violation.

Stale reads show an older state by right. They are compared with the state at the revision they name, and what one
client sees at one node never goes back; different nodes may be behind by different amounts.

    made-twice     two writes were told the same revision
    real-time      the order of revisions contradicts the order in time
    wrong-answer   an answer differs from what the state at its revision gives
    went-back      a stale read shows an older revision than the one before, same client, same node
    orphan         a revision that no write of the history can have made
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from math import inf
from typing import NamedTuple

from kvnode.check.claims import ABSENT, PRESENT, Account, Claim
from kvnode.check.describe import describe
from kvnode.check.history import Operation, Seen, first_call
from kvnode.check.models import EMPTY_REVISION, Store, Version
from kvnode.check.unanswered import Unanswered, agrees
from kvnode.check.verdict import Problem


class Testimony(NamedTuple):
    problems: tuple[Problem, ...]
    placed: int  # operations that have a place in the order
    gaps: tuple[str, ...]  # what the evidence leaves open; empty: the order is a proof


class Placed(NamedTuple):
    """An operation with its place: writes come at their revision, everything else after it."""

    revision: int
    changes: bool
    account: Account


def check(
    accounts: Sequence[Account],
    keys: Sequence[str],
    final: Mapping[str, Seen] | None = None,
    *,
    sole_writer: bool = True,
) -> Testimony:
    """`accounts` of the whole history over `keys`; see `judge` for the other arguments."""
    return _Witness(accounts, keys, final, sole_writer).check()


class _Witness:
    def __init__(
        self, accounts: Sequence[Account], keys: Sequence[str], final: Mapping[str, Seen] | None, sole_writer: bool
    ) -> None:
        self.accounts = accounts
        self.keys = keys
        self.final = final
        self.sole_writer = sole_writer
        self.start = first_call(account.operation for account in accounts)
        self.problems: list[Problem] = []
        self.placed: list[Placed] = []
        self.makers: dict[int, Account] = {}  # revision → the write that made it
        self.unnumbered = 0

    def check(self) -> Testimony:
        unplaced = self._place_seen(self._place_answered())
        self._check_real_time()
        self._check_stale()
        named = {
            (claim.key, claim.mod)
            for account in self.accounts
            if account.operation.status == "ok"
            for claim in account.claims
            if claim.mod > 0
        }
        named.update((key, seen.mod) for key, seen in (self.final or {}).items())
        seen = [revision for _, revision in named]
        last = max([EMPTY_REVISION, *seen, *(place.revision for place in self.placed)])
        unanswered = Unanswered(unplaced, self.makers, named, last)
        self._replay(unanswered)
        if self.sole_writer:
            self._check_orphans(unanswered)
        return Testimony(tuple(self.problems), len(self.placed), tuple(self._gaps(unanswered)))

    # ── places ──────────────────────────────────────────────────────────────────────────────────────

    def _place_answered(self) -> list[Account]:
        """Give every answer with a revision its place. Returns the writes that have none."""
        unplaced = []
        for account in self.accounts:
            operation = account.operation
            if operation.status == "ok" and operation.rev:
                self._place(operation.rev, account)
            elif operation.status == "ok":
                self.unnumbered += 1
            if account.effects and (operation.status == "info" or (operation.status == "ok" and not operation.rev)):
                unplaced.append(account)
        return unplaced

    def _place_seen(self, unplaced: list[Account]) -> list[Account]:
        """Place unanswered writes whose value was seen together with its revision. Returns the others."""
        revisions = {
            (claim.key, claim.value): claim.mod
            for account in self.accounts
            for claim in account.claims
            if claim.value is not None and claim.mod > 0
        }
        for key, seen in (self.final or {}).items():
            revisions.setdefault((key, seen.value), seen.mod)
        unseen = []
        for account in unplaced:
            seen_at = [revisions[effect] for effect in account.effects if effect in revisions]
            if seen_at:
                self._place(seen_at[0], account)
            else:
                unseen.append(account)
        return unseen

    def _place(self, revision: int, account: Account) -> None:
        changes = bool(account.effects)
        if changes:
            other = self.makers.setdefault(revision, account)
            if other is not account:
                self._problem("made-twice", f"revision {revision} was made by two operations:", other, account)
                return
            if revision <= EMPTY_REVISION:
                self._problem("wrong-answer", f"no write makes revision {revision}, the first is 2:", account)
                return
        self.placed.append(Placed(revision, changes, account))

    # ── time ────────────────────────────────────────────────────────────────────────────────────────

    def _check_real_time(self) -> None:
        """What had returned before an operation was called must not come after it in the order."""
        returned = sorted(
            (place for place in self.placed if place.account.operation.ret is not None),
            key=lambda place: place.account.operation.ret or 0,
        )
        newest: Placed | None = None
        number = 0
        for place in sorted(self.placed, key=lambda place: place.account.operation.call):
            operation = place.account.operation
            while number < len(returned) and (returned[number].account.operation.ret or 0) < operation.call:
                if newest is None or returned[number].revision > newest.revision:
                    newest = returned[number]
                number += 1
            if newest is None or operation.consistency == "stale":
                continue
            if place.revision < newest.revision or (place.changes and place.revision == newest.revision):
                self._problem(
                    "real-time",
                    f"the second returned at revision {newest.revision} before the first was called, so the first "
                    f"cannot be at revision {place.revision}:",
                    place.account,
                    newest.account,
                )

    def _check_stale(self) -> None:
        streams: dict[tuple[int, int], list[Account]] = {}
        for account in self.accounts:
            operation = account.operation
            if operation.consistency == "stale" and operation.status == "ok" and operation.rev:
                streams.setdefault((operation.client, operation.node), []).append(account)
        for stream in streams.values():
            stream.sort(key=lambda account: account.operation.call)
            for before, after in pairwise(stream):
                if after.operation.rev < before.operation.rev:
                    self._problem("went-back", "the same node showed the same client an older state:", after, before)

    # ── replay ──────────────────────────────────────────────────────────────────────────────────────

    def _replay(self, unanswered: Unanswered) -> None:
        store = Store()
        for place in sorted(self.placed, key=_order):
            account = place.account
            store.revision = place.revision - place.changes
            returned = inf if account.operation.ret is None else account.operation.ret
            unanswered.reconcile(store, account.claims, place.revision, returned)
            operation = account.operation
            touched = {part.key: store.items.get(part.key) for part in operation.steps}
            difference = account.contradiction or _difference(operation, store.answer(operation), unanswered)
            if difference and not unanswered.explains_refusal(account.refuted, place.revision, returned):
                self._problem("wrong-answer", f"{difference}:", account)
            if difference:
                _believe(store, touched, place)
            for key, _ in account.effects:
                unanswered.changed(key, place.revision)
        if self.final is not None:
            self._compare_final(store, self.final, unanswered)

    def _compare_final(self, store: Store, final: Mapping[str, Seen], unanswered: Unanswered) -> None:
        for key in self.keys:
            seen = final.get(key)
            claim = Claim(key, None, ABSENT) if seen is None else Claim(key, seen.value, seen.mod or PRESENT)
            unanswered.reconcile(store, [claim], inf, inf)
            found = store.items.get(key)
            if not agrees(claim, found):
                self._problem("wrong-answer", f"in the end {claim}, but the writes lead to: {_show(found)}")

    def _check_orphans(self, unanswered: Unanswered) -> None:
        """Each revision without a maker needs an unanswered write that was called before anybody saw the revision."""
        until: dict[int, float] = {}
        for place in self.placed:
            returned = place.account.operation.ret
            if returned is not None:
                until[place.revision] = min(until.get(place.revision, inf), returned)
        seen: list[tuple[int, float]] = []
        earliest = inf
        for revision in sorted(until, reverse=True):
            earliest = min(earliest, until[revision])
            seen.append((revision, earliest))
        orphan = unanswered.too_few_for(seen[::-1])
        if orphan is not None:
            self._problem(
                "orphan",
                f"revision {orphan} was made by no operation of the history: {len(unanswered.free)} revisions have no "
                f"known write, {len(unanswered.writes)} unanswered writes were not seen. Either a write took effect "
                "twice, or a refused one took effect, or somebody else wrote",
            )

    def _gaps(self, unanswered: Unanswered) -> Iterator[str]:
        if self.unnumbered:
            yield f"{self.unnumbered} answers name no revision"
        if unanswered.free:
            makers = "an unanswered write" if self.sole_writer else "somebody"
            yield f"{len(unanswered.free)} revisions were made by {makers} that nobody saw"
        if unanswered.guesses:
            yield f"{unanswered.guesses} answers are explained by an unanswered write that nobody saw"

    def _problem(self, rule: str, message: str, *accounts: Account) -> None:
        operations = tuple(account.operation for account in accounts)
        lines = [message, *(f"  {describe(operation, start=self.start)}" for operation in operations)]
        self.problems.append(Problem(rule, "\n".join(lines), operations))


def _order(place: Placed) -> tuple[int, bool, int]:
    return (place.revision, not place.changes, place.account.operation.call)


def _believe(store: Store, touched: Mapping[str, Version | None], place: Placed) -> None:
    """After a wrong answer: let the store be what the answer says, so that one mistake is told once."""
    for key, before in touched.items():
        store.items.pop(key, None)
        if before is not None:
            store.items[key] = before
    for key, value in place.account.effects:
        before = store.items.pop(key, None)
        if value is not None:
            store.items[key] = Version(value, place.revision, before.version + 1 if before else 1)


def _difference(operation: Operation, expected: Operation, unanswered: Unanswered) -> str:
    """In words; empty if the answer is the expected one. Of an unanswered write only whether it took effect counts."""
    if operation.held != expected.held:
        said = "holds" if operation.held else "fails"
        return f"the answer says that the condition {said}, but at that revision it does not"
    if operation.status != "ok":
        return ""
    if not operation.held:
        if operation.op == "txn" or operation.mod == expected.mod:
            return ""
        return f"the key was at revision {expected.mod} there, the answer says {operation.mod}"
    match operation.op:
        case "get":
            return _read_difference(operation, expected)
        case "range":
            return _range_difference(operation, expected, unanswered)
        case "delete" if operation.count != expected.count:
            return f"there was {'something' if expected.count else 'nothing'} to delete there"
        case "txn":
            for part, right in zip(operation.parts, expected.parts, strict=True):
                if part.op == "get" and (difference := _read_difference(part, right)):
                    return difference
                if part.op == "delete" and part.count != right.count:
                    return f"there was {'something' if right.count else 'nothing'} to delete at {part.key}"
    return ""


def _read_difference(operation: Operation, expected: Operation) -> str:
    if operation.out == expected.out and operation.mod in {0, expected.mod}:
        return ""
    found = None if expected.out is None else Version(expected.out, expected.mod, 0)
    return f"{operation.key} was there: {_show(found)}"


def _range_difference(operation: Operation, expected: Operation, unanswered: Unanswered) -> str:
    said = {item.key: item for item in operation.items}
    right = {item.key: item for item in expected.items}
    for key in sorted({*said, *right}):
        one, other = said.get(key), right.get(key)
        if one is None or other is None or one.value != other.value or one.mod not in {0, other.mod}:
            return f"{key} was there: {_show(None if other is None else Version(other.value, other.mod, 0))}"
        if one.version not in {0, other.version} and key not in unanswered:
            return f"{key} was there at version {other.version}, the answer says {one.version}"
    return ""


def _show(found: Version | None) -> str:
    if found is None:
        return "no such key"
    return f"{'something' if found.value is None else found.value} (revision {found.mod})"
