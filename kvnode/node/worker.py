"""Worker: one thread of its own for one kind of blocking work, jobs in order, results back on the loop.

The log's fsync, the store's flush and reads of old log entries have a worker each, never a shared pool: a stuck
name look-up or a slow scan must not stand in front of a commit. All decisions stay on the loop; the thread only
runs what it is given. The simulator replaces this class by one that runs jobs inline in virtual time.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

Result = TypeVar("Result")


class Worker(Protocol):
    """Runs jobs one after the other, off the loop."""

    def submit(
        self, job: Callable[[], Result], on_done: Callable[[Result], None], on_failed: Callable[[BaseException], None]
    ) -> None:
        """Queue `job`; one of the callbacks is called on the loop afterwards, `on_failed` also if `on_done` raises."""
        ...

    async def close(self) -> None:
        """Finish what was submitted, then end."""
        ...


def result_of(worker: Worker, loop: asyncio.AbstractEventLoop, job: Callable[[], Result]) -> asyncio.Future[Result]:
    """The outcome of `job`, to be awaited. Cancelling it does not stop the job."""
    future: asyncio.Future[Result] = loop.create_future()

    def done(result: Result) -> None:
        if not future.done():
            future.set_result(result)

    def failed(error: BaseException) -> None:
        if not future.done():
            future.set_exception(error)

    worker.submit(job, done, failed)
    return future


_Job = tuple[Callable[[], Any], Callable[[Any], None], Callable[[BaseException], None]]


class ThreadWorker:
    """A `Worker` on a real thread. `submit` is called on the loop only."""

    def __init__(self, loop: asyncio.AbstractEventLoop, name: str) -> None:
        self._loop = loop
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._ended = loop.create_future()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(
        self, job: Callable[[], Result], on_done: Callable[[Result], None], on_failed: Callable[[BaseException], None]
    ) -> None:
        self._jobs.put((job, on_done, on_failed))

    async def close(self) -> None:
        if not self._ended.done():
            self._jobs.put(None)
            await asyncio.shield(self._ended)
        self._thread.join()  # it has said its last word: this waits for a few instructions

    def _run(self) -> None:
        post = self._loop.call_soon_threadsafe
        while (item := self._jobs.get()) is not None:
            job, on_done, on_failed = item
            try:
                result = job()
            except BaseException as error:  # noqa: BLE001 - handed to the loop, which decides
                post(on_failed, error)
            else:
                post(_deliver, on_done, result, on_failed)
        post(self._ended.set_result, None)


def _deliver(on_done: Callable[[Any], None], result: Any, on_failed: Callable[[BaseException], None]) -> None:
    """On the loop. What was to follow the job broke: as final as the job's own failure, not a line in a log."""
    try:
        on_done(result)
    except BaseException as error:  # noqa: BLE001 - handed to whoever decides
        on_failed(error)
