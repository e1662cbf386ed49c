"""A small log, what it must hold, and every way to lose power over it.

`Expected` is the plain-list model of a log. While a write is under way it also knows each state the log may be found
in: the one before, and the one after each record of the write, in the order in which the records are laid out (hard
state first). A recovery that shows anything else has lost or invented something.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice

from kvnode.errors import Fatal
from kvnode.ids import Index, NodeId, Term, WriteNumber
from kvnode.raft.messages import Entry, EntryKind, HardState, LogPosition
from kvnode.raft.output import Persist
from kvnode.sim.choices import Choices, RandomChoices, every_choice
from kvnode.sim.disk import FakeDisk
from kvnode.storage.disk import Disk
from kvnode.storage.log_place import LogPlace
from kvnode.storage.wal import Recovered, Stamp, Wal
from tests.storage.crash_states import stop_everywhere

STAMP = Stamp(cluster_id=0xC1, member=2, incarnation=0x1234)
HOME = "/wal"
ROOM = {"segment_bytes": 8192, "batch_bytes_max": 2048}  # little of it: a few entries fill a segment

LogView = tuple[tuple[Entry, ...], int, int]  # entries, term, vote


def entry(index: int, term: int = 1, text: bytes = b"") -> Entry:
    return Entry(Term(term), Index(index), index * 1_000 + term, EntryKind.COMMAND, text or b"entry %d" % index, 0, 0)


def persist(
    number: int,
    *entries: Entry,
    cut: int = 0,
    state: tuple[int, int] | None = None,
    commit: int = 0,
) -> Persist:
    hard_state = None if state is None else HardState(Term(state[0]), NodeId(state[1]), Index(commit))
    return Persist(WriteNumber(number), Index(cut), entries, hard_state, Index(commit))


def new_disk(seed: int = 1) -> FakeDisk:
    disk = FakeDisk(random.Random(seed))
    disk.mkdir(HOME)
    disk.fsync_dir("/")
    return disk


def open_wal(
    disk: Disk,
    *,
    create: bool = False,
    applied: int = 0,
    segment_bytes: int = 8192,
    batch_bytes_max: int = 4096,
    home: str = HOME,
    salts: int = 7,
    stamp: Stamp = STAMP,
    installed: LogPosition | None = None,
    installed_time: int = 0,
) -> tuple[Wal, Recovered]:
    place = LogPlace(disk, home, stamp, segment_bytes, batch_bytes_max, partial(random.Random(salts).getrandbits, 64))
    return Wal.open(
        place,
        applied_index=Index(applied),
        create=create,
        installed=installed,
        installed_time=installed_time,
    )


def view(recovered: Recovered) -> LogView:
    return recovered.tail, recovered.hard_state.term, recovered.hard_state.vote


class Expected:
    """What the log must hold."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.term = 0
        self.vote = 0
        self.made = False  # creation has returned
        self.allowed: list[LogView] = [self.view]

    @property
    def view(self) -> LogView:
        return tuple(self.entries), self.term, self.vote

    def begin(self, batch: Sequence[Persist]) -> None:
        """A write of `batch` is under way."""
        for one in batch:
            if one.hard_state is not None:
                self.term, self.vote = one.hard_state.term, one.hard_state.vote
        self.allowed.append(self.view)
        for one in batch:
            if one.truncate_from:
                del self.entries[one.truncate_from - 1 :]
                self.allowed.append(self.view)
            for added in one.entries:
                self.entries.append(added)
                self.allowed.append(self.view)

    def finish(self) -> None:
        """It returned: durable."""
        self.allowed = [self.view]

    def settle(self, found: LogView) -> None:
        """A restart found one of the allowed states; from now on it is the one."""
        assert found in self.allowed, (found, self.allowed)
        entries, self.term, self.vote = found
        self.entries = list(entries)
        self.allowed = [found]

    def copy(self) -> Expected:
        other = Expected()
        other.entries, other.term, other.vote, other.made = list(self.entries), self.term, self.vote, self.made
        other.allowed = list(self.allowed)
        return other


Step = Sequence[Persist] | str  # a batch, or "mark", "close", "drop N"


def run(disk: FakeDisk, steps: Sequence[Step], expected: Expected, **options: int) -> None:
    """Create the log and do all steps; a SimulatedCrash passes through."""
    wal, recovered = open_wal(disk, create=True, **options)
    assert view(recovered) == ((), 0, 0)
    expected.made = True
    go_on(wal, steps, expected)


def made(steps: Sequence[Step], **options: int) -> tuple[FakeDisk, LogView]:
    """A new log with `steps` done and the process gone, and what it must hold."""
    disk, expected = new_disk(), Expected()
    run(disk, steps, expected, **options)
    return disk.kill(), expected.view


def segments(disk: FakeDisk) -> list[str]:
    """The segments of a log, oldest first; none that was set aside."""
    return [path for path in disk.files() if path.endswith(".wal") and "damaged-" not in path]


def go_on(wal: Wal, steps: Sequence[Step], expected: Expected) -> None:
    for step in steps:
        if step == "mark":
            wal.mark()
        elif step == "close":
            wal.close()
        elif isinstance(step, str):
            wal.drop_prefix(Index(int(step.removeprefix("drop "))))
        else:
            expected.begin(step)
            wal.write(step)
            expected.finish()


def outcomes(disk: FakeDisk, *, exhaustive_max: int, sampled: int, seed: int) -> Iterator[tuple[FakeDisk, list[int]]]:
    """All disks a power loss at this moment may leave, or a sample if they are too many; and one after kill -9."""
    yield disk.kill(), [-1]
    found = [(disk.crash(choices), choices.taken) for choices in islice(every_choice(), exhaustive_max + 1)]
    if len(found) > exhaustive_max:
        rng = random.Random(seed)
        picks: list[Choices] = [RandomChoices(rng) for _ in range(sampled)]
        found = [(disk.crash(choices), choices.taken) for choices in picks]
    yield from found


def crash_everywhere(
    work: Callable[[FakeDisk, Expected], None],
    *,
    make_disk: Callable[[], FakeDisk] = new_disk,
    exhaustive_max: int = 40,
    sampled: int = 12,
) -> Iterator[tuple[FakeDisk, Expected, str]]:
    """Run `work` once for each changing operation, crash there, and yield every disk that may be found."""
    told: list[Expected] = []

    def begin(disk: FakeDisk) -> None:
        told.append(Expected())
        work(disk, told[-1])

    for disk, change in stop_everywhere(make_disk, begin):
        for after, taken in outcomes(disk, exhaustive_max=exhaustive_max, sampled=sampled, seed=change):
            yield after, told[-1].copy(), f"crash before change {change}, choices {taken}"


def recover(disk: FakeDisk, expected: Expected, **options: int) -> tuple[Wal, Recovered]:
    """Start again; the log must be in one of the allowed states. Before creation returned it is created."""
    wal, recovered = open_wal(disk, create=not expected.made, **options)
    expected.made = True
    expected.settle(view(recovered))
    return wal, recovered


def reopened(disk: FakeDisk, **options: int) -> LogView | Fatal:
    """What a start finds, or the refusal."""
    try:
        wal, recovered = open_wal(disk, **options)
    except Fatal as refusal:
        return refusal
    assert [*recovered.tail] == wal.read(Index(1), Index(1 << 40), 1 << 40)
    return view(recovered)
