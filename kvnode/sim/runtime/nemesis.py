"""Nemesis: strikes one simulated cluster, mends it, and knows what was broken and who may end of it.

What a fault breaks is mended by `heal`, or by itself after a while. Each is counted under its name in the run's report.
What may break only a minority for good (`lost_for_good`) asks first.
"""

from __future__ import annotations

import random
from collections.abc import Coroutine
from typing import Any

from kvnode.errors import LogCorrupted, MemberRemoved, StorageFailed
from kvnode.ids import NOBODY, NodeId
from kvnode.sim.disk import UNLIMITED
from kvnode.sim.runtime import faults
from kvnode.sim.runtime.churn import Churn
from kvnode.sim.runtime.cluster import Cluster
from kvnode.sim.runtime.member import Member
from kvnode.sim.runtime.operators import Operators
from kvnode.sim.runtime.swarm import World

CRASHES = 0.6
"""Share of process ends that are power losses; the others are kills, after which the page cache is still there."""

STARTS_BROKEN = 0.3
"""Share of starts that meet with a power loss of their own, where the world knows that fault."""


NEEDS_BACKUPS = {"old_backup", "cloned"}


class Nemesis:
    """Strikes and heals one cluster."""

    def __init__(self, cluster: Cluster, rng: random.Random, world: World) -> None:
        self.cluster = cluster
        self.rng = rng
        self.world = world
        self.struck: dict[str, int] = {}
        self.may_fail: dict[NodeId, str] = {}  # members given a fault that ends them, and which
        self.lost_for_good: dict[NodeId, str] = {}  # members that must not come back, and why
        self.rotten = NOBODY  # the one member whose durable bytes may go bad
        self.operators = Operators(cluster, rng)
        self.churn: Churn = Churn(cluster, random.Random(rng.getrandbits(64)) if world.has_churn else rng, self)
        self.is_peace = False  # nothing new strikes

    def strike(self) -> str:
        """One fault of those that are on, at a random member that is up; "" if there was nobody to strike."""
        up = [
            member
            for member in sorted(self.cluster.members)
            if member in self.cluster.ids
            and member not in self.cluster.failures
            and not self.operators.has_strayed(member)
        ]
        if not up:
            return ""
        kind = self.rng.choice(self.world.faults)
        victim = self.rng.choice(up)
        self.cluster.note(f"fault {kind} {victim}")
        if NEEDS_BACKUPS & set(self.world.faults):
            self.operators.back_up(victim)
        if not faults.FAULTS[kind](self, victim):
            return ""
        self.count(kind)
        return kind

    def count(self, kind: str) -> None:
        self.struck[kind] = self.struck.get(kind, 0) + 1

    # ── ends and starts ─────────────────────────────────────────────────────────────────────────────

    def end(self, victim: NodeId) -> None:
        """The process is gone, one way or the other."""
        self.may_fail.pop(victim, None)
        if self.rng.random() < CRASHES:
            self.cluster.crash(victim, silently=self.rng.random() < 0.5)
            self.count("power_loss")
        else:
            self.cluster.kill(victim)
            self.count("killed")

    def bury_the_failed(self) -> None:
        """Processes that gave up have exited; each must have had a reason."""
        cluster = self.cluster
        for member, error in list(cluster.failures.items()):
            if isinstance(error, LogCorrupted) and member == self.rotten:
                self._bury_the_rotten(member, error)
                continue
            if isinstance(error, MemberRemoved):
                self._bury_the_removed(member)
                continue
            assert isinstance(error, StorageFailed), (member, error)
            is_full = cluster.disks[member].capacity_bytes < UNLIMITED
            reason = self.may_fail.get(member, "no_space" if is_full else "")
            assert reason, ("failed without a fault", member, error)
            self.count(f"exited_after_{reason}")
            if reason.startswith("fsync"):
                cluster.observer.mark(f"exited_after_{reason}")
            self.end(member)

    def _bury_the_removed(self, member: NodeId) -> None:
        """It has heard that it is no member any more, from its log or from its peers, and has ended."""
        cluster = self.cluster
        assert member in cluster.removed, ("told that it was removed, and it was not", member)
        cluster.observer.mark("removed_refused" if member in self.lost_for_good else "removed_told")
        self.lost_for_good[member] = "told"
        self.may_fail.pop(member, None)
        cluster.kill(member)

    def _bury_the_rotten(self, member: NodeId, error: LogCorrupted) -> None:
        """A damaged log ends its node. If it can be repaired the next start does that; else the node stays down."""
        self.cluster.kill(member)
        self.may_fail.pop(member, None)
        if error.repairable:
            self.count("rot_ended_a_process")
            return
        self.count("rot_kept_down")
        self.lost_for_good[member] = "rot"

    def restart(self, among: list[NodeId]) -> None:
        """Start who is down, unless it must not come back."""
        for member in among:
            if member in self.cluster.members or member in self.lost_for_good:
                continue
            if not self.is_peace and "start_interrupted" in self.world.faults and self.rng.random() < STARTS_BROKEN:
                disk = self.cluster.disks[member]
                disk.crash_at(disk.changes + self.rng.randint(1, 60))
                self.count("start_interrupted")
            self.cluster.begin(member)

    def heal(self, among: list[NodeId] | None = None) -> None:
        """Mend links, disks, clocks and pauses (`among` these members, or everywhere) and restart who is down."""
        cluster = self.cluster
        self.bury_the_failed()
        stray = self.operators.stray
        if stray is not None and (among is None or stray.member in among):
            self.operators.put_back()
        network = cluster.network
        network.loss = network.duplication = network.corruption = network.rot = 0.0
        network.reorder = False
        network.heal(among)
        members = among if among is not None else cluster.ids
        for member in members:
            if self.is_peace and cluster.disks[member].capacity_bytes < UNLIMITED:
                self.may_fail.setdefault(member, "no_space")  # a start may have met the full disk at this very moment
            cluster.disks[member].capacity_bytes = UNLIMITED
            if self.is_peace:
                cluster.disks[member].crash_at(0)
            found = cluster.members.get(member)
            if found is not None:
                self.mend(found)
        self.bury_the_failed()
        self.restart(members)

    def mend(self, member: Member) -> None:
        if member.own_loop is not None:
            member.own_loop.resume()
        if not 0.9 <= member.clock.rate <= 1.1:
            member.clock.set_rate(1.0)
        for worker in member.workers.values():
            worker.delay_s = self.cluster.disk_delay_s
            worker.resume()

    def may_lose_another(self) -> bool:
        """The fault atlas: what is lost for good stays a minority, with one good copy of everything in each quorum."""
        if self.rotten != NOBODY or any(member not in self.cluster.bootstrapped for member in self.cluster.ids):
            return False
        return len(self.lost_for_good) + 1 <= (len(self.cluster.ids) - 1) // 2

    # ── for the table ───────────────────────────────────────────────────────────────────────────────

    def member(self, victim: NodeId) -> Member:
        return self.cluster.members[victim]

    def other(self, victim: NodeId) -> NodeId:
        others = [member for member in self.cluster.ids if member != victim]
        return self.rng.choice(others) if others else NOBODY

    def election_timeout_s(self) -> float:
        return self.cluster.configs[self.cluster.ids[0]].raft.election_timeout_ms / 1e3

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self.cluster.spawn(work)
