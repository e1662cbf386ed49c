"""The changelog against a plain model: every change once and in order, whatever was flushed, in however many slices."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import pytest

from kvnode.errors import Compacted
from kvnode.ids import Term
from kvnode.kv import keys
from kvnode.kv.events import Event
from kvnode.kv.requests import Delete, Operation, Put, Txn
from kvnode.machine import changelog
from kvnode.machine.changelog import ChangesAsked, ChangesFound
from kvnode.machine.pace import Pace
from tests.machine.floor import give_up_below
from tests.machine.harness import BACKENDS, MODES, Store, opener, some_keys

EVERYTHING = (b"", keys.TO_THE_END)


def read(store: Store, asked: ChangesAsked, steps: int = 1_000, *, flush_between: bool = False) -> list[Event]:
    """All pages, in slices; the store may be flushed between two of them."""
    found: list[Event] = []
    pace = Pace(steps)
    while asked.first <= asked.last:
        work = store.machine.changes(asked, pace)
        while True:
            pace.renew()
            try:
                next(work)
            except StopIteration as end:
                page: ChangesFound = end.value
                break
            if flush_between:
                flush(store)
        found += page.events
        assert page.next > asked.first
        asked = msgspec.structs.replace(asked, first=page.next)
    return found


def flush(store: Store) -> None:
    cut = store.machine.cut(Term(1))
    if cut is not None:
        store.machine.backend.commit(cut)
        store.machine.evict(cut)


def asked_for(store: Store, start: bytes = b"", end: bytes = keys.TO_THE_END, first: int = 2) -> ChangesAsked:
    return ChangesAsked(start, end, first, store.machine.revision)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(3))
def test_it_is_what_the_events_were(
    tmp_path: Path, backend: str, mode: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changelog, "EVENTS_MAX", 7)
    chance = random.Random(f"{backend}/{mode}/{seed}")
    store = Store(opener(backend, tmp_path), mode)
    names = some_keys(chance, 12)
    events: list[Event] = []
    for _ in range(60):
        operations: list[Operation] = [
            Put(key, bytes([chance.randrange(256)]) * chance.choice((1, 9_000)))
            if chance.random() < 0.6
            else Delete(key, chance.choice((keys.ONE_KEY, keys.TO_THE_END)))
            for key in chance.sample(names, chance.choice((1, 1, 1, 3)))
        ]
        events += store.apply(Txn((), tuple(operations))).events
        if chance.random() < 0.1:
            store.settle()
    for _ in range(12):
        start, end = chance.choice(
            (EVERYTHING, (chance.choice(names), keys.ONE_KEY), tuple(sorted(chance.sample(names, 2))))
        )
        first = chance.randint(2, store.machine.revision + 1)
        last = chance.randint(first - 1, store.machine.revision)
        puts, deletes, previous = (*chance.choice(((True, True), (True, False), (False, True))), chance.random() < 0.5)
        asked = ChangesAsked(start, end, first, last, puts, deletes, previous)
        expected = [
            event if previous else Event(event.kv)
            for event in events
            if first <= event.kv.mod_revision <= last
            and keys.contains(start, end, event.kv.key)
            and (puts if event.kv.version else deletes)
        ]
        assert read(store, asked, chance.choice((1, 3, 1_000)), flush_between=mode == "flushed") == expected


def test_a_page_ends_between_revisions_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changelog, "EVENTS_MAX", 3)
    store = Store(opener("memory", Path()))
    for _ in range(4):
        store.apply(Txn((), tuple(Put(b"k%d" % number, b"") for number in range(5))))
    work = store.machine.changes(asked_for(store), Pace())
    with pytest.raises(StopIteration) as end:
        next(work)
    assert [event.kv.mod_revision for event in end.value.value.events] == [2] * 5
    assert end.value.value.next == 3


def test_changes_that_do_not_match_end_a_page_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a reader's position moves, and what it has passed may be compacted."""
    monkeypatch.setattr(changelog, "CHANGES_MAX", 4)
    store = Store(opener("memory", Path()), "flushed")
    for _ in range(10):
        store.put(b"other")
    store.settle()
    with pytest.raises(StopIteration) as end:
        next(store.machine.changes(asked_for(store, b"k", keys.ONE_KEY), Pace()))
    assert (end.value.value.events, end.value.value.next) == ((), 6)


@pytest.mark.parametrize("mode", MODES)
def test_an_unfinished_entry_is_not_read(mode: str, tmp_path: Path) -> None:
    store = Store(opener("memory", tmp_path), mode)
    for number in range(50):
        store.put(b"k%02d" % number)
    store.settle()
    machine = store.machine
    machine._pace.steps = 5
    assert machine.begin(machine.applied_index + 1, 10_000, Delete(b"", keys.TO_THE_END)) is None
    while machine.resume() is None:
        found = read(store, asked_for(store))
        assert len(found) == 50
        assert all(event.kv.version for event in found)
    assert len(read(store, asked_for(store))) == 100


@pytest.mark.parametrize("mode", MODES)
def test_a_deletion_at_the_compacted_revision_is_still_read(mode: str, tmp_path: Path) -> None:
    """etcd #18089, #19179."""
    store = Store(opener("memory", tmp_path), mode)
    store.put(b"k")
    store.apply(Delete(b"k"))
    store.put(b"k")
    store.settle()
    give_up_below(store.machine, 3)
    found = read(store, ChangesAsked(b"k", keys.ONE_KEY, 3, 4, previous=True))
    assert [(event.kv.mod_revision, event.kv.version) for event in found] == [(3, 0), (4, 1)]
    assert found[0].previous is None, "what stood below the floor may be gone"
    with pytest.raises(Compacted) as refusal:
        read(store, ChangesAsked(b"k", keys.ONE_KEY, 2, 4))
    assert refusal.value.detail == {"compact_revision": 3}


def test_what_is_compacted_while_it_is_read_is_refused() -> None:
    store = Store(opener("memory", Path()))
    for _ in range(10):
        store.put(b"k")
    work = store.machine.changes(asked_for(store), pace := Pace(2))
    next(work)
    give_up_below(store.machine, 8)
    pace.renew()
    with pytest.raises(Compacted):
        next(work)


def test_previous_values_of_one_revision_are_bounded() -> None:
    store = Store(opener("memory", Path()), page_bytes_max=64 << 10)
    for number in range(10):
        store.put(b"k%d" % number, bytes(20_000))
    store.apply(Delete(b"", keys.TO_THE_END))
    found = read(store, ChangesAsked(b"", keys.TO_THE_END, 12, 12, previous=True))
    assert [event.previous is not None for event in found] == [True] * 4 + [False] * 6
