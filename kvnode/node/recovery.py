"""Recovery: what the store has applied + what the log holds after it → the state the core starts from.

The store's last synced commit is an exact cut at its applied index, and the log is kept back to there. So the
two must meet: a store ahead of the log, or a log that begins behind the store, means that one of them is not
what this node had, and starting would lose or invent entries.
"""

from __future__ import annotations

from collections.abc import Iterable

from kvnode.errors import LogCorrupted
from kvnode.ids import Index, NodeId, Term
from kvnode.machine.machine import StateMachine
from kvnode.raft.messages import Configuration, Entry, HardState, LogPosition
from kvnode.raft.state import Restored


def restore(
    *,
    hard_state: HardState,
    base: LogPosition,
    term_runs: tuple[tuple[Index, Term], ...],
    last_index: Index,
    tail: tuple[Entry, ...],
    last_time: int,
    voters: Iterable[NodeId],
    machine: StateMachine,
    committed: Index,
    life: int,
    is_quarantined: bool = False,
) -> Restored:
    """The core's starting state. Raises: LogCorrupted when store and log do not meet.

    `committed`: what is known to be committed of the entries in the log: all that the store has applied, but in
    quarantine, where the store may be ahead of the log. `life`: counts the starts of this member.
    """
    applied = machine.applied_index
    if applied > last_index and not is_quarantined:
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
        hard_state=hard_state,
        configuration=Configuration(voters=tuple(sorted(voters))),
        base=base,
        term_runs=term_runs,
        last_index=last_index,
        tail=tail,
        applied_index=committed,
        last_time=max(last_time, machine.applied_time),
        life=life,
        is_quarantined=is_quarantined,
    )
