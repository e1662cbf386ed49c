"""What gossip costs and how well it judges, in figures: by simulation, from one seed.

python -m kvnode.sim.gossip
"""

from __future__ import annotations

from math import log2

import msgspec

from kvnode.gossip.output import MemberDead, MemberSuspected
from kvnode.ids import NodeId
from kvnode.sim.gossip.world import GossipWorld


class Judgement(msgspec.Struct, frozen=True):
    """Members that all live, on a bad network for a while."""

    size: int
    loss: float
    seconds: int
    probes: int  # about: one a second and member
    suspicions: int  # by anybody's own probe or by hearsay, told once for each pair of observer and number
    accusations: int  # different (member, number) that were suspected by anybody
    deaths: int  # different (member, number) that anybody held dead


def false_positives(seed: int, size: int, loss: float, seconds: int, *, has_fallback: bool = True) -> Judgement:
    """Everybody lives; datagrams are lost with probability `loss`. HTTP, as TCP repeats what is lost, is slow only;
    without it probes have datagrams alone.
    """
    world = GossipWorld(seed, size, loss=loss, delay_ms=(0, 5), has_fallback=has_fallback, checked=False)
    world.start_acquainted()
    world.run_for(seconds * 1_000)
    suspected = [fact for _, _, fact in world.facts if isinstance(fact, MemberSuspected)]
    dead = {(fact.member, fact.number) for _, _, fact in world.facts if isinstance(fact, MemberDead)}
    accused = {(fact.member, fact.number) for fact in suspected}
    return Judgement(size, loss, seconds, size * seconds, len(suspected), len(accused), len(dead))


class Cost(msgspec.Struct, frozen=True):
    """What one node sends while nothing happens, without seal and headers."""

    size: int
    packets_per_s: float
    datagram_bytes_per_s: float
    exchange_bytes_per_s: float  # tables


def idle_cost(seed: int, size: int, seconds: int = 180) -> Cost:
    """A group that has known itself for long."""
    world = GossipWorld(seed, size, checked=False)
    world.start_acquainted()
    world.run_for(5_000)

    def sent() -> tuple[int, int, int]:
        nodes = world.nodes.values()
        datagrams = sum(node.datagram_bytes for node in nodes)
        return world.counts["packets"], datagrams, sum(node.exchange_bytes for node in nodes)

    before = sent()
    world.run_for(seconds * 1_000)
    rates = [(b - a) / size / seconds for a, b in zip(before, sent(), strict=True)]
    return Cost(size, *rates)


class Spread(msgspec.Struct, frozen=True):
    """How one fact reached everybody, in gossip intervals since it was known to one."""

    size: int
    rounds_bound: float  # 2 · log2(size)
    rumor_rounds: float  # a member's new description, on packets alone
    item_rounds: float  # an item of the keyspace, by summaries and pulls
    pulls: int  # for the item, in all


def spread(seed: int, size: int, loss: float = 0.0) -> Spread:
    """One rumor, then one item."""
    world = GossipWorld(seed, size, loss=loss, checked=False)
    world.start_acquainted()
    world.run_for(1_100)
    interval_ms = world.settings.gossip_interval_ms
    rumor_rounds = _rumor_ms(world) / interval_ms
    world.run_for(2_000)
    pulls, began_ms = world.counts["pulls"], world.now_ms
    world.put(1, 7)
    while not all(7 in node.items for node in world.nodes.values()) and world.now_ms < began_ms + 60_000:
        world.run_for(10)
    item_rounds = (world.now_ms - began_ms) / interval_ms
    return Spread(size, 2 * log2(size), rumor_rounds, item_rounds, world.counts["pulls"] - pulls)


def _rumor_ms(world: GossipWorld) -> int:
    """Until everybody knows what the first member told of itself."""
    first = world.core(1)
    first.describe(role="learner")
    began_ms = world.now_ms
    waiting = [id_ for id_ in world.nodes if id_ != 1]
    world.wake(1)
    while waiting and world.now_ms < began_ms + 60_000:
        world.run_for(10)
        waiting = [id_ for id_ in waiting if _role(world, id_) != "learner"]
    return world.now_ms - began_ms


def _role(world: GossipWorld, observer: NodeId) -> str:
    state = world.core(observer).member(NodeId(1))
    return "" if state is None else state.rumor.role
