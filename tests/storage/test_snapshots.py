"""A snapshot is received aside, verified, built and switched to; whatever goes wrong before leaves the old store."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from kvnode.config import LimitsSection
from kvnode.errors import SnapshotRefused, StorageFailed
from kvnode.ids import Index
from kvnode.kv.requests import Put
from kvnode.machine.machine import StateMachine
from kvnode.sim.disk import FakeDisk
from kvnode.storage.environments import COMMIT_BYTES, LmdbEnvironments, MemoryEnvironments, in_pieces
from kvnode.storage.lmdb_backend import LmdbBackend
from kvnode.storage.realdisk import RealDisk
from kvnode.storage.small_file import write_small
from kvnode.storage.snapshots import SnapshotFiles
from kvnode.storage.store_pointer import Current, StorePointer
from tests.storage.snapshot_world import (
    CLUSTER,
    SNAP,
    STORE,
    Sent,
    files,
    machine_at,
    new_home,
    old_store,
    opened,
    receive,
    snapshot_at,
)

MIB = 1 << 20
RECEIVING = f"{SNAP}/receiving"


@pytest.fixture(scope="module")
def sent() -> Sent:
    """A handful of blocks."""
    return snapshot_at(300, values=400)


def member(index: int = 7) -> tuple[FakeDisk, MemoryEnvironments, SnapshotFiles]:
    disk, environments = old_store(index)
    pointer = StorePointer(disk, STORE, environments)
    return disk, environments, files(disk, pointer, applied=index)


def is_untouched(disk: FakeDisk, environments: MemoryEnvironments, index: int = 7) -> bool:
    """A start finds the old store, and nothing else."""
    pointer, machine = opened(disk.kill(), environments)
    assert environments.numbers() == [pointer.number]
    return machine.hash_at() == machine_at(index).hash_at()


def test_it_becomes_the_store_at_the_switch(sent: Sent) -> None:
    disk, environments, snapshots = member()
    assert len(sent.blocks) > 4
    receive(snapshots, sent)
    backend = snapshots.prepare()
    new = StateMachine(backend, LimitsSection())
    assert (new.hash_at(), new.installed) == (sent.hash, (sent.position.index, sent.position.term))
    assert StorePointer(disk.kill(), STORE, copy_of(environments)).number == 1
    snapshots.switch()
    assert not disk.exists(RECEIVING)
    pointer, machine = opened(disk.kill(), environments)
    assert (pointer.number, environments.numbers()) == (2, [2])
    assert machine.hash_at() == sent.hash
    assert machine.applied_index == 300


def copy_of(environments: MemoryEnvironments) -> MemoryEnvironments:
    found = MemoryEnvironments()
    found.backends = dict(environments.backends)
    return found


def test_the_machine_goes_on_from_there(sent: Sent) -> None:
    _, _, snapshots = member()
    receive(snapshots, sent)
    machine = StateMachine(snapshots.prepare(), LimitsSection())
    snapshots.switch()
    machine.apply(Index(301), 301 << 16, Put(b"more", b"1"))
    reference = machine_at(300, values=400)
    reference.apply(Index(301), 301 << 16, Put(b"more", b"1"))
    assert machine.hash_at() == reference.hash_at()


def test_one_after_the_other(sent: Sent) -> None:
    disk, environments, snapshots = member()
    for number, one in enumerate((snapshot_at(20), sent), 2):
        receive(snapshots, one)
        snapshots.prepare()
        snapshots.switch()
        pointer, machine = opened(disk.kill(), environments)
        assert (pointer.number, machine.hash_at()) == (number, one.hash)


# receiving


@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_a_transfer_goes_on_where_it_was(sent: Sent, at_once: int) -> None:
    _, _, snapshots = member()
    assert snapshots.begin(sent.header) == 0
    snapshots.append(0, sent.blocks[:3])
    assert snapshots.begin(sent.header) == 3
    receive(snapshots, sent, at_once=at_once)
    assert StateMachine(snapshots.prepare(), LimitsSection()).hash_at() == sent.hash


def test_a_transfer_goes_on_after_a_restart(sent: Sent) -> None:
    disk, environments, snapshots = member()
    snapshots.begin(sent.header)
    snapshots.append(0, sent.blocks[:4])
    disk = disk.kill()
    snapshots = files(disk, StorePointer(disk, STORE, environments), applied=7)
    assert snapshots.begin(sent.header) == 4
    receive(snapshots, sent)
    assert StateMachine(snapshots.prepare(), LimitsSection()).hash_at() == sent.hash


def test_after_a_restart_what_is_torn_or_damaged_comes_again(sent: Sent) -> None:
    disk, environments, snapshots = member()
    receive(snapshots, sent)
    ends = [len(sent.header)]
    for block in sent.blocks:
        ends.append(ends[-1] + len(block))
    for number in range(len(sent.blocks)):
        for offset in (ends[number], ends[number] + 30, ends[number + 1] - 1):
            image = disk.kill()
            image.flip_bit(RECEIVING, offset)
            again = files(image, StorePointer(image, STORE, environments), applied=7)
            assert again.begin(sent.header) == number
        for offset in (ends[number] + 1, ends[number] + 50, ends[number + 1] - 1):
            image = disk.kill()
            image.open(RECEIVING).truncate(offset)
            again = files(image, StorePointer(image, STORE, environments), applied=7)
            assert again.begin(sent.header) == number
            receive(again, sent)
            assert image.content(RECEIVING) == sent.header + b"".join(sent.blocks)


def test_another_header_begins_anew(sent: Sent) -> None:
    disk, _, snapshots = member()
    receive(snapshots, sent)
    other = snapshot_at(400)
    assert snapshots.begin(other.header) == 0
    receive(snapshots, other)
    assert disk.content(RECEIVING) == other.header + b"".join(other.blocks)
    assert snapshots.begin(sent.header) == 0
    assert disk.content(RECEIVING) == sent.header


def test_what_was_received_and_is_not_newer_than_the_store_goes_at_a_start(sent: Sent) -> None:
    disk, environments, snapshots = member()
    receive(snapshots, sent)
    disk = disk.kill()
    files(disk, StorePointer(disk, STORE, environments), applied=299)
    assert disk.exists(RECEIVING)
    files(disk, StorePointer(disk, STORE, environments), applied=300)
    assert not disk.exists(RECEIVING)


@pytest.mark.parametrize("what", ["flipped", "left out", "repeated", "another's"])
def test_a_block_that_is_not_the_next_is_refused(sent: Sent, what: str) -> None:
    disk, environments, snapshots = member()
    snapshots.begin(sent.header)
    snapshots.append(0, sent.blocks[:2])
    bad = {
        "flipped": sent.blocks[2][:-1] + bytes([sent.blocks[2][-1] ^ 1]),
        "left out": sent.blocks[3],
        "repeated": sent.blocks[1],
        "another's": snapshot_at(301, values=400).blocks[2],
    }[what]
    with pytest.raises(SnapshotRefused, match="block 2 of the snapshot"):
        snapshots.append(2, [bad])
    assert disk.content(RECEIVING) == sent.header + b"".join(sent.blocks[:2])
    assert is_untouched(disk, environments)
    assert snapshots.begin(sent.header) == 2
    receive(snapshots, sent)
    assert StateMachine(snapshots.prepare(), LimitsSection()).hash_at() == sent.hash


def test_blocks_that_do_not_follow_are_refused(sent: Sent) -> None:
    _, _, snapshots = member()
    with pytest.raises(SnapshotRefused, match="no snapshot is being received"):
        snapshots.append(0, sent.blocks[:1])
    with pytest.raises(SnapshotRefused, match="no snapshot is being received"):
        snapshots.prepare()
    snapshots.begin(sent.header)
    with pytest.raises(SnapshotRefused, match="block 1 of the snapshot came, block 0 must come now"):
        snapshots.append(1, sent.blocks[1:2])
    snapshots.append(0, sent.blocks[:-1])
    with pytest.raises(SnapshotRefused, match="cut off"):
        snapshots.prepare()
    snapshots.append(len(sent.blocks) - 1, sent.blocks[-1:])
    snapshots.prepare()
    with pytest.raises(SnapshotRefused, match="about to be installed"):
        snapshots.begin(sent.header)


def test_another_cluster_and_a_damaged_header_are_refused(sent: Sent) -> None:
    _, _, snapshots = member()
    with pytest.raises(SnapshotRefused, match="of cluster 00000000000000c2"):
        snapshots.begin(snapshot_at(20, cluster=CLUSTER + 1).header)
    with pytest.raises(SnapshotRefused, match="damaged"):
        snapshots.begin(sent.header[:-1] + b"\0")


def test_a_node_without_a_store_takes_none(sent: Sent) -> None:
    with pytest.raises(SnapshotRefused, match=r"storage\.backend"):
        files(new_home(), None).begin(sent.header)


# space and bad sectors


def test_there_must_be_room_before_it_begins(sent: Sent) -> None:
    disk, environments = old_store()
    snapshots = files(disk, StorePointer(disk, STORE, environments), free_bytes_min=1_000)
    logical = snapshot_at(300, values=400)
    disk.capacity_bytes = disk.used_bytes() + 1_000 + len(b"".join(logical.blocks))
    with pytest.raises(SnapshotRefused, match=r"storage\.free_bytes_min.* bytes free"):
        snapshots.begin(sent.header)
    assert not disk.exists(RECEIVING)
    disk.capacity_bytes += 1 << 30
    assert snapshots.begin(sent.header) == 0


def test_a_disk_that_fills_up_meanwhile_gets_its_room_back(sent: Sent) -> None:
    disk, environments, snapshots = member()
    snapshots.begin(sent.header)
    snapshots.append(0, sent.blocks[:2])
    disk.capacity_bytes = disk.used_bytes() + 1000
    with pytest.raises(SnapshotRefused, match="the disk is full"):
        snapshots.append(2, sent.blocks[2:4])
    assert not disk.exists(RECEIVING)
    assert is_untouched(disk, environments)
    disk.capacity_bytes += 1 << 30
    receive(snapshots, sent)
    assert StateMachine(snapshots.prepare(), LimitsSection()).hash_at() == sent.hash


def test_a_sector_that_cannot_be_read_back_is_found_before_the_switch(sent: Sent) -> None:
    disk, environments, snapshots = member()
    receive(snapshots, sent)
    disk.unreadable_sector(RECEIVING, 40)
    with pytest.raises(SnapshotRefused, match="cannot be read back"):
        snapshots.prepare()
    assert is_untouched(disk, environments)
    receive(snapshots, sent)
    assert StateMachine(snapshots.prepare(), LimitsSection()).hash_at() == sent.hash


def test_rot_in_what_was_received_is_found_before_the_switch(sent: Sent) -> None:
    disk, environments, snapshots = member()
    receive(snapshots, sent)
    disk.flip_bit(RECEIVING, len(sent.header) + len(sent.blocks[0]) + 500)
    with pytest.raises(SnapshotRefused, match="block 1"):
        snapshots.prepare()
    assert is_untouched(disk, environments)
    assert not disk.exists(RECEIVING), "it comes again from the beginning"


@pytest.mark.parametrize("kind", ["pwrite", "fdatasync", "create", "fsync_dir"])
def test_a_failing_disk_ends_the_node(sent: Sent, kind: str) -> None:
    disk, environments, snapshots = member()
    disk.fail_at(disk.count(kind) + 1, OSError(errno.EIO, os.strerror(errno.EIO)), kind=kind)
    with pytest.raises(StorageFailed, match="cannot be kept"):
        receive(snapshots, sent)
    assert is_untouched(disk, environments)


def test_what_is_discarded_leaves_nothing(sent: Sent) -> None:
    disk, environments, snapshots = member()
    receive(snapshots, sent)
    snapshots.prepare()
    assert environments.numbers() == [1, 2]
    snapshots.discard()
    assert environments.numbers() == [1]
    assert not disk.exists(RECEIVING)
    snapshots.discard()
    receive(snapshots, sent)
    snapshots.prepare()
    snapshots.close()
    assert is_untouched(disk, environments)


# the pointer


def test_a_pointer_is_never_made_up() -> None:
    disk, environments = old_store()
    for content in (b"", b"{}\n", b'{"environment":2}\ncrc32 00000000\n'):
        image = disk.kill()
        image.unlink(f"{STORE}/CURRENT")
        file = image.open(f"{STORE}/CURRENT", create=True)
        file.pwrite(0, content)
        with pytest.raises(StorageFailed, match="CURRENT"):
            StorePointer(image, STORE, environments)
    image = disk.kill()
    image.unlink(f"{STORE}/CURRENT")
    with pytest.raises(StorageFailed, match="CURRENT is missing"):
        StorePointer(image, STORE, environments)
    write_small(image, f"{STORE}/CURRENT", Current(3))
    with pytest.raises(StorageFailed, match="names store 3, which is missing"):
        StorePointer(image, STORE, environments)
    assert environments.numbers() == [1], "a refusal removes nothing"


def test_a_store_of_an_older_layout_is_refused(tmp_path: Path) -> None:
    store = str(tmp_path)
    LmdbBackend(store, map_bytes=MIB).close()
    with pytest.raises(StorageFailed, match="CURRENT is missing"):
        StorePointer(RealDisk(), store, LmdbEnvironments(store, map_bytes=MIB))


# LMDB


@pytest.fixture
def real(tmp_path: Path) -> tuple[StorePointer, LmdbEnvironments, str]:
    store, snap = tmp_path / "store", tmp_path / "snap"
    store.mkdir()
    snap.mkdir()
    environments = LmdbEnvironments(str(store), map_bytes=64 * MIB)
    return StorePointer(RealDisk(), str(store), environments), environments, str(snap)


def test_lmdb_becomes_the_snapshot(sent: Sent, real: tuple[StorePointer, LmdbEnvironments, str]) -> None:
    pointer, environments, snap = real
    old = pointer.open()
    view = old.pin()
    snapshots = files(RealDisk(), pointer, snap=snap)
    receive(snapshots, sent)
    new = snapshots.prepare()
    snapshots.switch()
    assert environments.numbers() == [2]
    assert view.rows(b"", 100) == [], "who has the old one open goes on reading it"
    view.close()
    old.close()
    assert StateMachine(new, LimitsSection()).hash_at() == sent.hash
    new.close()
    again = StorePointer(RealDisk(), os.path.dirname(snap) + "/store", environments)
    backend = again.open()
    assert StateMachine(backend, LimitsSection()).hash_at() == sent.hash
    backend.close()


def test_a_full_lmdb_map_refuses_the_snapshot(sent: Sent, tmp_path: Path) -> None:
    environments = LmdbEnvironments(str(tmp_path), map_bytes=128 << 10)
    pointer = StorePointer(RealDisk(), str(tmp_path), environments)
    pointer.open().close()
    (tmp_path / "snap").mkdir()
    snapshots = files(RealDisk(), pointer, snap=str(tmp_path / "snap"))
    receive(snapshots, sent)
    with pytest.raises(SnapshotRefused, match=r"there is no room for the snapshot's store: .*MDB_MAP_FULL"):
        snapshots.prepare()
    assert environments.numbers() == [1]


def test_leftovers_go_at_a_start(tmp_path: Path) -> None:
    environments = LmdbEnvironments(str(tmp_path), map_bytes=MIB)
    StorePointer(RealDisk(), str(tmp_path), environments).open().close()
    environments.open(2).close()
    environments.open(7).close()
    assert StorePointer(RealDisk(), str(tmp_path), environments).number == 1
    assert environments.numbers() == [1]


def test_rows_are_committed_in_pieces_and_the_meta_row_with_the_last() -> None:
    value = bytes(1 << 20)
    rows = [[(b"\x01state", b"meta")], *([(b"k%d" % number, value)] for number in range(9))]
    batches = [[key for key, _ in piece.rows()] for piece in in_pieces(rows)]
    assert batches == [[b"k0", b"k1", b"k2", b"k3"], [b"k4", b"k5", b"k6", b"k7"], [b"\x01state", b"k8"]]
    assert 4 * len(value) == COMMIT_BYTES
