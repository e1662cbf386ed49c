"""Leader lease: reads without a round, for those who trust their clocks' *rates* (`raft.leader_lease_reads`, off).

With the option on, a voter that has heard a leader helps nobody to office for an election timeout T: it grants no
vote, asks for none and votes not for itself, whatever term it has come to since, and whoever says that the leader is
gone. A voter that has just started may have heard one and have forgotten it: it waits as long (S38). So a leader that
is echoed by a majority knows that none of them elects anybody within T of when it *sent* what they echo. Its lease is
that time, shortened by what the rates of two clocks may differ, each within `RATE_BOUND` of true time. A clock that
stands still, or runs faster or slower, breaks it: that is why it is an option. Wall clocks play no part.

The one way around the promise is a transfer, for which the leader itself asks. So there is no lease while one is under
way, and after one that was aborted none before a later entry is committed: until then a late order to campaign can
still win; afterwards its candidate's log is too old (S39; raft-rs #234).

A change of members begins a new lease: none before it is committed, then by rounds sent since. Who might be elected in
the configuration before it needs a voter of the majority that committed it, who refuses a shorter log.

How a read uses it (I14): applied up to the commit index as of its arrival, then it takes its view, and only then asks
`holds` by a fresh look at the clock. Whatever happens in between, a pause too, is covered by that order (S37).

Source: Raft thesis §6.4.1; the restart, transfer and check-order traps: raft-rs #234, tikv #1593.
"""

from __future__ import annotations

from kvnode.config import RaftSection
from kvnode.ids import NOBODY, Index
from kvnode.raft.state import Leadership, RaftState

RATE_BOUND = 10
"""Per cent by which a clock may run fast or slow."""

TICK_MS = 2
"""Both ends read their clocks in whole milliseconds."""

ROUNDS_MAX = 1_024
"""Rounds that may wait for their echoes; of more the oldest are forgotten."""


def lease_ms(settings: RaftSection) -> int:
    """How long a lease lasts by the leader's clock, from the sending of what a majority has echoed."""
    return settings.election_timeout_ms * (100 - RATE_BOUND) // (100 + RATE_BOUND) - TICK_MS


# ── leader ──────────────────────────────────────────────────────────────────────────────────────────


def on_round(state: RaftState, leadership: Leadership) -> None:
    """A fresh round number goes out now."""
    rounds = leadership.lease_rounds
    rounds.append((state.read_round, state.now_ms))
    if len(rounds) > ROUNDS_MAX:
        rounds.popleft()


def on_heartbeat(state: RaftState, leadership: Leadership) -> None:
    """Each beat asks for a lease, reads or none."""
    if state.settings.leader_lease_reads:
        state.read_round += 1
        on_round(state, leadership)


def on_confirmed(leadership: Leadership, number: int) -> None:
    """A majority has echoed round `number`, or a later one."""
    rounds = leadership.lease_rounds
    while rounds and rounds[0][0] <= number:
        _, leadership.lease_from_ms = rounds.popleft()


def on_order(state: RaftState, leadership: Leadership) -> None:
    """Somebody is told to campaign with this log: no lease before an entry that is not even there yet is committed."""
    leadership.lease_index = Index(state.log.last_index + 1)


def on_reconfigured(state: RaftState, leadership: Leadership) -> None:
    """Other voters elect now: what the ones before have promised is not relied on, nor theirs before the commit."""
    leadership.lease_index = max(leadership.lease_index, state.log.membership.index)
    leadership.lease_from_ms = None
    leadership.lease_rounds.clear()


def holds(state: RaftState, now_ms: int) -> bool:
    """Whether nobody else can lead at `now_ms`, as this node's clock says it is."""
    leadership = state.leadership
    if leadership is None or not state.settings.leader_lease_reads:
        return False
    if leadership.transfer_to != NOBODY or state.commit_index < leadership.lease_index:
        return False
    if state.configuration.voters == (state.node,):
        return True
    from_ms = leadership.lease_from_ms
    return from_ms is not None and now_ms - from_ms < lease_ms(state.settings)


# ── voter ───────────────────────────────────────────────────────────────────────────────────────────


def is_promised(state: RaftState) -> bool:
    """Whether a leader that this node has heard, in this life or in an earlier one, may still rely on it."""
    if not state.settings.leader_lease_reads or state.configuration.voters == (state.node,):
        return False
    return state.now_ms - state.promised_ms < state.settings.election_timeout_ms
