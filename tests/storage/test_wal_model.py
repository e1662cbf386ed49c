"""Random work against a plain list: writes, cuts, marks, trims, snapshots, restarts, kills and power losses.

After each life the log must be the acknowledged one or one step further, and everything it holds must read back.
Replay one run: ``pytest tests/storage/test_wal_model.py -k seed7``.
"""

from __future__ import annotations

import random

import pytest

from kvnode.ids import Index, Term
from kvnode.raft.messages import Entry, LogPosition
from kvnode.raft.output import Persist
from kvnode.sim.choices import RandomChoices
from kvnode.sim.disk import FakeDisk, SimulatedCrash
from kvnode.storage.wal import Wal
from tests.storage.wal_world import Expected, entry, new_disk, open_wal, persist, recover, view

LIVES = 12
ALL = Index(1 << 40)


class Work:
    """A node's worth of random, legal work on one log."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.expected = Expected()
        self.commit = 0
        self.applied = 0
        self.number = 0
        self.installed: LogPosition | None = None  # what the store began as, while it has applied nothing since

    def batch(self) -> list[Persist]:
        return [self._persist() for _ in range(self.rng.choice([1, 1, 1, 2, 5]))]

    def _persist(self) -> Persist:
        rng, self.number = self.rng, self.number + 1
        last, term, cut, state = self._last, self._term, 0, None
        if rng.random() < 0.25:
            term += rng.randrange(1, 3)
            state = (term, rng.randrange(4))
            if rng.random() < 0.6 and last > self.commit:
                cut = rng.randrange(self.commit + 1, last + 1)
                last = cut - 1
        size = rng.choice([0, 10, 100, 400, 2500])
        count = rng.randrange(0 if state else 1, 4)
        entries: list[Entry] = [entry(last + 1 + i, term, rng.randbytes(size)) for i in range(count)]
        if term == 0:
            term, state = 1, (1, 0)
            entries = [entry(one.index, 1, one.payload) for one in entries]
        self._last, self._term = last + count, term
        return persist(self.number, *entries, cut=cut, state=state, commit=self.commit)

    def live(self, wal: Wal, steps: int) -> None:
        rng, expected = self.rng, self.expected
        self._last, self._term = len(expected.entries), expected.term
        for _ in range(steps):
            choice = rng.random()
            if choice < 0.8:
                batch = self.batch()
                expected.begin(batch)
                wal.write(batch)
                expected.finish()
                durable = len(expected.entries)
                if rng.random() < 0.7:
                    self.commit = rng.randrange(self.commit, durable + 1) if durable > self.commit else self.commit
                    self.applied = max(self.applied, rng.randrange(self.commit + 1))
            elif choice < 0.92:
                wal.mark()
            elif choice < 0.97:
                base = wal.trim(Index(self.applied), rng.choice([0, 10_000, 50_000]))
                assert base.index <= self.applied
            else:
                self.install(wal)
            first = rng.randrange(wal.first_index, len(expected.entries) + 2)
            if expected.entries[first - 1 :]:
                assert wal.read(Index(first), ALL, 1 << 30) == expected.entries[first - 1 :]

    def install(self, wal: Wal) -> None:
        """A snapshot comes from further on: the store is it from here on, whatever becomes of the log."""
        rng, expected = self.rng, self.expected
        index = self.commit + rng.randrange(1, 30)
        term = max(1, expected.term - rng.randrange(2))
        self.installed = LogPosition(Term(term), Index(index))
        self.commit = self.applied = index
        gone = entry(0)  # what stood below is nobody's any more
        expected.entries = [gone] * index
        expected.term = max(expected.term, term)
        expected.finish()
        wal.reset(self.installed, index * 1_000)
        self._last, self._term = index, expected.term


@pytest.mark.parametrize("seed", range(24), ids=lambda seed: f"seed{seed}")
def test_random_lives(seed: int) -> None:
    rng = random.Random(seed)
    work, disk = Work(rng), new_disk(seed)
    options = {"segment_bytes": rng.choice([8192, 16384]), "batch_bytes_max": rng.choice([4096, 8192])}
    wal, _ = recover(disk, work.expected, **options)
    for life in range(LIVES):
        ending = rng.choice(["close", "kill", "power", "power"])
        if ending == "power":
            disk.crash_at(disk.changes + rng.randrange(1, 60))
        try:
            work.live(wal, 25)
            if ending == "close":
                wal.close()
        except SimulatedCrash:
            pass
        disk = disk.kill() if ending in {"close", "kill"} else disk.crash(RandomChoices(rng))
        wal = restart(work, disk, life * 1000 + seed, options)


def restart(work: Work, disk: FakeDisk, salts: int, options: dict[str, int]) -> Wal:
    installed = work.installed if work.installed and work.installed.index == work.applied else None
    wal, found = open_wal(disk, applied=work.applied, salts=salts, installed=installed, **options)
    expected = work.expected
    kept = [(entries[work.applied :], term, vote) for entries, term, vote in expected.allowed]
    assert view(found) in kept, (view(found), kept)
    entries, term, vote = expected.allowed[kept.index(view(found))]
    expected.settle((entries, term, vote))
    assert found.last_index == len(entries)
    assert found.hard_state.commit <= work.commit
    assert found.last_time >= max((one.time for one in found.tail), default=0)
    live = expected.entries[wal.first_index - 1 :]
    if live:
        assert wal.read(wal.first_index, ALL, 1 << 30) == live
    return wal
