"""The flusher commits cuts in order, in its own thread, and reports what it cannot commit."""

from __future__ import annotations

import queue
import random
import threading
from pathlib import Path

from kvnode.config import LimitsSection
from kvnode.errors import StorageFailed
from kvnode.ids import Index
from kvnode.kv.keys import TO_THE_END
from kvnode.kv.requests import Delete, Put, Range
from kvnode.machine.backend import Batch
from kvnode.machine.machine import Cut, StateMachine
from kvnode.storage.flusher import Flusher
from kvnode.storage.lmdb_backend import LmdbBackend
from kvnode.storage.memory_backend import MemoryBackend

TIMEOUT_S = 30


def unexpected(error: BaseException) -> None:
    raise AssertionError(error)


def test_cuts_are_committed_in_another_thread(tmp_path: Path) -> None:
    backend = LmdbBackend(str(tmp_path), map_bytes=64 << 20)
    machine = StateMachine(backend, LimitsSection())
    done: list[tuple[Cut, str]] = []
    arrived = threading.Semaphore(0)

    def on_done(cut: Cut) -> None:
        done.append((cut, threading.current_thread().name))
        arrived.release()

    flusher = Flusher(backend, on_done=on_done, on_failed=unexpected)
    for index in range(1, 4):
        machine.apply(Index(index), index, Put(b"k%d" % index, b"v"))
        cut = machine.cut()
        assert cut is not None
        flusher.submit(cut)
        assert machine.range(Range(b"k%d" % index)).count == 1, "readable while it is being flushed"
        assert arrived.acquire(timeout=TIMEOUT_S)
        machine.evict(cut)
    flusher.close(wait=True)
    assert [cut.applied_index for cut, _ in done] == [1, 2, 3]
    assert {name for _, name in done} == {"kvnode-flush"}
    assert StateMachine(backend, LimitsSection()).applied_index == 3
    backend.close()


def test_reads_agree_while_flushes_run(tmp_path: Path) -> None:
    """Cuts are made, committed and evicted under a stream of writes; no read may ever notice."""
    chance = random.Random(7)
    backend = LmdbBackend(str(tmp_path), map_bytes=64 << 20)
    machine = StateMachine(backend, LimitsSection())
    done: queue.SimpleQueue[Cut] = queue.SimpleQueue()
    flusher = Flusher(backend, on_done=done.put, on_failed=unexpected)
    expected: dict[bytes, bytes] = {}
    flushes = 0
    for index in range(1, 4_001):
        key = b"k%02d" % chance.randrange(80)
        if chance.random() < 0.2:
            machine.apply(Index(index), index, Delete(key))
            expected.pop(key, None)
        else:
            expected[key] = b"%d" % index
            machine.apply(Index(index), index, Put(key, expected[key]))
        cut = machine.cut()
        if cut is not None:
            flusher.submit(cut)
        if not done.empty() or index % 200 == 0:  # wait at times, lest the loop outrun the disk altogether
            machine.evict(done.get(timeout=TIMEOUT_S))
            flushes += 1
        probe = b"k%02d" % chance.randrange(80)
        assert [kv.value for kv in machine.range(Range(probe)).items] == (
            [expected[probe]] if probe in expected else []
        )
        if index % 50 == 0:
            items = machine.range(Range(b"", TO_THE_END)).items
            assert [(kv.key, kv.value) for kv in items] == sorted(expected.items())
    flusher.close(wait=True)
    assert flushes >= 20
    backend.close()


def test_close_commits_what_was_submitted() -> None:
    backend = MemoryBackend()
    machine = StateMachine(backend, LimitsSection())
    flusher = Flusher(backend, on_done=lambda cut: None, on_failed=unexpected)
    machine.apply(Index(1), 1, Put(b"k", b"v"))
    cut = machine.cut()
    assert cut is not None
    flusher.submit(cut)
    flusher.close(wait=True)
    flusher.close(wait=True)
    assert StateMachine(backend, LimitsSection()).applied_index == 1


def test_a_failed_commit_is_reported_and_ends_the_thread() -> None:
    class Broken(MemoryBackend):
        def commit(self, batch: Batch) -> None:
            raise StorageFailed("the disk is gone")

    failures: list[BaseException] = []
    done: list[Cut] = []
    backend = Broken()
    machine = StateMachine(backend, LimitsSection())
    flusher = Flusher(backend, on_done=done.append, on_failed=failures.append)
    for index in (1, 2):
        machine.apply(Index(index), index, Put(b"k", b"v"))
    cut = machine.cut()
    assert cut is not None
    flusher.submit(cut)
    flusher.close(wait=True)
    assert [str(error) for error in failures] == ["the disk is gone"]
    assert done == []


def test_a_full_map_is_reported(tmp_path: Path) -> None:
    backend = LmdbBackend(str(tmp_path), map_bytes=1 << 20)
    machine = StateMachine(backend, LimitsSection())
    failures: list[BaseException] = []
    flusher = Flusher(backend, on_done=lambda cut: None, on_failed=failures.append)
    machine.apply(Index(1), 1, Put(b"k", bytes(2 << 20)))
    cut = machine.cut()
    assert cut is not None
    flusher.submit(cut)
    flusher.close(wait=True)
    assert len(failures) == 1
    assert isinstance(failures[0], StorageFailed)
    assert machine.range(Range(b"k")).count == 1, "still readable from memory"
    assert StateMachine(backend, LimitsSection()).applied_index == 0, "nothing of it reached the store"
    backend.close()
