"""Small logs, every call, every disk a power loss may leave: recovery finds what was acknowledged, or a step further.

Scenarios S64, S67, S68, S74 and S75, faults F1, F10, F11 and F12 of the reliability list. Both readers see every state.
Counts are printed (``pytest -s``).
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from kvnode.ids import Index
from kvnode.sim.disk import FakeDisk, SimulatedCrash
from kvnode.storage.segment import HEADER_BYTES
from kvnode.storage.wal import Recovered, Wal
from tests.storage.crash_states import crash_states, stop_everywhere
from tests.storage.second_opinion import SecondOpinion
from tests.storage.wal_world import (
    HOME,
    ROOM,
    Expected,
    Step,
    entry,
    go_on,
    new_disk,
    open_wal,
    persist,
    recover,
    segments,
    view,
)

WITHIN: list[Step] = [
    [persist(1, state=(1, 2))],
    [persist(2, entry(1), entry(2)), persist(3, entry(3), commit=1)],
    "mark",
    [persist(4, entry(3, 2), entry(4, 2), cut=3, state=(2, 3), commit=2)],
    [persist(5, entry(5, 2, b"x" * 500)), persist(6, entry(5, 3), cut=5, state=(3, 0), commit=4)],
    "close",
]
ACROSS: list[Step] = [
    [persist(1, entry(1, text=b"a" * 1700), state=(1, 2))],
    [persist(2, entry(2, text=b"b" * 1700), commit=1)],
    [persist(3, entry(3), commit=2)],
    "close",
]
DROPPING: list[Step] = [*ACROSS[:3], [persist(4, entry(4, text=b"d" * 1900), commit=3)], "drop 3", "close"]

OLD = 12  # entries of the log that a conflict cuts


def durable_start(steps: list[Step]) -> tuple[FakeDisk, Expected]:
    """A log with `steps` done, everything of it durable and the process gone."""
    disk, expected = new_disk(), Expected()
    wal, _ = recover(disk, expected, **ROOM)
    go_on(wal, steps, expected)
    return disk.kill(), expected


@pytest.mark.parametrize("steps", [WITHIN, ACROSS], ids=["within", "across"])
def test_s64_crash_every_operation_prefix_and_subset(steps: list[Step], tmp_path: Path) -> None:
    """Creation included. After each crash: an allowed log, the same to both readers, and it goes on."""
    opinion, states = SecondOpinion(tmp_path), 0
    told: list[Expected] = []

    def work(disk: FakeDisk) -> None:
        told.append(Expected())
        wal, _ = recover(disk, told[-1], **ROOM)
        go_on(wal, steps, told[-1])

    for disk, change in stop_everywhere(new_disk, work):
        for after, how in crash_states(disk, seed=change):
            states += 1
            where, expected = f"before change {change}, {how}", told[-1].copy()
            if expected.made:
                opinion.judge(after, where, **ROOM)
            wal, _ = recover(after, expected, salts=8, **ROOM)
            term = expected.term + 1
            go_on(wal, [[persist(9, entry(len(expected.entries) + 1, term), state=(term, 1))]], expected)
            assert view(open_wal(after.kill(), salts=9, **ROOM)[1]) == expected.view, where
    print(f"S64: {states} states at {change} places: {opinion.counts}")
    assert states > 250
    assert opinion.torn > 100
    assert not opinion.refused


def test_s64_crash_while_a_prefix_is_dropped(tmp_path: Path) -> None:
    """Above the mark nothing goes; below it files may come back in any combination (F12)."""
    image, before = durable_start(DROPPING[:4])
    assert len(segments(image)) == 3
    opinion, states, came_back = SecondOpinion(tmp_path), 0, 0

    def work(disk: FakeDisk) -> None:
        wal, _ = open_wal(disk, applied=3, salts=5, **ROOM)
        wal.drop_prefix(Index(3))
        wal.close()

    for disk, change in stop_everywhere(image.kill, work):
        for after, how in crash_states(disk, seed=change):
            states += 1
            where = f"before change {change}, {how}"
            found = opinion.judge(after, where, applied=3, **ROOM)
            assert isinstance(found, Recovered), where
            assert (found.last_index, found.tail) == (4, tuple(before.entries[3:])), where
            assert found.base.index <= 3, where
            came_back += len(found.report.stale)
    print(f"S64 while dropping: {states} states at {change} places, {came_back} segments came back beyond a gap")
    assert came_back


def test_f12_every_subset_of_dropped_segments_may_come_back(tmp_path: Path) -> None:
    """Unlinks undone one by one: those without a gap below the log count again, the others are removed."""
    steps: list[Step] = [
        [persist(i, entry(i, text=bytes([64 + i]) * 1700), commit=i - 1, state=(1, 2) if i == 1 else None)]
        for i in range(1, 10)
    ]
    image, expected = durable_start(steps)
    full = segments(image)
    wal, _ = open_wal(image, applied=8, salts=3, **ROOM)
    wal.drop_prefix(Index(8))
    wal.close()
    dropped = [path for path in full if path not in image.files()]
    assert len(dropped) >= 4
    kept = {path: image.content(path) for path in image.files()}
    original, _ = durable_start(steps)
    opinion = SecondOpinion(tmp_path)
    for number in range(1 << len(dropped)):
        disk = new_disk()
        chosen = [path for at, path in enumerate(dropped) if number >> at & 1]
        for path in [*chosen, *kept]:
            file = disk.open(path, create=True)
            file.pwrite(0, original.content(path) if path in chosen else kept[path])
            file.close()
        found = opinion.judge(disk, f"back: {chosen}", applied=8, **ROOM)
        assert isinstance(found, Recovered), chosen
        assert found.tail == tuple(expected.entries[8:])
        again, recovered = open_wal(disk, applied=8, **ROOM)
        assert not set(recovered.report.stale) & set(disk.files()), "what came back beyond a gap is removed"
        again.close()
    print(f"F12: {1 << len(dropped)} subsets of {len(dropped)} segments: {opinion.counts}")


@pytest.mark.parametrize("end", ["neither", "temporary", "final", "both"])
def test_f12_every_half_of_the_rename_of_a_new_segment(end: str, tmp_path: Path) -> None:
    """The next segment is ready, its name is not durable: the temporary name, the final one, both or neither."""
    image, expected = durable_start(ACROSS[:2])
    ready: list[FakeDisk] = []

    def stop_at_rename(disk: FakeDisk) -> None:
        wal, _ = open_wal(disk, salts=4, **ROOM)
        go_on(wal, [ACROSS[2], [persist(4, entry(4, text=b"d" * 1700))]], Expected())

    for disk, _ in stop_everywhere(image.kill, stop_at_rename):
        if disk.count("rename") == 1 and disk.trace[-1].kind == "rename":
            ready.append(disk)
    (disk,) = ready
    found = disk.kill()
    final = segments(found)[-1]
    content = found.content(final)
    found.unlink(final)
    names = {"neither": [], "temporary": [f"{HOME}/next.tmp"], "final": [final], "both": [f"{HOME}/next.tmp", final]}
    for name in names[end]:
        file = found.open(name, create=True)
        file.pwrite(0, content)
        file.close()
    found = found.kill()
    expected.begin(ACROSS[2])
    expected.finish()
    opinion = SecondOpinion(tmp_path).judge(found, end, **ROOM)
    assert isinstance(opinion, Recovered)
    assert view(opinion) == expected.view
    wal, _ = recover(found, expected, salts=9, **ROOM)
    assert not found.exists(f"{HOME}/next.tmp") or wal.last_index == 3
    go_on(wal, [[persist(5, entry(4, text=b"e" * 1700))], [persist(6, entry(5))]], expected)
    assert view(open_wal(found.kill(), salts=10, **ROOM)[1]) == expected.view


def thinned(worlds: list[tuple[FakeDisk, Expected]], most: int) -> list[tuple[FakeDisk, Expected]]:
    return worlds[:: -(-len(worlds) // most)]


def test_s67_torn_then_append_then_crash_again(tmp_path: Path) -> None:
    """Every torn state of one batch, appended over with records that lie in the same places, torn again, and again.

    A remnant that resurfaced would show entries of an earlier life among those of a later one.
    """
    opinion = SecondOpinion(tmp_path)
    start, expected = durable_start([[persist(1, entry(1), state=(1, 1))]])
    worlds = [(start, expected)]
    visited = 0
    for life in (2, 3, 4):
        following: list[tuple[FakeDisk, Expected]] = []
        for image, known in thinned(worlds, 12):
            disk, now = image.kill(), known.copy()
            wal, _ = recover(disk, now, salts=100 * life + visited, **ROOM)
            last = len(now.entries)
            batch = [
                persist(2, *(entry(last + at, life, bytes([64 + life]) * 200) for at in (1, 2, 3)), state=(life, 0))
            ]
            disk.crash_at(disk.changes + 2)  # between the write and its fdatasync
            now.begin(batch)
            with pytest.raises(SimulatedCrash):
                wal.write(batch)
            for after, how in crash_states(disk, seed=life, runs_max=70, sampled=8):
                visited += 1
                found = opinion.judge(after, f"life {life}, {how}", **ROOM)
                assert isinstance(found, Recovered), how
                settled = now.copy()
                settled.settle(view(found))
                following.append((after, settled))
        worlds = following
    for number, (image, known) in enumerate(thinned(worlds, 60)):
        wal, _ = recover(image, known, salts=7000 + number, **ROOM)
        go_on(wal, [[persist(9, entry(len(known.entries) + 1, 9), state=(9, 0))]], known)
        assert view(open_wal(image.kill(), **ROOM)[1]) == known.view
    print(f"S67: {visited} states over 3 lives: {opinion.counts}")
    assert opinion.torn > 100
    assert not opinion.refused


def cut_log(depth: int) -> tuple[FakeDisk, Expected, int]:
    """A log of a few entries a segment, and the index in the middle of a segment whose cut goes through `depth`."""
    steps: list[Step] = [
        [persist(i, entry(i, text=bytes([64 + i]) * 900), state=(1, 2) if i == 1 else None)] for i in range(1, OLD + 1)
    ]
    image, expected = durable_start(steps)
    firsts = [int(path.rsplit("-", 1)[1].removesuffix(".wal")) for path in segments(image)]
    assert OLD - firsts[-1] >= 1
    return image, expected, firsts[-depth] + 1


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("size", [20, 900], ids=["small", "rolling"])
def test_s68_truncate_suffix_crash(depth: int, size: int, tmp_path: Path) -> None:
    """A conflict cuts through 1, 2 or 3 segments: the old suffix or the new one, never a mix of both."""
    image, before, first = cut_log(depth)
    batch = [
        persist(1, *(entry(first + at, 2, bytes([97 + at]) * size) for at in range(2)), cut=first, state=(2, 0)),
    ]
    opinion, told = SecondOpinion(tmp_path), [before]
    old = new = states = 0

    def work(disk: FakeDisk) -> None:
        told[0] = before.copy()
        wal, _ = recover(disk, told[0], salts=5, **ROOM)
        go_on(wal, [batch], told[0])
        wal.close()

    for disk, change in stop_everywhere(image.kill, work):
        for after, how in crash_states(disk, seed=change, runs_max=140, sampled=8):
            states += 1
            found = opinion.judge(after, f"before change {change}, {how}", **ROOM)
            assert isinstance(found, Recovered), how
            assert view(found) in told[0].allowed, how
            terms = [one.term for one in found.tail[first - 1 :]]
            assert terms in ([1] * (OLD + 1 - first), [2] * len(terms)), (terms, how)
            old += 1 in terms
            new += terms == [2, 2]
    print(f"S68: cut through {depth} segments: {states} states at {change} places, {old} old, {new} new")
    assert old
    assert new


def test_s74_every_acknowledged_entry_outlives_any_power_loss(tmp_path: Path) -> None:
    """The moment a write has returned, and until the next one is under way: every disk that may be found has it."""
    disk, expected = new_disk(), Expected()
    wal, _ = recover(disk, expected, **ROOM)
    opinion = SecondOpinion(tmp_path)
    for number in range(1, 12):
        state = (number, 1) if number % 3 == 1 else None
        go_on(
            wal,
            [[persist(number, entry(number, expected.term if state is None else number, b"v" * 700), state=state)]],
            expected,
        )
        for after, how in crash_states(disk, seed=number):
            found = opinion.judge(after, how, **ROOM)
            assert isinstance(found, Recovered)
            assert view(found) == expected.view, how
    assert len(segments(disk)) > 2
    print(f"S74: {opinion.counts}")


def remains(old: bytes, into: Wal, disk: FakeDisk) -> FakeDisk:
    """The disk with the records of segment `old` behind what `into` has written to its newest segment."""
    image = disk.kill()
    newest = segments(image)[-1]
    room = len(image.content(newest)) - into._writer.offset
    image.damage(newest, into._writer.offset, old[HEADER_BYTES:][:room])
    return image


@pytest.mark.parametrize("written", [0, 1, 2])
def test_s75_segment_recycling_old_records(written: int, tmp_path: Path) -> None:
    """A file recycled with all the old records in it, complete with chain and numbers: none of them counts.

    The old segment was written by the same node with the same beginning, so that numbers and links fit the new one.
    """
    steps: list[Step] = [[persist(i, entry(i), state=(1, 1) if i == 1 else None)] for i in range(1, 5)]
    old, _ = durable_start(steps)
    (name,) = segments(old)
    lost = old.content(name)
    disk, expected = new_disk(), Expected()
    wal, _ = open_wal(disk, create=True, salts=99, **ROOM)
    expected.made = True
    go_on(wal, steps[:written], expected)
    opinion = SecondOpinion(tmp_path)
    for shift in itertools.chain(range(0, 64, 8), (512, 1024)):
        image = remains(lost[:HEADER_BYTES] + bytes(shift) + lost[HEADER_BYTES:], wal, disk)
        found = opinion.judge(image, f"shifted by {shift}", **ROOM)
        assert isinstance(found, Recovered)
        assert view(found) == expected.view, shift
    assert opinion.torn == 10
