"""A simulated machine: a disk and clocks that outlive the processes on it, and the process that is on it now."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

from kvnode.ids import Index, NodeId
from kvnode.raft import invariants
from kvnode.raft.core import Raft
from kvnode.raft.messages import Input
from kvnode.raft.output import Install, Persist, Send
from kvnode.sim.core.disk import CoreDisk

START = Index(0)
EXACT = 1_000
"""A clock's rate in thousandths of real time."""


@dataclass
class Process:
    """One life of a node."""

    node: NodeId
    raft: Raft
    machine: Machine
    inbox: deque[Input] = field(default_factory=deque)
    held: list[Send] = field(default_factory=list)
    applied: Index = START
    is_alive: bool = True
    is_paused: bool = False
    is_scheduled: bool = False
    timer_at: int | None = None
    disk_busy: bool = False
    writes: int = 0  # begun; a completion of an older one than the newest is void
    is_stalled: bool = False  # its core was told so
    observed: invariants.Observed | None = None


@dataclass
class Machine:
    """What outlives a process: the disk, how far the store on it has come, and the clocks."""

    node: NodeId
    rng: random.Random
    disk: CoreDisk = field(default_factory=CoreDisk)
    stored: Index = START
    process: Process | None = None
    lives: int = 0  # how often it was started
    records: list[Persist] = field(default_factory=list)  # all finished writes: what the disk amounts to
    is_quarantined: bool = False  # it is on disk that some of them are lost
    disk_slow_until: int = 0
    disk_stuck_until: int = 0
    wall_skew_ms: int = 0
    rate: int = EXACT
    zero_ms: int = 0  # the local clock's reading at `since_ms`
    since_ms: int = 0

    def lose_records(self, kept: int) -> None:
        """Of its finished writes only the first so many can be read. Term and vote have a second copy (ADR 0007).

        What the store has applied counts for committed only as far as the kept records say so.
        """
        del self.records[kept:]
        trimmed = self.disk.base
        disk = CoreDisk()
        commit = 0
        for write in self.records:
            if write.install is not None and not write.install.keeps_log:
                disk.base, disk.entries = write.install.position, []
            if write.truncate_from:
                del disk.entries[write.truncate_from - disk.base.index - 1 :]
            commit = max(commit, min(write.commit, disk.last_index))
            disk.entries += write.entries
        if disk.base.index < trimmed.index:  # the store holds what is before that
            at = disk.entry(trimmed.index)
            if at is not None and at.term == trimmed.term:
                disk.trim(trimmed)
            else:
                disk.base, disk.entries = trimmed, []
                install = Install(trimmed, 0, keeps_log=False)
                self.records = [Persist(self.disk.durable, Index(0), (), None, trimmed.index, install)]
        self.disk.base, self.disk.entries = disk.base, disk.entries
        self.stored = Index(min(self.stored, max(commit, disk.base.index)))
        self.is_quarantined = True

    def local_ms(self, now_ms: int) -> int:
        return self.zero_ms + (now_ms - self.since_ms) * self.rate // EXACT

    def when_ms(self, local_ms: int) -> int:
        """The first instant at which the local clock reads `local_ms`."""
        return self.since_ms - (self.zero_ms - local_ms) * EXACT // self.rate

    def set_rate(self, rate: int, now_ms: int) -> None:
        self.zero_ms, self.since_ms, self.rate = self.local_ms(now_ms), now_ms, rate
