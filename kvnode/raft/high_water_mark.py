"""High-Water Mark: the commit index, below which no entry can vanish and above which nothing may be shown.

Leader: the greatest index that a majority of voters holds *durably*, itself counted by its own finished writes only
(traps S22, C2, R1), and only if the entry there is of its own term; older ones are committed by what follows them
(trap S23, "Figure 8" of the paper). Terms never fall along the log, so looking at that one entry cannot stop the scan
at an old-term entry. Follower: the leader's mark, bounded by the last entry that this very message has verified
(traps S25, C6). It never moves back and never decides a truncation (trap C5).
"""

from __future__ import annotations

from kvnode.ids import Index, NodeId
from kvnode.raft import quorum
from kvnode.raft.state import Leadership, RaftState


def advance_leader(state: RaftState, leadership: Leadership) -> None:
    """A match index or our own durable index has grown."""

    def held(voter: NodeId) -> int:
        return state.writes.durable_index if voter == state.node else leadership.progress[voter].match_index

    index = Index(quorum.majority_value(state.configuration, held))
    if index > state.commit_index and state.log.term_at(index) == state.term:
        state.commit_index = index


def advance_follower(state: RaftState, leader_commit: Index, verified: Index) -> None:
    """The leader's mark as of an append that verified our log up to `verified`."""
    assert verified <= state.log.last_index, (verified, state.log.last_index)
    state.commit_index = max(state.commit_index, min(leader_commit, verified))
