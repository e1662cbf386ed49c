"""A deterministic asyncio loop on virtual time: nothing waits, nothing is real, every run is the same.

The loop's selector reports no I/O and advances the virtual clock by whatever the loop would have waited. A loop
with nothing ready and no timer can never continue: that is a deadlock and raises, instead of hanging a test.
Sockets, signals and subprocesses do not exist here.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


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
    """`loop.time()` is virtual seconds since the loop was made."""

    def __init__(self) -> None:
        self._clock = _NoSelector()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now_s


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
        self._hung: list[Any] | None = None

    def submit(self, job: Any, on_done: Any, on_failed: Any) -> None:
        def run() -> None:
            if self._dead:
                return
            if self._hung is not None:
                self._hung.append(run)
                return
            try:
                result = job()
            except BaseException as error:  # noqa: BLE001 - handed on, as the thread does
                on_failed(error)
            else:
                try:
                    on_done(result)
                except BaseException as error:  # noqa: BLE001 - as the thread does
                    on_failed(error)

        self._free_at_s = max(self._free_at_s, self._loop.time()) + self.delay_s
        self._loop.call_at(self._free_at_s, run)

    def hang(self) -> None:
        """Jobs start but do not finish."""
        self._hung = [] if self._hung is None else self._hung

    def resume(self) -> None:
        """What hung finishes, in order."""
        hung, self._hung = self._hung or [], None
        for run in hung:
            run()

    def die(self) -> None:
        """The process is gone: nothing submitted ever runs."""
        self._dead = True

    async def close(self) -> None:
        if not self._dead:
            await asyncio.sleep(max(0.0, self._free_at_s - self._loop.time()) + 1e-6)


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end on a fresh virtual loop."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
