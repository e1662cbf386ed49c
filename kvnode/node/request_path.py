"""The way of one request through the node, and how long it is tried on it.

A write goes down once and up once: limits → payload → waiting list → update queue → driver → raft → log and
peers → applier → waiting list → reply. A read waits until the applied state is as new as it may show (`freshness`),
then reads it. Both wait a while for a leader that is not known yet (`leader_wait`); what was certainly not logged is
proposed again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from kvnode import errors
from kvnode.clocks.clock import Clock
from kvnode.config import LimitsSection, RaftSection
from kvnode.errors import KvnodeError, NoLeader, NotReady, Overloaded, Timeout
from kvnode.ids import RequestId
from kvnode.kv.interface import DEFAULT_OPTIONS, Options
from kvnode.kv.keys import ONE_KEY
from kvnode.kv.members import MemberChange
from kvnode.kv.requests import (
    ApplyResult,
    Await,
    Command,
    ConfigurationReply,
    HashReply,
    LeaseKeepAlive,
    LeaseListReply,
    LeaseRead,
    QueueReply,
    Range,
    RangeReply,
    ReadRequest,
    Refusal,
    Reply,
    Request,
    TableRequest,
    Txn,
    Watch,
    WriteRequest,
)
from kvnode.kv.stored import NESTED_LEVEL, level_of
from kvnode.machine.machine import StateMachine
from kvnode.node import admission
from kvnode.node.applier import Applier
from kvnode.node.changes import Changes
from kvnode.node.driver import Driver
from kvnode.node.facts import FactLog
from kvnode.node.freshness import Freshness
from kvnode.node.leader_wait import NO_LEADER_RETRY_MS, LeaderWait
from kvnode.node.lease_calls import LeaseCalls
from kvnode.node.long_poll import LongPolls
from kvnode.node.range_reads import RangeReads
from kvnode.node.update_queue import RETRY_AFTER_MS
from kvnode.node.waiting_list import WaitingList
from kvnode.node.watch_stream import NodeStream
from kvnode.node.watches import Watches
from kvnode.raft.core import Raft
from kvnode.raft.messages import EntryKind, Proposed

Found = TypeVar("Found")

COMMAND = EntryKind.COMMAND.value

TIME_MARK = Txn((), ())
TIME_MARK_RETRY_MS = 10


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
        self._space = space
        self._limits = limits
        self._clock_drift_ms = settings.clock_drift_ms
        self._reads_by_lease = settings.leader_lease_reads
        self._clock = clock
        self._range_reads = range_reads
        self._watches = watches
        self._lease_calls = lease_calls
        self._leader = LeaderWait(
            raft=raft,
            connected=driver.connected,
            facts=facts,
            clock=clock,
            no_leader_ms=limits.no_leader_ms,
            leader_client_url=leader_client_url,
        )
        self._freshness = Freshness(
            machine=machine,
            reads=driver.reads,
            leader=self._leader,
            clock=clock,
            clock_drift_ms=self._clock_drift_ms,
        )
        self._long_polls = LongPolls(machine=machine, changes=changes, limits=limits, clock=clock, read=self._read)
        lease_calls.connect(self._leader, self._freshness.reach_read_index, range_reads.run)
        self.is_caught_up = False
        self.proposals = self.proposals_failed = self.lease_reads = 0

    def close(self, error: KvnodeError) -> None:
        """Nothing is consumed any more: who waits is told `error`, what comes now is refused."""
        self._leader.close()
        self._waiting.fail_all(error)
        self._driver.reads.fail_all(error)
        self._watches.close()  # before what its streams wait for fails
        self._range_reads.fail_all(error)
        self._lease_calls.fail_all(error)
        self._changes.wake_all()

    async def catch_up(self) -> None:
        """Ready means: has answered one linearizable read of its own since it started."""
        while not (self.is_caught_up or self._leader.is_closed):
            try:
                await self._freshness.reach_read_index(self._deadline(self._limits.timeout_ms), DEFAULT_OPTIONS)
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
            return self._long_polls.wait(request, options)
        if isinstance(request, TableRequest):
            return self._look_up(request, options)
        if request.id < 0:
            return self._ask_of_negative(request, options)
        return self._ask_of_lease(request, options)

    def _ask_of_lease(self, request: LeaseKeepAlive | LeaseRead, options: Options) -> Coroutine[Any, Any, Any]:
        if isinstance(request, LeaseKeepAlive):
            return self._lease_calls.keep_alive(request, options)
        return self._lease_calls.read(request, options)

    async def _ask_of_negative(self, request: LeaseKeepAlive | LeaseRead, options: Options) -> Any:
        """A leader of an older version takes a negative id for damage, and cuts the connection that brought it."""
        await self._reach_level(options)
        return await self._ask_of_lease(request, options)

    def watch(self, request: Watch, options: Options) -> NodeStream:
        """Stream changes; see `KV.watch`."""

        async def reach() -> None:
            admission.check_watch(request, options, self._limits)
            await self._freshness.reach(self._deadline(options.timeout_ms), options)

        return NodeStream(self._watches, request, reach)

    async def _write(self, request: WriteRequest, options: Options) -> ApplyResult:
        payload, session, sequence = self._admit(request)
        if self._is_above_level(request):
            await self._reach_level(options)
        result = await self._propose(payload, options, session=session, sequence=sequence)
        if type(result) is Refusal:
            raise _refused(result)
        return result

    async def change_members(self, change: MemberChange, options: Options) -> ConfigurationReply:
        """Carry out one change of the members; see `Admin.change_members`. The leader judges it."""
        payload = admission.payload_of_change(change)
        result = await self._propose(payload, options, kind=EntryKind.CONFIGURATION.value)
        assert isinstance(result, ConfigurationReply), result
        return result

    async def _propose(
        self, payload: bytes, options: Options, *, session: int = 0, sequence: int = 0, kind: int = COMMAND
    ) -> ApplyResult:
        """What became of it where it was applied; tried again while certainly no log has it and patience lasts."""
        deadline_ms = self._deadline(options.timeout_ms)
        self.proposals += 1
        patience_ms = self._leader.patience_ms(deadline_ms)
        refusals = 0
        while True:
            await self._leader.known(patience_ms, options)
            request_id, answer = self._waiting.add(deadline_ms, self._clock.elapsed_ns())
            try:
                self._driver.queue.put_proposal(Proposed(request_id, payload, session, sequence, kind))
                return await answer
            except NoLeader:
                await self._leader.pause(patience_ms, refusals)
                refusals += 1
            except NotReady:  # the leader has not committed an entry of its term yet, or another change of members
                if self._clock.monotonic_ms() >= patience_ms or self._leader.is_closed:
                    self.proposals_failed += 1
                    raise
                await self._leader.pause(patience_ms, refusals)
                refusals += 1
            except BaseException:
                self._waiting.discard(request_id)
                self.proposals_failed += 1
                raise

    def _admit(self, request: WriteRequest) -> tuple[bytes, int, int]:
        """The payload of its entry, and what the entry's head says. Raises: what keeps it from being proposed."""
        admission.check_write(request, self._limits)
        self._space.check(request)
        if self._applier.is_held_back:
            raise Overloaded("the store is behind the log", retry_after_ms=RETRY_AFTER_MS)
        payload = admission.payload_of(request, self._limits)
        # In the head for those who read the log; what is carried out is the payload's word alone.
        session, sequence = (request.session, request.sequence) if isinstance(request, Command) else (0, 0)
        return payload, session, sequence

    def _is_above_level(self, request: WriteRequest) -> bool:
        """Whether a member may be of a version that would take it for something else.

        What is committed decides: a level that is only in force in this log may be taken back with its entry.
        """
        _, committed = self._raft.committed_configuration
        return committed.feature_level < NESTED_LEVEL and level_of(request) > committed.feature_level

    async def _reach_level(self, options: Options) -> None:
        """A cluster that has just begun has it in a moment. Raises: NotReady if it does not come."""
        patience_ms = self._leader.patience_ms(self._deadline(options.timeout_ms))
        refusals = 0
        while self._raft.committed_configuration[1].feature_level < NESTED_LEVEL:
            if self._clock.monotonic_ms() >= patience_ms or self._leader.is_closed:
                raise self._below_level()
            await self._leader.pause(patience_ms, refusals)
            refusals += 1

    def _below_level(self) -> NotReady:
        level = self._raft.committed_configuration[1].feature_level
        return NotReady(
            f"this request needs feature level {NESTED_LEVEL}, and the cluster uses {level} until every member claims "
            "more: upgrade those of an older version, remove cluster.feature_level_max where it is set, and have all "
            "of them running",
            feature_level=level,
        )

    async def write_all(self, requests: Sequence[WriteRequest], options: Options) -> list[Reply | KvnodeError]:
        """As `_write` of each, in their order, but in the caller's task and with one wake-up for all that come at once.

        What no log has had is proposed again together, behind those of its neighbours that were taken.
        """
        outcomes: dict[int, Reply | KvnodeError] = {}
        waiting: dict[int, tuple[bytes, int, int]] = {}
        for place, request in enumerate(requests):
            try:
                admitted = self._admit(request)
                if self._is_above_level(request):
                    raise self._below_level()
            except KvnodeError as error:
                outcomes[place] = error
            else:
                waiting[place] = admitted
        deadline_ms = self._deadline(options.timeout_ms)
        self.proposals += len(waiting)
        patience_ms = self._leader.patience_ms(deadline_ms)
        refusals = 0
        while waiting:
            try:
                if refusals:
                    await self._leader.pause(patience_ms, refusals - 1)
                await self._leader.known(patience_ms, options)
            except KvnodeError as error:
                self.proposals_failed += len(waiting)
                outcomes |= dict.fromkeys(waiting, error)
                break
            found = await self._propose_all(waiting, deadline_ms)
            for place, one in found.items():
                self.proposals_failed += isinstance(one, KvnodeError)
                outcomes[place] = _refused(one) if isinstance(one, Refusal) else one
            waiting = {place: admitted for place, admitted in waiting.items() if place not in found}
            refusals += 1
        return [outcomes[place] for place in range(len(requests))]

    async def _propose_all(
        self, admitted: Mapping[int, tuple[bytes, int, int]], deadline_ms: int
    ) -> dict[int, ApplyResult | KvnodeError]:
        """What became of each, by its place; those that no log has had are left out."""
        found: dict[int, ApplyResult | KvnodeError] = {}
        answers: dict[int, tuple[RequestId, asyncio.Future[ApplyResult]]] = {}
        add, put_proposal, now_ns = self._waiting.add, self._driver.queue.put_proposal, self._clock.elapsed_ns()
        for place, (payload, session, sequence) in admitted.items():
            request_id, answer = add(deadline_ms, now_ns)
            try:
                put_proposal(Proposed(request_id, payload, session=session, sequence=sequence))
            except KvnodeError as error:
                self._waiting.discard(request_id)
                found[place] = error
            else:
                answers[place] = request_id, answer
        try:
            for place, (_, answer) in answers.items():
                try:
                    found[place] = await answer
                except NoLeader:
                    continue
                except KvnodeError as error:
                    found[place] = error
        except BaseException:  # the caller went away
            for request_id, answer in answers.values():
                self._waiting.discard(request_id)
                if not answer.cancel() and not answer.cancelled():
                    answer.exception()  # looked at: nobody else will
            self.proposals_failed += len(admitted)
            raise
        return found

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
            await self._freshness.reach_read_index(deadline_ms, options)
        else:
            await self._freshness.reach(deadline_ms, options)
        if options.at_time:
            request = msgspec.structs.replace(request, revision=await self._revision_at(options, deadline_ms))
        return await self._look(request, deadline_ms)

    async def _look(self, request: ReadRequest, deadline_ms: int) -> RangeReply:
        """The state as it is applied here."""
        if self._leader.is_closed:
            raise NotReady("the node is stopping")
        if isinstance(request, Range) and request.end == ONE_KEY:
            return self._machine.range(request)
        return await self._read_in_slices(request, deadline_ms)

    async def _look_up(self, request: TableRequest, options: Options) -> LeaseListReply | QueueReply:
        admission.check_table(request, self._limits)
        if options.consistency != "stale":
            await self._freshness.reach_read_index(self._deadline(options.timeout_ms), options)
        reply = self._machine.look_up(request)
        return self._lease_calls.with_remaining(reply) if isinstance(reply, LeaseListReply) else reply

    async def state_hash(self, revision: int, options: Options) -> HashReply:
        """See `Admin.state_hash`. It may take longer than a read: every item is looked at, in slices."""
        deadline_ms = self._deadline(options.timeout_ms)
        await self._freshness.reach_read_index(deadline_ms, options)
        work = self._range_reads.run(lambda pace: self._machine.state_hash(revision, pace))
        return await self._within(work, deadline_ms, "the state was not hashed within the deadline")

    async def reach_read_index(self, deadline_ms: int, options: Options) -> None:
        """What was committed before the call is applied here then."""
        await self._freshness.reach_read_index(deadline_ms, options)

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

    @property
    def staleness_ms(self) -> int:
        """See `Admin.staleness_ms`."""
        return self._freshness.staleness_ms

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

    async def _read_in_slices(self, request: ReadRequest, deadline_ms: int) -> RangeReply:
        answer = self._range_reads.read(request)
        return await self._within(answer, deadline_ms, "the range was not read within its deadline")

    async def _within(self, answer: asyncio.Future[Found], deadline_ms: int, words: str) -> Found:
        if answer.done():
            return answer.result()
        try:
            async with asyncio.timeout(max(0, deadline_ms - self._clock.monotonic_ms()) / 1e3):
                return await answer
        except TimeoutError as error:
            if isinstance(error, KvnodeError):
                raise
            raise Timeout(words) from None

    def _deadline(self, timeout_ms: int) -> int:
        return self._clock.monotonic_ms() + min(timeout_ms, self._limits.timeout_ms_max)


def _refused(refusal: Refusal) -> KvnodeError:
    """The state machine's deterministic refusal, as the exception its code names."""
    detail: dict[str, Any] = {"revision": refusal.found} if refusal.code == errors.CompareFailed.code else {}
    return errors.by_code()[refusal.code](refusal.message, **detail)
