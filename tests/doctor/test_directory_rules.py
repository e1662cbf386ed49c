"""Rules for a directory that depend on the machine: space, file system, owners, the speed of the disk."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from kvnode.config import Config, StorageSection
from kvnode.doctor.directory_facts import DirectoryFacts, DiskSpeed, FileFacts, LogFacts, NextStart, StoreFacts, Unread
from kvnode.doctor.directory_rules import judge
from kvnode.doctor.findings import Finding
from kvnode.storage.datadir import Identity, MemberIdentity, OwnBoot

GIB = 1 << 30
FILES = (
    FileFacts("", is_directory=True, mode=0o700, owner=7, bytes=4096),
    *[FileFacts(name, is_directory=True, mode=0o700, owner=7, bytes=4096) for name in ("wal", "store", "snap")],
    FileFacts("store/CURRENT", is_directory=False, mode=0o600, owner=7, bytes=2 * GIB),
)
LOG = LogFacts(1, 0xC1, 1, 50, 2, 60, 3, 1, 49, 0, (), NextStart("whole", last_index=50))
SOUND = DirectoryFacts(
    path="data/n1",
    files=FILES,
    user=7,
    filesystem="ext4",
    free_bytes=100 * GIB,
    identity=Identity(
        1, "local", 1, 0x1234, 0xC1, {id_: MemberIdentity(id_, f"h{id_}:1") for id_ in (1, 2, 3)}, has_log=True
    ),
    boot=OwnBoot(3, 5),
    peers=2,
    votes_certain=True,
    log=LOG,
    store=StoreFacts(is_there=True, engine="lmdb", applied_index=40, revision=30, rows=70),
    disk=DiskSpeed(48, 0.4, 2.5, 3.0),
)


def grave(config: Config = Config(), **changes: Any) -> list[Finding]:  # noqa: B008
    return [one for one in judge(msgspec.structs.replace(SOUND, **changes), config) if one.level != "ok"]


def only(config: Config = Config(), **changes: Any) -> Finding:  # noqa: B008
    (found,) = grave(config, **changes)
    return found


def test_a_sound_directory_has_nothing_to_do():
    assert grave() == []


def test_space():
    assert (only(free_bytes=1 << 20).level, only(free_bytes=1 << 20).check) == ("problem", "space")
    assert "a second copy of the store" in only(free_bytes=2 * GIB).what
    assert "no inode free" in only(free_names=0).what
    roomy = Config(storage=StorageSection(free_bytes_min=0))
    assert only(roomy, free_bytes=1 << 20).level == "warning"


def test_file_systems_that_promise_nothing():
    assert only(filesystem="nfs4").level == "problem"
    allowed = Config(storage=StorageSection(allow_unsafe_filesystem=True))
    assert only(allowed, filesystem="tmpfs").level == "warning"
    assert grave(filesystem="") == []


def test_files_of_another_user():
    foreign = FileFacts("wal/votes", is_directory=False, mode=0o600, owner=0, bytes=4096)
    found = only(files=(*FILES, foreign))
    assert (found.level, found.do) == ("problem", ("sudo chown -R 7 data/n1",))
    assert only(user=1_000).level == "note"
    assert grave(user=0) == []


@pytest.mark.parametrize(
    ("speed", "level"), [((0.3, 29.0), ""), ((8.0, 31.0), "warning"), ((300.0, 1_200.0), "problem")]
)
def test_the_speed_of_the_disk(speed: tuple[float, float], level: str):
    found = grave(disk=DiskSpeed(48, *speed, speed[1]))
    assert [(one.level, one.check) for one in found] == ([(level, "disk")] if level else [])


def test_what_could_not_be_read_is_said_and_what_was_given_up_is_no_fault():
    found = only(store=Unread("killed"))
    assert (found.level, found.is_unread) == ("problem", True)
    assert "mv data/n1/store" in found.do[0]
    found = only(log=Unread("too long", is_fault=False))
    assert (found.level, found.is_unread) == ("note", False)
    assert only(disk=Unread("the disk has not answered for 30 s")).level == "problem"


def test_a_damaged_store_is_rebuilt_only_from_a_whole_log():
    damaged = StoreFacts(is_there=True, problems=("row 10 cannot be decoded",))
    assert "mv data/n1/store" in only(store=damaged).do[0]
    later = msgspec.structs.replace(LOG, first_index=30)
    assert "--replace 1" in only(store=damaged, log=later).do[1]
    gone = only(store=StoreFacts(is_there=False), log=later)
    assert (gone.level, gone.check) == ("problem", "store")


def test_damage_beside_a_running_node_is_looked_at_again():
    log = msgspec.structs.replace(LOG, problems=(("wal/x, offset 9", "rot"),), start=None)
    found = [one for one in grave(is_held=True, store=None, disk=None, log=log) if one.check == "log"]
    assert "A node is writing here: look again" in found[0].what


def test_before_it_has_joined():
    found = only(identity=Identity(1, "local", 0, 0x1234), log=None, store=None)
    assert (found.level, found.do) == ("note", ("kvnode serve --config FILE --join URL",))


def test_an_install_that_a_crash_interrupted_is_no_damage():
    log = msgspec.structs.replace(LOG, start=NextStart("installing", last_index=90))
    found = only(log=log)
    assert (found.level, found.check) == ("note", "log")
    assert "a snapshot's, up to entry 90" in found.what


def test_before_all_initial_members_have_met():
    identity = Identity(1, "local", 1, 0x1234)
    assert only(identity=identity, log=None, store=None).what.endswith("it has not met all initial members yet")


def test_who_may_not_read_is_not_told_that_anything_is_lost():
    found = judge(
        msgspec.structs.replace(SOUND, user=1_000, denied=("wal", "identity"), identity=None, log=None), Config()
    )
    assert [(one.check, one.is_unread) for one in found] == [("lock", False), ("permissions", True)]
    assert "may not read data/n1/wal, data/n1/identity" in found[1].what
    assert found[1].do == ("sudo -u '#7' kvnode doctor data/n1",)


def test_the_other_small_files_must_be_there():
    assert [one.check for one in grave(boot=None, peers=Unread("peers is damaged"))] == ["identity", "identity"]
