"""Lamport times that come from members and from clients: the ones are followed, the others believed within reason."""

from __future__ import annotations

import asyncio

from kvnode.clocks.lamport import JUMP_MAX, LamportClock
from kvnode.clocks.version_vector import VersionVector
from kvnode.gossip.event import Event, TimelineLimits
from kvnode.gossip.timeline import Timeline
from kvnode.gossip.timeline_rows import EventsDelta, encode_delta
from kvnode.ids import NodeId
from kvnode.node.available_log import DurableRows
from kvnode.node.story import Story
from tests.node.test_available_log import RecordingStore
from tests.node.test_eventual import ORIGIN, WallClock
from tests.node.test_log_writer import ManualWorker

FAR = 3 * JUMP_MAX


def _raise(error: BaseException) -> None:
    raise error


def make_story() -> Story:
    return Story(
        Timeline(ORIGIN, 1, TimelineLimits(), is_founder=True),
        LamportClock(),
        DurableRows(ManualWorker(), RecordingStore(), _raise),
        limits=TimelineLimits(),
        clock=WallClock(),
        loop=asyncio.get_running_loop(),
        save_ceiling=lambda ceiling, then: then(),
        on_news=lambda: None,
    )


async def test_a_new_member_takes_part_in_a_timeline_that_is_far_ahead() -> None:
    """Any client can send a cluster's clock ahead, a jump at a time; who comes later must not be shut out by it."""
    story = make_story()
    event = Event(NodeId(2), 1, 1, 1, FAR, 0, "user", b"{}", True)
    page = encode_delta(EventsDelta((event,)))
    for _ in range(4):
        story.observe(FAR)
        story.merge(page, NodeId(2), FAR)
    assert story.timeline.vector == VersionVector({event.origin: 1})
    assert story.time() >= FAR


async def test_a_client_does_not_send_the_clock_ahead_by_more_than_a_jump() -> None:
    story = make_story()
    assert not story.observe_client(FAR)
    assert story.time() < JUMP_MAX
