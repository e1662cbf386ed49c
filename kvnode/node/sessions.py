"""Ends what its time is over for: sessions not used for their ttl, Idempotency-Keys kept for their window.

The leader measures both by its own clock, from when it first saw that use, so after a change of leader everything gets
its full time again. What it decides is an entry of the log; that ends a session only if the session was not used again
before the entry's place in it. A session may live longer than its ttl, never shorter.
"""

from __future__ import annotations

from collections import deque

from kvnode.config import LimitsSection
from kvnode.kv.requests import SessionEnd
from kvnode.machine.idempotency_keys import IdempotencyKeys
from kvnode.machine.machine import StateMachine
from kvnode.machine.sessions import Sessions

LOOKED_AT_MAX = 1_000
"""Sessions looked at in one turn; the others come in the next ones."""

MARKS = 64
"""Moments in an Idempotency-Key's window at which the newest key is noted: one may be kept for so much longer."""


class SessionDuty:
    """One `Duty` for both tables, which are ended by the same request."""

    def __init__(self, machine: StateMachine, limits: LimitsSection) -> None:
        self._machine = machine
        self._window_ms = limits.idempotency_ms
        self._ahead: list[int] = []  # sessions still to be looked at in this round
        self._seen: dict[int, tuple[int, int]] = {}  # session → (index of its last use, since when it is known)
        self._marks: deque[tuple[int, int]] = deque(maxlen=2 * MARKS)  # (moment, newest key then)

    @property
    def _sessions(self) -> Sessions:
        return self._machine.exactly_once.sessions  # other ones after a snapshot

    @property
    def _keys(self) -> IdempotencyKeys:
        return self._machine.exactly_once.keys

    def begin(self, now_ms: int) -> None:
        self.end()

    def end(self) -> None:
        self._ahead.clear()
        self._seen.clear()
        self._marks.clear()

    def decide(self, now_ms: int) -> SessionEnd | None:
        unused, through = self._unused(now_ms), self._keys_through(now_ms)
        return SessionEnd(tuple(unused), through) if unused or through else None

    def _unused(self, now_ms: int) -> list[tuple[int, int]]:
        """(id, last use) of sessions whose time is over."""
        if not self._ahead:
            self._ahead = self._sessions.ids()
            self._ahead.reverse()  # taken from its end
            self._seen = {id_: seen for id_, seen in self._seen.items() if self._sessions.get(id_) is not None}
        found = []
        for id_ in self._ahead[-LOOKED_AT_MAX:]:
            session = self._sessions.get(id_)
            if session is None:
                continue
            used, since_ms = self._seen.get(id_, (0, 0))
            if used != session.used:
                self._seen[id_] = (session.used, now_ms)
            elif now_ms - since_ms >= session.ttl_ms:
                found.append((id_, used))
        del self._ahead[-LOOKED_AT_MAX:]
        return found

    def _keys_through(self, now_ms: int) -> int:
        """The newest key whose window is over; 0: there is none."""
        keys, marks = self._keys, self._marks
        while marks and marks[0][1] < keys.oldest:
            marks.popleft()
        if keys.oldest and (
            not marks or (keys.newest > marks[-1][1] and now_ms - marks[-1][0] >= self._window_ms // MARKS)
        ):
            marks.append((now_ms, keys.newest))
        over = [newest for moment, newest in marks if now_ms - moment >= self._window_ms]
        return max(over, default=0) if keys.oldest else 0
