"""The log in ordinary use: writing, reading back, rolling, cutting, dropping, reopening."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest

from kvnode.errors import IdentityRefused, LogCorrupted, StorageFailed
from kvnode.ids import Index, Term
from kvnode.node.ports import LogStore
from kvnode.raft.messages import Entry, HardState, LogPosition, entry_bytes
from kvnode.storage.log_place import LogPlace
from kvnode.storage.realdisk import RealDisk
from kvnode.storage.wal import Wal
from tests.storage.wal_world import HOME, STAMP, Expected, entry, go_on, new_disk, open_wal, persist, run, view

ALL = Index(1 << 40)


def filled(count: int, **options: int) -> tuple[Wal, list[Entry]]:
    wal, _ = open_wal(new_disk(), create=True, **options)
    entries = [entry(i, 1 + i // 50) for i in range(1, count + 1)]
    for at in range(0, count, 7):
        chunk = entries[at : at + 7]
        wal.write([persist(at + 1, *chunk, state=(chunk[-1].term, 1))])
    return wal, entries


def test_is_a_log_store() -> None:
    store: LogStore = open_wal(new_disk(), create=True)[0]
    store.mark()
    assert store.bytes_used == 8192
    store.close()


def test_a_new_log_is_empty() -> None:
    wal, found = open_wal(new_disk(), create=True)
    assert found.hard_state == HardState(Term(0))
    assert (found.base, found.last_index, found.tail, found.term_runs) == (LogPosition(Term(0), Index(0)), 0, (), ())
    assert (wal.first_index, wal.last_index, wal.read(Index(1), ALL, 100)) == (1, 0, [])


def test_one_write_is_one_pwrite_and_one_fdatasync() -> None:
    disk = new_disk()
    wal, _ = open_wal(disk, create=True, segment_bytes=65536)
    for state, times in (((1, 1), 2), (None, 1), ((1, 1), 1)):  # term and vote are kept a second time, when they change
        writes, syncs, first = disk.count("pwrite"), disk.count("fdatasync"), wal.last_index + 1
        wal.write([persist(i, entry(i), state=state) for i in range(first, first + 8)])
        assert (disk.count("pwrite") - writes, disk.count("fdatasync") - syncs) == (times, times)
    assert [operation.kind for operation in disk.trace][-2:] == ["pwrite", "fdatasync"]


def test_a_write_without_news_costs_nothing() -> None:
    disk = new_disk()
    wal, _ = open_wal(disk, create=True)
    wal.write([persist(1, state=(1, 1))])
    changes = disk.changes
    wal.write([persist(2), persist(3, state=(1, 1))])
    assert disk.changes == changes


def test_entries_come_back_as_written() -> None:
    disk = new_disk()
    wal, _ = open_wal(disk, create=True)
    odd = Entry(Term(3), Index(1), (1 << 64) - 1, 2, bytes(range(256)), (1 << 64) - 1, 12345678901)
    wal.write([persist(1, odd, state=(3, 1))])
    assert wal.read(Index(1), Index(1), 1) == [odd]
    _, found = open_wal(disk.kill())
    assert found.tail == (odd,)
    assert found.last_time == odd.time


def test_recovered_tells_runs_base_time_and_tail() -> None:
    disk, expected = new_disk(), Expected()
    wal, _ = open_wal(disk, create=True)
    for index, term in enumerate([1, 1, 2, 2, 2, 5], start=1):
        go_on(wal, [[persist(index, entry(index, term), state=(term, 2), commit=index - 1)]], expected)
    wal.close()
    _, found = open_wal(disk.kill(), applied=4)
    assert found.term_runs == ((1, 1), (3, 2), (6, 5))
    assert [one.index for one in found.tail] == [5, 6]
    assert (found.last_index, found.last_time) == (6, 6005)
    assert found.hard_state == HardState(Term(5), 2, Index(5))


def test_commit_is_recorded_no_higher_than_what_was_durable() -> None:
    disk = new_disk()
    wal, _ = open_wal(disk, create=True)
    wal.write([persist(1, entry(1), entry(2), state=(1, 1), commit=2)])
    assert open_wal(disk.kill())[1].hard_state.commit == 0
    wal.write([persist(2, entry(3), commit=3)])
    assert open_wal(disk.kill())[1].hard_state.commit == 2


def test_commit_counts_nothing_that_the_same_batch_cuts() -> None:
    """A slow disk joins a cut with the commit of what came in its place: the old suffix was never committed."""
    disk = new_disk()
    wal, _ = open_wal(disk, create=True)
    wal.write([persist(1, entry(1), entry(2), entry(3), state=(1, 1))])
    wal.write([persist(2, entry(2, term=2), cut=2, state=(2, 3), commit=1), persist(3, entry(3, term=2), commit=3)])
    _, recovered = open_wal(disk.kill())
    assert recovered.hard_state.commit == 1
    assert [(e.index, e.term) for e in recovered.tail] == [(1, 1), (2, 2), (3, 2)]


def test_last_time_counts_entries_that_were_cut() -> None:
    disk = new_disk()
    wal, _ = open_wal(disk, create=True)
    wal.write([persist(1, entry(1), entry(2), entry(3), state=(1, 1))])
    wal.write([persist(2, entry(2, 2), cut=2, state=(2, 1))])
    assert open_wal(disk.kill())[1].last_time == entry(3).time
    assert open_wal(disk.kill(), applied=2)[1].last_time == entry(3).time


def test_segments_roll_and_reading_crosses_them() -> None:
    wal, entries = filled(400)
    assert wal.bytes_used > 5 * 8192
    assert wal.read(Index(1), ALL, 1 << 30) == entries
    rng = random.Random(1)
    for _ in range(200):
        first = rng.randrange(1, 401)
        last = rng.randrange(first, 401)
        assert wal.read(Index(first), Index(last), 1 << 30) == entries[first - 1 : last]


def test_reading_is_bounded_by_bytes_but_never_empty() -> None:
    wal, entries = filled(100)
    size = entry_bytes(entries[0])
    assert wal.read(Index(1), ALL, 1) == entries[:1]
    assert wal.read(Index(1), ALL, 3 * size) == entries[:3]
    assert wal.read(Index(60), Index(61), 1 << 20) == entries[59:61]
    assert wal.read(Index(101), ALL, 1 << 20) == []
    assert wal.read(Index(0), ALL, 1 << 20) == []


def test_sealed_and_applied_segments_are_not_scanned_at_a_start() -> None:
    disk = new_disk()
    wal, _ = open_wal(disk, create=True)
    entries = [entry(i, 1 + i // 30) for i in range(1, 301)]
    for one in entries:
        wal.write([persist(one.index, one, state=(one.term, 1), commit=max(0, one.index - 1))])
    wal.close()
    image = disk.kill()
    again, found = open_wal(image, applied=290)
    assert found.report.segments > 6
    assert found.report.segments_scanned <= 2
    assert found.tail == tuple(entries[290:])
    _, scanned = open_wal(disk.kill())
    assert (found.term_runs, found.hard_state, found.last_time) == (
        scanned.term_runs,
        scanned.hard_state,
        scanned.last_time,
    )
    assert again.read(Index(1), ALL, 1 << 30) == entries  # by the checkpoints in the segment-ends
    assert again.read(Index(77), Index(78), 1 << 30) == entries[76:78]


def test_truncation_within_and_across_segments() -> None:
    disk, expected = new_disk(), Expected()
    wal, _ = open_wal(disk, create=True)
    for i in range(1, 11):
        go_on(wal, [[persist(i, entry(i, text=bytes([i]) * 900), state=(1, 1) if i == 1 else None)]], expected)
    for number, cut, term in ((11, 10, 2), (12, 3, 3), (13, 3, 4), (14, 1, 5)):
        batch = [persist(number, entry(cut, term), entry(cut + 1, term), cut=cut, state=(term, 0))]
        go_on(wal, [batch], expected)
        assert wal.read(Index(1), ALL, 1 << 30) == expected.entries
        assert wal.last_index == cut + 1
        again, found = open_wal(disk.kill())
        assert view(found) == expected.view
        assert again.read(Index(1), ALL, 1 << 30) == expected.entries


def test_cut_and_append_again_within_one_batch() -> None:
    """Trap R2: one (index, term) may be cut and written again before the first write is durable."""
    disk, expected = new_disk(), Expected()
    wal, _ = open_wal(disk, create=True)
    batch = [
        persist(1, entry(1), entry(2), entry(3), state=(1, 1)),
        persist(2, entry(2, 2), cut=2, state=(2, 0)),
        persist(3, entry(2, 2, b"other"), entry(3, 2), cut=2),
        persist(4, entry(3, 3), cut=3, state=(3, 0)),
    ]
    go_on(wal, [batch], expected)
    assert wal.read(Index(1), ALL, 1 << 30) == expected.entries
    assert view(open_wal(disk.kill())[1]) == expected.view


def test_a_write_larger_than_a_segment_and_than_a_batch_gets_a_segment_of_its_size() -> None:
    disk, expected = new_disk(), Expected()
    wal, _ = open_wal(disk, create=True)
    go_on(wal, [[persist(1, entry(1, text=b"x" * 50_000), state=(1, 1))], [persist(2, entry(2))]], expected)
    assert wal.bytes_used > 50_000
    assert view(open_wal(disk.kill())[1]) == expected.view


def test_a_segment_of_many_terms_and_cuts_needs_no_seal() -> None:
    """Its segment-end would be longer than a write may be; the next start scans it instead."""
    disk, expected = new_disk(), Expected()
    wal, _ = open_wal(disk, create=True, segment_bytes=65536, batch_bytes_max=1024)
    for i in range(1, 500):
        go_on(wal, [[persist(i, entry(i, i), state=(i, 1))]], expected)
    go_on(wal, [[persist(500, entry(500, 500, bytes(3900)), state=(500, 1))]], expected)
    second = next(path for path in disk.files() if "/0000000002-" in path)
    assert disk.content(second)[88:96] == bytes(8)  # the segment before was not sealed
    _, found = open_wal(disk.kill(), segment_bytes=65536)
    assert view(found) == expected.view
    assert view(open_wal(disk.kill(), applied=499, segment_bytes=65536)[1])[0] == (expected.entries[-1],)


def test_mark_is_written_once_and_in_two_sectors() -> None:
    disk = new_disk()
    wal, _ = open_wal(disk, create=True)
    wal.write([persist(1, entry(1), state=(1, 1))])
    wal.mark()
    changes = disk.changes
    wal.mark()
    assert disk.changes == changes
    write = [operation for operation in disk.trace if operation.kind == "pwrite"][-1]
    assert (write.offset + write.length - 48) % 512 == 0
    wal.write([persist(2, entry(2))])
    wal.mark()
    assert disk.changes == changes + 4


def test_closing_twice_is_harmless_and_using_it_afterwards_is_not() -> None:
    wal, _ = open_wal(new_disk(), create=True)
    wal.close()
    wal.close()
    with pytest.raises(StorageFailed, match="closed"):
        wal.write([persist(1, entry(1), state=(1, 1))])


def test_a_bug_in_the_caller_ends_the_log() -> None:
    wal, _ = open_wal(new_disk(), create=True)
    with pytest.raises(AssertionError):
        wal.write([persist(1, entry(2), state=(1, 1))])
    with pytest.raises(StorageFailed):
        wal.write([persist(1, entry(1), state=(1, 1))])


def test_committed_entries_are_never_cut() -> None:
    wal, _ = open_wal(new_disk(), create=True)
    wal.write([persist(1, entry(1), entry(2), state=(1, 1))])
    wal.write([persist(2, entry(3), commit=2)])
    with pytest.raises(AssertionError):
        wal.write([persist(3, entry(2, 2), cut=2, state=(2, 1))])


# The low-water mark


def test_dropping_a_prefix_removes_whole_segments_only() -> None:
    disk = new_disk()
    wal, _ = open_wal(disk, create=True)
    entries = [entry(i, 1 + i // 40) for i in range(1, 301)]
    for one in entries:
        wal.write([persist(one.index, one, state=(one.term, 1), commit=max(0, one.index - 1))])
    before = wal.bytes_used
    wal.drop_prefix(Index(5))
    assert (wal.bytes_used, wal.first_index) == (before, 1)
    wal.drop_prefix(Index(200))
    assert wal.bytes_used < before
    first = wal.first_index
    assert 1 < first <= 201
    assert wal.read(first, ALL, 1 << 30) == entries[first - 1 :]
    assert wal.read(Index(first - 1), ALL, 1 << 30) == []
    wal.drop_prefix(Index(300))
    assert wal.first_index <= 300
    again, found = open_wal(disk.kill(), applied=299)
    assert found.base == LogPosition(entries[found.base.index - 1].term, Index(wal.first_index - 1))
    assert found.tail == (entries[-1],)
    assert again.read(again.first_index, ALL, 1 << 30) == entries[again.first_index - 1 :]
    with pytest.raises(LogCorrupted, match="the store stands at"):
        open_wal(disk.kill(), applied=100)


def test_segments_that_come_back_after_dropping_are_ignored_and_one_that_is_missing_is_not() -> None:
    disk = new_disk()
    run(disk, [[persist(i, entry(i, text=bytes(2500)), state=(1, 1))] for i in range(1, 7)], Expected())
    names = [path for path in disk.files() if path.endswith(".wal")]
    contents = {name: disk.content(name) for name in names}
    wal, _ = open_wal(disk)
    wal.drop_prefix(Index(3))
    assert not disk.exists(names[0])
    image = disk.kill()
    back = image.open(names[0], create=True)
    back.pwrite(0, contents[names[0]])
    _, found = open_wal(image, applied=5)
    assert found.report.stale == (names[0],)
    assert not image.exists(names[0])
    lost = disk.kill()
    lost.unlink(f"{HOME}/{next(path for path in lost.files() if path.endswith('.wal')).rsplit('/', 1)[1]}")
    with pytest.raises(LogCorrupted, match="may be gone"):
        open_wal(lost, applied=5)


# Creating


def test_an_unused_log_is_made_anew_and_a_used_one_refused() -> None:
    disk = new_disk()
    wal, _ = open_wal(disk, create=True)
    wal.close()
    wal, found = open_wal(disk, create=True)  # a crash between making the log and finishing bootstrap
    assert found.last_index == 0
    wal.write([persist(1, state=(1, 1))])
    wal.close()
    with pytest.raises(IdentityRefused, match="do not belong together"):
        open_wal(disk, create=True)


# Beside it


def test_another_thread_reads_while_one_writes_and_drops(tmp_path: Path) -> None:
    wal, _ = open_wal(RealDisk(), create=True, home=str(tmp_path))
    done = threading.Event()
    seen: list[str] = []

    def read() -> None:
        rng = random.Random(2)
        while not done.is_set():
            first = rng.randrange(1, 400)
            for at, one in enumerate(wal.read(Index(first), Index(first + 20), 1 << 20)):
                if one.index != first + at:
                    seen.append(f"{one.index} at {first + at}")

    reader = threading.Thread(target=read)
    reader.start()
    try:
        index = 0
        rng = random.Random(3)
        for number in range(1, 251):
            term = 1 + number // 10
            cut = index if number % 10 == 0 and index > 1 else 0
            index = (cut - 1 if cut else index) + 2
            wal.write([persist(number, entry(index - 1, term), entry(index, term), cut=cut, state=(term, 1))])
            if rng.random() < 0.02:
                wal.drop_prefix(Index(index // 3 + 1))
    finally:
        done.set()
        reader.join()
    assert seen == []
    wal.close()
    _, found = open_wal(RealDisk(), home=str(tmp_path), applied=index)
    assert found.last_index == index


def test_salts_are_random_unless_given(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Wal.open(
            LogPlace(RealDisk(), str(tmp_path / name), STAMP, segment_bytes=8192, batch_bytes_max=4096),
            applied_index=Index(0),
            create=True,
        )[0].close()
    salts = [next(path.glob("*.wal")).read_bytes()[48:56] for path in tmp_path.iterdir()]
    assert salts[0] != salts[1]
