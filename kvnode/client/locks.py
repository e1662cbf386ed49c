"""Locks and elections over HTTP: one call that waits on the server, instead of a queue walked from here."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Literal

import msgspec

from kvnode.client import bodies
from kvnode.client.http import key_path
from kvnode.client.leases import Send
from kvnode.errors import KvnodeError, LockHeld, TryAgain
from kvnode.kv.requests import WAIT_MS_MAX
from kvnode.recipes.lock import Place

_AGAIN_S = 0.1


class Acquire(msgspec.Struct, frozen=True):
    """Take a lock, or stand for election; wait for it in its queue."""

    kind: Literal["locks", "elections"]
    name: bytes
    ttl_ms: int
    wait_ms: int = 0
    value: bytes = b""  # the owner of a lock, what a leader announces


async def acquire(send: Send, request: Acquire) -> Place:
    """One call: whoever does not hear its answer holds nothing, and the lease ends by itself."""
    word = "owner" if request.kind == "locks" else "value"
    query = {"ttl": b"%dms" % request.ttl_ms, word: request.value}
    if request.wait_ms:
        query["wait"] = b"%dms" % request.wait_ms
    path = key_path(request.name, request.kind)
    status, headers, body = await send("POST", path, query, wait_ms=request.wait_ms)
    answer = bodies.json_of(status, body)
    return Place(request.name, request.value, answer["lease"], answer["token"], int(headers["Kv-Revision"]))


async def wait_in_turns(
    call: Callable[[Acquire], Awaitable[Place]],
    request: Acquire,
    *,
    now_ms: Callable[[], int],
    again: tuple[type[KvnodeError], ...] = (LockHeld, TryAgain),
    on_failure: Callable[[KvnodeError], None] = lambda _: None,
) -> Place:
    """As long as `wait_ms` says: a call waits ten minutes at most, and one that failed with `again` is made again."""
    until_ms = now_ms() + request.wait_ms
    while True:
        left_ms = max(0, until_ms - now_ms())
        try:
            return await call(msgspec.structs.replace(request, wait_ms=min(left_ms, WAIT_MS_MAX)))
        except again as error:
            if now_ms() >= until_ms:
                raise
            on_failure(error)
            await asyncio.sleep(_AGAIN_S)
