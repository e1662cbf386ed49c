"""kill -9 at any moment of a flush: the store reopens at an exact cut, and the log brings back the rest."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from kvnode.config import LimitsSection
from kvnode.ids import Index, Term
from kvnode.kv.keys import TO_THE_END
from kvnode.kv.requests import Range, RangeReply, WriteRequest
from kvnode.machine.machine import Cut, StateMachine
from kvnode.storage.lmdb_backend import LmdbBackend
from kvnode.storage.memory_backend import MemoryBackend
from tests.machine.test_digest import workload

MAP_BYTES = 256 << 20
REQUESTS = 6_000
EVERYTHING = Range(b"", TO_THE_END)


def apply_from(machine: StateMachine, requests: list[WriteRequest], last: int) -> None:
    while machine.applied_index < last:
        index = Index(machine.applied_index + 1)
        machine.apply(index, index, requests[index - 1])


def flush_without_end(path: str) -> None:
    """The process that is killed: applies, flushes whenever the previous flush is done, and tells of each."""
    backend = LmdbBackend(path, map_bytes=MAP_BYTES)
    machine = StateMachine(backend, LimitsSection())
    flusher = ThreadPoolExecutor(max_workers=1, thread_name_prefix="flush")
    outstanding: tuple[Cut, Future[None]] | None = None
    requests = workload(3, REQUESTS)
    for index in range(machine.applied_index + 1, REQUESTS + 1):
        apply_from(machine, requests, index)
        # Wait for the commit at times, lest the loop outrun the disk; a failed one raises here and ends the process.
        if outstanding is not None and (outstanding[1].done() or index % 200 == 0):
            cut, commit = outstanding
            commit.result()
            machine.evict(cut)
            outstanding = None
            print("flushed", flush=True)
        if outstanding is None and (found := machine.cut(Term(1))) is not None:
            outstanding = found, flusher.submit(backend.commit, found)


@pytest.mark.slow
@pytest.mark.system
def test_the_store_reopens_at_an_exact_cut(tmp_path: Path) -> None:
    requests = workload(3, REQUESTS)
    reached = []
    for flushes, pause_ms in ((1, 0), (2, 3), (3, 7)):
        with subprocess.Popen(
            [sys.executable, "-m", "tests.storage.test_store_crash", str(tmp_path)],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        ) as process:
            assert process.stdout is not None
            for _ in range(flushes):
                process.stdout.readline()
            time.sleep(pause_ms / 1e3)
            process.kill()
        backend = LmdbBackend(str(tmp_path), map_bytes=MAP_BYTES)
        reopened = StateMachine(backend, LimitsSection())
        reference = StateMachine(MemoryBackend(), LimitsSection())
        apply_from(reference, requests, reopened.applied_index)
        assert summary(reopened) == summary(reference)
        reached.append(reopened.applied_index)
        apply_from(reopened, requests, REQUESTS)
        apply_from(reference, requests, REQUESTS)
        assert summary(reopened) == summary(reference)
        backend.close()
    assert 0 < reached[0] <= reached[1] <= reached[2], reached


def summary(machine: StateMachine) -> tuple[str, int, int, RangeReply]:
    return machine.hash_at(), machine.revision, machine.logical_bytes, machine.range(EVERYTHING)


if __name__ == "__main__":
    flush_without_end(sys.argv[1])
