"""Ranges that are read in pages, while others write: one revision, told as it was."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest

from kvnode.api.etcd.context import LONG_ANSWERS_MAX
from kvnode.api.etcd.kv_messages import RangeRequest, SortOrder, SortTarget
from kvnode.api.etcd.ranges import read
from kvnode.kv.interface import DEFAULT_OPTIONS, Options
from kvnode.kv.keys import prefix_end
from kvnode.kv.requests import Put, Range, Request
from tests.api.etcd.local_door import door_of, serving
from tests.client.local_node import LocalNode

KEYS = 10
BOUNDS = (b"k/", prefix_end(b"k/"))


class Busy(LocalNode):
    """Somebody writes after each page that is read."""

    async def execute(self, request: Request, options: Options = DEFAULT_OPTIONS) -> Any:  # type: ignore[override]
        reply = await super().execute(request, options)
        if isinstance(request, Range):
            await super().execute(Put(b"k/%02d" % 3, b"newer"))
            await super().execute(Put(b"k/more%d" % reply.revision, b"new"))
        return reply


async def filled(node: LocalNode) -> int:
    for number in range(KEYS):
        await LocalNode.execute(node, Put(b"k/%02d" % number, b"%d" % (number % 4)))
    return node.revision


@pytest.mark.parametrize("page_items", [1, 3, 100])
@pytest.mark.parametrize("limit", [0, 1, 7, KEYS, 50])
async def test_pages_are_of_one_revision(page_items: int, limit: int) -> None:
    node = Busy()
    revision = await filled(node)
    found = await read(node, RangeRequest(limit=limit), BOUNDS, DEFAULT_OPTIONS, page_items)
    shown = min(limit or KEYS, KEYS)
    assert [kv.key for kv in found.items] == [b"k/%02d" % number for number in range(shown)]
    assert all(kv.mod_revision <= revision for kv in found.items)
    assert (found.total, found.more, found.revision) == (KEYS, shown < KEYS, revision)


async def test_a_sort_looks_at_all_pages() -> None:
    node = Busy()
    await filled(node)
    request = RangeRequest(limit=3, sort_order=SortOrder.DESCEND, sort_target=SortTarget.VALUE, keys_only=True)
    found = await read(node, request, BOUNDS, DEFAULT_OPTIONS, 2)
    assert {kv.key for kv in found.items} <= {b"k/%02d" % number for number in range(KEYS) if number % 4 >= 2}
    assert (found.total, found.more) == (KEYS, True)


async def test_what_is_current_is_told_with_the_revision_it_was_read_at() -> None:
    """Who watches from the next one on misses nothing: a newer one in the header would leave a gap."""
    node = Busy()
    revision = await filled(node)
    async with serving(node) as server, door_of(server) as door:
        asked = {"key": base64.b64encode(BOUNDS[0]).decode(), "range_end": base64.b64encode(BOUNDS[1]).decode()}
        for more in ({}, {"limit": 2}, {"count_only": True}, {"serializable": True, "sort_target": "MOD"}):
            before = node.revision
            reply = await door.ask("POST", "/v3/kv/range", asked | more)
            assert reply.json["header"]["revision"] == str(before), more
        past = await door.ask("POST", "/v3/kv/range", asked | {"revision": str(revision)})
        assert int(past.json["header"]["revision"]) > revision, "of the past etcd tells the store's revision"
        assert past.json["count"] == str(KEYS)


class Crowded(LocalNode):
    """Counts the long answers that are read at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.under_way = self.most = 0

    async def execute(self, request: Request, options: Options = DEFAULT_OPTIONS) -> Any:  # type: ignore[override]
        if not isinstance(request, Range) or request.start == BOUNDS[0]:
            return await super().execute(request, options)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await asyncio.sleep(0)
        self.under_way -= 1
        return await super().execute(request, options)


async def test_so_many_answers_are_long_at_a_time() -> None:
    node = Crowded()
    await filled(node)
    asked = {"key": base64.b64encode(BOUNDS[0]).decode(), "range_end": base64.b64encode(BOUNDS[1]).decode()}
    async with serving(node, page_items=2, page_items_max=2) as server, door_of(server) as door:
        replies = await asyncio.gather(*(door.ask("POST", "/v3/kv/range", asked) for _ in range(20)))
    assert {reply.json["count"] for reply in replies} == {str(KEYS)}
    assert {len(reply.json["kvs"]) for reply in replies} == {KEYS}
    assert 1 <= node.most <= LONG_ANSWERS_MAX
