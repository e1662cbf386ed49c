"""The log loses its beginning, by a trim or for a snapshot, and the power goes anywhere: both readers see one log.

Scenarios S64 and S67 where a log begins anew, and the trim with a crash at each of its steps. Counts are printed
(``pytest -s``).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from kvnode.errors import LogCorrupted
from kvnode.ids import Index, Term
from kvnode.raft.messages import Entry, LogPosition
from kvnode.sim.disk import FakeDisk, FakeFile, SimulatedCrash
from kvnode.storage.segment import HEADER_BYTES, SECTOR_BYTES
from kvnode.storage.segment_reader import read_header
from kvnode.storage.wal import Recovered
from kvnode.storage.wal_dump import dump
from kvnode.storage.wal_verify import verify
from tests.storage.crash_states import crash_states, stop_everywhere
from tests.storage.salvage_world import scrub, start
from tests.storage.second_opinion import SecondOpinion
from tests.storage.wal_world import HOME, ROOM, entry, new_disk, open_wal, persist, segments

LAST = 9
TERM, VOTE = 2, 3
POSITION = LogPosition(Term(4), Index(20))
TIME = 99_000


def old_log() -> FakeDisk:
    """One entry a segment nearly, all durable, the last two not committed; the process gone."""
    disk = new_disk()
    wal, _ = open_wal(disk, create=True, **ROOM)
    for index in range(1, LAST + 1):
        state = (TERM, VOTE) if index == 1 else None
        one = entry(index, 1, bytes([64 + index]) * 1700)
        wal.write([persist(index, one, state=state, commit=max(0, min(index - 1, LAST - 2)))])
    wal.write([persist(LAST + 1, commit=LAST - 2)])
    wal.close()
    disk = disk.kill()
    disk.sync_everything()
    assert len(segments(disk)) > 4
    return disk


@pytest.mark.parametrize("bytes_kept", [0, 20_000])
def test_a_trim_ended_at_each_step(bytes_kept: int, tmp_path: Path) -> None:
    """What the store has not applied, and what is to be kept, is there; the next trim finishes it."""
    image, applied = old_log(), 5
    opinion, states, came_back = SecondOpinion(tmp_path), 0, 0
    reached: set[int] = set()

    def work(disk: FakeDisk) -> None:
        wal, _ = open_wal(disk, applied=applied, salts=5, **ROOM)
        wal.trim(Index(applied), bytes_kept)
        wal.write([persist(20, entry(LAST + 1, 2, b"more"))])
        wal.trim(Index(applied), bytes_kept)

    for disk, change in stop_everywhere(image.kill, work):
        for after, how in crash_states(disk, seed=change):
            states += 1
            where = f"before change {change}, {how}"
            found = opinion.judge(after, where, applied=applied, **ROOM)
            assert isinstance(found, Recovered), where
            assert found.last_index in {LAST, LAST + 1}, where
            assert [one.index for one in found.tail] == list(range(applied + 1, found.last_index + 1)), where
            assert (found.hard_state.term, found.hard_state.vote) == (TERM, VOTE), where
            assert found.base.index <= applied, where
            came_back += len(found.report.stale)
            wal, _ = open_wal(after, applied=applied, salts=change, **ROOM)
            reached.add(wal.trim(Index(applied), bytes_kept).index)
            assert wal.bytes_used - 8192 >= bytes_kept, where
            wal.close()
    print(f"trim: {states} states at {change} places, {came_back} segments came back beyond a gap, left: {reached}")
    assert change > 10
    assert len(reached) == 1


def test_s64_a_reset_ended_at_each_step(tmp_path: Path) -> None:
    """The old log or the new one; term and vote never older; then it goes on, and a start finds that."""
    image = old_log()
    old = open_wal(image.kill(), **ROOM)[1].tail
    opinion, counts = SecondOpinion(tmp_path), {"old": 0, "new": 0}
    done = False

    def work(disk: FakeDisk) -> None:
        nonlocal done
        done = False
        wal, _ = open_wal(disk, salts=5, **ROOM)
        wal.reset(POSITION, TIME)
        done = True
        wal.write([persist(20, entry(21, 4, b"x" * 500), state=(4, 1), commit=20)])

    for disk, change in stop_everywhere(image.kill, work):
        for after, how in crash_states(disk, seed=change):
            where = f"before change {change}, {how}"
            is_new = any(read_header(after.open(path)).begins_anew for path in segments(after))
            found = opinion.judge(after, where, applied=20 if is_new else 0, **ROOM)
            assert isinstance(found, Recovered), where
            verdict = "old" if found.base.index == 0 else "new"
            counts[verdict] += 1
            if verdict == "old":
                assert not done, where
                assert found.tail == old, where
                assert (found.hard_state.term, found.hard_state.vote) == (TERM, VOTE), where
                wal, _ = open_wal(after, salts=change, **ROOM)
                wal.reset(POSITION, TIME)
            else:
                assert found.base == POSITION, where
                assert (found.hard_state.term, found.hard_state.vote) in {(4, 0), (4, 1)}, where
                assert found.last_time >= TIME, where
                wal, _ = open_wal(after, applied=20, salts=change, **ROOM)
            more = entry(wal.last_index + 1, 5)
            wal.write([persist(21, more, state=(5, 2), commit=20)])
            again = opinion.judge(after.kill(), where, applied=20, **ROOM)
            assert isinstance(again, Recovered), where
            assert (again.base, again.tail[-1], again.hard_state.term) == (POSITION, more, 5), where
    print(f"S64, reset: {counts} at {change} places: {opinion.counts}")
    assert min(counts.values()) > 20
    assert not opinion.refused


def test_s67_reset_append_crash_reset_append_crash_again(tmp_path: Path) -> None:
    """Torn writes behind a reset, and a reset over a torn write: nothing of an earlier life resurfaces."""
    opinion = SecondOpinion(tmp_path)
    worlds: list[tuple[FakeDisk, tuple[Entry, ...], int]] = [(old_log(), (), 0)]
    visited = torn = 0
    for life in (1, 2, 3):
        following: list[tuple[FakeDisk, tuple[Entry, ...], int]] = []
        base = 20 * life
        for image, _, applied in worlds[:: -(-len(worlds) // 5)]:
            disk = image.kill()
            wal, _ = open_wal(disk, applied=applied, salts=100 * life + visited, **ROOM)
            wal.reset(LogPosition(Term(4 + life), Index(base)), TIME + life)
            batch = [entry(base + at, 4 + life, bytes([64 + life]) * 200) for at in (1, 2, 3)]
            disk.crash_at(disk.changes + 2)  # between the write and its fdatasync
            with pytest.raises(SimulatedCrash):
                wal.write([persist(30, *batch, commit=base)])
            for after, how in crash_states(disk, seed=life, runs_max=70, sampled=6):
                visited += 1
                found = opinion.judge(after, f"life {life}, {how}", applied=base, **ROOM)
                assert isinstance(found, Recovered), how
                assert found.base == LogPosition(Term(4 + life), Index(base)), how
                assert found.tail == tuple(batch[: len(found.tail)]), how
                torn += found.report.torn is not None
                following.append((after, found.tail, base))
        worlds = following
    for number, (image, kept, base) in enumerate(worlds[:: -(-len(worlds) // 30)]):
        wal, _ = open_wal(image, applied=base, salts=7000 + number, **ROOM)
        more = entry(wal.last_index + 1, 9)
        wal.write([persist(40, more, state=(9, 0))])
        assert open_wal(image.kill(), applied=base, **ROOM)[1].tail == (*kept, more)
    print(f"S67, reset: {visited} states over 3 lives, {torn} torn: {opinion.counts}")
    assert torn > 50


# damage around the place where a log begins anew


def begun_anew(stale: int = 0) -> tuple[FakeDisk, tuple[Entry, ...]]:
    """A log of several segments behind a snapshot, with as many of its void segments still there."""
    disk = old_log()
    void = {path: disk.content(path) for path in segments(disk)}
    wal, _ = open_wal(disk, **ROOM)
    wal.reset(POSITION, TIME)
    for index in range(21, 29):
        wal.write(
            [persist(index, entry(index, 4, bytes(900)), state=(4, 1) if index == 21 else None, commit=index - 1)]
        )
    wal.close()
    disk = disk.kill()
    for path in list(void)[len(void) - stale :]:
        file = disk.open(path, create=True)
        file.pwrite(0, void[path])
        file.close()
    disk.sync_everything()
    return disk, tuple(entry(index, 4, bytes(900)) for index in range(21, 29))


@pytest.mark.parametrize("stale", [0, 2])
def test_damage_behind_a_snapshot_ends_in_the_same_log_or_in_quarantine(stale: int) -> None:
    """A flip in headers and records, zeroed sectors, missing files; void segments beside it or not."""
    image, entries = begun_anew(stale)
    counts = {"same": 0, "quarantine": 0}
    for path in segments(image):
        end = len(image.content(path).rstrip(b"\0"))
        offsets = [0, 50, 100, 120, 160, HEADER_BYTES - 2, *range(HEADER_BYTES, end, 331)]
        cases = [("flip", at) for at in offsets] + [("zero", at) for at in range(0, end, 3 * SECTOR_BYTES)]
        for kind, at in [*cases, ("missing", 0)]:
            where = f"{kind} {path} at {at}"
            disk = image.kill()
            if kind == "flip":
                disk.flip_bit(path, at, 3)
            elif kind == "zero":
                disk.damage(path, at, bytes(SECTOR_BYTES))
            else:
                disk.unlink(path)
                disk.fsync_dir(HOME)
            wal, found, _ = start(disk, applied=20)
            assert (found.hard_state.term, found.hard_state.vote) == (4, 1), where
            if found.quarantine is None:
                assert (found.base, found.tail) == (POSITION, entries), where
                counts["same"] += 1
            else:
                counts["quarantine"] += 1
                read = wal.read(wal.first_index, Index(1 << 40), 1 << 30)
                assert [one.index for one in read] == list(range(wal.first_index, wal.last_index + 1)), where
                assert found.committed <= 27, where
                if wal.first_index > 20:
                    assert tuple(read) == entries[: len(read)], where
            wal.close()
            again = start(disk.kill(), applied=20)
            assert again[2] is None, where
            assert again[1].is_quarantined == found.is_quarantined, where
    print(f"damage, {stale} void segments: {counts}")
    assert min(counts.values()) > 3


def test_a_quarantined_log_begins_anew_and_stays_in_quarantine() -> None:
    disk = old_log()
    disk.flip_bit(segments(disk)[1], HEADER_BYTES + 20)
    wal, found, salvaged = start(disk)
    assert salvaged is not None
    assert found.is_quarantined
    wal.reset(POSITION, TIME)
    wal.write([persist(30, entry(21, 4), state=(4, 1), commit=20)])
    wal.close()
    disk = disk.kill()
    wal, found, salvaged = start(disk, applied=20)
    assert salvaged is None
    assert (found.base, found.last_index, found.is_quarantined) == (POSITION, 21, True)
    wal.lift_quarantine()
    wal.close()
    assert not start(disk.kill(), applied=20)[1].is_quarantined


def test_an_install_cut_short_beside_a_damaged_log_is_finished_in_quarantine() -> None:
    """The old log cannot be read to its end: it may have acknowledged more, so the node does not vote."""
    disk = old_log()
    disk.flip_bit(segments(disk)[-1], HEADER_BYTES + 20)
    with pytest.raises(LogCorrupted):
        open_wal(disk.kill(), applied=20, installed=POSITION, installed_time=TIME, **ROOM)
    wal, found, salvaged = start(disk, applied=20, installed=POSITION)
    assert salvaged is not None
    assert (found.base, found.last_index, found.is_quarantined) == (POSITION, 20, True)
    assert (found.hard_state.term, found.hard_state.vote) == (4, 0)
    wal.close()
    wal, found, salvaged = start(disk.kill(), applied=20, installed=POSITION)
    assert salvaged is None
    assert (found.base, found.is_quarantined) == (POSITION, True)


# the other readers


def test_scrub_dump_and_verify_see_the_log_behind_the_snapshot(tmp_path: Path) -> None:
    image, entries = begun_anew(stale=2)
    for path in segments(image):
        (tmp_path / path.rsplit("/", 1)[1]).write_bytes(image.content(path))
    lines = list(dump(str(tmp_path)))
    assert [line["index"] for line in lines] == [one.index for one in entries]
    everything = list(dump(str(tmp_path), everything=True))
    assert everything[0] == {
        "record": "begins_anew",
        "index": 20,
        "term": 4,
        "segment": everything[0]["segment"],
        "void": [path.rsplit("/", 1)[1] for path in segments(image)[:2]],
    }
    log = verify(str(tmp_path))
    assert not log.problems
    assert (log.first_index, log.last_index, log.low_water, log.term, log.vote) == (21, 28, 20, 4, 1)
    wal, _ = open_wal(image, applied=20, **ROOM)
    scrub(wal)
    assert len(segments(image)) == log.segments


def test_what_is_read_while_the_log_begins_anew_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader has looked up where the entries stand, and their files go."""
    disk = old_log()
    wal, _ = open_wal(disk, **ROOM)
    wal.reset(LogPosition(Term(4), Index(8)), TIME)
    assert wal.read(Index(1), Index(9), 1 << 20) == []
    disk = old_log()
    wal, _ = open_wal(disk, **ROOM)
    open_file = disk.open

    def reset_first(path: str, *, create: bool = False) -> FakeFile:
        monkeypatch.undo()
        wal.reset(LogPosition(Term(4), Index(8)), TIME)
        return open_file(path, create=create)

    monkeypatch.setattr(disk, "open", reset_first)
    assert wal.read(Index(9), Index(9), 1 << 20) == []
    assert wal.first_index == 9
