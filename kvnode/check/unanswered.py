"""Unanswered writes that nobody saw: which of them may explain what others saw, and at which revision.

Every guess is generous: conditions of the unanswered write are not looked at, and one revision may serve two keys of a
transaction. So a history that some order explains is never refused here; the search by any order is the stricter one.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Sequence
from math import inf

from kvnode.check.claims import ABSENT, PRESENT, Account, Claim
from kvnode.check.models import Store, Version


class Unanswered:
    """The unanswered writes without a place, and the revisions that no answer explains.

    `taken`: revisions with a known maker. `named`: revisions that an answer ascribes to a key without its value.
    `last`: the newest revision that anybody saw.
    """

    def __init__(
        self, writes: Sequence[Account], taken: Collection[int], named: Collection[tuple[str, int]], last: int
    ) -> None:
        self.writes = writes
        self.free = [revision for revision in range(2, last + 1) if revision not in taken]
        self.guesses = 0
        self._free = frozenset(self.free)
        ascribed = {revision for _, revision in named}
        self._hidden = [revision for revision in self.free if revision not in ascribed]
        self._named: dict[str, list[int]] = {}
        for key, revision in sorted(named):
            if revision in self._free:
                self._named.setdefault(key, []).append(revision)
        self._used: set[int] = set()  # of the hidden ones
        self._by_key: dict[str, list[tuple[Account, str | None]]] = {}
        for account in writes:
            for key, value in account.effects:
                self._by_key.setdefault(key, []).append((account, value))
        self._explained: dict[str, int] = {}  # how many writes of a key were needed so far
        self._confirmed: dict[str, int] = {}  # the key was seen as the replay has it at this revision
        self._unclear: dict[str, bool] = {}  # something happened to the key, but what is not known

    def __contains__(self, key: str) -> bool:
        return key in self._by_key

    def reconcile(self, store: Store, claims: Sequence[Claim], revision: float, returned: float) -> None:
        """Where an unanswered write may be why a claim differs from `store`, change the store so that it agrees."""
        for claim in claims:
            key = claim.key
            if key not in self._by_key:
                continue
            found = store.items.get(key)
            unclear = self._unclear.pop(key, False)
            if unclear or not agrees(claim, found):
                if not unclear and not self._explains(claim, revision, returned):
                    continue
                self.guesses += 1
                force(store, claim)
            elif found is not None and found.mod == PRESENT and claim.mod > 0:
                force(store, claim)
            if revision < inf:
                self._confirmed[key] = int(revision)

    def explains_refusal(self, refuted: Sequence[Claim], revision: float, returned: float) -> bool:
        """Whether an unanswered write can be why a transaction was refused that should have held."""
        for claim in refuted:
            if claim.key not in self._by_key:
                continue
            possible = any(account.operation.call <= returned for account, _ in self._by_key[claim.key])
            if possible and _any_between(self.free, self._confirmed.get(claim.key, 0), revision):
                self._unclear[claim.key] = True
                self.guesses += 1
                return True
        return False

    def changed(self, key: str, revision: int) -> None:
        """A write of the history changed the key."""
        self._confirmed[key] = revision
        self._unclear.pop(key, None)

    def too_few_for(self, seen: Sequence[tuple[int, float]]) -> int | None:
        """The first free revision that is one too many for the writes called in time; None: there are enough.

        `seen`: (revision, by when it existed), both increasing.
        """
        calls = sorted(account.operation.call for account in self.writes)
        for number, revision in enumerate(self.free, start=1):
            place = bisect_left(seen, (revision, -inf))
            until = seen[place][1] if place < len(seen) else inf
            if number > bisect_right(calls, until):
                return revision
        return None

    def _explains(self, claim: Claim, revision: float, returned: float) -> bool:
        candidates = [
            account
            for account, value in self._by_key[claim.key]
            if account.operation.call <= returned
            and (value is None) == (claim.mod == ABSENT)
            and claim.value in {None, value}
        ]
        explained = self._explained.get(claim.key, 0) + 1
        if not candidates or explained > len(self._by_key[claim.key]):
            return False
        if claim.mod > 0:
            possible = claim.mod in self._free and self._confirmed.get(claim.key, 0) < claim.mod <= revision
        else:
            possible = self._hidden_revision(claim, revision, candidates)
        if possible:
            self._explained[claim.key] = explained
        return possible

    def _hidden_revision(self, claim: Claim, revision: float, candidates: Sequence[Account]) -> bool:
        """Whether there is a revision for it after the key was last confirmed. The earliest is used up."""
        if revision == inf:
            return True
        after = self._confirmed.get(claim.key, 0)
        if any(len(account.effects) > 1 for account in candidates):
            return _any_between(self.free, after, revision)
        if claim.mod == PRESENT and _any_between(self._named.get(claim.key, []), after, revision):
            return True
        for place in range(bisect_right(self._hidden, after), bisect_right(self._hidden, revision)):
            if self._hidden[place] not in self._used:
                self._used.add(self._hidden[place])
                return True
        return False


def _any_between(revisions: Sequence[int], after: int, until: float) -> bool:
    """Whether a sorted list has one above `after`, up to `until`."""
    return bisect_right(revisions, after) < bisect_right(revisions, until)


def agrees(claim: Claim, found: Version | None) -> bool:
    if claim.mod == ABSENT or found is None:
        return (claim.mod == ABSENT) == (found is None)
    if claim.mod > 0 and found.mod > 0 and claim.mod != found.mod:
        return False
    return claim.value is None or found.value is None or claim.value == found.value


def force(store: Store, claim: Claim) -> None:
    """Make the store what the claim says."""
    before = store.items.pop(claim.key, None)
    if claim.mod != ABSENT:
        store.items[claim.key] = Version(claim.value, claim.mod, before.version + 1 if before else 1)
