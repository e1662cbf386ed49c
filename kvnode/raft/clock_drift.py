"""Clock drift: no leader's wall clock drags the hybrid time of the cluster further ahead than the limit.

An entry's stamp is its leader's wall clock or, where the log is ahead of that, the very next one after the entry
before. A follower does not take an *uncommitted* entry whose stamp lies more than `raft.clock_drift_ms` ahead of its
own wall clock, unless it is such a very next one; so a slow clock can always lead, also after all clocks were set
back. What is committed is always taken. Whoever refuses says so in its reply, which acknowledges what it did take.

A leader that is left without a majority by this steps down at once, and does not campaign for `ABSTAINS` election
timeouts or until its clock is in line, and so does a node whose wall clock jumps against the monotonic one. Meanwhile a
member with a better clock is elected, if one can be: if it has everything, and a majority is there.

No clock may cost the cluster its liveness, so all of this ends. Where nothing has been committed for `PATIENCE`
election timeouts since the first refusal (the only majority there is cannot agree on the time, or the longest log is
that of the fast clock), the leader's stamps are tolerated for the rest of its term. All clocks jumping together only
delays the next election. Nothing here bears on safety: a refused entry is one that did not arrive.

Source: the drift limit of CockroachDB and MongoDB (SERVER-29396 is why it is never 0); docs/adr/0009.
"""

from __future__ import annotations

from kvnode.clocks import hybrid
from kvnode.ids import NOBODY, Index, NodeId
from kvnode.raft import generation, quorum
from kvnode.raft.messages import AppendEntries, Entry
from kvnode.raft.output import ClockAhead, ClockJumped, StampRefused, StampTolerated
from kvnode.raft.progress import Progress
from kvnode.raft.state import Leadership, RaftState

PATIENCE = 3
ABSTAINS = 4
"""In election timeouts. Patience ends first: who comes back after abstaining is not refused again."""

ALARM_MS = 60_000
"""A refusal is shown to operators for so long."""

# ── this node's clock ───────────────────────────────────────────────────────────────────────────────


def look(state: RaftState) -> None:
    """At every step: has the wall clock jumped, is it back?"""
    watch = state.watch
    offset_ms = state.wall_ms - state.now_ms
    before_ms, watch.offset_ms = watch.offset_ms, offset_ms
    if before_ms == offset_ms or before_ms is None:
        return
    limit_ms = state.settings.clock_drift_ms
    if watch.abstains_until_ms is not None and abs(offset_ms - watch.in_line_offset_ms) <= limit_ms:
        watch.abstains_until_ms = None
    elif abs(offset_ms - before_ms) > limit_ms:
        watch.jumps += 1
        state.output.facts.append(ClockJumped(offset_ms - before_ms))
        _abstain(state, before_ms)


def _abstain(state: RaftState, in_line_offset_ms: int) -> None:
    state.watch.abstains_until_ms = state.now_ms + ABSTAINS * state.settings.election_timeout_ms
    state.watch.in_line_offset_ms = in_line_offset_ms


def abstains(state: RaftState) -> bool:
    """Whether this node should not stand for election: another one's clock is better."""
    until_ms = state.watch.abstains_until_ms
    is_alone = state.configuration.voters == (state.node,)
    return until_ms is not None and state.now_ms < until_ms and not is_alone


# ── follower ────────────────────────────────────────────────────────────────────────────────────────


def judge(state: RaftState, message: AppendEntries, entries: tuple[Entry, ...]) -> tuple[int, int]:
    """How many of `entries`, which follow what we hold, to take; and how far ahead the next one is, in milliseconds."""
    bound = hybrid.latest_at(state.wall_ms + state.settings.clock_drift_ms)
    if entries[-1].time <= bound:
        return len(entries), 0
    log = state.log
    before = log.time_at(Index(entries[0].index - 1))
    for position, entry in enumerate(entries):
        is_forced = entry.time == before + 1
        is_settled = entry.index <= message.commit_index or log.term_at(entry.index) == entry.term
        if entry.time > bound and not is_forced and not is_settled:
            ahead_ms = hybrid.wall_part_ms(entry.time) - state.wall_ms
            return (position, ahead_ms) if _refuses(state, message.sender, ahead_ms) else (len(entries), 0)
        before = entry.time
    return len(entries), 0


def _refuses(state: RaftState, leader: NodeId, ahead_ms: int) -> bool:
    watch = state.watch
    if watch.tolerated_term == state.term:
        return False
    if watch.refusing_since_ms is None or watch.refusing_at < state.commit_index:
        watch.refusing_since_ms, watch.refusing_at = state.now_ms, state.commit_index
    if state.now_ms - watch.refusing_since_ms >= PATIENCE * state.settings.election_timeout_ms:
        watch.tolerated_term = state.term
        state.output.facts.append(StampTolerated(leader, ahead_ms))
        return False
    if watch.refused_term != state.term:
        watch.refused_term = state.term
        state.output.facts.append(StampRefused(leader, ahead_ms))
    watch.refused_leader, watch.refused_ms, watch.ahead_ms = leader, state.now_ms, ahead_ms
    watch.refusals += 1
    return True


def alarm(state: RaftState) -> str:
    """Whose clock is wrong, in words; "" if this node knows of none."""
    watch = state.watch
    if watch.refused_leader != NOBODY and state.now_ms - watch.refused_ms < ALARM_MS:
        return f"the clock of node {watch.refused_leader} is {watch.ahead_ms} ms ahead of this node's"
    return "this node's wall clock has jumped, or is ahead of a majority's" if abstains(state) else ""


# ── leader ──────────────────────────────────────────────────────────────────────────────────────────


def on_refused(state: RaftState, leadership: Leadership, progress: Progress, ahead_ms: int) -> None:
    """A follower does not take our stamps: go, if those who do and those who may be no majority."""
    progress.on_stamp_refused(state.now_ms)
    since_ms = state.now_ms - state.settings.election_timeout_ms

    def may_agree(voter: NodeId) -> bool:
        if voter == state.node:
            return True
        other = leadership.progress[voter]
        return other.contact_ms > since_ms and (other.refused_ms is None or other.refused_ms <= since_ms)

    if quorum.has_majority(state.configuration, [voter for voter in state.configuration.voters if may_agree(voter)]):
        return
    state.output.facts.append(ClockAhead(ahead_ms))
    _abstain(state, state.wall_ms - state.now_ms - ahead_ms)
    generation.become_follower(state, "clock ahead of a majority")
