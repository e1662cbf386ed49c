"""The real state machine behind the front door, without a cluster: every request is applied or answered at once."""

from __future__ import annotations

import asyncio
from typing import Any

from kvnode.config import LimitsSection
from kvnode.errors import LeaseNotFound
from kvnode.ids import Index
from kvnode.kv.interface import DEFAULT_OPTIONS, KV, Options, WatchStream
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
            keys = tuple(sorted(lease.keys))
            return LeaseReadReply(lease.id, lease.ttl_ms, lease.ttl_ms, machine.revision, keys, len(keys))
        if isinstance(request, Await):
            return await self._wait(request)
        index = Index(machine.applied_index + 1)
        result = machine.apply(index, index << 16, request).result
        self.changed.set()
        self.changed = asyncio.Event()
        if isinstance(result, Refusal):
            raise _refused(result)
        return result

    def watch(self, request: Watch, options: Options = DEFAULT_OPTIONS) -> WatchStream:
        raise NotImplementedError

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
