"""A deterministic asyncio loop on virtual time: nothing waits, nothing is real, every run is the same.

The loop's selector reports no I/O and advances the virtual clock by whatever the loop would have waited. A loop
with nothing ready and no timer can never continue: that is a deadlock and raises, instead of hanging a test.
Sockets, signals and subprocesses do not exist here.
"""

from __future__ import annotations

import asyncio
import random
import selectors
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from contextvars import Context
from functools import partial
from typing import Any, TypeVar, TypeVarTuple, Unpack

T = TypeVar("T")
Args = TypeVarTuple("Args")

_Job = tuple[Callable[[], Any], Callable[[Any], None], Callable[[BaseException], None]]


_SAME_TIME_S = 1e-8
"""Timers this close are due at once, in an order that nobody may rely on."""


class Deadlock(AssertionError):
    """Every task waits and no timer is set."""


class _NoSelector(selectors.BaseSelector):
    """Stands in for the operating system: waiting costs nothing but virtual time."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._keys: dict[Any, selectors.SelectorKey] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        key = selectors.SelectorKey(fileobj, 0, events, data)  # the loop's own wake-up pipe
        self._keys[fileobj] = key
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._keys.pop(fileobj)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Deadlock("nothing is ready and no timer is set")
        self.now_s += max(0.0, timeout)
        return []

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._keys


class VirtualLoop(asyncio.SelectorEventLoop):
    """`loop.time()` is virtual seconds since the loop was made.

    With a generator, callbacks of one turn run in random order, and so do timers of equal deadlines: asyncio promises
    its users an order within a task, not between tasks. What needs an order keeps a queue of its own.
    """

    _ready: deque[asyncio.Handle]  # of asyncio.BaseEventLoop

    def __init__(self, rng: random.Random | None = None) -> None:
        self._clock = _NoSelector()
        self._rng = rng
        super().__init__(self._clock)

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[Args]], object],
        *args: *Args,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        if self._rng is not None:
            when += self._rng.random() * _SAME_TIME_S
        return super().call_at(when, callback, *args, context=context)

    def _run_once(self) -> None:
        if self._rng is not None and len(self._ready) > 1:
            handles = list(self._ready)
            self._rng.shuffle(handles)
            self._ready.clear()
            self._ready.extend(handles)
        super()._run_once()  # type: ignore[misc]  # of asyncio.BaseEventLoop, in no stub

    def time(self) -> float:
        return self._clock.now_s

    def _asyncgen_firstiter_hook(self, agen: object) -> None:
        """asyncio closes what was left open at its end: the `finally` of a killed process must not run."""

    def _asyncgen_finalizer_hook(self, agen: object) -> None:
        """Nor when it is collected, whenever that is."""


class VirtualClock:
    """A `kvnode.clocks.clock.Clock` on a virtual loop. `wall_offset_ms` may be changed to make the wall clock jump."""

    def __init__(self, loop: asyncio.AbstractEventLoop, wall_offset_ms: int = 1_700_000_000_000) -> None:
        self._loop = loop
        self.wall_offset_ms = wall_offset_ms

    def monotonic_ms(self) -> int:
        return int(self._loop.time() * 1e3 + 1e-6)

    def wall_ms(self) -> int:
        return self.monotonic_ms() + self.wall_offset_ms

    def elapsed_ns(self) -> int:
        return int(self._loop.time() * 1e9)


class VirtualWorker:
    """A `kvnode.node.worker.Worker` whose jobs take `delay_s` of virtual time and then run on the loop.

    `delay_s` may be changed at any time; `hang()` makes every job wait until `resume()`.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, delay_s: float = 0.0005) -> None:
        self._loop = loop
        self.delay_s = delay_s
        self._free_at_s = 0.0
        self._dead = False
        self._queue: deque[_Job] = deque()  # the first is under way
        self._hung: list[Callable[[], None]] | None = None

    @property
    def under_way(self) -> Callable[[], Any] | None:
        """The job that is at the disk now."""
        return self._queue[0][0] if self._queue else None

    def submit(self, job: Any, on_done: Any, on_failed: Any) -> None:
        self._queue.append((job, on_done, on_failed))
        self._free_at_s = max(self._free_at_s, self._loop.time()) + self.delay_s
        self._loop.call_at(self._free_at_s, self._run)

    def _run(self) -> None:
        """The oldest job ends now."""
        if self._dead:
            return
        if self._hung is not None:
            self._hung.append(self._run)
            return
        job, on_done, on_failed = self._queue.popleft()
        try:
            result = job()
        except BaseException as error:  # noqa: BLE001 - handed on, as the thread does
            on_failed(error)
            return
        try:
            on_done(result)
        except BaseException as error:  # noqa: BLE001 - `on_done` as well: as the thread does
            on_failed(error)

    def hang(self) -> None:
        """Jobs start but do not finish."""
        self._hung = [] if self._hung is None else self._hung

    @property
    def is_hung(self) -> bool:
        return self._hung is not None

    def resume(self) -> None:
        """What hung finishes, in order."""
        hung, self._hung = self._hung or [], None
        for run in hung:
            self._loop.call_soon(run)

    def die(self) -> None:
        """The process is gone: nothing submitted ever runs."""
        self._dead = True

    async def close(self) -> None:
        if not self._dead:
            await asyncio.sleep(max(0.0, self._free_at_s - self._loop.time()) + 1e-6)


def run_virtual(main: Coroutine[Any, Any, T], *, rng: random.Random | None = None) -> T:
    """Run a coroutine to its end on a fresh virtual loop; `rng`: see `VirtualLoop`."""
    with asyncio.Runner(loop_factory=partial(VirtualLoop, rng)) as runner:
        return runner.run(main)
