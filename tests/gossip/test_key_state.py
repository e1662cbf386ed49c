"""`KeyState.merge` is the join of a lattice, whatever the states; rows are checked."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnode.clocks.version_vector import Dot, Origin, VersionVector
from kvnode.gossip.key_state import Context, KeyState, Sibling, StateRow
from kvnode.ids import NodeId

ORIGINS = [Origin(NodeId(member), 7) for member in (1, 2, 3)]


@st.composite
def states(draw: st.DrawFn) -> KeyState:
    """Any siblings within any context."""
    context = VersionVector(draw(st.dictionaries(st.sampled_from(ORIGINS), st.integers(1, 3))))
    dots = [Dot(origin, n) for origin, last in context.entries() for n in range(1, last + 1)]
    chosen = draw(st.sets(st.sampled_from(dots))) if dots else set()
    return KeyState(tuple(Sibling(dot, repr(dot).encode(), dot.n) for dot in sorted(chosen)), context)


def dots(state: KeyState) -> set[Dot]:
    return {sibling.dot for sibling in state.siblings}


def seen(state: KeyState) -> set[Dot]:
    return {Dot(origin, n) for origin, last in state.context.entries() for n in range(1, last + 1)}


@given(states(), states(), states())
def test_merge_is_commutative_associative_and_idempotent(a: KeyState, b: KeyState, c: KeyState) -> None:
    assert a.merge(b) == b.merge(a)
    assert a.merge(b).merge(c) == a.merge(b.merge(c))
    assert a.merge(a) == a
    assert a.merge(b).merge(b) == a.merge(b)
    assert a.merge(KeyState.EMPTY) == a


@given(states(), states())
def test_merge_keeps_what_both_have_and_what_one_has_and_the_other_never_saw(a: KeyState, b: KeyState) -> None:
    kept = (dots(a) & dots(b)) | (dots(a) - seen(b)) | (dots(b) - seen(a))
    assert dots(a.merge(b)) == kept
    assert seen(a.merge(b)) == seen(a) | seen(b)


@given(states(), states(), states())
def test_what_is_known_without_a_context_works_as_if_it_stood_in_one(a: KeyState, b: KeyState, c: KeyState) -> None:
    with_known = KeyState(a.siblings, a.context.merge(c.context))
    assert a.merge(b, known=c.context).siblings == with_known.merge(b).siblings
    assert b.merge(a, known_there=c.context).siblings == with_known.merge(b).siblings


@given(states(), states(), st.booleans())
def test_a_write_replaces_exactly_what_its_context_covers(a: KeyState, reader: KeyState, is_put: bool) -> None:
    dot = Dot(ORIGINS[0], a.context.get(ORIGINS[0]) + 1)
    after = a.with_write(dot, b"new" if is_put else None, 5, Context(reader.context))
    assert dots(after) == (dots(a) - seen(reader)) | ({dot} if is_put else set())
    assert seen(after) == seen(a) | {dot}, "the context has seen its own write"
    assert a.merge(after) == after, "and the write supersedes the state it was made on"


def test_one_dot_with_two_values_is_decided_alike_by_both() -> None:
    context = VersionVector({ORIGINS[0]: 1})
    one, other = (KeyState((Sibling(Dot(ORIGINS[0], 1), value, 1),), context) for value in (b"x", b"y"))
    assert one.merge(other) == other.merge(one)


@given(states())
def test_a_row_gives_the_state_back(state: KeyState) -> None:
    assert KeyState.from_row(state.to_row()) == state
    assert state.size >= state.value_bytes


@pytest.mark.parametrize(
    "row",
    [
        StateRow(((1, 7, 2, 0, b""),), ((1, 7, 1),)),
        StateRow(((1, 7, 0, 0, b""),), ((1, 7, 1),)),
        StateRow(((2, 7, 1, 0, b""),), ((1, 7, 1),)),
        StateRow(((1, 7, 2, 0, b""), (1, 7, 1, 0, b"")), ((1, 7, 2),)),
        StateRow(((1, 7, 1, 0, b""), (1, 7, 1, 0, b"")), ((1, 7, 2),)),
        StateRow(((1, 7, 1, -1, b""),), ((1, 7, 1),)),
        StateRow(((1, 7, 1, 0, bytes(65_537)),), ((1, 7, 1),)),
        StateRow((), tuple((1, life, 1) for life in range(257))),
        StateRow((), ((1, 7, 1), (1, 7, 2))),
    ],
)
def test_rows_that_no_key_has_are_refused(row: StateRow) -> None:
    with pytest.raises(ValueError, match=r"."):
        KeyState.from_row(row)
