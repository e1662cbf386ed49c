"""Small worlds: two or three cores, and every order in which things can happen to them, up to a depth.

Nothing is drawn here. At each point all that could happen next is listed: a message arrives, a disk finishes its oldest
write, a timer runs out, a client asks, a node crashes keeping some of its writes. `explore` tries every entry of the
list in every state once (`kvnode.sim.choices.every_choice`), and does not go on where it meets a state that it has
explored at least as deeply before. Messages arrive in any order or, as far as the depth reaches, never. Time passes for
all nodes at once, to the moment at which the chosen timer runs out. All invariants are checked after every step.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from kvnode.config import RaftSection
from kvnode.ids import NO_WRITE, NodeId, RequestId
from kvnode.raft import invariants
from kvnode.raft.core import Raft
from kvnode.raft.messages import (
    Configuration,
    Input,
    Persisted,
    Proposals,
    Proposed,
    RaftMessage,
    ReadRequest,
    Tick,
)
from kvnode.raft.output import Output, Send
from kvnode.raft.progress import Progress
from kvnode.raft.state import RaftState
from kvnode.sim.choices import every_choice
from kvnode.sim.core.disk import WALL_START_MS, CoreDisk
from kvnode.sim.ghost import Ghost

TIMEOUT_MS = 300


class _Still(random.Random):
    """Election timeouts without jitter: which timer runs out is chosen, not drawn."""

    def random(self) -> float:
        return 0.0


@dataclass(frozen=True)
class Budget:
    """How often each kind of thing may happen in one run."""

    proposals: int = 1
    reads: int = 0
    crashes: int = 0
    timeouts: int = 1
    is_disk_instant: bool = False  # writes finish at once; otherwise each is an event of its own


@dataclass
class _Node:
    raft: Raft
    held: list[Send] = field(default_factory=list)
    observed: invariants.Observed | None = None


class SmallWorld:
    """`options()` says what can happen now; calling one of them makes it happen."""

    def __init__(self, size: int, budget: Budget) -> None:
        ids = [NodeId(number) for number in range(1, size + 1)]
        self.now_ms = 0
        self.configuration = Configuration(tuple(ids))
        self.disks = {id_: CoreDisk() for id_ in ids}
        self.ghost = Ghost(self.disks)
        self.messages: list[tuple[NodeId, RaftMessage]] = []
        self.allow(budget)
        self._numbers = 0
        self._settings = RaftSection(heartbeat_ms=100, election_timeout_ms=TIMEOUT_MS, commit_note_ms=0)
        self.nodes = {id_: self._started(id_) for id_ in ids}

    def _started(self, id_: NodeId) -> _Node:
        disk = self.disks[id_]
        disk.durable = NO_WRITE
        self.ghost.on_started(id_)
        restored = disk.restored(self.configuration)
        return _Node(Raft(node=id_, settings=self._settings, rng=_Still(0), restored=restored, now_ms=self.now_ms))

    def allow(self, budget: Budget) -> None:
        """From now on this much may happen."""
        self._is_disk_instant = budget.is_disk_instant
        self._left = {"propose": budget.proposals, "read": budget.reads}
        self._left |= {"crash": budget.crashes, "timeout": budget.timeouts}

    # ── what can happen ─────────────────────────────────────────────────────────────────────────────

    def options(self) -> list[Callable[[], None]]:
        """In a fixed order. Equal messages to one node are one option."""
        found: list[Callable[[], None]] = []
        offered: list[tuple[NodeId, RaftMessage]] = []
        for message in self.messages:
            if message not in offered:
                offered.append(message)
                found.append(partial(self.deliver, message))
        found += [partial(self.finish_write, id_) for id_, disk in self.disks.items() if disk.queue]
        for id_, node in self.nodes.items():
            if self._left["timeout"]:
                found.append(partial(self._spend, "timeout", partial(self.time_out, id_)))
            if self._left["propose"] and node.raft.state.leadership is not None:
                found.append(partial(self._spend, "propose", partial(self.propose, id_)))
            if self._left["read"] and node.raft.state.leadership is not None:
                found.append(partial(self._spend, "read", partial(self.read, id_)))
            if self._left["crash"]:
                for kept in range(len(self.disks[id_].queue) + 1):
                    found.append(partial(self._spend, "crash", partial(self.crash, id_, kept)))
        return found

    def _spend(self, kind: str, event: Callable[[], None]) -> None:
        self._left[kind] -= 1
        event()

    def deliver(self, message: tuple[NodeId, RaftMessage]) -> None:
        self.messages.remove(message)
        self._step(message[0], message[1])

    def finish_write(self, id_: NodeId) -> None:
        disk, node = self.disks[id_], self.nodes[id_]
        self.ghost.on_durable(id_, disk.queue[0])
        number = disk.complete()
        ready = [send for send in node.held if send.after <= number]
        node.held = [send for send in node.held if send.after > number]
        for send in ready:
            self._leave(id_, send)
        self._step(id_, Persisted(number))

    def time_out(self, id_: NodeId) -> None:
        """The node's next timer runs out; nobody else has noticed yet that time has passed."""
        self.now_ms = max(self.now_ms, self.nodes[id_].raft.next_deadline_ms())
        self._step(id_, Tick())

    def propose(self, id_: NodeId) -> None:
        self._numbers += 1
        payload = b"%d" % self._numbers
        self.ghost.proposed[RequestId(self._numbers)] = payload
        self._step(id_, Proposals((Proposed(RequestId(self._numbers), payload),)))

    def read(self, id_: NodeId) -> None:
        self._numbers += 1
        self.ghost.on_read_invoked(self._numbers)
        self._step(id_, ReadRequest(self._numbers))

    def crash(self, id_: NodeId, kept: int) -> None:
        """Dies, keeping its `kept` oldest writes, and is back at once; its messages are under way still."""
        disk = self.disks[id_]
        for _ in range(kept):
            self.ghost.on_durable(id_, disk.queue[0])
            disk.complete()
        disk.queue.clear()
        self.nodes[id_] = self._started(id_)

    # ── one step ────────────────────────────────────────────────────────────────────────────────────

    def _step(self, id_: NodeId, cause: Input) -> None:
        node = self.nodes[id_]
        node.raft.step(self.now_ms, WALL_START_MS + self.now_ms, cause)
        state = node.raft.state
        invariants.check(state)
        observed = invariants.observe(state)
        if node.observed is not None:
            invariants.check_step(node.observed, observed)
            self.ghost.on_matches(node.raft, node.observed.matches, observed.matches)
        node.observed = observed
        self.ghost.on_step(node.raft)
        output = node.raft.take_output()
        invariants.check(state)
        self._execute(id_, node, output)

    def _execute(self, id_: NodeId, node: _Node, output: Output) -> None:
        disk = self.disks[id_]
        self.ghost.on_output(node.raft, output)
        if output.persist is not None:
            disk.queue.append(output.persist)
        for send in output.sends:
            if send.after > disk.durable:
                node.held.append(send)
            else:
                self._leave(id_, send)
        assert output.apply_to <= disk.last_index, ("I11", id_, output.apply_to)
        while self._is_disk_instant and disk.queue and self.nodes[id_] is node:
            self.finish_write(id_)

    def _leave(self, id_: NodeId, send: Send) -> None:
        self.ghost.on_left(id_, send)
        self.messages.append((send.to, send.message))

    # ── the same state again ────────────────────────────────────────────────────────────────────────

    def key(self) -> bytes:
        """Equal for two worlds in which the same things can happen from now on. Instants count by their distance."""
        nodes = [(self._core_key(node.raft.state), sorted(map(repr, node.held))) for node in self.nodes.values()]
        disks = [(disk.hard_state, disk.entries, list(disk.queue)) for disk in self.disks.values()]
        parts = (nodes, disks, sorted(map(repr, self.messages)), sorted(self._left.items()), self.ghost.reads)
        return hashlib.blake2b(repr(parts).encode(), digest_size=12).digest()

    def _core_key(self, state: RaftState) -> tuple[object, ...]:
        now, leadership, candidacy = self.now_ms, state.leadership, state.candidacy
        contact = None if state.leader_contact_ms is None else min(now - state.leader_contact_ms, TIMEOUT_MS)
        office: object = None
        if leadership is not None:
            office = (
                leadership.heartbeat_deadline_ms - now,
                leadership.quorum_deadline_ms - now,
                [(peer, self._progress_key(progress, now)) for peer, progress in leadership.progress.items()],
                leadership.reads_waiting,
                list(leadership.read_rounds),
            )
        elif candidacy is not None:
            office = (candidacy.term, list(candidacy.granted), list(candidacy.refused))
        log = state.log.tail(state.log.first_in_memory)
        writes = (state.writes.durable_index, state.writes.durable_number, state.writes.last_number)
        basics = (state.term, state.vote, state.commit_index, state.role.value, state.leader, state.read_round)
        timers = (state.election_deadline_ms - now, contact, state.has_heard_leader, state.grace_given)
        return (basics, timers, log, writes, office)

    @staticmethod
    def _progress_key(progress: Progress, now_ms: int) -> tuple[object, ...]:
        return (
            progress.state,
            progress.next_index,
            progress.match_index,
            progress.is_paused,
            progress.has_answered,
            list(progress.window),
            progress.read_round,
            progress.commit_sent,
            min(now_ms - progress.contact_ms, TIMEOUT_MS),
            min(now_ms - progress.advanced_ms, TIMEOUT_MS),
        )


@dataclass(frozen=True)
class Explored:
    states: int  # different ones
    runs: int


def explore(make: Callable[[], SmallWorld], depth: int, runs_max: int = 1_000_000) -> Explored:
    """Every run of at most `depth` events from the world that `make` makes, each state once.

    Raises: AssertionError of the invariant that was violated, with the choices that lead there as a note.
    """
    explored_to: dict[bytes, int] = {}  # state → how many events were left when it was met
    runs = 0
    for choices in every_choice(runs_max=runs_max):
        runs += 1
        world = make()
        try:
            for level in range(depth):
                if level >= choices.replayed:
                    key, left = world.key(), depth - level
                    if explored_to.get(key, 0) >= left:
                        break
                    explored_to[key] = left
                options = world.options()
                if not options:
                    break
                options[choices.pick(len(options))]()
        except AssertionError as error:
            error.add_note(f"choices {choices.taken}")
            raise
    return Explored(len(explored_to), runs)
