"""Changes: who waits for the next change of which key. Told at each apply; costs nothing while nobody waits.

Bounded by `WAITING_MAX` waiters; beyond that `Overloaded`. Very many may wait for one key: they are woken in turns, so
that what each of them does then never keeps the loop from heartbeats.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import chain

from kvnode.errors import Overloaded
from kvnode.kv.events import Event
from kvnode.node.awaited import finish

WAITING_MAX = 65_536
WAKES_A_TURN = 100
RETRY_AFTER_MS = 1_000


class Changes:
    """Lives on the node's loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: dict[bytes, dict[asyncio.Future[None], None]] = {}
        self._count = 0
        self._waking: deque[asyncio.Future[None]] = deque()  # bounded by the requests in flight
        self._turn_scheduled = False

    @property
    def is_awaited(self) -> bool:
        """Cheap: asked at each entry applied."""
        return self._count > 0

    def wait(self, key: bytes) -> asyncio.Future[None]:
        """Done at the next change of `key`; give it back with `forget`. Raises: Overloaded."""
        if self._count >= WAITING_MAX:
            raise Overloaded("too many requests wait for changes", retry_after_ms=RETRY_AFTER_MS)
        future: asyncio.Future[None] = self._loop.create_future()
        self._waiting.setdefault(key, {})[future] = None
        self._count += 1
        return future

    def forget(self, key: bytes, future: asyncio.Future[None]) -> None:
        """Nobody waits for this any more. Idempotent."""
        futures = self._waiting.get(key, {})
        if future in futures:
            del futures[future]
            self._count -= 1
            if not futures:
                del self._waiting[key]

    def applied(self, events: Sequence[Event]) -> None:
        """These versions can be read from now on."""
        for event in events:
            futures = self._waiting.pop(event.kv.key, None)
            if futures is not None:
                self._count -= len(futures)
                self._wake(futures)

    def on_store_replaced(self) -> None:
        """A snapshot took the machine on: any key may have changed, and everybody looks, in turns as ever."""
        waiting, self._waiting, self._count = self._waiting, {}, 0
        self._wake(chain.from_iterable(waiting.values()))

    def _wake(self, futures: Iterable[asyncio.Future[None]]) -> None:
        self._waking.extend(futures)
        if not self._turn_scheduled:
            self._turn()

    def _turn(self) -> None:
        now = [self._waking.popleft() for _ in range(min(len(self._waking), WAKES_A_TURN))]
        self._turn_scheduled = bool(self._waking)
        if self._turn_scheduled:
            self._loop.call_soon(self._turn)
        finish(now)

    def wake_all(self) -> None:
        """The node stops: let everybody look, and be told so."""
        for futures in (*self._waiting.values(), self._waking):
            finish(futures)
        self._waiting.clear()
        self._waking.clear()
        self._count = 0
