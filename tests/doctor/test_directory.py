"""What the doctor finds in real directories: sound, damaged, wiped, foreign, in use. They stay as they were."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from kvnode.config import Config
from kvnode.doctor.directory import fits_configuration, gather
from kvnode.doctor.directory_facts import DirectoryFacts, LogFacts
from kvnode.doctor.directory_rules import judge
from kvnode.doctor.findings import Finding
from kvnode.doctor.reader import ReadLog
from kvnode.storage.available_shelf import LmdbShelf
from kvnode.storage.available_store import AvailableStore
from kvnode.storage.datadir import OwnBoot
from kvnode.storage.lmdb_walk import DATA_FILE
from kvnode.storage.quarantine import Quarantine, write_note
from kvnode.storage.realdisk import RealDisk
from kvnode.storage.segment import HEADER_BYTES, Stamp
from kvnode.storage.small_file import write_small
from tests.doctor.homes import (
    APPLIED,
    CLUSTER_ID,
    ENTRIES,
    carry_out_here,
    content,
    fill_store,
    flip,
    make_home,
    segments,
)

CONFIG = Config()


def look(home: Path, *, disk_test: bool | None = False) -> DirectoryFacts:
    return gather(str(home), disk_test=disk_test, carry_out=carry_out_here, on_sign=lambda _what, _text: None)


def findings(home: Path, *, disk_test: bool | None = False) -> list[Finding]:
    """All but what depends on the machine that the test runs on."""
    found = judge(look(home, disk_test=disk_test), CONFIG)
    return [finding for finding in found if finding.check not in {"filesystem", "space"}]


def grave(home: Path) -> list[tuple[str, str, str]]:
    return [(one.level, one.check, one.what) for one in findings(home) if one.level != "ok"]


def only(home: Path) -> Finding:
    (found,) = [one for one in findings(home) if one.level != "ok"]
    return found


def test_a_sound_directory_is_left_as_it_was(tmp_path: Path) -> None:
    home = make_home(tmp_path / "n1")
    before = content(home)
    found = findings(home)
    assert [one.check for one in found] == ["lock", "identity", "permissions", "log", "store"]
    assert {one.level for one in found} == {"ok"}
    assert "member 1 of cluster 'local' (00000000000000c1), 3 members, format 1, started 1 time" in found[1].what
    assert f"entries 1-{ENTRIES}, {len(segments(home))} segments" in found[3].what
    assert f"applied to entry {APPLIED}, {ENTRIES - APPLIED} to apply at the next start" in found[4].what
    assert content(home) == before


def test_the_disk_test_leaves_no_file(tmp_path: Path) -> None:
    home = make_home(tmp_path / "n1")
    before = {name: one[0] for name, one in content(home).items()}
    found = [one for one in findings(home, disk_test=None) if one.check == "disk"]
    assert "48 small writes with fdatasync" in found[0].what
    assert {name: one[0] for name, one in content(home).items()} == before


def test_a_running_node_is_seen_and_left_alone(tmp_path: Path) -> None:
    home = make_home(tmp_path / "n1")
    lock = RealDisk().lock(f"{home}/LOCK")
    facts = look(home, disk_test=None)
    assert (facts.is_held, facts.holder) == (True, os.getpid())
    assert facts.store is None
    assert facts.disk is None
    assert isinstance(facts.log, LogFacts)
    assert facts.log.start is None
    assert f"in use by process {os.getpid()}" in only(home).what
    assert look(home, disk_test=True).disk is not None
    lock.release()
    assert not look(home).is_held


def test_a_node_may_start_while_it_is_read_and_is_noticed(tmp_path: Path) -> None:
    home = make_home(tmp_path / "n1")
    locks = []

    def start(_what: str, _text: str) -> None:
        locks.append(RealDisk().lock(f"{home}/LOCK"))  # BlockingIOError, were it held
        if len(locks) == 1:
            locks[0].release()

    facts = gather(str(home), disk_test=False, carry_out=carry_out_here, on_sign=start)
    assert facts.was_started
    for lock in locks:
        lock.release()
    (told,) = [one for one in judge(facts, CONFIG) if one.check in {"log", "store"}]
    assert (told.level, told.do) == ("note", (f"kvnode doctor {home}",))


def test_damage_in_the_log_is_named_by_file_and_offset(tmp_path: Path) -> None:
    home = make_home(tmp_path / "n1")
    flip(segments(home)[-2], HEADER_BYTES + 8)
    found = only(home)
    assert (found.level, found.check) == ("problem", "log")
    assert f"damaged: {segments(home)[-2]}, offset {HEADER_BYTES}: no valid record" in found.what
    assert "The next start sets the damage aside" in found.what
    assert found.do[0] == "kvnode serve --config FILE"


def test_damage_where_a_start_does_not_read_is_found_too(tmp_path: Path) -> None:
    home = make_home(tmp_path / "n1", applied=ENTRIES)
    flip(segments(home)[0], HEADER_BYTES + 8)
    found = only(home)
    assert f"damaged: {segments(home)[0]}, offset {HEADER_BYTES}: no valid record" in found.what
    assert "The next start does not read there" in found.what


def test_a_sole_member_is_not_told_to_wait_for_peers(tmp_path: Path) -> None:
    home = make_home(tmp_path / "n1", members=1)
    flip(segments(home)[-2], HEADER_BYTES + 8)
    found = only(home)
    assert "The next start is refused" in found.what
    assert any("snapshot restore" in command for command in found.do)


def test_a_damaged_log_without_a_certain_vote_is_refused(tmp_path: Path) -> None:
    home = make_home(tmp_path / "n1")
    flip(home / "wal/votes", 40)
    assert [one[:2] for one in grave(home)] == [("warning", "votes")]
    flip(segments(home)[-2], HEADER_BYTES + 8)
    found = findings(home)[-2]
    assert found.check == "log"
    assert "The next start is refused" in found.what
    assert any("--replace 1" in command for command in found.do)


def test_a_torn_tail_is_told_apart(tmp_path: Path) -> None:
    home = make_home(tmp_path / "n1", close=False)
    last = segments(home)[-1]
    data = bytearray(last.read_bytes())
    end = len(data.rstrip(b"\0"))
    end += -end % 8
    data[end + 8 : end + 40] = b"half a record of a write, no more"[:32]
    last.write_bytes(data)
    found = only(home)
    assert (found.level, found.check) == ("note", "log")
    assert f"torn tail: {last}, offset {end}: 40 bytes" in found.what


def test_a_log_that_ends_before_the_store_is_damage(tmp_path: Path) -> None:
    home = make_home(tmp_path / "n1")
    fill_store(home / "store", ENTRIES + 5)
    found = only(home)
    assert f"the log ends at index {ENTRIES}, but the store has applied index {ENTRIES + 5}" in found.what


@pytest.mark.parametrize(
    ("installed", "outcome"),
    [
        ((ENTRIES + 5, 3), "installing"),  # the log ends before it
        ((ENTRIES, 3), "installing"),  # the log has an entry of another term there
        ((ENTRIES - 5, 3), "refused"),  # and has even committed it
        ((ENTRIES - 5, 2), "whole"),  # the log has followed
        (None, "salvaged"),  # no snapshot: the log has lost its end
    ],
)
def test_a_snapshot_that_the_log_has_not_followed(
    tmp_path: Path, installed: tuple[int, int] | None, outcome: str
) -> None:
    home = make_home(tmp_path / "n1")
    applied = installed[0] if installed else ENTRIES + 5
    stamp = Stamp(CLUSTER_ID, 1, look(home).identity.incarnation)  # type: ignore[union-attr]
    job = ReadLog(f"{home}/wal", stamp, applied, installed, has_peers=True)
    log = carry_out_here(job, LogFacts, on_sign=lambda _: None)
    assert log.start.outcome == outcome


def test_what_an_install_has_left_goes_by_itself(tmp_path: Path) -> None:
    home = make_home(tmp_path / "n1")
    (home / "store/env-0000000002").mkdir(mode=0o700)
    (home / "snap/receiving").touch(mode=0o600)
    found = grave(home)
    assert [one[:2] for one in found] == [("note", "leftovers")] * 2
    assert "goes on with it" in found[0][2]
    assert f"{home}/store/env-0000000002: of an install" in found[1][2]


def test_a_wiped_log_must_not_vote_again(tmp_path: Path) -> None:
    home = make_home(tmp_path / "n1")
    for file in segments(home):
        file.unlink()
    found = only(home)
    assert (found.level, found.check) == ("problem", "log")
    assert "holds no log, but there was one" in found.what
    assert any("--replace 1" in command for command in found.do)


def test_a_wiped_store_is_made_again_from_a_whole_log(tmp_path: Path) -> None:
    home = make_home(tmp_path / "n1")
    shutil.rmtree(home / "store")
    (home / "store").mkdir(mode=0o700)
    found = only(home)
    assert (found.level, found.check) == ("note", "store")
    (home / "store").rmdir()
    assert "is missing beside the identity" in grave(home)[0][2]


def test_a_wiped_directory_is_a_new_member(tmp_path: Path) -> None:
    home = tmp_path / "n1"
    home.mkdir()
    (found,) = judge(look(home), CONFIG)
    assert (found.level, found.check) == ("warning", "identity")


def test_something_else_is_not_a_data_directory_and_not_to_be_changed(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear sir")
    (found,) = judge(look(tmp_path), CONFIG)
    assert found.is_unread
    assert "is not a data directory" in found.what
    assert found.do == ()
    make_home(tmp_path / "n1")
    (found,) = judge(look(tmp_path), CONFIG)
    assert found.do == (f"kvnode doctor {tmp_path}/n1",)


def test_a_first_start_that_was_interrupted_begins_again(tmp_path: Path) -> None:
    home = make_home(tmp_path / "n1")
    for name in ("identity", "peers"):
        (home / name).unlink()
    for name in ("wal", "store", "snap"):
        shutil.rmtree(home / name)
        (home / name).mkdir(mode=0o700)
    write_small(RealDisk(), f"{home}/boot", OwnBoot(0, 0))
    assert [one.level for one in findings(home) if one.check == "identity"] == ["note"]
    write_small(RealDisk(), f"{home}/boot", OwnBoot(3, 0))
    assert [one.level for one in findings(home) if one.check == "identity"] == ["problem"]


def test_the_log_of_another_member_is_told(tmp_path: Path) -> None:
    home, other = make_home(tmp_path / "n1"), make_home(tmp_path / "n2", member=2)
    shutil.rmtree(home / "wal")
    shutil.move(other / "wal", home / "wal")
    texts = [text for _, _, text in grave(home)]
    assert any("written by member 2" in text and "identity beside it is member 1" in text for text in texts)
    assert any("The next start is refused" in text for text in texts)


def test_identity_missing_damaged_or_of_another_format(tmp_path: Path) -> None:
    home = make_home(tmp_path / "n1")
    identity = json.loads((home / "identity").read_bytes().split(b"\n")[0])
    write_small(RealDisk(), f"{home}/identity", {**identity, "format": 9})
    assert ("problem", "format") in [one[:2] for one in grave(home)]
    flip(home / "identity", 5)
    assert any("its checksum is wrong: a start is refused" in one[2] for one in grave(home))
    (home / "identity").unlink()
    assert any("identity is missing, but there are files" in one[2] for one in grave(home))


def test_the_note_of_a_quarantine_is_told(tmp_path: Path) -> None:
    home = make_home(tmp_path / "n1")
    write_note(RealDisk(), f"{home}/wal", Quarantine(5, "wal/x, offset 9: rot", "wal/x", 9, is_set_aside=True))
    found = only(home)
    assert (found.level, found.check) == ("warning", "quarantine")
    assert "does not vote until its peers have restored it: wal/x, offset 9: rot" in found.what


def test_permissions_and_leftovers(tmp_path: Path) -> None:
    home = make_home(tmp_path / "n1")
    (home / "wal").chmod(0o755)
    (home / "wal" / "torn-0000000001-0000004096.bin").touch(mode=0o600)
    (home / "wal" / "damaged-000001-x.wal").touch(mode=0o600)
    (home / "notes.txt").touch(mode=0o600)
    (home / "DIVERGED").touch(mode=0o600)
    assert [(level, check) for level, check, _ in grave(home)] == [
        ("warning", "permissions"),
        ("problem", "divergence"),
        ("note", "leftovers"),
        ("note", "leftovers"),
        ("note", "leftovers"),
    ]
    (home / "peers").chmod(0o400)
    assert any("its owner cannot use" in text for _, _, text in grave(home))


def make_available(home: Path, *, member: int = 1) -> AvailableStore:
    store = AvailableStore.open(
        LmdbShelf(RealDisk(), str(home)), member=member, cluster_id=CLUSTER_ID, random_u64=lambda: member
    )
    store.write([(b"a", b"1" * 50), (b"b", b"2" * 50)], ())
    store.close()
    return store


def test_the_store_of_the_available_plane(tmp_path: Path) -> None:
    home = make_home(tmp_path / "n1")
    make_available(home)
    before = content(home)
    assert grave(home) == []
    (told,) = [one.what for one in findings(home) if one.check == "ap"]
    assert told.startswith("2 rows read and intact, ")
    assert content(home) == before
    data = home / "ap" / DATA_FILE
    flip(data, data.read_bytes().index(b"1" * 50))
    assert only(home).level == "problem"
    assert "is damaged: the checksum of row 0261 is wrong. The next start sets it aside" in only(home).what
    flip(data, 0)
    assert "is damaged: meta page 0 is none of LMDB's" in only(home).what
    make_available(home)  # as the next start does
    assert only(home).level == "note"
    assert "ap.damaged-1" in only(home).what
    shutil.rmtree(home / "ap.damaged-1")
    make_available(home, member=2)
    assert ("problem", "ap") in [(level, check) for level, check, _ in grave(home)]
    assert "belongs to member 2" in next(what for _, check, what in grave(home) if check == "ap")


def test_a_configuration_of_another_node_does_not_fit(tmp_path: Path) -> None:
    facts = look(make_home(tmp_path / "n2", member=2))
    told = fits_configuration(facts, Config())
    assert told == ["it belongs to member 2, but node.id is 1"]
    assert any(one.check == "settings" for one in judge(facts, Config(), contradictions=told))


def test_a_log_on_a_disk_of_its_own_is_followed(tmp_path: Path) -> None:
    home = make_home(tmp_path / "n1")
    shutil.move(home / "wal", tmp_path / "fast")
    (home / "wal").symlink_to(tmp_path / "fast")
    (tmp_path / "link").symlink_to(home)
    assert grave(home) == grave(tmp_path / "link") == []
    (home / "wal").unlink()
    (home / "wal").symlink_to(tmp_path / "gone")
    (home / "loop").symlink_to(home)
    assert ("problem", "log") in [one[:2] for one in grave(home)]


def test_a_missing_directory_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        look(tmp_path / "nothing")
