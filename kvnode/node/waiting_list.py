"""Request waiting list: who waits for which log entry, and what may truthfully be said to them.

A proposal goes through: *queued* → (*forwarded* to a leader) → *placed* at (index, term) → answered. The answer:

- the entry applied at that index has that term: the request's own result;
- a committed entry of another term stands at that index: `NotApplied`, certain for ever;
- it was refused before it reached a log: the refusal, certain for ever;
- the connection to the leader was lost before it answered: `LeadershipLost`, outcome unknown;
- the deadline passes: `Timeout`, outcome unknown (what is queued here may still reach a log).

Losing leadership, or having the entry truncated here, proves nothing: another node may hold it, win an election
and commit it (trap R17). So those waiters keep waiting.

Source: Fowler/Joshi, "Request Waiting List"; requirements RW1–RW3 of the pattern catalogue.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from enum import IntEnum

from kvnode.errors import KvnodeError, LeadershipLost, NotApplied, Timeout
from kvnode.ids import NOBODY, Index, NodeId, RequestId, Term
from kvnode.kv.requests import ApplyResult
from kvnode.raft.output import Forwarded, Placed

SWEEP_MS = 50
"""Deadlines are looked at this often; an answer may come this much late, never early."""


class _Stage(IntEnum):
    QUEUED = 1  # not handed to any log yet
    FORWARDED = 2  # on its way to a leader that has not answered
    PLACED = 3  # stands in the leader's log at (index, term)


class _Waiter:
    __slots__ = ("future", "leader", "stage", "started_ns")

    def __init__(self, future: asyncio.Future[ApplyResult], started_ns: int) -> None:
        self.future = future
        self.stage = _Stage.QUEUED
        self.leader = NOBODY
        self.started_ns = started_ns


class WaitingList:
    """Futures of waiting requests. Lives on the node's loop. Bounded by the update queue and by deadlines."""

    def __init__(self, loop: asyncio.AbstractEventLoop, first_id: int = 0) -> None:
        """`first_id` lies above every id of an earlier life: a leader may still hold those and answer them."""
        self._loop = loop
        self._last_id = first_id
        self._waiters: dict[RequestId, _Waiter] = {}
        self._by_index: dict[Index, list[tuple[Term, RequestId]]] = {}
        self._deadlines: defaultdict[int, list[RequestId]] = defaultdict(list)
        self._applied = Index(0)

    def __len__(self) -> int:
        return len(self._waiters)

    @property
    def has_placed(self) -> bool:
        """Whether anybody waits for an entry of the log; if not, applying need not look."""
        return bool(self._by_index)

    @property
    def has_deadlines(self) -> bool:
        """Whether `sweep` has anything to look at."""
        return bool(self._deadlines)

    def add(self, deadline_ms: int, started_ns: int) -> tuple[RequestId, asyncio.Future[ApplyResult]]:
        """A new waiter, failed with `Timeout` soon after `deadline_ms` unless answered before."""
        self._last_id += 1
        request = RequestId(self._last_id)
        future: asyncio.Future[ApplyResult] = self._loop.create_future()
        self._waiters[request] = _Waiter(future, started_ns)
        self._deadlines[deadline_ms // SWEEP_MS + 1].append(request)
        return request, future

    def discard(self, request: RequestId) -> None:
        """The client went away: forget the waiter. The proposal itself goes on."""
        self._waiters.pop(request, None)

    def forwarded(self, event: Forwarded) -> None:
        waiter = self._waiters.get(event.id)
        if waiter is not None:
            waiter.stage = _Stage.FORWARDED
            waiter.leader = event.leader

    def placed(self, event: Placed) -> None:
        """The leader's word on where the proposal stands; it may already have been applied here."""
        waiter = self._waiters.get(event.id)
        if waiter is None:
            return
        waiter.stage = _Stage.PLACED
        if event.index <= self._applied:
            # Applied before we learnt whose it was: its result is gone, and saying "not applied" would be a guess.
            self._fail(event.id, LeadershipLost("the entry was applied before its place was known here"))
            return
        self._by_index.setdefault(event.index, []).append((event.term, event.id))

    def refused(self, request: RequestId, error: KvnodeError) -> None:
        """Certainly in no log."""
        self._fail(request, error)

    def applied(self, index: Index, term: Term, result: ApplyResult | None) -> int:
        """Entry (index, term) was applied with `result` (None: it was no command).

        Returns when the oldest answered request started (ns), 0 if nobody waited.
        """
        self._applied = index
        waiting = self._by_index.pop(index, None)
        if waiting is None:
            return 0
        started = 0
        for expected, request in waiting:
            waiter = self._waiters.pop(request, None)
            if waiter is None or waiter.future.done():
                continue
            if expected == term and result is not None:
                waiter.future.set_result(result)
                started = waiter.started_ns
            else:
                waiter.future.set_exception(
                    NotApplied(f"another leader's entry of term {term} was committed in its place")
                )
        return started

    def skipped_to(self, index: Index) -> None:
        """Everything up to `index` was applied without passing through `applied` for us to see."""
        self._applied = index

    def leader_lost(self, leader: NodeId) -> None:
        """The connection to `leader` is gone: what it was sent and has not answered is unknown."""
        for request in [r for r, w in self._waiters.items() if w.stage is _Stage.FORWARDED and w.leader == leader]:
            self._fail(request, LeadershipLost(f"lost the connection to node {leader} after forwarding the request"))

    def sweep(self, now_ms: int) -> bool:
        """Fail everything whose deadline has passed. True while deadlines remain: call again in `SWEEP_MS`."""
        current = now_ms // SWEEP_MS
        for bucket in [b for b in self._deadlines if b <= current]:
            for request in self._deadlines.pop(bucket):
                if request in self._waiters:
                    self._fail(request, Timeout("no answer within the request's deadline"))
        return bool(self._deadlines)

    def fail_all(self, error: KvnodeError) -> None:
        """The node stops: nobody will learn more from it."""
        for request in list(self._waiters):
            self._fail(request, error)

    def _fail(self, request: RequestId, error: KvnodeError) -> None:
        waiter = self._waiters.pop(request, None)
        if waiter is not None and not waiter.future.done():
            waiter.future.set_exception(error)
