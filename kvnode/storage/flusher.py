"""Flusher: one thread that brings the backend up to date, one cut at a time, in order.

The only place where the store is written. Encoding and the synced commit take milliseconds to seconds; the
loop goes on meanwhile and serves the same versions from the recent table.

A cut that cannot be committed is never retried: a failed sync says nothing about what reached the disk.
`on_failed` is called, the thread ends, and the process is expected to end with it; the log holds everything.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from kvnode.machine.backend import Backend
from kvnode.machine.rows import Cut


class Flusher:
    """Commits cuts in a thread of its own. The callbacks are called in that thread."""

    def __init__(
        self, backend: Backend, *, on_done: Callable[[Cut], None], on_failed: Callable[[BaseException], None]
    ) -> None:
        self._backend = backend
        self._on_done = on_done
        self._on_failed = on_failed
        self._cuts: queue.SimpleQueue[Cut | None] = queue.SimpleQueue()  # bounded: one cut is outstanding at a time
        self._is_closed = False
        # A daemon, so that a commit stuck in the kernel cannot keep a dying process alive; LMDB commits are atomic.
        self._thread = threading.Thread(target=self._run, name="kvnode-flush", daemon=True)
        self._thread.start()

    def submit(self, cut: Cut) -> None:
        """Commit `cut`; `on_done(cut)` follows when it is durable."""
        assert not self._is_closed
        self._cuts.put(cut)

    def close(self, *, wait: bool) -> None:
        """Commit what was submitted, then end. With `wait`, returns when the backend is no longer in use."""
        if not self._is_closed:
            self._is_closed = True
            self._cuts.put(None)
        if wait:
            self._thread.join()

    def _run(self) -> None:
        try:
            while (cut := self._cuts.get()) is not None:
                self._backend.commit(cut)
                self._on_done(cut)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the node must hear of it and end
            self._on_failed(error)
