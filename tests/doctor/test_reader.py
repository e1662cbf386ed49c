"""The process that reads for the doctor: what it says of damaged stores, and what becomes of one that dies or hangs."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from kvnode.config import LimitsSection
from kvnode.doctor.aside import carry_out_aside
from kvnode.doctor.directory_facts import LogFacts, StoreFacts, Unread
from kvnode.doctor.reader import ReadLog, ReadStore, read_store
from kvnode.ids import Index, Term
from kvnode.kv.requests import Compact, Sweep
from kvnode.machine import keycode
from kvnode.machine.machine import StateMachine
from kvnode.machine.rows import Meta
from kvnode.storage.lmdb_backend import ENGINE_KEY
from tests.doctor.homes import ENVIRONMENT, fill_store, make_home, open_store
from tests.machine.test_digest import workload


class Rows:
    """A batch of given rows."""

    def __init__(self, *rows: tuple[bytes, bytes], gone: tuple[bytes, ...] = ()) -> None:
        self._rows, self._gone = rows, gone

    def rows(self) -> list[tuple[bytes, bytes]]:
        return sorted(self._rows)

    def removed(self) -> tuple[bytes, ...]:
        return self._gone


def read(directory: Path) -> StoreFacts | Unread:
    return carry_out_aside(ReadStore(str(directory)), StoreFacts, seconds=60, on_sign=lambda _: None)


def spoil(directory: Path, batch: Rows) -> tuple[str, ...]:
    """What is said of a store into which somebody has written `batch`."""
    backend = open_store(directory)
    backend.commit(batch)
    backend.close()
    return read_store(str(directory), lambda _: None).problems


@pytest.mark.slow
def test_the_sum_of_versions_is_that_of_the_machine_at_every_cut(tmp_path: Path) -> None:
    """Over what a store may do: puts, deletions, transactions, history given up and swept in slices."""
    backend = open_store(tmp_path)
    machine = StateMachine(backend, LimitsSection())
    cuts = 0
    for at, request in enumerate(workload(5, 600), 1):
        if at % 50 == 0:
            request = Compact(machine.revision - 10)  # noqa: PLW2901
        elif at % 7 == 0 and machine.swept_revision < machine.compact_revision:
            request = Sweep(machine.compact_revision, 5)  # noqa: PLW2901
        machine.apply(Index(at), at, request)
        if at % 120 == 0 and (cut := machine.cut(Term(1))) is not None:
            backend.commit(cut)
            machine.evict(cut)
            cuts += 1
            found = read(tmp_path)
            assert isinstance(found, StoreFacts)
            assert found.problems == ()
            assert found.applied_index == at
            assert found.revision == machine.revision
    backend.close()
    assert machine.swept_revision > 100
    assert cuts == 5


def test_rows_that_do_not_add_up_are_told(tmp_path: Path) -> None:
    fill_store(tmp_path, 30)
    version = keycode.version_row_key(b"new", 999)
    assert "cannot be decoded" in spoil(tmp_path, Rows((version, b"\xc1")))[0]
    assert spoil(tmp_path, Rows(gone=(version,))) == ()
    stray = keycode.version_row_key(b"key 1", 2)
    assert "its versions have" in spoil(tmp_path, Rows(gone=(stray,)))[0]


def test_another_engine_is_told(tmp_path: Path) -> None:
    fill_store(tmp_path, 3)
    assert "it was written by 'lmdb-2.0'" in spoil(tmp_path, Rows((ENGINE_KEY, b"lmdb-2.0")))[0]


def test_a_meta_row_of_another_format_cannot_be_read(tmp_path: Path) -> None:
    fill_store(tmp_path, 3)
    backend = open_store(tmp_path)
    backend.commit(Rows((keycode.META_KEY, msgspec.msgpack.encode(Meta(format=9)))))
    backend.close()
    found = read(tmp_path)
    assert isinstance(found, Unread)
    assert "the store has format 9; this program reads format" in found.why


def test_a_pointer_that_does_not_say_which_store_counts(tmp_path: Path) -> None:
    fill_store(tmp_path, 3)
    current = tmp_path / "CURRENT"
    content = current.read_bytes()
    current.write_bytes(content.replace(b"1", b"2", 1))
    assert "its checksum is wrong" in read_store(str(tmp_path), lambda _: None).problems[0]
    current.unlink()
    assert "CURRENT is missing beside the stores" in read_store(str(tmp_path), lambda _: None).problems[0]
    current.write_bytes(content)
    assert read_store(str(tmp_path), lambda _: None).environment == 1


def test_a_store_that_kills_its_reader_does_not_kill_the_doctor(tmp_path: Path) -> None:
    fill_store(tmp_path, 2_000)
    file = tmp_path / ENVIRONMENT / "data.mdb"
    os.truncate(file, 3 * 4096)
    found = read(tmp_path)
    assert isinstance(found, Unread)
    assert "SIG" in found.why
    file.write_bytes(b"no store at all" * 1000)
    found = read(tmp_path)
    assert isinstance(found, StoreFacts)
    assert "LMDB does not open it" in found.problems[0]


def test_there_is_a_limit_to_the_time_and_to_silence(tmp_path: Path) -> None:
    home = make_home(tmp_path / "n1")
    job = ReadLog(f"{home}/wal", None, 0, None, has_peers=True)
    assert carry_out_aside(job, LogFacts, seconds=0, on_sign=lambda _: None) == Unread(
        "it takes longer than --time-limit", is_fault=False
    )
    os.mkfifo(tmp_path / "CURRENT")  # whoever opens it waits for a writer that never comes
    found = carry_out_aside(ReadStore(str(tmp_path)), StoreFacts, seconds=60, on_sign=lambda _: None, silence_s=0.01)
    assert isinstance(found, Unread)
    assert "has not answered" in found.why


def test_signs_of_life_come_back(tmp_path: Path) -> None:
    home = make_home(tmp_path / "n1")
    signs: list[str] = []
    found = carry_out_aside(
        ReadLog(f"{home}/wal", None, 0, None, has_peers=True), LogFacts, seconds=60, on_sign=signs.append
    )
    assert isinstance(found, LogFacts)
    assert found.problems == ()
    assert signs[0].endswith(".wal, offset 4096")


def test_a_directory_without_a_log_is_unread(tmp_path: Path) -> None:
    found = carry_out_aside(
        ReadLog(str(tmp_path), None, 0, None, has_peers=True), LogFacts, seconds=60, on_sign=lambda _: None
    )
    assert found == Unread(f"{tmp_path} holds no log")


@pytest.mark.parametrize("name", ["data.mdb", "lock.mdb"])
def test_reading_a_store_touches_nothing(tmp_path: Path, name: str) -> None:
    fill_store(tmp_path, 30)
    before = (tmp_path / ENVIRONMENT / name).read_bytes(), (tmp_path / ENVIRONMENT / name).stat().st_mtime_ns
    assert isinstance(read(tmp_path), StoreFacts)
    assert ((tmp_path / ENVIRONMENT / name).read_bytes(), (tmp_path / ENVIRONMENT / name).stat().st_mtime_ns) == before
