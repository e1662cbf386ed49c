"""Holders: clients that take locks, renew them for a while, and let them go, or forget them, or come too late.

Their locks are queues of the store (`kvnode.recipes.lock`), so what happened stands in the applied log. Judged at the
end: no lease ended early by true time, none came back (`kvnode.check.leases`); whoever was told that it holds a lock
was the first in its queue at that revision, under the token it was told, and tokens grow from holder to holder; what
was written behind a lock's fence was written by its holder of that moment.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kvnode.check import leases as lease_check
from kvnode.check.leases import LeaseEvent
from kvnode.errors import Fenced, KvnodeError, LeaseNotFound, LockHeld, Rejected, Timeout, TryAgain, Unknown
from kvnode.ids import NodeId
from kvnode.kv.interface import DEFAULT_OPTIONS, KV, Options, WatchStream
from kvnode.kv.requests import Campaign, Command, Fence, LeaseKeepAlive, LeaseRead, LeaseRevoke, LeaseUpkeep, Put, Watch
from kvnode.machine.leases import queue_of
from kvnode.recipes import lock
from kvnode.recipes.lock import Place
from kvnode.sim.runtime.applied import AppliedLog

if TYPE_CHECKING:
    from kvnode.sim.runtime.workload import Workload

PREFIX = b"lock/"
GUARDED = PREFIX + b"guarded-"
NAMES = (PREFIX + b"a", PREFIX + b"b")
TTLS_MS = (1_000, 1_500, 4_000)


@dataclass
class Told:
    """What the holders of a run were told."""

    events: list[LeaseEvent] = field(default_factory=list)
    held: list[Place] = field(default_factory=list)


class AnyMember(KV):
    """The store by way of one member at a time, noting what concerns leases."""

    def __init__(self, load: Workload, told: Told, members: Sequence[NodeId]) -> None:
        self.members = members
        self.member = members[0]
        self._load = load
        self._told = told

    async def execute(self, request: Any, options: Options = DEFAULT_OPTIONS) -> Any:
        call = self._load.now_ns()
        status, reply = "info", None
        try:
            async with asyncio.timeout(options.timeout_ms / 1e3 + self._load.patience_s):
                reply = await self._load.ask(self.member, request, options, lambda: None)
            status = "ok"
        except (TryAgain, Rejected):
            status = "fail"
            raise
        except Unknown:
            raise
        except TimeoutError:
            raise Timeout("the node is silent") from None
        finally:
            self._note(request, reply, call, status)
        return reply

    def watch(self, request: Watch, options: Options = DEFAULT_OPTIONS) -> WatchStream:
        raise NotImplementedError("holders wait by long poll; those who watch are `watchers`")

    def _note(self, request: Any, reply: Any, call: int, status: Any) -> None:
        ret = None if status == "info" else self._load.now_ns()
        match request:
            case Campaign() if reply is not None:
                self._add(LeaseEvent(kind="grant", lease=reply.id, call=call, ret=ret, ttl_ms=request.ttl_ms))
            case LeaseKeepAlive(id=lease):
                self._add(LeaseEvent(kind="keepalive", lease=lease, call=call, ret=ret, status=status))
            case LeaseRevoke(id=lease):
                self._add(LeaseEvent(kind="revoke", lease=lease, call=call, ret=ret, status=status))
            case _:
                pass

    def _add(self, event: LeaseEvent) -> None:
        self._told.events.append(event)


async def live(load: Workload, told: Told, rng: random.Random, members: Sequence[NodeId]) -> None:
    """One holder: wants a lock, has it or not, again and again until the run is over."""
    kv = AnyMember(load, told, members)
    while not load.is_over:
        await asyncio.sleep(rng.expovariate(2.0))
        kv.member = rng.choice(members)
        campaign = Campaign(rng.choice(NAMES), rng.choice(TTLS_MS), b"%d" % load.number())
        try:
            place = await lock.acquire(
                kv,
                campaign,
                wait_ms=rng.choice((0, 300, 3_000)),
                now_ms=lambda: load.now_ns() // 1_000_000,
                options=load.options(rng),
                is_wanted=lambda: not load.is_over,
            )
        except (LockHeld, LeaseNotFound, TryAgain, Unknown):
            continue
        told.held.append(place)
        await _hold(load, kv, campaign.ttl_ms, place, rng)
        if rng.random() < 0.5:
            await asyncio.sleep(rng.expovariate(1.0))
            await _write(load, kv, place, rng)  # it may believe that it still holds the lock


async def _hold(load: Workload, kv: AnyMember, ttl_ms: int, place: Place, rng: random.Random) -> None:
    for _ in range(rng.choice((0, 1, 3, 8))):
        await asyncio.sleep(ttl_ms / 1e3 * rng.choice((0.1, 0.33, 0.33, 0.6)))
        if load.is_over:
            return
        if rng.random() < 0.5:
            kv.member = rng.choice(kv.members)
        try:
            if rng.random() < 0.2:
                left = await kv.execute(LeaseRead(place.lease), load.options(rng))
                assert left.remaining_ms <= 2 * left.ttl_ms, ("more than it ever had", left)
            await lock.keep(kv, place.name, place.token, load.options(rng))
            await _write(load, kv, place, rng)
        except (Fenced, LeaseNotFound):
            return
        except KvnodeError:
            continue
    if rng.random() < 0.7:
        try:
            await lock.release(kv, place.name, place.token, load.options(rng))
        except KvnodeError:
            return  # it ends by itself


async def _write(load: Workload, kv: AnyMember, place: Place, rng: random.Random) -> None:
    """What the lock is for: a write that only its holder may make."""
    fence = Fence(place.name, place.token)
    try:
        await kv.execute(Command(Put(GUARDED + place.name, b"%d" % place.token), fence=fence), load.options(rng))
    except KvnodeError:
        return


def judge(told: Told, applied: AppliedLog, *, drift: float) -> None:
    """Raises: AssertionError. `drift`: no clock ran faster than 1 / (1 − drift)."""
    made: dict[bytes, dict[int, int]] = {}  # name → token → revision at which that place was left; 0: it still stands
    events = list(told.events)
    for step, at_s in zip(applied.steps, applied.at_s, strict=True):
        for event in step.events:
            kv = event.kv
            before = event.previous
            if kv.version == 1 and kv.lease and (name := queue_of(kv.key, kv.lease)) is not None:
                tokens = made.setdefault(name, {})
                assert not tokens or kv.create_revision > max(tokens), ("a token that is no greater", name, kv)
                tokens[kv.create_revision] = 0
            elif not kv.version and before is not None and before.lease:
                name = queue_of(kv.key, before.lease)
                assert name is not None, kv
                made[name][before.create_revision] = kv.mod_revision
                if isinstance(step.request, LeaseUpkeep):
                    moment = int(at_s * 1e9)
                    gone = LeaseEvent(kind="gone", lease=before.lease, call=moment, ret=moment, key=kv.key.decode())
                    events.append(gone)
            elif kv.key.startswith(GUARDED):
                left = made[kv.key.removeprefix(GUARDED)]
                holder = min(token for token, revision in left.items() if not revision)
                assert int(kv.value) == holder, ("a write behind the fence of another", kv, left)
    for place in told.held:
        left = made[place.name]
        assert place.token in left, ("held under a token that was never made", place)
        before_it = {token: revision for token, revision in left.items() if token < place.token}
        assert all(0 < revision <= place.revision for revision in before_it.values()), ("not the first", place, left)
        assert not 0 < left[place.token] <= place.revision, ("told to hold what was gone", place, left)
    problems = lease_check.check(events, drift=drift)
    assert not problems, problems
