"""Pairs of lanes: complete or nothing, newer replaces older, latecomers are stale."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from kvnode.ids import NodeId
from kvnode.transport.link import Link


def channel(lane: str) -> Any:
    made = SimpleNamespace(lane=lane, aborted=0)

    def abort() -> None:
        made.aborted += 1

    made.abort = abort
    return made


def test_a_pair_counts_once_both_lanes_are_there() -> None:
    link = Link(NodeId(2), "127.0.0.1:7502")
    link.refused = "once"
    control, data = channel("control"), channel("data")
    assert not link.attach(control, (1, 1))
    assert (link.is_connected, link.epoch, link.settled.is_set()) == (False, 0, False)
    assert link.attach(data, (1, 1))
    assert (link.is_connected, link.epoch, link.settled.is_set(), link.refused) == (True, 1, True, "")
    assert link.owns(data)
    assert not link.owns(channel("data"))


def test_dials_are_ordered_by_start_of_the_dialler_then_number() -> None:
    link = Link(NodeId(2), "127.0.0.1:7502")
    link.attach(channel("control"), (2, 5))
    assert link.is_stale("control", (2, 5))  # that lane is there
    assert not link.is_stale("data", (2, 5))
    assert link.is_stale("data", (2, 4))
    assert link.is_stale("data", (1, 9))
    for newer in ((2, 6), (3, 1)):
        assert link.is_newer(newer)
    assert not link.is_newer((2, 5))


def test_taking_down_cuts_both_and_wakes_whoever_waits() -> None:
    link = Link(NodeId(2), "127.0.0.1:7502")
    lanes = [channel("control"), channel("data")]
    for made in lanes:
        link.attach(made, (1, 1))
    link.take_down()
    link.take_down()
    assert [made.aborted for made in lanes] == [1, 1]
    assert link.went_down.is_set()
    assert not link.is_connected
    assert link.is_stale("data", (1, 0))
    assert not link.attach(channel("data"), (1, 2))
    link.take_down()
    assert link.settled.is_set()  # the lane that waited for the other one goes on, and sees that it is not owned
    assert link.epoch == 1
