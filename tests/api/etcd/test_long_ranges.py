"""What a range shows of very many items is what it would show of them at once, and others have their turn meanwhile."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Coroutine
from typing import Any, TypeVar

import msgspec
import pytest

from kvnode.api.etcd.kv import AT_ONCE, shown
from kvnode.api.etcd.kv_messages import RangeRequest, RangeResponse, SortOrder, SortTarget
from kvnode.api.etcd.ranges import AT_ONCE as SORTED_AT_ONCE
from kvnode.api.etcd.ranges import chosen, chosen_in_turns
from kvnode.kv.requests import KeyValue

Result = TypeVar("Result")


def items(count: int) -> list[KeyValue]:
    chance = random.Random(7)
    return [
        KeyValue(b"%06d" % n, b"%d" % chance.randrange(count), chance.randrange(count), n + 1, chance.randrange(9))
        for n in range(count)
    ]


async def turns_during(work: Coroutine[Any, Any, Result]) -> tuple[Result, int]:
    """Also how often somebody else had a turn meanwhile."""
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    result = await work
    task.cancel()
    return result, turns


@pytest.mark.parametrize(
    "request_",
    [
        RangeRequest(sort_target=SortTarget.VALUE),
        RangeRequest(sort_target=SortTarget.MOD, sort_order=SortOrder.DESCEND),
        RangeRequest(sort_order=SortOrder.DESCEND, limit=9_000),
        RangeRequest(sort_target=SortTarget.VERSION, sort_order=SortOrder.DESCEND, min_create_revision=5_000),
        RangeRequest(min_create_revision=1_000, limit=10),
        RangeRequest(max_mod_revision=3, limit=100),
        RangeRequest(sort_target=SortTarget.CREATE, max_create_revision=-1),
    ],
)
async def test_very_many_items_are_put_in_order_bit_by_bit(request_: RangeRequest) -> None:
    found = items(3 * SORTED_AT_ONCE + 1)
    result, turns = await turns_during(chosen_in_turns(request_, found))
    assert result == chosen(request_, found)
    assert turns >= 3


async def test_very_many_items_are_rendered_bit_by_bit() -> None:
    found = items(3 * AT_ONCE + 1)
    kvs, turns = await turns_during(shown(found))
    assert [int(kv["mod_revision"]) for kv in json.loads(bytes(kvs))] == list(range(1, len(found) + 1))
    assert turns >= 3
    large = [KeyValue(b"k", bytes(1 << 20), 1, 1, 1)] * 5
    kvs, turns = await turns_during(shown(large))
    assert len(json.loads(bytes(kvs))) == len(large)
    assert turns >= 2


async def test_no_items_are_left_out() -> None:
    assert msgspec.json.encode(RangeResponse(kvs=await shown([]))) == b"{}"
