"""The laws of version vectors: a partial order with four answers, its join and meet, one row and one digest each."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnode.clocks.version_vector import COUNTER_MAX, Dot, Origin, VersionVector
from kvnode.ids import NodeId

ORIGINS = [Origin(NodeId(member), life) for member in (1, 2) for life in (0, (1 << 64) - 1)]
COUNTERS = st.dictionaries(st.sampled_from(ORIGINS), st.integers(1, 3))
VECTORS = COUNTERS.map(VersionVector)
DOTS = st.builds(Dot, st.sampled_from(ORIGINS), st.integers(1, 4))
MIRROR = {"equal": "equal", "before": "after", "after": "before", "concurrent": "concurrent"}


def dots(vector: VersionVector) -> set[Dot]:
    """The set of writes a vector stands for: what every operation is measured against."""
    return {Dot(origin, n) for origin, last in vector.entries() for n in range(1, last + 1)}


@given(VECTORS, VECTORS)
def test_comparison_is_inclusion_of_the_sets_of_writes(one: VersionVector, other: VersionVector) -> None:
    ahead, behind = dots(one) >= dots(other), dots(one) <= dots(other)
    expected = {(True, True): "equal", (True, False): "after", (False, True): "before"}.get(
        (ahead, behind), "concurrent"
    )
    assert one.compare(other) == expected
    assert other.compare(one) == MIRROR[expected]
    assert one.includes(other) == ahead
    assert (one == other) == (expected == "equal") == (one.digest() == other.digest())
    assert one != other or hash(one) == hash(other)


def test_equal_vectors_are_equal_and_not_concurrent() -> None:
    one, other = VersionVector({ORIGINS[0]: 1, ORIGINS[1]: 2}), VersionVector({ORIGINS[1]: 2, ORIGINS[0]: 1})
    assert one.compare(other) == "equal"
    assert VersionVector.EMPTY.compare(VersionVector()) == "equal"
    assert one.entries() == other.entries()


@given(VECTORS, VECTORS, VECTORS)
def test_merge_and_meet_are_union_and_intersection(a: VersionVector, b: VersionVector, c: VersionVector) -> None:
    assert dots(a.merge(b)) == dots(a) | dots(b)
    assert dots(a.meet(b)) == dots(a) & dots(b)
    assert a.merge(b) == b.merge(a)
    assert a.merge(b).merge(c) == a.merge(b.merge(c))
    assert a.merge(a) == a == a.meet(a) == a.merge(a.meet(b)) == a.meet(a.merge(b))


@given(VECTORS, DOTS)
def test_a_dot_brings_everything_of_its_origin_before_it(vector: VersionVector, dot: Dot) -> None:
    assert vector.covers(dot) == (dot in dots(vector))
    with_it = vector.with_dot(dot)
    assert with_it.covers(dot)
    assert dots(with_it) == dots(vector) | {Dot(dot.origin, n) for n in range(1, dot.n + 1)}
    assert with_it.get(dot.origin) == max(vector.get(dot.origin), dot.n)


@given(VECTORS)
def test_a_row_is_in_order_and_gives_the_vector_back(vector: VersionVector) -> None:
    row = vector.to_row()
    assert list(row) == sorted(row)
    assert VersionVector.from_row(row) == vector


@given(COUNTERS, VECTORS, DOTS)
def test_vectors_do_not_change(counters: dict[Origin, int], other: VersionVector, dot: Dot) -> None:
    vector = VersionVector(counters)
    before, digest = vector.to_row(), vector.digest()
    counters.clear()
    vector.merge(other), vector.meet(other), vector.with_dot(dot)
    assert (vector.to_row(), vector.digest()) == (before, digest)


@pytest.mark.parametrize(
    "row",
    [
        [(1, 0, 0)],
        [(1, 0, -1)],
        [(0, 0, 1)],
        [(1, -1, 1)],
        [(1, 1 << 64, 1)],
        [(1 << 63, 0, 1)],
        [(1, 0, COUNTER_MAX + 1)],
        [(2, 0, 1), (1, 0, 1)],
        [(1, 0, 1), (1, 0, 1)],
        [(1, 5, 1), (1, 4, 1)],
    ],
)
def test_rows_that_no_vector_has_are_refused(row: list[tuple[int, int, int]]) -> None:
    with pytest.raises(ValueError, match="version vector"):
        VersionVector.from_row(row)
