"""Quarantine: a member that has lost entries it acknowledged neither votes nor stands until it has everything again.

Whoever counted this member's acknowledgements may have committed what it no longer holds. So it must not help to
elect a leader that lacks them: without its vote, every majority that elects still shares a healthy member with
every majority that committed. Meanwhile it takes appends, and acknowledges what it holds: its log is an intact prefix,
extended by what a leader verified, so such an acknowledgement is true, and harmless even beside the lost ones.

How it ends. Each start of a member is a *life* with a higher number, and every answer to an append names it. A leader
that hears of a life in quarantine forgets what it knew to match, takes no answer of an earlier life any more
(`replication`), and says so by repeating the number in its heartbeats. From then on what was lost can commit nothing
new in that term; what it did commit lies at or below that heartbeat's commit index, or is of an earlier term and lies
below the first entry of the leader's own. So the loss is made good when, in that leader's term, an entry of that term
and the heartbeat's commit index are committed and durable here. That this is so is made durable first
(`Output.lift_quarantine`), then the member votes again.

Term and vote are never in doubt here: a node that cannot prove them does not start.
Source: Alagappan et al., "Protocol-Aware Recovery for Consensus-Based Storage" (FAST '18); docs/adr/0007.
"""

from __future__ import annotations

from kvnode.ids import Index
from kvnode.raft.messages import AppendEntries
from kvnode.raft.output import QuarantineEnded
from kvnode.raft.state import RaftState


def on_append(state: RaftState, message: AppendEntries) -> None:
    """An append of the current term: its leader may have forgotten what earlier lives acknowledged."""
    if not state.is_quarantined or message.life != state.life:
        return
    term, _ = state.quarantine_goal
    if term != state.term:
        state.quarantine_goal = (state.term, message.commit_index)


def consider_lifting(state: RaftState) -> None:
    """Called whenever commit or durable index may have grown."""
    if not state.is_quarantined or state.quarantine_lifting:
        return
    term, goal = state.quarantine_goal
    whole_up_to = Index(min(state.commit_index, state.writes.durable_index))
    if term == state.term == state.log.term_at(whole_up_to) and whole_up_to >= goal:
        state.quarantine_lifting = True
        state.output.lift_quarantine = True


def on_lifted(state: RaftState) -> None:
    """It is on disk that the loss is made good."""
    assert state.quarantine_lifting, "nobody asked for it"
    state.is_quarantined = state.quarantine_lifting = False
    state.output.facts.append(QuarantineEnded(state.term, state.commit_index))
