"""Salvage: a damaged log goes on from its intact beginning, in quarantine. Reliability §5.7, faults F17 to F22.

The rule under every test: a log is never shorter than what was acknowledged without the note that says so, term and
vote are never older, and nothing is called committed that was cut off later.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from zlib import crc32

import pytest

from kvnode.errors import Fatal, LogCorrupted
from kvnode.ids import Index
from kvnode.sim.disk import FakeDisk
from kvnode.storage.segment import HEADER_BYTES, SECTOR_BYTES
from kvnode.storage.wal import Wal
from tests.storage.crash_states import stop_everywhere
from tests.storage.salvage_world import LONG, SHORT, VOTES, judge, scrub, start
from tests.storage.wal_world import (
    HOME,
    Expected,
    LogView,
    Step,
    entry,
    made,
    new_disk,
    outcomes,
    persist,
    run,
    segments,
)


def unreadable(wal: Wal) -> LogCorrupted | None:
    try:
        wal.read(Index(1), Index(1 << 40), 1 << 40)
    except LogCorrupted as damage:
        return damage
    return None


def damages(steps: list[Step], seed: int) -> Iterator[tuple[str, FakeDisk, LogView]]:
    """A flip in each record, in headers, zeroed sectors, files that are missing, empty or cut short."""
    image, before = made(steps)
    rng = random.Random(seed)
    for path in segments(image):
        end = len(image.content(path).rstrip(b"\0"))
        offsets = [
            *rng.sample(range(160), 12),
            HEADER_BYTES - 2,
            *range(HEADER_BYTES, end, 7 if steps is SHORT else 61),
        ]
        for offset in offsets:
            disk = image.kill()
            disk.flip_bit(path, offset, rng.randrange(8))
            yield f"flip {path} at {offset}", disk, before
        for sector in range(0, end, SECTOR_BYTES):
            disk = image.kill()
            disk.damage(path, sector, bytes(SECTOR_BYTES))
            yield f"zero {path} at {sector}", disk, before
        for kind in ("missing", "empty", "half"):
            disk = image.kill()
            if kind == "missing":
                disk.unlink(path)
                disk.fsync_dir(HOME)
            else:
                file = disk.open(path)
                file.truncate(0 if kind == "empty" else end // 2)
                file.fsync()
            yield f"{kind} {path}", disk, before


@pytest.mark.slow
@pytest.mark.parametrize("steps", [SHORT, LONG], ids=["short", "long"])
@pytest.mark.parametrize("applied", [0, 4])
def test_damage_anywhere_ends_in_the_same_log_or_in_quarantine(steps: list[Step], applied: int) -> None:
    counts: dict[str, int] = {}
    for what, damaged, before in damages(steps, applied):
        disk = damaged
        wal, found, salvaged = start(disk, applied=applied)
        if applied and salvaged is None and (damage := unreadable(wal)) is not None:
            wal.note_damage(damage)  # a start skips segments whose entries are applied; reading or scrubbing does not
            disk = disk.kill()
            wal, found, salvaged = start(disk, applied=applied)
            assert salvaged is not None, what
        verdict = judge(steps, before, wal, found, what)
        assert (salvaged is not None) == (verdict == "quarantine"), what
        counts[verdict] = counts.get(verdict, 0) + 1
        wal.close()
        wal, found, salvaged = start(disk.kill(), applied=applied)
        assert judge(steps, before, wal, found, what) == verdict, what
        assert salvaged is None, what
    print(counts)
    assert counts["quarantine"] > 50


@pytest.mark.slow
def test_a_crash_at_any_step_of_salvage_leaves_the_quarantine() -> None:
    """Every change of the salvage, with a sample of what a power loss may leave: the next start goes on from there."""
    image, before = made(LONG)
    damaged = segments(image)[1]
    states = 0

    def damaged_disk() -> FakeDisk:
        disk = image.kill()
        disk.flip_bit(damaged, HEADER_BYTES + 300, 4)
        return disk

    for disk, change in stop_everywhere(damaged_disk, start):
        for after, taken in outcomes(disk, exhaustive_max=30, sampled=6, seed=change):
            wal, found, _ = start(after)
            states += 1
            assert judge(LONG, before, wal, found, (change, taken)) == "quarantine", (change, taken)
            wal.close()
            _, again, salvaged = start(after.kill())
            assert salvaged is None, (change, taken)
            assert again.last_index == found.last_index, (change, taken)
    print(f"{change} crash points, {states} states")
    assert change > 15


def test_the_log_goes_on_and_the_quarantine_ends_when_it_is_lifted() -> None:
    image, before = made(LONG)
    image.flip_bit(segments(image)[1], HEADER_BYTES + 300, 1)
    wal, found, salvaged = start(image)
    assert salvaged is not None
    assert 0 < found.last_index < 13
    assert [path.rpartition("/")[2][:14] for path in salvaged.set_aside] == ["damaged-000001"] * len(salvaged.set_aside)
    rest = before[0][found.last_index :]
    wal.write([persist(1, *rest, state=(5, 0), commit=12)])
    wal.close()
    image = image.kill()
    wal, found, _ = start(image)
    assert found.quarantine is not None
    assert tuple(wal.read(Index(1), Index(99), 1 << 30)) == before[0]
    wal.lift_quarantine()
    wal.close()
    _, found, _ = start(image.kill())
    assert found.quarantine is None


def test_a_lifted_quarantine_stays_lifted_after_a_power_loss() -> None:
    image, _ = made(LONG)
    image.flip_bit(segments(image)[0], HEADER_BYTES + 300, 1)
    wal, _, _ = start(image)
    wal.lift_quarantine()
    for after, taken in outcomes(image, exhaustive_max=50, sampled=20, seed=3):
        assert start(after)[1].quarantine is None, taken


def test_what_a_lost_truncation_cut_off_is_not_called_committed() -> None:
    """The store has applied entry 3 of term 2; the log that is left ends with the entry 3 that was cut off."""
    image, _ = made(SHORT)
    (path,) = segments(image)
    hits = 0
    for offset in range(HEADER_BYTES, len(image.content(path).rstrip(b"\0")), 8):
        disk = image.kill()
        disk.flip_bit(path, offset, 2)
        wal, found, _ = start(disk, applied=4)
        kept = wal.read(Index(1), Index(99), 1 << 30)
        if len(kept) == 3 and kept[2].term == 1:
            hits += 1
            assert found.quarantine is not None
            assert found.committed == 2
            assert [one.index for one in found.tail] == [3], "above what is committed it must stay in memory"
    assert hits


def test_without_a_certain_copy_of_the_vote_a_damaged_log_is_refused() -> None:
    image, _ = made(LONG)
    path = segments(image)[1]
    image.flip_bit(path, HEADER_BYTES + 300, 1)
    for harm in (0, 4096, None):
        disk = image.kill()
        if harm is None:
            disk.unlink(VOTES)
            disk.fsync_dir(HOME)
        else:
            disk.flip_bit(VOTES, harm + 45, 1)
        with pytest.raises(LogCorrupted, match="term and vote cannot be proven"):
            start(disk)


def test_a_damaged_copy_of_the_vote_beside_a_whole_log_is_renewed() -> None:
    image, before = made(LONG)
    for harm in (0, 4096):
        disk = image.kill()
        disk.flip_bit(VOTES, harm + 45, 1)
        wal, found, _ = start(disk)
        assert judge(LONG, before, wal, found, harm) == "same"
        wal.close()
        again = disk.kill()
        again.flip_bit(segments(again)[1], HEADER_BYTES + 300, 1)
        assert start(again)[1].quarantine is not None, "the copy is certain again"


def test_a_tail_that_vanished_whole_is_noticed_by_the_copy_of_the_vote() -> None:
    """The last write, a vote, reads as zeros and no mark follows: nothing in the log shows that it was there."""
    disk, expected = new_disk(), Expected()
    run(disk, SHORT[:-1], expected)
    image = disk.kill()
    path = segments(image)[-1]
    end = len(image.content(path).rstrip(b"\0"))
    wal, _, _ = start(image)
    wal.write([persist(1, state=(9, 3))])
    image = image.kill()
    assert segments(image) == [path]
    lost = image.content(path)[end:].rstrip(b"\0")
    image.damage(path, end + -end % 8, bytes(len(lost)))
    wal, found, salvaged = start(image)
    assert salvaged is not None
    assert "the copy of them shows" in salvaged.damage.message
    assert (found.hard_state.term, found.hard_state.vote) == (9, 3)
    assert found.quarantine is not None


def test_alone_nothing_is_salvaged() -> None:
    image, _ = made(LONG)
    image.flip_bit(segments(image)[1], HEADER_BYTES + 300, 1)
    with pytest.raises(LogCorrupted):
        start(image, may_salvage=False)
    assert not [path for path in image.files() if "damaged-" in path]


def test_a_log_that_is_gone_is_restored_by_peers_as_long_as_the_vote_is_there() -> None:
    image, before = made(LONG)
    for path in segments(image):
        image.unlink(path)
    image.fsync_dir(HOME)
    wal, found, _ = start(image, applied=9)
    assert judge(LONG, before, wal, found, "all gone") == "quarantine"
    assert (found.last_index, found.committed) == (0, 0)


def test_a_note_that_cannot_be_read_is_no_reason_to_vote() -> None:
    image, _ = made(LONG)
    image.flip_bit(segments(image)[1], HEADER_BYTES + 300, 1)
    start(image)
    image = image.kill()
    image.flip_bit(f"{HOME}/quarantine", 10, 1)
    with pytest.raises(LogCorrupted, match="what this node has lost"):
        start(image)


def as_of_a_later_version(image: FakeDisk, path: str) -> None:
    header = bytearray(image.content(path)[:HEADER_BYTES])
    header[8] = 2
    header[-4:] = crc32(bytes(header[:-4])).to_bytes(4, "little")
    image.damage(path, 0, bytes(header))


def test_records_of_a_later_version_are_no_damage() -> None:
    """Cutting off what this version cannot read would be a downgrade that loses data."""
    image, _ = made(SHORT)
    as_of_a_later_version(image, segments(image)[0])
    with pytest.raises(Fatal, match="another version"):
        start(image)
    assert not [name for name in image.files() if "damaged-" in name]


def test_a_segment_of_a_later_version_is_no_damage_to_the_scrubber_either() -> None:
    image, _ = made(LONG)
    wal, _, _ = start(image)
    as_of_a_later_version(image, segments(image)[1])
    with pytest.raises(LogCorrupted, match="another version") as refused:
        scrub(wal)
    assert not refused.value.repairable


def test_damage_noted_while_running_is_set_aside_at_the_next_start() -> None:
    """A start does not read what the store has applied; the note makes it look at everything."""
    image, before = made(LONG)
    wal, found, _ = start(image, applied=13)
    disk = image
    disk.flip_bit(segments(disk)[0], HEADER_BYTES + 300, 1)
    with pytest.raises(LogCorrupted) as damage:
        scrub(wal)
    wal.note_damage(damage.value)
    disk = disk.kill()
    wal, found, salvaged = start(disk, applied=13)
    assert salvaged is not None
    assert judge(LONG, before, wal, found, "noted") == "quarantine"
    assert found.last_index < 13


def dropped(low_water: int) -> tuple[FakeDisk, LogView]:
    """A log whose records call nothing committed, and whose oldest segments are gone."""
    steps: list[Step] = [[persist(1, state=(1, 2))]]
    steps += [[persist(i + 1, entry(i, text=bytes([60 + i]) * 900))] for i in range(1, 31)]
    steps += [f"drop {low_water}", *[[persist(i + 1, entry(i, text=bytes([60 + i]) * 900))] for i in range(31, 41)]]
    disk, expected = new_disk(), Expected()
    run(disk, [*steps, "close"], expected)
    return disk.kill(), expected.view


def test_a_log_that_has_lost_its_beginning_on_purpose_is_salvaged_like_another() -> None:
    """What was dropped is committed, whatever the records that are left say."""
    image, before = dropped(20)
    newest = segments(image)[-1]
    image.flip_bit(newest, HEADER_BYTES + 300, 1)
    wal, found, salvaged = start(image, applied=40)
    assert salvaged is not None
    assert 0 < found.base.index <= 20
    assert found.committed == 20
    assert found.last_index > 30
    wal.write([persist(1, *before[0][found.last_index :])])
    wal.drop_prefix(Index(35))
    assert wal.first_index > 21
    image = image.kill()
    wal, found, salvaged = start(image, applied=40)
    assert salvaged is None
    assert found.quarantine is not None
    assert found.committed == found.base.index > 20
    assert found.last_index == 40
    wal.lift_quarantine()
    assert start(image.kill(), applied=40)[1].quarantine is None


def test_where_the_mark_of_what_was_dropped_is_lost_nothing_is_kept() -> None:
    """A beginning that is missing may have been lost as well, and then what follows need not be what was committed."""
    image, _ = dropped(20)
    oldest = segments(image)[0]
    image.flip_bit(oldest, HEADER_BYTES + 300, 1)
    wal, found, salvaged = start(image, applied=20)
    if salvaged is None:
        with pytest.raises(LogCorrupted) as damage:
            scrub(wal)
        wal.note_damage(damage.value)
        wal, found, salvaged = start(image.kill(), applied=20)
    assert salvaged is not None
    assert (found.last_index, found.committed, found.base.index) == (0, 0, 0)


def test_the_newest_damaged_segments_are_kept_and_no_more() -> None:
    image, _ = made(LONG)
    image.flip_bit(segments(image)[1], HEADER_BYTES + 300, 1)
    for name in ("damaged-foreign", *(f"damaged-{number:06d}-0.wal" for number in range(1, 8))):
        image.open(f"{HOME}/{name}", create=True).fsync()
    image.fsync_dir(HOME)
    _, _, salvaged = start(image)
    assert salvaged is not None
    kept = [path.rpartition("/")[2] for path in image.files() if path.startswith(f"{HOME}/damaged-0")]
    assert len(kept) == 8
    assert {path.rpartition("/")[2] for path in salvaged.set_aside} <= set(kept)
    assert "damaged-000001-0.wal" not in kept
    assert f"{HOME}/damaged-foreign" in image.files()


def test_a_noted_log_is_dead_and_lifts_nothing() -> None:
    image, _ = made(LONG)
    image.flip_bit(segments(image)[1], HEADER_BYTES + 300, 1)
    wal, _, _ = start(image)
    wal.note_damage(LogCorrupted("rotten again", repairable=True, file="x", offset=1))
    with pytest.raises(Fatal):
        wal.lift_quarantine()
    with pytest.raises(LogCorrupted, match="rotten again"):
        start(image.kill(), may_salvage=False)
