"""The LMDB backend: the shared contract, and what is LMDB's own."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest

from kvnode.errors import StorageFailed
from kvnode.storage.lmdb_backend import ENGINE, ENGINE_KEY, LmdbBackend
from tests.backend_suite import BackendSuite, all_rows, commit

MIB = 1 << 20


class TestLmdbBackend(BackendSuite):
    @pytest.fixture
    def backend(self, tmp_path: Path) -> Iterator[LmdbBackend]:
        backend = LmdbBackend(str(tmp_path / "store"), map_bytes=64 * MIB)
        yield backend
        backend.close()


def test_rows_are_there_after_a_reopen(tmp_path: Path) -> None:
    backend = LmdbBackend(str(tmp_path), map_bytes=64 * MIB)
    commit(backend, (b"a", b"1"))
    backend.close()
    backend = LmdbBackend(str(tmp_path), map_bytes=64 * MIB)
    assert all_rows(backend) == [(b"a", b"1")]
    backend.close()


def test_the_engine_stands_in_the_store_and_another_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path)
    LmdbBackend(path, map_bytes=64 * MIB).close()
    with lmdb.open(path, map_size=64 * MIB, lib_version=0) as env, env.begin(write=True) as write:
        assert write.get(ENGINE_KEY) == ENGINE
        write.put(ENGINE_KEY, b"lmdb-1.0 format-1")
    with pytest.raises(StorageFailed, match=r"lmdb-1\.0"):
        LmdbBackend(path, map_bytes=64 * MIB)


def test_a_foreign_lmdb_file_is_refused(tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path), map_size=64 * MIB, lib_version=0) as env, env.begin(write=True) as write:
        write.put(b"somebody", b"else's")
    with pytest.raises(StorageFailed, match="written by"):
        LmdbBackend(str(tmp_path), map_bytes=64 * MIB)


def test_a_file_that_is_not_lmdb_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.mdb").write_bytes(b"\x55" * 8192)
    with pytest.raises(StorageFailed, match="cannot open"):
        LmdbBackend(str(tmp_path), map_bytes=64 * MIB)


def test_the_environment_cannot_choose_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMDB_DEFAULT_LIB_VERSION", "1")
    LmdbBackend(str(tmp_path), map_bytes=64 * MIB).close()
    with lmdb.open(str(tmp_path), map_size=64 * MIB, lib_version=0) as env:
        assert env.max_key_size() == 511


def test_a_full_map_fails_the_commit_as_a_whole(tmp_path: Path) -> None:
    backend = LmdbBackend(str(tmp_path), map_bytes=1 * MIB)
    commit(backend, (b"a", b"1"))
    with pytest.raises(StorageFailed, match="MDB_MAP_FULL"):
        commit(backend, (b"b", b"2"), (b"c", bytes(2 * MIB)))
    assert all_rows(backend) == [(b"a", b"1")]
    backend.close()


def test_a_commit_does_not_wait_for_a_reader(tmp_path: Path) -> None:
    backend = LmdbBackend(str(tmp_path), map_bytes=64 * MIB)
    commit(backend, (b"a", b"1"))
    committing = threading.Thread(target=commit, args=(backend, (b"b", b"2")))
    with backend.read() as cursor:
        committing.start()
        committing.join(30)
        assert not committing.is_alive()
        assert cursor.seek(b"b") is None, "the view is as old as it was"
    assert backend.seek(b"b") == (b"b", b"2")
    backend.close()


def test_the_same_store_is_not_opened_twice(tmp_path: Path) -> None:
    backend = LmdbBackend(str(tmp_path), map_bytes=64 * MIB)
    with pytest.raises(StorageFailed):
        LmdbBackend(str(tmp_path), map_bytes=64 * MIB)
    backend.close()


def test_only_the_owner_may_read_the_files(tmp_path: Path) -> None:
    path = tmp_path / "store"
    LmdbBackend(str(path), map_bytes=64 * MIB).close()
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(path / "data.mdb").st_mode) == 0o600


def test_appended_rows_fill_their_pages(tmp_path: Path) -> None:
    """Revisions only grow; appended they leave no half-empty pages behind."""
    backend = LmdbBackend(str(tmp_path), map_bytes=64 * MIB)
    value = bytes(100)
    for batch in range(20):
        commit(backend, *((b"\xf0" + (batch * 1000 + i).to_bytes(8, "big"), value) for i in range(1000)))
    assert len(all_rows(backend)) == 20_000
    payload = 20_000 * (9 + 100 + 10)
    assert backend.bytes_used < payload * 1.2
    backend.close()
