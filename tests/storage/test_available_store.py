"""The available plane's store: durable or not at all, and never quietly less than was written (VV4, S28, S47)."""

from __future__ import annotations

import errno
import itertools
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from kvnode.errors import StorageFailed
from kvnode.gossip.event import TimelineLimits
from kvnode.gossip.keyspace import HARD_FACTOR, KeyspaceLimits
from kvnode.machine.backend import Row
from kvnode.storage import available_shelf
from kvnode.storage.available_shelf import LmdbShelf, MemoryShelf, Shelf
from kvnode.storage.available_store import FORMAT, HEADER_KEY, AvailableStore, Header, _sealed, _Write
from kvnode.storage.lmdb_walk import DATA_FILE
from kvnode.storage.readonly_disk import ReadOnlyDisk
from kvnode.storage.realdisk import RealDisk

CLUSTER = 0xC1
TRANSACTION_AT = 144
STEP = 11  # 1: every byte, half a minute
LONG_KEY = b"k" * 4_096
ROWS = [(b"\x00", b""), (b"a", b"1"), (b"b" * 510, b"2"), (b"c" * 511, b"3"), (LONG_KEY, b"4" * 9_000)]


def numbers(seed: int) -> Callable[[], int]:
    rng = random.Random(seed)
    return lambda: rng.getrandbits(64)


def open_on(shelf: Shelf, *, seed: int = 1, member: int = 1, cluster_id: int = CLUSTER) -> AvailableStore:
    return AvailableStore.open(shelf, member=member, cluster_id=cluster_id, random_u64=numbers(seed))


def on_disk(path: Path, *, seed: int = 1, **owner: int) -> AvailableStore:
    return open_on(LmdbShelf(RealDisk(), str(path), map_bytes=16 << 20), seed=seed, **owner)


def fill(path: Path, rows: list[Row] = ROWS) -> int:
    """A closed store with `rows`; its incarnation."""
    store = on_disk(path)
    store.write(rows, ())
    store.close()
    return store.incarnation


@pytest.mark.parametrize("kind", ["lmdb", "memory"])
def test_what_was_written_is_there_again_under_the_same_incarnation(tmp_path: Path, kind: str) -> None:
    shelf: Shelf = LmdbShelf(RealDisk(), str(tmp_path)) if kind == "lmdb" else MemoryShelf()
    store = open_on(shelf)
    assert (store.rows(), store.set_aside) == ([], None)
    assert store.incarnation
    store.write(ROWS[::-1], ())
    store.write([(b"a", b"9"), (b"d", b"")], [b"\x00", LONG_KEY, b"never there"])
    assert store.bytes_used > 0
    store.close()
    store.close()
    again = open_on(shelf, seed=2)
    assert again.rows() == [(b"a", b"9"), ROWS[2], ROWS[3], (b"d", b"")]
    assert again.rows() == [], "once"
    assert (again.incarnation, again.set_aside) == (store.incarnation, None)
    again.close()


def test_golden_rows() -> None:
    """Of format 1; whoever changes them makes format 2."""
    shelf = MemoryShelf()
    store = AvailableStore.open(shelf, member=3, cluster_id=CLUSTER, random_u64=lambda: 0x1234)
    store.write([(b"key", b"value"), (b"k" * 511, b"long")], ())
    with shelf.backends["ap"].read() as cursor:
        found = [cursor.seek(b"\x01"), cursor.next(), cursor.next(), cursor.next()]
    long = bytes.fromhex("c71b0cc0efe82a788811d7e685e0e74b57537f492dcddd4074f935964088b249")
    assert found == [
        (b"\x01", bytes.fromhex("950103ccc1cd12340316e2f17a")),
        (b"\x02key", b"value" + bytes.fromhex("a710886b")),
        (b"\x03" + long, b"\xff\x01\x00\x00" + b"k" * 511 + b"long" + bytes.fromhex("f59e17d1")),
        None,
    ]


def test_an_incarnation_is_never_zero() -> None:
    drawn = iter([0, 0, 7])
    store = AvailableStore.open(MemoryShelf(), member=1, cluster_id=1, random_u64=lambda: next(drawn))
    assert store.incarnation == 7


def test_a_store_that_is_gone_begins_anew_under_another_incarnation(tmp_path: Path) -> None:
    first = fill(tmp_path)
    os.rename(tmp_path / "ap", tmp_path / "elsewhere")
    store = on_disk(tmp_path, seed=2)
    assert (store.rows(), store.set_aside) == ([], None)
    assert store.incarnation != first
    store.close()


def test_what_an_interrupted_first_start_left_is_begun_again(tmp_path: Path) -> None:
    (tmp_path / "ap.new").mkdir()
    (tmp_path / "ap.new" / DATA_FILE).write_bytes(b"half")
    store = on_disk(tmp_path)
    store.close()
    assert sorted(os.listdir(tmp_path)) == ["ap"]


@pytest.mark.parametrize("owner", [{"member": 2}, {"cluster_id": 0xC2}])
def test_a_store_of_somebody_else_is_set_aside(tmp_path: Path, owner: dict[str, int]) -> None:
    fill(tmp_path)
    store = on_disk(tmp_path, seed=2, **owner)
    assert store.set_aside is not None
    assert "belongs to member 1 of cluster 00000000000000c1" in store.set_aside.what
    assert store.rows() == []
    store.close()
    mine = on_disk(tmp_path, seed=3, **owner)
    assert mine.set_aside is None
    mine.close()


def test_the_newest_two_that_were_damaged_are_kept(tmp_path: Path) -> None:
    seen = {fill(tmp_path)}
    for number in range(1, 5):
        data = tmp_path / "ap" / DATA_FILE
        os.truncate(data, 100)
        store = on_disk(tmp_path, seed=10 + number)
        assert store.set_aside is not None
        assert store.set_aside == (f"ap.damaged-{number}", "meta page 0 is cut off")
        assert store.incarnation not in seen
        seen.add(store.incarnation)
        store.close()
        kept = [f"ap.damaged-{old}" for old in (number - 1, number) if old]
        assert sorted(os.listdir(tmp_path)) == ["ap", *kept]


def test_a_directory_without_its_file_and_a_file_in_its_place_are_damage(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "ap" / DATA_FILE).unlink()
    store = on_disk(tmp_path, seed=2)
    assert store.set_aside == ("ap.damaged-1", f"{DATA_FILE} is missing")
    store.close()
    os.rename(tmp_path / "ap", tmp_path / "elsewhere")
    (tmp_path / "ap").write_bytes(b"what is this")
    store = on_disk(tmp_path, seed=3)
    assert store.set_aside == ("ap.damaged-2", f"{DATA_FILE} is missing")
    store.close()


def test_a_sector_that_cannot_be_read_is_damage_and_a_disk_that_refuses_is_not(tmp_path: Path) -> None:
    first = fill(tmp_path)

    class RefusingOnce(RealDisk):
        def __init__(self, number: int) -> None:
            self.number = number

        def open(self, path: str, *, create: bool = False):
            number, self.number = self.number, 0
            if number:
                raise OSError(number, os.strerror(number), path)
            return super().open(path, create=create)

    for refusal in (errno.EACCES, errno.EMFILE):
        with pytest.raises(StorageFailed, match="cannot be used"):
            open_on(LmdbShelf(RefusingOnce(refusal), str(tmp_path)), seed=2)
    store = open_on(LmdbShelf(RefusingOnce(errno.EIO), str(tmp_path)), seed=2)
    assert store.set_aside is not None
    assert store.incarnation != first
    store.close()


def test_a_newer_format_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    shelf = LmdbShelf(RealDisk(), str(tmp_path))
    first = fill(tmp_path)
    header = Header(FORMAT + 1, 1, CLUSTER, first, 4)
    fields = [*msgspec.to_builtins(header), "a field of then"]
    backend = shelf.open("ap")
    backend.commit(_Write([_sealed(HEADER_KEY, msgspec.msgpack.encode(fields))], ()))
    backend.close()
    before = (tmp_path / "ap" / DATA_FILE).read_bytes()
    with pytest.raises(StorageFailed, match="newer version of kvnode: it has format 2, this version knows format 1"):
        on_disk(tmp_path, seed=2)
    assert (tmp_path / "ap" / DATA_FILE).read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"\xc1", b"\x90", b"\x91\x01", msgspec.msgpack.encode([1, 1, CLUSTER, 0, 3]),
                                     msgspec.msgpack.encode([0, 1, CLUSTER, 5, 3])])  # fmt: skip
def test_a_header_that_cannot_be_decoded_is_damage(tmp_path: Path, content: bytes) -> None:
    fill(tmp_path)
    backend = LmdbShelf(RealDisk(), str(tmp_path)).open("ap")
    backend.commit(_Write([_sealed(HEADER_KEY, content)], ()))
    backend.close()
    store = on_disk(tmp_path, seed=2)
    assert store.set_aside is not None
    assert "header" in store.set_aside.what
    store.close()


def test_a_write_by_anybody_else_is_noticed(tmp_path: Path) -> None:
    """Also an older state of the engine: the header counts the commits."""
    fill(tmp_path)
    backend = LmdbShelf(RealDisk(), str(tmp_path)).open("ap")
    backend.commit(_Write([_sealed(b"\x02z", b"no header with it")], ()))
    backend.close()
    store = on_disk(tmp_path, seed=2)
    assert store.set_aside is not None
    assert store.set_aside.what == "its header is of commit 3, its pages are of commit 4"
    store.close()


def test_every_byte_damaged_is_harmless_or_noticed(tmp_path: Path) -> None:
    """Of each byte that LMDB or we wrote. What opens holds exactly what was written, and takes another write."""
    rows = [(b"key %02d" % number, b"value %d" % number * 3) for number in range(12)] + [(LONG_KEY, bytes(5_000))]
    home = tmp_path / "home"
    home.mkdir()
    first = fill(home, rows)
    content = (home / "ap" / DATA_FILE).read_bytes()
    written = [at for at in range(len(content)) if any(content[max(0, at - 8) : at + 8])]
    found = {"noticed": 0, "harmless": 0}
    for at in [at for at in written if at % 4_096 < 200 or at % 7 == 0][::STEP]:
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 8
        (home / "ap" / DATA_FILE).write_bytes(damaged)
        store = on_disk(home, seed=at + 2)
        try:
            if store.set_aside is None:
                found["harmless"] += 1
                assert store.rows() == rows, at
                assert store.incarnation == first
                store.write([(b"another", bytes(3_000))], [rows[0][0]])
            else:
                found["noticed"] += 1
                assert store.rows() == []
                assert store.incarnation != first
        finally:
            store.close()
    assert found["noticed"] > found["harmless"] > 0, found


def test_the_meta_page_before_as_the_newest_is_noticed(tmp_path: Path) -> None:
    """One bit brings back the state before the last commit: whoever took it would give numbers away twice."""
    for commits in range(4):
        home = tmp_path / str(commits)
        home.mkdir()
        store = on_disk(home)
        for number in range(commits):
            store.write([(b"a", b"%d" % number)], ())
        store.close()
        path = home / "ap" / DATA_FILE
        content = bytearray(path.read_bytes())
        page = os.sysconf("SC_PAGE_SIZE")
        older = min((TRANSACTION_AT, page + TRANSACTION_AT), key=lambda at: content[at])
        content[older] += 2
        path.write_bytes(content)
        again = on_disk(home, seed=2)
        assert again.set_aside is not None
        assert again.incarnation != store.incarnation
        again.close()


def test_a_failed_write_is_final(tmp_path: Path) -> None:
    store = open_on(LmdbShelf(RealDisk(), str(tmp_path), map_bytes=1 << 20))
    store.write([(b"a", b"1")], ())
    with pytest.raises(StorageFailed, match="a commit to the store failed"):
        store.write([(b"b", bytes(2 << 20))], ())
    with pytest.raises(StorageFailed, match="has failed before"):
        store.write([(b"c", b"1")], ())
    store.close()
    again = on_disk(tmp_path, seed=2)
    assert again.rows() == [(b"a", b"1")]
    again.close()


def test_looking_changes_nothing(tmp_path: Path) -> None:
    fill(tmp_path)
    before = (tmp_path / "ap" / DATA_FILE).read_bytes()
    assert LmdbShelf(ReadOnlyDisk(), str(tmp_path)).check("ap") == 3
    assert (tmp_path / "ap" / DATA_FILE).read_bytes() == before


def write_without_end(path: str) -> None:
    """The process that is killed: tells of each write once it is durable."""
    store = on_disk(Path(path))
    for number in itertools.count(1):
        store.write([(b"last", b"%d" % number), (b"%d" % (number % 50), b"%d" % number * 100)], [])
        print(number, flush=True)


@pytest.mark.slow
@pytest.mark.system
def test_kill_at_any_moment_loses_nothing_that_was_told(tmp_path: Path) -> None:
    on_disk(tmp_path).close()
    incarnation = None
    for lines in (1, 7, 40):
        with subprocess.Popen(
            [sys.executable, "-m", "tests.storage.test_available_store", str(tmp_path)], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            for _ in range(lines):
                process.stdout.readline()
            process.kill()
            told = [int(line) for line in process.stdout.read().split(b"\n") if line.isdigit()]
        store = on_disk(tmp_path, seed=9)
        assert store.set_aside is None
        assert incarnation in {None, store.incarnation}
        incarnation = store.incarnation
        rows = dict(store.rows())
        assert int(rows[b"last"]) >= max([lines, *told])
        store.close()


if __name__ == "__main__":
    write_without_end(sys.argv[1])


def test_the_map_holds_all_that_the_plane_may_hold() -> None:
    """A full map ends the node, and again at every start: whatever members took while apart has to fit.

    LMDB gives a value of a little over half a page pages of its own, so nearly twice its size; and a commit needs the
    pages it replaces once more.
    """
    keyspace, timeline = KeyspaceLimits(), TimelineLimits()
    held = HARD_FACTOR * keyspace.bytes_max + timeline.origins * timeline.bytes_per_origin
    assert 3 * held <= available_shelf.MAP_BYTES
