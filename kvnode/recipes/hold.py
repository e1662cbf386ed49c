"""Holding a lock, or leading, for as long as a block runs: ``async with hold.lock(kv, "deploy") as held``.

The block begins when the name is held. While it runs the lease is renewed (`kvnode.recipes.kept_lease`); it is not
interrupted when the lock is lost, but can know: `Held.standing`, `Held.lost`. When the block is left the name is let
go; where it was lost meanwhile, that raises.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from kvnode.clocks.system import SystemClock
from kvnode.errors import Fenced, KvnodeError, LeaseNotFound
from kvnode.kv.interface import KV, Options, as_bytes
from kvnode.kv.requests import Campaign, Fence, LeaseKeepAlive, LeaseRevoke
from kvnode.recipes import lock as queue
from kvnode.recipes.kept_lease import PATIENCE_MS_MAX, KeptLease, Standing
from kvnode.recipes.lock import REVOKE_MS, Place

TTL_MS_DEFAULT = 30_000

_boot_ms = SystemClock().monotonic_ms


class Held:
    """A name that is held. Its token goes with every write that the name protects.

    ``kv.execute(Command(Put(b"state", b"1"), fence=held.fence))``
    """

    def __init__(self, place: Place, ttl_ms: int, kept: KeptLease) -> None:
        self.name = place.name
        self.value = place.value
        self.lease = place.lease
        self.token = place.token
        self.ttl_ms = ttl_ms
        self._kept = kept

    @property
    def fence(self) -> Fence:
        """Lets a write pass only while the name is held under this token."""
        return Fence(self.name, self.token)

    @property
    def standing(self) -> Standing:
        """Sure, in doubt or lost, as of now: whoever is not sure should not begin anything."""
        return self._kept.standing

    @property
    def why_lost(self) -> str:
        """In words; "" while it is not."""
        return self._kept.why_lost

    async def lost(self) -> str:
        """Wait until it is lost; why."""
        return await self._kept.lost()


def lock(
    kv: KV,
    name: str | bytes,
    *,
    ttl_ms: int = TTL_MS_DEFAULT,
    wait_ms: int = 0,
    owner: str | bytes = b"",
    now_ms: Callable[[], int] = _boot_ms,
) -> AbstractAsyncContextManager[Held]:
    """Hold a lock while the block runs. An election is the same: `owner` is then what the leader announces.

    Raises: LockHeld if others held it for all of `wait_ms`; on leaving the block, Fenced if it was lost meanwhile.
    """
    campaign = Campaign(as_bytes(name), ttl_ms, as_bytes(owner))

    def acquire() -> Awaitable[Place]:
        return queue.acquire(kv, campaign, wait_ms=wait_ms, now_ms=now_ms)

    return holding(kv, acquire, ttl_ms, now_ms=now_ms)


@asynccontextmanager
async def holding(
    kv: KV,
    acquire: Callable[[], Awaitable[Place]],
    ttl_ms: int,
    *,
    now_ms: Callable[[], int] = _boot_ms,
) -> AsyncIterator[Held]:
    """Hold what `acquire` gets. Raises: what that raises; Fenced, on leaving, if it was lost meanwhile."""
    sent_ms = now_ms()
    place = await acquire()

    async def renew(timeout_ms: int) -> None:
        await kv.execute(LeaseKeepAlive(place.lease), Options(timeout_ms=timeout_ms))

    try:
        if now_ms() - sent_ms >= ttl_ms // 3:  # it was waited for: what may be believed counts from a fresh sending
            sent_ms = now_ms()
            await renew(min(ttl_ms // 2, PATIENCE_MS_MAX))
    except BaseException:
        await _let_go(kv, place.lease)
        raise
    kept = KeptLease(renew, ttl_ms, sent_ms, now_ms=now_ms)
    keeping = asyncio.ensure_future(kept.keep())
    try:
        yield Held(place, ttl_ms, kept)
    except BaseException:
        keeping.cancel()
        await _let_go(kv, place.lease)
        raise
    is_lost = kept.standing is Standing.LOST
    keeping.cancel()
    was_held = await _let_go(kv, place.lease)
    if is_lost or not was_held:
        why = kept.why_lost or "its lease was ended by another"
        raise Fenced(f"{place.name.decode(errors='replace')!r} was lost while it was held: {why}", token=place.token)


async def _let_go(kv: KV, lease: int) -> bool:
    """End the lease, also when cancelled; False: it had ended already. Where nobody answers it ends by itself."""
    revoking = asyncio.ensure_future(kv.execute(LeaseRevoke(lease), Options(timeout_ms=REVOKE_MS)))
    try:
        await asyncio.shield(revoking)
    except LeaseNotFound:
        return False
    except KvnodeError:
        return True
    except asyncio.CancelledError:
        revoking.add_done_callback(lambda done: done.cancelled() or done.exception())
        raise
    return True
