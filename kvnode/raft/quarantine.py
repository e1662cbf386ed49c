"""Quarantine: a member that has lost entries it acknowledged neither votes nor stands until it has everything again.

Whoever counted this member's acknowledgements may have committed what it no longer holds. So it must not help to
elect a leader that lacks them: without its vote, every majority that elects still shares a healthy member with
every majority that committed. Meanwhile it takes appends, and acknowledges what it holds: its log is an intact prefix,
extended by what a leader verified, so such an acknowledgement is true, and harmless even beside the lost ones.

`RaftState.quarantine` is the term on its disk when the loss was found: no acknowledgement that may be lost names a
later one. A leader of a later term was elected without this member and counts nothing that it said before. When an
entry of such a term is committed and durable here, everything acknowledged earlier stands below it: the loss is
made good. That this is so is made durable first (`Output.lift_quarantine`), then the member votes again.

Two things the leader does. A follower that lost what *this* leader counts rejects where it once matched: the leader
forgets its match and sends everything from where the logs part (`replication`). And because the quarantine cannot end
within the leader's term, it hands over once the follower is level, if a majority can elect without it (`transfer`).

Term and vote are never in doubt here: a node that cannot prove them does not start.
Source: Alagappan et al., "Protocol-Aware Recovery for Consensus-Based Storage" (FAST '18); docs/adr/0007.
"""

from __future__ import annotations

from kvnode.ids import Index
from kvnode.raft.output import QuarantineEnded
from kvnode.raft.state import NO_QUARANTINE, RaftState


def consider_lifting(state: RaftState) -> None:
    """Called whenever commit or durable index have grown."""
    if state.quarantine == NO_QUARANTINE or state.quarantine_lifting:
        return
    whole_up_to = Index(min(state.commit_index, state.writes.durable_index))
    term = state.log.term_at(whole_up_to)
    if term is not None and term > state.quarantine:
        state.quarantine_lifting = True
        state.output.lift_quarantine = True


def on_lifted(state: RaftState) -> None:
    """It is on disk that the loss is made good."""
    assert state.quarantine_lifting, state.quarantine
    state.quarantine = NO_QUARANTINE
    state.quarantine_lifting = False
    state.output.facts.append(QuarantineEnded(state.term, state.commit_index))
