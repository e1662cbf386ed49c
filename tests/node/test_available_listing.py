"""A listing of very many keys leaves the loop to others meanwhile."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from kvnode.node.available import AvailablePlane
from kvnode.node.available_answers import SHOWN_AT_ONCE
from kvnode.wire.frames import FEATURE_LEVEL
from tests.node.test_eventual import ORIGIN, Bench, WallClock


async def test_a_long_listing_goes_in_slices() -> None:
    bench = Bench()
    count = 3 * SHOWN_AT_ONCE
    for number in range(count):
        bench.keyspace.put(b"%05d" % number, b"v", context=None, time=0)
    bench.keyspace.made_durable(bench.keyspace.take_changes().mark)
    story: Any = SimpleNamespace(observe=lambda seen: True, observe_client=lambda seen: True)
    other: Any = None
    plane = AvailablePlane(
        node=ORIGIN.member,
        cluster_id=1,
        rows=other,
        eventual=bench.eventual,
        story=story,
        driver=other,
        clock=WallClock(),
        loop=asyncio.get_running_loop(),
        describe=dict,
        feature_level=FEATURE_LEVEL,
        feature_levels=dict,
        reaches_quorum=lambda: True,
        on_failed=lambda error: None,
    )
    listing = asyncio.ensure_future(plane.ap_list(limit=count))
    turns = 0
    while not listing.done():
        turns += 1
        await asyncio.sleep(0)
    page = await listing
    assert (len(page.items), page.more) == (count, False)
    assert turns >= count // SHOWN_AT_ONCE
