"""Disks: when the writes of simulated nodes finish, and how their disks misbehave.

One write at a time is under way; each takes in what has queued up meanwhile or only some of it. A disk may be slow, or
stuck until further notice: then its node is told what the stall watch of a real one would tell it. What a finished
write amounts to is in `kvnode.sim.core.disk`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial

from kvnode.ids import NodeId
from kvnode.raft.messages import DiskRecovered, DiskStalled, Input, Persisted
from kvnode.sim.core.heap import EventHeap
from kvnode.sim.core.machine import Machine, Process
from kvnode.sim.core.shape import Shape
from kvnode.sim.ghost import Ghost


class Disks:
    """`put(node, cause)` is the world's inboxes."""

    def __init__(
        self, shape: Shape, heap: EventHeap, put: Callable[[NodeId, Input], None], ghost: Ghost, counts: Counter[str]
    ) -> None:
        self.fsync_ms = shape.fsync_ms
        self._stall_ms = shape.stall_ms
        self._heap = heap
        self._put = put
        self._ghost = ghost
        self._counts = counts

    def write(self, process: Process) -> None:
        """Begin the next write, unless one is under way or nothing waits."""
        machine = process.machine
        queue = machine.disk.queue
        if process.disk_busy or not queue:
            return
        process.disk_busy = True
        process.writes += 1
        count = 1 + int(machine.rng.random() * len(queue))
        wait = int(machine.rng.random() * (self.fsync_ms + 1)) + max(0, machine.disk_slow_until - self._heap.now_ms)
        self._heap.at(wait, partial(self._written, process, process.writes, count))

    def _written(self, process: Process, number: int, count: int) -> None:
        machine = process.machine
        if not process.is_alive or number != process.writes:
            return
        if machine.disk_stuck_until > self._heap.now_ms:
            wait = machine.disk_stuck_until - self._heap.now_ms
            self._heap.at(wait, partial(self._written, process, number, count))
            return
        process.disk_busy = False
        for _ in range(count):
            self.complete(machine)
        self._put(process.node, Persisted(machine.disk.durable))
        if process.is_stalled:
            process.is_stalled = False
            self._put(process.node, DiskRecovered())
        self.write(process)

    def complete(self, machine: Machine) -> None:
        """The oldest queued write becomes durable, and nobody is told but the observer."""
        write = machine.disk.queue[0]
        self._ghost.on_durable(machine.node, write)
        machine.records.append(write)
        if write.install is not None:
            machine.stored = write.install.position.index
        machine.disk.complete()

    def stick(self, machine: Machine, until_ms: int) -> None:
        """No write finishes before `until_ms`; the core hears of it if one is under way for too long."""
        machine.disk_stuck_until = max(machine.disk_stuck_until, until_ms)
        if machine.process is not None:
            self._heap.at(self._stall_ms, partial(self._watch, machine.process))

    def _watch(self, process: Process) -> None:
        """What the stall watch of a real node does, by looking now and then for as long as the disk is stuck."""
        if not process.is_alive or process.is_stalled or process.machine.disk_stuck_until <= self._heap.now_ms:
            return
        if process.disk_busy:
            process.is_stalled = True
            self._counts["stalls reported"] += 1
            self._put(process.node, DiskStalled())
            self._heap.at(1, partial(self._assert_resigned, process))
        else:
            self._heap.at(self._stall_ms, partial(self._watch, process))

    @staticmethod
    def _assert_resigned(process: Process) -> None:
        """HB6: heartbeats need no disk, so nobody but the node itself can end the reign of a leader without one."""
        if process.is_alive and process.is_stalled and not process.is_paused:
            assert process.raft.state.leadership is None, ("I30: leads without a disk", process.node)

    def free(self, machine: Machine) -> None:
        """It works again, whatever was wrong."""
        machine.disk_slow_until = 0
        if machine.disk_stuck_until > self._heap.now_ms:
            machine.disk_stuck_until = 0
            if machine.process is not None and machine.process.disk_busy:
                machine.process.writes += 1  # instead of at the end of a stall that is over
                self._written(machine.process, machine.process.writes, 1)
