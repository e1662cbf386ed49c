"""The limits of LMDB, each reached: a full map, a long reader, slots of dead readers, one environment too many.

Fault F27 of the reliability list, and the rule that the applied index is committed with the rows it speaks of.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kvnode.config import LimitsSection
from kvnode.errors import StorageFailed
from kvnode.ids import Index, Term
from kvnode.kv.requests import Put
from kvnode.machine.machine import StateMachine
from kvnode.storage.lmdb_backend import LmdbBackend
from tests.backend_suite import all_rows, commit

MIB = 1 << 20


def machine_on(backend: LmdbBackend, entries: int) -> StateMachine:
    machine = StateMachine(backend, LimitsSection())
    for index in range(machine.applied_index + 1, machine.applied_index + entries + 1):
        machine.apply(Index(index), index, Put(b"k%d" % index, bytes(3_000)))
    return machine


def flush(machine: StateMachine) -> None:
    cut = machine.cut(Term(1))
    assert cut is not None
    machine.backend.commit(cut)
    machine.evict(cut)


def test_a_commit_is_one_transaction(tmp_path: Path) -> None:
    """Rows, revisions and applied index together, or a crash between them would apply entries twice, or never."""
    backend = LmdbBackend(str(tmp_path), map_bytes=64 * MIB)
    for _ in range(3):
        machine = machine_on(backend, 40)
        before = backend._env.info()["last_txnid"]
        flush(machine)
        assert backend._env.info()["last_txnid"] == before + 1
    backend.close()


def test_f27_a_full_map_fails_whole_flushes_and_leaves_the_last_cut(tmp_path: Path) -> None:
    """Nothing of a commit that does not fit is there, it fails again, and the store reopens at the cut before."""
    backend = LmdbBackend(str(tmp_path), map_bytes=1 * MIB)
    machine = machine_on(backend, 40)
    flush(machine)
    kept = machine.hash_at()
    machine = machine_on(backend, 400)
    cut = machine.cut(Term(1))
    assert cut is not None
    rows = all_rows(backend)
    for _ in range(2):
        with pytest.raises(StorageFailed, match="MDB_MAP_FULL"):
            backend.commit(cut)
        assert all_rows(backend) == rows
    backend.close()
    backend = LmdbBackend(str(tmp_path), map_bytes=64 * MIB)
    reopened = StateMachine(backend, LimitsSection())
    assert (reopened.applied_index, reopened.hash_at()) == (40, kept)
    flush(machine_on(backend, 400))  # with a larger map all fits
    assert StateMachine(backend, LimitsSection()).applied_index == 440
    backend.close()


def rewrite(backend: LmdbBackend, times: int) -> int:
    """Replace the same rows again and again; bytes in use afterwards."""
    for number in range(times):
        commit(backend, *((b"row %02d" % row, bytes([number % 256]) * 2_000) for row in range(20)))
    return backend.bytes_used


def test_f27_pages_that_a_long_reader_pinned_are_used_again_after_it(tmp_path: Path) -> None:
    """An open view makes the file grow with every commit; without one it stays as large as it is."""
    backend = LmdbBackend(str(tmp_path), map_bytes=64 * MIB)
    settled = rewrite(backend, 30)
    assert rewrite(backend, 30) <= settled * 1.1
    with backend.read() as cursor:
        first = cursor.seek(b"row 00")
        pinned = rewrite(backend, 30)
        assert cursor.seek(b"row 00") == first, "the view is as old as it was"
    assert pinned > settled * 3
    assert rewrite(backend, 30) <= pinned * 1.1
    backend.close()


DEAD_READER = """
import os, signal, sys, lmdb
env = lmdb.open(sys.argv[1], map_size=1 << 26, lib_version=0, max_readers=512)
view = env.begin()
view.cursor().first()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_f27_slots_of_readers_that_were_killed_are_cleared_at_the_next_start(tmp_path: Path) -> None:
    """A tool that looks into the store of a running node and is killed leaves its slot, which pins pages for ever."""
    backend = LmdbBackend(str(tmp_path), map_bytes=64 * MIB)
    settled = rewrite(backend, 30)
    done = subprocess.run([sys.executable, "-c", DEAD_READER, str(tmp_path)], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert rewrite(backend, 30) > settled * 2, "its view is kept although nobody reads"
    backend.close()
    backend = LmdbBackend(str(tmp_path), map_bytes=64 * MIB)
    pinned = backend.bytes_used
    assert rewrite(backend, 30) <= pinned * 1.1
    assert len(backend._env.readers().splitlines()) <= 2, "a heading and this process at most"
    backend.close()


def test_f27_readers_are_bounded_and_one_too_many_is_an_error_of_the_store(tmp_path: Path) -> None:
    """Views are made and ended within one turn of the loop, so that one slot is all that is ever taken."""
    backend = LmdbBackend(str(tmp_path), map_bytes=64 * MIB)
    commit(backend, (b"a", b"1"))
    for _ in range(2_000):  # far more than there are slots
        with backend.read() as cursor:
            assert cursor.seek(b"a") == (b"a", b"1")
        assert backend.seek(b"a") == (b"a", b"1")
    assert backend._env.info()["num_readers"] <= 2
    backend.close()


def test_f27_the_environment_is_opened_once_a_process(tmp_path: Path) -> None:
    """A second environment on one file in a process would drop the first one's locks when it closes."""
    backend = LmdbBackend(str(tmp_path), map_bytes=64 * MIB)
    commit(backend, (b"a", b"1"))
    for path in (str(tmp_path), f"{tmp_path}/.", os.path.relpath(tmp_path)):
        with pytest.raises(StorageFailed, match="cannot open the store"):
            LmdbBackend(path, map_bytes=64 * MIB)
    commit(backend, (b"b", b"2"))
    assert len(all_rows(backend)) == 2
    backend.close()
    again = LmdbBackend(str(tmp_path), map_bytes=64 * MIB)
    assert len(all_rows(again)) == 2
    again.close()
