"""An install ended at every step, on every disk that may be found: the old state or the new one, whole, and it goes on.

Scenario S58, and S63 and S69 where snapshots come in; canaries 20 and 21. The member has a store, a log whose end
conflicts with the snapshot, and a vote. Counts are printed (``pytest -s``).
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import pytest

from kvnode.config import LimitsSection
from kvnode.errors import LogCorrupted, SnapshotRefused, StorageFailed
from kvnode.ids import Index, NodeId, Term
from kvnode.machine.backend import Row
from kvnode.machine.machine import StateMachine
from kvnode.node.recovery import restore
from kvnode.raft.messages import Configuration, LogPosition
from kvnode.sim.choices import RandomChoices
from kvnode.sim.disk import FakeDisk, FsyncFailure, SimulatedCrash
from kvnode.storage.environments import MemoryEnvironments
from kvnode.storage.log_place import LogPlace
from kvnode.storage.memory_backend import MemoryBackend
from kvnode.storage.snapshots import SnapshotFiles
from kvnode.storage.store_pointer import StorePointer
from kvnode.storage.wal import Recovered, Wal
from kvnode.storage.wal_salvage import open_log
from tests.storage.crash_states import crash_states, stop_everywhere
from tests.storage.snapshot_world import STORE, Sent, files, machine_at, opened, receive, snapshot_at
from tests.storage.wal_world import HOME, STAMP, entry, open_wal, persist, segments

OLD = 7  # what the store has applied
LAST = 12  # of the log
TERM, VOTE = 5, 2
AHEAD, WITHIN = 30, 9  # where snapshots end: behind the log, and at an entry that the log has another of


class Environments(MemoryEnvironments):
    """Building takes steps that a sweep can stop at."""

    def __init__(self, disk: FakeDisk) -> None:
        super().__init__()
        self.disk = disk

    def _step(self) -> None:
        self.disk.fsync_dir("/")

    def build(self, number: int, rows: Iterable[Sequence[Row]]) -> MemoryBackend:
        def stepping() -> Iterator[Sequence[Row]]:
            for some in rows:
                self._step()
                yield some

        backend = super().build(number, stepping())
        self._step()
        return backend

    def fork(self, disk: FakeDisk, *, power_lost: bool) -> Environments:
        """As a restart finds them."""
        found = Environments(disk)
        for number, backend in self.backends.items():
            copy = found.backends[number] = MemoryBackend()
            copy._rows.update(backend._rows)
            copy._undo.update(backend._undo)
            if power_lost:
                copy.lose_power()
        return found


@dataclass
class Life:
    """One process of the member: opened in the order of `kvnode.server`."""

    disk: FakeDisk
    environments: Environments
    pointer: StorePointer
    machine: StateMachine
    snapshots: SnapshotFiles
    wal: Wal
    recovered: Recovered

    @classmethod
    def begin(cls, disk: FakeDisk, environments: Environments, *, create: bool = False, salts: int = 7) -> Life:
        pointer, machine = opened(disk, environments)
        snapshots = files(disk, pointer, applied=machine.applied_index)
        place = LogPlace(disk, HOME, STAMP, 8192, 4096, partial(random.Random(salts).getrandbits, 64))
        installed = LogPosition(machine.installed[1], machine.installed[0]) if machine.installed else None
        wal, recovered, salvaged = open_log(
            place,
            applied_index=machine.applied_index,
            create=create,
            may_salvage=False,
            installed=installed,
            installed_time=machine.applied_time,
        )
        assert salvaged is None
        restore(
            recovered,
            initial=Configuration(
                (
                    NodeId(1),
                    NodeId(2),
                )
            ),
            machine=machine,
            life=1,
        )
        return cls(disk, environments, pointer, machine, snapshots, wal, recovered)

    def install(self, sent: Sent, told: Told | None = None, *, keeps_log: bool = False) -> None:
        """As the node does it: receive, prepare, and in one write of the log switch, begin anew, append."""
        told = told or Told()
        first = self.snapshots.begin(sent.header)
        for number in range(first, len(sent.blocks), 2):
            self.snapshots.append(number, sent.blocks[number : number + 2])
            told.blocks = min(number + 2, len(sent.blocks))
        self.machine = StateMachine(self.snapshots.prepare(), LimitsSection())
        self.snapshots.switch()
        told.installed = True
        if not keeps_log:
            self.wal.reset(sent.position, sent.time)
        index = sent.position.index + 1
        term = TERM + 1
        cut = index if self.wal.last_index >= index else 0
        self.wal.write([persist(9, entry(index, term), cut=cut, state=(term, 1), commit=sent.position.index)])
        told.appended = True


class Told:
    """What the member has said to others before it was ended."""

    def __init__(self) -> None:
        self.blocks = 0
        self.installed = False
        self.appended = False


def at_home() -> tuple[FakeDisk, Environments]:
    """The member before the snapshot, everything of it durable: several segments, the last entries not committed."""
    disk = FakeDisk(random.Random(1))
    for directory in (STORE, "/snap", HOME):
        disk.mkdir(directory)
    disk.fsync_dir("/")
    environments = Environments(disk)
    backend = StorePointer(disk, STORE, environments).open()
    assert isinstance(backend, MemoryBackend)
    machine_at(OLD, backend=backend)
    wal, _ = open_wal(disk, create=True)
    for index in range(1, LAST + 1):
        state = (3, 1) if index == 1 else None
        wal.write(
            [
                persist(
                    index, entry(index, 2 if index > OLD else 1, bytes(1500)), state=state, commit=min(OLD, index - 1)
                )
            ]
        )
    wal.write([persist(LAST + 1, state=(TERM, VOTE), commit=OLD)])
    wal.close()
    assert len(segments(disk)) > 3
    disk = disk.kill()
    disk.sync_everything()
    return disk, environments.fork(disk, power_lost=True)


def judge(life: Life, sent: Sent, told: Told, where: str) -> str:
    """ "old" or "new", and nothing else."""
    machine, found = life.machine, life.recovered
    assert life.environments.numbers() == [life.pointer.number], where
    if machine.applied_index == OLD:
        assert not told.installed, where
        assert machine.hash_at() == machine_at(OLD).hash_at(), where
        assert (found.last_index, found.base.index) == (LAST, 0), where
        assert (found.hard_state.term, found.hard_state.vote) == (TERM, VOTE), where
        assert [one.term for one in found.tail] == [2] * (LAST - OLD), where
        return "old"
    assert (machine.applied_index, machine.hash_at()) == (sent.position.index, sent.hash), where
    assert found.base in {sent.position, LogPosition(Term(0), Index(0))}, where
    known = (found.hard_state.term, found.hard_state.vote)
    assert known in {(TERM, VOTE), (TERM + 1, 1)}, where
    assert known == (TERM + 1, 1) or not told.appended, where
    if found.base == sent.position:
        appended = found.last_index - sent.position.index
        assert appended in {0, 1} if not told.appended else appended == 1, where
        assert [one.term for one in found.tail] == [TERM + 1] * appended, where
        assert found.last_time >= sent.time, where
    assert len(segments(life.disk)) <= 2 or found.base.index == 0, where  # a second one behind a torn write
    return "new"


def goes_on(life: Life, sent: Sent, where: str) -> None:
    """The member finishes what it was doing, and a further start finds that."""
    if life.machine.applied_index == OLD:
        life.install(sent)
    else:
        index = life.wal.last_index + 1
        life.wal.write([persist(20, entry(index, TERM + 2), state=(TERM + 2, 1), commit=sent.position.index)])
    last = life.wal.last_index
    life.snapshots.close()
    life.wal.close()
    disk = life.disk.kill()
    again = Life.begin(disk, life.environments.fork(disk, power_lost=True), salts=99)
    assert (again.machine.hash_at(), again.recovered.last_index) == (sent.hash, last), where
    assert again.recovered.report.began_anew is None, where
    assert not disk.exists("/snap/receiving"), where


POSITIONS = pytest.mark.parametrize("index", [AHEAD, WITHIN], ids=["ahead of the log", "within the log"])


@POSITIONS
def test_s58_snapshot_install_crash_points(index: int) -> None:
    """Before every change of every file, every disk that a power loss or a kill may leave there."""
    sent, (image, environments) = snapshot_at(index, values=90_000 // index), at_home()
    assert len(sent.blocks) > 3
    lives: list[tuple[Environments, Told]] = []
    counts = {"old": 0, "new": 0}
    finished = resumed = 0

    def work(disk: FakeDisk) -> None:
        own, told = environments.fork(disk, power_lost=False), Told()
        lives.append((own, told))
        Life.begin(disk, own).install(sent, told)

    for disk, change in stop_everywhere(image.kill, work):
        own, told = lives[-1]
        for after, how in crash_states(disk, seed=change, runs_max=40, sampled=6):
            where = f"before change {change}, {how}"
            life = Life.begin(after, own.fork(after, power_lost=how != "killed"), salts=change)
            verdict = judge(life, sent, told, where)
            counts[verdict] += 1
            finished += life.recovered.report.began_anew is not None
            if verdict == "old":
                here = life.snapshots.begin(sent.header)
                assert here >= told.blocks, where
                resumed += here > 0
            goes_on(life, sent, where)
    print(f"S58: {counts} at {change} places, {finished} installs finished by a start, {resumed} transfers went on")
    assert change > 20
    assert min(counts.values()) > 20
    assert finished > 3
    assert resumed > 3


def test_s58_where_the_log_is_kept() -> None:
    """The log holds the snapshot's last entry: only the store is switched."""
    image, environments = at_home()
    sent = snapshot_at(OLD + 2, term=2)
    lives: list[tuple[Environments, Told]] = []
    counts = {"old": 0, "new": 0}

    def work(disk: FakeDisk) -> None:
        own, told = environments.fork(disk, power_lost=False), Told()
        lives.append((own, told))
        Life.begin(disk, own).install(sent, told, keeps_log=True)

    for disk, change in stop_everywhere(image.kill, work):
        own, told = lives[-1]
        for after, how in crash_states(disk, seed=change, runs_max=40, sampled=6):
            where = f"before change {change}, {how}"
            life = Life.begin(after, own.fork(after, power_lost=how != "killed"), salts=change)
            counts[judge(life, sent, told, where)] += 1
            assert life.recovered.base.index == 0, where
            assert life.recovered.report.began_anew is None, where
    print(f"S58, kept log: {counts} at {change} places")
    assert min(counts.values()) > 10


@POSITIONS
def test_s58_a_crash_while_a_start_finishes_the_install(index: int) -> None:
    """The store is switched, the log is the old one: every step of the start, and of one after it."""
    sent, (image, environments) = snapshot_at(index), at_home()
    life = Life.begin(image, environments)
    receive(life.snapshots, sent)
    life.snapshots.prepare()
    life.snapshots.switch()
    image = image.kill()
    told, states = Told(), 0
    told.installed = True

    def work(disk: FakeDisk) -> None:
        Life.begin(disk, environments.fork(disk, power_lost=False))

    for disk, change in stop_everywhere(image.kill, work):
        for after, how in crash_states(disk, seed=change, runs_max=60, sampled=10):
            states += 1
            where = f"before change {change}, {how}"
            life = Life.begin(after, environments.fork(after, power_lost=True), salts=change)
            assert judge(life, sent, told, where) == "new", where
            assert life.recovered.base == sent.position, where
            goes_on(life, sent, where)
    print(f"S58, finishing: {states} states at {change} places")
    assert change > 8


def test_s58_without_its_void_segments_but_one() -> None:
    """After an install any subset of the old segments is back, with the log that has gone on meanwhile (F12)."""
    sent, (image, environments) = snapshot_at(AHEAD), at_home()
    old = {path: image.content(path) for path in segments(image)}
    Life.begin(image, environments).install(sent)
    told = Told()
    told.installed = told.appended = True
    for number in range(1 << len(old)):
        disk = image.kill()
        for at, path in enumerate(old):
            if number >> at & 1:
                file = disk.open(path, create=True)
                file.pwrite(0, old[path])
                file.close()
        life = Life.begin(disk, environments.fork(disk, power_lost=True))
        assert judge(life, sent, told, f"{number:b}") == "new"
        assert life.recovered.report.began_anew is None


PERSONALITIES = [one for one in FsyncFailure if one is not FsyncFailure.LATE]


@pytest.mark.parametrize("personality", PERSONALITIES, ids=lambda one: one.value)
def test_s69_every_sync_of_an_install_fails_once(personality: FsyncFailure) -> None:
    """The node ends, and a start finds the old state or the new one, with the power or without it."""
    sent, (image, environments) = snapshot_at(AHEAD, values=4_000), at_home()
    image.fsync_failure = personality
    counts = {"old": 0, "new": 0}
    probe = image.kill()
    probe.fsync_failure = personality
    Life.begin(probe, environments.fork(probe, power_lost=False)).install(sent)
    for kind in ("fsync", "fdatasync", "fsync_dir"):
        for number in range(1, probe.count(kind) + 1):
            disk = image.kill()
            disk.fsync_failure = personality
            own, told = environments.fork(disk, power_lost=False), Told()
            disk.fail_at(number, OSError(errno.EIO, os.strerror(errno.EIO)), kind=kind)
            with pytest.raises(StorageFailed):
                Life.begin(disk, own).install(sent, told)
            for power_lost in (False, True):
                where = f"{kind} {number} failed, {power_lost=}"
                after = disk.crash(RandomChoices(random.Random(number))) if power_lost else disk.kill()
                life = Life.begin(after, own.fork(after, power_lost=power_lost))
                counts[judge(life, sent, told, where)] += 1
                goes_on(life, sent, where)
    print(f"S69 {personality.value}: {counts}")
    assert min(counts.values()) > 3


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_s70_no_room_at_any_step_of_an_install(code: int) -> None:
    """Before the switch the snapshot is refused or the node ends; nothing of the old state is lost, and it goes on."""
    sent, (image, environments) = snapshot_at(AHEAD, values=4_000), at_home()
    probe = image.kill()
    Life.begin(probe, environments.fork(probe, power_lost=False)).install(sent)
    refused = ended = 0
    for kind in ("create", "pwrite", "preallocate", "fdatasync", "rename"):
        for number in range(1, probe.count(kind) + 1):
            disk = image.kill()
            own, told = environments.fork(disk, power_lost=False), Told()
            life = Life.begin(disk, own)
            if number <= disk.count(kind):
                continue
            where = f"{kind} {number}"
            disk.fail_at(number, OSError(code, os.strerror(code)), kind=kind)
            try:
                life.install(sent, told)
            except SnapshotRefused:
                assert not told.installed, where
                assert not disk.exists("/snap/receiving"), where
                refused += 1
                goes_on(life, sent, where)
                continue
            except StorageFailed:
                ended += 1
            after = disk.kill()
            life = Life.begin(after, own.fork(after, power_lost=False))
            judge(life, sent, told, where)
            goes_on(life, sent, where)
    print(f"S70: {refused} refused, {ended} ended")
    assert refused > 5
    assert ended > 3


# S63 with snapshots: what a start makes of a store that is a snapshot, and of whatever log is beside it

SENT = 9


def log_until(last: int, *, term: int = 1, base: int = 0, commit: int = 0) -> FakeDisk:
    """A log of entries `base` + 1 to `last`, begun anew at `base` where that is not 0."""
    disk = FakeDisk(random.Random(2))
    disk.mkdir(HOME)
    disk.fsync_dir("/")
    wal, _ = open_wal(disk, create=True)
    if base:
        wal.reset(LogPosition(Term(term), Index(base)), base << 16)
    for index in range(base + 1, last + 1):
        wal.write([persist(index, entry(index, term), state=(4, 2) if index == base + 1 else None, commit=commit)])
    wal.write([persist(99, state=(4, 2), commit=max(commit, base))])
    wal.close()
    return disk.kill()


def started(disk: FakeDisk, applied: int = SENT) -> Recovered:
    """A start on a store that is a snapshot of entry `SENT`, with `applied` - `SENT` entries after it."""
    machine = machine_at(SENT)
    for index in range(SENT + 1, applied + 1):
        machine.skip(Index(index), index << 16)
    place = LogPlace(disk, HOME, STAMP, 8192, 4096, partial(random.Random(3).getrandbits, 64))
    position = LogPosition(Term(3), Index(SENT))
    wal, found, _ = open_log(
        place, applied_index=Index(applied), create=False, may_salvage=False, installed=position, installed_time=5
    )
    restore(found, initial=Configuration((NodeId(1),)), machine=machine, life=1)
    wal.close()
    return found


@pytest.mark.parametrize(
    ("log", "anew"),
    [
        (partial(log_until, 0), True),
        (partial(log_until, 5, commit=4), True),
        (partial(log_until, 12, commit=4), True),
        (partial(log_until, SENT, term=3, commit=SENT), False),
        (partial(log_until, 12, term=3, commit=SENT), False),
        (partial(log_until, SENT, term=3, base=SENT), False),
        (partial(log_until, 12, term=3, base=SENT), False),
        (partial(log_until, 12, term=3, base=4), False),
        (partial(log_until, 12, base=4), True),
        (partial(log_until, 6, base=4), True),
    ],
    ids=[
        "empty log",
        "log ends below",
        "log holds another entry",
        "log ends with the snapshot",
        "log goes on behind it",
        "log began anew there",
        "log began anew there and went on",
        "log began anew below and holds the entry",
        "log began anew below and holds another entry",
        "log began anew below and ends below",
    ],
)
def test_s63_a_snapshot_newer_than_the_log(log: partial[FakeDisk], anew: bool) -> None:
    disk = log()
    found = started(disk)
    assert (found.report.began_anew is not None) == anew
    assert (found.hard_state.term, found.hard_state.vote) == (4, 2)
    if anew:
        assert (found.base, found.last_index) == (LogPosition(Term(3), Index(SENT)), SENT)
    again = started(disk.kill())
    assert again.report.began_anew is None
    assert (again.base, again.last_index) == (found.base, found.last_index)


@pytest.mark.parametrize(
    ("log", "applied", "match"),
    [
        (partial(log_until, 14, term=3, base=SENT + 1), SENT, "begins behind"),
        (partial(log_until, 12, commit=SENT), SENT, "has committed another entry there"),
        (partial(log_until, 14, base=SENT), SENT, "has committed another entry there"),
        (partial(log_until, 5, commit=4), SENT + 2, "the store has applied"),
        (partial(log_until, SENT, term=3, base=SENT), SENT + 1, "the store has applied"),
    ],
    ids=["log begins behind it", "another was committed", "another's snapshot", "store went on", "log lost its end"],
)
def test_s63_a_log_that_is_not_this_stores_is_refused(log: partial[FakeDisk], applied: int, match: str) -> None:
    with pytest.raises(LogCorrupted, match=match):
        started(log(), applied)


def test_a_member_that_was_ended_never_acknowledged_what_a_start_does_not_find() -> None:
    """The process dies inside `reset`; `SimulatedCrash` is no error that anybody handles."""
    sent, (image, environments) = snapshot_at(AHEAD), at_home()
    life = Life.begin(image, environments)
    receive(life.snapshots, sent)
    life.snapshots.prepare()
    life.snapshots.switch()
    image.crash_at(image.changes + 3)
    with pytest.raises(SimulatedCrash):
        life.wal.reset(sent.position, sent.time)
    after = image.kill()
    assert Life.begin(after, environments.fork(after, power_lost=True)).recovered.base == sent.position
