"""Members that come and go while everything else breaks: what an operator of a growing and shrinking cluster does.

A joining machine asks until it is taken in, is promoted by the leader, and then what it replaces is removed; members
are removed at random, the leader too; one that was removed is started again, and has to be told.

What an operator may break by being careless is not drawn: a voter is given up for good, or taken out, only when all
members are up and hold one committed configuration, one such change at a time, and never by force. Otherwise a change
that some log still holds could come back and leave a quorum of machines that are gone.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from kvnode.errors import Rejected
from kvnode.ids import NodeId
from kvnode.kv.members import RemoveMember, UpdateMember

if TYPE_CHECKING:
    from kvnode.sim.runtime.cluster import Cluster
    from kvnode.sim.runtime.nemesis import Nemesis

MEMBERS_MAX = 7
PATIENCE_S = 20.0
"""After so long an operator takes back what does not come to its end, if that can be done."""


class Churn:
    """One change at a time."""

    def __init__(self, cluster: Cluster, rng: random.Random, nemesis: Nemesis) -> None:
        self._cluster = cluster
        self._rng = rng
        self._nemesis = nemesis
        self._is_busy = False
        self._addresses = 0

    # ── what may be done ────────────────────────────────────────────────────────────────────────────

    def is_settled(self) -> bool:
        """All members are up and hold the same configuration, committed, with nobody on the way in or out."""
        cluster = self._cluster
        nodes = cluster.nodes()
        if self._is_busy or any(member not in nodes or member in cluster.failures for member in cluster.ids):
            return False
        return self.agrees(cluster.ids)

    def agrees(self, among: list[NodeId]) -> bool:
        """They hold one committed configuration, of which all learners remain what they are."""
        found = [self._cluster.members[member].raft for member in among]
        if any(raft.configuration_index > raft.commit_index for raft in found):
            return False
        configuration = found[0].configuration
        if any(raft.configuration != configuration for raft in found):
            return False
        ids = {member.id for member in configuration.members}
        return ids == {*self._cluster.ids} and not any(
            member.wants_vote or member.replaces in ids for member in configuration.members
        )

    # ── changes ─────────────────────────────────────────────────────────────────────────────────────

    def add(self) -> bool:
        """A new machine joins, most often to vote."""
        if self._is_busy or len(self._cluster.ids) >= MEMBERS_MAX or not self._cluster.bootstrapped:
            return False
        self._begin(self._cluster.join(self._anybody, promote=self._rng.random() < 0.8))
        return True

    def remove(self, victim: NodeId) -> bool:
        """Refused by the leader if too few of the others answer."""
        if not self.is_settled() or self._voters() == (victim,):
            return False
        self._begin(self._remove(victim))
        return True

    def replace(self, victim: NodeId) -> bool:
        """Its machine is gone for good; another takes its place, at its address or at one of its own."""
        if not self.is_settled() or len(self._voters()) < 3 or len(self._cluster.ids) >= MEMBERS_MAX:
            return False
        self._nemesis.end(victim)
        self._nemesis.lost_for_good[victim] = "replaced"
        self._begin(self._replace(victim, at_its_address=self._rng.random() < 0.5))
        return True

    def move(self, victim: NodeId) -> bool:
        """Peers are told another address of it."""
        if self._is_busy or not self._cluster.bootstrapped:
            return False
        self._addresses += 1
        self._begin(self._cluster.change_members(self._anybody, UpdateMember(victim, f"127.0.1.1:{self._addresses}")))
        return True

    def restart_removed(self) -> bool:
        """Somebody starts what was removed."""
        cluster = self._cluster
        gone = [member for member in cluster.removed if member not in cluster.members and member in cluster.disks]
        gone = [member for member in gone if self._nemesis.lost_for_good.get(member) != "told"]
        if not gone:
            return False
        cluster.begin(self._rng.choice(gone))
        return True

    # ── helpers ─────────────────────────────────────────────────────────────────────────────────────

    def _voters(self) -> tuple[NodeId, ...]:
        return self._cluster.configuration.voters

    def _anybody(self) -> NodeId:
        return self._rng.choice(self._cluster.ids)

    def _begin(self, change: Coroutine[Any, Any, Any]) -> None:
        self._is_busy = True

        async def carry_out() -> None:
            try:
                await change
            except Rejected:
                self._nemesis.count("change_refused")
            finally:
                self._is_busy = False

        self._nemesis.spawn(carry_out())

    async def _remove(self, victim: NodeId) -> None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._cluster.change_members(self._anybody, RemoveMember(victim))
        except TimeoutError:
            self._nemesis.count("removal_given_up")

    async def _replace(self, victim: NodeId, *, at_its_address: bool) -> None:
        cluster = self._cluster
        address = next((m.address for m in cluster.configuration.members if m.id == victim), "")
        try:
            await cluster.join(self._anybody, replaces=victim, address=address if at_its_address else "")
        except Rejected:
            self._nemesis.lost_for_good.pop(victim)
            raise
