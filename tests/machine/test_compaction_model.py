"""Every key at every revision, against a plain model: under compaction, sweeps, flushes at any moment and crashes.

A Hypothesis state machine. Beside the store under test, which is cut, committed, evicted, closed and opened again as
the rules say, a twin applies the same entries and never flushes: what apply does must not depend on flushes (I21).
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from kvnode.config import LimitsSection
from kvnode.errors import Compacted
from kvnode.ids import Index, Term
from kvnode.kv.keys import TO_THE_END
from kvnode.kv.requests import Compact, Delete, History, Put, Range, Refusal, Sweep, Txn, WriteRequest
from kvnode.machine.machine import Cut, StateMachine
from kvnode.machine.pace import Pace, in_one_go
from kvnode.machine.rows import decode_revision, decode_version
from kvnode.storage.memory_backend import MemoryBackend
from tests.machine.harness import BACKENDS, Model, opener

LONG = b"l" * 600
KEYS = [b"a", b"b", b"b\x00", b"bb", LONG + b"1", LONG + b"2"]

a_key = st.sampled_from(KEYS)
a_value = st.binary(max_size=3)


class StoreUnderCompaction(RuleBasedStateMachine):
    backend: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.open_backend = opener(self.backend, self.directory)
        self.store = self.opened()
        self.twin = StateMachine(MemoryBackend(), LimitsSection())
        self.model = Model()
        self.log: list[WriteRequest] = []
        self.cut: Cut | None = None

    def opened(self) -> StateMachine:
        return StateMachine(self.open_backend(), LimitsSection(), slice_steps=3)

    # ── entries ─────────────────────────────────────────────────────────────────────────────────────

    @rule(key=a_key, value=a_value)
    def put(self, key: bytes, value: bytes) -> None:
        self.apply(Put(key, value))

    @rule(key=a_key)
    def delete(self, key: bytes) -> None:
        self.apply(Delete(key))

    @rule(bounds=st.lists(a_key, min_size=2, max_size=2, unique=True).map(sorted))
    def delete_range(self, bounds: list[bytes]) -> None:
        self.apply(Delete(*bounds))

    @rule(gone=a_key, key=a_key, value=a_value)
    def transact(self, gone: bytes, key: bytes, value: bytes) -> None:
        self.apply(Txn((), (Delete(gone), Put(key, value), Range(gone))))

    @rule(below=st.integers(0, 6))
    def compact(self, below: int) -> None:
        self.apply(Compact(max(1, self.model.revision - below)))

    @rule(ahead=st.integers(0, 9), changes=st.integers(1, 5))
    def sweep(self, ahead: int, changes: int) -> None:
        self.apply(Sweep(self.model.swept_revision + ahead, changes))

    @rule()
    def sweep_all(self) -> None:
        self.apply(Sweep(self.model.compact_revision, 1_000))

    def apply(self, request: WriteRequest) -> None:
        index = Index(len(self.log) + 1)
        self.log.append(request)
        applied = self.store.begin(index, index * 10, request)
        while applied is None:
            if len(self.log) % 2 and self.cut is not None:
                self.finish_flush()  # in the midst of it
            applied = self.store.resume()
        self.twin.apply(index, index * 10, request)
        if not isinstance(applied.result, Refusal):
            self.model.apply(request, index * 10)

    # ── flushes, crashes ────────────────────────────────────────────────────────────────────────────

    @rule()
    def begin_flush(self) -> None:
        if self.cut is None:
            self.cut = self.store.cut(Term(1))

    @precondition(lambda self: self.cut is not None)
    @rule()
    def finish_flush(self) -> None:
        assert self.cut is not None
        self.store.backend.commit(self.cut)
        self.store.evict(self.cut)
        self.cut = None

    @rule()
    def restart(self) -> None:
        self.store.backend.close()
        self.reopen()

    @precondition(lambda self: self.cut is not None and self.backend == "memory")
    @rule(torn=st.booleans())
    def crash_in_a_commit(self, torn: bool) -> None:
        """Power goes after everything is written and before it is synced, or before anything is."""
        backend = self.store.backend
        assert isinstance(backend, MemoryBackend)
        assert self.cut is not None
        if torn:
            backend.stage(self.cut)
        backend.lose_power()
        self.reopen()

    def reopen(self) -> None:
        """A process of its own: the newest commit, and the log after it."""
        before = (self.store.revision, self.store.compact_revision, self.store.swept_revision)
        self.cut = None
        self.store = store = self.opened()
        assert store.applied_index <= len(self.log)
        assert store.revision <= before[0]
        for request in self.log[store.applied_index :]:
            index = Index(store.applied_index + 1)
            store.apply(index, index * 10, request)
        assert (store.revision, store.compact_revision, store.swept_revision) == before, "nothing goes back"

    # ── what must hold ──────────────────────────────────────────────────────────────────────────────

    @invariant()
    def nothing_depends_on_flushes(self) -> None:
        assert facts(self.store) == facts(self.twin)
        assert self.store.hash_at() == self.twin.hash_at()
        model = self.model
        assert facts(self.store) == (
            model.revision,
            model.compact_revision,
            model.swept_revision,
            model.logical_bytes,
            model.live_bytes,
        )

    @invariant()
    def what_can_be_read_is_what_was_written(self) -> None:
        store, model = self.store, self.model
        for revision in range(max(1, model.compact_revision), model.revision + 1):
            for key in KEYS:
                reply = store.range(Range(key, revision=revision))
                assert (reply.items[0] if reply.items else None) == model.at(key, revision), (key, revision)
            assert list(store.range(Range(b"", TO_THE_END, revision=revision)).items) == model.range(
                b"", TO_THE_END, revision
            )
        backwards = store.range(Range(b"", TO_THE_END, descending=True)).items
        assert list(backwards)[::-1] == model.range(b"", TO_THE_END, model.revision)
        for key in KEYS:
            reply = in_one_go(store.read(History(key), pace := Pace()), pace)
            assert list(reply.items) == model.history(key, model.revision), key
        for time in range(0, store.applied_time + 20, 10):
            found, made = store.revision_at(time), model.revision_at(time)
            assert found == made if made >= model.compact_revision else 0 < found < model.compact_revision, time

    @invariant()
    def what_was_given_up_is_refused(self) -> None:
        for revision in range(1, self.model.compact_revision):
            for request in (Range(KEYS[0], revision=revision), History(KEYS[0], revision=revision)):
                with pytest.raises(Compacted) as refused:
                    in_one_go(self.store.read(request, pace := Pace()), pace)
                assert refused.value.detail == {"compact_revision": self.model.compact_revision}

    def teardown(self) -> None:
        try:
            self.check_what_is_stored()
        finally:
            self.store.backend.close()
            shutil.rmtree(self.directory)

    def check_what_is_stored(self) -> None:
        """Flushed, the store holds the rows of what is kept, and no other."""
        while self.cut is not None or not self.store.is_flushed:
            self.begin_flush()
            self.finish_flush()
        kept = sorted((kv.mod_revision, kv.key) for kv in self.model.kept())
        stored = []
        revisions = []
        with self.store.backend.read() as cursor:
            row: Any = cursor.seek(b"\x02")
            while row is not None:
                stored.append(row) if row[0] < b"\x20" else revisions.append(row)
                row = cursor.next()
        assert sorted((kv.mod_revision, kv.key) for kv in map(decode_version, stored)) == kept
        assert sorted({decode_revision(row)[0] for row in revisions}) == [
            *range(max(2, self.model.swept_revision), self.model.revision + 1)
        ]


def facts(store: StateMachine) -> tuple[int, ...]:
    return (store.revision, store.compact_revision, store.swept_revision, store.logical_bytes, store.live_bytes)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_store_under_compaction_is_the_model(backend: str) -> None:
    class Chosen(StoreUnderCompaction):
        pass

    Chosen.backend = backend
    some = settings(
        max_examples=60 if backend == "memory" else 15,
        stateful_step_count=40,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Chosen, settings=some)  # type: ignore[no-untyped-call]
