"""Renewals and looks at leases, on their way to the leader: its clock decides. Any node takes them.

A call is asked again, of whoever leads by then, until it is answered or its deadline passes: renewing twice does no
harm. The deadline counts from the call, so a renewal that is answered late is worth less to its caller, never more.

Bounds: `WAITING_MAX` calls; beyond that `Overloaded`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec

from kvnode import errors
from kvnode.clocks.clock import Clock
from kvnode.config import LimitsSection
from kvnode.errors import KvnodeError, LeaseNotFound, NoLeader, Overloaded, Timeout
from kvnode.ids import NOBODY, NodeId
from kvnode.kv.interface import Options
from kvnode.kv.requests import LeaseKeepAlive, LeaseListReply, LeaseRead, LeaseReadReply, LeaseReply
from kvnode.machine.machine import StateMachine
from kvnode.machine.pace import Pace, Work, first_in_order
from kvnode.node import admission
from kvnode.node.leader_wait import LeaderWait
from kvnode.node.leases import NOT_LEADING, Lessor, Told
from kvnode.node.ports import Transport
from kvnode.raft.core import Raft
from kvnode.raft.messages import KeepAlive, KeepAliveReply

WAITING_MAX = 65_536
RETRY_AFTER_MS = 1_000


InSlices = Callable[[Callable[[Pace], Work[tuple[bytes, ...]]]], Awaitable[tuple[bytes, ...]]]


class LeaseCalls:
    """Lives on the node's loop; takes part in what members say to each other about leases."""

    def __init__(
        self,
        lessor: Lessor,
        *,
        raft: Raft,
        machine: StateMachine,
        transport: Transport,
        limits: LimitsSection,
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
        first_number: int,
    ) -> None:
        """`first_number` lies above every number of an earlier life: a leader may answer one of those late."""
        self._lessor = lessor
        self._raft = raft
        self._machine = machine
        self._transport = transport
        self._limits = limits
        self._loop = loop
        self._clock = clock
        self._number = first_number
        self._asked: dict[int, tuple[NodeId, asyncio.Future[Told]]] = {}
        self._leader: LeaderWait
        self._reach_read_index: Callable[[int, Options], Awaitable[None]]
        self._run: InSlices

    def connect(
        self,
        leader: LeaderWait,
        reach_read_index: Callable[[int, Options], Awaitable[None]],
        run: InSlices,
    ) -> None:
        """How to wait for a leader, how to be up to date, and how to do long work."""
        self._leader = leader
        self._reach_read_index = reach_read_index
        self._run = run

    async def keep_alive(self, request: LeaseKeepAlive, options: Options) -> LeaseReply:
        admission.check_lease_id(request.id)
        told = await self._ask(request.id, self._deadline(options), options, renew=True)
        return LeaseReply(request.id, told.ttl_ms, self._machine.revision)

    async def read(self, request: LeaseRead, options: Options) -> LeaseReadReply:
        admission.check_lease_id(request.id)
        deadline_ms = self._deadline(options)
        told = await self._ask(request.id, deadline_ms, options, renew=False)
        await self._reach_read_index(deadline_ms, options)
        lease = self._machine.leases.get(request.id)
        if lease is None:
            raise LeaseNotFound(f"lease {request.id} does not exist")
        revision, names, most = self._machine.revision, list(lease.keys), self._limits.page_items_max
        keys: tuple[bytes, ...] = ()
        if not request.count_only:
            left = [key for key in names if key > request.after] if request.after else names
            keys = await self._run(lambda pace: first_in_order(left, most, pace))
        return LeaseReadReply(request.id, lease.ttl_ms, told.remaining_ms, revision, keys, len(names))

    def with_remaining(self, reply: LeaseListReply) -> LeaseListReply:
        """What the leader's clock says of them; elsewhere nothing."""
        views = tuple(
            msgspec.structs.replace(view, remaining_ms=self._lessor.remaining_ms(view.id)) for view in reply.leases
        )
        return LeaseListReply(reply.revision, views, reply.more)

    def _deadline(self, options: Options) -> int:
        return self._clock.monotonic_ms() + min(options.timeout_ms, self._limits.timeout_ms_max)

    async def _ask(self, lease: int, deadline_ms: int, options: Options, *, renew: bool) -> Told:
        patience_ms = self._leader.patience_ms(deadline_ms)
        refusals = 0
        while True:
            await self._leader.known(patience_ms, options)
            told = await self._ask_once(lease, deadline_ms, renew=renew)
            if told.code == NoLeader.code:
                await self._leader.pause(patience_ms, refusals)
                refusals += 1
            elif told.code:
                raise _error(told.code, lease)
            else:
                return told

    async def _ask_once(self, lease: int, deadline_ms: int, *, renew: bool) -> Told:
        if len(self._asked) >= WAITING_MAX:
            raise Overloaded("too many calls about leases wait", retry_after_ms=RETRY_AFTER_MS)
        self._number += 1
        number, leader = self._number, self._raft.leader
        future: asyncio.Future[Told] = self._loop.create_future()
        self._asked[number] = leader, future
        try:
            if leader == self._raft.node:
                self._lessor.ask(lease, renew=renew, answer=lambda told: _tell(future, told))
            elif leader != NOBODY:
                message = KeepAlive(self._raft.term, self._raft.node, number, lease, renew)
                self._transport.send(leader, message)
            else:
                return NOT_LEADING
            async with asyncio.timeout(max(0, deadline_ms - self._clock.monotonic_ms()) / 1e3):
                return await future
        except TimeoutError as error:
            if isinstance(error, KvnodeError):
                raise
            raise Timeout("the leader has not answered within the deadline") from None
        finally:
            del self._asked[number]

    # ── from other members ──────────────────────────────────────────────────────────────────────────

    def on_message(self, message: KeepAlive | KeepAliveReply) -> None:
        if isinstance(message, KeepAlive):
            self._lessor.ask(message.lease, renew=message.renew, answer=lambda told: self._answer(message, told))
            return
        asked = self._asked.get(message.number)
        if asked is not None:
            _tell(asked[1], Told(message.code, message.remaining_ms, message.ttl_ms))

    def _answer(self, message: KeepAlive, told: Told) -> None:
        raft = self._raft
        reply = KeepAliveReply(raft.term, raft.node, message.number, told.remaining_ms, told.ttl_ms, told.code)
        self._transport.send(message.sender, reply)

    def leader_lost(self, peer: NodeId) -> None:
        """The connection to `peer` is gone: what it was asked is asked again."""
        for leader, future in self._asked.values():
            if leader == peer:
                _tell(future, NOT_LEADING)

    def fail_all(self, error: KvnodeError) -> None:
        """The node stops."""
        for _, future in self._asked.values():
            if not future.done():
                future.set_exception(error)


def _tell(future: asyncio.Future[Told], told: Told) -> None:
    if not future.done():
        future.set_result(told)


def _error(code: str, lease: int) -> KvnodeError:
    """A leader of a newer version may know more codes than this node."""
    if code == LeaseNotFound.code:
        return LeaseNotFound(f"lease {lease} does not exist")
    if code == Overloaded.code:
        return Overloaded("the leader has too many renewals to do", retry_after_ms=RETRY_AFTER_MS)
    known = errors.by_code().get(code, Timeout)
    return known(f"the leader could not renew lease {lease}: {code}")
