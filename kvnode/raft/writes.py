"""Writes: which number each change gets on its way to the disk, and what has become durable.

Everything a step changes (entries, truncation, term and vote) waits here and leaves as one `Persist` per output.
A finished write is matched by number, never by (index, term): the same (index, term) can be cut and appended again
while an earlier write is still under way (trap R2). A truncation lowers what every write in flight can prove, so a
late completion proves only what still stands in the log. An install that drops the log takes all of that away: until
it is durable nothing is but what was applied before.

Invariants: durable_index ≤ last index of the log; numbers are consecutive; a `Send.after` names a write that has
been handed out or is the very next one.
"""

from __future__ import annotations

from collections import deque

from kvnode.ids import NO_WRITE, Index, WriteNumber
from kvnode.raft.log import RaftLog
from kvnode.raft.messages import HardState
from kvnode.raft.output import Install, Persist

_NONE = Index(0)


class Writes:
    """The ledger of writes of one process life."""

    __slots__ = (
        "_hard_state_changed",
        "_hard_state_number",
        "_in_flight",
        "_install",
        "_install_number",
        "_truncate_from",
        "_unsaved_from",
        "durable_index",
        "durable_number",
        "last_number",
    )

    def __init__(self, last_index: Index) -> None:
        self.last_number = NO_WRITE
        self.durable_number = NO_WRITE
        self.durable_index = last_index
        self._in_flight: deque[tuple[WriteNumber, Index]] = deque()
        self._unsaved_from = Index(last_index + 1)
        self._truncate_from = Index(0)
        self._hard_state_changed = False
        self._hard_state_number = NO_WRITE
        self._install: Install | None = None
        self._install_number = NO_WRITE

    @property
    def is_installing(self) -> bool:
        """A snapshot was accepted and is not durable yet."""
        return self._install_number > self.durable_number

    @property
    def is_hard_state_durable(self) -> bool:
        return self._hard_state_number <= self.durable_number

    def on_hard_state_changed(self) -> None:
        self._hard_state_changed = True
        self._hard_state_number = WriteNumber(self.last_number + 1)

    def on_truncated(self, first: Index) -> None:
        """Entries at and above `first` were dropped from the log."""
        below = Index(first - 1)
        self.durable_index = min(self.durable_index, below)
        if first < self._unsaved_from:
            self._unsaved_from = first
            self._truncate_from = first  # lower than an earlier cut, or it would not be in what is saved
            self._in_flight = deque((number, min(last, below)) for number, last in self._in_flight)

    def on_install(self, install: Install, applied: Index) -> None:
        """The next write installs a snapshot; of the log it drops, entries up to `applied` go on being proven."""
        assert not self.is_installing, (self._install_number, install)
        self._install = install
        self._install_number = WriteNumber(self.last_number + 1)
        if not install.keeps_log:
            self.durable_index = min(self.durable_index, applied)
            self._in_flight = deque((number, self.durable_index) for number, _ in self._in_flight)
            self._unsaved_from = Index(install.position.index + 1)
            self._truncate_from = _NONE

    def after(self, index: Index = _NONE) -> WriteNumber:
        """The write that makes the hard state and everything up to `index` durable; NO_WRITE if it is already."""
        number = NO_WRITE if self.is_hard_state_durable else self._hard_state_number
        if index > self.durable_index:
            number = max(number, self._write_of(index))
        return number

    def _write_of(self, index: Index) -> WriteNumber:
        if index >= self._unsaved_from or self._install is not None:
            return WriteNumber(self.last_number + 1)
        return next(number for number, last in self._in_flight if last >= index)

    def take(self, log: RaftLog, hard_state: HardState) -> Persist | None:
        """Everything that changed since the last call, as one write; None if nothing did."""
        first = self._unsaved_from
        if (
            log.last_index < first
            and not self._hard_state_changed
            and not self._truncate_from
            and self._install is None
        ):
            return None
        self.last_number = WriteNumber(self.last_number + 1)
        persist = Persist(
            number=self.last_number,
            truncate_from=self._truncate_from,
            entries=log.tail(first),
            hard_state=hard_state if self._hard_state_changed else None,
            commit=hard_state.commit,
            install=self._install,
        )
        self._in_flight.append((self.last_number, log.last_index))
        self._unsaved_from = Index(log.last_index + 1)
        self._truncate_from = Index(0)
        self._hard_state_changed = False
        self._install = None
        return persist

    def on_persisted(self, number: WriteNumber) -> None:
        """Write `number` and every earlier one are durable."""
        assert number <= self.last_number, (number, self.last_number)
        if number <= self.durable_number:
            return
        self.durable_number = number
        while self._in_flight and self._in_flight[0][0] <= number:
            _, last = self._in_flight.popleft()
            self.durable_index = max(self.durable_index, last)
