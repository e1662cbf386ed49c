"""Pairs of lanes: complete or nothing, newer replaces older, latecomers are stale, dials that cross settle."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

from kvnode.ids import NodeId
from kvnode.transport.link import Dial, Link


def channel(lane: str) -> Any:
    made = SimpleNamespace(lane=lane, aborted=0)

    def abort() -> None:
        made.aborted += 1

    made.abort = abort
    return made


def one(boot: int, number: int) -> Dial:
    return Dial(NodeId(1), boot, number)


def two(boot: int, number: int) -> Dial:
    return Dial(NodeId(2), boot, number)


def test_a_pair_counts_once_both_lanes_are_there() -> None:
    link = Link(NodeId(2), "127.0.0.1:7502", now_ms=0)
    link.refused = "once"
    control, data = channel("control"), channel("data")
    assert not link.attach(control, one(1, 1))
    assert (link.is_connected, link.epoch, link.settled.is_set()) == (False, 0, False)
    assert link.attach(data, one(1, 1))
    assert (link.is_connected, link.epoch, link.settled.is_set(), link.refused) == (True, 1, True, "")
    assert link.owns(data)
    assert not link.owns(channel("data"))


def test_dials_are_ordered_by_start_of_the_dialler_then_number() -> None:
    link = Link(NodeId(2), "127.0.0.1:7502", now_ms=0)
    link.attach(channel("control"), one(2, 5))
    assert link.is_stale("control", one(2, 5))  # that lane is there
    assert not link.is_stale("data", one(2, 5))
    assert link.is_stale("data", one(2, 4))
    assert link.is_stale("data", one(1, 9))
    for newer in (one(2, 6), one(3, 1)):
        assert link.is_newer(newer)
    assert not link.is_newer(one(2, 5))


def test_taking_down_cuts_both_and_wakes_whoever_waits() -> None:
    link = Link(NodeId(2), "127.0.0.1:7502", now_ms=0)
    lanes = [channel("control"), channel("data")]
    for made in lanes:
        link.attach(made, one(1, 1))
    link.take_down(5)
    link.take_down(5)
    assert [made.aborted for made in lanes] == [1, 1]
    assert link.went_down.is_set()
    assert not link.is_connected
    assert link.is_stale("data", one(1, 0))
    assert not link.attach(channel("data"), one(1, 2))
    link.take_down(5)
    assert link.settled.is_set()  # the lane that waited for the other one goes on, and sees that it is not owned
    assert link.epoch == 1


def test_the_smaller_ids_dial_wins_and_the_larger_ids_may_come_again_once_it_is_gone() -> None:
    link = Link(NodeId(2), "127.0.0.1:7502", now_ms=0)
    for lane in ("control", "data"):
        link.attach(channel(lane), two(1, 1))
    assert not link.is_stale("control", one(1, 1))
    assert link.is_newer(one(1, 1))
    link.take_down(5)
    link.attach(channel("control"), one(1, 1))
    assert link.is_stale("data", two(1, 1))
    assert link.is_stale("data", two(9, 9))
    link.take_down(6)
    assert link.is_stale("data", two(1, 1))  # a latecomer of what was replaced
    assert not link.is_stale("data", two(1, 2))
    link.is_gone = True
    assert link.is_stale("data", two(1, 2))


def test_a_link_knows_since_when_it_is_down() -> None:
    link = Link(NodeId(2), "127.0.0.1:7502", now_ms=3)
    assert link.down_since_ms == 3
    link.take_down(4)
    assert link.down_since_ms == 3
    for lane in ("control", "data"):
        link.attach(channel(lane), one(1, 1))
    link.take_down(9)
    link.take_down(10)
    assert link.down_since_ms == 9


class Crossing:
    """Members 1 and 2 dial each other at once; each step of it happens in some order, as it may on a network."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.links = {side: Link(NodeId(3 - side), "127.0.0.1:7500", now_ms=0) for side in (1, 2)}
        self.channels: dict[tuple[int, int, str], Any] = {}  # (side, dialler, lane)
        self.closed: set[tuple[int, int, str]] = set()
        lanes = [(dialler, lane) for dialler in (1, 2) for lane in ("control", "data")]
        self.pending = [("prove", 3 - dialler, dialler, lane) for dialler, lane in lanes]  # the acceptor comes first

    def run(self) -> None:
        while self.pending:
            what, side, dialler, lane = self.pending.pop(self.rng.randrange(len(self.pending)))
            (self.prove if what == "prove" else self.end)(side, dialler, lane)

    def prove(self, side: int, dialler: int, lane: Any) -> None:
        link, dial = self.links[side], Dial(NodeId(dialler), 1, 1)
        if side != dialler:
            self.pending.append(("prove", dialler, dialler, lane))
        if (side, dialler, lane) in self.closed or link.is_stale(lane, dial):
            self.close(side, dialler, lane)
            return
        if link.is_newer(dial):
            link.take_down(0)
        made = self.channels[side, dialler, lane] = channel(lane)
        made.abort = lambda: self.close(side, dialler, lane)
        link.attach(made, dial)

    def close(self, side: int, dialler: int, lane: str) -> None:
        """This side closes the connection; the other hears of it later, and a dialler gives up both of its lanes."""
        if (side, dialler, lane) in self.closed:
            return
        self.closed.add((side, dialler, lane))
        self.pending.append(("end", 3 - side, dialler, lane))
        if side == dialler:
            self.pending += [("end", side, dialler, name) for name in ("control", "data")]

    def end(self, side: int, dialler: int, lane: str) -> None:
        found = self.channels.get((side, dialler, lane))
        if found is not None and self.links[side].owns(found):
            self.links[side].take_down(0)
        self.close(side, dialler, lane)


def test_dials_that_cross_settle_on_the_smaller_ids_in_whatever_order() -> None:
    rng = random.Random(3)
    for _ in range(5_000):
        crossing = Crossing(rng)
        crossing.run()
        for link in crossing.links.values():
            assert link.is_connected
            assert link.is_of(NodeId(1), 1)
