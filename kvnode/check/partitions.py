"""Partitions: a history cut into parts that can be judged alone, each compiled for the search.

A history of independent objects is linearizable if and only if each object's part is (Herlihy & Wing 1990, locality),
so keys are judged apart. Keys that occur together in a transaction or a range belong together, up to GROUP_KEYS_MAX;
what spans groups beyond that is judged in each group by what it says there. That can miss a violation, but not invent
one.

Revisions are no evidence here. A condition `mod = 7` is read as "the value is the one that revision 7 names", and which
value that is, the write that got 7 for an answer says, or a read that saw value and revision together. They also say
which candidate the search tries first; a wrong one costs time only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import inf
from typing import NamedTuple

from kvnode.check.claims import ABSENT, PRESENT, Account, Claim, account
from kvnode.check.history import Operation, Seen

GROUP_KEYS_MAX = 16

GONE = 1
"""The state of a key that does not exist. Each value has a bit of its own above it."""

UNSEEN = "a value that nobody saw"

Need = tuple[int, int]
"""A key's place in the group, and the states of it that are allowed, as bits."""


class Move(NamedTuple):
    """One operation, or its part in this group."""

    operation: Operation
    call: float
    ret: float  # infinite without an answer: it may take effect any time, or never
    needs: tuple[Need, ...]  # all must hold
    either: tuple[Need, ...]  # at least one must hold, if there are any
    sets: tuple[tuple[int, int], ...]
    rank: float  # smaller is tried first

    def fits(self, state: tuple[int, ...]) -> bool:
        for slot, allowed in self.needs:
            if not state[slot] & allowed:
                return False
        return not self.either or any(state[slot] & allowed for slot, allowed in self.either)


class Partition(NamedTuple):
    keys: tuple[str, ...]
    values: tuple[tuple[str, ...], ...]  # for each key, what its bits above GONE stand for
    required: tuple[Move, ...]  # answered, by call
    optional: tuple[Move, ...]  # unanswered writes, by call

    def show(self, state: tuple[int, ...]) -> dict[str, str]:
        return {
            key: "no such key" if bit == GONE else values[bit.bit_length() - 2]
            for key, values, bit in zip(self.keys, self.values, state, strict=True)
        }


def partition(
    accounts: Iterable[Account],
    keys: Sequence[str],
    final: Mapping[str, Seen] | None = None,
    *,
    group_keys_max: int = GROUP_KEYS_MAX,
) -> list[Partition]:
    """`accounts` of the whole history over `keys`. Failed operations and stale reads take no part."""
    taking_part = [
        account
        for account in accounts
        if (account.operation.status == "ok" or (account.operation.status == "info" and account.effects))
        and account.operation.consistency != "stale"
    ]
    if final is not None:
        taking_part += _final_reads(taking_part, keys, final)
    groups = _groups(taking_part, keys, group_keys_max)
    names = _names(taking_part)
    places = {key: (number, slot) for number, group in enumerate(groups) for slot, key in enumerate(group)}
    moves: list[list[Move]] = [[] for _ in groups]
    vocabulary = _Vocabulary(taking_part, names)
    for account_ in taking_part:
        _compile(account_, places, vocabulary, moves)
    return [
        Partition(
            tuple(group),
            tuple(tuple(vocabulary.words.get(key, ())) for key in group),
            tuple(sorted((move for move in own if move.ret < inf), key=_by_call)),
            tuple(sorted((move for move in own if move.ret == inf), key=_by_call)),
        )
        for group, own in zip(groups, moves, strict=True)
    ]


def _by_call(move: Move) -> tuple[float, float]:
    return (move.call, move.ret)


def _final_reads(accounts: Sequence[Account], keys: Sequence[str], final: Mapping[str, Seen]) -> list[Account]:
    """The final state as a read of each key, after everything."""
    end = 1 + max((account.operation.last_known for account in accounts), default=0)
    reads = []
    for key in keys:
        seen = final.get(key)
        out, mod = (seen.value, seen.mod) if seen is not None else (None, 0)
        reads.append(
            Operation(client=-1, op="get", call=end, ret=end, key=key, out=out, mod=mod, note="the final state")
        )
    return [account(read) for read in reads]


def _touched(account: Account) -> list[str]:
    found = dict.fromkeys(claim.key for claim in account.claims)
    found.update(dict.fromkeys(claim.key for claim in account.refuted))
    found.update(dict.fromkeys(effect.key for effect in account.effects))
    return list(found)


def _groups(accounts: Sequence[Account], keys: Sequence[str], group_keys_max: int) -> list[list[str]]:
    """Keys that occur together, transactions first: what they do together matters more than what is read together."""
    group_of = {key: [key] for key in keys}
    several = [
        account_ for account_ in accounts if account_.operation.op in {"txn", "range"} and len(_touched(account_)) > 1
    ]
    for account_ in sorted(several, key=lambda account_: account_.operation.op != "txn"):
        together = list({id(group_of[key]): group_of[key] for key in _touched(account_)}.values())
        merged = [key for group in together for key in group]
        if len(together) > 1 and len(merged) <= group_keys_max:
            for key in merged:
                group_of[key] = merged
    return list({id(group): group for group in group_of.values()}.values())


def _names(accounts: Sequence[Account]) -> dict[tuple[str, int], str]:
    """(key, revision) → value: writers say it, and readers where the writer got no answer."""
    names: dict[tuple[str, int], str] = {}
    for account_ in accounts:
        for claim in account_.claims:
            if claim.mod > 0 and claim.value is not None:
                names[claim.key, claim.mod] = claim.value
    for account_ in accounts:
        if account_.operation.rev and account_.operation.status == "ok":
            for key, value in account_.effects:
                if value is not None:
                    names[key, account_.operation.rev] = value
    return names


class _Vocabulary:
    """Which bit stands for which value of a key."""

    def __init__(self, accounts: Sequence[Account], names: dict[tuple[str, int], str]) -> None:
        self.names = names
        self.revisions = {(key, value): revision for (key, revision), value in names.items()}
        self.bits: dict[str, dict[str, int]] = {}
        self.words: dict[str, list[str]] = {}  # for each key, what its bits above GONE stand for
        self._nameless: dict[str, int] = {}  # values of writes whose revision nobody told
        seen = {(claim.key, claim.value) for account_ in accounts for claim in account_.claims}
        for account_ in accounts:
            for key, value in account_.effects:
                if value is None:
                    continue
                nameless = (key, value) not in self.revisions
                # What nobody saw is all the same: such values share a bit, or each would be tried in turn.
                word = UNSEEN if nameless and (key, value) not in seen else value
                words = self.words.setdefault(key, [])
                if word != UNSEEN or word not in words:
                    words.append(word)
                bit = GONE << (words.index(word) + 1 if word == UNSEEN else len(words))
                self.bits.setdefault(key, {})[value] = bit
                if nameless:
                    self._nameless[key] = self._nameless.get(key, 0) | bit

    def allowed(self, claim: Claim) -> int:
        """States in which the claim may be true."""
        if claim.mod == ABSENT:
            return GONE
        own = self.bits.get(claim.key, {})
        if claim.value is not None:
            return own.get(claim.value, 0)
        if claim.mod == PRESENT:
            return self._everything(claim.key) - GONE
        name = self.names.get((claim.key, claim.mod))
        return self._nameless.get(claim.key, 0) if name is None else own.get(name, 0)

    def excluded(self, claim: Claim) -> int:
        """States in which the claim may be false."""
        everything = self._everything(claim.key)
        if claim.mod > 0 and claim.value is None and (claim.key, claim.mod) not in self.names:
            return everything
        return everything & ~self.allowed(claim)

    def _everything(self, key: str) -> int:
        return (GONE << (len(self.words.get(key, ())) + 1)) - 1

    def rank(self, account_: Account) -> float:
        operation = account_.operation
        if operation.status == "ok":
            return operation.rev or inf
        return min(
            (self.revisions.get((key, value), inf) for key, value in account_.effects if value is not None),
            default=inf,
        )


def _compile(
    account_: Account,
    places: Mapping[str, tuple[int, int]],
    vocabulary: _Vocabulary,
    moves: list[list[Move]],
) -> None:
    operation = account_.operation
    ret = inf if operation.ret is None else operation.ret
    rank = vocabulary.rank(account_)
    touched = dict.fromkeys(places[key][0] for key in _touched(account_))
    for group in touched:
        needs = [
            (places[claim.key][1], vocabulary.allowed(claim))
            for claim in account_.claims
            if places[claim.key][0] == group
        ]
        if account_.contradiction:
            needs.append((0, 0))
        either = [(places[claim.key][1], vocabulary.excluded(claim)) for claim in account_.refuted]
        if any(places[claim.key][0] != group for claim in account_.refuted):
            either = []  # the condition that failed may be one of another group
        sets = [
            (places[key][1], GONE if value is None else vocabulary.bits[key][value])
            for key, value in account_.effects
            if places[key][0] == group
        ]
        if operation.status == "info" and not sets:
            continue  # it changes nothing here, and nobody waits for it
        moves[group].append(Move(operation, operation.call, ret, tuple(needs), tuple(either), tuple(sets), rank))
