"""Every version of every key reads the same, wherever it is kept: in memory, being flushed, flushed, reopened."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvnode.errors import BadRequest, Compacted, FutureRevision
from kvnode.kv.keys import TO_THE_END, prefix_end
from kvnode.kv.requests import Compact, Delete, History, Put, Range, Refusal, Txn, WriteRequest
from kvnode.machine.pace import Pace, in_one_go
from tests.machine.harness import BACKENDS, MODES, Model, Store, opener, some_keys


@pytest.fixture(params=[(backend, mode) for backend in BACKENDS for mode in MODES], ids="-".join)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    backend, mode = request.param
    store = Store(opener(backend, tmp_path), mode)
    yield store
    store.machine.backend.close()


def random_write(chance: random.Random, keys: list[bytes]) -> WriteRequest:
    def put() -> Put:
        return Put(chance.choice(keys), chance.randbytes(chance.randrange(12)))

    kind = chance.random()
    if kind < 0.6:
        return put()
    if kind < 0.8:
        return Delete(chance.choice(keys))
    if kind < 0.87:
        start, end = sorted(chance.sample(keys, 2))
        return Delete(start, end)
    if kind < 0.88:
        return Delete(chance.choice(keys), TO_THE_END)
    return Txn((), (Delete(chance.choice(keys)), put(), Range(chance.choice(keys)), put()))


def check_everything(store: Store, model: Model, keys: list[bytes], chance: random.Random) -> None:
    machine = store.machine
    assert machine.revision == model.revision
    for time in range(0, machine.applied_time + 20, 5):  # entries are 10 apart, so half of these lie between two
        assert machine.revision_at(time) == model.revision_at(time), time
    for revision in range(1, model.revision + 1):
        for key in keys:
            assert store.get(key, revision) == model.at(key, revision), (key, revision)
        key = chance.choice(keys)
        page = chance.choice([0, 1, 2, 5])
        assert store.history(key, revision, page=page) == model.history(key, revision), (key, revision, page)
        expected = model.range(b"", TO_THE_END, revision)
        reply = machine.range(Range(b"", TO_THE_END, revision=revision))
        assert list(reply.items) == expected, revision
        backwards = machine.range(Range(b"", TO_THE_END, revision=revision, descending=True))
        assert list(backwards.items) == expected[::-1], revision
        start, end = chance.choice(keys), chance.choice([*keys, TO_THE_END])
        expected = model.range(start, end, revision)
        assert list(machine.range(Range(start, end, revision=revision)).items) == expected, (start, end, revision)
        backwards = machine.range(Range(start, end, revision=revision, descending=True))
        assert list(backwards.items) == expected[::-1], (start, end, revision)
        assert machine.range(Range(start, end, revision=revision, count_only=True)).count == len(expected)


@pytest.mark.parametrize("seed", range(3))
def test_random_writes_against_the_model(store: Store, seed: int) -> None:
    chance = random.Random(seed)
    keys = some_keys(chance, 24)
    model = Model()
    for step in range(90):
        request = random_write(chance, keys)
        applied = store.apply(request)
        if not isinstance(applied.result, Refusal):
            model.apply(request, store.machine.applied_time)
        if chance.random() < 0.08:
            store.settle()
        if step % 10 == 0:
            for key in keys:
                assert store.get(key) == model.at(key, model.revision), key
    store.settle()
    check_everything(store, model, keys, chance)
    store.settle()
    check_everything(store, model, keys, chance)


def test_a_missing_key_beside_an_existing_one_stays_missing(store: Store) -> None:
    """Trap C8: a floor look-up finds the neighbour; the key it finds has to be compared."""
    store.put(b"b")
    store.put(b"d")
    store.settle()
    for missing in (b"a", b"b\x00", b"ba", b"c", b"cc", b"d\x00", b"e", b"\x00", b"\xff"):
        for revision in (0, 1, 2, 3):
            assert store.get(missing, revision) is None, (missing, revision)
    assert store.get(b"d", 2) is None, "d did not exist yet"


def test_a_key_shows_the_version_of_the_revision_asked_for(store: Store) -> None:
    first = store.put(b"k", b"1")
    store.settle()
    second = store.put(b"k", b"2")
    store.apply(Delete(b"k"))
    store.settle()
    third = store.put(b"k", b"3")
    shown = {revision: store.get(b"k", revision) for revision in range(1, store.machine.revision + 1)}
    assert [kv and (kv.value, kv.version, kv.create_revision) for kv in shown.values()] == [
        None,
        (b"1", 1, first),
        (b"2", 2, first),
        None,
        (b"3", 1, third),
    ]
    assert second == first + 1


@pytest.mark.parametrize("length", [469, 470, 471, 510, 511, 512, 513, 4096, 65_536])
@pytest.mark.parametrize("fill", [b"x", b"\x00", b"\xff"], ids=["x", "nul", "ff"])
def test_long_keys_with_shared_stems(tmp_path: Path, length: int, fill: bytes) -> None:
    """LMDB keys hold 511 bytes; user keys any length, any bytes, in byte order."""
    store = Store(opener("lmdb", tmp_path), "reopened")
    stem = fill * (length - 1)
    family = sorted({stem, stem + b"\x00", stem + b"a", stem + b"b", stem[:-1] + b"a", stem[:230], stem[:-2]})
    family.append(b"\xff" * 65_536 if fill != b"\xff" else b"\xff" * length)
    family = sorted(set(family))
    for key in family:
        store.put(key, b"old")
    store.settle()
    old = store.machine.revision
    for key in family[::2]:
        store.put(key, b"new" + key[-1:])
    store.settle()
    store.put(family[1], b"recent")
    assert store.list() == family
    assert store.list(descending=True) == family[::-1]
    for position, key in enumerate(family):
        kv = store.get(key)
        assert kv is not None
        assert kv.key == key
        assert kv.value == (b"new" + key[-1:] if position % 2 == 0 else b"recent" if position == 1 else b"old")
        before = store.get(key, old)
        assert before is not None
        assert before.value == b"old"
        assert store.list(key) == family[position:]
        assert store.list(b"", key) == family[:position]
        assert store.list(b"", key, descending=True) == family[:position][::-1]
        assert store.list(key, revision=old) == family[position:]
        assert store.get(key + b"!") is None
    store.machine.backend.close()


def test_a_page_at_a_pinned_revision_is_not_disturbed_by_later_writes(store: Store) -> None:
    expected = [b"k%03d" % number for number in range(50)]
    for key in expected:
        store.put(key, b"old")
    store.settle()
    pinned = store.machine.revision
    listed, start = [], b""
    while True:
        reply = store.machine.range(Range(start, TO_THE_END, limit=7, revision=pinned))
        assert reply.revision == pinned
        listed += [(kv.key, kv.value) for kv in reply.items]
        store.apply(Delete(b"k%03d" % (len(listed) % 50)))
        store.put(b"k%03dx" % len(listed), b"new")
        store.put(expected[-1], b"new")
        store.settle()
        if not reply.more:
            break
        start = reply.items[-1].key + b"\x00"
    assert listed == [(key, b"old") for key in expected]


def test_pages_tell_whether_more_follows(store: Store) -> None:
    for number in range(6):
        store.put(b"k%d" % number)
    store.settle()
    machine = store.machine
    assert machine.range(Range(b"", TO_THE_END, limit=6)).more is False
    page = machine.range(Range(b"", TO_THE_END, limit=5))
    assert (page.more, page.count, len(page.items)) == (True, 5, 5)
    page = machine.range(Range(b"", TO_THE_END, limit=2, descending=True))
    assert [kv.key for kv in page.items] == [b"k5", b"k4"]
    assert page.more
    page = machine.range(Range(b"", TO_THE_END, limit=2, count_only=True))
    assert (page.items, page.count, page.more) == ((), 6, False)
    assert machine.range(Range(b"k3", b"k3")).count == 0
    assert machine.range(Range(b"k4", b"k2")).count == 0
    assert machine.range(Range(b"")).count == 0
    assert store.list(b"k", prefix_end(b"k")) == [b"k%d" % number for number in range(6)]


def test_keys_only_leaves_the_values_out(store: Store) -> None:
    store.put(b"a", b"value")
    store.settle()
    for request in (Range(b"a", keys_only=True), Range(b"", TO_THE_END, keys_only=True)):
        (kv,) = store.machine.range(request).items
        assert (kv.key, kv.value, kv.mod_revision, kv.version) == (b"a", b"", 2, 1)
    assert store.machine.range(Range(b"a", count_only=True)).items == ()


def test_a_page_is_bounded_by_items_and_bytes(tmp_path: Path) -> None:
    store = Store(
        opener("memory", tmp_path), page_items=3, page_items_max=5, page_bytes_max=64 << 10, value_bytes_max=1 << 20
    )
    for number in range(8):
        store.put(b"k%d" % number, bytes(20 << 10))
    store.put(b"z", bytes(200 << 10))
    assert len(store.list()) == 3, "page_items, unless asked otherwise"
    assert len(store.list(limit=100, keys_only=True)) == 5, "page_items_max, whatever is asked"
    assert len(store.list(limit=5)) == 3, "the fourth would exceed page_bytes_max"
    assert store.list(b"z") == [b"z"], "at least one item, however large"


def test_a_history_shows_deletions_and_every_life_of_a_key_newest_first(store: Store) -> None:
    store.put(b"k", b"1")
    store.settle()
    store.put(b"k", b"2")
    store.put(b"kk", b"another key")
    store.apply(Delete(b"k"))
    store.settle()
    store.put(b"k", b"3")
    found = [(kv.mod_revision, kv.create_revision, kv.version, kv.value) for kv in store.history(b"k")]
    assert found == [(6, 6, 1, b"3"), (5, 0, 0, b""), (3, 2, 2, b"2"), (2, 2, 1, b"1")]
    assert [kv.mod_revision for kv in store.history(b"k", 5)] == [5, 3, 2]
    assert store.history(b"k", 1) == store.history(b"missing") == []
    with pytest.raises(FutureRevision):
        store.history(b"k", 7)


def test_a_page_of_a_history_is_bounded_by_items_and_bytes(tmp_path: Path) -> None:
    store = Store(opener("memory", tmp_path), page_items=2, page_items_max=3, page_bytes_max=1_000)
    for _ in range(5):
        store.put(b"k", b"v")
    for _ in range(3):
        store.put(b"k", bytes(600))
    pace = Pace()
    pages = []
    before = 0
    while True:
        reply = in_one_go(store.machine.read(History(b"k", 10, before=before), pace), pace)
        pages.append([kv.mod_revision for kv in reply.items])
        before = pages[-1][-1]
        if not reply.more:
            break
    assert pages == [[9], [8], [7, 6, 5], [4, 3, 2]]


def test_reads_outside_the_history_are_refused(store: Store) -> None:
    store.put(b"k")
    store.settle()
    with pytest.raises(FutureRevision) as future:
        store.get(b"k", 3)
    assert future.value.detail == {"revision": 2}
    with pytest.raises(BadRequest):
        store.get(b"k", -1)
    store.apply(Compact(2))
    with pytest.raises(Compacted) as compacted:
        store.get(b"k", 1)
    assert compacted.value.detail == {"compact_revision": 2}
    assert store.get(b"k", 2) is not None
