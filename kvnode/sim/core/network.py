"""Cores, disks and a network on virtual time, as a bare event heap: how each of them misbehaves, drawn from one seed.

Each seed draws its own cluster size, timing, limits and rates of trouble; `kvnode.sim.core.chaos` adds what happens now
and then. A node is a process with an inbox: it takes several causes for one output, may pause while its clock runs on,
and crashes losing what its disk had not finished, or keeping any prefix of it. The network drops, delays, duplicates,
reorders, cuts links in one direction, and digs out messages of long ago. Proposals on their way to a leader are the one
thing it never delivers twice: a connection is a stream, and only they are not idempotent.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from kvnode.config import RaftSection
from kvnode.ids import NO_WRITE, Index, NodeId, Term
from kvnode.raft import invariants
from kvnode.raft.core import Raft
from kvnode.raft.messages import (
    Configuration,
    Entry,
    Fetched,
    ForwardProposals,
    Input,
    LogPosition,
    PeerMessage,
    Persisted,
    ReadRequest,
    Tick,
    entry_bytes,
)
from kvnode.raft.output import Fetch, Output, Send
from kvnode.raft.state import Restored
from kvnode.sim.core.disk import WALL_START_MS, CoreDisk
from kvnode.sim.ghost import Ghost
from kvnode.sim.trace import Trace

START = Index(0)
GRAVES_MAX = 64


@dataclass
class Process:
    """One life of a node."""

    node: NodeId
    raft: Raft
    clock_offset_ms: int
    inbox: deque[Input] = field(default_factory=deque)
    held: list[Send] = field(default_factory=list)
    applied: Index = START
    is_alive: bool = True
    is_paused: bool = False
    is_scheduled: bool = False
    timer_at: int | None = None
    disk_busy: bool = False
    observed: invariants.Observed | None = None


@dataclass
class Machine:
    """What outlives a process: the disk, and how far the store on it has come."""

    disk: CoreDisk = field(default_factory=CoreDisk)
    stored: Index = START
    process: Process | None = None
    wall_skew_ms: int = 0
    disk_slow_until: int = 0


def draw_settings(rng: random.Random) -> RaftSection:
    """Often tiny limits: one message in flight, one entry a message, nothing in the cache."""
    timeout = rng.choice([60, 150, 300])
    return RaftSection(
        heartbeat_ms=timeout // rng.choice([3, 4, 6]),
        election_timeout_ms=timeout,
        commit_note_ms=rng.choice([0, 2, 20]),
        append_bytes_max=rng.choice([1, 200, 1_000, 1 << 20]),
        window_messages_max=rng.choice([1, 2, 4, 64]),
        window_bytes_max=rng.choice([1, 300, 4_096, 4 << 20]),
        uncommitted_bytes_max=rng.choice([200, 2_000, 64 << 20]),
        log_cache_bytes=rng.choice([1, 500, 5_000, 16 << 20]),
        leader_lost_ms_min=1,
        leader_lost_ms_max=timeout // 6,
    )


class Network:
    """Nodes, their disks, and what carries messages between them. All checks of one node are made here."""

    def __init__(self, seed: int, trace: Trace | None = None) -> None:
        self.rng = rng = random.Random(seed)
        self.trace = trace if trace is not None else Trace()
        self.settings = draw_settings(rng)
        self.timeout = self.settings.election_timeout_ms
        voters = rng.choice([1, 2, 3, 3, 3, 4, 5, 5, 5, 7])
        learners = rng.choice([0, 0, 0, 1])
        ids = [NodeId(i) for i in range(1, voters + learners + 1)]
        self.configuration = Configuration(tuple(ids[:voters]), tuple(ids[voters:]))
        self.ids = ids
        self.now_ms = 0
        self.events: list[tuple[int, int, Callable[[], None]]] = []
        self.sequence = 0
        self.steps = 0
        self.machines = {id_: Machine() for id_ in ids}
        self.ghost = Ghost({id_: machine.disk for id_, machine in self.machines.items()})
        self.cut_links: dict[tuple[NodeId, NodeId], bool] = {}
        self.graves: list[tuple[NodeId, NodeId, PeerMessage]] = []
        self.drop = rng.choice([0.0, 0.0, 0.02, 0.2])
        self.duplicate = rng.choice([0.0, 0.0, 0.05, 0.3])
        self.bury = rng.choice([0.0, 0.02, 0.2])
        self.delay_ms = rng.choice([1, 3, self.timeout // 10])
        self.straggle = rng.choice([0.0, 0.0, 0.02, 0.2])
        self.fsync_ms = rng.choice([0, 1, 5, self.timeout // 8])
        for id_ in ids:
            self.start(id_)

    # ── events ──────────────────────────────────────────────────────────────────────────────────────

    def at(self, delay_ms: float, event: Callable[[], None]) -> None:
        self.sequence += 1
        heapq.heappush(self.events, (self.now_ms + int(delay_ms), self.sequence, event))

    def run_for(self, ms: int) -> None:
        end = self.now_ms + ms
        while self.events and self.events[0][0] <= end:
            self.now_ms, _, event = heapq.heappop(self.events)
            event()
        self.now_ms = end

    # ── one node ────────────────────────────────────────────────────────────────────────────────────

    def start(self, id_: NodeId) -> None:
        """From the disk; the store may be anywhere between nothing and what had been applied."""
        machine, rng = self.machines[id_], self.rng
        machine.disk.durable = NO_WRITE
        self.ghost.on_started(id_)
        offset = rng.randrange(1_000_000)
        now = self.now_ms + offset
        seed = rng.randrange(1 << 30)
        raft = Raft(
            node=id_,
            settings=self.settings,
            rng=random.Random(seed),
            restored=self._restored(machine),
            now_ms=now,
        )
        process = machine.process = Process(id_, raft, offset, applied=machine.stored)
        self._schedule(process)

    def _restored(self, machine: Machine) -> Restored:
        disk, rng = machine.disk, self.rng
        machine.stored = Index(rng.choice([0, machine.stored, machine.stored // 2]))
        runs: list[tuple[Index, Term]] = []
        for entry in disk.entries:
            if not runs or runs[-1][1] != entry.term:
                runs.append((entry.index, entry.term))
        return Restored(
            hard_state=disk.hard_state,
            configuration=self.configuration,
            base=LogPosition(Term(0), Index(0)),
            term_runs=tuple(runs),
            last_index=disk.last_index,
            tail=tuple(disk.entries[rng.randint(0, machine.stored) :]),
            applied_index=machine.stored,
            last_time=max((entry.time for entry in disk.entries), default=0),
        )

    def crash(self, id_: NodeId) -> None:
        """Writes under way are lost, or a prefix of them is not."""
        machine = self.machines[id_]
        process = machine.process
        if process is None:
            return
        process.is_alive = False
        machine.process = None
        for _ in range(self.rng.randint(0, len(machine.disk.queue))):
            self._complete(id_)
        machine.disk.queue.clear()
        for cause in process.inbox:
            if isinstance(cause, ReadRequest):
                self.ghost.reads.pop(cause.number)

    def put(self, id_: NodeId, *causes: Input) -> None:
        """Causes reach a node's inbox; a dead one has none."""
        process = self.machines[id_].process
        if process is not None:
            process.inbox.extend(causes)
            self._schedule(process)

    def _schedule(self, process: Process) -> None:
        if not process.is_scheduled and not process.is_paused:
            process.is_scheduled = True
            self.at(0, lambda: self._run_process(process))

    def _run_process(self, process: Process) -> None:
        """One turn of the driver: some causes, a tick if one is due, one output."""
        process.is_scheduled = False
        if not process.is_alive or process.is_paused:
            return
        raft, rng = process.raft, self.rng
        now = self.now_ms + process.clock_offset_ms
        inbox = process.inbox
        count = len(inbox) if rng.random() < 0.5 else min(len(inbox), rng.randint(1, 4))
        causes = [inbox.popleft() for _ in range(count)]
        is_due = raft.next_deadline_ms() <= now
        if is_due:
            causes.insert(rng.choice([0, len(causes)]), Tick())
        for cause in causes:
            self._step(process, now, cause)
        if causes:
            output = raft.take_output()
            self._check(process)
            self._execute(process, output)
        if is_due and isinstance(causes[-1], Tick):
            assert raft.next_deadline_ms() > now, ("a timer that never ends", process.node)
        if inbox:
            self._schedule(process)
        self._arm(process)

    def _step(self, process: Process, now: int, cause: Input) -> None:
        if isinstance(cause, Persisted):
            self._release(process, cause)
        self.steps += 1
        self.trace.add(self.now_ms, process.node, type(cause).__name__, cause)
        process.raft.step(now, WALL_START_MS + self.now_ms + self.machines[process.node].wall_skew_ms, cause)
        self._check(process)
        self.ghost.on_step(process.raft)

    def _check(self, process: Process) -> None:
        state = process.raft.state
        invariants.check(state)
        observed = invariants.observe(state)
        if process.observed is not None:
            invariants.check_step(process.observed, observed)
        process.observed = observed

    def _arm(self, process: Process) -> None:
        deadline = process.raft.next_deadline_ms() - process.clock_offset_ms
        if process.timer_at is None or deadline < process.timer_at:
            process.timer_at = deadline
            self.at(max(deadline - self.now_ms, 0), lambda: self._on_timer(process, deadline))

    def _on_timer(self, process: Process, deadline: int) -> None:
        if process.timer_at == deadline:
            process.timer_at = None
        if process.is_alive:
            self._schedule(process)

    # ── what an output asks for ─────────────────────────────────────────────────────────────────────

    def _execute(self, process: Process, output: Output) -> None:
        machine = self.machines[process.node]
        self.ghost.on_output(process.raft, output)
        if output.persist is not None:
            machine.disk.queue.append(output.persist)
            self._write(process)
        durable = machine.disk.durable
        for send in output.sends:
            if send.after > durable:
                process.held.append(send)
            else:
                self._leave(process.node, send)
        assert output.apply_to <= machine.disk.last_index, ("I11", process.node, output.apply_to)
        if output.apply_to > process.applied and self.rng.random() < 0.7:
            process.applied = output.apply_to
            if self.rng.random() < 0.3:
                machine.stored = process.applied
        process.raft.forget(process.applied)
        for fetch in output.fetches:
            self.at(self.rng.choice([0, 1, self.timeout // 4]), partial(self._fetch, process, fetch))

    def _fetch(self, process: Process, fetch: Fetch) -> None:
        if not process.is_alive:
            return
        entries: list[Entry] = []
        size = 0
        for entry in self.machines[process.node].disk.entries[fetch.first - 1 : fetch.last]:
            size += entry_bytes(entry)
            if entries and size > fetch.bytes_max:
                break
            entries.append(entry)
        self.put(process.node, Fetched(fetch.peer, tuple(entries)))

    def _write(self, process: Process) -> None:
        """One write at a time; each takes in what has queued up meanwhile, or only some of it."""
        machine = self.machines[process.node]
        if process.disk_busy or not machine.disk.queue:
            return
        process.disk_busy = True
        count = self.rng.randint(1, len(machine.disk.queue))
        wait = self.rng.randint(0, self.fsync_ms)
        wait += max(0, machine.disk_slow_until - self.now_ms)
        self.at(wait, lambda: self._written(process, count))

    def _written(self, process: Process, count: int) -> None:
        if not process.is_alive:
            return
        process.disk_busy = False
        for _ in range(count):
            self._complete(process.node)
        self.put(process.node, Persisted(self.machines[process.node].disk.durable))
        self._write(process)

    def _complete(self, id_: NodeId) -> None:
        disk = self.machines[id_].disk
        self.ghost.on_durable(id_, disk.queue[0])
        disk.complete()

    def _release(self, process: Process, persisted: Persisted) -> None:
        ready = [send for send in process.held if send.after <= persisted.number]
        process.held = [send for send in process.held if send.after > persisted.number]
        for send in ready:
            self._leave(process.node, send)

    # ── the network ─────────────────────────────────────────────────────────────────────────────────

    def _leave(self, sender: NodeId, send: Send) -> None:
        rng, message = self.rng, send.message
        self.ghost.on_left(sender, send)
        is_twice = not isinstance(message, ForwardProposals)
        if rng.random() < self.bury and is_twice:
            self._bury(sender, send.to, message)
        if (sender, send.to) in self.cut_links or rng.random() < self.drop:
            if rng.random() < 0.2:
                self._bury(sender, send.to, message)
            return
        self._carry(sender, send.to, message)
        if is_twice and rng.random() < self.duplicate:
            self._carry(sender, send.to, message)

    def _carry(self, sender: NodeId, to: NodeId, message: PeerMessage) -> None:
        wait = self.rng.randint(0, self.delay_ms)
        if self.rng.random() < self.straggle:
            wait += self.rng.randint(0, 3 * self.timeout)
        self.at(wait, lambda: self._arrive(sender, to, message))

    def _arrive(self, sender: NodeId, to: NodeId, message: PeerMessage) -> None:
        if (sender, to) not in self.cut_links or self.rng.random() < 0.1:
            self.put(to, message)

    def _bury(self, sender: NodeId, to: NodeId, message: PeerMessage) -> None:
        if len(self.graves) >= GRAVES_MAX:
            self.graves.pop(self.rng.randrange(GRAVES_MAX))
        self.graves.append((sender, to, message))
