"""Sectors that the disk cannot read (EIO): damage of the log, wherever they are. Fault F24, scenario S66."""

from __future__ import annotations

import pytest

from kvnode.errors import LogCorrupted
from kvnode.storage.segment import HEADER_BYTES, SECTOR_BYTES
from kvnode.storage.wal import Wal
from tests.storage.salvage_world import LONG, SHORT, VOTES, judge, scrub, start
from tests.storage.wal_world import made, segments


def scrubbed(wal: Wal) -> LogCorrupted | None:
    try:
        scrub(wal)
    except LogCorrupted as damage:
        return damage
    return None


@pytest.mark.parametrize("applied", [0, 13])
def test_a_sector_that_cannot_be_read_is_damage_wherever_it_is(applied: int) -> None:
    """F24: at a start, or later by the scrubber, and in the newest segment also behind its end: never a torn tail."""
    image, before = made(LONG)
    verdicts = {"start": 0, "scrubber": 0, "beyond a seal": 0}
    for path in segments(image):
        for sector in range(len(image.content(path)) // SECTOR_BYTES):
            where = f"{path} sector {sector}"
            disk = image.kill()
            disk.unreadable_sector(path, sector)
            wal, found, salvaged = start(disk, applied=applied)
            if salvaged is not None:
                verdicts["start"] += 1
                assert salvaged.damage.detail["file"] == path, where
            else:
                assert path != segments(image)[-1], where
                damage = scrubbed(wal)
                if damage is None:
                    verdicts["beyond a seal"] += 1
                    continue
                verdicts["scrubber"] += 1
                assert damage.detail["file"] == path, where
                wal.note_damage(damage)
                disk = disk.kill()
                wal, found, salvaged = start(disk, applied=applied)
                assert salvaged is not None, where
            assert found.report.torn is None, where
            assert judge(LONG, before, wal, found, where) == "quarantine"
            scrub(wal)
            wal.close()
            wal, found, salvaged = start(disk.kill(), applied=applied)
            assert salvaged is None, where
            assert judge(LONG, before, wal, found, where) == "quarantine"
    print(verdicts)
    assert verdicts["start"] > 20
    assert (verdicts["scrubber"] > 10) == bool(applied)


def test_what_stands_before_an_unreadable_sector_is_kept_and_what_can_be_read_behind_it_copied() -> None:
    image, before = made(SHORT)
    (path,) = segments(image)
    content = image.content(path)
    sector = HEADER_BYTES // SECTOR_BYTES + 1
    image.unreadable_sector(path, sector)
    _, found, salvaged = start(image)
    assert salvaged is not None
    assert salvaged.damage.message.count("input/output error") == 1
    assert 2 <= found.last_index < len(before[0])
    (saved,) = [name for name in image.files() if "/torn-" in name]
    copy, offset = image.content(saved), int(saved[-14:-4])
    assert copy.rstrip(b"\0") in content[offset:].replace(content[sector * 512 : (sector + 1) * 512], bytes(512))
    assert len(copy) == len(content) - offset


def test_an_unreadable_copy_of_the_vote_is_a_damaged_one() -> None:
    image, before = made(LONG)
    for sector in (0, 8):
        disk = image.kill()
        disk.unreadable_sector(VOTES, sector)
        wal, found, _ = start(disk)
        assert judge(LONG, before, wal, found, sector) == "same"
        disk = image.kill()
        disk.unreadable_sector(VOTES, sector)
        disk.unreadable_sector(segments(disk)[1], 9)
        with pytest.raises(LogCorrupted, match="term and vote cannot be proven"):
            start(disk)
