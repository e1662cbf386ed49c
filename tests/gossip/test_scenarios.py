"""Acceptance scenarios GO-T1 … GO-T6 of the patterns page, and the laws, on virtual time."""

from __future__ import annotations

import pytest

from kvnode.gossip.messages import Status
from kvnode.gossip.output import (
    DatagramsBlocked,
    MemberAlive,
    MemberDead,
    MemberLeft,
    MemberSuspected,
    Refuted,
    StoodStill,
)
from kvnode.gossip.suspicion import suspicion_ms_min
from kvnode.ids import NodeId
from kvnode.sim.gossip.measure import false_positives, idle_cost, spread
from kvnode.sim.gossip.world import NUMBERS_PER_BOOT, GossipWorld

SEEDS = range(1, 9)


def group(seed: int, size: int = 3, **faults: float) -> GossipWorld:
    world = GossipWorld(seed, size, **faults)
    world.start()
    world.run_for(10_000)
    assert all(world.statuses(id_) == {Status.ALIVE} for id_ in world.nodes)
    world.facts.clear()
    return world


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("size", [3, 7])
def test_go_t1_the_killed_are_suspect_then_dead_within_the_bound(seed: int, size: int):
    world = group(seed, size)
    killed_ms = world.now_ms
    world.kill(size)
    world.run_for(60_000)
    suspected, dead = world.facts_of(MemberSuspected, size), world.facts_of(MemberDead, size)
    assert {whose for _, whose in dead} == {NodeId(id_) for id_ in range(1, size)}
    first = min(when for when, _ in suspected) - killed_ms
    assert first >= world.settings.probe_interval_ms - 10  # never before one whole probe
    assert first <= (2 * (size - 2) + 2) * world.settings.probe_interval_ms  # at worst last in the next round
    until_dead = max(when for when, _ in dead) - min(when for when, _ in suspected)
    least = suspicion_ms_min(size, world.settings)
    assert least - 10 <= until_dead <= least * (1 if size == 3 else world.settings.suspicion_max_factor) + 1_000
    assert [fact for fact in world.facts_of(MemberSuspected) if fact not in suspected] == []


@pytest.mark.parametrize("seed", SEEDS)
def test_go_t2_a_pause_of_three_seconds_is_refuted_and_nobody_dies(seed: int):
    world = group(seed)
    world.pause(2, 3_000)
    world.run_for(30_000)
    assert world.facts_of(MemberDead) == []
    assert world.facts_of(StoodStill)
    if world.facts_of(MemberSuspected, 2):
        assert world.core(2).own.number == NUMBERS_PER_BOOT + 1
        assert {whose for _, whose in world.facts_of(Refuted)} == {NodeId(2)}
    assert all(world.statuses(id_) == {Status.ALIVE} for id_ in world.nodes)


def test_go_t2_it_was_suspect_meanwhile():
    worlds = [group(seed) for seed in SEEDS]
    for world in worlds:
        world.pause(2, 3_000)
        world.run_for(3_000)
    assert sum(Status.SUSPECT in world.statuses(2) for world in worlds) >= len(worlds) // 2


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("both", [False, True])
def test_go_t3_one_broken_way_between_two_makes_nobody_suspect(seed: int, both: bool):
    world = group(seed)
    world.cut(1, 2, both=both)
    world.run_for(60_000)
    assert world.facts_of(MemberSuspected) == []
    assert all(world.statuses(id_) == {Status.ALIVE} for id_ in world.nodes)


def test_where_only_datagrams_are_lost_the_exchange_shows_life_and_that_is_told_once():
    world = group(1)
    world.loss = 1.0
    world.run_for(60_000)
    assert world.facts_of(MemberSuspected) == []
    assert len(world.facts_of(DatagramsBlocked)) == 6


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("loss", [0.0, 0.3])
def test_go_t4_who_leaves_has_left_and_is_not_dead(seed: int, loss: float):
    world = group(seed)
    world.loss = loss
    world.leave(3)
    world.run_for(2_000)
    assert world.nodes[NodeId(3)].gossip is None
    world.run_for(40_000)
    assert world.statuses(3) == {Status.LEFT}
    assert world.facts_of(MemberDead) == []
    world.loss = 0.0
    world.start(3)
    world.run_for(5_000)
    assert world.statuses(3) == {Status.ALIVE}
    assert len(world.facts_of(MemberLeft, 3)) == 2


@pytest.mark.slow
def test_go_t5_an_item_reaches_thirty_in_few_rounds_and_costs_each_the_same():
    told = spread(1, 30)
    assert told.item_rounds <= told.rounds_bound
    assert told.rumor_rounds <= told.rounds_bound
    assert told.pulls < 3 * 30
    few, many = idle_cost(1, 5, 60), idle_cost(1, 30, 60)
    assert many.datagram_bytes_per_s < 1.1 * few.datagram_bytes_per_s
    assert many.datagram_bytes_per_s < 300


@pytest.mark.slow
def test_a_fact_reaches_two_hundred_within_twice_the_logarithm():
    told = spread(1, 200, loss=0.05)
    assert told.rumor_rounds <= told.rounds_bound < 16
    assert told.item_rounds <= told.rounds_bound


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "size"), [(1, 3), (2, 3), (3, 3), (4, 7), (5, 7), (6, 7)])
def test_go_t6_who_is_starved_gets_nobody_declared_dead(seed: int, size: int):
    world = group(seed, size)
    world.nodes[NodeId(1)].starved_ms = 1_500
    world.run_for(120_000)
    assert {fact for fact in world.facts_of(MemberDead) if fact not in world.facts_of(MemberDead, 1)} == set()
    assert world.core(1).health_score > 0
    world.nodes[NodeId(1)].starved_ms = 0
    world.run_for(60_000)
    assert all(world.statuses(id_) == {Status.ALIVE} for id_ in world.nodes)
    assert world.core(1).health_score == 0


@pytest.mark.slow
def test_a_fifth_of_all_datagrams_lost_makes_nobody_dead():
    judged = false_positives(1, 5, 0.2, 300, has_fallback=False)
    assert judged.deaths == 0
    assert judged.accusations < judged.probes // 20
    assert false_positives(1, 5, 0.2, 300).accusations == 0


# ── partitions, restarts, joining ───────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "minutes"), [(1, 1), (2, 1), (3, 1), (9, 10)])
def test_a_partition_ends_and_both_sides_find_each_other(seed: int, minutes: int):
    world = group(seed, 5)
    world.partition([1, 2], [3, 4, 5])
    world.put(1, 100)
    world.put(5, 500)
    world.run_for(minutes * 60_000)
    assert {world.status(1, 5), world.status(5, 1)} == {Status.DEAD}
    assert world.status(1, 2) == world.status(4, 5) == Status.ALIVE
    world.heal()
    world.run_for(30_000)
    assert all(world.statuses(id_) == {Status.ALIVE} for id_ in world.nodes)
    assert all(node.items == {100, 500} for node in world.nodes.values())


@pytest.mark.parametrize("seed", SEEDS)
def test_who_starts_anew_is_alive_at_once_by_its_boot_counter(seed: int):
    world = group(seed)
    world.kill(3)
    world.run_for(60_000)
    assert world.statuses(3) == {Status.DEAD}
    world.start(3)
    world.run_for(3_000)
    assert world.statuses(3) == {Status.ALIVE}
    assert world.core(1).member(NodeId(3)).rumor.number >= 2 * NUMBERS_PER_BOOT  # type: ignore[union-attr]


def test_from_one_known_address_comes_the_table():
    world = GossipWorld(1, 6)
    world.start(1, 2, 3, 4, 5, learn=True)
    world.run_for(5_000)
    world.start(6, members={NodeId(2): world.members[NodeId(2)]}, learn=True)
    world.run_for(5_000)
    assert [state.member for state in world.core(6).table()] == [1, 2, 3, 4, 5]
    assert all(world.statuses(id_) == {Status.ALIVE} for id_ in world.nodes)


def test_alone_a_node_still_answers_who_is_there():
    world = group(1)
    world.kill(2)
    world.kill(3)
    world.run_for(120_000)
    assert [state.status for state in world.core(1).table()] == [Status.DEAD, Status.DEAD]
    assert world.core(1).own.status == Status.ALIVE


def test_members_that_come_late_are_not_dead_for_ever():
    world = GossipWorld(1, 3)
    world.start(1)
    world.run_for(60_000)
    world.start(2, 3)
    world.run_for(5_000)
    assert all(world.statuses(id_) == {Status.ALIVE} for id_ in world.nodes)
    assert [when for when, whose in world.facts_of(MemberAlive) if whose == 1]


# ── any faults, then peace ──────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 16))
def test_whatever_happened_all_agree_once_it_is_over(seed: int):
    """What holds of every step, the world checks: nothing goes back, nobody is raised but by itself."""
    size = 2 + seed % 6
    world = GossipWorld(seed, size, loss=0.1 * (seed % 4), duplicate=0.2, delay_ms=(0, 1 + 60 * (seed % 5)))
    world.start()
    for step in range(40):
        id_ = world.rng.randint(1, size)
        node = world.nodes[NodeId(id_)]
        match world.rng.randrange(8):
            case 0 if node.gossip is not None:
                world.kill(id_)
            case 1 | 2 if node.gossip is None:
                world.start(id_)
            case 3 if node.gossip is not None and not node.is_paused:
                world.pause(id_, world.rng.randint(100, 15_000))
            case 4:
                world.cut(id_, world.rng.randint(1, size), both=world.rng.random() < 0.5)
            case 5:
                world.heal()
            case 6 if node.gossip is not None and not node.is_paused:
                world.put(id_, step)
            case _:
                node.starved_ms = world.rng.choice([0, 0, 300, 2_000])
        world.run_for(world.rng.randint(10, 8_000))
    world.heal()
    world.loss = world.duplicate = 0.0
    world.delay_ms = (0, 5)
    for node in world.nodes.values():
        node.starved_ms = 0
    world.run_for(20_000)
    world.facts.clear()
    world.run_for(120_000)
    running = [node for node in world.nodes.values() if node.gossip is not None]
    for member in world.nodes.values():
        held = world.statuses(member.id)
        assert held <= ({Status.ALIVE} if member.gossip is not None else {Status.DEAD}), (member.id, held)
    assert len({node.digest for node in running}) <= 1
