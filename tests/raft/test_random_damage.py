"""Random damage: members lose random ends of their logs, again and again, under cuts, crashes and reordered messages.

Whatever happens, what was committed stays committed and equal everywhere, and a term has one leader (`Cluster` checks
that after every step). Some damages begin at a write that had cut entries off, and so bring those back. A member is out
of quarantine only with everything that was committed in terms before the last one it had acknowledged in; of that last
one its leader has told. At the end, with everybody up and connected, all leave and are level: scenario S73, invariants
I6, I7, I12, I16, I30.
"""

from __future__ import annotations

import random

import pytest

from kvnode.ids import NOBODY, Index, NodeId, Term
from kvnode.raft.messages import Entry, TransferLeadership
from kvnode.raft.output import Output, Persist
from tests.raft.cluster import Cluster, Member

SEEDS = 80
STEPS = 160


class Damaged(Cluster):
    """A cluster whose disks remember every write, so that damage can bring back what a lost write had cut off."""

    def __init__(self, seed: int, size: int) -> None:
        self.rng = random.Random(f"damage.{seed}")
        self.records: dict[NodeId, list[Persist]] = {}
        self.stored: dict[NodeId, list[Entry]] = {}
        self.lost_terms: dict[NodeId, Term] = {}  # up to which it may have acknowledged what it lost
        self.lifted: list[tuple[NodeId, Term, Index]] = []
        self.damages = 0
        self.truncations_lost = 0  # damages that brought back entries which a lost write had cut off
        super().__init__(size, seed=seed)
        self.slow_disks = dict.fromkeys(self.members, True)

    # ── disks ───────────────────────────────────────────────────────────────────────────────────────

    def complete_write(self, id_: int) -> None:
        member = self.member(id_)
        self.records.setdefault(member.id, []).append(member.disk.queue[0])
        super().complete_write(id_)

    def start(self, id_: int) -> None:
        """As a real start: what the kept records call committed, and the store has applied, is not replayed."""
        super().start(id_)
        member = self.member(id_)
        commit = Index(min(self._kept_commit(member.id), len(self.stored.setdefault(member.id, []))))
        raft = member.raft
        assert raft is not None
        state = raft.state
        assert member.disk.entries[:commit] == self.stored[member.id][:commit], ("called committed", id_, commit)
        state.commit_index = state.apply_to = commit
        member.applied = list(member.disk.entries[:commit])
        member.observed = None
        self._check(member)

    def _kept_commit(self, id_: NodeId) -> int:
        commit = durable = 0
        for write in self.records.get(id_, []):
            before = min(durable, write.truncate_from - 1) if write.truncate_from else durable
            commit = max(commit, min(write.commit, before))
            durable = write.entries[-1].index if write.entries else before
        return commit

    def damage(self, id_: int, first: int) -> None:
        """Restart a node that finds its log unreadable from write number `first` on; term and vote are intact."""
        self.crash(id_)
        member = self.member(id_)
        disk = member.disk
        had = disk.entries
        records = self.records.get(member.id, [])[:first]
        self.records[member.id] = records
        disk.entries = []
        for write in records:
            if write.truncate_from:
                del disk.entries[write.truncate_from - 1 :]
            disk.entries += write.entries
        self.damages += 1
        self.truncations_lost += had[: len(disk.entries)] != disk.entries
        member.is_quarantined = True
        self.lost_terms[member.id] = disk.hard_state.term
        self.start(id_)

    # ── what is watched ─────────────────────────────────────────────────────────────────────────────

    def _execute(self, member: Member, output: Output) -> None:
        if output.lift_quarantine:
            last = member.disk.last_index
            for entry in self.committed.values():
                if entry.term < self.lost_terms[member.id]:
                    assert entry.index <= last, ("left without", member.id, entry, last)
                    assert member.disk.entries[entry.index - 1] == entry, ("left with another", member.id, entry)
            self.lifted.append((member.id, self.lost_terms[member.id], last))
        super()._execute(member, output)

    def _apply(self, member: Member, apply_to: Index) -> None:
        for entry in member.disk.entries[len(member.applied) : apply_to]:
            if entry.index not in self.committed:
                for who, term, last in self.lifted:
                    assert entry.term >= term or entry.index <= last, ("committed behind who left", who, term, entry)
        super()._apply(member, apply_to)
        stored = self.stored.setdefault(member.id, [])
        stored += member.applied[len(stored) :]

    # ── what happens ────────────────────────────────────────────────────────────────────────────────

    def quarantined(self) -> list[NodeId]:
        return [member.id for member in self.members.values() if member.is_quarantined]

    def first_lost(self, id_: NodeId) -> int:
        """Where the damage begins: anywhere, or just where a write begins that cuts entries off."""
        records = self.records.get(id_, [])
        cuts = [number for number, write in enumerate(records) if write.truncate_from]
        if cuts and self.rng.random() < 0.5:
            return self.rng.choice(cuts)
        return self.rng.randint(0, len(records))

    def happen(self) -> None:
        rng, ids = self.rng, list(self.members)
        id_ = rng.choice(ids)
        member = self.member(id_)
        is_up = member.raft is not None
        minority = (len(ids) - 1) // 2
        match rng.randrange(13):
            case 0 if len({*self.quarantined(), id_}) <= minority:
                self.damage(id_, self.first_lost(id_))
            case 1 if is_up:
                self.crash(id_)
            case 2 | 3 if not is_up:
                self.start(id_)
            case 4:
                self.cut(id_, rng.choice(ids), one_way=rng.random() < 0.5)
            case 5:
                self.heal()
            case 6 if is_up:
                self.step(id_, TransferLeadership(rng.choice([NodeId(0), *ids])))
            case 7:
                self.advance(rng.choice([20, 60, 200, 700, 2_000]), deliver=rng.random() < 0.7)
            case 8:
                self.strand()
            case _ if is_up:
                self.propose(id_, *[b"%d" % rng.randrange(1_000) for _ in range(rng.randint(1, 3))])
        self.move()

    def start_all(self) -> None:
        for id_, member in self.members.items():
            if member.raft is None:
                self.start(id_)

    def strand(self) -> None:
        """The leader writes what nobody else gets, the others elect another, and what is in its way is cut off."""
        leader = self.leader
        if leader == NOBODY:
            return
        self.start_all()
        self.heal()
        self.cut(leader)
        self.propose(leader, b"stranded")
        for turn in range(20):
            if turn == 16:
                self.heal()
            self.advance(100)
            for id_ in self.members:
                self.complete_writes(id_)

    def move(self) -> None:
        """Some messages arrive, in any order, some twice, some never; some writes finish."""
        rng = self.rng
        for _ in range(rng.randrange(12)):
            if self.wire:
                envelope = self.wire.pop(rng.randrange(len(self.wire)) if rng.random() < 0.3 else 0)
                if rng.random() < 0.05:
                    continue
                if rng.random() < 0.05:
                    self.wire.append(envelope)
                self.hand(envelope)
            id_ = rng.choice(list(self.members))
            if self.member(id_).disk.queue:
                self.complete_write(id_)
        del self.wire[:-200]

    def end(self) -> None:
        self.heal()
        self.slow_disks = {}
        self.start_all()
        for id_ in self.members:
            self.complete_writes(id_)
        self.run_until(lambda: self.leader != 0 and not self.quarantined(), limit_ms=60_000)
        self.propose(self.leader, b"the end")
        self.advance(1_000)
        self.assert_level()


def run(seed: int) -> Damaged:
    cluster = Damaged(seed, size=(3, 5, 4)[seed % 3])
    for _ in range(STEPS):
        cluster.happen()
    cluster.end()
    return cluster


@pytest.mark.slow
def test_a_minority_that_loses_its_logs_again_and_again_costs_nothing_committed() -> None:
    damages = lifts = committed = truncations_lost = 0
    for seed in range(SEEDS):
        try:
            cluster = run(seed)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
        damages += cluster.damages
        truncations_lost += cluster.truncations_lost
        lifts += len(cluster.lifted)
        committed += len(cluster.committed)
    print(f"{SEEDS} seeds: {damages} damages, {truncations_lost} of truncations, {lifts} lifted, {committed} committed")
    assert damages > SEEDS
    assert truncations_lost > SEEDS / 15
    assert lifts > SEEDS / 2
    assert committed > 10 * SEEDS
