"""What a core's log amounts to on disk: the entries and the hard state, as of the last write that has finished.

The simplest disk there is, for cores on an event heap. Over the real log the simulator keeps one as a mirror of what
every finished write has made durable, so that the same observer (`kvnode.sim.ghost`) can judge both.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from kvnode.ids import NO_WRITE, Index, Term, WriteNumber
from kvnode.raft.messages import Entry, HardState
from kvnode.raft.output import Persist

WALL_START_MS = 1_700_000_000_000


@dataclass
class CoreDisk:
    """A write-ahead log that survives a crash up to the last completed write."""

    hard_state: HardState = field(default_factory=lambda: HardState(Term(0)))
    entries: list[Entry] = field(default_factory=list)
    queue: deque[Persist] = field(default_factory=deque)
    durable: WriteNumber = NO_WRITE

    @property
    def last_index(self) -> Index:
        return Index(len(self.entries))

    def complete(self) -> WriteNumber:
        """The oldest queued write becomes durable."""
        write = self.queue.popleft()
        if write.truncate_from:
            del self.entries[write.truncate_from - 1 :]
        for entry in write.entries:
            assert entry.index == len(self.entries) + 1, (entry.index, len(self.entries))
            self.entries.append(entry)
        if write.hard_state is not None:
            assert write.hard_state.term >= self.hard_state.term
            self.hard_state = write.hard_state
        assert write.number == self.durable + 1, (write.number, self.durable)
        self.durable = write.number
        return write.number
