"""One seed's whole life of a cluster: clients and faults by the script, then peace in which all must come right."""

from __future__ import annotations

from functools import partial
from random import Random

from kvnode.ids import Index, NodeId, Term
from kvnode.raft.messages import Entry, Input
from kvnode.raft.output import BecameCandidate, BecameLeader, Output
from kvnode.sim.core import churn, faults, liveness, script
from kvnode.sim.core.faults import FAULTS
from kvnode.sim.core.machine import Machine, Process
from kvnode.sim.core.marks import Observer
from kvnode.sim.core.script import Event, Script, draw_script
from kvnode.sim.core.shape import draw_shape, fork
from kvnode.sim.core.world import World
from kvnode.sim.trace import LAST_EVENTS, Trace

DONE_MIN = 5
DONE_SHARE_MIN = 0.02
"""Fewer answers than this, absolutely or of what was asked, and the run proves nothing."""


class Chaos(World):
    """`run()` lives it. `given` replaces the script the seed draws."""

    def __init__(self, seed: int, trace: Trace | None = None, given: Script | None = None) -> None:
        shape = draw_shape(seed, tuple(FAULTS))
        self.script = given if given is not None else draw_script(seed, shape)
        for knob in self.script.off:
            setattr(shape, knob, 0)
        super().__init__(seed, shape, trace)
        self.observer = Observer(self)
        self.done_in_trouble = 0
        self._ambush = fork(seed, "ambush")
        self._life = fork(seed, "churn")
        self._placed: list[tuple[Index, Term]] = []

    def run(self) -> None:
        """Raises: AssertionError naming the invariant that was violated; whatever the core raises."""
        self.set_up()
        self.run_for(self.shape.duration_ms)
        self.done_in_trouble = self._commands_done() + self.ghost.reads_answered
        rng = fork(self.seed, "peace")
        core = liveness.choose_core(self, rng)
        self.trace.add(self.now_ms, "peace", core)
        liveness.make_peace(self, core, rng)
        liveness.assert_recovery(self, core)
        if len(core) < len(self.members()):
            members = self.members()
            self.trace.add(self.now_ms, "peace", members)
            liveness.heal_everybody(self)
            liveness.assert_recovery(self, members)
        liveness.assert_one_link_does_not_matter(self, rng)
        for id_ in self.ids:
            self.ghost.on_times(id_)

    def set_up(self) -> None:
        """Every node starts, and the script is on its way."""
        for id_ in self.ids:
            self.start(id_)
            if self.shape.drift:
                faults.drift(self, self._ambush)
        if self.shape.churn_every_ms:
            self._churn_later()
        for event in self.script.events:
            self.at(event.at_ms, partial(self._on_event, event))

    def _churn_later(self) -> None:
        wait = int(self._life.random() * 2 * self.shape.churn_every_ms) + 1
        self.in_trouble(wait, self._churn)

    def _churn(self) -> None:
        churn.change_members(self, self._life)
        self._churn_later()

    def on_joined(self, id_: NodeId) -> None:
        self.in_trouble(int(self._life.random() * self.timeout), partial(self._start_joined, id_))

    def _start_joined(self, id_: NodeId) -> None:
        if self.machines[id_].process is None:
            self.start(id_)

    def _on_event(self, event: Event) -> None:
        self.trace.add(self.now_ms, event.kind, event.seed)
        rng = Random(event.seed)
        match event.kind:
            case script.PROPOSE:
                self.propose(self._target(rng), 1 + int(rng.random() * 4), (0, 0, 10, 300)[int(rng.random() * 4)])
            case script.READ:
                self.read(self._target(rng))
            case script.HEAL:
                self.counts["spells of calm"] += 1
                liveness.heal_everybody(self)
            case _:
                FAULTS[event.kind](self, rng)
        if event.kind not in (script.PROPOSE, script.READ):
            self.observer.look()

    def _target(self, rng: Random) -> NodeId:
        """Half of the requests find the leader by themselves."""
        return faults.leader_or_any(self, rng) if rng.random() < 0.6 else faults.one_of(rng, self.ids)

    # ── hooks ───────────────────────────────────────────────────────────────────────────────────────

    def on_before_step(self, process: Process, cause: Input) -> None:
        self.observer.before_step(process, cause)

    def on_after_output(self, process: Process, output: Output) -> None:
        """Some runs ambush candidates and new leaders: their first entries stand on few disks, as in Figure 8."""
        if output.placed:
            self._placed.extend((placed.index, placed.term) for placed in output.placed)
        self.observer.after_output(process, output)
        for asked in output.snapshots:
            churn.send_snapshot(self, process, asked, self._life)
        if self.shape.trims and not self.is_peace:
            churn.maybe_trim(self, process, self._life)
        if output.facts and not self.is_peace:
            for fact in output.facts:
                if isinstance(fact, BecameLeader):
                    self.assert_no_lease_beside(process)
                if isinstance(fact, BecameLeader | BecameCandidate):
                    self._on_election(process, is_leader=isinstance(fact, BecameLeader))

    def _on_election(self, process: Process, *, is_leader: bool) -> None:
        rng = self._ambush
        if self.shape.bury:  # answers to the same node's questions of an earlier term, and other ghosts of the past
            self.in_trouble(int(rng.random() * self.timeout), partial(faults.resurrect, self, rng))
        if rng.random() >= self.shape.ambush:
            return
        if not is_leader:
            if rng.random() < 0.4:
                faults.delay_candidate(self, rng, process.node)
        elif rng.random() < 0.7:
            faults.usurp_leader(self, rng, process.node)
        else:
            self.in_trouble(
                int(rng.random() * (self.disks.fsync_ms + 1)), partial(faults.crash_now, self, rng, process.node)
            )

    def on_crashed(self, machine: Machine, lost_writes: int) -> None:
        self.observer.crashed(machine.node, lost_writes)

    def on_rotted(self, machine: Machine, before: list[Entry]) -> None:
        self.observer.rotted(machine, before)

    # ── what it amounted to ─────────────────────────────────────────────────────────────────────────

    def _commands_done(self) -> int:
        """Commands whose origin knows where they stand, and which are committed there."""
        committed = self.ghost.committed
        return sum(index <= len(committed) and committed[index - 1].term == term for index, term in self._placed)

    def totals(self) -> dict[str, int]:
        """What really happened."""
        ghost = self.ghost
        return {
            **self.counts,
            "commands done": self._commands_done(),
            "reads done": ghost.reads_answered,
            "entries committed": len(ghost.committed),
            "leaders": len(ghost.leaders),
            "events": len(self.script.events),
            "steps": self.steps,
        }

    def is_useless(self) -> bool:
        """Clients got almost nothing done while faults struck."""
        asked = sum(event.kind in (script.PROPOSE, script.READ) for event in self.script.events)
        return self.done_in_trouble < max(DONE_MIN, DONE_SHARE_MIN * asked)

    def describe(self) -> str:
        """A line of state for each node, then the newest events."""
        return "\n".join(
            [*(self._line(machine) for machine in self.machines.values()), *self.trace.shortened(LAST_EVENTS)]
        )

    def _line(self, machine: Machine) -> str:
        disk, process = machine.disk, machine.process
        on_disk = f"disk term {disk.hard_state.term} vote {disk.hard_state.vote} last {disk.last_index}"
        on_disk += f" queued {len(disk.queue)}"
        if machine.disk_stuck_until > self.now_ms:
            on_disk += " stuck"
        if process is None:
            return f"node {machine.node}: down; {on_disk}"
        raft, log = process.raft, process.raft.state.log
        role = f"{raft.role}{' (paused)' if process.is_paused else ''}"
        marks = f"first {log.first_in_memory} applied {process.applied} commit {raft.commit_index}"
        voters = raft.configuration.voters
        return (
            f"node {machine.node}: {role} term {raft.term} leader {raft.leader} {marks} "
            f"durable {raft.durable_index} last {log.last_term}.{raft.last_index} voters {','.join(map(str, voters))}; "
            f"{on_disk}"
        )
