"""Session: a `KV` whose writes take effect once, also when their answers are lost: it numbers them and asks again.

The session is opened by the first write. Numbers are given in order, any number of writes may be under way; with each
the node is told up to where all answers have arrived, so that it need not keep them. An outcome that is not known is
asked for again, on another node, under the same number (`Client` does that for every named write), until the deadline.

A session that was not used for its ttl is gone. A write that finds it so was not executed, if that was its first
sending: it goes on under a new session. If an earlier sending may have been executed, nobody can say any more whether
it was, and the caller is told just that (`Unknown`).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self

from kvnode.errors import BadRequest, KvnodeError, SessionExpired
from kvnode.kv.interface import DEFAULT_OPTIONS, KV, Options, WatchStream
from kvnode.kv.requests import (
    Await,
    Command,
    Delete,
    Fence,
    Put,
    ReadRequest,
    SessionEnd,
    SessionOpen,
    StoreWrite,
    Txn,
    Watch,
)

if TYPE_CHECKING:
    from kvnode.client.client import Client

TTL_MS_DEFAULT = 3_600_000
REOPENED_MAX = 3
"""A write gives up after so many sessions have been lost under it."""

CLOSE_MS = 1_000
"""How long leaving may take: a session that could not be ended ends by itself."""


class _Numbers:
    """The numbers given out under one session."""

    def __init__(self, session: int) -> None:
        self.session = session
        self._last = 0
        self._open: dict[int, None] = {}  # ascending

    def begin(self) -> int:
        self._last += 1
        self._open[self._last] = None
        return self._last

    @property
    def acknowledged(self) -> int:
        """Nobody waits for an answer up to here."""
        return next(iter(self._open), self._last + 1) - 1

    def end(self, sequence: int) -> None:
        del self._open[sequence]


class Session(KV):
    """See the module docstring. Use as ``async with client.session() as kv``; reads pass through."""

    def __init__(self, client: Client, ttl_ms: int = TTL_MS_DEFAULT) -> None:
        self._client = client
        self._ttl_ms = ttl_ms
        self._numbers: _Numbers | None = None
        self._opening = asyncio.Lock()

    @property
    def id(self) -> int:
        """0 before the first write."""
        return self._numbers.session if self._numbers is not None else 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End the session on the cluster, if it can be reached; what is asked later opens another."""
        numbers, self._numbers = self._numbers, None
        if numbers is None:
            return
        try:
            await self._client.execute(SessionEnd(((numbers.session, 0),)), Options(timeout_ms=CLOSE_MS))
        except KvnodeError:
            return

    async def execute(self, request: Any, options: Options = DEFAULT_OPTIONS) -> Any:
        """Carry out one request, once. Raises: a `KvnodeError`, as `Client.execute`."""
        fence: Fence | None = None
        if isinstance(request, Command) and not request.session and not request.key:
            request, fence = request.request, request.fence
        if not isinstance(request, Put | Delete | Txn):
            if isinstance(request, ReadRequest | Await):
                return await self._client.execute(request, options)
            raise BadRequest("a session carries out reads, puts, deletes and transactions")
        for attempt in range(REOPENED_MAX + 1):
            numbers = await self._current(options)
            try:
                return await self._numbered(numbers, request, fence, options)
            except SessionExpired:
                if self._numbers is numbers:
                    self._numbers = None
                if attempt == REOPENED_MAX:
                    raise
        raise AssertionError("unreachable")

    def watch(self, request: Watch, options: Options = DEFAULT_OPTIONS) -> WatchStream:
        return self._client.watch(request, options)

    async def _numbered(self, numbers: _Numbers, request: StoreWrite, fence: Fence | None, options: Options) -> Any:
        acknowledged = numbers.acknowledged
        sequence = numbers.begin()
        try:
            command = Command(request, numbers.session, sequence, acknowledged, fence=fence)
            return await self._client.execute(command, options)
        finally:
            numbers.end(sequence)

    async def _current(self, options: Options) -> _Numbers:
        """The open session; only one is opened however many writes wait for it."""
        async with self._opening:
            if self._numbers is None:
                reply = await self._client.execute(SessionOpen(self._ttl_ms), options)
                self._numbers = _Numbers(reply.session)
            return self._numbers
