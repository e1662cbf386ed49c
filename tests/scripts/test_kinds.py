"""A strike takes nodes that have no other fault, says which, and says nothing if there are none."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.faults.field import Field
from scripts.faults.kinds import KINDS, NETWORK
from scripts.faults.pulse import Pulse
from scripts.faults.undo import Undo
from tests.scripts.scripted import Scripted


@pytest.fixture
def field(tmp_path: Path) -> Iterator[Field]:
    Scripted.scripts = {}
    cluster = Scripted(tmp_path / "cluster", 3)
    yield Field(cluster, Pulse(cluster), Undo())
    cluster.stop()


@pytest.mark.parametrize("name", sorted(set(KINDS) - NETWORK))
async def test_where_no_node_is_left_nothing_was_struck(field: Field, name: str):
    assert await KINDS[name].strike(field, random.Random(1)) == ""


async def test_strikes_of_one_episode_share_no_node(field: Field):
    field.cluster.start_all()
    struck: list[str] = []
    for seed in range(20):
        struck += (await KINDS["kill"].strike(field, random.Random(seed))).removeprefix("node ").split(",")
    assert sorted(filter(None, struck)) == ["1", "2", "3"]
    assert field.cluster.running() == []


async def test_one_log_is_damaged_at_a_time(field: Field):
    field.cluster.start_all()
    field.rotten[1] = 0
    assert await KINDS["bit rot"].strike(field, random.Random(1)) == ""
    assert field.taken == set()
