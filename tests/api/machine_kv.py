"""The real state machine behind the front door, without a cluster: every request is applied or answered at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from kvnode.config import LimitsSection
from kvnode.errors import LeaseNotFound
from kvnode.ids import Index
from kvnode.kv import keys
from kvnode.kv.events import Changes, ChangeSet, Event, Started
from kvnode.kv.interface import DEFAULT_OPTIONS, KV, Options
from kvnode.kv.requests import (
    Await,
    History,
    LeaseKeepAlive,
    LeaseList,
    LeaseRead,
    LeaseReadReply,
    LeaseReply,
    QueueRead,
    Range,
    RangeReply,
    Refusal,
    Watch,
)
from kvnode.machine.machine import StateMachine
from kvnode.machine.pace import Pace, in_one_go
from kvnode.node.request_path import _refused
from kvnode.storage.memory_backend import MemoryBackend


class MachineKV(KV):
    def __init__(self) -> None:
        self.machine = StateMachine(MemoryBackend(), LimitsSection())
        self.changed = asyncio.Event()
        self.seen: list[Any] = []
        self.applied: list[tuple[Event, ...]] = []

    @property
    def revision(self) -> int:
        return self.machine.revision

    @property
    def time(self) -> int:
        return self.machine.applied_time

    async def execute(self, request: Any, options: Options = DEFAULT_OPTIONS) -> Any:
        self.seen.append(request)
        machine = self.machine
        if isinstance(request, Range | History):
            return in_one_go(machine.read(request, pace := Pace()), pace)
        if isinstance(request, LeaseList | QueueRead):
            return machine.look_up(request)
        if isinstance(request, LeaseKeepAlive | LeaseRead):
            lease = machine.leases.get(request.id)
            if lease is None:
                raise LeaseNotFound(f"lease {request.id} does not exist")
            if isinstance(request, LeaseKeepAlive):
                return LeaseReply(lease.id, lease.ttl_ms, machine.revision)
            left = sorted(key for key in lease.keys if key > request.after)
            keys = () if request.count_only else tuple(left[: LimitsSection().page_items_max])
            return LeaseReadReply(lease.id, lease.ttl_ms, lease.ttl_ms, machine.revision, keys, len(lease.keys))
        if isinstance(request, Await):
            return await self._wait(request)
        index = Index(machine.applied_index + 1)
        applied = machine.apply(index, index << 16, request)
        result = applied.result
        self.applied.append(applied.events)
        self.changed.set()
        self.changed = asyncio.Event()
        if isinstance(result, Refusal):
            raise _refused(result)
        return result

    async def watch(self, request: Watch, options: Options = DEFAULT_OPTIONS) -> AsyncIterator[Any]:  # type: ignore[override]
        """From now on, everything below the start."""
        yield Started(self.machine.revision, self.machine.revision + 1)
        seen = len(self.applied)
        while True:
            while seen < len(self.applied):
                events = tuple(e for e in self.applied[seen] if keys.contains(request.start, request.end, e.kv.key))
                seen += 1
                if events:
                    yield Changes((ChangeSet(events[0].kv.mod_revision, events),))
            await self.changed.wait()

    async def _wait(self, request: Await) -> RangeReply:
        loop = asyncio.get_running_loop()
        until = loop.time() + request.wait_ms / 1e3
        while True:
            found = in_one_go(self.machine.read(History(request.key, 1), pace := Pace()), pace)
            if found.items and found.items[0].mod_revision > request.after_revision:
                return found
            try:
                async with asyncio.timeout_at(until):
                    await self.changed.wait()
            except TimeoutError:
                return RangeReply(found.revision, (), 0)
