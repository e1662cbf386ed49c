"""Replicated log: the leader offers entries after a point both hold, the follower takes them or says where they part.

Leader: appends are built once per output, so that many proposals make one message; followers with the same next
index share it. A heartbeat is an empty append at the follower's *match*, on its own schedule, never behind the window
or the disk (traps S43, S44). When the commit index rises on an idle line an empty append, the *note*, tells it: at
once where clients of the follower wait for it, else within `commit_note_ms`, which under load the next append
undercuts. A note is not answered: it would cost as much as the append itself.

Follower: an append is judged by (prev_index, prev_term) alone, the empty log included (traps S18, C4); entries in
place are skipped, and only a proven conflict of terms above the commit index is cut (trap C5; scenarios S20–S26).
Source: Raft thesis §3.5; back-up by terms §3.5, end; pipelining §10.2.
"""

from __future__ import annotations

from collections.abc import Sequence

from kvnode.ids import Index, NodeId, Term
from kvnode.raft import clock_drift, generation, high_water_mark, leader_lease, quarantine, read_index
from kvnode.raft.log import RaftLog
from kvnode.raft.membership import encode_configuration
from kvnode.raft.messages import (
    ENTRY_OVERHEAD_BYTES,
    AppendEntries,
    AppendReply,
    Configuration,
    Entry,
    EntryKind,
    Fetched,
    Proposed,
    entry_bytes,
)
from kvnode.raft.output import Fetch, FollowerLost, LogTruncated, SendSnapshot, SnapshotNeeded
from kvnode.raft.progress import Progress
from kvnode.raft.state import Leadership, RaftState

_CONFIGURATION = EntryKind.CONFIGURATION.value

# ── leader: its own log ─────────────────────────────────────────────────────────────────────────────


def append_no_op(state: RaftState) -> None:
    """A new leader's first entry: commits what earlier terms left behind."""
    index = Index(state.log.last_index + 1)
    payload = str(state.node).encode()
    state.log.extend((Entry(state.term, index, state.clock.next(state.wall_ms), EntryKind.NOOP.value, payload),))


def append_proposals(state: RaftState, batch: Sequence[Proposed]) -> int:
    """Append commands of `batch` as far as the uncommitted budget allows, or to the first change of members.

    They are stamped in order. Returns how many that were.
    """
    settings, log, term = state.settings, state.log, state.term
    stamp, wall_ms = state.clock.next, state.wall_ms
    room = settings.uncommitted_bytes_max - state.uncommitted_bytes
    index = log.last_index
    entries: list[Entry] = []
    for proposed in batch:
        if room <= 0 or proposed.kind == _CONFIGURATION:
            break
        payload = proposed.payload
        room -= len(payload) + ENTRY_OVERHEAD_BYTES
        index = Index(index + 1)
        entries.append(Entry(term, index, stamp(wall_ms), proposed.kind, payload, proposed.session, proposed.sequence))
    log.extend(entries)
    return len(entries)


def append_configuration(state: RaftState, proposed: Proposed, configuration: Configuration) -> None:
    """Append a change of members that was judged to be right; it is in force from now on."""
    index = Index(state.log.last_index + 1)
    payload = encode_configuration(configuration)
    stamp = state.clock.next(state.wall_ms)
    kind = EntryKind.CONFIGURATION.value
    state.log.extend((Entry(state.term, index, stamp, kind, payload, proposed.session, proposed.sequence),))


def track_members(state: RaftState, known: dict[NodeId, Progress]) -> dict[NodeId, Progress]:
    """Progress of every member but this node; a new one starts as a probe at the end of the log."""
    next_index = Index(state.log.last_index + 1)
    return {
        member: known.get(member) or Progress(next_index, contact_ms=state.now_ms)
        for member in state.log.membership.members
        if member != state.node
    }


# ── leader: to the followers ────────────────────────────────────────────────────────────────────────


def on_heartbeat_due(state: RaftState, leadership: Leadership) -> None:
    """Beat, let probes try again, and give up on appends that were not answered for an election timeout."""
    leadership.heartbeat_deadline_ms = state.now_ms + state.settings.heartbeat_ms
    leadership.heartbeat_due = True
    leader_lease.on_heartbeat(state, leadership)
    leadership.transfer_sent = False
    for progress in leadership.progress.values():
        progress.is_paused = False
        if progress.is_stuck(state.now_ms, state.settings.election_timeout_ms):
            progress.become_probe()


def on_note_due(leadership: Leadership) -> None:
    """No append came by to carry the commit index."""
    leadership.note_deadline_ms = 0
    leadership.note_due = True


class _Burst:
    """The appends of one output; equal ones are built once and shared."""

    __slots__ = ("_appends", "_leadership", "_state")

    def __init__(self, state: RaftState, leadership: Leadership) -> None:
        self._state = state
        self._leadership = leadership
        self._appends: dict[Index, tuple[AppendEntries, int]] = {}

    def send_to(self, peer: NodeId, progress: Progress) -> None:
        """Heartbeat if due, what the window holds of new entries, and the commit index if nothing else told it."""
        state = self._state
        if self._leadership.heartbeat_due:
            self._send_empty(peer, progress, quiet=False)
        if peer not in state.disconnected:
            if progress.state == "probe":
                if not progress.is_paused:
                    self._send_entries(peer, progress)
            elif progress.state == "replicate":
                settings, last_index = state.settings, state.log.last_index
                while progress.next_index <= last_index and progress.has_room(
                    settings.window_messages_max, settings.window_bytes_max
                ):
                    if not self._send_entries(peer, progress):
                        break
        if min(state.commit_index, progress.match_index) > progress.commit_sent:
            self._note_commit(peer, progress)

    def _note_commit(self, peer: NodeId, progress: Progress) -> None:
        """Nothing in this output carries the commit index to `peer`: tell it, now or by the deadline."""
        leadership, patience_ms = self._leadership, self._state.settings.commit_note_ms
        if patience_ms == 0 or leadership.note_due or progress.commit_wanted > progress.commit_sent:
            self._send_empty(peer, progress, quiet=True)
        elif leadership.note_deadline_ms == 0:
            leadership.note_deadline_ms = self._state.now_ms + patience_ms

    def _send_empty(self, peer: NodeId, progress: Progress, *, quiet: bool) -> None:
        prev = progress.match_index
        prev_term = self._state.log.term_at(prev)
        if prev_term is None:  # it lies below our base: the empty prefix is the only point both are sure to share
            prev, prev_term = Index(0), Term(0)
        life = progress.life if progress.is_quarantined else 0
        _send(self._state, peer, progress, _append(self._state, prev, prev_term, (), quiet=quiet, life=life))

    def _send_entries(self, peer: NodeId, progress: Progress) -> bool:
        """One append at `next_index`, empty if there is nothing to send. False: the entries are not in memory."""
        state, first = self._state, progress.next_index
        shared = self._appends.get(first)
        if shared is None:
            prev = Index(first - 1)
            prev_term = state.log.term_at(prev)
            if prev_term is None:
                _need_snapshot(state, peer, progress)
                return False
            entries = state.log.slice(first, state.log.last_index, state.settings.append_bytes_max)
            if entries is None:
                _fetch(state, peer, progress)
                return False
            size = state.log.bytes_between(prev, Index(prev + len(entries)))
            shared = self._appends[first] = (_append(state, prev, prev_term, entries), size)
        append, size = shared
        progress.on_sent(Index(first - 1 + len(append.entries)), size, state.now_ms)
        _send(state, peer, progress, append)
        return True


def send_appends(state: RaftState, leadership: Leadership) -> None:
    """Everything this output has for the followers. Called once per output."""
    burst = _Burst(state, leadership)
    for peer, progress in leadership.progress.items():
        burst.send_to(peer, progress)
    leadership.heartbeat_due = leadership.note_due = False


def _append(
    state: RaftState,
    prev: Index,
    prev_term: Term,
    entries: tuple[Entry, ...],
    *,
    quiet: bool = False,
    life: int = 0,
) -> AppendEntries:
    commit_index, read_round = state.commit_index, state.read_round
    return AppendEntries(state.term, state.node, prev, prev_term, entries, commit_index, read_round, quiet, life)


def _send(state: RaftState, peer: NodeId, progress: Progress, append: AppendEntries) -> None:
    told = min(append.commit_index, Index(append.prev_index + len(append.entries)))
    progress.commit_sent = max(progress.commit_sent, told)
    state.send(peer, append)


def _need_snapshot(state: RaftState, peer: NodeId, progress: Progress) -> None:
    progress.become_snapshot()
    state.output.snapshots.append(SendSnapshot(peer, progress.next_index))
    state.output.facts.append(SnapshotNeeded(peer, progress.next_index))


def _fetch(state: RaftState, peer: NodeId, progress: Progress) -> None:
    if progress.is_fetching:
        return
    progress.is_fetching = True
    last = Index(state.log.first_in_memory - 1)
    state.output.fetches.append(Fetch(peer, progress.next_index, last, state.settings.append_bytes_max))


def on_fetched(state: RaftState, message: Fetched) -> None:
    """Entries came back from disk; they are sent if the follower still wants exactly these."""
    leadership = state.leadership
    progress = leadership.progress.get(message.peer) if leadership is not None else None
    if progress is None or not progress.is_fetching:
        return
    progress.is_fetching = False
    entries = message.entries
    if not entries or entries[0].index != progress.next_index or progress.is_paused:
        return
    prev = Index(progress.next_index - 1)
    prev_term = state.log.term_at(prev)
    if prev_term is None:
        return
    progress.on_sent(entries[-1].index, sum(map(entry_bytes, entries)), state.now_ms)
    _send(state, message.peer, progress, _append(state, prev, prev_term, entries))


# ── leader: the answers ─────────────────────────────────────────────────────────────────────────────


def on_append_reply(state: RaftState, message: AppendReply) -> None:
    """An answer of this term: proof of life, echo of a read round, and news of the follower's log."""
    leadership = state.leadership
    progress = leadership.progress.get(message.sender) if leadership is not None else None
    if leadership is None or progress is None or message.life < progress.life:
        return
    if message.life > progress.life or message.quarantined != progress.is_quarantined:
        look_at = min(message.last_index, state.log.last_index)
        progress.on_life(message.life, is_quarantined=message.quarantined, look_at=look_at)
    progress.contact_ms = state.now_ms
    progress.has_answered = True
    if message.read_round > progress.read_round:
        progress.read_round = message.read_round
        read_index.confirm(state, leadership)
    if not message.accepted:
        if progress.has_lost(message.index):
            state.output.facts.append(FollowerLost(message.sender, progress.match_index, message.last_index))
            progress.on_loss(_look_at(state.log, message))
        else:
            progress.on_rejected(message.index, _look_at(state.log, message))
        return
    assert message.index <= state.log.last_index, (message, state.log.last_index)
    is_news = progress.on_accepted(message.index, state.now_ms, state.log.last_index)
    if progress.state == "snapshot" and progress.match_index >= state.log.base.index:
        progress.become_probe()  # the log reaches it
    if is_news:
        high_water_mark.advance_leader(state, leadership)
        if message.ahead_ms:
            progress.on_stamp_refused(state.now_ms)
    elif message.ahead_ms:
        clock_drift.on_refused(state, leadership, progress, message.ahead_ms)
    elif progress.is_lost(message.last_index) and progress.is_stuck(state.now_ms, 2 * state.settings.heartbeat_ms):
        progress.become_probe()


def _look_at(log: RaftLog, message: AppendReply) -> Index:
    """The last index that may match, given that the one at `message.index` does not: skips a term at a time."""
    limit = Index(max(message.index - 1, 0))
    if message.hint_term == 0:
        return min(message.hint_index, limit)
    candidate = log.last_with_term_at_most(message.hint_term, limit)
    if log.term_at(candidate) == message.hint_term:
        return candidate
    # We hold nothing of that term: no entry of it can match, so try just before the follower's first one.
    return min(candidate, Index(max(message.hint_index - 1, 0)))


# ── follower ────────────────────────────────────────────────────────────────────────────────────────


def on_append_entries(state: RaftState, message: AppendEntries) -> None:
    """An append of our own term: the sender is its leader, whatever becomes of the entries."""
    generation.follow(state, message.sender)
    quarantine.on_append(state, message)
    found = _accept(state, message)
    if found is None:
        _reject(state, message)
        return
    verified, ahead_ms = found
    high_water_mark.advance_follower(state, message.commit_index, verified)
    quarantine.consider_lifting(state)
    if message.quiet:
        return
    reply = AppendReply(
        term=state.term,
        sender=state.node,
        accepted=True,
        index=verified,
        last_index=state.log.last_index,
        read_round=message.read_round,
        life=state.life,
        quarantined=state.is_quarantined,
        ahead_ms=ahead_ms,
    )
    state.send(message.sender, reply, holds=verified)


def _accept(state: RaftState, message: AppendEntries) -> tuple[Index, int] | None:
    """Take over the entries if the logs meet at prev; the last index now known to be equal, or None.

    Of entries that are stamped too far ahead, those before them are taken; and by how many milliseconds that is.
    """
    log, commit = state.log, state.commit_index
    entries = message.entries
    last = Index(message.prev_index + len(entries))
    if message.prev_index < commit:
        # What is committed here equals the leader's log, even below our base (scenario S25).
        if last <= commit:
            return max(last, min(commit, state.writes.durable_index)), 0
        entries = entries[commit - message.prev_index :]
    elif log.term_at(message.prev_index) != message.prev_term:
        return None
    if not entries:
        return last, 0
    taken, ahead_ms = clock_drift.judge(state, message, entries)
    fresh = _without_present(state, entries[:taken])
    if fresh:
        log.extend(fresh)
        state.clock.observe(fresh[-1].time)
    return Index(last - len(entries) + taken), ahead_ms


def _without_present(state: RaftState, entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
    """The entries not in the log yet, after cutting off ours from the first one of another term."""
    log = state.log
    if not entries or entries[0].index > log.last_index:
        return entries
    first = entries[0].index
    overlap = min(log.last_index - first + 1, len(entries))
    if log.term_at(entries[overlap - 1].index) == entries[overlap - 1].term:
        return entries[overlap:]  # equal at the end of the overlap means equal throughout (Log Matching)
    for position in range(overlap):
        entry = entries[position]
        if log.term_at(entry.index) != entry.term:
            _truncate(state, entry.index)
            return entries[position:]
    raise AssertionError("terms differ at the end of the overlap but nowhere within it")


def _truncate(state: RaftState, first: Index) -> None:
    assert first > state.commit_index, ("a committed entry would be cut", first, state.commit_index)
    state.output.facts.append(LogTruncated(first, state.log.last_index))
    state.log.truncate_from(first)
    state.clock.rewind(state.log.last_time)
    state.writes.on_truncated(first)


def _reject(state: RaftState, message: AppendEntries) -> None:
    log, prev = state.log, message.prev_index
    found = log.term_at(prev)
    if found is None:
        hint_term, hint_index = Term(0), log.last_index
    else:
        hint_term, hint_index = found, log.first_of_term_at(prev)
    reply = AppendReply(
        term=state.term,
        sender=state.node,
        accepted=False,
        index=prev,
        hint_term=hint_term,
        hint_index=hint_index,
        last_index=log.last_index,
        read_round=message.read_round,
        life=state.life,
        quarantined=state.is_quarantined,
    )
    state.send(message.sender, reply)
