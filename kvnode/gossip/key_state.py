"""State of one key: its siblings (values that no write has replaced), and every write of it that is accounted for.

    siblings   values written, each with the dot of its write; more than one: written concurrently
    context    per origin, its newest write *of this key* that is known; it covers the siblings, and what they replaced

A write without context (a blind one) leaves the siblings where they are. One with a context replaces exactly those that
the context covers. A deletion is a write without a value: a key without siblings is a tombstone, its context the proof
that what others may still hold is gone.

Dots are numbered across all keys, but a context here is raised by the dots of this key's writes alone, though clients
hand in more. That loses nothing: a context from outside is taken only if the node knows all it covers, so what it
covers *of this key* is in this context already. It keeps contexts short, makes every entry the dot of a real write of
this key (`key_table` relies on that: at most one key for a dot), and lets "is there anything new in this key for
somebody who has seen `since`" be answered exactly: there is, unless `since` includes the context.

`merge` is the join of a lattice (causal sets of dots): commutative, associative, idempotent, whatever the states; the
tests hold it to that. Source: Preguiça et al., "Dotted Version Vectors" (2012); Almeida et al., "Delta State Replicated
Data Types" (2018), causal CRDTs.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import msgspec

from kvnode.clocks.version_vector import Dot, Origin, VectorRow, VersionVector
from kvnode.ids import NodeId
from kvnode.kv.available import VALUE_BYTES_MAX

KEY_BYTES_MAX = 4 << 10
ORIGINS_MAX = 256
"""Of a vector or context that comes from outside."""

SIBLINGS_OF_A_ROW_MAX = 1 << 14
TIME_MAX = (1 << 63) - 1

SiblingRow = tuple[int, int, int, int, bytes]
"""member, incarnation, n, time, value"""


class Sibling(msgspec.Struct, frozen=True, gc=False):
    """One value that nobody has replaced."""

    dot: Dot
    value: bytes
    time: int  # hybrid timestamp of the write; for `resolve`, it decides nothing here


class Context(NamedTuple):
    """What a client has seen of a key: all that `vector` covers, and `dot`. It replaces these, and nothing else.

    The dot is the client's own last write. In a vector it would cover what others wrote by the same node just before,
    which the client has not seen and must not replace; without it each of its writes would stand beside its last one.
    """

    vector: VersionVector
    dot: Dot | None = None

    def covers(self, dot: Dot) -> bool:
        return dot == self.dot or self.vector.covers(dot)


BLIND = Context(VersionVector.EMPTY)


class StateRow(msgspec.Struct, frozen=True, array_like=True):
    """A `KeyState` for wires and stores."""

    siblings: tuple[SiblingRow, ...]  # ordered by dot
    context: VectorRow


class KeyState(msgspec.Struct, frozen=True):
    """Siblings and context of one key. A value: never changed."""

    siblings: tuple[Sibling, ...]  # ordered by dot; every dot is covered by `context`
    context: VersionVector

    EMPTY: ClassVar[KeyState]

    def merge(
        self,
        other: KeyState,
        known: VersionVector = VersionVector.EMPTY,
        known_there: VersionVector = VersionVector.EMPTY,
    ) -> KeyState:
        """What both know together: a sibling stays if both have it, or one has it and the other never saw it.

        `known`: writes that are accounted for on this side though this context may not list them (any more);
        `known_there`: the same for `other`. By them a deletion holds after its tombstone is forgotten.
        """
        if self.siblings == other.siblings:
            kept = self.siblings
        else:
            mine = {sibling.dot: sibling for sibling in self.siblings}
            theirs = {sibling.dot: sibling for sibling in other.siblings}
            left = [
                _same_write(sibling, theirs[dot]) if dot in theirs else sibling
                for dot, sibling in mine.items()
                if dot in theirs or not (other.context.covers(dot) or known_there.covers(dot))
            ]
            left += [
                sibling
                for dot, sibling in theirs.items()
                if dot not in mine and not (self.context.covers(dot) or known.covers(dot))
            ]
            left.sort(key=_by_dot)
            kept = tuple(left)
        return KeyState(kept, self.context.merge(other.context))

    def with_write(self, dot: Dot, value: bytes | None, time: int, replaces: Context) -> KeyState:
        """After the write `dot` of `value` (None: a deletion) by somebody who has seen `replaces`."""
        assert not self.context.covers(dot), (dot, self.context)
        left = [sibling for sibling in self.siblings if not replaces.covers(sibling.dot)]
        if value is not None:
            left.append(Sibling(dot, value, time))
            left.sort(key=_by_dot)
        return KeyState(tuple(left), self.context.with_dot(dot))

    def context_of_write(self, dot: Dot, replaced: Context) -> Context:
        """For whoever made the write `dot`, after which this is the state: what it had seen, and its own write.

        What it had seen as a single dot is replaced wherever the new dot is known, so that dot need not be kept.
        """
        unseen = any(
            sibling.dot != dot and sibling.dot.origin == dot.origin and not replaced.vector.covers(sibling.dot)
            for sibling in self.siblings
        )
        return Context(replaced.vector, dot) if unseen else Context(replaced.vector.with_dot(dot))

    def without(self, known: VersionVector) -> KeyState:
        """Less the siblings that somebody who knows `known` does not have."""
        left = tuple(sibling for sibling in self.siblings if not known.covers(sibling.dot))
        return self if len(left) == len(self.siblings) else KeyState(left, self.context)

    @property
    def in_order(self) -> tuple[Sibling, ...]:
        """The siblings in canonical order, the same on all nodes: by the bytes of the value, then by dot."""
        return tuple(sorted(self.siblings, key=lambda sibling: (sibling.value, sibling.dot)))

    @property
    def dots(self) -> tuple[Dot, ...]:
        """The writes that a later read must cover to show no less; without siblings: those that left none."""
        if self.siblings:
            return tuple(sibling.dot for sibling in self.siblings)
        return tuple(Dot(origin, n) for origin, n in self.context.entries())

    @property
    def value_bytes(self) -> int:
        return sum(len(sibling.value) for sibling in self.siblings)

    @property
    def size(self) -> int:
        """Bytes of its row, or a little more."""
        return 8 + self.value_bytes + 48 * len(self.siblings) + 28 * len(self.context)

    def to_row(self) -> StateRow:
        siblings = tuple(
            (dot.origin.member, dot.origin.incarnation, dot.n, sibling.time, sibling.value)
            for sibling in self.siblings
            for dot in (sibling.dot,)
        )
        return StateRow(siblings, self.context.to_row())

    @classmethod
    def from_row(cls, row: StateRow) -> KeyState:
        """Inverse of `to_row`; of hostile rows, too. Raises ValueError."""
        context = checked_vector(row.context)
        if len(row.siblings) > SIBLINGS_OF_A_ROW_MAX:
            raise ValueError(f"a key with {len(row.siblings)} siblings")
        siblings = []
        last: tuple[int, int, int] = (0, 0, 0)
        for member, incarnation, n, time, value in row.siblings:
            if (member, incarnation, n) <= last:
                raise ValueError("the siblings of a key are not in the order of their dots")
            last = (member, incarnation, n)
            dot = Dot(Origin(NodeId(member), incarnation), n)
            if n < 1 or not context.covers(dot):
                raise ValueError("the context of a key does not cover its siblings")
            if not 0 <= time <= TIME_MAX or len(value) > VALUE_BYTES_MAX:
                raise ValueError("a time or value is beyond its limit")
            siblings.append(Sibling(dot, value, time))
        return cls(tuple(siblings), context)


KeyState.EMPTY = KeyState((), VersionVector.EMPTY)


def checked_vector(row: VectorRow) -> VersionVector:
    """A vector from outside. Raises ValueError."""
    if len(row) > ORIGINS_MAX:
        raise ValueError(f"a version vector of {len(row)} origins")
    return VersionVector.from_row(row)


def _by_dot(sibling: Sibling) -> Dot:
    return sibling.dot


def _same_write(one: Sibling, other: Sibling) -> Sibling:
    """One dot is one write. Were it ever two, all nodes would still choose the same (trap S47)."""
    return max(one, other, key=lambda sibling: (sibling.value, sibling.time))
