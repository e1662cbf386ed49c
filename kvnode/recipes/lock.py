"""Locks and elections: a fair queue for a name, whose first member holds it until it leaves or its lease ends.

Each who wants the name stands in its queue under a lease of its own (`Campaign`). The first holds it; each other waits
for the one before it only, so a lock that is let go wakes one waiter, not all of them. A place in the queue is kept
while it is waited for, and given up when the wait ends without the lock.

**The token fences, not the lock**: between being told that one holds a lock and acting on it any time may pass (a
pause, a slow network), in which the lease ends and another gets the lock. So whoever acts shows its token: it grows
with every holder, and a write with an older one is refused (`fence=`).

Source: fair queues as in etcd's and ZooKeeper's recipes; fencing as in Chubby's sequencers (Burrows, OSDI 2006).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

import msgspec

from kvnode.errors import Fenced, KvnodeError, LeaseNotFound, LockHeld, NotReady, Timeout, TryAgain, Unknown
from kvnode.kv.events import Cancelled, Changes
from kvnode.kv.interface import DEFAULT_OPTIONS, KV, LOCALLY, Options, WatchStream
from kvnode.kv.requests import (
    Await,
    Campaign,
    Command,
    KeyValue,
    LeaseKeepAlive,
    LeaseReply,
    LeaseRevoke,
    QueueRead,
    QueueReply,
)

_Reply = TypeVar("_Reply")

_NOBODY = (0, b"")
RETRY_S = 0.05
REVOKE_MS = 2_000


class Place(msgspec.Struct, frozen=True):
    """A place in the queue for a name."""

    name: bytes
    value: bytes  # who stands there, in its own words
    lease: int
    token: int  # greater for every later one; of the first in the queue it is the fencing token
    revision: int  # the store's, at which this was so


async def acquire(
    kv: KV,
    campaign: Campaign,
    *,
    wait_ms: int,
    now_ms: Callable[[], int],
    options: Options = DEFAULT_OPTIONS,
    is_wanted: Callable[[], bool] = lambda: True,
    named: Command | None = None,
) -> Place:
    """Stand in the queue until the name is held. `is_wanted` is asked now and then whether it still is.

    `named`: the campaign under a session's number or an Idempotency-Key. Who asks again stands at the same place, under
    the same token; so that place is not given up when its client has gone: the client may come back, by another node.

    Raises: LockHeld (detail: who holds it) after `wait_ms`; LeaseNotFound if the place was lost while waiting, as when
    no leader could be reached for longer than the TTL; Timeout if a place may be left behind; errors of `KV`.
    """
    if not wait_ms and named is None:  # a place that is given up at once would cost two entries of the log
        first = QueueRead(campaign.name, limit=1)
        if (await kv.execute(first, _local(options))).waiting:  # as far as this node knows
            queue = await kv.execute(first, options)
            if queue.waiting:
                raise held_by(_place(campaign.name, queue.waiting[0], queue.revision))
    until_ms = now_ms() + wait_ms
    begun = await kv.execute(campaign if named is None else named, options)
    try:
        place = await _wait(
            kv,
            campaign,
            begun,
            until_ms=until_ms,
            now_ms=now_ms,
            options=options,
            is_wanted=is_wanted,
            is_new=named is None,
        )
    except BaseException as error:
        # A named place may be held by now for a client that has asked again elsewhere, unless we saw it further behind.
        is_left = (named is None or (isinstance(error, LockHeld) and is_wanted())) and await _give_up(kv, begun.id)
        if not is_left and isinstance(error, TryAgain | LockHeld):
            raise Timeout("the place in the queue was not left in time: it may still come to hold the name") from error
        raise
    return place


async def _wait(
    kv: KV,
    campaign: Campaign,
    begun: LeaseReply,
    *,
    until_ms: int,
    now_ms: Callable[[], int],
    options: Options,
    is_wanted: Callable[[], bool],
    is_new: bool,
) -> Place:
    """`is_new`: the place did not exist before it was asked for."""
    renewed_ms, has_waited = now_ms(), False
    while True:
        left_ms = until_ms - now_ms()
        if has_waited and now_ms() - renewed_ms >= campaign.ttl_ms // 3:
            renewing_ms = now_ms()
            if await _or_later(kv.execute(LeaseKeepAlive(begun.id), options), left_ms) is not None:
                renewed_ms = renewing_ms
        queue = await _or_later(_look(kv, campaign.name, begun, options, is_new=is_new and not has_waited), left_ms)
        if queue is not None:
            if not queue.waiting or queue.waiting[-1].lease != begun.id:
                raise LeaseNotFound("the place in the queue was lost: its lease has ended")
            if len(queue.waiting) == 1 and is_wanted():
                if has_waited or not is_new:  # its holder has the whole TTL from now on
                    await kv.execute(LeaseKeepAlive(begun.id), options)
                return _place(campaign.name, queue.waiting[0], queue.revision)
            if left_ms <= 0 or not is_wanted():
                raise held_by(await holder(kv, campaign.name, options))
            before = queue.waiting[0]
            has_waited = True
            patience_ms = max(1, min(left_ms, campaign.ttl_ms // 3))
            await _or_later(kv.execute(Await(before.key, before.mod_revision, patience_ms), options), left_ms)


async def _look(kv: KV, name: bytes, begun: LeaseReply, options: Options, *, is_new: bool) -> QueueReply:
    """The place and the one before it, from here if that will do.

    A new place that is the first in any state is held from then on, which is since it was asked for. Whatever else is
    seen here may be out of date, or not be there yet.
    """
    look = QueueRead(name, lease=begun.id)
    if is_new:
        queue = await kv.execute(look, _local(options))
        if len(queue.waiting) == 1 and queue.waiting[0].lease == begun.id:
            return queue
    return await kv.execute(look, options)


async def _or_later(asked: Awaitable[_Reply], left_ms: int) -> _Reply | None:
    """None, after a moment, where no node answers now and there is time left: asking again does no harm.

    A node that stops is not asked again: it waits for us.
    """
    try:
        return await asked
    except (TryAgain, Unknown) as error:
        if left_ms <= 0 or isinstance(error, NotReady):
            raise
        await asyncio.sleep(RETRY_S)
        return None


async def _give_up(kv: KV, lease: int) -> bool:
    """Leave the queue, also when cancelled; where that is not known to be done the lease ends by itself."""
    revoking = asyncio.ensure_future(kv.execute(LeaseRevoke(lease), Options(timeout_ms=REVOKE_MS)))
    try:
        await asyncio.shield(revoking)
    except LeaseNotFound:
        return True
    except (KvnodeError, asyncio.CancelledError):
        revoking.add_done_callback(lambda done: done.cancelled() or done.exception())
        return False
    return True


async def holder(kv: KV, name: bytes, options: Options = DEFAULT_OPTIONS) -> Place | None:
    """Who holds the name."""
    queue = await kv.execute(QueueRead(name, limit=1), options)
    return _place(name, queue.waiting[0], queue.revision) if queue.waiting else None


async def places(kv: KV, name: bytes, options: Options = DEFAULT_OPTIONS) -> tuple[list[Place], QueueReply]:
    """The first page of the queue: its holder, then who waits."""
    queue = await kv.execute(QueueRead(name), options)
    return [_place(name, kv_, queue.revision) for kv_ in queue.waiting], queue


async def observe(stream: WatchStream, kv: KV, name: bytes) -> AsyncIterator[Place | Cancelled | int]:
    """Each holder of the name, beginning with the present one; a revision when there is none; why it ends, if it does.

    `stream` watches what lies below the name and has started. Who held it for a moment only may be left out.
    """
    told: tuple[int, bytes] | None = None
    look = True
    while True:
        if look:
            queue = await kv.execute(QueueRead(name, limit=1), LOCALLY)  # what a change was told of can be read here
            found = _place(name, queue.waiting[0], queue.revision) if queue.waiting else None
            if found is None and told != _NOBODY:
                told = _NOBODY
                yield queue.revision
            elif found is not None and told != (found.token, found.value):
                told = found.token, found.value
                yield found
        part = await anext(stream, None)
        if part is None:
            return
        if isinstance(part, Cancelled):
            yield part
            return
        look = isinstance(part, Changes)


async def keep(kv: KV, name: bytes, token: int, options: Options = DEFAULT_OPTIONS) -> LeaseReply:
    """Let the place with that token live for its whole TTL from now on. Raises: Fenced if it is gone."""
    place = await _place_of(kv, name, token, options)
    try:
        return await kv.execute(LeaseKeepAlive(place.lease), options)
    except LeaseNotFound:
        raise _fenced(name, token) from None


async def release(kv: KV, name: bytes, token: int, options: Options = DEFAULT_OPTIONS) -> int:
    """Leave the queue; the store's revision after it. Raises: Fenced if that place is gone already.

    What is known here will do to find its lease: whether that is still there is decided when it is revoked.
    """
    queue = await kv.execute(QueueRead(name, token=token), _local(options))
    lease = queue.waiting[0].lease if queue.waiting else (await _place_of(kv, name, token, options)).lease
    try:
        return (await kv.execute(LeaseRevoke(lease), options)).revision
    except LeaseNotFound:
        raise _fenced(name, token) from None


async def _place_of(kv: KV, name: bytes, token: int, options: Options) -> Place:
    queue = await kv.execute(QueueRead(name, token=token), options)
    if not queue.waiting:
        raise _fenced(name, token)
    return _place(name, queue.waiting[0], queue.revision)


def _local(options: Options) -> Options:
    """A look at what is applied on this node, without asking anybody."""
    return msgspec.structs.replace(options, consistency="stale")


def held_by(place: Place | None) -> LockHeld:
    if place is None:
        return LockHeld("the name was held until just now")
    owner = place.value.decode(errors="replace")
    return LockHeld("the name is held by another", owner=owner, token=place.token, lease=place.lease)


def _fenced(name: bytes, token: int) -> Fenced:
    return Fenced(f"{name.decode(errors='replace')!r} has no holder or waiter with token {token}", token=token)


def _place(name: bytes, kv: KeyValue, revision: int) -> Place:
    return Place(name, kv.value, kv.lease, kv.create_revision, revision)
