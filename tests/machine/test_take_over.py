"""A machine becomes another one, from a snapshot: everything travels, nothing of before stays, readers do not mix."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import pytest

from kvnode.config import LimitsSection
from kvnode.ids import Index, Term
from kvnode.kv import keys
from kvnode.kv.requests import Compact, Delete, History, Put, Range, RangeReply, Refusal
from kvnode.machine.changelog import ChangesAsked
from kvnode.machine.machine import StateMachine
from kvnode.machine.pace import Pace, Work
from kvnode.machine.snapshot import verified_rows
from kvnode.storage.lmdb_backend import LmdbBackend
from kvnode.storage.memory_backend import MemoryBackend
from tests.backend_suite import all_rows, commit
from tests.machine.harness import BACKENDS, Store, opener
from tests.machine.rich import further_requests, observed, rich_store
from tests.machine.test_snapshot import flushed, reader_of, whole


def received(store: Store, path: Path | None = None) -> StateMachine:
    """The machine over a fresh backend that `store`'s snapshot makes; the store is flushed."""
    rows = verified_rows(BytesIO(whole(reader_of(flushed(store)))).read)
    backend = MemoryBackend() if path is None else LmdbBackend(str(path / "new"), map_bytes=64 << 20)
    commit(backend, *rows)
    return StateMachine(backend, LimitsSection())


def holder_token(machine: StateMachine) -> int:
    holder = machine.leases.holder(b"lock")
    assert holder is not None
    return holder[0]


@pytest.mark.parametrize("kind", BACKENDS)
def test_s59_snapshot_carries_everything(kind: str, tmp_path: Path) -> None:
    """Leases with their checkpoints, queues, sessions and answers, names, fences, history, floor, times, members.

    And whatever is applied afterwards has the same results and the same digests as where the snapshot came from.
    """
    store = rich_store(Store(opener(kind, tmp_path)))
    expected = observed(store.machine)
    assert expected["keys"][1]
    assert (len(expected["leases"]), len(expected["sessions"])) == (5, 2)
    machine = received(store, tmp_path if kind == "lmdb" else None)
    assert observed(machine) == expected == observed(store.machine)
    assert machine.installed == (store.machine.applied_index, 3)
    codes = []
    for request in further_requests(holder_token(machine)):
        index = Index(machine.applied_index + 1)
        before = store.machine.apply(index, index * 10, request)
        assert machine.apply(index, index * 10, request) == before, request
        assert machine.digest == store.machine.digest, request
        codes.append(before.result.code if isinstance(before.result, Refusal) else "")
    assert [code for code in codes if code] == ["compare_failed", "sequence_too_old", "conflict", "fenced", "fenced"]
    assert observed(machine) == observed(store.machine)
    for backend in (machine.backend, store.machine.backend):
        backend.close()


def test_nothing_of_the_store_before_stays(tmp_path: Path) -> None:
    ahead, behind = (rich_store(Store(opener("memory", tmp_path))) for _ in range(2))
    ahead.apply(Put(b"new", b"1"))
    other = received(ahead)
    expected = observed(other)
    machine = behind.machine
    counted = machine.puts, machine.deletes
    machine.take_over(other)
    assert observed(machine) == expected
    assert (machine.puts, machine.deletes) == counted, "counters never go back"
    assert (machine.recent_versions, machine.is_flushed, machine.generation) == (0, True, 1)
    assert machine.backend is not behind._open_backend()
    for request in further_requests(holder_token(machine)):
        assert behind.apply(request) == ahead.apply(request)
    assert machine.digest == ahead.machine.digest
    flushed(behind)
    behind._open_backend = lambda: machine.backend
    behind.reopen()
    assert observed(behind.machine) == observed(ahead.machine)


def test_a_snapshot_that_is_behind_is_no_successor() -> None:
    ahead, behind = Store(MemoryBackend), Store(MemoryBackend)
    for store in (ahead, behind, ahead):
        store.put(b"k")
    with pytest.raises(AssertionError):
        ahead.machine.take_over(received(behind))


def test_an_unfinished_entry_is_dropped() -> None:
    ahead, behind = Store(MemoryBackend), Store(MemoryBackend)
    for store in (ahead, behind):
        for number in range(3_000):
            store.put(b"%04d" % number)
    everything = Delete(b"", keys.TO_THE_END)
    ahead.apply(everything)
    machine = behind.machine
    assert machine.begin(Index(3_001), 30_010, everything) is None
    assert machine.is_unfinished
    machine.take_over(received(ahead))
    assert not machine.is_unfinished
    assert machine.digest == ahead.machine.digest
    assert behind.list() == []
    behind.put(b"after")
    assert behind.list() == [b"after"]


def test_a_cut_that_was_under_way_is_void() -> None:
    """Its commit may end whenever it likes: it concerns the store before."""
    ahead, behind = Store(MemoryBackend), Store(MemoryBackend)
    for store in (ahead, behind, ahead):
        store.put(b"k")
    machine, before = behind.machine, behind.machine.backend
    void = machine.cut(Term(3))
    assert void is not None
    machine.take_over(received(ahead))
    behind.put(b"l")
    cut = machine.cut(Term(3))
    assert cut is not None, "another one can be made at once"
    before.commit(void)
    machine.evict(void)
    assert machine.recent_versions == 1, "what the new cut holds is not durable yet"
    rows = len(all_rows(machine.backend))
    machine.backend.commit(cut)
    machine.evict(cut)
    assert machine.recent_versions == 0
    assert len(all_rows(machine.backend)) == rows + 2


class Closed(MemoryBackend):
    """Nobody may look at it any more once it is closed."""

    def close(self) -> None:
        del self._rows


def two_slices(store: Store, work: Work[RangeReply], pace: Pace, other: StateMachine) -> RangeReply:
    """Replace the store after the first slice."""
    pace.renew()
    next(work)
    before = store.machine.backend
    store.machine.take_over(other)
    before.close()
    while True:
        pace.renew()
        try:
            next(work)
        except StopIteration as end:
            reply: RangeReply = end.value
            return reply


@pytest.mark.parametrize("revision", [0, 400])
def test_a_read_between_two_slices_begins_again(revision: int) -> None:
    """At what is newest now, or at the revision it asked for, in the new store alone."""
    ahead, behind = Store(MemoryBackend), Store(Closed)
    for store in (ahead, behind):
        for number in range(500):
            store.put(b"%03d" % number)
        flushed(store)
    ahead.apply(Delete(b"000", b"100"))
    other = received(ahead)
    request = Range(b"", keys.TO_THE_END, revision=revision)
    expected = ahead.machine.range(request)
    pace = Pace(100)
    assert two_slices(behind, behind.machine.read(request, pace), pace, other) == expected
    assert expected.count == (399 if revision else 400)


def test_a_history_between_two_slices_begins_again() -> None:
    ahead, behind = Store(MemoryBackend), Store(Closed)
    for store in (ahead, behind):
        for number in range(300):
            store.put(b"k", b"%d" % number)
        flushed(store)
    ahead.apply(Compact(100))
    ahead.put(b"k", b"new")
    pace = Pace(50)
    reply = two_slices(behind, behind.machine.read(History(b"k"), pace), pace, received(ahead))
    assert [kv.mod_revision for kv in reply.items][:1] == [302]
    assert min(kv.mod_revision for kv in reply.items) == 100


def test_changes_go_on_in_the_new_store() -> None:
    """A place among the changes is the same in every store."""
    ahead, behind = Store(MemoryBackend), Store(Closed)
    for store in (ahead, behind):
        for number in range(200):
            store.put(b"%03d" % number)
        flushed(store)
    ahead.put(b"new")
    asked = ChangesAsked(b"", keys.TO_THE_END, 2, 201)
    pace = Pace(50)
    work = behind.machine.changes(asked, pace)
    next(work)
    other, before = received(ahead), behind.machine.backend
    behind.machine.take_over(other)
    before.close()
    revisions: list[int] = []
    while True:
        pace.renew()
        try:
            next(work)
        except StopIteration as end:
            revisions = [event.kv.mod_revision for event in end.value.events]
            break
    assert revisions == list(range(2, 202))
