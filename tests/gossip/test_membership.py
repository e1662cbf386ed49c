"""The table: which rumor counts, and that tables merge to the same in any order."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnode.gossip.membership import MemberTable, accusation, merge, precedence, told
from kvnode.gossip.messages import MEMBERS_MAX, Rumor, Status
from kvnode.ids import NodeId

ALIVE, SUSPECT, DEAD, LEFT = Status.ALIVE, Status.SUSPECT, Status.DEAD, Status.LEFT
M = NodeId(7)
ADDRESS = "10.0.0.7:7501"

rumors = st.builds(
    Rumor,
    st.just(M),
    st.integers(0, 3),
    st.sampled_from([ALIVE, SUSPECT, DEAD, LEFT]),
    st.integers(0, 3).map(NodeId),
    beat=st.integers(0, 3),
    address=st.sampled_from(["", "a:1", "b:1"]),
    applied_index=st.integers(0, 2),
)


# (held, heard, who wins): alive beats an accusation only with a higher number, an accusation beats alive of its number
RULES = [
    ((ALIVE, 5), (ALIVE, 6), "heard"),
    ((ALIVE, 5), (ALIVE, 4), "held"),
    ((SUSPECT, 5), (ALIVE, 5), "held"),
    ((SUSPECT, 5), (ALIVE, 6), "heard"),
    ((DEAD, 5), (ALIVE, 5), "held"),
    ((DEAD, 5), (ALIVE, 6), "heard"),
    ((LEFT, 5), (ALIVE, 5), "held"),
    ((LEFT, 5), (ALIVE, 6), "heard"),
    ((ALIVE, 5), (SUSPECT, 5), "heard"),
    ((ALIVE, 5), (SUSPECT, 6), "heard"),
    ((ALIVE, 5), (SUSPECT, 4), "held"),
    ((SUSPECT, 5), (SUSPECT, 6), "heard"),
    ((DEAD, 5), (SUSPECT, 5), "held"),
    ((ALIVE, 5), (DEAD, 5), "heard"),
    ((SUSPECT, 5), (DEAD, 5), "heard"),
    ((ALIVE, 5), (DEAD, 4), "held"),
    ((SUSPECT, 5), (DEAD, 4), "held"),
    ((DEAD, 5), (LEFT, 5), "heard"),
    ((LEFT, 5), (DEAD, 5), "held"),
    ((LEFT, 5), (SUSPECT, 6), "heard"),
]


@pytest.mark.parametrize(("held", "heard", "wins"), RULES)
def test_precedence(held: tuple[Status, int], heard: tuple[Status, int], wins: str):
    a, b = Rumor(M, held[1], held[0]), Rumor(M, heard[1], heard[0])
    assert merge(a, b) == (a if wins == "held" else b)


@given(rumors, rumors, rumors)
def test_merge_is_a_join(a: Rumor, b: Rumor, c: Rumor):
    assert merge(a, b) == merge(b, a)
    assert merge(merge(a, b), c) == merge(a, merge(b, c))
    assert merge(a, a) == a
    assert precedence(merge(a, b)) == max(precedence(a), precedence(b))
    assert told(merge(a, b)) == max(told(a), told(b))


@given(st.lists(rumors, min_size=1, max_size=4))
def test_tables_agree_whatever_the_order(heard: list[Rumor]):
    outcomes = set()
    for order in itertools.permutations(heard):
        table = MemberTable(NodeId(1))
        table.set_members({M: ADDRESS}, 0)
        entry = table.get(M)
        assert entry is not None
        for rumor in [*order, *order]:
            table.absorb(entry, rumor, 0)
        outcomes.add((precedence(entry.rumor), told(entry.rumor)))
    assert len(outcomes) == 1


def test_an_accusation_takes_nothing_away_of_what_a_member_tells_of_itself():
    full = Rumor(M, 5, ALIVE, incarnation=9, address=ADDRESS, beat=3, role="voter", version="1", applied_index=8)
    held = merge(full, accusation(Rumor(M, 5, SUSPECT, NodeId(2))))
    assert (held.status, held.by, held.address, held.role, held.incarnation) == (SUSPECT, 2, ADDRESS, "voter", 9)


def table_of(*ids: int, learn: bool = False) -> MemberTable:
    table = MemberTable(NodeId(1), learn=learn)
    table.set_members({NodeId(id_): f"10.0.0.{id_}:1" for id_ in ids}, 0)
    return table


def test_members_are_those_of_the_configuration_without_this_node():
    table = table_of(1, 2, 3)
    assert [entry.rumor.member for entry in table] == [2, 3]
    assert {entry.status for entry in table} == {Status.UNKNOWN}
    assert table.set_members({NodeId(3): "new:1", NodeId(4): "x:1"}, 5) == ([4], [2], [])
    entry = table.get(NodeId(3))
    assert entry is not None
    assert entry.address == "new:1"


def test_the_table_is_bounded():
    table = MemberTable(NodeId(1))
    _, _, refused = table.set_members({NodeId(id_): "a:1" for id_ in range(2, MEMBERS_MAX + 4)}, 0)
    assert len(table) == MEMBERS_MAX
    assert refused == [MEMBERS_MAX + 2, MEMBERS_MAX + 3]


def test_members_are_learnt_only_where_that_is_wanted_and_never_once_removed():
    rumor = Rumor(NodeId(9), 5, ALIVE, address="10.0.0.9:1", beat=1)
    assert not table_of(2).can_learn(rumor)
    assert table_of(2, learn=True).can_learn(rumor)
    assert not table_of(9, learn=True).can_learn(rumor)  # it is known already
    table = table_of(2, 9, learn=True)
    table.set_members({NodeId(2): "a:1"}, 0)
    assert not table.can_learn(rumor)


def test_the_gone_are_forgotten_late_and_those_of_the_configuration_never():
    table = table_of(2, learn=True)
    rumor = Rumor(NodeId(9), 5, ALIVE, address="10.0.0.9:1", beat=1)
    for entry in (table.learn(rumor, 0), table.get(NodeId(2))):
        assert entry is not None
        table.absorb(entry, Rumor(entry.rumor.member, 5, DEAD, NodeId(3)), 100)
    assert table.forget_gone(1_099, 1_000) == []
    assert table.forget_gone(1_100, 1_000) == [9]
    assert table.get(NodeId(2)) is not None
