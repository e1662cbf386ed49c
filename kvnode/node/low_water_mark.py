"""Low-water mark: below it the log is not needed any more, as the store has everything durably (trap C7).

Two marks are easily mixed up. This one is each node's own affair and nobody sees it: segments of the log go once a
flush has covered them. History that readers can see is given up by a replicated command (`machine.compaction`).

A tail stays for followers that are a little behind, `storage.tail_bytes`; who is further behind gets a snapshot. While
one is being sent, and until the follower is level, the log is kept from there on, so that it does not need the next at
once (scenario S62), but never more than `PINNED_TAILS` tails of it, or segments, if those are larger: a follower that
does not come along cannot fill the disk.

Source: "Low-Water Mark", Patterns of Distributed Systems.
"""

from __future__ import annotations

from collections.abc import Callable

from kvnode.ids import Index
from kvnode.node.log_writer import LogWriter
from kvnode.node.ports import LogStore
from kvnode.raft.messages import LogPosition

PINNED_TAILS = 4


class LowWaterMark:
    """Trims the log as the store is flushed. Lives on the node's loop; one trim at a time."""

    def __init__(
        self,
        log: LogStore,
        writer: LogWriter,
        *,
        tail_bytes: int,
        segment_bytes: int,
        pinned_index: Callable[[Index], Index | None],
        on_trimmed: Callable[[LogPosition], None],
    ) -> None:
        """`pinned_index`: given the last entry trimmed, the one from which the log is to be kept; None: from none."""
        self._log = log
        self._writer = writer
        self._tail_bytes = tail_bytes
        self._segment_bytes = segment_bytes
        self._pinned_index = pinned_index
        self._on_trimmed = on_trimmed
        self._is_trimming = False
        self._trimmed_index = Index(0)

    def flushed(self, applied_index: Index) -> None:
        """The store has everything up to `applied_index` durably."""
        used = self._log.bytes_used
        if self._is_trimming or used <= self._tail_bytes + self._segment_bytes:
            return
        pinned = self._pinned_index(self._trimmed_index)
        if pinned is not None and used <= PINNED_TAILS * max(self._tail_bytes, self._segment_bytes):
            applied_index = min(applied_index, pinned)
        if applied_index <= self._trimmed_index:
            return
        self._is_trimming = True
        self._writer.trim(applied_index, self._tail_bytes, self._trimmed)

    def _trimmed(self, position: LogPosition) -> None:
        self._is_trimming = False
        self._trimmed_index = position.index
        self._on_trimmed(position)
