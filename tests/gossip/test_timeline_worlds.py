"""Random worlds: causes come first, all nodes show one final order, readers miss nothing and get nothing twice."""

from __future__ import annotations

import pytest

from tests.gossip.timeline_world import Reader, World

SEEDS = range(60)
STEPS = 500


def lived(seed: int, steps: int = STEPS) -> World:
    world = World(seed)
    for _ in range(steps):
        world.step()
    return world


@pytest.mark.parametrize("seed", SEEDS)
def test_a_world_keeps_one_story(seed: int) -> None:
    world = lived(seed)
    world.finish()
    for node in world.nodes:
        everything = Reader()
        everything.read(node.timeline, limit=1 << 20)
        assert everything.given == world.in_order()
        world.check(node)
        assert node.final.given == world.in_order(is_ranked=True)
    while world.wanderer.read(world.nodes[0].timeline, limit=7):
        pass
    assert sorted(world.wanderer.given) == sorted(world.events)


def test_causes_come_before_effects_and_by_wall_clocks_they_would_not() -> None:
    """The second half proves that these worlds have something to get wrong."""
    turned_round = 0
    for seed in range(20):
        world = lived(seed)
        for effect, causes in world.causes.items():
            if effect in world.events:
                for cause in causes & world.events.keys():
                    assert world.events[cause].lamport < world.events[effect].lamport
                    turned_round += world.events[cause].wall_ms > world.events[effect].wall_ms
    assert turned_round > 100
