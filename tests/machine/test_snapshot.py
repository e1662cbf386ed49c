"""Snapshots as bytes: golden, the same wherever they are read, and refused for every wrong bit."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from zlib import crc32

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvnode.errors import SnapshotRefused
from kvnode.ids import Index, Term
from kvnode.kv.requests import Command, Compact, Delete, LeaseGrant, Put, SessionOpen, Sweep, Txn, WriteRequest
from kvnode.machine import snapshot
from kvnode.machine.backend import Row
from kvnode.machine.snapshot import BLOCK_BYTES, SnapshotReader, SnapshotVerifier, describe, pieces, verified_rows
from kvnode.storage.memory_backend import MemoryBackend
from tests.backend_suite import all_rows, commit
from tests.machine.harness import BACKENDS, Store, opener

CLUSTER = 0xC1
INITIAL = b"initial"


def flushed(store: Store, term: int = 3) -> Store:
    cut = store.machine.cut(Term(term))
    assert cut is not None
    store.machine.backend.commit(cut)
    store.machine.evict(cut)
    return store


def reader_of(store: Store) -> SnapshotReader:
    return SnapshotReader(store.machine.backend.pin(), cluster_id=CLUSTER, initial=INITIAL)


def blocks_of(reader: SnapshotReader) -> Iterator[bytes]:
    number = 0
    while (block := reader.block(number)) is not None:
        yield block
        number += 1


def whole(reader: SnapshotReader) -> bytes:
    return reader.header + b"".join(blocks_of(reader))


def small() -> bytes:
    store = Store(MemoryBackend)
    store.put(b"a", b"1")
    store.machine.configure(Index(2), 20, b"members")
    return whole(reader_of(flushed(store)))


def rows_of(data: bytes) -> list[Row]:
    return list(verified_rows(BytesIO(data).read))


def long_store(kind: str, path: Path, count: int = 60) -> Store:
    store = Store(opener(kind, path))
    for number in range(count):
        store.put(b"key%03d" % number, bytes([number]) * (20_000 if number % 7 else 100_000))
    return flushed(store)


def test_golden_bytes() -> None:
    """Changes only with `FORMAT`: nodes of two versions exchange these."""
    data = small()
    header, *blocks = pieces(BytesIO(data).read)
    assert header.hex() == GOLDEN_HEADER
    assert [block.hex() for block in blocks] == GOLDEN_BLOCKS


def test_the_header_says_what_it_is_a_snapshot_of() -> None:
    found = describe(next(pieces(BytesIO(small()).read)))
    assert (found.format, found.store_format, found.cluster_id) == (1, 2, CLUSTER)
    assert (found.index, found.term, found.time, found.revision, found.compact_revision) == (2, 3, 20, 2, 0)
    assert (found.configuration, found.configuration_index) == (b"members", 2)
    assert found.logical_bytes == 66


def test_a_store_without_a_configuration_gives_the_initial_one() -> None:
    store = Store(MemoryBackend)
    store.put(b"a")
    data = whole(reader_of(flushed(store)))
    assert (describe(next(pieces(BytesIO(data).read)))).configuration == INITIAL
    opened = Store(lambda: backend_of(rows_of(data))).machine
    assert (opened.configuration, opened.configuration_index, opened.installed) == (INITIAL, 0, (1, 3))


def test_a_store_that_has_applied_nothing_has_no_snapshot() -> None:
    with pytest.raises(SnapshotRefused, match="applied something"):
        SnapshotReader(MemoryBackend().pin(), cluster_id=CLUSTER)


def over(backend: MemoryBackend) -> Store:
    return Store(lambda: backend)


def backend_of(rows: list[Row]) -> MemoryBackend:
    backend = MemoryBackend()
    commit(backend, *rows)
    return backend


# ── blocks ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", BACKENDS)
def test_blocks_hold_all_rows_and_are_as_long_as_they_may(kind: str, tmp_path: Path) -> None:
    store = long_store(kind, tmp_path)
    data = whole(reader_of(store))
    assert rows_of(data)[1:] == all_rows(store.machine.backend)[1:]
    verifier: SnapshotVerifier | None = None
    sizes = []
    for piece in pieces(BytesIO(data).read):
        if verifier is None:
            verifier = SnapshotVerifier(piece, cluster_id=CLUSTER)
            continue
        if rows := verifier.add(piece):
            sizes.append(sum(len(key) + len(value) for key, value in rows))
            assert len(rows) == 1 or sizes[-1] <= BLOCK_BYTES
    assert verifier is not None
    end = verifier.finish()
    assert (end.rows, end.bytes) == (121, sum(sizes))
    assert max(sizes) > 100_000, "one row may be longer"
    store.machine.backend.close()


def test_any_block_can_be_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even when the reader remembers only few places, and while the store moves on."""
    monkeypatch.setattr(snapshot, "MARKS_MAX", 4)
    store = long_store("memory", tmp_path)
    expected = list(blocks_of(reader_of(store)))
    assert len(expected) > 20
    reader = reader_of(store)
    store.put(b"key000", b"new")
    flushed(store)
    chance = random.Random(1)
    for number in [*chance.sample(range(len(expected)), 12), 0, len(expected) - 1, *range(len(expected))]:
        assert reader.block(number) == expected[number]
    assert reader.block(len(expected)) is None
    assert reader.block(len(expected) + 9) is None
    assert len(reader._marks) <= 5


def test_a_block_beyond_the_end_is_none_for_a_reader_that_has_read_nothing(tmp_path: Path) -> None:
    assert reader_of(long_store("memory", tmp_path, 3)).block(1_000) is None


# ── one state, one snapshot ─────────────────────────────────────────────────────────────────────────

KEYS = st.sampled_from([b"a", b"b", b"c", b"\x00", b"k" * 500, b"k" * 501])
REQUESTS = st.one_of(
    st.builds(Put, KEYS, st.binary(max_size=6)),
    st.builds(Delete, KEYS),
    st.builds(lambda a, b: Delete(min(a, b), max(a, b) + b"\x00"), KEYS, KEYS),
    st.builds(lambda a, b: Txn((), (Put(a, b"1"), Put(b + b"2", b"2"), Delete(b"a"))), KEYS, KEYS),
    st.builds(lambda ttl, key: LeaseGrant(0, ttl, Put(key, b"")), st.integers(1_000, 9_000), KEYS),
    st.builds(SessionOpen, st.integers(1_000, 9_000)),
    st.builds(lambda key, name: Command(Put(key, b"once"), key=name), KEYS, st.sampled_from([b"one", b"two"])),
    st.builds(Compact, st.integers(1, 12)),
    st.builds(Sweep, st.integers(1, 12), st.integers(1, 3)),
)


@given(
    requests=st.lists(REQUESTS, min_size=1, max_size=25),
    flushes=st.lists(st.sets(st.integers(0, 24)), min_size=2, max_size=3),
    install_at=st.integers(0, 24),
)
@settings(max_examples=60, deadline=None)
def test_equal_states_have_equal_snapshots(
    requests: list[WriteRequest], flushes: list[set[int]], install_at: int
) -> None:
    """Whatever was flushed when, reopened, or began as a snapshot itself."""
    found = set()
    for number, chosen in enumerate(flushes):
        store = over(MemoryBackend())
        for step, request in enumerate(requests):
            store.apply(request)
            if step in chosen or (number == 0 and step == install_at):
                flushed(store)
                if step % 2:
                    store.reopen()
            if number == 0 and step == install_at:
                store = over(backend_of(rows_of(whole(reader_of(store)))))
        if store.machine.cut_term == 0 or store.machine.applied_index != store.machine._cut_index:
            flushed(store)
        found.add(whole(reader_of(store)))
    assert len(found) == 1


def test_states_that_differ_have_different_snapshots() -> None:
    one, two = Store(MemoryBackend), Store(MemoryBackend)
    one.put(b"a")
    two.put(b"b")
    assert whole(reader_of(flushed(one))) != whole(reader_of(flushed(two)))


# ── what is wrong is refused, by place ──────────────────────────────────────────────────────────────


def place_of(data: bytes, offset: int) -> str:
    """What stands at an offset: "header", or the number of the block."""
    end = 0
    for number, piece in enumerate(pieces(BytesIO(data).read)):
        end += len(piece)
        if offset < end:
            return "header" if number == 0 else f"block {number - 1}"
    raise AssertionError(offset)


def test_every_flipped_bit_is_refused_by_its_place() -> None:
    data = small()
    for offset in range(len(data)):
        place = place_of(data, offset)
        for bit in range(8):
            damaged = data[:offset] + bytes([data[offset] ^ 1 << bit]) + data[offset + 1 :]
            with pytest.raises(SnapshotRefused) as refused:
                rows_of(damaged)
            named = re.search(r"header|block \d+|is no snapshot", str(refused.value))
            assert named is not None
            assert named[0] in {place, "is no snapshot"}, (offset, bit, str(refused.value))
            assert named[0] == place or offset < 8


def test_every_truncation_is_refused_by_its_place() -> None:
    data = small()
    for length in range(len(data)):
        with pytest.raises(SnapshotRefused) as refused:
            rows_of(data[:length])
        assert place_of(data, length) in str(refused.value), (length, str(refused.value))


def test_what_follows_the_end_is_refused() -> None:
    data = small()
    for more in (b"\x00", data, list(pieces(BytesIO(data).read))[-1]):
        with pytest.raises(SnapshotRefused, match=r"block 3|follows the snapshot's end"):
            rows_of(data + more)


def test_blocks_that_are_left_out_repeated_or_swapped_are_refused(tmp_path: Path) -> None:
    header, *blocks = pieces(BytesIO(whole(reader_of(long_store("memory", tmp_path, 9)))).read)
    for wrong in (
        blocks[1:],
        [*blocks[:2], *blocks[3:]],
        [blocks[0], *blocks],
        [blocks[0], blocks[2], blocks[1], *blocks[3:]],
    ):
        with pytest.raises(SnapshotRefused, match="stands where block"):
            rows_of(b"".join([header, *wrong]))


def test_a_block_of_another_snapshot_is_refused(tmp_path: Path) -> None:
    """Though its checksum and its number are right."""
    one, two = long_store("memory", tmp_path, 9), long_store("memory", tmp_path, 10)
    header, *blocks = pieces(BytesIO(whole(reader_of(one))).read)
    others = list(blocks_of(reader_of(two)))
    for number in (0, 1):
        verifier = SnapshotVerifier(header)
        for block in blocks[:number]:
            verifier.add(block)
        with pytest.raises(SnapshotRefused, match=f"block {number} of the snapshot does not follow"):
            verifier.add(others[number])


def test_another_cluster_another_format_another_file_are_refused_by_name() -> None:
    header = next(pieces(BytesIO(small()).read))
    with pytest.raises(SnapshotRefused, match="of cluster 00000000000000c1, this node belongs to 00000000000000c2"):
        SnapshotVerifier(header, cluster_id=0xC2)
    found = describe(header)
    for name, sentence in (("format", "format 9 with rows of format 2"), ("store_format", "rows of format 9")):
        newer = snapshot.encode_header(msgspec.structs.replace(found, **{name: 9}))
        with pytest.raises(SnapshotRefused, match=sentence):
            describe(newer)
    with pytest.raises(SnapshotRefused, match="makes no sense"):
        describe(snapshot.encode_header(msgspec.structs.replace(found, index=Index(0))))
    with pytest.raises(SnapshotRefused, match="is no snapshot: it begins with b'PK"):
        rows_of(b"PK\x03\x04" + bytes(100))


def test_rows_that_a_writer_with_a_defect_made_are_refused() -> None:
    """Checksums and chain are right."""
    header, meta_block, *_ = pieces(BytesIO(small()).read)
    verifier = SnapshotVerifier(header)
    (meta_row,) = verifier.add(meta_block)
    for number, rows, sentence in (
        (0, [], "is empty"),
        (0, [(b"\x10k", b"v")], "is no meta row"),
        (0, [meta_row, (b"\x10k", b"v")], "is no meta row"),
        (1, [(b"\x10b", b"v"), (b"\x10a", b"v")], "out of order"),
        (1, [(b"\x10b", b"v"), (b"\x10b", b"v")], "out of order"),
        (1, [meta_row], "out of order"),
        (1, [(bytes([0x10]) * 512, b"v")], "too long"),
    ):
        verifier = SnapshotVerifier(header)
        if number:
            verifier.add(meta_block)
        body = msgspec.msgpack.encode(rows)
        block, _ = snapshot._block(number, snapshot.BlockKind.ROWS, body, verifier.chain)
        with pytest.raises(SnapshotRefused, match=sentence):
            verifier.add(block)
    for body, kind, sentence in (
        (msgspec.msgpack.encode((2, 9)), 2, "counts"),
        (b"\xc1", 1, "not as this version writes it"),
        (b"\x90", 7, "unknown kind 7"),
    ):
        verifier = SnapshotVerifier(header)
        verifier.add(meta_block)
        block, _ = snapshot._block(1, kind, body, verifier.chain)  # type: ignore[arg-type]
        with pytest.raises(SnapshotRefused, match=f"block 1.*{sentence}"):
            verifier.add(block)


ANYTHING = st.one_of(
    st.binary(max_size=40),
    st.recursive(
        st.one_of(st.none(), st.integers(-(1 << 63), (1 << 64) - 1), st.binary(max_size=5), st.text(max_size=3)),
        lambda inner: st.lists(inner, max_size=14),
        max_leaves=20,
    ).map(msgspec.msgpack.encode),
    st.just(b"\x91" * 5_000 + b"\x01"),
    st.builds(lambda fields: msgspec.msgpack.encode([1, 2, *fields]), st.lists(st.integers(-2, 5), max_size=12)),
    st.just(b"\x9e\x01\x02" + b"\xa2\xff\xff" * 12),
)


def _is_rows(body: bytes) -> bool:
    try:
        rows = msgspec.msgpack.decode(body, type=list[list[bytes]])
    except (msgspec.MsgspecError, RecursionError):
        return False
    return bool(rows) and all(len(row) == 2 for row in rows)


@given(body=ANYTHING, kind=st.integers(0, 255), number=st.integers(0, 1))
@settings(max_examples=300, deadline=None)
def test_whatever_stands_behind_a_right_checksum_is_refused_in_words(body: bytes, kind: int, number: int) -> None:
    """Nothing but a refusal leaves the checks, unless it is a block after all."""
    header, meta_block, *_ = pieces(BytesIO(SMALL).read)
    verifier = SnapshotVerifier(header)
    if number:
        verifier.add(meta_block)
    block, _ = snapshot._block(number, kind, body, verifier.chain)  # type: ignore[arg-type]
    if number and kind == snapshot.BlockKind.ROWS and _is_rows(body):
        with suppress(SnapshotRefused):  # their keys may be in order, or not
            verifier.add(block)
    else:
        with pytest.raises(SnapshotRefused, match="block"):
            verifier.add(block)
    behind = len(body).to_bytes(4, "little") + body
    with pytest.raises(SnapshotRefused, match=r"header|snapshot has format"):
        SnapshotVerifier(snapshot.MAGIC + crc32(behind).to_bytes(4, "little") + behind)


@given(st.binary(max_size=200))
def test_no_file_of_whatever_bytes_is_a_snapshot(data: bytes) -> None:
    for file in (data, SMALL[:8] + data, SMALL[: len(SMALL) // 2] + data):
        with pytest.raises(SnapshotRefused):
            rows_of(file)


SMALL = small()
GOLDEN_HEADER = (
    "4b564e4f4445534e35db0dcb270000009c0102ccc10203140200c4076d656d6265727302c410e50fbbab3f33b728aabfd1051e5130c442"
)
GOLDEN_BLOCKS = [
    (
        "627fc68c36000000000000000000000001b379eb889e8d5a8d396903db2f66b257f80fb29c7229547cd02daeca6291b0"
        "ad9192c406017374617465c42a9e0202140200c410e50fbbab3f33b728aabfd1051e5130c442004203c4076d656d6265"
        "727302920203c0"
    ),
    (
        "e3d1592d34000000010000000000000001806cd20943dca0473b0973e9768922424177ce1b54e5dea0de46fd7df7dc40"
        "5d9292c40c10610001fffffffffffffffdc40a96c401310201000ac40092c40df0000000000000000200000000c40693"
        "0a01c40161"
    ),
    ("9a62acb4030000000200000000000000024e270f6c56824956849f561fe047adb61d193a4a78c02913b7608361d2247ed6920359"),
]
