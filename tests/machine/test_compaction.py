"""Compaction: what it gives up, what stays, and what others have got wrong about it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from kvnode.config import LimitsSection
from kvnode.errors import Compacted
from kvnode.ids import Index, Term
from kvnode.kv.keys import TO_THE_END
from kvnode.kv.requests import (
    Compact,
    CompactReply,
    Delete,
    History,
    Put,
    Range,
    Refusal,
    SessionOpen,
    Sweep,
    SweepReply,
    Txn,
)
from kvnode.machine import keycode
from kvnode.machine.machine import TIMES_KEPT_MAX, StateMachine
from kvnode.machine.pace import Pace, in_one_go
from kvnode.storage.memory_backend import MemoryBackend
from tests.machine.harness import BACKENDS, MODES, Store, opener

ALL = 1_000_000


@pytest.fixture(params=[(backend, mode) for backend in BACKENDS for mode in MODES], ids="-".join)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    backend, mode = request.param
    store = Store(opener(backend, tmp_path), mode)
    yield store
    store.machine.backend.close()


def flush(store: Store) -> None:
    """Whatever the mode: everything applied is in the backend and nowhere else."""
    store.mode = "flushed"
    store.settle()
    store.settle()


def rows(store: Store, first: bytes, end: bytes) -> list[bytes]:
    found = []
    with store.machine.backend.read() as cursor:
        row = cursor.seek(first)
        while row is not None and row[0] < end:
            found.append(row[0])
            row = cursor.next()
    return found


def test_the_floor_moves_at_once_and_only_up(store: Store) -> None:
    for number in range(5):
        store.put(b"k", b"%d" % number)
    store.settle()
    assert store.apply(Compact(4)).result == CompactReply(6, 4)
    assert store.machine.compact_revision == 4
    with pytest.raises(Compacted) as refused:
        store.get(b"k", 3)
    assert refused.value.detail == {"compact_revision": 4}
    assert store.apply(Compact(2)).result == CompactReply(6, 4)
    ahead = store.apply(Compact(7)).result
    assert isinstance(ahead, Refusal)
    assert ahead.code == "future_revision"
    assert store.machine.compact_revision == 4
    assert store.machine.revision == 6, "compaction makes no revision"


def test_a_sweep_removes_what_the_floor_does_not_show_and_frees_its_bytes(store: Store) -> None:
    kept = [store.put(b"once"), store.put(b"twice", b"old")]
    store.settle()
    store.put(b"twice", b"new")
    store.put(b"gone", b"long since")
    store.settle()
    store.apply(Delete(b"gone"))
    store.put(b"last")
    assert kept == [2, 3]
    before = store.machine.logical_bytes
    store.apply(Compact(7))
    reply = store.apply(Sweep(ALL, ALL)).result
    size = sum(map(len, (b"twice", b"old", b"gone", b"long since", b"gone"))) + 3 * 64
    assert reply == SweepReply(7, 7, 3, size)
    assert store.machine.logical_bytes == before - size
    assert store.machine.history_bytes == 0
    flush(store)
    assert len(rows(store, keycode.VERSIONS, keycode.VERSIONS_END)) == 3
    assert len(rows(store, keycode.REVISIONS, keycode.REVISIONS_END)) == 1
    assert store.list() == [b"last", b"once", b"twice"]


def test_a_sweep_takes_whole_revisions_up_to_its_bound_and_at_least_one(store: Store) -> None:
    for revision in range(4):
        store.apply(Txn((), tuple(Put(b"%d" % key, b"%d" % revision) for key in range(3))))
    store.settle()
    store.apply(Compact(5))
    ends = []
    while not ends or ends[-1] != 5:
        reply = store.apply(Sweep(ALL, 2)).result
        assert isinstance(reply, SweepReply)
        ends.append(reply.swept_revision)
        store.settle()
    assert ends == [3, 4, 5]
    assert store.machine.history_bytes == 3 * 66, "the versions superseded by the floor's own revision"


def test_a_key_that_was_deleted_does_not_come_back(store: Store) -> None:
    """The deletion and what it hid leave together, whatever of it is in memory, being written or stored."""
    store.put(b"k", b"1")
    store.settle()
    store.put(b"k", b"2")
    store.settle()
    store.apply(Delete(b"k"))
    store.settle()
    store.put(b"other")
    store.apply(Compact(5))
    for _ in range(4):
        store.apply(Sweep(ALL, 1))
        assert store.get(b"k") is None
        store.settle()
        assert store.get(b"k") is None
        assert store.list() == [b"other"]
    flush(store)
    assert store.get(b"k") is None
    assert store.apply(Put(b"k", b"3", if_revision=0)).result.revision == 6
    kv = store.get(b"k")
    assert kv is not None
    assert (kv.version, kv.create_revision) == (1, 6)


def test_etcd_18089_19179_a_deletion_at_the_floor_is_still_told(store: Store) -> None:
    """Who watches from the floor on must see the deletion that the floor's own revision made."""
    store.put(b"k", b"1")
    store.settle()
    store.apply(Delete(b"k"))
    store.apply(Compact(3))
    store.apply(Sweep(ALL, ALL))
    store.settle()
    assert [(kv.mod_revision, kv.version) for kv in store.history(b"k")] == [(3, 0)]
    flush(store)
    assert rows(store, keycode.REVISIONS, keycode.REVISIONS_END) == [keycode.revision_row_key(3, 0)]
    assert keycode.version_row_key(b"k", 3) in rows(store, keycode.VERSIONS, keycode.VERSIONS_END)


@pytest.mark.parametrize("backend", BACKENDS)
def test_etcd_17780_the_revision_does_not_go_back_after_a_crash_in_compaction(backend: str, tmp_path: Path) -> None:
    """The newest revision is a deletion, and its row goes: the revision must not be read off the rows."""
    store = Store(opener(backend, tmp_path))
    store.put(b"k", b"1")
    store.apply(Delete(b"k"))
    store.put(b"a")
    store.apply(Delete(b"a"))
    for floor in (3, 5):
        store.apply(Compact(floor))
        store.apply(Sweep(ALL, 1))
        flush(store)
        store.reopen()  # between two batches
        assert (store.machine.revision, store.machine.compact_revision) == (5, floor)
    store.apply(Sweep(ALL, ALL))
    store.reopen()  # the log repeats what was not flushed
    store.apply(Sweep(ALL, ALL))
    flush(store)
    store.reopen()
    assert (store.machine.revision, store.machine.compact_revision, store.machine.swept_revision) == (5, 5, 5)
    assert store.put(b"k", b"2") == 6
    store.machine.backend.close()


def test_etcd_18667_a_transaction_reads_a_revision_everywhere_or_nowhere() -> None:
    """Its answer hangs on the floor that the log moved, not on how far a node has swept and flushed."""
    stores = [Store(opener("memory", Path()), mode) for mode in MODES]
    for store in stores:
        for number in range(6):
            store.put(b"k", b"%d" % number)
            store.settle()
        store.apply(Compact(4))
        store.apply(Sweep(ALL, 1))
        store.settle()
        store.apply(Sweep(ALL, ALL))
        for revision in range(1, 7):
            applied = store.apply(Txn((), (Put(b"x", b""), Range(b"k", revision=revision))))
            assert isinstance(applied.result, Refusal) == (revision < 4)
    assert len({store.machine.hash_at() for store in stores}) == 1


def test_a_history_shows_the_same_whatever_has_been_swept(store: Store) -> None:
    for number in range(4):
        store.put(b"k", b"%d" % number)
    store.apply(Delete(b"k"))
    store.settle()
    store.put(b"k", b"again")
    store.put(b"else")
    expected = {
        4: [7, 6, 5, 4],
        5: [7, 6, 5],
        6: [7, 6],
        7: [7],
        8: [7],
    }
    for floor, shown in expected.items():
        store.apply(Compact(floor))
        for changes in (1, ALL):
            assert [kv.mod_revision for kv in store.history(b"k")] == shown
            assert [kv.mod_revision for kv in store.history(b"k", page=1)] == shown
            store.apply(Sweep(ALL, changes))
            store.settle()
        assert [kv.mod_revision for kv in store.history(b"k")] == shown


def test_a_history_hides_a_deletion_below_the_floor(store: Store) -> None:
    """It is gone on the nodes that have swept it."""
    store.put(b"k", b"1")
    store.apply(Delete(b"k"))
    store.settle()
    store.put(b"else")
    store.apply(Compact(4))
    assert store.history(b"k") == []
    store.apply(Sweep(ALL, ALL))
    store.settle()
    assert store.history(b"k") == []


def test_times_below_the_floor_are_given_up(store: Store) -> None:
    for _ in range(5):
        store.put(b"k")
    store.settle()
    store.apply(Compact(4))
    store.apply(Sweep(ALL, ALL))
    store.settle()
    machine = store.machine
    assert [machine.revision_at(time) for time in (30, 39, 40, 50, 99)] == [4, 4, 5, 6, 6]
    for time in (0, 10, 29):
        with pytest.raises(Compacted):
            store.get(b"k", machine.revision_at(time))


def test_a_revision_of_a_time_that_is_remembered_is_what_would_be_found(store: Store) -> None:
    """Asked for while the time lay ahead, while it could be read, and when it was given up."""
    kept: set[int] = set()
    for floor in (0, 0, 0, 3, 4):
        store.put(b"k")
        store.settle()
        if floor:
            store.apply(Compact(floor))
        machine = store.machine
        for time in (0, 15, 20, 29, 30, 35, 40, 99):
            remembered = machine.revision_at(time)
            found = machine._versions.revision_at(time, max(machine.compact_revision, 2), machine.revision)
            given_up = max(remembered, found) < machine.compact_revision  # neither can be read
            assert remembered == found or given_up, time
        kept |= machine._revisions_at.keys()
    assert kept == {15, 20, 29, 30, 35, 40}  # at 0 there was nothing, and by 99 more may be made


def test_only_so_many_revisions_of_times_are_remembered(store: Store) -> None:
    for _ in range(40):
        store.put(b"k")
    for time in range(10, 10 + 2 * TIMES_KEPT_MAX):
        store.machine.revision_at(time)
        assert len(store.machine._revisions_at) <= TIMES_KEPT_MAX


@pytest.mark.parametrize("request_", [Range(b"k", TO_THE_END), History(b"h")], ids=["range", "history"])
def test_a_read_that_compaction_overtakes_ends_or_begins_again(store: Store, request_: Range | History) -> None:
    for number in range(100):
        store.put(b"k%02d" % number, b"old")
        store.put(b"h", b"%d" % number)
    store.settle()
    pace = Pace(20)
    named = store.machine.read(msgspec.structs.replace(request_, revision=store.machine.revision), pace)
    unnamed = store.machine.read(request_, pace)
    for work in (named, unnamed):
        pace.renew()
        next(work)
    store.put(b"k00", b"new")
    newest = store.put(b"h", b"new")
    store.apply(Compact(newest))
    store.apply(Sweep(ALL, ALL))
    if store.mode != "reopened":  # a read does not outlive its process
        store.settle()
    with pytest.raises(Compacted):
        in_one_go(named, pace)
    reply = in_one_go(unnamed, pace)
    assert reply.revision == newest
    assert reply.items[0].value == b"new"
    assert len(reply.items) == (100 if isinstance(request_, Range) else 1)


def test_a_big_sweep_goes_in_slices_and_moves_nothing_before_the_last() -> None:
    machine = StateMachine(MemoryBackend(), LimitsSection(), slice_steps=50)

    def index() -> Index:
        return Index(machine.applied_index + 1)

    for number in range(600):
        machine.apply(index(), machine.applied_index + 1, Put(b"k%d" % (number % 7), b"v"))
        if number == 300:
            cut = machine.cut(Term(1))
            assert cut is not None
            machine.backend.commit(cut)
            machine.evict(cut)
    cut = machine.cut(Term(1))
    assert cut is not None
    machine.apply(index(), 1_000, Compact(601))
    before = (machine.swept_revision, machine.logical_bytes, machine.applied_index, machine.hash_at())
    applied = machine.begin(index(), 1_000, Sweep(ALL, ALL))
    slices = 0
    while applied is None:
        assert (machine.swept_revision, machine.logical_bytes, machine.applied_index, machine.hash_at()) == before
        assert machine.cut(Term(1)) is None
        if slices == 30:
            machine.backend.commit(cut)
            machine.evict(cut)  # what the sweep reads moves from memory to the store
        applied = machine.resume()
        slices += 1
    assert slices > 30
    assert applied.result == SweepReply(601, 601, 600 - 7 - 1, (600 - 7 - 1) * 67)
    assert machine.live_bytes == 7 * 67


def test_what_is_on_its_way_to_the_store_is_not_flushed_yet(store: Store) -> None:
    """Neither versions nor rows of sessions and removals, which leave the table of changes when they are cut."""
    for request in (Put(b"k", b"v"), Delete(b"k"), Compact(2), Sweep(ALL, ALL), SessionOpen(60_000)):
        store.apply(request)
        cut = store.machine.cut(Term(1))
        assert cut is not None
        assert not store.machine.is_flushed, request
        store.machine.backend.commit(cut)
        assert not store.machine.is_flushed, request
        store.machine.evict(cut)
        assert store.machine.is_flushed, request


def test_removals_count_as_recent_until_they_are_flushed(store: Store) -> None:
    for number in range(50):
        store.put(b"k", b"%d" % number)
    flush(store)
    assert store.machine.is_flushed
    store.apply(Compact(51))
    store.apply(Sweep(ALL, ALL))
    assert not store.machine.is_flushed
    assert store.machine.recent_bytes >= 50 * 200
    flush(store)
    assert store.machine.recent_bytes == 0
