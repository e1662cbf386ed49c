"""Version vector: for each origin, how many of its writes are known. It tells which of two states has seen the other.

An *origin* is a member together with the incarnation of its store: what is lost with a store is never counted again
(trap S33). Its writes are counted from 1 without gaps, so one number stands for all of them up to it. A *dot* names one
write. Comparing two vectors has four answers, equality among them (trap S31: equal vectors taken for concurrent ones
make a false sibling of every re-delivered replica).

Vectors are values: never changed, hashable, equal if and only if they map the same origins to the same counters; an
origin that is not listed stands at 0. Rows, entries and the digest use one order: by member, then incarnation.

Source: Parker et al., "Detection of Mutual Inconsistency in Distributed Systems" (1983); dots: Preguiça et al.,
"Dotted Version Vectors" (2012).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal, NamedTuple

from kvnode.ids import NodeId

COUNTER_MAX = (1 << 63) - 1
INCARNATION_MAX = (1 << 64) - 1

Comparison = Literal["equal", "before", "after", "concurrent"]
VectorRow = tuple[tuple[int, int, int], ...]
"""(member, incarnation, counter) of each entry, in order: the form for wires and stores."""

_ENTRY = struct.Struct(">QQQ")


class Origin(NamedTuple):
    """Who counts: a member, in one life of its store."""

    member: NodeId
    incarnation: int


class Dot(NamedTuple):
    """One write of one origin."""

    origin: Origin
    n: int  # from 1


class VersionVector:
    """{origin: n ≥ 1}: every write of each origin up to and including its n."""

    __slots__ = ("_counters", "_digest", "_entries")

    EMPTY: ClassVar[VersionVector]

    def __init__(self, entries: Mapping[Origin, int] = {}) -> None:  # read, never kept
        assert all(n >= 1 for n in entries.values()), entries
        self._counters: dict[Origin, int] = dict(entries)
        self._entries: tuple[tuple[Origin, int], ...] | None = None
        self._digest: int | None = None

    def get(self, origin: Origin) -> int:
        """The newest write known of `origin`; 0: none."""
        return self._counters.get(origin, 0)

    def entries(self) -> tuple[tuple[Origin, int], ...]:
        """All entries, ordered by origin."""
        if self._entries is None:
            self._entries = tuple(sorted(self._counters.items()))
        return self._entries

    def covers(self, dot: Dot) -> bool:
        """Whether that write is among those known."""
        return dot[1] <= self._counters.get(dot[0], 0)

    def includes(self, other: VersionVector) -> bool:
        """Whether everything `other` knows is known here: equal or after."""
        if self is other:
            return True
        mine = self._counters
        return all(mine.get(origin, 0) >= n for origin, n in other._counters.items())

    def compare(self, other: VersionVector) -> Comparison:
        """How this vector stands to `other`; "before": `other` knows all of it, and more."""
        ahead, behind = self.includes(other), other.includes(self)
        if ahead:
            return "equal" if behind else "after"
        return "before" if behind else "concurrent"

    def merge(self, other: VersionVector) -> VersionVector:
        """What both know together: the greater counter of each origin. One of the two itself, where that is it."""
        if self.includes(other):
            return self
        merged = dict(self._counters)
        for origin, n in other._counters.items():
            if n > merged.get(origin, 0):
                merged[origin] = n
        return other if len(merged) == len(other) and merged == other._counters else _made(merged)

    def meet(self, other: VersionVector) -> VersionVector:
        """What each of both knows: the smaller counter of each origin."""
        if self is other:
            return self
        theirs = other._counters
        return _made({origin: min(n, theirs[origin]) for origin, n in self._counters.items() if origin in theirs})

    def with_dot(self, dot: Dot) -> VersionVector:
        """This vector and `dot`, with everything of its origin before it."""
        if self.covers(dot):
            return self
        return _made({**self._counters, dot.origin: dot.n})

    def digest(self) -> int:
        """64 bits of BLAKE2b over the entries: equal for equal vectors, and in practice for no others."""
        if self._digest is None:
            packed = b"".join(_ENTRY.pack(member, incarnation, n) for (member, incarnation), n in self.entries())
            self._digest = int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "big")
        return self._digest

    def to_row(self) -> VectorRow:
        """The entries as plain numbers, in order."""
        return tuple((origin.member, origin.incarnation, n) for origin, n in self.entries())

    @classmethod
    def from_row(cls, row: Iterable[tuple[int, int, int]]) -> VersionVector:
        """Inverse of `to_row`; of hostile numbers, too. Raises ValueError: out of range, out of order, twice."""
        counters: dict[Origin, int] = {}
        last: tuple[int, int] = (0, -1)  # members count from 1
        for member, incarnation, n in row:
            if (member, incarnation) <= last or member < 1:
                raise ValueError("the entries of a version vector are not in order")
            if not (member <= COUNTER_MAX and 0 <= incarnation <= INCARNATION_MAX and 1 <= n <= COUNTER_MAX):
                raise ValueError("a number of a version vector is out of range")
            last = (member, incarnation)
            counters[Origin(NodeId(member), incarnation)] = n
        return _made(counters)

    def __len__(self) -> int:
        return len(self._counters)

    def __eq__(self, other: object) -> bool:
        return self._counters == other._counters if isinstance(other, VersionVector) else NotImplemented

    def __hash__(self) -> int:
        return self.digest()

    def __repr__(self) -> str:
        listed = ", ".join(f"{origin.member}.{origin.incarnation:x}:{n}" for origin, n in self.entries())
        return f"VersionVector({listed})"


def _made(counters: dict[Origin, int]) -> VersionVector:
    """Takes the dictionary over; whoever calls does not keep it."""
    vector = VersionVector.__new__(VersionVector)
    vector._counters = counters
    vector._entries = None
    vector._digest = None
    return vector


VersionVector.EMPTY = VersionVector()
