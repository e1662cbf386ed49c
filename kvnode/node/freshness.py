"""Freshness: how new the state applied here is, and waiting until it is as new as a read may show it.

    linearizable   everything committed before the read came: a read index from the leader, then its application
    bounded        everything committed longer ago than a bound, by this node's own clock
    causal         a revision that the caller has seen elsewhere
    stale          whatever is applied

Source: Raft thesis §6.4; requirements FR1–FR5 of the pattern catalogue.
"""

from __future__ import annotations

import asyncio

import msgspec

from kvnode import errors
from kvnode.clocks.clock import Clock
from kvnode.errors import KvnodeError, StaleBoundUnmet, Timeout
from kvnode.kv.interface import Options
from kvnode.machine.machine import StateMachine
from kvnode.node import admission
from kvnode.node.leader_wait import LeaderWait
from kvnode.node.reads import NEVER_MS, Reads, RoundFailed

BOUNDED_WAIT_MS = 250
"""How long a bounded read waits for the confirmation it needs."""


class Freshness:
    """Lives on the node's loop."""

    def __init__(
        self, *, machine: StateMachine, reads: Reads, leader: LeaderWait, clock: Clock, clock_drift_ms: int
    ) -> None:
        self._machine = machine
        self._reads = reads
        self._leader = leader
        self._clock = clock
        self._clock_drift_ms = clock_drift_ms

    async def reach(self, deadline_ms: int, options: Options) -> None:
        """Return once the applied state is as new as a read with these options may show it."""
        if options.consistency == "linearizable":
            await self.reach_read_index(deadline_ms, options)
            return
        admission.check_consistency(options)
        if options.consistency == "bounded":
            await self._be_fresh(deadline_ms, options)
        elif options.consistency == "causal":
            await self._reach_revision(deadline_ms, options)

    async def reach_read_index(self, deadline_ms: int, options: Options) -> None:
        """Wait until the applied state holds everything that was committed when this was called (thesis §6.4)."""
        patience_ms = self._leader.patience_ms(deadline_ms)
        refusals = 0
        while True:
            await self._leader.known(patience_ms, options)
            try:
                async with asyncio.timeout(max(0, deadline_ms - self._clock.monotonic_ms()) / 1e3):
                    await self._reads.wait()
            except RoundFailed:
                await self._leader.pause(patience_ms, refusals)
                refusals += 1
            except TimeoutError as error:
                if isinstance(error, KvnodeError):
                    raise
                raise Timeout("the read was not confirmed within its deadline") from None
            else:
                return

    @property
    def staleness_ms(self) -> int:
        """See `Admin.staleness_ms`. One is added for the fraction of a millisecond that was cut off when asking."""
        fresh_ms = self._reads.fresh_ms
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
                self._reads.renew()
            return
        until_ms = min(deadline_ms, self._clock.monotonic_ms() + BOUNDED_WAIT_MS)
        try:
            # It asks for an index only: that is no forwarding.
            await self.reach_read_index(until_ms, msgspec.structs.replace(options, forward=True))
        except (errors.TryAgain, errors.Unknown) as error:
            known = f"{staleness_ms} ms ago" if staleness_ms >= 0 else "never"
            raise StaleBoundUnmet(
                f"no leader has confirmed this node's state within {options.max_staleness_ms} ms, the last one {known}",
                **self._leader.hint(),
            ) from error

    async def _reach_revision(self, deadline_ms: int, options: Options) -> None:
        """Return once the state here has reached the revision that the caller has seen elsewhere.

        A token from tomorrow is none of ours, or of a node whose clock is wrong: waiting for it would be in vain.
        """
        if options.seen_time > self._machine.applied_time:
            admission.check_ahead("the token", options.seen_time, self._clock.wall_ms(), self._clock_drift_ms)
        reached = self._reads.wait_for_revision(options.least_revision)
        try:
            async with asyncio.timeout(max(0, deadline_ms - self._clock.monotonic_ms()) / 1e3):
                await reached
        except TimeoutError as error:
            if isinstance(error, KvnodeError):
                raise
            raise StaleBoundUnmet(
                f"this node has not reached revision {options.least_revision} within the deadline; it is at "
                f"{self._machine.revision}",
                **self._leader.hint(),
            ) from None
        finally:
            self._reads.give_up_revision(reached)
