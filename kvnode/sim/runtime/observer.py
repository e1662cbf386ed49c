"""The observer of a simulated cluster: it sees every step of every core, every finished write, what leaves.

What a single core must keep is `kvnode.raft.invariants`, what spans nodes is `kvnode.sim.ghost`, the same that judges
tier 1. Here the ghost is shown the real runtime: each log is mirrored into a `CoreDisk` as its writes finish, and at a
restart the recovered log must be one that the mirror and the write under way allow (I26).

A snapshot stands for the committed entries up to its position, so the mirror of a log that begins anew after one, or
that was trimmed, goes on holding them: whoever has the state has what made it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import msgspec

from kvnode.config import RaftSection
from kvnode.errors import LogCorrupted
from kvnode.ids import NO_WRITE, Index, NodeId, RequestId, Term
from kvnode.raft import invariants
from kvnode.raft.core import Raft
from kvnode.raft.messages import (
    AppendEntries,
    Entry,
    HardState,
    Input,
    KeepAlive,
    KeepAliveReply,
    LeaderProposals,
    LogPosition,
    PeerMessage,
    Proposals,
    ReadRequest,
    StateHash,
)
from kvnode.raft.output import (
    BecameFollower,
    BecameLeader,
    ClockAhead,
    LogTruncated,
    Output,
    Persist,
    Placed,
    QuarantineEnded,
    Send,
    SnapshotIgnored,
    SnapshotInstalled,
    StampRefused,
    StampTolerated,
)
from kvnode.raft.state import Restored
from kvnode.sim.core.disk import CoreDisk
from kvnode.sim.ghost import Ghost
from kvnode.storage.wal import Recovered, Wal


class RuntimeGhost(Ghost):
    """The ghost for real clients: two requests may be equal, and one may be proposed again after a refusal."""

    def __init__(self, disks: dict[NodeId, CoreDisk]) -> None:
        super().__init__(disks)
        self.handed_in: dict[bytes, int] = {}  # payload → how often it was proposed and not (yet) refused
        self.refused_once: dict[RequestId, bool] = {}

    def on_proposed(self, request: RequestId, payload: bytes) -> None:
        self.proposed[request] = payload
        self.handed_in[payload] = self.handed_in.get(payload, 0) + 1

    def on_output(self, raft: Raft, output: Output) -> None:
        for refused in output.refused:
            if refused.id in self.refused_once:
                continue  # the same answer, doubled by the network or dug out of it
            self.refused_once[refused.id] = True
            payload = self.proposed[refused.id]
            self.handed_in[payload] -= 1
            assert self.payloads.get(payload, 0) <= self.handed_in[payload], ("I29: refused but appended", payload)
        super().on_output(raft, msgspec.structs.replace(output, refused=[]))

    def _on_appended(self, node: NodeId, entry: Entry, link: int) -> None:
        """An entry nobody has seen before: only its term's leader may have made it, and only from a proposal."""
        assert self.leaders.get(entry.term) == node, ("I4: an entry from nowhere", node, entry)
        assert (entry.index, entry.term) not in self.vanished, ("I29: written after it was cut off", entry)
        self.entries[entry.index, entry.term] = (entry, link)
        if entry.kind == 2:
            count = self.payloads[entry.payload] = self.payloads.get(entry.payload, 0) + 1
            proposed = self.handed_in.get(entry.payload, 0)
            assert count <= proposed, ("I20, I29: appended more often than it was proposed", entry, proposed)


@dataclass
class Observer:
    """See the module docstring. `marks` counts the situations of interest that came about."""

    disks: dict[NodeId, CoreDisk]
    ghost: RuntimeGhost
    under_way: dict[NodeId, list[Persist]] = field(default_factory=dict)  # handed to the log, not yet finished
    marks: dict[str, int] = field(default_factory=dict)
    steps: int = 0
    leader_changes: int = 0
    truncations: int = 0
    segment_rolls: int = 0
    lease_reads: int = 0
    lifting: set[NodeId] = field(default_factory=set)  # whose core has asked for the end of its quarantine
    opening: dict[NodeId, int] = field(default_factory=dict)  # starts that began to open the log, and none finished

    @classmethod
    def of(cls, members: Sequence[NodeId]) -> Observer:
        disks = {member: CoreDisk() for member in members}
        return cls(disks, RuntimeGhost(disks))

    def admit(self, member: NodeId) -> None:
        """There is one more member; its disk is empty."""
        self.disks[member] = CoreDisk()

    def mark(self, name: str) -> None:
        self.marks[name] = self.marks.get(name, 0) + 1

    # ── the core ────────────────────────────────────────────────────────────────────────────────────

    def on_cause(self, node: NodeId, cause: Input) -> None:
        self.steps += 1
        if isinstance(cause, Proposals | LeaderProposals):
            for proposed in cause.batch:
                self.ghost.on_proposed(_of(node, proposed.id), proposed.payload)
        elif type(cause) is ReadRequest:
            self.ghost.on_read_invoked(_of(node, cause.number))

    def on_step(self, raft: Raft) -> None:
        self.ghost.on_step(raft)

    def on_output(self, raft: Raft, output: Output) -> None:
        node = raft.node
        self._count(node, output)
        if output.persist is not None:
            self.under_way.setdefault(node, []).append(output.persist)
        ours = msgspec.structs.replace(
            output,
            placed=[Placed(_of(node, each.id), each.index, each.term) for each in output.placed],
            refused=[msgspec.structs.replace(each, id=_of(node, each.id)) for each in output.refused],
            reads_ready=[msgspec.structs.replace(each, number=_of(node, each.number)) for each in output.reads_ready],
            reads_failed=[msgspec.structs.replace(each, number=_of(node, each.number)) for each in output.reads_failed],
        )
        for failed in ours.reads_failed:
            if failed.number in self.ghost.reads:
                self.mark("read_round_lost")
        self.ghost.on_output(raft, ours)

    def _count(self, node: NodeId, output: Output) -> None:
        if output.lift_quarantine:
            self.lifting.add(node)
        for fact in output.facts:
            match fact:
                case BecameLeader():
                    self.leader_changes += 1
                case LogTruncated():
                    self.truncations += 1
                case QuarantineEnded():
                    self.mark("quarantine_left")
                    self.lifting.discard(node)
                    self.ghost.on_whole(node)
                case BecameFollower(reason=reason) if "disk" in reason:
                    self.mark("hung_disk_step_down")
                case ClockAhead():
                    self.mark("clock_ahead_step_down")
                case StampRefused():
                    self.mark("stamp_refused")
                case StampTolerated():
                    self.mark("stamp_tolerated")
                case SnapshotInstalled():
                    self.mark("snapshot_installed")
                case SnapshotIgnored():
                    self.mark("snapshot_ignored")
                case _:
                    pass

    # ── the log ─────────────────────────────────────────────────────────────────────────────────────

    def on_written(self, node: NodeId, batch: Sequence[Persist]) -> None:
        """These writes are durable."""
        disk, under_way = self.disks[node], self.under_way.get(node, [])
        for write in batch:
            assert under_way, ("a write that no core asked for", node, write)
            assert under_way[0] is write, ("writes finish in the order they were made", node, write, under_way[0])
            under_way.pop(0)
            self.ghost.on_durable(node, write)
            disk.queue.append(write)
            disk.complete()
            if disk.base.index:  # here a log is mirrored whole, with what its store stands for
                disk.entries[:0] = self.ghost.committed_entries(disk.base.index)
                disk.base = LogPosition(Term(0), Index(0))

    def on_come_up(self, node: NodeId, peer: NodeId) -> None:
        """A connection is up."""

    def on_rolled(self) -> None:
        self.segment_rolls += 1

    def on_trimmed(self) -> None:
        self.mark("log_trimmed")

    def on_left(self, node: NodeId, to: NodeId, message: PeerMessage) -> None:
        if not isinstance(message, KeepAlive | KeepAliveReply | StateHash):  # of no concern to consensus
            self.ghost.on_left(node, Send(to, message))

    def on_ended(self, node: NodeId) -> None:
        """The process is gone: what it read it will not answer."""
        for number in [number for number in self.ghost.reads if number >> 96 == node]:
            del self.ghost.reads[number]

    def on_opening(self, node: NodeId) -> None:
        """A start looks at its log now. It may be cut short, after it has set damage aside."""
        self.opening[node] = self.opening.get(node, 0) + 1

    def on_recovered(
        self, node: NodeId, wal: Wal, recovered: Recovered, *, was_salvaged: bool, was_lied_to: bool, has_rotted: bool
    ) -> None:
        """I26, I19: exactly what was durable, plus a beginning of what was being written.

        Of a log that was damaged: an intact beginning of that, and quarantine. Of a disk that said so and did not sync:
        nothing can be asked but genuine entries.
        """
        disk = self.disks[node]
        before_log = self.ghost.committed_entries(recovered.base.index)
        if before_log:
            assert before_log[-1].term == recovered.base.term, ("I17: begins after another entry", node, recovered.base)
        entries = _whole_log(wal, recovered, before_log, disk.entries if has_rotted else None)
        if recovered.report.began_anew is not None:
            self.mark("install_finished_at_start")
        was_interrupted = self.opening.pop(node) > 1
        if was_salvaged or (was_interrupted and has_rotted and recovered.quarantine is not None):
            before = list(disk.entries)
            self._on_salvaged(node, entries, recovered)
            self.ghost.on_lost(node, before)
            self.lifting.discard(node)
            return
        if (node in self.ghost.lost) != (recovered.quarantine is not None):
            assert recovered.quarantine is None, ("I16: in quarantine, and nobody knows why", node)
            assert node in self.lifting, ("I16: a quarantine is forgotten", node)
            self.lifting.discard(node)
            self.ghost.on_whole(node)  # it ended before it could say so
        if was_lied_to:
            self._check_genuine(node, entries)
            self._begin_life(node, entries, recovered.hard_state)
            return
        position = _last(entries)
        for allowed in self._allowed(node):
            if _last(allowed) == position:
                assert allowed == entries, ("I26: not what was written", node, position)
                break
        else:
            raise AssertionError(("I26: recovered a log that never was", node, position, _last(disk.entries)))
        self._check_hard_state(node, recovered.hard_state)
        if position != _last(disk.entries):
            self.mark("unacknowledged_tail_survived")
        if recovered.report.torn is not None:
            self.mark("torn_tail_cut")
        self._begin_life(node, entries, recovered.hard_state)

    def _on_salvaged(self, node: NodeId, entries: list[Entry], recovered: Recovered) -> None:
        """Every kept entry is genuine and stands where it stood; term and vote are what they were, or newer."""
        self._check_genuine(node, entries)
        durable = self.disks[node].hard_state
        found = recovered.hard_state
        assert found.term >= durable.term, ("I3: a term was lost with the log", node, found, durable)
        assert found.term > durable.term or found.vote == durable.vote, ("I2: a vote was lost", node, found, durable)
        self._begin_life(node, entries, found)

    def _check_genuine(self, node: NodeId, entries: list[Entry]) -> None:
        known = self.ghost.entries
        for entry in entries:
            assert known.get((entry.index, entry.term), (None,))[0] == entry, ("I26: not what was written", node, entry)

    def _begin_life(self, node: NodeId, entries: list[Entry], hard_state: HardState) -> None:
        disk = self.disks[node]
        disk.entries[:] = entries
        disk.hard_state = hard_state
        disk.queue.clear()
        disk.durable = NO_WRITE
        self.under_way[node] = []
        self.ghost.on_started(node)

    def _allowed(self, node: NodeId) -> Iterator[list[Entry]]:
        """The log after a crash: as it was durable, or as it is after any record of the writes under way."""
        entries = list(self.disks[node].entries)
        yield entries
        for write in self.under_way.get(node, []):
            if write.install is not None and not write.install.keeps_log:
                entries[:] = self.ghost.committed_entries(write.install.position.index)
                yield entries
            if write.truncate_from:
                del entries[write.truncate_from - 1 :]
                yield entries
            for entry in write.entries:
                entries.append(entry)
                yield entries

    def _check_hard_state(self, node: NodeId, found: HardState) -> None:
        durable = self.disks[node].hard_state
        states = [durable, *(w.hard_state for w in self.under_way.get(node, []) if w.hard_state is not None)]
        assert any((s.term, s.vote) == (found.term, found.vote) for s in states), ("I2, I3", node, found, states)


class StrayObserver(Observer):
    """Of a process on a disk that is not its member's: nothing that it does is a claim of the cluster."""

    def on_cause(self, node: NodeId, cause: Input) -> None:
        """Not counted either."""

    def on_step(self, raft: Raft) -> None:
        pass

    def on_output(self, raft: Raft, output: Output) -> None:
        pass

    def on_written(self, node: NodeId, batch: Sequence[Persist]) -> None:
        pass

    def on_left(self, node: NodeId, to: NodeId, message: PeerMessage) -> None:
        pass

    def on_ended(self, node: NodeId) -> None:
        pass

    def on_opening(self, node: NodeId) -> None:
        pass

    def on_come_up(self, node: NodeId, peer: NodeId) -> None:
        raise AssertionError(("I27: let a member in that runs on what is not its own", node, peer))

    def on_recovered(
        self, node: NodeId, wal: Wal, recovered: Recovered, *, was_salvaged: bool, was_lied_to: bool, has_rotted: bool
    ) -> None:
        pass


class WatchedRaft(Raft):
    """A core that is looked at after every step."""

    def __init__(
        self,
        *,
        node: NodeId,
        settings: RaftSection,
        rng: random.Random,
        restored: Restored,
        now_ms: int,
        observer: Observer,
    ) -> None:
        super().__init__(node=node, settings=settings, rng=rng, restored=restored, now_ms=now_ms)
        self._observer = observer
        self._observed = invariants.observe(self.state)

    def step(self, now_ms: int, wall_ms: int, cause: Input) -> None:
        self._observer.on_cause(self.state.node, cause)
        ghost = self._observer.ghost
        beyond = ghost.beyond(self, wall_ms, cause) if type(cause) is AppendEntries else ()
        super().step(now_ms, wall_ms, cause)
        self._look()
        ghost.on_beyond(self, beyond)
        self._observer.on_step(self)

    def has_lease(self, now_ms: int) -> bool:
        holds = super().has_lease(now_ms)
        if holds:
            self._observer.lease_reads += 1
            self._observer.ghost.on_lease_read(self)
        return holds

    def take_output(self) -> Output:
        output = super().take_output()
        self._look()
        self._observer.on_output(self, output)
        return output

    def _look(self) -> None:
        invariants.check(self.state)
        observed = invariants.observe(self.state)
        invariants.check_step(self._observed, observed)
        self._observed = observed


def watch(
    wal: Wal, written: Callable[[Sequence[Persist]], None], rolled: Callable[[], None], trimmed: Callable[[], None]
) -> None:
    """Have every finished write of this log told, every new segment, and every trim that removed something."""
    write, roll, trim = wal.write, wal._roll, wal.trim

    def watched(batch: Sequence[Persist]) -> None:
        write(batch)
        written(batch)

    def watched_roll(need: int) -> None:
        roll(need)
        rolled()

    def watched_trim(applied_index: Index, bytes_kept: int) -> LogPosition:
        first = wal.first_index
        position = trim(applied_index, bytes_kept)
        if wal.first_index > first:
            trimmed()
        return position

    wal.trim = watched_trim  # type: ignore[method-assign]  # likewise
    wal.write = watched  # type: ignore[method-assign]  # `open_log` makes it, so no subclass can
    wal._roll = watched_roll  # type: ignore[method-assign]  # likewise


def _of(node: NodeId, number: int) -> RequestId:
    """Numbers are a node's own; the ghost knows all nodes."""
    return RequestId((node << 96) | number)


def _whole_log(wal: Wal, recovered: Recovered, before_log: list[Entry], believed: list[Entry] | None) -> list[Entry]:
    """What is in the log, after what the store stands for.

    `believed`: stands in for old entries that rotted and that a start does not look at, as the scrubber will.
    """
    entries = list(before_log)
    last = recovered.tail[0].index - 1 if recovered.tail else recovered.last_index
    try:
        while len(entries) < last:
            entries += wal.read(Index(len(entries) + 1), Index(last), 1 << 20)
    except LogCorrupted:
        if believed is None:
            raise
        entries = believed[:last]
    return [*entries, *recovered.tail]


def _last(entries: Sequence[Entry]) -> tuple[Index, Term]:
    return (entries[-1].index, entries[-1].term) if entries else (Index(0), Term(0))
