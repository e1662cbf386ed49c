"""What puts, deletes and cuts do to the store, its revisions and its answers."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from kvnode.config import LimitsSection
from kvnode.errors import StorageFailed
from kvnode.ids import Index, Revision, Term
from kvnode.kv.events import Event
from kvnode.kv.keys import TO_THE_END
from kvnode.kv.requests import (
    ANY_REVISION,
    MUST_EXIST,
    ConfigurationReply,
    Delete,
    DeleteReply,
    KeyValue,
    Put,
    PutReply,
    Refusal,
)
from kvnode.machine import keycode
from kvnode.machine.machine import MANY_CHANGES, StateMachine
from kvnode.machine.operations import check_revision
from kvnode.machine.rows import Meta, decode_meta, decode_revision
from kvnode.storage.memory_backend import MemoryBackend
from tests.backend_suite import all_rows, commit
from tests.machine.harness import Store, opener


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(opener("memory", tmp_path))


def test_an_empty_store_is_at_revision_one(store: Store) -> None:
    machine = store.machine
    assert (machine.applied_index, machine.revision, machine.compact_revision) == (0, 1, 0)
    assert machine.logical_bytes == machine.recent_bytes == machine.recent_versions == 0
    assert machine.cut(Term(1)) is None


def test_a_put_makes_a_key_and_a_revision(store: Store) -> None:
    applied = store.apply(Put(b"k", b"v"), time=7)
    kv = KeyValue(b"k", b"v", create_revision=2, mod_revision=2, version=1, lease=0, time=7)
    assert applied.result == PutReply(2, created=True, create_revision=2, version=1, time=7)
    assert applied.events == (Event(kv, None),)
    assert store.get(b"k") == kv
    assert store.machine.revision == 2


def test_a_put_of_the_same_value_is_a_change(store: Store) -> None:
    store.put(b"k")
    applied = store.apply(Put(b"k", b"v", return_previous=True))
    assert isinstance(applied.result, PutReply)
    assert (applied.result.revision, applied.result.created, applied.result.version) == (3, False, 2)
    assert applied.result.previous is not None
    assert applied.result.previous.mod_revision == 2
    assert applied.events[0].previous == applied.result.previous


def test_deleting_nothing_changes_nothing(store: Store) -> None:
    store.put(b"k")
    for request in (Delete(b"absent"), Delete(b"x", b"z"), Delete(b"z", b"x"), Delete(b"")):
        applied = store.apply(request)
        assert applied.result == DeleteReply(2, 0)
        assert applied.events == ()
    assert store.machine.revision == 2
    assert store.machine.applied_index == 5


def test_version_restarts_after_a_delete(store: Store) -> None:
    store.put(b"k")
    store.put(b"k")
    applied = store.apply(Delete(b"k", return_previous=True), time=99)
    assert isinstance(applied.result, DeleteReply)
    assert (applied.result.revision, applied.result.deleted) == (4, 1)
    assert [kv.version for kv in applied.result.previous] == [2]
    (event,) = applied.events
    assert event.kv == KeyValue(b"k", b"", create_revision=0, mod_revision=4, version=0, lease=0, time=99)
    assert event.previous == applied.result.previous[0]
    assert store.apply(Put(b"k", b"v"), time=100).result == PutReply(5, True, 5, 1, 100)
    kv = store.get(b"k")
    assert kv is not None
    assert (kv.create_revision, kv.version) == (5, 1)


def test_a_range_delete_is_one_revision(store: Store) -> None:
    for key in (b"a", b"b", b"c", b"d"):
        store.put(key)
    applied = store.apply(Delete(b"b", b"d", return_previous=True))
    assert isinstance(applied.result, DeleteReply)
    assert (applied.result.revision, applied.result.deleted) == (6, 2)
    assert [kv.key for kv in applied.result.previous] == [b"b", b"c"]
    assert [(event.kv.key, event.kv.mod_revision, event.kv.version) for event in applied.events] == [
        (b"b", 6, 0),
        (b"c", 6, 0),
    ]
    assert store.list() == [b"a", b"d"]
    assert store.list(revision=5) == [b"a", b"b", b"c", b"d"]


def test_changes_are_counted_by_kind(store: Store) -> None:
    many = MANY_CHANGES + 1  # such an entry is finished in slices
    for number in range(many):
        store.put(b"k%04d" % number)
    store.apply(Delete(b"absent"))
    store.apply(Put(b"k0000", b"v", if_revision=1))  # refused
    assert (store.machine.puts, store.machine.deletes) == (many, 0)
    store.apply(Delete(b"k0000"))
    store.apply(Delete(b"k", b"l"))
    assert (store.machine.puts, store.machine.deletes) == (many, many)


def test_a_range_delete_over_the_limit_does_nothing(tmp_path: Path) -> None:
    store = Store(opener("memory", tmp_path), delete_keys_max=3)
    for number in range(4):
        store.put(b"k%d" % number)
    applied = store.apply(Delete(b"", TO_THE_END))
    assert isinstance(applied.result, Refusal)
    assert (applied.result.code, applied.result.revision, applied.events) == ("too_large", 5, ())
    assert len(store.list()) == 4
    assert store.apply(Delete(b"k1", TO_THE_END)).result == DeleteReply(6, 3)


def test_previous_values_of_a_range_delete_are_bounded(tmp_path: Path) -> None:
    store = Store(opener("memory", tmp_path), page_bytes_max=64 << 10)
    for number in range(4):
        store.put(b"k%d" % number, bytes(30 << 10))
    refused = store.apply(Delete(b"", TO_THE_END, return_previous=True))
    assert isinstance(refused.result, Refusal)
    assert refused.result.code == "too_large"
    applied = store.apply(Delete(b"", TO_THE_END))
    assert isinstance(applied.result, DeleteReply)
    assert applied.result.deleted == 4
    assert [event.previous is not None for event in applied.events] == [True, True, False, False]


@pytest.mark.parametrize(
    ("condition", "absent", "present", "deleted"),
    [
        (ANY_REVISION, True, True, True),
        (0, True, False, True),
        (2, False, True, False),
        (1, False, False, False),
        (3, False, False, False),
        (MUST_EXIST, False, True, False),
    ],
)
def test_conditions(tmp_path: Path, condition: int, absent: bool, present: bool, deleted: bool) -> None:
    for holds, prepare in ((absent, 0), (present, 1), (deleted, 2)):
        for request in (Put(b"k", b"new", if_revision=condition), Delete(b"k", if_revision=condition)):
            store = Store(opener("memory", tmp_path))
            if prepare >= 1:
                store.put(b"k")
            if prepare == 2:
                store.apply(Delete(b"k"))
            revision, before = store.machine.revision, store.get(b"k")
            result = store.apply(request).result
            if holds:
                assert not isinstance(result, Refusal)
                continue
            assert isinstance(result, Refusal)
            assert (result.code, result.revision) == ("compare_failed", revision)
            assert result.found == (before.mod_revision if before else 0)
            assert store.get(b"k") == before
            assert store.machine.revision == revision


def test_what_cannot_be_done_is_an_answer_not_an_exception(store: Store) -> None:
    refused = [
        (Put(b"", b"v"), "bad_key"),
        (Put(bytes(65_537), b"v"), "bad_key"),
        (Put(b"k", b"v", lease=5), "lease_not_found"),
        (Put(b"k", b"v", if_revision=-9), "bad_request"),
        (Delete(b"a", b"b", if_revision=1), "bad_request"),
    ]
    for request, code in refused:
        applied = store.apply(request)
        assert isinstance(applied.result, Refusal), request
        assert applied.result.code == code
        assert applied.events == ()
    assert store.machine.revision == 1
    assert store.machine.applied_index == len(refused)


def test_entries_are_applied_once_and_in_order(store: Store) -> None:
    machine = store.machine
    machine.skip(Index(1), 10)
    assert (machine.applied_index, machine.applied_time, machine.revision) == (1, 10, 1)
    for index in (0, 1, 3):
        with pytest.raises(AssertionError):
            machine.apply(Index(index), 11, Put(b"k", b"v"))
    with pytest.raises(AssertionError):
        machine.skip(Index(2), 9)


def test_a_configuration_is_kept_as_it_was_logged(tmp_path: Path) -> None:
    """Of two that differ the digests differ, and a cut takes the newest with it."""
    store, other = (Store(opener("memory", tmp_path), "flushed") for _ in range(2))
    machine = store.machine
    assert (machine.configuration, machine.configuration_index) == (b"", 0)
    store.put(b"k")
    applied = machine.configure(Index(2), 20, b"one")
    assert applied.result == ConfigurationReply(revision=2, index=2, configuration=b"one")
    assert applied.events == ()
    machine.configure(Index(3), 30, b"two")
    other.put(b"k")
    for index, payload in ((2, b"one"), (3, b"2")):
        other.machine.configure(Index(index), index * 10, payload)
    assert machine.digest != other.machine.digest
    assert (machine.revision, machine.applied_index, machine.applied_time) == (2, 3, 30)
    store.settle()
    assert (store.machine.configuration, store.machine.configuration_index) == (b"two", 3)
    store.reopen()
    assert (store.machine.configuration, store.machine.configuration_index) == (b"two", 3)
    with pytest.raises(AssertionError):
        store.machine.configure(Index(3), 30, b"again")


def test_a_cut_names_the_term_of_its_last_entry(tmp_path: Path) -> None:
    store = Store(opener("memory", tmp_path))
    store.put(b"k")
    cut = store.machine.cut(Term(7))
    assert cut is not None
    assert (cut.meta.applied_index, cut.meta.applied_term) == (1, 7)
    store.machine.backend.commit(cut)
    store.machine.evict(cut)
    store.reopen()
    assert store.machine.cut_term == 7
    store.put(b"k")
    with pytest.raises(AssertionError):
        store.machine.cut(Term(6))


def test_logical_bytes_count_all_history(store: Store) -> None:
    store.put(b"key", b"value")
    store.put(b"key", b"value")
    store.apply(Delete(b"key"))
    assert store.machine.logical_bytes == 3 * (3 + 64) + 2 * 5


# ── cuts ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_cut_is_exact_and_a_restart_begins_there(tmp_path: Path) -> None:
    store = Store(opener("lmdb", tmp_path))
    store.put(b"a")
    store.put(b"b")
    cut = store.machine.cut(Term(1))
    assert cut is not None
    assert cut.applied_index == 2
    digest, logical_bytes = store.machine.digest, store.machine.logical_bytes
    store.put(b"c")
    assert store.machine.cut(Term(1)) is None, "one cut at a time"
    store.machine.backend.commit(cut)
    store.machine.evict(cut)
    assert store.list() == [b"a", b"b", b"c"]
    store.reopen()
    machine = store.machine
    assert (machine.applied_index, machine.applied_time, machine.revision) == (2, 20, 3)
    assert (machine.digest, machine.logical_bytes) == (digest, logical_bytes)
    assert store.list() == [b"a", b"b"], "what came after the cut is the log's to bring back"
    machine.backend.close()


def test_recent_counts_fall_with_the_eviction(store: Store) -> None:
    store.put(b"a", b"12345")
    assert store.machine.recent_versions == 1
    assert store.machine.recent_bytes > 6
    cut = store.machine.cut(Term(1))
    assert cut is not None
    store.put(b"b")
    assert store.machine.recent_versions == 2
    store.machine.backend.commit(cut)
    store.machine.evict(cut)
    assert store.machine.recent_versions == 1


def test_entries_without_changes_are_worth_a_cut_too(store: Store) -> None:
    """Otherwise the log could not be shortened past them."""
    store.machine.skip(Index(1), 5)
    cut = store.machine.cut(Term(1))
    assert cut is not None
    store.machine.backend.commit(cut)
    store.machine.evict(cut)
    assert store.machine.cut(Term(1)) is None
    store.reopen()
    assert (store.machine.applied_index, store.machine.applied_time) == (1, 5)


def test_a_power_loss_during_the_commit_leaves_the_previous_cut() -> None:
    backend = MemoryBackend()
    store = Store(lambda: backend, "flushed")
    store.put(b"a")
    store.settle()
    digest = store.machine.digest
    store.put(b"a", b"2")
    store.put(b"b")
    cut = store.machine.cut(Term(1))
    assert cut is not None
    backend.stage(cut)
    backend.lose_power()
    store.reopen()
    assert (store.machine.applied_index, store.machine.digest) == (1, digest)
    assert store.list() == [b"a"]
    replayed = [store.apply(Put(b"a", b"2")), store.apply(Put(b"b", b"v"))]
    assert [applied.result.revision for applied in replayed] == [3, 4]
    assert store.machine.digest == cut.meta.digest


def test_revisions_tree_lists_changes_in_order(tmp_path: Path) -> None:
    """Watches, history by time and compaction will walk it."""
    store = Store(opener("memory", tmp_path), "flushed")
    store.put(b"b")
    store.put(b"a")
    store.settle()
    store.apply(Delete(b"", TO_THE_END))
    store.settle()
    rows = [decode_revision(row) for row in all_rows(store.machine.backend, keycode.REVISIONS)]
    assert [(revision, number, row.time, row.kind, row.key) for revision, number, row in rows] == [
        (2, 0, 10, 1, b"b"),
        (3, 0, 20, 1, b"a"),
        (4, 0, 30, 2, b"a"),
        (4, 1, 30, 2, b"b"),
    ]


def test_a_store_of_another_format_is_refused() -> None:
    backend = MemoryBackend()
    commit(backend, (keycode.META_KEY, msgspec.msgpack.encode(Meta(format=1))))
    with pytest.raises(StorageFailed, match="format 1; this program reads format 2 and converts no other"):
        StateMachine(backend, LimitsSection())
    with pytest.raises(StorageFailed, match="damaged"):
        decode_meta(b"\xc1")


def test_a_failed_condition_says_what_is_there() -> None:
    before = KeyValue(b"k", b"v", create_revision=3, mod_revision=7, version=2, lease=0, time=0)
    said = {
        (wanted, kv is None): refusal.message
        for wanted in (0, 5, MUST_EXIST)
        for kv in (before, None)
        if (refusal := check_revision(wanted, kv, Revision(9))) is not None
    }
    assert said == {
        (0, False): "the key exists, at revision 7",
        (5, False): "the key is at revision 7, not 5",
        (5, True): "the key does not exist, so it is not at revision 5",
        (MUST_EXIST, True): "the key does not exist",
    }
