"""Worlds of a few nodes that keep one timeline: pages in any order, crashes, lost stores, partitions, newcomers.

Each node does what the shell has to do. The world knows what influenced what, and what each reader was given, and
checks after every step what must hold at any moment.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from kvnode.clocks.lamport import LamportClock
from kvnode.clocks.version_vector import Origin, VersionVector
from kvnode.gossip.event import Event, TimelineLimits, rank
from kvnode.gossip.finality import Electorate
from kvnode.gossip.timeline import Timeline
from kvnode.gossip.timeline_rows import decode_delta, encode_delta
from kvnode.ids import NodeId
from kvnode.wire.event_cursor import decode_event_cursor, encode_event_cursor

LIMITS = TimelineLimits()
PAGE_BYTES = 400  # two or three events
EventId = tuple[int, int, int]


def event_id(event: Event) -> EventId:
    return event.member, event.incarnation, event.seq


@dataclass
class Reader:
    """Goes on with its cursor, on whichever node it is sent to."""

    is_stable: bool = False
    allow_late: bool = False
    cursor: str = ""
    given: list[EventId] = field(default_factory=list)
    gaps: int = 0

    def read(self, timeline: Timeline, limit: int = 1000) -> list[Event]:
        page = timeline.page(
            decode_event_cursor(self.cursor), limit=limit, is_stable=self.is_stable, allow_late=self.allow_late
        )
        self.cursor = encode_event_cursor(page.cursor)
        self.given += [event_id(shown.event) for shown in page.events]
        self.gaps += sum(shown.gap for shown in page.events)
        return [shown.event for shown in page.events]


class Node:
    """One member: timeline, clock, what is durable of both, and its part of the shell."""

    def __init__(self, world: World, member: int, *, is_founder: bool) -> None:
        self.world = world
        self.member = NodeId(member)
        self.is_founder = is_founder
        self.boot = 0
        self.incarnation = 0
        self.rows: dict[bytes, bytes] = {}
        self.ceiling = 0
        self.configuration = 0
        self.wall_offset_ms = world.rng.choice([-3_600_000, -200, 0, 200, 3_600_000])
        self.past: dict[EventId, int] = {}  # what may have influenced it, with Lamport times
        self.watermark = 0
        self.final = Reader(is_stable=True)
        self.start(is_new=True)

    @property
    def electorate(self) -> Electorate:
        return self.world.configurations[self.configuration]

    def start(self, *, is_new: bool) -> None:
        self.boot += 1
        if is_new:
            self.incarnation = self.world.rng.getrandbits(64)
        self.clock = LamportClock(self.ceiling)
        self.timeline = Timeline(
            Origin(self.member, self.incarnation),
            self.boot,
            self.world.limits,
            is_founder=self.is_founder,
            rows=self.rows.items(),
        )
        assert self.clock.observe(self.timeline.lamport)
        self.watermark = 0
        self.settle()

    def settle(self) -> None:
        self.timeline.promise(self.clock.promised_time, self.electorate)
        watermark = self.timeline.watermark(self.electorate)
        assert watermark >= self.watermark, "a watermark fell"
        self.watermark = watermark

    def record(self) -> Event | None:
        if not self.clock.can_tick:
            return None
        lamport = self.clock.tick()
        wall_ms = self.world.now_ms + self.wall_offset_ms + 4_000_000
        event = self.timeline.record("user", b'{"n":1}', lamport=lamport, wall_ms=wall_ms)
        assert event.lamport > max(self.past.values(), default=0), "an effect is not later than its cause"
        self.world.events[event_id(event)] = event
        self.world.causes[event_id(event)] = frozenset(self.past)
        self.past[event_id(event)] = lamport
        return event

    def flush(self) -> None:
        """One commit: the rows and a ceiling; then what had to wait for it."""
        written, removed = self.timeline.take_changes()
        self.rows.update(written)
        for key in removed:
            self.rows.pop(key, None)
        if (ceiling := self.clock.needs_ceiling) is not None:
            self.ceiling = ceiling
            self.clock.raised(ceiling)
        self.timeline.on_durable()
        self.settle()

    def crash(self) -> None:
        before = self.past
        mine = [event for event in before if event[:2] == (self.member, self.incarnation)]
        self.start(is_new=False)
        durable = self.timeline.vector
        for dead in [event for event in mine if event[2] > durable.get(self.timeline.origin)]:
            self.world.forget(dead)
        kept = {
            event: time
            for event, time in before.items()
            if event in self.world.events
            and (time <= self.ceiling or durable.get(Origin(NodeId(event[0]), event[1])) >= event[2])
        }
        self.past = kept
        self.world.forget_the_lost()

    def lose_store(self, *, with_ceiling: bool) -> None:
        self.rows = {}
        if with_ceiling:
            self.ceiling = 0
        self.start(is_new=True)
        self.world.under_way = []
        self.past = {event: time for event, time in self.past.items() if not with_ceiling and time <= self.ceiling}
        self.world.forget_the_lost()
        self.final = Reader(is_stable=True)

    def holds(self, event: EventId) -> bool:
        if Origin(NodeId(event[0]), event[1]) == self.timeline.origin:
            return True  # its own, if only it is not durable yet
        return self.timeline.vector.get(Origin(NodeId(event[0]), event[1])) >= event[2]

    def merge(self, sender: Node, data: bytes, lamport: int) -> None:
        delta = decode_delta(data, LIMITS)
        merged = self.timeline.merge(delta, time=self.clock.time)
        assert merged.refused == 0
        assert not merged.is_behind_itself
        assert self.clock.observe(lamport)
        assert self.clock.observe(merged.lamport)
        for event in merged.events:
            self.past[event_id(event)] = event.lamport
        if not delta.more:
            self.timeline.heard(sender.member, lamport)
        self.settle()


class World:
    """All nodes, what is under way between them, and what must hold."""

    def __init__(self, seed: int, *, limits: TimelineLimits = LIMITS, founders: int | None = None) -> None:
        self.rng = random.Random(seed)
        self.limits = limits
        self.now_ms = 0
        self.events: dict[EventId, Event] = {}
        self.causes: dict[EventId, frozenset[EventId]] = {}
        self.order: list[EventId] = []  # the one final order, as far as anybody was given it
        self.under_way: list[tuple[Node, int, Node, bytes, int]] = []
        self.cut: set[frozenset[int]] = set()
        members = tuple(NodeId(n + 1) for n in range(founders or self.rng.choice([2, 3, 3, 4])))
        self.configurations = [Electorate(1, members, members)]
        self.nodes: list[Node] = []
        for member in members:
            self.nodes.append(Node(self, member, is_founder=True))
        self.wanderer = Reader()

    def forget(self, event: EventId) -> None:
        """It was lost with the only store that held it, or was never shown to anybody."""
        del self.events[event]
        if event in self.order:
            self.order.remove(event)
        for node in self.nodes:
            node.past.pop(event, None)
            if event in node.final.given:
                node.final.given.remove(event)
        if event in self.wanderer.given:
            self.wanderer.given.remove(event)

    def forget_the_lost(self) -> None:
        for event in list(self.events):
            is_under_way = any(event[1].to_bytes(8, "big") in data for *_, data, _ in self.under_way)
            if not is_under_way and not any(node.holds(event) for node in self.nodes):
                self.forget(event)

    def step(self) -> None:
        self.now_ms += self.rng.randrange(50)
        node = self.rng.choice(self.nodes)
        match self.rng.choices(
            ["record", "flush", "pull", "deliver", "read", "crash", "lose", "cut", "heal", "configure", "grow"],
            [20, 20, 20, 30, 8, 2, 0.5, 2, 1, 4, 1],
        )[0]:
            case "record":
                node.record()
            case "flush":
                node.flush()
            case "pull":
                self.pull(node, self.rng.choice(self.nodes))
            case "deliver" if self.under_way:
                self.deliver(self.under_way.pop(self.rng.randrange(len(self.under_way))))
            case "read":
                self.wanderer.read(node.timeline, self.rng.randrange(1, 5))
            case "crash":
                node.crash()
            case "lose":
                node.lose_store(with_ceiling=self.rng.random() < 0.5)
            case "cut":
                self.cut.add(frozenset({node.member, self.rng.choice(self.nodes).member}))
            case "heal":
                self.cut.clear()
            case "configure":
                node.configuration = min(node.configuration + 1, len(self.configurations) - 1)
            case "grow":
                self.grow()
        self.check(node)

    def pull(self, node: Node, sender: Node) -> None:
        if node is not sender and frozenset({node.member, sender.member}) not in self.cut:
            data = encode_delta(sender.timeline.delta(node.timeline.vector, PAGE_BYTES))
            self.under_way.append((node, node.boot, sender, data, sender.clock.time))

    def deliver(self, reply: tuple[Node, int, Node, bytes, int]) -> None:
        node, boot, sender, data, lamport = reply
        if boot == node.boot:
            node.merge(sender, data, lamport)

    def grow(self) -> None:
        """A learner comes, or one is promoted: the newest configuration changes, nodes learn of it one by one."""
        newest = self.configurations[-1]
        learners = [member for member in newest.members if member not in newest.voters]
        if learners:
            voters = (*newest.voters, learners[0])
            self.configurations.append(Electorate(newest.configuration + 1, voters, newest.members))
        elif len(self.nodes) < 5:
            member = NodeId(len(self.nodes) + 1)
            self.configurations.append(Electorate(newest.configuration + 1, newest.voters, (*newest.members, member)))
            self.nodes.append(Node(self, member, is_founder=False))

    def check(self, node: Node) -> None:
        """What `node` shows of the final order is the beginning of the one that everybody shows."""
        node.final.read(node.timeline)
        given = node.final.given
        common = min(len(given), len(self.order))
        assert given[:common] == self.order[:common], "two nodes show two final orders"
        self.order.extend(given[common:])

    def finish(self) -> None:
        """Faults end; everybody pulls from everybody until nobody has anything to tell."""
        self.cut.clear()
        while self.under_way:
            self.deliver(self.under_way.pop())
        self.forget_the_lost()
        for node in self.nodes:
            node.configuration = len(self.configurations) - 1
        quiet = 0
        for _ in range(400):
            for node in self.nodes:
                node.flush()
                node.clock.observe(max(other.clock.time for other in self.nodes))
                node.settle()
                for sender in self.nodes:
                    self.pull(node, sender)
            while self.under_way:
                self.deliver(self.under_way.pop())
            digests = {node.timeline.digest() for node in self.nodes}
            quiet = quiet + 1 if len(digests) == 1 else 0
            if quiet == 3:
                return
        raise AssertionError("the nodes do not agree")

    def in_order(self, *, is_ranked: bool = False) -> list[EventId]:
        events = sorted(self.events.values(), key=rank)
        return [event_id(event) for event in events if event.is_ranked or not is_ranked]

    def vector(self) -> VersionVector:
        return self.nodes[0].timeline.vector
