"""How a request waits for a leader, and what it does after a refusal.

A leader that is not known yet, or not connected, is waited for as long as the request's patience lasts; what was
certainly not logged, or never confirmed, is asked again after news of the leader or a pause that grows.
"""

from __future__ import annotations

from collections.abc import Callable, Container

from kvnode.clocks.clock import Clock
from kvnode.errors import NoLeader, NotReady
from kvnode.ids import NOBODY, NodeId
from kvnode.kv.interface import Options
from kvnode.node.facts import FactLog
from kvnode.raft.core import Raft

NO_LEADER_RETRY_MS = 20
"""Pause before asking again after a refusal that no change of leader announced."""


class LeaderWait:
    """Lives on the node's loop, until it is closed."""

    def __init__(
        self,
        *,
        raft: Raft,
        connected: Container[NodeId],
        facts: FactLog,
        clock: Clock,
        no_leader_ms: int,
        leader_client_url: Callable[[], str],
    ) -> None:
        self._raft = raft
        self._connected = connected
        self._facts = facts
        self._clock = clock
        self._no_leader_ms = no_leader_ms
        self._leader_client_url = leader_client_url
        self.is_closed = False

    def close(self) -> None:
        """The node stops: who waits is told so."""
        self.is_closed = True
        self._facts.wake_all()

    def patience_ms(self, deadline_ms: int) -> int:
        """Until when a request with that deadline waits for a leader."""
        return min(deadline_ms, self._clock.monotonic_ms() + self._no_leader_ms)

    def hint(self) -> dict[str, str]:
        """Detail of an error that the leader could have spared its caller."""
        url = self._leader_client_url()
        return {"leader_url": url} if url else {}

    async def known(self, patience_ms: int, options: Options) -> None:
        """Return once a leader is known and reachable; at once in the common case.

        Raises: NoLeader when none is found in time, or when the caller wants no forwarding and we do not lead.
        """
        while True:
            if self.is_closed:
                raise NotReady("the node is stopping")
            leader = self._raft.leader
            if leader == self._raft.node:
                return
            if leader != NOBODY and leader in self._connected:
                if options.forward:
                    return
                raise NoLeader(f"node {leader} leads", leader=leader, leader_url=self._leader_client_url())
            left_ms = patience_ms - self._clock.monotonic_ms()
            if left_ms <= 0:
                raise NoLeader("no leader is known to this node")
            # Not polled: thousands may wait while the election needs the loop.
            await self._facts.leader_changed(left_ms)

    async def pause(self, patience_ms: int, refusals: int) -> None:
        """After a refusal: wait for news of the leader, or a moment that grows with each."""
        left_ms = patience_ms - self._clock.monotonic_ms()
        if left_ms <= 0:
            raise NoLeader("no leader accepted the request")
        await self._facts.leader_changed(min(left_ms, NO_LEADER_RETRY_MS << min(refusals, 4)))
