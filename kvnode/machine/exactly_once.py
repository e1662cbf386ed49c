"""Exactly once: a command is answered from what is stored, or executed and its answer stored, in one entry.

So there is no moment between effect and memory of it: both are of one cut, and any later repeat, on any node, after any
failure, finds the answer where it finds the effect.
"""

from __future__ import annotations

from kvnode.config import LimitsSection
from kvnode.errors import Overloaded
from kvnode.kv.requests import ApplyResult, Command, Refusal, SessionEnd, SessionsEnded
from kvnode.machine.answers import fingerprint_of
from kvnode.machine.backend import Backend
from kvnode.machine.idempotency_keys import IdempotencyKeys
from kvnode.machine.pace import Pace, Work
from kvnode.machine.sessions import Sessions
from kvnode.machine.side_rows import SideRows


class ExactlyOnce:
    """Sessions and Idempotency-Keys of one store."""

    def __init__(self, backend: Backend, side: SideRows, limits: LimitsSection) -> None:
        self.sessions = Sessions(backend, side, limits)
        self.keys = IdempotencyKeys(backend, side, limits)
        self.repeats = 0
        """Commands that were answered without being executed, since this store was opened."""

    def carry_out(
        self, index: int, command: Command, revision: int, execution: Work[ApplyResult], pace: Pace
    ) -> Work[ApplyResult]:
        """`execution` is begun only if the command has not been executed yet."""
        if command.session and command.key:
            return Refusal("bad_request", "a session's number or an Idempotency-Key, not both", revision)
        fingerprint = fingerprint_of(command)
        if command.session:
            known = yield from self.sessions.admit(index, command, fingerprint, revision, pace)
        else:
            known = self.keys.admit(command, fingerprint, revision) if command.key else None
        if known is not None:
            execution.close()
            self.repeats += 1
            return known
        result = yield from execution
        if isinstance(result, Refusal) and result.code == Overloaded.code:
            return result  # "later" is no answer: it may be asked again under the same name
        if command.session:
            yield from self.sessions.keep(command, fingerprint, result, pace)
        elif command.key:
            self.keys.keep(index, command, fingerprint, result)
        return result

    def end(self, request: SessionEnd, pace: Pace) -> Work[SessionsEnded]:
        ended = yield from self.sessions.end(request.sessions, pace)
        forgotten = yield from self.keys.forget(request.keys_through, pace)
        return SessionsEnded(ended, forgotten)
