"""Log health: who looks for damage in the log while the node runs, and what becomes of what is found.

A node with peers ends of it, after a note beside the log has made sure that the next start sets the damage aside and
goes into quarantine. A node without peers has nobody to restore it: it goes on and says so in its alarms.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from kvnode.config import StorageSection
from kvnode.errors import LogCorrupted, StorageFailed
from kvnode.node.ports import LogStore
from kvnode.node.scrubber import LogScrubber
from kvnode.node.worker import Worker
from kvnode.observe.log import get_logger
from kvnode.raft.core import Raft

log = get_logger("node")


class LogHealth:
    """Lives on the node's loop. `lost`: the damage for which this node starts in quarantine."""

    def __init__(
        self,
        log_store: LogStore,
        worker: Worker,
        *,
        raft: Raft,
        loop: asyncio.AbstractEventLoop,
        settings: StorageSection,
        lost: str,
        on_failed: Callable[[BaseException], None],
    ) -> None:
        self._log_store = log_store
        self._raft = raft
        self._lost = lost
        self._rotten = ""  # found by the scrubber of a node without peers
        self._on_failed = on_failed
        self._scrubber = LogScrubber(log_store, worker, loop=loop, settings=settings, on_failed=self._on_scrub_failed)
        self.is_noted = False

    def start(self) -> None:
        self._scrubber.start()

    def stop(self) -> None:
        self._scrubber.stop()

    @property
    def scrub_passes(self) -> int:
        return self._scrubber.passes

    def remember(self, error: BaseException) -> BaseException:
        """What nobody would look at when the node starts again must not be forgotten until then.

        Returns what the node fails of: with damage that could not be noted it must not start again by itself.
        """
        if not (isinstance(error, LogCorrupted) and error.repairable) or self._is_alone:
            return error
        try:
            self._log_store.note_damage(error)
        except StorageFailed as failure:
            failure.add_note(error.message)
            return failure
        self.is_noted = True
        return error

    def alarms(self) -> list[str]:
        """In words; empty if all is well."""
        found = []
        if self._raft.is_quarantined:
            found.append(f"in quarantine, not voting until peers have restored the log: {self._lost}")
        if self._rotten:
            found.append(f"the log is damaged, and there is no peer to restore it: {self._rotten}")
        return found

    @property
    def _is_alone(self) -> bool:
        return self._raft.configuration.voters == (self._raft.node,)

    def _on_scrub_failed(self, error: BaseException) -> None:
        if not (isinstance(error, LogCorrupted) and self._is_alone):
            self._on_failed(error)
            return
        self._rotten = error.what
        log.error("wal.damaged", node=self._raft.node, what=error.what, **error.detail)
