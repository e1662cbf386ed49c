"""What a core's log amounts to on disk: the entries and the hard state, as of the last write that has finished.

The simplest disk there is, for cores on an event heap. Over the real log the simulator keeps one as a mirror of what
every finished write has made durable, so that the same observer (`kvnode.sim.ghost`) can judge both.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from kvnode.ids import NO_WRITE, Index, Term, WriteNumber
from kvnode.raft.messages import Configuration, Entry, HardState, LogPosition
from kvnode.raft.output import Persist
from kvnode.raft.state import Restored

_START = LogPosition(Term(0), Index(0))
WALL_START_MS = 1_700_000_000_000


@dataclass
class CoreDisk:
    """A write-ahead log that survives a crash up to the last completed write. It begins after `base`."""

    hard_state: HardState = field(default_factory=lambda: HardState(Term(0)))
    entries: list[Entry] = field(default_factory=list)
    queue: deque[Persist] = field(default_factory=deque)
    durable: WriteNumber = NO_WRITE
    base: LogPosition = _START

    @property
    def last_index(self) -> Index:
        return Index(self.base.index + len(self.entries))

    def entry(self, index: int) -> Entry | None:
        """None if the log does not reach there, or begins after it."""
        position = index - self.base.index - 1
        return self.entries[position] if 0 <= position < len(self.entries) else None

    def after(self, index: int) -> list[Entry]:
        """The entries behind `index`, which the log reaches."""
        assert index >= self.base.index, (index, self.base)
        return self.entries[index - self.base.index :]

    def trim(self, base: LogPosition) -> None:
        """The log begins after `base` from now on."""
        self.entries = self.after(base.index)
        self.base = base

    def restored(self, configuration: Configuration, configuration_index: Index = _START.index) -> Restored:
        """What a start finds: the whole log, nothing of it applied but what is before it."""
        runs: list[tuple[Index, Term]] = []
        for entry in self.entries:
            if not runs or runs[-1][1] != entry.term:
                runs.append((entry.index, entry.term))
        return Restored(
            hard_state=self.hard_state,
            configuration=configuration,
            base=self.base,
            term_runs=tuple(runs),
            last_index=self.last_index,
            tail=tuple(self.entries),
            applied_index=self.base.index,
            applied_time=0,
            configuration_index=configuration_index,
        )

    def complete(self) -> WriteNumber:
        """The oldest queued write becomes durable."""
        write = self.queue.popleft()
        if write.install is not None and not write.install.keeps_log:
            self.base = write.install.position
            self.entries = []
        if write.truncate_from:
            del self.entries[write.truncate_from - self.base.index - 1 :]
        for entry in write.entries:
            assert entry.index == self.last_index + 1, (entry.index, self.last_index)
            self.entries.append(entry)
        if write.hard_state is not None:
            assert write.hard_state.term >= self.hard_state.term
            self.hard_state = write.hard_state
        assert write.number == self.durable + 1, (write.number, self.durable)
        self.durable = write.number
        return write.number
