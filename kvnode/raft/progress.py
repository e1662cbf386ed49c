"""Progress of one follower as its leader sees it: what it holds, what to send next, how much is under way.

This is the Request Pipeline of replication. *probe*: where the logs part is not known (or a message was lost), so
one message at a time, at most one per heartbeat unless answered. *replicate*: `next_index` runs ahead of the
acknowledgements, up to a window of messages and bytes. *snapshot*: our log begins behind what the follower needs, so it
gets the state instead of entries, and meanwhile only heartbeats. That ends with the attempt to send it, or as soon as
the follower acknowledges something our log still reaches.

Invariants: 0 ≤ match_index < next_index; match_index never falls within a leadership, unless the follower has lost
entries (`quarantine`, `has_lost`), and is only ever set from an acceptance of this term (traps R3, S56); the window is
freed by acknowledged index, not by counting answers, so lost, duplicated and reordered answers cannot leak it or shift
it (traps S54, S55). Source: Raft thesis §10.2.2.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from kvnode.ids import Index

ProgressState = Literal["probe", "replicate", "snapshot"]

_NONE = Index(0)


@dataclass(slots=True)
class Progress:
    """One follower or learner, for the length of one leadership."""

    next_index: Index
    contact_ms: int  # last answer of this term; the moment of election before the first one
    match_index: Index = _NONE
    state: ProgressState = "probe"
    has_answered: bool = False
    is_paused: bool = False  # a probe is out: wait for its answer or the next heartbeat
    window: deque[tuple[Index, int]] = field(default_factory=deque)  # (last index, bytes) of each append in flight
    window_bytes: int = 0
    advanced_ms: int = 0  # when match last rose, or the window was last empty
    read_round: int = 0  # the highest read round it has echoed
    commit_sent: Index = _NONE  # the commit index it will know once it has everything sent
    commit_wanted: Index = _NONE  # its clients wait for this index: it is told at once
    is_fetching: bool = False  # entries for it are being read from disk
    life: int = 0  # the newest of its lives that answered; answers of earlier ones are void
    match_life: int = 0  # the life that acknowledged `match_index`
    is_quarantined: bool = False  # an earlier life of it acknowledged entries that are lost
    refused_ms: int | None = None  # when it last refused a stamp, having taken nothing since

    @property
    def in_flight(self) -> int:
        """Append messages sent and not yet acknowledged."""
        return len(self.window)

    def has_room(self, messages_max: int, bytes_max: int) -> bool:
        return len(self.window) < messages_max and self.window_bytes < bytes_max

    def on_sent(self, last: Index, size: int, now_ms: int) -> None:
        """Entries up to `last` (`size` bytes) are under way; a probe's are not counted on before they are answered."""
        if self.state == "probe":
            self.is_paused = True
            return
        if not self.window:
            self.advanced_ms = now_ms
        self.window.append((last, size))
        self.window_bytes += size
        self.next_index = Index(last + 1)

    def on_accepted(self, index: Index, now_ms: int, log_last: Index) -> bool:
        """The follower durably holds our log up to `index`. Returns whether that is news."""
        is_news = index > self.match_index
        if is_news:
            self.match_index = index
            self.match_life = self.life
            self.refused_ms = None
            self.advanced_ms = now_ms
            while self.window and self.window[0][0] <= index:
                self.window_bytes -= self.window.popleft()[1]
            self.next_index = max(self.next_index, Index(index + 1))
        if self.state == "probe":
            is_probe_answered = index >= self.next_index - 1
            if is_news or (is_probe_answered and self.next_index > log_last):
                self._become_replicate()
            elif is_probe_answered:
                self.is_paused = False
        return is_news

    def on_rejected(self, prev_index: Index, look_at: Index) -> bool:
        """The entry at `prev_index` did not match; `look_at` is the next one to try. False: stale, ignored."""
        is_current = self.match_index < prev_index < self.next_index and self.state != "snapshot"
        if self.state == "probe":
            is_current = is_current and prev_index == self.next_index - 1
        if not is_current:
            return False
        self.become_probe(Index(min(look_at, prev_index - 1) + 1))
        return True

    def become_probe(self, next_index: Index | None = None) -> None:
        """Send one message and wait: at `next_index`, or right after what is known to match.

        While nothing is known to match it stays with what was to be tried next: at the beginning of the log, where that
        has been cut, a follower that is level would be sent a snapshot.
        """
        if next_index is None and not self.match_index and self.state != "replicate":
            next_index = self.next_index
        self.state = "probe"
        self.next_index = max(next_index or Index(0), Index(self.match_index + 1))
        self.is_paused = False
        self.is_fetching = False
        self.window.clear()
        self.window_bytes = 0

    def become_snapshot(self) -> None:
        """It needs what our log does not hold any more: the state is sent, and no entries until that is over."""
        self.become_probe(self.next_index)
        self.state = "snapshot"

    def on_snapshot_over(self, index: Index) -> None:
        """The attempt to send it is over; `index` is what it contained, 0 if it failed: then a beat passes first."""
        if self.state == "snapshot":
            self.become_probe(Index(index + 1))
            self.is_paused = index == 0

    def on_stamp_refused(self, now_ms: int) -> None:
        """It holds what it accepted and does not take what follows, for now: try again with the next heartbeat."""
        self.refused_ms = now_ms
        if self.state != "snapshot":
            self.become_probe()
            self.is_paused = True

    def on_life(self, life: int, *, is_quarantined: bool, look_at: Index) -> None:
        """An answer of `life`; one in quarantine that is new has lost something."""
        if is_quarantined and life > self.life:
            self.on_loss(look_at)
        self.life, self.is_quarantined = life, is_quarantined

    def has_lost(self, prev_index: Index) -> bool:
        """Whether a rejection at `prev_index` proves that what an earlier life acknowledged is not there any more."""
        return prev_index <= self.match_index and self.match_life < self.life

    def on_loss(self, look_at: Index) -> None:
        """Nothing is known to match; `look_at` is the next to try."""
        self.match_index = self.commit_sent = _NONE
        self.become_probe(Index(look_at + 1))

    def _become_replicate(self) -> None:
        self.state = "replicate"
        self.next_index = Index(self.match_index + 1)
        self.is_paused = False

    def is_stuck(self, now_ms: int, patience_ms: int) -> bool:
        """Appends are in flight and none has been acknowledged for `patience_ms`: one was probably lost."""
        return bool(self.window) and now_ms - self.advanced_ms >= patience_ms

    def is_lost(self, last_index: Index) -> bool:
        """The follower's log does not even reach the oldest append in flight (a slow disk there looks different)."""
        return bool(self.window) and last_index < self.window[0][0]
