"""The way of one request through the node, and how long it is tried on it.

A write goes down once and up once: limits → payload → waiting list → update queue → driver → raft → log and
peers → applier → waiting list → reply. A read asks for an index it may be served at, then reads the applied
state. Both wait a while for a leader that is not known yet; what was certainly not logged is proposed again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from kvnode import errors
from kvnode.clocks.clock import Clock
from kvnode.config import LimitsSection, RaftSection
from kvnode.errors import KvnodeError, NoLeader, NotReady, Overloaded, StaleBoundUnmet, Timeout
from kvnode.ids import NOBODY
from kvnode.kv.interface import DEFAULT_OPTIONS, Options
from kvnode.kv.keys import ONE_KEY
from kvnode.kv.requests import (
    NEWEST,
    ApplyResult,
    Await,
    Command,
    History,
    LeaseKeepAlive,
    LeaseListReply,
    QueueReply,
    Range,
    RangeReply,
    ReadRequest,
    Refusal,
    Request,
    TableRequest,
    Txn,
    Watch,
    WriteRequest,
)
from kvnode.machine.machine import StateMachine
from kvnode.node import admission
from kvnode.node.applier import Applier
from kvnode.node.changes import Changes
from kvnode.node.driver import Driver
from kvnode.node.facts import FactLog
from kvnode.node.lease_calls import LeaseCalls
from kvnode.node.range_reads import RangeReads
from kvnode.node.reads import NEVER_MS, RoundFailed
from kvnode.node.update_queue import RETRY_AFTER_MS
from kvnode.node.waiting_list import WaitingList
from kvnode.node.watch_stream import NodeStream
from kvnode.node.watches import Watches
from kvnode.raft.core import Raft
from kvnode.raft.messages import Proposed

NO_LEADER_RETRY_MS = 20
"""Pause before asking again after a refusal that no change of leader announced."""


TIME_MARK = Txn((), ())
TIME_MARK_RETRY_MS = 10

LOCALLY = Options(consistency="stale")

BOUNDED_WAIT_MS = 250
"""How long a bounded read waits for the confirmation it needs."""


class RequestPath:
    """Carries out requests of callers on the node's loop, until it is closed."""

    def __init__(
        self,
        *,
        raft: Raft,
        machine: StateMachine,
        driver: Driver,
        applier: Applier,
        changes: Changes,
        range_reads: RangeReads,
        watches: Watches,
        waiting: WaitingList,
        facts: FactLog,
        space: admission.SpaceGuard,
        limits: LimitsSection,
        settings: RaftSection,
        clock: Clock,
        lease_calls: LeaseCalls,
        leader_client_url: Callable[[], str],
    ) -> None:
        self._raft = raft
        self._machine = machine
        self._driver = driver
        self._applier = applier
        self._changes = changes
        self._waiting = waiting
        self._facts = facts
        self._space = space
        self._limits = limits
        self._clock_drift_ms = settings.clock_drift_ms
        self._reads_by_lease = settings.leader_lease_reads
        self._clock = clock
        self._leader_client_url = leader_client_url
        self._range_reads = range_reads
        self._watches = watches
        self._lease_calls = lease_calls
        lease_calls.connect(self._leader, self._pause, self._reach_read_index, range_reads.run)
        self._is_closed = False
        self.is_caught_up = False
        self.proposals = self.proposals_failed = self.lease_reads = 0

    def close(self, error: KvnodeError) -> None:
        """Nothing is consumed any more: who waits is told `error`, what comes now is refused."""
        self._is_closed = True
        self._waiting.fail_all(error)
        self._driver.reads.fail_all(error)
        self._watches.close()  # before what its streams wait for fails
        self._range_reads.fail_all(error)
        self._lease_calls.fail_all(error)
        self._changes.wake_all()
        self._facts.wake_all()

    async def catch_up(self) -> None:
        """Ready means: has answered one linearizable read of its own since it started."""
        while not (self.is_caught_up or self._is_closed):
            try:
                await self._reach_read_index(self._deadline(self._limits.timeout_ms), DEFAULT_OPTIONS)
            except (errors.TryAgain, errors.Unknown):
                await asyncio.sleep(NO_LEADER_RETRY_MS / 1e3)  # some refusals come at once: the loop must go on
            else:
                self.is_caught_up = True

    def execute(self, request: Request, options: Options = DEFAULT_OPTIONS) -> Coroutine[Any, Any, Any]:
        """Carry out one request; see `KV.execute`."""
        if isinstance(request, ReadRequest):
            return self._read(request, options)
        if isinstance(request, WriteRequest):
            return self._write(request, options)
        if isinstance(request, Await):
            return self._await(request, options)
        if isinstance(request, TableRequest):
            return self._look_up(request, options)
        if isinstance(request, LeaseKeepAlive):
            return self._lease_calls.keep_alive(request, options)
        return self._lease_calls.read(request, options)

    def watch(self, request: Watch, options: Options) -> NodeStream:
        """Stream changes; see `KV.watch`."""

        async def reach() -> None:
            admission.check_watch(request, options, self._limits)
            await self._reach_state(self._deadline(options.timeout_ms), options)

        return NodeStream(self._watches, request, reach)

    async def _write(self, request: WriteRequest, options: Options) -> ApplyResult:
        admission.check_write(request, self._limits)
        self._space.check(request)
        if self._applier.is_held_back:
            raise Overloaded("the store is behind the log", retry_after_ms=RETRY_AFTER_MS)
        payload = admission.payload_of(request, self._limits)
        # In the entry's head for those who read the log; what is carried out is the payload's word alone.
        session, sequence = (request.session, request.sequence) if isinstance(request, Command) else (0, 0)
        deadline_ms = self._deadline(options.timeout_ms)
        self.proposals += 1
        patience_ms = min(deadline_ms, self._clock.monotonic_ms() + self._limits.no_leader_ms)
        refusals = 0
        while True:
            await self._leader(patience_ms, options)
            request_id, answer = self._waiting.add(deadline_ms, self._clock.elapsed_ns())
            try:
                self._driver.queue.put_proposal(Proposed(request_id, payload, session=session, sequence=sequence))
                result = await answer
            except NoLeader:
                # Refused before any log had it: safe to propose again, as long as our patience lasts.
                await self._pause(patience_ms, refusals)
                refusals += 1
                continue
            except BaseException:
                self._waiting.discard(request_id)
                self.proposals_failed += 1
                raise
            if type(result) is Refusal:
                raise _refused(result)
            return result

    async def _read(self, request: ReadRequest, options: Options) -> RangeReply:
        admission.check_read(request, self._limits)
        if options.at_time:
            admission.check_past(request, options.at_time)
        deadline_ms = self._deadline(options.timeout_ms)
        if options.consistency == "linearizable":
            if self._reads_by_lease and not options.at_time and self._raft.has_lease(self._clock.monotonic_ms()):
                reply = await self._read_by_lease(request, deadline_ms)
                if reply is not None:
                    return reply
            await self._reach_read_index(deadline_ms, options)
        else:
            await self._reach_state(deadline_ms, options)
        if options.at_time:
            request = msgspec.structs.replace(request, revision=await self._revision_at(options, deadline_ms))
        return await self._look(request, deadline_ms)

    async def _look(self, request: ReadRequest, deadline_ms: int) -> RangeReply:
        """The state as it is applied here."""
        if self._is_closed:
            raise NotReady("the node is stopping")
        if isinstance(request, Range) and request.end == ONE_KEY:
            return self._machine.range(request)
        return await self._read_in_slices(request, deadline_ms)

    async def _look_up(self, request: TableRequest, options: Options) -> LeaseListReply | QueueReply:
        admission.check_table(request, self._limits)
        if options.consistency != "stale":
            await self._reach_read_index(self._deadline(options.timeout_ms), options)
        return self._machine.look_up(request)

    async def _read_by_lease(self, request: ReadRequest, deadline_ms: int) -> RangeReply | None:
        """Without a round; None if the lease has lapsed meanwhile. The order is what makes it right (I14)."""
        applied = self._driver.reads.wait_for_index(self._raft.commit_index)
        if not applied.done():
            try:
                async with asyncio.timeout(max(0, deadline_ms - self._clock.monotonic_ms()) / 1e3):
                    await applied
            except TimeoutError as error:
                if isinstance(error, KvnodeError):
                    raise
                raise Timeout("the store has not reached the log within the deadline") from None
        reply = await self._look(request, deadline_ms)
        if not self._raft.has_lease(self._clock.monotonic_ms()):
            return None
        self.lease_reads += 1
        return reply

    async def _await(self, request: Await, options: Options) -> RangeReply:
        """Each look is a read as `options` want it; only the one that a change has called for is local.

        That one shows at least the change, and so at least what the look before it showed.
        """
        admission.check_await(request, options, self._limits)
        until_ms = self._clock.monotonic_ms() + request.wait_ms
        newest = History(request.key, limit=1)
        after = request.after_revision
        is_known_absent = False
        look = options
        while True:
            change = self._changes.wait(request.key)  # before the look: a change right after it must not be missed
            try:
                reply = await self._read(newest, look)
                found = reply.items[0].mod_revision if reply.items else 0
                if after == NEWEST:
                    after = found
                    is_known_absent = not found or not reply.items[0].version
                if found > after:
                    return RangeReply(reply.revision, reply.items, 1)
                if not found and not is_known_absent and 0 < after < self._machine.compact_revision:
                    raise self._deletion_given_up(request, after)
                left_ms = until_ms - self._clock.monotonic_ms()
                if left_ms <= 0:
                    return RangeReply(reply.revision, (), 0)
                look = LOCALLY if await self._changed(change, left_ms) else options
            finally:
                self._changes.forget(request.key, change)

    def _deletion_given_up(self, request: Await, after: int) -> errors.Compacted:
        """If it was deleted after the version that the caller knows, nothing would ever come to tell so."""
        return errors.Compacted(
            f"{request.key!r} is absent, and what happened to it after revision {after} is not kept",
            compact_revision=self._machine.compact_revision,
        )

    @staticmethod
    async def _changed(change: asyncio.Future[None], within_ms: int) -> bool:
        try:
            async with asyncio.timeout(within_ms / 1e3):
                await change
        except TimeoutError:
            return False
        return True

    @property
    def staleness_ms(self) -> int:
        """See `Admin.staleness_ms`. One is added for the fraction of a millisecond that was cut off when asking."""
        fresh_ms = self._driver.reads.fresh_ms
        return -1 if fresh_ms == NEVER_MS else self._clock.monotonic_ms() - fresh_ms + 1

    async def _be_fresh(self, deadline_ms: int, options: Options) -> None:
        """Return once nothing committed longer ago than the bound is missing here.

        The bound is measured on this node's clock from the moment it *asked* for a confirmation: wall clocks play no
        part. A confirmation more than half as old as the bound allows is renewed, so that few reads have to wait for
        one. Where none comes, because no leader hears us, the read is refused soon: it is late already.
        """
        staleness_ms = self.staleness_ms
        if 0 <= staleness_ms <= options.max_staleness_ms:
            if 2 * staleness_ms > options.max_staleness_ms:
                self._driver.reads.renew()
            return
        until_ms = min(deadline_ms, self._clock.monotonic_ms() + BOUNDED_WAIT_MS)
        try:
            # It asks for an index only: that is no forwarding.
            await self._reach_read_index(until_ms, msgspec.structs.replace(options, forward=True))
        except (errors.TryAgain, errors.Unknown) as error:
            known = f"{staleness_ms} ms ago" if staleness_ms >= 0 else "never"
            raise StaleBoundUnmet(
                f"no leader has confirmed this node's state within {options.max_staleness_ms} ms, the last one {known}",
                **self._leader_hint(),
            ) from error

    async def _reach_revision(self, deadline_ms: int, options: Options) -> None:
        """Return once the state here has reached the revision that the caller has seen elsewhere.

        A token from tomorrow is none of ours, or of a node whose clock is wrong: waiting for it would be in vain.
        """
        if options.seen_time > self._machine.applied_time:
            admission.check_ahead("the token", options.seen_time, self._clock.wall_ms(), self._clock_drift_ms)
        reached = self._driver.reads.wait_for_revision(options.least_revision)
        try:
            async with asyncio.timeout(max(0, deadline_ms - self._clock.monotonic_ms()) / 1e3):
                await reached
        except TimeoutError as error:
            if isinstance(error, KvnodeError):
                raise
            raise StaleBoundUnmet(
                f"this node has not reached revision {options.least_revision} within the deadline; it is at "
                f"{self._machine.revision}",
                **self._leader_hint(),
            ) from None
        finally:
            self._driver.reads.give_up_revision(reached)

    def _leader_hint(self) -> dict[str, str]:
        url = self._leader_client_url()
        return {"leader_url": url} if url else {}

    async def _revision_at(self, options: Options, deadline_ms: int) -> int:
        """The revision that a time shows, for ever: no entry at or before that time can come any more.

        Timestamps increase along the log. So where the newest lies below the time asked for, a mark is written: a
        transaction of nothing, which takes a timestamp and no revision (CockroachDB's closed timestamps, on demand).
        """
        time, machine = options.at_time, self._machine
        if options.consistency == "linearizable" and time > machine.applied_time:
            await self._be_past(time, deadline_ms)
            while True:
                left_ms = deadline_ms - self._clock.monotonic_ms()
                if left_ms <= 0:
                    raise Timeout("the leader's clock has not reached at_time within the deadline")
                await self._write(TIME_MARK, msgspec.structs.replace(options, timeout_ms=left_ms))
                if time <= machine.applied_time:
                    break
                await asyncio.sleep(TIME_MARK_RETRY_MS / 1e3)  # the leader's clock is behind ours
        return machine.revision_at(time)

    async def _be_past(self, time: int, deadline_ms: int) -> None:
        """Return once this node's clock is past `time`, which may be the present of a clock a little ahead of ours."""
        while True:
            ahead_ms = admission.check_ahead("at_time", time, self._clock.wall_ms(), self._clock_drift_ms)
            left_ms = deadline_ms - self._clock.monotonic_ms()
            if ahead_ms <= 0:
                return
            if left_ms <= 0:
                raise Timeout("this node's clock has not reached at_time within the deadline")
            await asyncio.sleep(min(ahead_ms, left_ms) / 1e3)

    async def _reach_state(self, deadline_ms: int, options: Options) -> None:
        """Return once the applied state is as new as a read with these options may show it."""
        if options.consistency == "linearizable":
            await self._reach_read_index(deadline_ms, options)
            return
        admission.check_consistency(options)
        if options.consistency == "bounded":
            await self._be_fresh(deadline_ms, options)
        elif options.consistency == "causal":
            await self._reach_revision(deadline_ms, options)

    async def _read_in_slices(self, request: ReadRequest, deadline_ms: int) -> RangeReply:
        answer = self._range_reads.read(request)
        if answer.done():
            return answer.result()
        try:
            async with asyncio.timeout(max(0, deadline_ms - self._clock.monotonic_ms()) / 1e3):
                return await answer
        except TimeoutError as error:
            if isinstance(error, KvnodeError):
                raise
            raise Timeout("the range was not read within its deadline") from None

    async def _reach_read_index(self, deadline_ms: int, options: Options) -> None:
        """Wait until the applied state holds everything that was committed when this was called (thesis §6.4)."""
        patience_ms = min(deadline_ms, self._clock.monotonic_ms() + self._limits.no_leader_ms)
        refusals = 0
        while True:
            await self._leader(patience_ms, options)
            try:
                async with asyncio.timeout(max(0, deadline_ms - self._clock.monotonic_ms()) / 1e3):
                    await self._driver.reads.wait()
            except RoundFailed:
                await self._pause(patience_ms, refusals)
                refusals += 1
            except TimeoutError as error:
                if isinstance(error, KvnodeError):
                    raise
                raise Timeout("the read was not confirmed within its deadline") from None
            else:
                return

    # ── leader ──────────────────────────────────────────────────────────────────────────────────────

    async def _leader(self, patience_ms: int, options: Options) -> None:
        """Return once a leader is known and reachable; at once in the common case.

        Raises: NoLeader when none is found in time, or when the caller wants no forwarding and we do not lead.
        """
        while True:
            if self._is_closed:
                raise NotReady("the node is stopping")
            leader = self._raft.leader
            if leader == self._raft.node:
                return
            if leader != NOBODY and leader in self._driver.connected:
                if options.forward:
                    return
                raise NoLeader(f"node {leader} leads", leader=leader, leader_url=self._leader_client_url())
            left_ms = patience_ms - self._clock.monotonic_ms()
            if left_ms <= 0:
                raise NoLeader("no leader is known to this node")
            # Not polled: thousands may wait while the election needs the loop.
            await self._facts.leader_changed(left_ms)

    async def _pause(self, patience_ms: int, refusals: int) -> None:
        """After a refusal: wait for news of the leader, or a moment that grows with each."""
        left_ms = patience_ms - self._clock.monotonic_ms()
        if left_ms <= 0:
            raise NoLeader("no leader accepted the request")
        await self._facts.leader_changed(min(left_ms, NO_LEADER_RETRY_MS << min(refusals, 4)))

    def _deadline(self, timeout_ms: int) -> int:
        return self._clock.monotonic_ms() + min(timeout_ms, self._limits.timeout_ms_max)


def _refused(refusal: Refusal) -> KvnodeError:
    """The state machine's deterministic refusal, as the exception its code names."""
    detail: dict[str, Any] = {"revision": refusal.found} if refusal.code == errors.CompareFailed.code else {}
    return errors.by_code()[refusal.code](refusal.message, **detail)
