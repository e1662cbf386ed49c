"""Reading a range as etcd does: of the interval what passes the filters, sorted, cut to the limit.

The store has pages in the order of keys, and no filters. So without filter or sort as many pages are read as the limit
needs; with one, all of them, at one revision.
"""

from __future__ import annotations

import asyncio
import heapq
import operator
from collections.abc import Awaitable, Callable
from itertools import chain, islice
from typing import Any, NamedTuple

import msgspec

from kvnode.api.etcd.errors import Code, EtcdError, invalid
from kvnode.api.etcd.kv_messages import RangeRequest, SortOrder, SortTarget
from kvnode.kv.interface import KV, LOCALLY, Options
from kvnode.kv.requests import KeyValue, Range

BYTES_MAX = 64 << 20
"""Keys and values of one answer. etcd's clients take 2 GiB; here a node must go on serving others."""

ITEM_BYTES = 128
"""What an item is counted as beside its key and value: of short ones there would be millions."""

AT_ONCE = 4_096
"""Items looked at, or put in order, without letting others have their turn."""

_SORT_KEYS: dict[SortTarget, Callable[[KeyValue], Any]] = {
    SortTarget.KEY: operator.attrgetter("key"),
    SortTarget.VERSION: operator.attrgetter("version"),
    SortTarget.CREATE: operator.attrgetter("create_revision"),
    SortTarget.MOD: operator.attrgetter("mod_revision"),
    SortTarget.VALUE: operator.attrgetter("value"),
}


def check_order(request: RangeRequest) -> None:
    """Raises: EtcdError for an order or target that there is not."""
    if type(request.sort_order) is not SortOrder or type(request.sort_target) is not SortTarget:
        raise invalid("invalid sort option")


def needs_all(request: RangeRequest) -> bool:
    """Whether what is shown depends on every key of the interval."""
    return _is_sorted(request) or _is_filtered(request)


def reads_keys_only(request: RangeRequest) -> bool:
    """Whether the values are not even needed to sort by."""
    return request.keys_only and request.sort_target is not SortTarget.VALUE


def _is_sorted(request: RangeRequest) -> bool:
    """By anything but the order that keys have anyway."""
    if request.sort_target is SortTarget.KEY:
        return request.sort_order is SortOrder.DESCEND
    return True


def _is_filtered(request: RangeRequest) -> bool:
    return bool(
        request.min_mod_revision
        or request.max_mod_revision
        or request.min_create_revision
        or request.max_create_revision
    )


def chosen(request: RangeRequest, items: list[KeyValue]) -> tuple[list[KeyValue], bool]:
    """(what is shown, whether the limit cut something) of the items of the interval."""
    if _is_filtered(request):
        items = [kv for kv in items if _passes(request, kv)]
    if _is_sorted(request):
        descending = request.sort_order is SortOrder.DESCEND
        items = sorted(items, key=_SORT_KEYS[request.sort_target], reverse=descending)
    if 0 < request.limit < len(items):
        return items[: request.limit], True
    return items, False


async def chosen_in_turns(request: RangeRequest, items: list[KeyValue]) -> tuple[list[KeyValue], bool]:
    """As `chosen`, of any number of items; others have their turn in between."""
    if len(items) <= AT_ONCE or not needs_all(request):
        return chosen(request, items)
    unlimited = msgspec.structs.replace(request, limit=0)
    runs: list[list[KeyValue]] = []
    for first in range(0, len(items), AT_ONCE):
        runs.append(chosen(unlimited, items[first : first + AT_ONCE])[0])
        await asyncio.sleep(0)
    count = sum(map(len, runs))
    wanted = min(request.limit, count) if request.limit > 0 else count
    merged = (
        heapq.merge(*runs, key=_SORT_KEYS[request.sort_target], reverse=request.sort_order is SortOrder.DESCEND)
        if _is_sorted(request)
        else chain.from_iterable(runs)
    )
    shown: list[KeyValue] = []
    while len(shown) < wanted:
        shown += islice(merged, min(AT_ONCE, wanted - len(shown)))
        await asyncio.sleep(0)
    return shown, wanted < count


def _passes(request: RangeRequest, kv: KeyValue) -> bool:
    return (
        request.min_mod_revision <= kv.mod_revision
        and (not request.max_mod_revision or kv.mod_revision <= request.max_mod_revision)
        and request.min_create_revision <= kv.create_revision
        and (not request.max_create_revision or kv.create_revision <= request.max_create_revision)
    )


async def _at_once() -> None:
    pass


class Found(NamedTuple):
    """What a range shows."""

    items: list[KeyValue]
    total: int  # keys in the interval, whatever the limit and the filters
    more: bool  # the limit cut something
    revision: int  # the store's, when it was read


async def read(
    kv: KV,
    request: RangeRequest,
    bounds: tuple[bytes, bytes],
    options: Options,
    page_items: int,
    *,
    on_long: Callable[[], Awaitable[object]] = _at_once,
) -> Found:
    """`on_long` is awaited before a second page is read: so many answers may be long at a time.

    Raises: KvnodeError; EtcdError if the answer is too large.
    """
    start, end = bounds
    revision = max(request.revision, 0)
    if request.count_only:
        counted = await kv.execute(Range(start, end, revision=revision, count_only=True), options)
        return Found([], counted.count, more=False, revision=counted.revision)
    is_whole = needs_all(request)
    limit = 0 if is_whole else max(request.limit, 0)
    keys_only = reads_keys_only(request)
    items: list[KeyValue] = []
    size = 0
    at, more = start, True
    while more and (not limit or len(items) < limit):
        wanted = min(limit - len(items), page_items) if limit else page_items
        page = await kv.execute(Range(at, end, limit=wanted, revision=revision, keys_only=keys_only), options)
        items += page.items
        size += sum(ITEM_BYTES + len(each.key) + len(each.value) for each in page.items)
        if size > BYTES_MAX:
            raise EtcdError(Code.RESOURCE_EXHAUSTED, f"the answer is larger than {BYTES_MAX} bytes: set a limit")
        revision = revision or page.revision
        options = LOCALLY  # what follows is read at a revision that is applied here
        more = page.more
        if more and at == start and (not limit or len(items) < limit):
            await on_long()
        if more:
            at = page.items[-1].key + b"\x00"
    count = len(items)
    if more:
        count = (await kv.execute(Range(start, end, revision=revision, count_only=True), LOCALLY)).count
    shown, is_cut = await chosen_in_turns(request, items)
    return Found(shown, count, more=is_cut or more, revision=revision)
