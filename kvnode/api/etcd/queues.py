"""The queue below a name, in which etcd's locks and elections stand: keys `name/<lease in hex>`, oldest first.

Whoever has the oldest key below `name/` holds the name. The layout is that of the store's own locks
(`kvnode.recipes.lock`), so both stand in the same queue; but where those count only places of the queue, here *every*
key below `name/` counts, as in etcd. A place that waits looks after the one before it and after itself, no other: when
a key goes, one waiter wakes.

Looks are cheap: the table of queues names the one before, and only who is the first there looks at all keys below the
name. The first look is at what this node has applied, its own key included: older keys can only go from then on.

Source: etcd's `concurrency` package: `Mutex`, `Election`, `waitDeletes`; its services `v3lock` and `v3election`.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec

from kvnode.api.etcd import ranges
from kvnode.api.etcd.context import Context
from kvnode.api.etcd.errors import Code, EtcdError, translated
from kvnode.api.etcd.kv_messages import RangeRequest
from kvnode.errors import KvnodeError, NotReady, TryAgain, Unknown
from kvnode.kv.interface import LOCALLY, Options
from kvnode.kv.keys import prefix_end
from kvnode.kv.requests import (
    Await,
    Compare,
    Delete,
    KeyValue,
    LeaseGrant,
    LeaseRevoke,
    Operation,
    Put,
    QueueRead,
    Range,
    RangeReply,
    Txn,
    TxnReply,
)
from kvnode.machine.leases import queue_key

LEASE_MS = 60_000
"""Who names no lease stands under a new one of so long, which nobody renews."""

LOOK_MS = 60_000
"""Who waits looks again after so long, whatever it was told of: what told of a change may be compacted by then."""

RETRY_S = 0.05
GIVE_UP_MS = 2_000
TAIL_BYTES_MAX = 18
"""A slash, and a lease in hex with its sign."""

_Handler = TypeVar("_Handler", bound=Callable[..., Awaitable[Any]])


class Place(msgspec.Struct, frozen=True):
    """A place in the queue for a name."""

    name: bytes
    key: bytes
    lease: int
    token: int  # create revision of its key
    value: bytes  # which the key had when it was entered
    revision: int  # of the store then
    is_new: bool  # else another call has entered it, and may have been told that it holds the name: it stays
    is_lease_own: bool  # begun for it


def unknown_to_etcd(handler: _Handler) -> _Handler:
    """etcd's services are clients of its own: what is refused there they tell as code 2, except that nobody leads."""

    @functools.wraps(handler)
    async def told(context: Context, request: Any) -> Any:
        try:
            return await handler(context, request)
        except (EtcdError, KvnodeError) as error:
            refused = error if isinstance(error, EtcdError) else translated(error)
            if refused.code is Code.UNAVAILABLE:
                raise
            raise EtcdError(Code.UNKNOWN, refused.message) from error

    return told  # type: ignore[return-value] # same signature


async def enter(context: Context, name: bytes, lease: int, value: bytes) -> Place:
    """Stand in the queue; whose lease stands there already keeps its place. Raises: EtcdError, KvnodeError."""
    is_own = not lease
    if is_own:
        lease = (await context.kv.execute(LeaseGrant(LEASE_MS), context.options())).id
    key = queue_key(name, lease)
    entering = asyncio.ensure_future(
        guarded(context, key, 0, Put(key, value, lease), otherwise=(Range(key),)),
    )
    try:
        return _place(await asyncio.shield(entering), name, key, lease, value, is_own=is_own)
    except BaseException as error:
        if isinstance(error, asyncio.CancelledError):  # what is under way may yet come about
            await asyncio.wait([entering])
        if is_own:
            await _bounded(context.kv.execute(LeaseRevoke(lease), Options(timeout_ms=GIVE_UP_MS)))
        elif not entering.cancelled() and entering.exception() is None and entering.result().succeeded:
            await give_up(context, _place(entering.result(), name, key, lease, value, is_own=False))
        raise


def _place(reply: TxnReply, name: bytes, key: bytes, lease: int, value: bytes, *, is_own: bool) -> Place:
    if reply.succeeded:
        return Place(name, key, lease, reply.revision, value, reply.revision, is_new=True, is_lease_own=is_own)
    found = reply.results[0]
    assert isinstance(found, RangeReply), found
    kv = found.items[0]  # it exists: the compare has said so
    return Place(name, key, lease, kv.create_revision, kv.value, reply.revision, is_new=False, is_lease_own=is_own)


async def guarded(
    context: Context, key: bytes, token: int, operation: Operation, *, otherwise: tuple[Operation, ...] = ()
) -> TxnReply:
    """Carry something out if the key has that create revision (0: if there is none)."""
    condition = Compare(key, "create_revision", "=", token)
    return await context.kv.execute(Txn((condition,), (operation,), otherwise), context.options())


async def turn(context: Context, place: Place, lost: EtcdError) -> int:
    """Wait until the place is the oldest; the revision at which it was seen to be. Raises `lost` if it has gone."""
    options = LOCALLY
    while True:
        try:
            before, own, revision = await _look(context, place, options)
            if own is None:
                raise lost
            if before is None:
                return revision
            await _change(context, before, own)
        except (TryAgain, Unknown) as error:
            if isinstance(error, NotReady):  # this node stops, and waits for us
                raise
            await asyncio.sleep(RETRY_S)
        options = context.options()


async def _look(context: Context, place: Place, options: Options) -> tuple[KeyValue | None, KeyValue | None, int]:
    """The youngest key below the name that is older than the place; the place's own, if it is still there."""
    if 0 < len(place.name) <= context.config.limits.key_bytes_max - TAIL_BYTES_MAX:
        queue = await context.kv.execute(QueueRead(place.name, lease=place.lease), options)
        if len(queue.waiting) > 1 and queue.waiting[1].create_revision == place.token:
            return queue.waiting[0], queue.waiting[1], queue.revision
    found = await _below(context, place.name, options)
    own = next((kv for kv in found.items if kv.key == place.key and kv.create_revision == place.token), None)
    older = (kv for kv in found.items if kv.create_revision < place.token)
    return max(older, key=_age, default=None), own, found.revision


def _age(kv: KeyValue) -> int:
    return kv.create_revision


async def _below(context: Context, name: bytes, options: Options) -> ranges.Found:
    """All keys below a name, without their values."""
    below = name + b"/"
    request = RangeRequest(key=below, range_end=prefix_end(below), keys_only=True)
    bounds = request.key, request.range_end
    return await ranges.read(context.kv, request, bounds, options, context.config.limits.page_items_max)


async def _change(context: Context, *watched: KeyValue) -> None:
    """Until one of them is changed or deleted, or it is time to look again."""
    options = context.options()
    waits = [
        asyncio.ensure_future(context.kv.execute(Await(kv.key, kv.mod_revision, LOOK_MS), options)) for kv in watched
    ]
    try:
        done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for each in done:
            each.result()
    finally:
        for each in waits:
            each.cancel()
        await asyncio.gather(*waits, return_exceptions=True)


async def give_up(context: Context, place: Place) -> None:
    """Leave the queue, as far as that is possible now; else the place ends with its lease."""
    options = Options(timeout_ms=GIVE_UP_MS)
    if place.is_lease_own:
        await _bounded(context.kv.execute(LeaseRevoke(place.lease), options))
        return
    condition = Compare(place.key, "create_revision", "=", place.token)
    await _bounded(context.kv.execute(Txn((condition,), (Delete(place.key),)), options))


async def _bounded(leaving: Awaitable[object]) -> None:
    """Goes on when it is cancelled."""
    task = asyncio.ensure_future(leaving)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    await asyncio.wait([task])


async def holder(context: Context, name: bytes, options: Options) -> tuple[KeyValue | None, int]:
    """The oldest key below a name, and the store's revision when it was that."""
    found = await _below(context, name, options)
    oldest = min(found.items, key=_age, default=None)
    if oldest is None:
        return None, found.revision
    read = await context.kv.execute(Range(oldest.key, revision=found.revision), LOCALLY)
    return read.items[0], found.revision
