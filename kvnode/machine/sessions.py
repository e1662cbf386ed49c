"""Sessions: a client numbers its writes, so one that is sent again is answered again and not executed again.

A session is a table from sequence to stored answer. The client frees answers by acknowledging; below that *floor* a
number is refused, as nobody knows any more what became of it. A session ends by an entry of the log only: the client's
wish, the leader's clock (`node.sessions`), or a cap, and then the one whose last use lies furthest back goes. Every use
is an entry, repeats among them, so that order is the same everywhere. What is sent under a session that has ended is
never executed (I20).

All of it is held in memory; each entry's changed rows leave with the cut that covers the entry.

Source: Fowler/Joshi, "Idempotent Receiver"; Raft thesis, §6.3; requirements IR1–IR4 of the pattern catalogue.
"""

from __future__ import annotations

from collections import OrderedDict

import msgspec

from kvnode.config import LimitsSection
from kvnode.kv.requests import ApplyResult, Command, Refusal, SessionReply
from kvnode.machine import keycode
from kvnode.machine.answers import Answer, answer
from kvnode.machine.backend import Backend
from kvnode.machine.pace import Pace, Work
from kvnode.machine.side_rows import SideRows, rows_of

OVERHEAD_BYTES = 600
"""What a session costs in memory beside its answers. Equal on all nodes, for ever."""


class SessionRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    ttl_ms: int
    used: int
    floor: int


class Session:
    """One client's numbers. `used` is the index of the entry that used it last."""

    __slots__ = ("answers", "bytes", "floor", "id", "ttl_ms", "used")

    def __init__(self, id_: int, ttl_ms: int, used: int, floor: int = 0) -> None:
        self.id = id_
        self.ttl_ms = ttl_ms
        self.used = used
        self.floor = floor  # everything up to here is acknowledged
        self.answers: dict[int, Answer] = {}
        self.bytes = OVERHEAD_BYTES


class Sessions:
    """All sessions, in the order of their last use. `revision` arguments are the store's, for refusals."""

    def __init__(self, backend: Backend, side: SideRows, limits: LimitsSection) -> None:
        self._side = side
        self._limits = limits
        self._by_use: OrderedDict[int, Session] = OrderedDict()
        self.bytes_used = 0
        self._load(backend)

    def __len__(self) -> int:
        return len(self._by_use)

    def get(self, session: int) -> Session | None:
        return self._by_use.get(session)

    def ids(self) -> list[int]:
        """Of all sessions; the one used longest ago comes first."""
        return list(self._by_use)

    def open(self, index: int, ttl_ms: int, pace: Pace) -> Work[SessionReply]:
        """Grant one; its id is the index of the entry."""
        session = self._by_use[index] = Session(index, ttl_ms, index)
        self.bytes_used += session.bytes
        self._save(session)
        yield from self._make_room(session, pace)
        return SessionReply(index, ttl_ms)

    def admit(
        self, index: int, command: Command, fingerprint: bytes, revision: int, pace: Pace
    ) -> Work[ApplyResult | None]:
        """The answer to a command that must not be executed; None: execute it, and `keep` what comes of it."""
        session, sequence = self._by_use.get(command.session), command.sequence
        if session is None:
            return Refusal("session_expired", f"there is no session {command.session} any more", revision)
        if sequence < 1:
            return Refusal("bad_request", "a session's writes are numbered from 1", revision)
        session.used = index
        self._by_use.move_to_end(session.id)
        yield from self._acknowledge(session, min(command.acknowledged, sequence - 1), pace)
        self._save(session)
        known = session.answers.get(sequence)
        if known is not None:
            return known.to(fingerprint, f"sequence {sequence} of session {session.id}", revision)
        if sequence <= session.floor:
            return Refusal("sequence_too_old", f"the answers up to sequence {session.floor} are gone", revision)
        if len(session.answers) >= self._limits.session_answers_max:
            most = self._limits.session_answers_max
            return Refusal("overloaded", f"a session keeps {most} answers: acknowledge some", revision)
        if session.bytes >= self._limits.answers_bytes_max // 2:
            return Refusal("overloaded", f"its answers take {session.bytes} bytes: acknowledge some", revision)
        return None

    def keep(self, command: Command, fingerprint: bytes, result: ApplyResult, pace: Pace) -> Work[None]:
        """The command was executed and refused or done: that is its answer from now on."""
        session = self._by_use[command.session]
        kept = session.answers[command.sequence] = answer(fingerprint, result)
        session.bytes += kept.bytes_used
        self.bytes_used += kept.bytes_used
        self._side.put(_answer_key(session.id, command.sequence), kept)
        yield from self._make_room(session, pace)

    def end(self, sessions: tuple[tuple[int, int], ...], pace: Pace) -> Work[int]:
        """End those named that were not used since whoever decided it looked; how many that are."""
        ended = 0
        for named, used in sessions:
            session = self._by_use.get(named)
            if session is not None and used in {0, session.used}:
                yield from self._end(session, pace)
                ended += 1
        return ended

    def _make_room(self, spared: Session, pace: Pace) -> Work[None]:
        """Keep to the caps: the sessions used longest ago end, the one in use never."""
        limits = self._limits
        while len(self._by_use) > limits.sessions_max or self.bytes_used > limits.answers_bytes_max:
            oldest = next(iter(self._by_use.values()))
            if oldest is spared:
                return
            yield from self._end(oldest, pace)

    def _acknowledge(self, session: Session, through: int, pace: Pace) -> Work[None]:
        if through <= session.floor:
            return
        answers = session.answers
        if through - session.floor <= len(answers):
            freed = [sequence for sequence in range(session.floor + 1, through + 1) if sequence in answers]
        else:
            freed = [sequence for sequence in answers if sequence <= through]
        session.floor = through
        for sequence in freed:
            if pace.left <= 0:
                yield
            pace.left -= 1
            self._forget(session, sequence)

    def _end(self, session: Session, pace: Pace) -> Work[None]:
        del self._by_use[session.id]
        self._side.remove(_session_key(session.id))
        for sequence in list(session.answers):
            if pace.left <= 0:
                yield
            pace.left -= 1
            self._forget(session, sequence)
        self.bytes_used -= session.bytes

    def _forget(self, session: Session, sequence: int) -> None:
        size = session.answers.pop(sequence).bytes_used
        session.bytes -= size
        self.bytes_used -= size
        self._side.remove(_answer_key(session.id, sequence))

    # ── rows ────────────────────────────────────────────────────────────────────────────────────────

    def _save(self, session: Session) -> None:
        self._side.put(_session_key(session.id), SessionRow(session.ttl_ms, session.used, session.floor))

    def _load(self, backend: Backend) -> None:
        decode = msgspec.msgpack.Decoder(SessionRow).decode
        found = [(int.from_bytes(key[1:], "big"), decode(row)) for key, row in rows_of(backend, keycode.SESSIONS)]
        for id_, row in sorted(found, key=lambda each: each[1].used):
            self._by_use[id_] = Session(id_, row.ttl_ms, row.used, row.floor)
        decode_answer = msgspec.msgpack.Decoder(Answer).decode
        for key, value in rows_of(backend, keycode.ANSWERS):
            session = self._by_use[int.from_bytes(key[1:9], "big")]
            kept = session.answers[int.from_bytes(key[9:], "big")] = decode_answer(value)
            session.bytes += kept.bytes_used
        self.bytes_used = sum(session.bytes for session in self._by_use.values())


def _session_key(session: int) -> bytes:
    return keycode.SESSIONS + session.to_bytes(8, "big")


def _answer_key(session: int, sequence: int) -> bytes:
    return keycode.ANSWERS + session.to_bytes(8, "big") + sequence.to_bytes(8, "big")
