"""Recovery: what the store has applied + what the log holds after it → the state the core starts from.

The store's last synced commit is an exact cut at its applied index, and the log is kept back to there. So the
two must meet: a store ahead of the log, or a log that begins behind the store, means that one of them is not
what this node had, and starting would lose or invent entries.
"""

from __future__ import annotations

from typing import Protocol

from kvnode.errors import LogCorrupted
from kvnode.ids import Index, Term
from kvnode.machine.machine import StateMachine
from kvnode.raft.messages import Configuration, Entry, HardState, LogPosition
from kvnode.raft.state import Restored
from kvnode.wire.codec import decode_configuration


class RecoveredLog(Protocol):
    """What a start found in the log; `storage` satisfies it by shape."""

    @property
    def hard_state(self) -> HardState: ...
    @property
    def base(self) -> LogPosition:
        """The position just before the first entry that is there."""
        ...

    @property
    def term_runs(self) -> tuple[tuple[Index, Term], ...]:
        """(first index, term) of each run of one term, ascending."""
        ...

    @property
    def last_index(self) -> Index: ...
    @property
    def tail(self) -> tuple[Entry, ...]:
        """The entries that the store has not applied, contiguous up to `last_index`."""
        ...

    @property
    def last_time(self) -> int:
        """Greatest hybrid timestamp of any entry."""
        ...

    @property
    def committed(self) -> Index:
        """Known to be committed: all that the store has applied, but in quarantine, where the store may be ahead."""
        ...

    @property
    def is_quarantined(self) -> bool:
        """It has lost something that this node acknowledged."""
        ...


def restore(recovered: RecoveredLog, *, initial: Configuration, machine: StateMachine, life: int) -> Restored:
    """The core's starting state; `life` counts the starts of this member, `initial` holds until an entry changed it.

    Raises: LogCorrupted when store and log do not meet.
    """
    applied, last_index, base = machine.applied_index, recovered.last_index, recovered.base
    if applied > last_index and not recovered.is_quarantined:
        raise LogCorrupted(
            f"the store has applied entry {applied}, but the log ends at {last_index}: the log is not this store's; "
            "restore both from the same backup, or remove the member and add it again"
        )
    if applied < base.index:
        raise LogCorrupted(
            f"the store has applied entry {applied}, but the log begins after {base.index}: entries between them are "
            "missing; restore both from the same backup, or remove the member and add it again"
        )
    return Restored(
        hard_state=recovered.hard_state,
        configuration=decode_configuration(machine.configuration) if machine.configuration else initial,
        configuration_index=Index(machine.configuration_index),
        base=base,
        term_runs=recovered.term_runs,
        last_index=last_index,
        tail=recovered.tail,
        applied_index=recovered.committed,
        applied_time=machine.applied_time,
        life=life,
        is_quarantined=recovered.is_quarantined,
    )
