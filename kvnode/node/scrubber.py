"""Scrubber: has the log's old records verified in the background, slowly enough to be in nobody's way.

A pass begins at the start of the node and `storage.scrub_every_s` after the one before; within a pass it reads
`storage.scrub_bytes_per_s`, in steps small enough for the thread it shares with reads of old entries. What it finds
is handed on: in a cluster the node goes into quarantine and is restored by its peers, alone it can only say so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from kvnode.config import StorageSection
from kvnode.node.ports import LogStore
from kvnode.node.worker import Worker

STEP_BYTES = 128 << 10
"""About two milliseconds of the thread, and of the interpreter."""


class LogScrubber:
    """Lives on the node's loop."""

    def __init__(
        self,
        log: LogStore,
        worker: Worker,
        *,
        loop: asyncio.AbstractEventLoop,
        settings: StorageSection,
        on_failed: Callable[[BaseException], None],
    ) -> None:
        self._log = log
        self._worker = worker
        self._loop = loop
        self._settings = settings
        self._on_failed = on_failed
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = False
        self.passes = 0

    def start(self) -> None:
        if self._settings.scrub_every_s:
            self._wait(STEP_BYTES / self._settings.scrub_bytes_per_s)

    def stop(self) -> None:
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()

    def _wait(self, seconds: float) -> None:
        self._timer = self._loop.call_later(seconds, self._step)

    def _step(self) -> None:
        log = self._log
        self._worker.submit(lambda: log.scrub(STEP_BYTES), self._stepped, self._on_failed)

    def _stepped(self, is_over: bool) -> None:
        if self._stopped:
            return
        if is_over:
            self.passes += 1
        settings = self._settings
        self._wait(settings.scrub_every_s if is_over else STEP_BYTES / settings.scrub_bytes_per_s)
