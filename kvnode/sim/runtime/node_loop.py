"""The event loop of one simulated process, carried by the simulator's: everything of a node runs on its own.

So a process can be paused (nothing runs, its clock goes on), killed (nothing ever runs again, and nobody inside
notices), given a clock of its own, and searched for what it leaves behind. Inside one loop callbacks run in asyncio's
order; between loops, order is the simulator's to choose. Sockets, threads and signals do not exist here.
"""

from __future__ import annotations

import asyncio
import heapq
import inspect
import random
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import Context
from typing import Any, TypeVarTuple, Unpack

from kvnode.errors import ConnectionLost
from kvnode.sim.runtime.clock import NodeClock

SLICE_MAX = 8
"""Callbacks that run before other processes may have their turn, where order is shuffled."""

_EPSILON_S = 1e-9

Args = TypeVarTuple("Args")

_Timer = tuple[float, int, asyncio.TimerHandle]


class NodeLoop(asyncio.AbstractEventLoop):
    """Carries callbacks, timers, futures and tasks of one process life."""

    def __init__(
        self,
        carrier: asyncio.AbstractEventLoop,
        clock: NodeClock,
        *,
        rng: random.Random | None = None,
        on_error: Callable[[dict[str, Any]], None],
    ) -> None:
        self.clock = clock
        self._carrier = carrier
        self._rng = rng
        self._on_error = on_error
        self._ready: deque[asyncio.Handle] = deque()
        self._timers: list[_Timer] = []
        self._timers_made = 0
        self._wake_up: asyncio.TimerHandle | None = None
        self._is_scheduled = False
        self._is_dead = False
        self._paused_since_s: float | None = None
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self._asked: dict[asyncio.Future[Any], None] = {}
        self._never_begun: dict[Coroutine[Any, Any, Any], None] = {}
        clock.on_changed = self._arm

    # ── what happens to the process ─────────────────────────────────────────────────────────────────

    @property
    def is_paused(self) -> bool:
        return self._paused_since_s is not None

    def pause(self) -> None:
        """SIGSTOP: nothing runs; what comes in waits."""
        if self._paused_since_s is None:
            self._paused_since_s = self.clock.time_s()

    def resume(self, *, was_suspended: bool = False) -> None:
        """SIGCONT. `was_suspended`: the whole machine slept, and its loop clock with it."""
        if self._paused_since_s is None or self._is_dead:  # the next process runs on the same clock
            return
        if was_suspended:
            self.clock.suspended(self.clock.time_s() - self._paused_since_s)
        self._paused_since_s = None
        self._wake()

    def kill(self) -> None:
        """Nothing of this process ever runs again. Who asked it something loses the connection."""
        self._is_dead = True
        self._ready.clear()
        self._timers.clear()
        if self._wake_up is not None:
            self._wake_up.cancel()
        for coroutine in self._never_begun:
            coroutine.close()
        for task in self._tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]  # a killed process warns of nothing
            work = task.get_coro()
            if inspect.iscoroutine(work) and inspect.getcoroutinestate(work) == inspect.CORO_CREATED:
                work.close()
        asked, self._asked = self._asked, {}
        for answer in asked:
            if not answer.done():
                answer.set_exception(ConnectionLost("the node was killed"))

    def forget(self) -> None:
        """The run is over: give up what the killed process had begun, so that no collector does it, who knows when."""
        for task in self._tasks:
            work = task.get_coro()
            if inspect.iscoroutine(work):
                with suppress(Exception):  # whatever a `finally` in it says that must never have run
                    work.close()

    def submit(self, work: Coroutine[Any, Any, Any]) -> asyncio.Future[Any]:
        """Run `work` in this process; the future belongs to the carrier, on which the caller lives."""
        answer = self._carrier.create_future()
        if self._is_dead:
            work.close()
            answer.set_exception(ConnectionLost("nobody listens"))
            return answer
        self._asked[answer] = None
        self._never_begun[work] = None

        def begin() -> None:
            del self._never_begun[work]
            self.create_task(work).add_done_callback(lambda task: self._answer(answer, task))

        self.call_soon(begin)
        return answer

    def _answer(self, answer: asyncio.Future[Any], task: asyncio.Task[Any]) -> None:
        self._asked.pop(answer, None)
        error = None if task.cancelled() else task.exception()
        if answer.done():  # whoever asked gave up
            return
        if task.cancelled():
            answer.set_exception(ConnectionLost("the request was cancelled by the node"))
        elif error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(task.result())

    @property
    def open_requests(self) -> int:
        """Submitted and not answered; those whose clients gave up count."""
        return len(self._asked)

    def leftovers(self) -> list[str]:
        """What a process that has ended cleanly must not have any more."""
        found = [f"task {task.get_name()}" for task in self._tasks if not task.done()]
        found += [f"timer {timer[2]!r}" for timer in self._timers if not timer[2].cancelled()]
        return found + [f"request {answer!r}" for answer in self._asked]

    # ── asyncio's side ──────────────────────────────────────────────────────────────────────────────

    def time(self) -> float:
        return self.clock.loop_s()

    def call_soon(
        self, callback: Callable[[Unpack[Args]], object], *args: *Args, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        if not self._is_dead:
            self._ready.append(handle)
            self._wake()
        return handle

    def call_soon_threadsafe(
        self, callback: Callable[[Unpack[Args]], object], *args: *Args, context: Context | None = None
    ) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)

    def call_later(
        self,
        delay: float,
        callback: Callable[[Unpack[Args]], object],
        *args: *Args,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[Args]], object],
        *args: *Args,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        if not self._is_dead:
            self._timers_made += 1
            heapq.heappush(self._timers, (when, self._timers_made, timer))
            if self._timers[0][2] is timer:
                self._arm()
        return timer

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Cancelled timers leave the heap when their time comes."""

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: str | None = None, context: Context | None = None) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=self, name=name, context=context)
        self._tasks[task] = None
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task, None)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if not self._is_dead:
            self._on_error(context)

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return not self._is_dead

    def is_closed(self) -> bool:
        return self._is_dead

    # ── turns ───────────────────────────────────────────────────────────────────────────────────────

    def _wake(self) -> None:
        if not self._is_scheduled and self._paused_since_s is None:
            self._is_scheduled = True
            self._carrier.call_soon(self._turn)

    def _turn(self) -> None:
        self._is_scheduled = False
        if self._is_dead or self._paused_since_s is not None:
            return
        now_s = self.time() + _EPSILON_S
        while self._timers and self._timers[0][0] <= now_s:
            timer = heapq.heappop(self._timers)[2]
            if not timer.cancelled():
                self._ready.append(timer)
        count = len(self._ready)
        if self._rng is not None and count > 1:
            count = min(count, self._rng.randint(1, SLICE_MAX))
        asyncio._set_running_loop(self)
        try:
            for _ in range(count):
                if not self._ready:  # killed, or paused, by what ran just now
                    break
                handle = self._ready.popleft()
                if not handle.cancelled():
                    handle._run()
        finally:
            asyncio._set_running_loop(self._carrier)
        if self._ready:
            self._wake()
        self._arm()

    def _arm(self) -> None:
        """One timer of the carrier, for the earliest of ours."""
        while self._timers and self._timers[0][2].cancelled():
            heapq.heappop(self._timers)
        if self._wake_up is not None:
            self._wake_up.cancel()
            self._wake_up = None
        if self._is_dead or not self._timers:
            return
        delay_s = self.clock.true_delay_s(self._timers[0][0])
        if delay_s is not None:
            self._wake_up = self._carrier.call_later(delay_s, self._wake)
