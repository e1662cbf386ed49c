"""The hash of what a revision shows: the same on every node that can still show it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from kvnode.errors import BadRequest, Compacted, FutureRevision
from kvnode.kv.requests import Compact, Delete, HashReply, LeaseGrant, Put, Sweep
from kvnode.machine.pace import Pace, in_one_go
from kvnode.storage.memory_backend import MemoryBackend
from tests.machine.harness import BACKENDS, MODES, Store, opener, some_keys
from tests.machine.test_snapshot import flushed
from tests.machine.test_take_over import received


def hash_of(store: Store, revision: int = 0, steps: int = 1_000) -> HashReply:
    pace = Pace(steps)
    return in_one_go(store.machine.state_hash(revision, pace), pace)


def filled(store: Store) -> Store:
    chance = random.Random(3)
    keys = some_keys(chance, 40)
    for _ in range(150):
        key = chance.choice(keys)
        store.apply(Put(key, chance.randbytes(9)) if chance.random() < 0.8 else Delete(key))
        if chance.random() < 0.1:
            store.settle()
    return store


def test_golden_hash() -> None:
    """Changes only when what is hashed does: then nodes of two versions disagree."""
    store = Store(MemoryBackend)
    store.apply(Put(b"k", b"v"), time=10)
    store.apply(LeaseGrant(5_000, put=Put(b"l", b"w")), time=20)
    assert hash_of(store) == HashReply(3, 2, "143ee8d1dbabe8d3be274da33a4c461d")
    assert hash_of(Store(MemoryBackend)) == HashReply(1, 0, "cae66941d9efbd404e4d88758ea67670")


def test_flushes_backends_and_slices_do_not_show(tmp_path: Path) -> None:
    expected = [hash_of(filled(Store(MemoryBackend)), revision) for revision in (0, 40, 90)]
    for kind in BACKENDS:
        for mode in MODES:
            store = filled(Store(opener(kind, tmp_path / mode), mode))
            assert [hash_of(store, revision, 7) for revision in (0, 40, 90)] == expected
            store.machine.backend.close()


def test_compaction_progress_does_not_show_above_the_floor() -> None:
    one, two = filled(Store(MemoryBackend)), filled(Store(MemoryBackend))
    newest = hash_of(one)
    two.apply(Compact(60))
    for _ in range(4):
        two.apply(Sweep(60, 20))
        flushed(two)
        assert hash_of(two, 60) == hash_of(one, 60)
        assert hash_of(two) == newest
    assert two.machine.swept_revision == 60
    with pytest.raises(Compacted):
        hash_of(two, 59)
    with pytest.raises(FutureRevision):
        hash_of(two, newest.revision + 1)
    with pytest.raises(BadRequest):
        hash_of(two, -1)


def test_every_part_of_an_item_counts() -> None:
    def made(*, key: bytes = b"k", value: bytes = b"v", lease: int = 0, puts: int = 1, before: int = 0) -> str:
        store = Store(MemoryBackend)
        store.apply(LeaseGrant(5_000), time=1)
        for _ in range(before):
            store.apply(Put(b"x", b""), time=1)
        for _ in range(puts):
            store.apply(Put(key, value, lease), time=1)
        store.apply(Delete(b"x"), time=1)
        return hash_of(store).hash

    hashes = [made(), made(key=b"l"), made(value=b"w"), made(lease=1), made(puts=2), made(before=1)]
    assert len(set(hashes)) == len(hashes)
    assert made() == made()


def test_a_hash_that_is_overtaken_begins_again_or_says_compacted() -> None:
    store = filled(Store(MemoryBackend))
    pace = Pace(5)
    pinned, newest = store.machine.state_hash(50, pace), store.machine.state_hash(0, pace)
    next(pinned), next(newest)
    store.put(b"more")
    store.apply(Compact(store.machine.revision))
    with pytest.raises(Compacted):
        in_one_go(pinned, pace)
    assert in_one_go(newest, pace) == hash_of(store)


def test_a_store_that_came_as_a_snapshot_has_the_same_hash() -> None:
    ahead, behind = filled(Store(MemoryBackend)), Store(MemoryBackend)
    pace = Pace(5)
    for _ in range(9):
        behind.put(b"%d" % _)
    work = behind.machine.state_hash(0, pace)
    next(work)
    behind.machine.take_over(received(ahead))
    assert in_one_go(work, pace) == hash_of(behind) == hash_of(ahead)
