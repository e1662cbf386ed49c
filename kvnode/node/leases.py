"""Lessor: times all leases on the leader, by its own boot-time clock; nobody else does.

- **Never early.** A lease that was granted or renewed lives for its TTL from then on; who renews counts from when it
  sent. A renewal is answered only after a confirmation of leadership that began after it arrived: an earlier leader
  that was stuck cannot extend what its successor is about to end.
- **A change of leader** gives each lease its whole TTL, or what the last *checkpoint* says it had left, and an election
  timeout on top. Checkpoints are logged for leases that nobody renews, every quarter of their TTL, so that a lease
  ends even if leaders come and go faster than that. A renewal after one is logged before it is answered, or the
  successor would believe the checkpoint.
- **Once its end is proposed** a renewal waits for the fate of that, and is logged from then on: a proposal whose fate
  is not known may still come true, but not behind a logged renewal, as it names the count of those.
- Not late by more than a turn of the duties for each batch before it: what is due is looked at, and leaves, in batches,
  the longest due first, one under way at a time.

Who renews regularly (within three eighths of the TTL) never causes a log entry.

Source: Gray and Cheriton (1989); requirements LE1–LE8 of the pattern catalogue; etcd #9395, #15247, #17132.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

import msgspec
from sortedcontainers import SortedList

from kvnode.clocks.clock import Clock
from kvnode.errors import ConnectionLost, KvnodeError, LeaseNotFound, NoLeader, Overloaded
from kvnode.kv.requests import ApplyResult, LeaseRenew, LeaseUpkeep, Refusal, WriteRequest
from kvnode.machine.leases import Lease, Leases
from kvnode.machine.machine import StateMachine
from kvnode.node.reads import Reads

ENDED_AT_ONCE = 1_024
"""Leases that one command ends."""

KEYS_AT_ONCE = 4_096
"""… and how many keys they may have together; one alone may have more."""

NOTED_AT_ONCE = 2_048
LOOKED_AT_ONCE = 2_048
"""Leases whose time has come to be looked at, in one turn; those that were renewed meanwhile are only put off."""

LOGGING_MAX = 16_384
"""Renewals that wait for the log; beyond that they are refused as overloaded."""

TAKEN_OVER_AT_ONCE = 2_048
"""Leases whose deadlines a new leader sets in one turn; until then those do not end."""


class Told(msgspec.Struct, frozen=True):
    """What the leader says about a lease; `code` of the error, "" if none."""

    code: str = ""
    remaining_ms: int = 0
    ttl_ms: int = 0


Answer = Callable[[Told], None]

NOT_LEADING = Told(NoLeader.code)
OVERLOADED = Told(Overloaded.code)
GONE = Told(LeaseNotFound.code)


class Leading(Protocol):
    """What the lessor asks of the duties."""

    def look(self) -> None: ...

    @property
    def is_leading(self) -> bool: ...

    def propose(self, request: WriteRequest) -> asyncio.Future[ApplyResult]: ...


class _Held:
    """What the leader knows of a lease beside the log."""

    __slots__ = ("checkpoint_ms", "deadline_ms", "decided_at", "due_ms", "is_ending", "lease", "waiting")

    def __init__(self, lease: Lease, deadline_ms: int, checkpoint_ms: int) -> None:
        self.lease = lease  # another one may have its id after it
        self.deadline_ms = deadline_ms
        self.checkpoint_ms = checkpoint_ms
        self.due_ms = 0  # when it is to be looked at, at the latest
        self.decided_at = -1  # a checkpoint or its end was proposed at this count of renewals: the next one is logged
        self.is_ending = False  # its end is proposed
        self.waiting: list[tuple[int, Answer]] = []  # renewals (when they arrived) that wait for the fate of that


class Lessor:
    """A duty of the leader, and the answers to renewals. Lives on the node's loop."""

    def __init__(
        self,
        *,
        machine: StateMachine,
        reads: Reads,
        clock: Clock,
        margin_ms: int,
    ) -> None:
        """`margin_ms`: what a change of leader adds to what a lease had left."""
        self._machine = machine
        self._reads = reads
        self._clock = clock
        self._margin_ms = margin_ms
        self._leading: Leading
        self._logging = 0  # renewals on their way through the log
        self._held: dict[int, _Held] = {}
        self._due: SortedList = SortedList()  # (`due_ms`, lease) of each lease held whose end is not proposed
        self._taken_over: list[int] = []  # leases of earlier leaders whose deadlines are still to be set
        self._began_ms = 0
        self._proposed: list[int] = []  # leases whose end is under way
        self.ended = 0  # by expiry, as this leader decided
        self.on_ended: Callable[[int], None] = lambda _: None
        """So many leases have ended in one entry of the log."""

    @property
    def _leases(self) -> Leases:
        return self._machine.leases  # other ones after a snapshot

    @property
    def held(self) -> int:
        """How many leases are timed here."""
        return len(self._held)

    def remaining_ms(self, lease_id: int) -> int:
        """By this node's clock, if it times that lease; else -1."""
        held = self._held.get(lease_id)
        return -1 if held is None else max(0, held.deadline_ms - self._clock.monotonic_ms())

    def connect(self, leading: Leading) -> None:
        self._leading = leading

    # ── duty ────────────────────────────────────────────────────────────────────────────────────────

    def begin(self, now_ms: int) -> None:
        """Take over: nothing that earlier leaders knew by their clocks is known here."""
        self._forget()
        self._leases.follow(wanted=True)
        self._taken_over = self._leases.ids()
        self._began_ms = now_ms

    def end(self) -> None:
        waiting = [answer for held in self._held.values() for _, answer in held.waiting]
        self._forget()
        self._leases.follow(wanted=False)
        for answer in waiting:
            answer(NOT_LEADING)

    def _forget(self) -> None:
        self._held = {}
        self._due = SortedList()
        self._taken_over = []
        self._proposed = []

    def decide(self, now_ms: int) -> WriteRequest | None:
        self._settle(now_ms)
        self._take_over()
        self._note_changes(now_ms)
        expired: list[tuple[int, int]] = []
        noted: list[tuple[int, int, int]] = []
        keys = 0
        due = self._due
        for _ in range(LOOKED_AT_ONCE):
            if not due or due[0][0] > now_ms or len(expired) >= ENDED_AT_ONCE or len(noted) >= NOTED_AT_ONCE:
                break
            held = self._held[due[0][1]]
            lease = held.lease
            if held.deadline_ms <= now_ms:
                if expired and keys + len(lease.keys) > KEYS_AT_ONCE:
                    break
                due.pop(0)  # it comes back when its fate is known
                keys += len(lease.keys)
                expired.append((lease.id, lease.renewals))
                held.is_ending = True
                held.decided_at = lease.renewals
                continue
            if held.checkpoint_ms <= now_ms:
                held.checkpoint_ms = now_ms + lease.ttl_ms // 4
                held.decided_at = lease.renewals
                noted.append((lease.id, lease.renewals, min(held.deadline_ms - now_ms, lease.ttl_ms)))
            due.pop(0)
            self._put_down(held)
        if not expired and not noted:
            return None
        self._proposed = [lease_id for lease_id, _ in expired]
        self.ended += len(expired)
        return LeaseUpkeep(tuple(sorted(expired)), tuple(sorted(noted)))

    def _note_changes(self, now_ms: int) -> None:
        """Leases that began or were renewed by the log since the last call have their whole time from now on.

        Those that ended leave nothing behind: their time may have been long.
        """
        for lease_id in self._leases.take_changed():
            lease, held = self._leases.get(lease_id), self._held.get(lease_id)
            if held is not None and held.lease is not lease and not held.is_ending:
                self._due.remove((held.due_ms, lease_id))
                del self._held[lease_id]
            if lease is not None:
                self._renew(lease, now_ms)

    def _settle(self, now_ms: int) -> None:
        """The fate of what was proposed last is known, or will never be."""
        proposed, self._proposed = self._proposed, []
        ended = 0
        for lease_id in proposed:
            held = self._held.pop(lease_id)
            lease = self._leases.get(lease_id)
            ended += lease is not held.lease
            if lease is held.lease:
                held.is_ending = False
                self._held[lease_id] = held
                self._put_down(held)
            elif lease is not None:  # another one has its id
                self._renew(lease, now_ms)
            waiting, held.waiting = held.waiting, []
            for arrived_ms, answer in waiting:
                self._confirmed(lease_id, arrived_ms, answer, renew=True)
        if ended:
            self.on_ended(ended)

    def _take_over(self) -> None:
        for _ in range(min(TAKEN_OVER_AT_ONCE, len(self._taken_over))):
            lease_id = self._taken_over.pop()
            lease = self._leases.get(lease_id)
            if lease is not None and lease_id not in self._held:
                self._take(lease)

    def _take(self, lease: Lease) -> _Held:
        """A lease of an earlier leader."""
        deadline_ms = self._began_ms + self._margin_ms + (lease.remaining_ms or lease.ttl_ms)
        held = self._hold(lease, deadline_ms, self._began_ms + lease.ttl_ms // 4)
        if lease.remaining_ms:
            held.decided_at = lease.renewals
        return held

    def _renew(self, lease: Lease, from_ms: int) -> None:
        """It lives for its TTL from then on, at least."""
        deadline_ms, checkpoint_ms = from_ms + lease.ttl_ms, from_ms + lease.ttl_ms * 3 // 8
        held = self._held.get(lease.id)
        if held is None:
            self._hold(lease, deadline_ms, checkpoint_ms)
        elif held.lease is lease:
            held.deadline_ms = max(held.deadline_ms, deadline_ms)
            held.checkpoint_ms = max(held.checkpoint_ms, checkpoint_ms)

    def _hold(self, lease: Lease, deadline_ms: int, checkpoint_ms: int) -> _Held:
        self._held[lease.id] = held = _Held(lease, deadline_ms, checkpoint_ms)
        self._put_down(held)
        return held

    def _put_down(self, held: _Held) -> None:
        """To be looked at when it is due."""
        held.due_ms = min(held.deadline_ms, held.checkpoint_ms)
        self._due.add((held.due_ms, held.lease.id))

    # ── renewals ────────────────────────────────────────────────────────────────────────────────────

    def ask(self, lease_id: int, *, renew: bool, answer: Answer) -> None:
        """Renew a lease, or only look. Answered soon, with an error if this node does not lead."""
        self._leading.look()
        if not self._leading.is_leading:
            answer(NOT_LEADING)
            return
        try:
            confirmed = self._reads.wait()
        except Overloaded:
            answer(OVERLOADED)
            return
        arrived_ms = self._clock.monotonic_ms()

        def on_confirmed(_: object) -> None:
            if confirmed.cancelled() or confirmed.exception() is not None:
                answer(NOT_LEADING)
            else:
                self._confirmed(lease_id, arrived_ms, answer, renew=renew)

        confirmed.add_done_callback(on_confirmed)

    def _confirmed(self, lease_id: int, arrived_ms: int, answer: Answer, *, renew: bool) -> None:
        """This node led at a moment after the renewal arrived; what was committed then is applied."""
        self._leading.look()
        if not self._leading.is_leading:
            answer(NOT_LEADING)
            return
        lease = self._leases.get(lease_id)
        if lease is None:
            answer(GONE)
            return
        held = self._held.get(lease_id)
        if held is None or held.lease is not lease:
            self._note_changes(self._clock.monotonic_ms())  # it may have begun since the last turn
            held = self._held.get(lease_id) or self._take(lease)
        if not renew:
            answer(Told("", max(0, held.deadline_ms - self._clock.monotonic_ms()), lease.ttl_ms))
        elif held.is_ending:
            held.waiting.append((arrived_ms, answer))
        elif held.decided_at == lease.renewals:
            self._log(lease, arrived_ms, answer)
        else:
            self._renew(lease, arrived_ms)
            answer(Told("", lease.ttl_ms, lease.ttl_ms))

    def _log(self, lease: Lease, arrived_ms: int, answer: Answer) -> None:
        if self._logging >= LOGGING_MAX:
            answer(OVERLOADED)
            return
        self._logging += 1
        self._renew(lease, arrived_ms)  # already now: an end that is decided meanwhile would be void
        fate = self._leading.propose(LeaseRenew(lease.id))
        fate.add_done_callback(lambda _: self._logged(lease.id, _code_of(fate), answer))

    def _logged(self, lease_id: int, code: str, answer: Answer) -> None:
        self._logging -= 1
        lease = self._leases.get(lease_id)
        if code or lease is None:
            answer(Told(code or LeaseNotFound.code))
            return
        answer(Told("", lease.ttl_ms, lease.ttl_ms))


def _code_of(fate: asyncio.Future[ApplyResult]) -> str:
    if fate.cancelled():
        return ConnectionLost.code
    error = fate.exception()
    if error is not None:
        return error.code if isinstance(error, KvnodeError) else KvnodeError.code
    result = fate.result()
    return result.code if isinstance(result, Refusal) else ""
