"""Random worlds of replicas: what each shows is at every moment exactly what the writes it knows of leave."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.gossip.keyspace_world import World


def live(world: World, steps: int) -> None:
    for _ in range(steps):
        world.step()
    world.heal()
    world.forget_all()
    world.check_agreement()


@pytest.mark.parametrize("wipes", [False, True])
@pytest.mark.parametrize("rash", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_replicas_agree_lose_nothing_and_bring_nothing_back(seed: int, wipes: bool, rash: bool) -> None:
    live(World(random.Random(seed).randrange, wipes=wipes, rash=rash), 150)


def test_a_crash_in_the_middle_of_a_catching_up() -> None:
    live(World(random.Random(100_116).randrange, wipes=True, rash=True), 300)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 59), max_size=300), st.booleans(), st.booleans())
def test_the_same_in_worlds_that_shrink(numbers: list[int], wipes: bool, rash: bool) -> None:
    left = iter(numbers)
    world = World(lambda n: next(left, 0) % n, wipes=wipes, rash=rash)
    live(world, len(numbers) // 4)
