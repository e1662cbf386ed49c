"""The log's old end: whole segments go once the store has them, and after a snapshot the log begins anew."""

from __future__ import annotations

import pytest

from kvnode.errors import LogCorrupted
from kvnode.ids import Index, Term
from kvnode.raft.messages import HardState, LogPosition
from kvnode.sim.disk import FakeDisk
from kvnode.storage.segment_reader import read_header
from kvnode.storage.wal import Wal
from tests.storage.wal_world import STAMP, entry, made, new_disk, open_wal, persist, segments

ALL = Index(1 << 40)
TIME = 77_000


def at(index: int, term: int) -> LogPosition:
    return LogPosition(Term(term), Index(index))


def long_log(entries: int = 12, size: int = 1700) -> tuple[Wal, FakeDisk]:
    """About two entries a segment, all but the last committed."""
    disk = new_disk()
    wal, _ = open_wal(disk, create=True)
    for index in range(1, entries + 1):
        state = (1, 2) if index == 1 else None
        wal.write([persist(index, entry(index, text=bytes(size)), state=state, commit=index - 1)])
    return wal, disk


# trim


def test_trim_keeps_what_the_store_has_not_applied() -> None:
    wal, disk = long_log()
    before = segments(disk)
    base = wal.trim(Index(5), 0)
    assert 0 < base.index <= 5
    assert wal.first_index == base.index + 1
    assert [one.index for one in wal.read(wal.first_index, ALL, 1 << 20)] == list(range(base.index + 1, 13))
    assert segments(disk) == before[-len(segments(disk)) :]
    wal.close()
    found = open_wal(disk.kill(), applied=5)[1]
    assert found.base == base
    assert found.last_index == 12


def test_trim_keeps_as_many_bytes_as_it_is_told() -> None:
    wal, disk = long_log()
    whole = wal.bytes_used
    assert wal.trim(Index(11), whole) == at(0, 0)
    assert wal.bytes_used == whole
    wal.trim(Index(11), 20_000)
    sealed = wal.bytes_used - 8192  # the newest may be empty
    assert 20_000 <= sealed < 20_000 + 8192
    assert len(segments(disk)) == wal.bytes_used // 8192


def test_trim_never_takes_the_newest_segment() -> None:
    wal, disk = long_log()
    wal.write([persist(13, commit=12)])
    wal.trim(Index(1 << 30), 0)
    assert len(segments(disk)) == 1
    assert wal.last_index == 12
    wal.close()
    assert open_wal(disk.kill(), applied=12)[1].last_index == 12


def test_trim_takes_nothing_that_the_log_does_not_know_to_be_committed() -> None:
    """In quarantine the store may have applied more than this log can show."""
    disk = new_disk()
    wal, _ = open_wal(disk, create=True)
    for index in range(1, 13):
        state = (1, 2) if index == 1 else None
        wal.write([persist(index, entry(index, text=bytes(1700)), state=state, commit=min(3, index - 1))])
    assert wal.trim(Index(12), 0).index <= 3


def test_nothing_to_trim_writes_nothing() -> None:
    wal, disk = long_log(3, 20)
    changes = disk.changes
    assert wal.trim(Index(2), 0) == at(0, 0)
    assert disk.changes == changes


# reset


@pytest.mark.parametrize(
    "position", [at(40, 1), at(12, 3), at(6, 1), at(40, 9)], ids=["above", "other", "below", "term"]
)
@pytest.mark.parametrize("how", ["kill", "close"])
def test_after_a_snapshot_the_log_begins_anew(position: LogPosition, how: str) -> None:
    disk = new_disk()
    wal, _ = open_wal(disk, create=True)
    for index in range(1, 13):
        wal.write([persist(index, entry(index, text=bytes(1700)), state=(3, 2) if index == 1 else None, commit=2)])
    wal.reset(position, TIME)
    assert len(segments(disk)) == 1
    assert (wal.first_index, wal.last_index) == (position.index + 1, position.index)
    assert wal.read(Index(1), ALL, 1 << 20) == []
    term = max(3, position.term)
    more = [entry(position.index + at, term) for at in (1, 2)]
    wal.write([persist(20, *more, commit=position.index)])
    assert wal.read(wal.first_index, ALL, 1 << 20) == more
    if how == "close":
        wal.close()
    _, found = open_wal(disk.kill(), applied=position.index)
    assert found.base == position
    assert found.tail == tuple(more)
    assert found.last_time >= TIME
    assert found.hard_state == HardState(Term(term), 2 if position.term <= 3 else 0, position.index)


def test_an_empty_log_begins_anew() -> None:
    disk = new_disk()
    wal, _ = open_wal(disk, create=True)
    wal.reset(at(5, 2), TIME)
    wal.write([persist(1, entry(6, 2), state=(2, 1), commit=5)])
    _, found = open_wal(disk.kill(), applied=5)
    assert (found.base, found.tail, found.hard_state.vote) == (at(5, 2), (entry(6, 2),), 1)


def test_a_log_with_a_cut_and_a_dropped_prefix_begins_anew_twice() -> None:
    wal, disk = long_log()
    wal.trim(Index(8), 0)
    wal.write([persist(13, entry(12, 4), cut=12, state=(4, 3), commit=11)])
    wal.reset(at(20, 4), TIME)
    wal.write([persist(14, entry(21, 4, bytes(1700)), entry(22, 4, bytes(1700)))])
    wal.write([persist(15, entry(23, 4, bytes(1700)))])
    wal.reset(at(30, 5), TIME + 5)
    wal.close()
    _, found = open_wal(disk.kill(), applied=30)
    assert (found.base, found.last_index, found.tail) == (at(30, 5), 30, ())
    assert (found.hard_state.term, found.last_time >= TIME + 5) == (5, True)


def test_segments_that_come_back_are_void_whatever_is_missing_between_them() -> None:
    wal, disk = long_log()
    old = {path: disk.content(path) for path in segments(disk)}
    wal.reset(at(20, 1), TIME)
    wal.write([persist(13, entry(21), commit=20)])
    wal.close()
    (new,) = segments(disk)
    for number in range(1 << len(old)):
        image = disk.kill()
        chosen = [path for at, path in enumerate(old) if number >> at & 1]
        for path in chosen:
            file = image.open(path, create=True)
            file.pwrite(0, old[path])
            file.close()
        again, found = open_wal(image, applied=20)
        assert (found.base, found.tail) == (at(20, 1), (entry(21),))
        assert found.report.stale == tuple(chosen)
        assert segments(image) == [new]
        again.close()


# a start after an install that was cut short


@pytest.mark.parametrize("position", [at(20, 1), at(5, 2)], ids=["ahead", "another entry"])
def test_a_start_finishes_an_install(position: LogPosition) -> None:
    """The store is the snapshot, the log is still the old one."""
    disk, _ = made([[persist(1, *(entry(index) for index in range(1, 9)), state=(2, 3), commit=2)]])
    with pytest.raises(LogCorrupted):
        open_wal(disk.kill(), applied=20)
    wal, found = open_wal(disk, applied=position.index, installed=position, installed_time=TIME)
    assert (found.base, found.last_index, found.tail) == (position, position.index, ())
    assert found.report.began_anew == position
    assert (found.hard_state.term, found.hard_state.vote, found.last_time) == (2, 3, TIME)
    wal.write([persist(2, entry(position.index + 1, 2))])
    wal.close()
    _, found = open_wal(disk.kill(), applied=position.index, installed=position, installed_time=TIME)
    assert (found.base, found.last_index, found.report.began_anew) == (position, position.index + 1, None)


def test_a_log_that_holds_the_snapshots_entry_is_kept() -> None:
    disk, expected = made([[persist(1, *(entry(index) for index in range(1, 9)), state=(2, 3), commit=2)]])
    _, found = open_wal(disk, applied=6, installed=at(6, 1), installed_time=TIME)
    assert (found.base, found.last_index, found.tail) == (at(0, 0), 8, expected[0][6:])


def test_a_log_that_has_committed_another_entry_is_refused() -> None:
    disk, _ = made(
        [[persist(1, *(entry(index) for index in range(1, 9)), state=(2, 3), commit=6)], [persist(2, commit=6)]]
    )
    wal, _ = open_wal(disk)
    wal.write([persist(3, commit=6)])
    with pytest.raises(LogCorrupted, match="has committed another entry there") as refusal:
        open_wal(disk.kill(), applied=5, installed=at(5, 2), installed_time=TIME)
    assert not refusal.value.repairable


def test_a_log_that_begins_behind_the_snapshot_is_refused() -> None:
    wal, disk = long_log()
    base = wal.trim(Index(8), 0)
    wal.close()
    with pytest.raises(LogCorrupted, match="begins behind"):
        open_wal(disk.kill(), applied=base.index - 1, installed=at(base.index - 1, 1), installed_time=TIME)


def test_a_first_start_from_a_snapshot_may_be_interrupted() -> None:
    """A restored directory has a store and no log."""
    disk = new_disk()
    for _ in range(2):
        wal, found = open_wal(disk, create=True, applied=9, installed=at(9, 4), installed_time=TIME)
        assert (found.base, found.last_index, found.hard_state) == (at(9, 4), 9, HardState(Term(4), commit=Index(9)))
        wal.close()
        disk = disk.kill()
    assert open_wal(disk, applied=9, installed=at(9, 4), installed_time=TIME)[1].base == at(9, 4)


def test_the_header_says_that_it_begins_anew() -> None:
    wal, disk = long_log()
    wal.reset(at(20, 1), TIME)
    (path,) = segments(disk)
    header = read_header(disk.open(path))
    assert header.begins_anew
    assert (header.stamp, header.base, header.first_index, header.first_term) == (STAMP, at(20, 1), 21, 1)
    assert (header.hard_state, header.last_time, header.previous_end) == (HardState(Term(1), 2, 20), TIME, 0)
