"""What each shape of a partition cuts, and what it leaves."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest

from scripts.faults.shapes import SHAPES, Link, cut_links

NODES = [1, 2, 3, 4, 5]
ONE_WAY = {"deaf", "mute", "one way"}


def left(cut: Iterable[Link], nodes: list[int] = NODES) -> set[Link]:
    return {(a, b) for a in nodes for b in nodes if a != b} - set(cut)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("nodes", [[1, 2, 3], NODES])
def test_cuts_are_links_between_nodes_and_symmetric_unless_one_way(shape: str, nodes: list[int]):
    for seed in range(30):
        cut = list(cut_links(shape, nodes, 2, random.Random(seed)))
        assert len(set(cut)) == len(cut)
        assert all(a in nodes and b in nodes and a != b for a, b in cut)
        assert shape not in ONE_WAY or cut
        if shape not in ONE_WAY:
            assert {(b, a) for a, b in cut} == set(cut)


def test_who_is_deaf_still_speaks_and_who_is_mute_still_hears():
    for seed in range(30):
        deaf = {b for _, b in cut_links("deaf", NODES, 1, random.Random(seed))}
        mute = {a for a, _ in cut_links("mute", NODES, 1, random.Random(seed))}
        assert len(deaf) == len(mute) == 1


def degrees(links: set[Link]) -> list[int]:
    return sorted(sum(1 for a, _ in links if a == node) for node in NODES)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("bridge", [2, 2, 2, 2, 4]),  # two pairs, and one node that sees all
        ("ring", [2, 2, 2, 2, 2]),
        ("chain", [1, 1, 2, 2, 2]),
        ("star", [1, 1, 1, 1, 4]),
        ("two pairs", [1, 1, 2, 3, 3]),  # two see one other each; those two and the fifth see each other
    ],
)
def test_how_many_each_node_still_sees(shape: str, expected: list[int]):
    for seed in range(30):
        assert degrees(left(cut_links(shape, NODES, 0, random.Random(seed)))) == expected


def test_an_unknown_shape_is_a_mistake():
    with pytest.raises(ValueError, match="pentagon"):
        cut_links("pentagon", NODES, 0, random.Random(0))
