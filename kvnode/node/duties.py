"""Duties: what the leader's node does beside replication: compaction, ending what has expired, finishing what was
asked of the members.

A duty begins once this node has applied an entry of the term it leads, so that it has seen everything earlier leaders
did, and ends with the term. What it decides is proposed as the leader of that very term: in any other the proposal is
void, and it is never forwarded (etcd #15247: a leader that was stuck must not carry out an old decision). Whether the
decision still holds is checked again at apply. Each is asked every `TURN_MS`; after what it decided was carried out,
once `RESTS` times as long has passed as that took. So a backlog is worked off in small pieces that leave clients room.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import Protocol

from kvnode.clocks.clock import Clock
from kvnode.errors import KvnodeError
from kvnode.ids import Term
from kvnode.kv.members import MemberChange
from kvnode.kv.requests import ApplyResult, WriteRequest
from kvnode.machine.machine import StateMachine
from kvnode.node.driver import Driver
from kvnode.node.waiting_list import WaitingList
from kvnode.observe.log import get_logger
from kvnode.raft.core import Raft
from kvnode.raft.messages import EntryKind, LeaderProposals, Proposed
from kvnode.wire.codec import encode_change, encode_request

TURN_MS = 100
RESTS = 3
AGAIN_MS_MIN = 10
AGAIN_MS_MAX = 1_000
PROPOSAL_MS = 5_000
"""A proposal that has no fate by then is given up; what is still due is decided anew."""

NOT_LEADING = Term(0)

log = get_logger("duties")


class Duty(Protocol):
    """One thing to look after. Each has at most one proposal under way, or just carried out."""

    def begin(self, now_ms: int) -> None:
        """This node leads from now on; nothing an earlier leader knew by its clock is known here."""
        ...

    def end(self) -> None:
        """It does not lead any more."""
        ...

    def decide(self, now_ms: int) -> WriteRequest | MemberChange | None:
        """What is to be proposed now, if anything. Not called again before the fate of that is known."""
        ...


class Duties:
    """Calls the duties and proposes what they decide. Lives on the node's loop."""

    def __init__(
        self,
        *,
        raft: Raft,
        machine: StateMachine,
        driver: Driver,
        waiting: WaitingList,
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
        on_failed: Callable[[BaseException], None],
    ) -> None:
        self._raft = raft
        self._machine = machine
        self._driver = driver
        self._waiting = waiting
        self._loop = loop
        self._clock = clock
        self._on_failed = on_failed
        self._duties: list[Duty] = []
        self._under_way: dict[int, asyncio.Future[ApplyResult]] = {}  # by position of the duty
        self._rests: dict[int, asyncio.TimerHandle] = {}
        self._timer: asyncio.TimerHandle | None = None
        self.term = NOT_LEADING
        """The term that this node leads and whose first entry it has applied; NOT_LEADING otherwise."""

    def add(self, duty: Duty) -> None:
        """Before `start`."""
        self._duties.append(duty)

    def start(self) -> None:
        self._timer = self._loop.call_later(TURN_MS / 1e3, self._turn)

    def stop(self) -> None:
        """Decide nothing more. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
        self._end()

    @property
    def is_leading(self) -> bool:
        return self.term != NOT_LEADING

    def look(self) -> None:
        """Notice at once that leadership has come or gone, instead of at the next turn."""
        leads_from = self._raft.leads_from
        leads = 0 < leads_from <= self._machine.applied_index
        term = self._raft.term if leads else NOT_LEADING
        if term != self.term:
            self._end()
            self.term = term
            if leads:
                now_ms = self._clock.monotonic_ms()
                for duty in self._duties:
                    duty.begin(now_ms)

    def _turn(self) -> None:
        self._timer = self._loop.call_later(TURN_MS / 1e3, self._turn)
        try:
            self.look()
            if self.term != NOT_LEADING:
                self._decide()
        except BaseException as error:  # noqa: BLE001 - a node that lets its duties rest must not go on
            self._on_failed(error)

    def _decide(self) -> None:
        for position in range(len(self._duties)):
            self._ask(position)

    def _ask(self, position: int) -> None:
        if position not in self._under_way:
            now_ms = self._clock.monotonic_ms()
            request = self._duties[position].decide(now_ms)
            if request is not None:
                self._under_way[position] = fate = self.propose(request)
                fate.add_done_callback(functools.partial(self._on_fate, position, now_ms))

    def _ask_again(self, position: int) -> None:
        del self._under_way[position], self._rests[position]
        try:
            self._ask(position)
        except BaseException as error:  # noqa: BLE001 - as above
            self._on_failed(error)

    def propose(self, request: WriteRequest | MemberChange) -> asyncio.Future[ApplyResult]:
        """Propose as the leader of the present term; the future fails as a request's does."""
        deadline_ms = self._clock.monotonic_ms() + PROPOSAL_MS
        request_id, fate = self._waiting.add(deadline_ms, self._clock.elapsed_ns())
        if isinstance(request, MemberChange):
            proposed = Proposed(request_id, encode_change(request), kind=EntryKind.CONFIGURATION.value)
        else:
            proposed = Proposed(request_id, encode_request(request))
        self._driver.queue.put_control(LeaderProposals(self.term, (proposed,)))
        return fate

    def _on_fate(self, position: int, asked_ms: int, fate: asyncio.Future[ApplyResult]) -> None:
        if self._under_way.get(position) is fate:
            if not fate.cancelled() and fate.exception() is None:
                took_ms = self._clock.monotonic_ms() - asked_ms
                pause_ms = min(max(RESTS * took_ms, AGAIN_MS_MIN), AGAIN_MS_MAX)
                self._rests[position] = self._loop.call_later(pause_ms / 1e3, self._ask_again, position)
            else:
                del self._under_way[position]
        if not fate.cancelled() and (error := fate.exception()) is not None:
            if not isinstance(error, KvnodeError):
                self._on_failed(error)
                return
            log.info("duty.not_done", node=self._raft.node, error=error.code, reason=error.message)

    def _end(self) -> None:
        if self.term != NOT_LEADING:
            self.term = NOT_LEADING
            for duty in self._duties:
                duty.end()
        self._under_way.clear()
        for rest in self._rests.values():
            rest.cancel()
        self._rests.clear()
