"""The walk follows whatever LMDB writes, and stops before whatever would end a process that maps it."""

from __future__ import annotations

import os
import random
import shutil
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest

from kvnode.errors import StorageFailed
from kvnode.machine.backend import Row
from kvnode.storage.lmdb_backend import LmdbBackend
from kvnode.storage.lmdb_walk import DATA_FILE, DamagedPages, Walked, _meta, _Walk, walk
from kvnode.storage.realdisk import RealDisk

MAP_BYTES = 64 << 20
TRANSACTION_AT = 144
PAGE = os.sysconf("SC_PAGE_SIZE")


class Change:
    def __init__(self, rows: Sequence[Row], removed: Sequence[bytes] = ()) -> None:
        self._rows, self._removed = rows, removed

    def rows(self) -> Sequence[Row]:
        return self._rows

    def removed(self) -> Sequence[bytes]:
        return self._removed


def walked(path: Path) -> Walked:
    file = RealDisk().open(str(path / DATA_FILE))
    try:
        return walk(file)
    finally:
        file.close()


def make(path: Path, *, commits: int = 3, rows: int = 4, value: int = 20) -> Path:
    backend = LmdbBackend(str(path), map_bytes=MAP_BYTES)
    for commit in range(commits):
        backend.commit(Change([(b"\x02%06d" % row, b"%d" % commit * value) for row in range(rows)]))
    backend.close()
    return path


@pytest.mark.parametrize("seed", range(6))
def test_whatever_lmdb_writes_is_whole(tmp_path: Path, seed: int) -> None:
    """Small and large values, long keys, removals, restarts: no sound store may ever be called damaged."""
    rng = random.Random(seed)
    keys, value_bytes, key_bytes = ((5, 20_000, 6), (60, 3_000, 400), (2_000, 60, 40))[seed % 3]
    backend = LmdbBackend(str(tmp_path), map_bytes=MAP_BYTES)
    there: set[bytes] = set()
    for commit in range(60):
        rows = {
            b"\x02" + (b"%d" % rng.randrange(keys)).rjust(rng.randint(1, key_bytes), b"k"): rng.randbytes(
                rng.randrange(value_bytes)
            )
            for _ in range(rng.choice((1, 3, 100)))
        }
        removed = [key for key in sorted(there) if rng.random() < rng.choice((0.0, 0.02, 0.5))]
        backend.commit(Change(sorted(rows.items()), removed))
        there = (there | rows.keys()) - set(removed)
        if rng.random() < 0.1:
            backend.close()
            backend = LmdbBackend(str(tmp_path), map_bytes=MAP_BYTES)
        assert walked(tmp_path) == Walked(commit + 2, len(there) + 1)
    backend.close()


@pytest.mark.parametrize(("offset", "data", "what"), [
    (0, b"\x07", "none of LMDB's"),
    (16, b"\xdf", "none of LMDB's"),
    (20, b"\x02", "format 2"),
    (41, b"\x11", "bytes"),
    (44, b"\x09", "flags"),
    (46, b"\x05", "not the one it should be"),
    (TRANSACTION_AT, b"\x09", "transaction 9"),
    (PAGE + TRANSACTION_AT, b"\x09", "not one transaction apart"),
])  # fmt: skip
def test_meta_pages(tmp_path: Path, offset: int, data: bytes, what: str) -> None:
    make(tmp_path)
    assert walked(tmp_path).transaction == 4
    with (tmp_path / DATA_FILE).open("r+b") as file:
        file.seek(offset)
        file.write(data)
    with pytest.raises(DamagedPages, match=what):
        walked(tmp_path)


@pytest.mark.parametrize("pages", [0, 1, 2, 3])
def test_a_file_that_has_lost_its_end(tmp_path: Path, pages: int) -> None:
    make(tmp_path, rows=400)
    os.truncate(tmp_path / DATA_FILE, pages * PAGE)
    with pytest.raises(DamagedPages, match=r"cut off|outside"):
        walked(tmp_path)


def test_an_older_state_that_passes_for_the_newest_is_refused(tmp_path: Path) -> None:
    """Of the meta page of the transaction before, one flipped bit makes the newest."""
    make(tmp_path, commits=4)  # transactions 4 and 5
    path = tmp_path / DATA_FILE
    content = bytearray(path.read_bytes())
    assert (content[TRANSACTION_AT], content[PAGE + TRANSACTION_AT]) == (4, 5)
    content[TRANSACTION_AT] ^= 2  # 6
    path.write_bytes(content)
    found = walked(tmp_path)  # sound in itself; the owner of the rows has to know how many commits there were
    assert found.transaction == 6


def test_a_free_page_that_is_in_use_is_noticed(tmp_path: Path) -> None:
    """Every used page in place of every free one, wherever the order of the list allows it."""
    make(tmp_path, commits=6, rows=200)
    path = tmp_path / DATA_FILE
    content = path.read_bytes()
    file = RealDisk().open(str(path))
    walk_ = _Walk(file, max(_meta(file, 0, 0), _meta(file, 1, PAGE), key=lambda meta: meta.transaction))
    walk_.run()
    lists = list(_Walk(file, walk_._meta)._tree(walk_._meta.free, is_free=True))
    file.close()
    tried = 0
    for value in lists:
        at = content.rindex(value)
        count, *free = (word for (word,) in struct.iter_unpack("<Q", value))
        for position in range(count):
            above = free[position - 1] if position else len(content) // PAGE
            below = free[position + 1] if position + 1 < count else 1
            for used in sorted(walk_._used):
                if below < used < above:
                    word = used.to_bytes(8, "little")
                    offset = at + 8 * (position + 1)
                    path.write_bytes(content[:offset] + word + content[offset + 8 :])
                    tried += 1
                    with pytest.raises(DamagedPages, match="free and used"):
                        walked(tmp_path)
    assert tried


def test_damaged_pages_never_end_the_process(tmp_path: Path) -> None:
    """Anything that is let through is opened, read, and written to by LMDB itself."""
    rng = random.Random(1)
    sound = make(tmp_path / "sound", commits=5, rows=300)
    content = (sound / DATA_FILE).read_bytes()
    through = 0
    for attempt in range(300):
        damaged = bytearray(content)
        page = rng.randrange(len(content) // PAGE)
        at = page * PAGE + rng.choice((rng.randrange(24), rng.randrange(200), rng.randrange(PAGE)))
        damaged[at] = rng.choice((damaged[at] ^ 1 << rng.randrange(8), rng.randrange(256), 0, 255))
        place = tmp_path / "damaged"
        place.mkdir(exist_ok=True)
        (place / DATA_FILE).write_bytes(damaged)
        try:
            walked(place)
        except DamagedPages:
            continue
        through += 1
        try:
            backend = LmdbBackend(str(place), map_bytes=MAP_BYTES)
        except StorageFailed:  # the engine's own row
            continue
        with backend.read() as cursor:
            row = cursor.seek(b"\x01")
            while row is not None:
                row = cursor.next()
        for number in range(4):
            backend.commit(Change([(b"\x02%06d" % number, b"%d" % attempt * 3_000)], [b"\x02%06d" % (number + 20)]))
        backend.close()
        shutil.rmtree(place)
    assert through > 50, "values, and pages that are free"
