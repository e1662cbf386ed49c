"""Identity, lock, boot counter: made once, whatever crashes; refused if damaged, missing or somebody else's."""

from __future__ import annotations

import os
import random
import stat
from pathlib import Path

import msgspec
import pytest

from kvnode.errors import ConfigInvalid, DataDirLocked, Fatal, IdentityRefused, StateDiverged, StorageFailed
from kvnode.ids import Index, NodeId
from kvnode.raft.messages import Configuration, Member
from kvnode.sim.disk import FakeDisk, SimulatedCrash
from kvnode.storage.datadir import EARLIER_BOOTS_MAX, UNSAFE_FILESYSTEMS, DataDir, Identity, MemberIdentity, PeerBoot
from kvnode.storage.disk import Disk
from kvnode.storage.log_place import LogPlace
from kvnode.storage.realdisk import RealDisk
from kvnode.storage.wal import Stamp, Wal
from tests.storage.wal_world import entry, outcomes, persist

HOME = "/data/n1"


def open_dir(disk: Disk, path: str = HOME, *, seed: int = 1, **changes: object) -> DataDir:
    rng = random.Random(seed)
    options: dict[str, object] = {"member": 1, "cluster_name": "local", "allow_unsafe_filesystem": False} | changes
    return DataDir.open(disk, path, random_u64=lambda: rng.getrandbits(64), **options)  # type: ignore[arg-type]


def test_the_first_start_makes_an_identity_and_later_starts_keep_it() -> None:
    disk = FakeDisk()
    first = open_dir(disk)
    assert first.identity == Identity(1, "local", 1, first.identity.incarnation, 0, {})
    assert first.identity.incarnation > 0
    assert first.boot.counter == 1
    first.close()
    second = open_dir(disk.kill(), seed=2)
    assert second.identity == first.identity
    assert second.boot.counter == 2
    assert second.boot.nonce != first.boot.nonce
    assert (second.wal_dir, second.store_dir, second.snap_dir) == (f"{HOME}/wal", f"{HOME}/store", f"{HOME}/snap")
    assert second.ap_dir == f"{HOME}/ap"


def test_a_node_that_joins_gets_its_id_once() -> None:
    disk = FakeDisk()
    data = open_dir(disk, member=0)
    fresh = data.identity
    assert (fresh.member, fresh.configuration) == (0, None)
    assert fresh.incarnation
    data.close()
    with pytest.raises(IdentityRefused, match="has not yet: join again"):
        open_dir(disk, member=1)
    data = open_dir(disk, member=0)
    assert data.identity == fresh
    members = (Member(NodeId(1), 5, "a:1", "one"), Member(NodeId(4), fresh.incarnation, "d:4", wants_vote=True))
    told = Configuration((NodeId(1),), (NodeId(4),), members, last_id=NodeId(4), feature_level=2)
    given = msgspec.structs.replace(fresh, member=4, cluster_id=9, configuration=told, configuration_index=20)
    data.save_identity(given)
    data.close()
    for member in (0, 4):
        data = open_dir(disk, member=member)
        assert data.identity == given
        data.close()
    with pytest.raises(AssertionError):
        data.save_identity(msgspec.structs.replace(given, member=5))
    with pytest.raises(AssertionError):
        data.save_identity(msgspec.structs.replace(given, configuration_index=19))
    with pytest.raises(IdentityRefused, match="belongs to member 4"):
        open_dir(disk, member=1)


def test_what_is_saved_is_there_after_a_restart() -> None:
    disk = FakeDisk()
    data = open_dir(disk)
    members = {1: MemberIdentity(data.identity.incarnation, "a:1"), 2: MemberIdentity((1 << 64) - 1, "b:2")}
    identity = msgspec.structs.replace(data.identity, cluster_id=(1 << 63) + 5, members=members)
    data.save_identity(identity)
    data.save_peer_boot(2, PeerBoot(4, 99))
    data.save_peer_boot(3, PeerBoot(1, 7))
    data.save_peer_boot(2, PeerBoot(5, 98))
    assert dict(data.peer_boots) == {2: PeerBoot(5, 98), 3: PeerBoot(1, 7)}
    again = open_dir(disk.kill())
    assert again.identity == identity
    assert dict(again.peer_boots) == {2: PeerBoot(5, 98), 3: PeerBoot(1, 7)}


def test_a_member_whose_state_diverged_never_starts_again() -> None:
    disk = FakeDisk()
    data = open_dir(disk)
    data.note_diverged("entry 7: abc here, def on members 1 and 2")
    data.close()
    with pytest.raises(StateDiverged, match=r"says: entry 7: abc here.*remove the member"):
        open_dir(disk.kill())


def test_who_a_directory_belongs_to_never_changes() -> None:
    data = open_dir(FakeDisk())
    with pytest.raises(AssertionError):
        data.save_identity(msgspec.structs.replace(data.identity, incarnation=1))
    data.save_identity(msgspec.structs.replace(data.identity, cluster_id=5))
    with pytest.raises(AssertionError):
        data.save_identity(msgspec.structs.replace(data.identity, cluster_id=6))


def test_two_processes_cannot_share_it() -> None:
    disk = FakeDisk()
    data = open_dir(disk)
    with pytest.raises(DataDirLocked, match=HOME):
        open_dir(disk)
    data.close()
    data.close()
    open_dir(disk).close()


def test_another_member_or_cluster_is_refused_and_the_lock_given_back() -> None:
    disk = FakeDisk()
    open_dir(disk).close()
    with pytest.raises(IdentityRefused, match=r"belongs to member 1, but node\.id is 2"):
        open_dir(disk, member=2)
    with pytest.raises(IdentityRefused, match=r"belongs to cluster 'local', but cluster\.name is 'other'"):
        open_dir(disk, cluster_name="other")
    assert open_dir(disk).boot.counter == 2


def test_an_unknown_format_is_refused() -> None:
    disk = FakeDisk()
    data = open_dir(disk)
    data._save(f"{HOME}/identity", {"format": 2, "anything": []})
    data.close()
    with pytest.raises(IdentityRefused, match="format 2"):
        open_dir(disk)


class UnsafeDisk(FakeDisk):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def filesystem(self, path: str) -> str:
        return self.kind


@pytest.mark.parametrize("kind", sorted(UNSAFE_FILESYSTEMS))
def test_an_unsafe_file_system_is_refused_unless_allowed(kind: str) -> None:
    disk = UnsafeDisk(kind)
    with pytest.raises(ConfigInvalid, match=kind):
        open_dir(disk)
    assert not disk.exists("/data")
    open_dir(disk, allow_unsafe_filesystem=True)


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "overlay", "apfs", ""])
def test_other_file_systems_are_taken(kind: str) -> None:
    open_dir(UnsafeDisk(kind))


@pytest.mark.parametrize("name", ["identity", "boot", "peers"])
def test_a_damaged_file_is_refused_whatever_byte_it_is(name: str) -> None:
    disk = FakeDisk()
    data = open_dir(disk)
    data.save_peer_boot(2, PeerBoot(3, 4))
    data.close()
    image = disk.kill()
    path = f"{HOME}/{name}"
    for offset in range(len(image.content(path))):
        for bit in (0, 6):
            damaged = image.kill()
            damaged.flip_bit(path, offset, bit)
            with pytest.raises(IdentityRefused, match=name):
                open_dir(damaged)


@pytest.mark.parametrize("name", ["identity", "boot", "peers"])
@pytest.mark.parametrize("how", ["missing", "empty", "half"])
def test_a_missing_or_short_file_is_refused(name: str, how: str) -> None:
    disk = FakeDisk()
    open_dir(disk).close()
    path = f"{HOME}/{name}"
    if how == "missing":
        disk.unlink(path)
    else:
        file = disk.open(path)
        file.truncate(0 if how == "empty" else file.size() // 2)
        file.close()
    before = disk.files()
    with pytest.raises(IdentityRefused):
        open_dir(disk)
    assert [file for file in disk.files() if not file.endswith("LOCK")] == [
        file for file in before if not file.endswith("LOCK")
    ]


def test_a_log_without_an_identity_is_refused() -> None:
    disk = FakeDisk()
    disk.mkdir(f"{HOME}/wal")
    disk.open(f"{HOME}/wal/0000000001-00000000000000000001.wal", create=True).close()
    with pytest.raises(IdentityRefused, match="wal holds files, but"):
        open_dir(disk)
    assert not disk.exists(f"{HOME}/identity")


def test_a_store_of_the_available_plane_without_an_identity_is_refused() -> None:
    """As a directory, or as the file that it is on a simulated disk."""
    for made in (f"{HOME}/ap", f"{HOME}/ap/data.mdb"):
        disk = FakeDisk()
        disk.mkdir(HOME if made.endswith("/ap") else f"{HOME}/ap")
        disk.open(made, create=True).close()
        with pytest.raises(IdentityRefused, match="ap holds files, but"):
            open_dir(disk)


def test_a_missing_log_directory_is_refused() -> None:
    real = FakeDisk()
    open_dir(real).close()

    class WithoutWal(FakeDisk):
        def exists(self, path: str) -> bool:
            return not path.endswith("/wal") and super().exists(path)

    disk = WithoutWal()
    disk._root = real._root
    with pytest.raises(IdentityRefused, match="wal is missing"):
        open_dir(disk)


def test_an_error_of_the_disk_says_which_directory() -> None:
    total = FakeDisk()
    open_dir(total)
    for number in range(1, total.changes + 1):
        disk = FakeDisk()
        disk.fail_at(number)
        with pytest.raises(StorageFailed, match=HOME):
            open_dir(disk)
        open_dir(disk.kill()).close()


def first_start(disk: FakeDisk) -> Wal:
    """What a one-node cluster does at its first start: identity, log, bootstrap, the first entry."""
    data = open_dir(disk)
    created = data.identity.cluster_id == 0
    stamp = Stamp(7, 1, data.identity.incarnation)
    wal, _ = Wal.open(
        LogPlace(disk, data.wal_dir, stamp, segment_bytes=8192, batch_bytes_max=4096, random_u64=lambda: 5),
        applied_index=Index(0),
        create=created,
    )
    if created:
        data.save_identity(msgspec.structs.replace(data.identity, cluster_id=7))
    return wal


def test_first_boot_crash_sweep() -> None:
    """S72, F2: a crash at any call of the first start ends in the same identity or in a fresh beginning."""
    change = 0
    finished = False
    while not finished:
        change += 1
        disk = FakeDisk(random.Random(change))
        disk.crash_at(change)
        try:
            first_start(disk)
            finished = True
        except SimulatedCrash:
            pass
        for after, taken in outcomes(disk, exhaustive_max=60, sampled=15, seed=change):
            where = f"crash before {change}, choices {taken}"
            known = after.kill()
            before = open_dir(known, seed=9).identity if known.exists(f"{HOME}/identity") else None
            wal = first_start(after)
            data = _identity(after)
            if before is not None:
                assert data.incarnation == before.incarnation, where
            wal.write([persist(1, entry(1), state=(1, 1))])
            again = after.kill()
            assert first_start(again).last_index == 1, where
            assert _identity(again) == data, where
    assert change > 20


def _identity(disk: FakeDisk) -> Identity:
    return open_dir(disk.kill(), seed=3).identity


def test_boot_counter_and_peers_survive_a_crash_anywhere() -> None:
    """A counter never goes back below one that was returned; a saved peer is the old or the new one."""

    def work(disk: FakeDisk, told: list[int]) -> None:
        for _ in range(3):
            data = open_dir(disk)
            told.append(data.boot.counter)
            data.save_peer_boot(2, PeerBoot(data.boot.counter, 1))
            data.close()

    change = 0
    finished = False
    while not finished:
        change += 1
        disk = FakeDisk(random.Random(change))
        disk.crash_at(change)
        told: list[int] = []
        try:
            work(disk, told)
            finished = True
        except SimulatedCrash:
            pass
        for after, _ in outcomes(disk, exhaustive_max=20, sampled=8, seed=change):
            data = open_dir(after)
            assert data.boot.counter > max(told, default=0)
            met = data.peer_boots.get(2, PeerBoot(0, 0)).counter
            assert met in ({told[-1], told[-1] - 1} if told else {0})


def test_a_start_remembers_those_before_it_up_to_a_bound() -> None:
    disk = FakeDisk()
    numbers: list[int] = []
    for _ in range(EARLIER_BOOTS_MAX + 3):
        data = open_dir(disk, seed=len(numbers))
        assert data.boot.earlier == tuple(reversed(numbers))[:EARLIER_BOOTS_MAX]
        numbers.append(data.boot.nonce)
        data.close()
    assert len(set(numbers)) == len(numbers)


def test_on_a_real_disk(tmp_path: Path) -> None:
    home = tmp_path / "data" / "n1"
    data = open_dir(RealDisk(), str(home), allow_unsafe_filesystem=True)
    with pytest.raises(DataDirLocked):
        open_dir(RealDisk(), str(home), allow_unsafe_filesystem=True)
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert stat.S_IMODE((home / "identity").stat().st_mode) == 0o600
    assert sorted(os.listdir(home)) == ["LOCK", "boot", "identity", "peers", "snap", "store", "wal"]
    data.close()
    open_dir(RealDisk(), str(home) + "/", allow_unsafe_filesystem=True).close()


def test_refusals_are_fatal() -> None:
    assert issubclass(IdentityRefused, Fatal)
    assert issubclass(DataDirLocked, Fatal)
