"""World: cores with their disks and clocks on virtual time, as a bare event heap. Every step of theirs is checked.

A node is a process with an inbox: it takes several causes for one output, may pause while its clock runs on, and
crashes losing what its disk had not finished, or keeping any prefix of it. Its clock starts anywhere and may run fast
or slow. What strikes when is not decided here: `kvnode.sim.core.faults`.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from functools import partial

import msgspec

from kvnode.ids import NO_WRITE, Index, NodeId, RequestId
from kvnode.raft import invariants
from kvnode.raft.core import Raft
from kvnode.raft.membership import is_removed
from kvnode.raft.messages import (
    AppendEntries,
    Entry,
    Fetched,
    Input,
    Persisted,
    Proposals,
    Proposed,
    QuarantineLifted,
    ReadRequest,
    Tick,
    TimeoutNow,
    VoteRequest,
    entry_bytes,
)
from kvnode.raft.output import Fetch, Output, Send
from kvnode.raft.state import Restored
from kvnode.sim.core.disk import WALL_START_MS
from kvnode.sim.core.disks import Disks
from kvnode.sim.core.heap import EventHeap
from kvnode.sim.core.links import Links
from kvnode.sim.core.machine import Machine, Process
from kvnode.sim.core.shape import Shape, fork
from kvnode.sim.ghost import Ghost
from kvnode.sim.trace import Trace


class World(EventHeap):
    """Nodes, and what happens to them next. What a run adds comes in by way of the hooks."""

    def __init__(self, seed: int, shape: Shape, trace: Trace | None = None) -> None:
        super().__init__()
        self.seed = seed
        self.shape = shape
        self.settings = shape.settings
        self.timeout = shape.timeout
        self.ids = shape.ids
        self.trace = trace if trace is not None else Trace()
        self.steps = 0
        self.is_peace = False
        self.last_number = 0  # of a client's request
        self.reader: dict[int, NodeId] = {}  # whom each read was asked
        self.counts: Counter[str] = Counter()
        self.machines = {id_: Machine(id_, fork(seed, f"node-{id_}")) for id_ in self.ids}
        self.ghost = Ghost({id_: machine.disk for id_, machine in self.machines.items()}, shape.configuration)
        self.disks = Disks(shape, self, self.put, self.ghost, self.counts)
        self.links = Links(fork(seed, "links"), shape, self.at, self.put, self.counts)

    # ── hooks ───────────────────────────────────────────────────────────────────────────────────────

    def on_before_step(self, process: Process, cause: Input) -> None:
        """A cause is about to be stepped."""

    def on_after_output(self, process: Process, output: Output) -> None:
        """An output has been executed."""

    def on_crashed(self, machine: Machine, lost_writes: int) -> None:
        """A process is gone, and with it the newest `lost_writes` of its writes."""

    def on_rotted(self, machine: Machine, before: list[Entry]) -> None:
        """A machine has lost the end of its log, which was `before`."""

    def on_joined(self, id_: NodeId) -> None:
        """A machine was added for a member that is committed now."""

    def in_trouble(self, delay_ms: int, event: Callable[[], None]) -> None:
        """A fault's further course: void once there is peace, which ends all faults in its own way."""
        self.at(delay_ms, lambda: None if self.is_peace else event())

    # ── clients ─────────────────────────────────────────────────────────────────────────────────────

    def propose(self, id_: NodeId, count: int, padding: int = 0) -> None:
        """`count` new commands in one batch, of about so many bytes each, if the node lives."""
        self.counts["commands asked"] += count
        if self.machines[id_].process is None or not count:
            return
        batch = []
        for _ in range(count):
            self.last_number += 1
            payload = b"%d." % self.last_number + b"x" * padding
            batch.append(Proposed(RequestId(self.last_number), payload))
            self.ghost.proposed[batch[-1].id] = payload
        self.put(id_, Proposals(tuple(batch)))

    def read(self, id_: NodeId) -> None:
        """One read, if the node lives."""
        self.counts["reads asked"] += 1
        if self.machines[id_].process is not None:
            self.last_number += 1
            self.ghost.on_read_invoked(self.last_number)
            self.reader[self.last_number] = id_
            self._read_by_lease(self.machines[id_])
            self.put(id_, ReadRequest(self.last_number))

    def _read_by_lease(self, machine: Machine) -> None:
        """A leader with a lease would answer at once, by what is committed as far as it knows."""
        process = machine.process
        assert process is not None
        if not process.is_paused and process.raft.has_lease(machine.local_ms(self.now_ms)):
            self.counts["lease reads"] += 1
            self.ghost.on_lease_read(process.raft)

    def assert_no_lease_beside(self, leader: Process) -> None:
        """I14: when somebody is elected nobody of an earlier term may rely on a lease, paused or not.

        Of a later term somebody may: who counts votes of long ago, after a pause, is elected in a term that is over.
        """
        for other in self.processes():
            if other.raft.term < leader.raft.term:
                holds = other.raft.has_lease(other.machine.local_ms(self.now_ms))
                assert not holds, ("I14: elected beside a lease", leader.node, other.node)

    # ── the life of a node ──────────────────────────────────────────────────────────────────────────

    def processes(self) -> list[Process]:
        """Those alive, paused ones too, in order of id."""
        return [machine.process for machine in self.machines.values() if machine.process is not None]

    def voters(self) -> tuple[NodeId, ...]:
        """By the newest committed configuration."""
        return self.ghost.configuration_at(len(self.ghost.committed))[1].voters

    def members(self) -> list[NodeId]:
        """Who is not removed, as far as anything is committed, and who is in a configuration on any disk."""
        ghost = self.ghost
        known = [ghost.configuration_at(len(ghost.committed))[1], *ghost.on_disks()]
        committed = known[0]
        members = {id_ for each in known for id_ in (*each.voters, *each.learners)}
        return [id_ for id_ in self.ids if id_ in members and not is_removed(committed, id_)]

    def leaders(self) -> list[Process]:
        return [process for process in self.processes() if process.raft.state.leadership is not None]

    def start(self, id_: NodeId) -> None:
        """From the disk; the store may be anywhere between nothing and what had been applied."""
        machine = self.machines[id_]
        rng = machine.rng
        machine.disk.durable = NO_WRITE
        machine.lives += 1
        self.ghost.on_started(id_)
        machine.zero_ms, machine.since_ms = rng.randrange(1_000_000), self.now_ms
        raft = Raft(
            node=id_,
            settings=self.settings,
            rng=random.Random(rng.getrandbits(30)),
            restored=self._restored(machine),
            now_ms=machine.zero_ms,
        )
        self.trace.add(self.now_ms, id_, "start")
        self.counts["starts"] += 1
        process = machine.process = Process(id_, raft, machine, applied=machine.stored)
        self._arm(process)

    def _restored(self, machine: Machine) -> Restored:
        disk, rng = machine.disk, machine.rng
        base = disk.base.index
        machine.stored = Index(max(base, rng.choice([0, machine.stored, machine.stored // 2])))
        made_at, configuration = self.ghost.configuration_at(machine.stored)
        return msgspec.structs.replace(
            disk.restored(configuration, made_at),
            tail=tuple(disk.after(rng.randint(base, machine.stored))),
            applied_index=machine.stored,
            applied_time=self.ghost.committed_entry(machine.stored).time if machine.stored else 0,
            life=machine.lives,
            is_quarantined=machine.is_quarantined,
        )

    def crash(self, id_: NodeId) -> None:
        """Writes under way are lost, or a prefix of them is not."""
        machine = self.machines[id_]
        process = machine.process
        if process is None:
            return
        self.trace.add(self.now_ms, id_, "crash")
        self.counts["crashes"] += 1
        process.is_alive = False
        machine.process = None
        machine.disk_stuck_until = 0
        queue = machine.disk.queue
        for _ in range(machine.rng.randint(0, len(queue))):
            self.disks.complete(machine)
        self.on_crashed(machine, len(queue))
        queue.clear()
        for number in [number for number in self.ghost.reads if self.reader[number] == id_]:
            self.ghost.reads.pop(number)  # nobody is left to be answered

    def rot(self, id_: NodeId, kept: int) -> None:
        """The process ends, and its next start can read only so many of its writes: it is in quarantine."""
        self.crash(id_)
        machine = self.machines[id_]
        self.trace.add(self.now_ms, id_, "rot", kept)
        self.counts["logs damaged"] += 1
        before = machine.disk.entries
        machine.lose_records(kept)
        self.ghost.on_lost(id_, before)
        self.on_rotted(machine, before)

    def put(self, id_: NodeId, *causes: Input) -> None:
        """Causes reach a node's inbox; a dead one has none, nor has a member that has not joined yet."""
        process = self.machines[id_].process if id_ in self.machines else None
        if process is not None:
            process.inbox.extend(causes)
            if not process.is_scheduled and not process.is_paused:
                self._schedule(process)

    def pause(self, process: Process, ms: int) -> None:
        """It does nothing for so long, while its clock runs on and its disk finishes what it was told."""
        self.counts["pauses"] += 1
        process.is_paused = True
        self.in_trouble(ms, partial(self.resume, process))

    def resume(self, process: Process) -> None:
        if process.is_alive and process.is_paused:
            process.is_paused = False
            self._schedule(process)

    def _schedule(self, process: Process) -> None:
        if not process.is_scheduled and not process.is_paused:
            process.is_scheduled = True
            self.at(0, partial(self._run_process, process))

    def _run_process(self, process: Process) -> None:
        """One turn of the driver: some causes, a tick if one is due, one output."""
        process.is_scheduled = False
        if not process.is_alive or process.is_paused:
            return
        raft, random = process.raft, process.machine.rng.random
        now = process.machine.local_ms(self.now_ms)
        inbox = process.inbox
        count = len(inbox)
        if count > 1 and random() < 0.5:
            count = min(count, 1 + int(random() * 4))
        causes = [inbox.popleft() for _ in range(count)]
        is_due = raft.next_deadline_ms() <= now
        if is_due:
            causes.insert(len(causes) if random() < 0.5 else 0, Tick())
        for cause in causes:
            self._step(process, now, cause)
        if causes:
            output = raft.take_output()
            if raft.state.leadership is not None or output.persist is not None:
                invariants.check(raft.state)  # whether it has turned anything back, the next step finds out
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
        self.on_before_step(process, cause)
        is_void_order = isinstance(cause, TimeoutNow) and self.ghost.is_void_order(process.raft, cause)
        is_old = isinstance(cause, VoteRequest) and self.ghost.is_behind(process.raft, cause)
        wall_ms = WALL_START_MS + self.now_ms + process.machine.wall_skew_ms
        beyond = self.ghost.beyond(process.raft, wall_ms, cause) if isinstance(cause, AppendEntries) else ()
        process.raft.step(now, wall_ms, cause)
        self._check(process)
        self.ghost.on_beyond(process.raft, beyond)
        if is_void_order:
            self.ghost.on_void_order(process.raft)
        if is_old and isinstance(cause, VoteRequest):
            self.ghost.on_behind(process.raft, cause)
        self.ghost.on_step(process.raft)
        for id_ in self.ghost.take_joined():
            self._join(id_)

    def _join(self, id_: NodeId) -> None:
        """A committed configuration names a member for the first time: a machine with nothing on it."""
        machine = self.machines[id_] = Machine(id_, fork(self.seed, f"node-{id_}"))
        self.ghost.disks[id_] = machine.disk
        self.ids = (*self.ids, id_)
        self.counts["members joined"] += 1
        self.on_joined(id_)

    def _check(self, process: Process) -> None:
        """Most steps change nothing that is observed: a heartbeat, an answer to one, a timer moved."""
        state = process.raft.state
        invariants.check(state)
        observed = invariants.observe(state)
        before = process.observed
        if before is not None and observed != before:
            invariants.check_step(before, observed)
            if observed.matches != before.matches:
                self.ghost.on_matches(process.raft, before.matches, observed.matches)
        process.observed = observed

    def _arm(self, process: Process) -> None:
        deadline = max(process.machine.when_ms(process.raft.next_deadline_ms()), self.now_ms)
        if process.timer_at is None or deadline < process.timer_at:
            process.timer_at = deadline
            self.at(deadline - self.now_ms, partial(self._on_timer, process, deadline))

    def _on_timer(self, process: Process, deadline: int) -> None:
        if process.timer_at == deadline:
            process.timer_at = None
        if process.is_alive:
            self._schedule(process)

    # ── what an output asks for ─────────────────────────────────────────────────────────────────────

    def _execute(self, process: Process, output: Output) -> None:
        machine = process.machine
        random = machine.rng.random
        self.ghost.on_output(process.raft, output)
        if output.persist is not None:
            machine.disk.queue.append(output.persist)
            self.disks.write(process)
        durable = machine.disk.durable
        for send in output.sends:
            if send.after > durable:
                process.held.append(send)
            else:
                self._leave(process.node, send)
        assert output.apply_to <= machine.disk.last_index, ("I11", process.node, output.apply_to)
        if output.installed is not None:
            self.ghost.on_installed(process.node, output.installed)
            process.applied = output.installed.index
        if output.apply_to > process.applied and random() < 0.7:
            process.applied = output.apply_to
            if random() < 0.3:
                machine.stored = process.applied
        if output.lift_quarantine:
            self.at(int(random() * (self.disks.fsync_ms + 1)), partial(self._lift_quarantine, process))
        process.raft.forget(process.applied)
        for fetch in output.fetches:
            self.counts["reads of old entries"] += 1
            self.at(int(random() ** 2 * self.timeout / 4), partial(self._fetch, process, fetch))
        self.on_after_output(process, output)

    def _leave(self, sender: NodeId, send: Send) -> None:
        self.ghost.on_left(sender, send)
        self.links.send(sender, send.to, send.message)

    def _release(self, process: Process, persisted: Persisted) -> None:
        if process.held:
            ready = [send for send in process.held if send.after <= persisted.number]
            process.held = [send for send in process.held if send.after > persisted.number]
            for send in ready:
                self._leave(process.node, send)

    def _fetch(self, process: Process, fetch: Fetch) -> None:
        if not process.is_alive:
            return
        entries: list[Entry] = []
        size = 0
        for index in range(fetch.first, fetch.last + 1):
            entry = process.machine.disk.entry(index)
            if entry is None:
                break  # trimmed meanwhile
            size += entry_bytes(entry)
            if entries and size > fetch.bytes_max:
                break
            entries.append(entry)
        self.put(process.node, Fetched(fetch.peer, tuple(entries)))

    def _lift_quarantine(self, process: Process) -> None:
        if process.is_alive:
            process.machine.is_quarantined = False
            self.ghost.on_whole(process.node)
            self.counts["quarantines left"] += 1
            self.put(process.node, QuarantineLifted())

    def set_clock_rate(self, id_: NodeId, rate: int) -> None:
        """From now on the local clock runs at `rate` thousandths of the true speed."""
        machine = self.machines[id_]
        machine.set_rate(rate, self.now_ms)
        if machine.process is not None:
            machine.process.timer_at = None
            self._arm(machine.process)
