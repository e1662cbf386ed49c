"""Every byte, every sector, every file of small logs damaged in turn: the same log, a torn end, or a refusal by name.

Scenarios S65 and S66, faults F17 to F21 of the reliability list. Never a log that is shorter than what was
acknowledged, and the independent reader says the same of every state. Counts are printed (``pytest -s``).
"""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest

from kvnode.errors import LogCorrupted
from kvnode.ids import Index
from kvnode.sim.disk import FakeDisk
from kvnode.storage.segment import HEADER_BYTES, SECTOR_BYTES
from kvnode.storage.wal import Recovered
from tests.storage.second_opinion import SecondOpinion
from tests.storage.wal_world import (
    HOME,
    ROOM,
    Expected,
    LogView,
    Step,
    entry,
    made,
    new_disk,
    open_wal,
    persist,
    run,
    segments,
    view,
)

ONE: list[Step] = [
    [persist(1, state=(1, 2))],
    [persist(2, entry(1), entry(2))],
    [persist(3, entry(3), commit=2)],
    [persist(4, entry(3, 2), entry(4, 2), cut=3, state=(2, 1), commit=2)],
    "close",
]
MANY: list[Step] = [
    [persist(1, state=(1, 2))],
    *[[persist(i + 1, entry(i, text=bytes([60 + i]) * 600), commit=i - 1)] for i in range(1, 15)],
    "close",
]


def written_end(disk: FakeDisk, path: str) -> int:
    return len(disk.content(path).rstrip(b"\0"))


class Sweep:
    """Damages copies of one image and counts what came of it."""

    def __init__(self, image: FakeDisk, before: LogView, into: Path) -> None:
        self.image = image
        self.before = before
        self.opinion = SecondOpinion(into)

    def hold(self, disk: FakeDisk, what: str) -> str:
        """ "same" or "refused"; a shorter or other log fails."""
        found = self.opinion.judge(disk, what, **ROOM)
        if isinstance(found, Recovered):
            assert view(found) == self.before, what
            return "same"
        assert found.detail["file"] in segments(disk) or found.detail["file"] == HOME, what
        assert found.detail["file"] in found.message, what
        return "refused"


@pytest.mark.parametrize("steps", [ONE, MANY], ids=["one", "many"])
def test_s65_single_byte_flip_sweep(steps: list[Step], tmp_path: Path) -> None:
    """Every byte of every record, one bit of it or all; the zeros of headers and of free space by sample."""
    sweep = Sweep(*made(steps, **ROOM), tmp_path)
    fine = 1 if steps is ONE else 17
    for path in segments(sweep.image):
        content, end = sweep.image.content(path), written_end(sweep.image, path)
        free = range(end, len(content), 211)
        for offset in [*range(0, 168, fine), *range(168, 4092, 53 * fine), *range(4092, end, fine), *free]:
            pattern = 0xFF if offset % 2 else 1 << offset // 2 % 8
            disk = sweep.image.kill()
            disk.damage(path, offset, bytes([content[offset] ^ pattern]))
            outcome = sweep.hold(disk, f"{path} {offset} ^ {pattern}")
            assert outcome == "refused" or offset > end - 2 * SECTOR_BYTES, (path, offset)
    print(f"S65: {sweep.opinion.counts}")
    assert sweep.opinion.refused > 500


def test_s65_flips_below_the_applied_index_are_found_at_the_latest_when_read(tmp_path: Path) -> None:
    """A start does not scan sealed segments that are applied. Damage there is refused then, or by whoever reads it."""
    image, (entries, _, _) = made(MANY, **ROOM)
    unseen = 0
    for path in segments(image):
        for offset in range(0, written_end(image, path), 37):
            disk = image.kill()
            disk.flip_bit(path, offset, offset % 8)
            try:
                wal, found = open_wal(disk, applied=14, **ROOM)
            except LogCorrupted:
                continue
            assert (found.last_index, found.hard_state.term, found.hard_state.vote) == (14, 1, 2)
            try:
                assert wal.read(Index(1), Index(14), 1 << 30) == list(entries)
            except LogCorrupted as refusal:
                unseen += 1
                assert refusal.detail["file"] == path  # noqa: PT017 (what it says is the point)
    assert unseen > 50


@pytest.mark.parametrize("steps", [ONE, MANY], ids=["one", "many"])
def test_s66_zero_sector_sweep(steps: list[Step], tmp_path: Path) -> None:
    """F19: a zeroed head in the middle is not the end of the log. All runs of up to four sectors.

    Left out: runs of several that reach the end of the last segment. They take the last writes and every proof of them.
    """
    sweep = Sweep(*made(steps, **ROOM), tmp_path)
    for path in segments(sweep.image):
        used = -(-written_end(sweep.image, path) // SECTOR_BYTES)
        for first in range(used):
            for count in range(1, 5):
                reaches_end = path == segments(sweep.image)[-1] and first + count == used
                if first + count > used or (reaches_end and count > 1):
                    continue
                zeros = bytes(SECTOR_BYTES * count)
                disk = sweep.image.kill()
                disk.damage(path, first * SECTOR_BYTES, zeros)
                outcome = sweep.hold(disk, f"{path} {first}+{count}")
                held = any(sweep.image.content(path)[first * SECTOR_BYTES : (first + count) * SECTOR_BYTES])
                assert outcome == "refused" or reaches_end or not held, (path, first, count)
    print(f"S66 zeroed: {sweep.opinion.counts}")
    assert sweep.opinion.refused > 10


@pytest.mark.parametrize("steps", [ONE, MANY], ids=["one", "many"])
def test_s66_stale_sector_sweep(steps: list[Step], tmp_path: Path) -> None:
    """F20: each sector as it was before its last synced change, and all pairs of them."""
    sweep = Sweep(*made(steps, **ROOM), tmp_path)
    for path in segments(sweep.image):
        used = range(-(-written_end(sweep.image, path) // SECTOR_BYTES))
        places = [sector for sector in used if sweep.image.kill().stale_sector(path, sector)]
        assert places
        for chosen in [*combinations(places, 1), *combinations(places, 2)]:
            disk = sweep.image.kill()
            for sector in chosen:
                assert disk.stale_sector(path, sector)
            sweep.hold(disk, f"{path} {chosen}")
    print(f"S66 stale: {sweep.opinion.counts}")
    assert sweep.opinion.refused > 10


@pytest.mark.parametrize("steps", [ONE, MANY], ids=["one", "many"])
def test_s66_swap_sectors(steps: list[Step], tmp_path: Path) -> None:
    """F20: every two sectors of a file exchanged, and every sector overwritten with the same one of another file."""
    sweep = Sweep(*made(steps, **ROOM), tmp_path)
    paths = segments(sweep.image)
    for path in paths:
        content = sweep.image.content(path)
        used = -(-written_end(sweep.image, path) // SECTOR_BYTES)
        pieces = [content[at * SECTOR_BYTES : (at + 1) * SECTOR_BYTES] for at in range(used + 1)]
        for one, other in combinations(range(used + 1), 2):
            if pieces[one] != pieces[other] and (steps is ONE or other - one < 4):
                disk = sweep.image.kill()
                disk.swap_sectors(path, one, other)
                sweep.hold(disk, f"{path} {one}<>{other}")
        for other_path in paths:
            for at in range(used):
                piece = sweep.image.content(other_path)[at * SECTOR_BYTES : (at + 1) * SECTOR_BYTES]
                if piece != pieces[at]:
                    where = f"{path} {at} from {other_path}"
                    disk = sweep.image.kill()
                    disk.damage(path, at * SECTOR_BYTES, piece)
                    sweep.hold(disk, where)
    print(f"S66 swapped: {sweep.opinion.counts}")
    assert sweep.opinion.refused > 30


def test_s66_unreadable_sector_sweep() -> None:
    """F24: each sector answers EIO. Alone, a start refuses by name and cuts nothing: readable again, all is there."""
    image, before = made(ONE, **ROOM)
    (path,) = segments(image)
    failed = 0
    for sector in range(len(image.content(path)) // SECTOR_BYTES):
        disk = image.kill()
        disk.unreadable_sector(path, sector)
        with pytest.raises(LogCorrupted, match=r"cannot (read|be read).*input/output error") as refusal:
            open_wal(disk, **ROOM)
        assert refusal.value.repairable
        assert refusal.value.detail["file"] == path
        is_header = sector < HEADER_BYTES // SECTOR_BYTES
        records = range(
            sector * SECTOR_BYTES - 200, (sector + 1) * SECTOR_BYTES
        )  # the first one may begin in the sector before
        assert refusal.value.detail["offset"] in (range(1) if is_header else records)
        failed += 1
        assert disk.content(path) == image.content(path)
        healed = disk.kill()
        healed._file(path).unreadable.clear()
        assert view(open_wal(healed, **ROOM)[1]) == before
    assert failed == 16


# F18: the last write, and what can bear witness that it was durable


def last_write(witness: str) -> tuple[FakeDisk, str, tuple[int, int], LogView, dict[str, int]]:
    """A log whose last write of three entries stands between the offsets returned, and then `witness`."""
    disk, expected, options = new_disk(), Expected(), dict(ROOM)
    run(disk, ONE[:-1], expected, **options)
    wal, _ = open_wal(disk, **options)
    path, start = segments(disk)[-1], wal._writer.offset
    before = expected.view
    wal.write([persist(9, *(entry(at, 2, bytes([48 + at]) * 400) for at in (5, 6, 7)))])
    end = wal._writer.offset
    if witness == "mark":
        wal.mark()
    elif witness == "close":
        wal.close()
    elif witness == "next write":
        wal.write([persist(10, entry(8, 2))])
    elif witness == "next segment":
        wal.write([persist(10, entry(8, 2, bytes(2000)))])
        assert segments(disk)[-1] != path
    elif witness == "commit":
        wal.write([persist(10, state=(2, 1), commit=7)])
    elif witness == "applied":
        options["applied"] = 5
    return disk.kill(), path, (start, end), before, options


@pytest.mark.parametrize("damage", ["first byte", "head zeroed", "first sector", "middle", "last record"])
@pytest.mark.parametrize("witness", ["none", "mark", "close", "next write", "next segment", "commit", "applied"])
def test_f18_the_last_write_is_torn_unless_anything_proves_that_it_was_durable(
    witness: str, damage: str, tmp_path: Path
) -> None:
    image, path, (start, end), before, options = last_write(witness)
    places = {
        "first byte": (start, 1),
        "head zeroed": (start, 48),
        "first sector": (start // SECTOR_BYTES * SECTOR_BYTES + SECTOR_BYTES, SECTOR_BYTES),
        "middle": (start + 300, 20),
        "last record": (end - 60, 8),
    }
    offset, length = places[damage]
    image.damage(path, offset, bytes(length))
    if witness == "applied":
        try:
            _, found = open_wal(image, **options)
        except LogCorrupted as refusal:
            assert "the store has applied index 5" in refusal.message  # noqa: PT017 (a start may also succeed)
            assert damage in {"first byte", "head zeroed", "middle"}
        else:
            assert found.last_index >= 5
        return
    opinion = SecondOpinion(tmp_path).judge(image, f"{witness}, {damage}", **options)
    if witness == "none":
        assert isinstance(opinion, Recovered)
        assert opinion.report.torn is not None
        assert opinion.tail[: len(before[0])] == before[0]
        assert opinion.last_index < 7
        return
    assert isinstance(opinion, LogCorrupted), (witness, damage)
    assert (opinion.detail["file"], opinion.detail["offset"] >= start) == (path, True)


# F21: files


@pytest.mark.parametrize("how", ["missing", "empty", "half", "header only", "another's content"])
@pytest.mark.parametrize("applied", [0, 14], ids=["store empty", "store level"])
def test_f21_every_segment_missing_or_cut_is_refused_by_name(how: str, applied: int, tmp_path: Path) -> None:
    """Also those whose entries the store has: a log with a gap, or without its beginning, is not this node's log."""
    image, before = made(MANY, **ROOM)
    paths = segments(image)
    assert len(paths) >= 4
    for number, path in enumerate(paths):
        disk = image.kill()
        if how == "missing":
            disk.unlink(path)
        elif how == "another's content":
            disk.damage(path, 0, image.content(paths[number - 1]))
        else:
            file = disk.open(path)
            file.truncate({"empty": 0, "half": file.size() // 2, "header only": HEADER_BYTES}[how])
            file.close()
        disk = disk.kill()
        opinion = SecondOpinion(tmp_path).judge(disk, f"{path} {how}", applied=applied, **ROOM)
        for name in tmp_path.iterdir():
            name.unlink()
        assert isinstance(opinion, LogCorrupted), (path, how)
        assert view(open_wal(image.kill(), **ROOM)[1]) == before, "the original is as it was"
        assert opinion.detail["file"] == path or how == "missing"


def test_f21_extra_files_are_left_alone_or_swept_and_change_nothing(tmp_path: Path) -> None:
    """Strangers stay and are reported; a leftover of the next segment goes; copies of torn ends stay."""
    image, before = made(MANY, **ROOM)
    names = ["notes.txt", "next.tmp", "torn-0000000001-0000004096.bin", "0000000001.wal", "1-2.wal", ".hidden"]
    for name in names:
        if image.exists(f"{HOME}/{name}"):
            image.unlink(f"{HOME}/{name}")
        file = image.open(f"{HOME}/{name}", create=True)
        file.pwrite(0, image.content(segments(image)[0])[:5000])
        file.close()
    image = image.kill()
    SecondOpinion(tmp_path).judge(image, "extra files", **ROOM)
    wal, recovered = open_wal(image, **ROOM)
    assert view(recovered) == before
    strangers = sorted(f"{HOME}/{name}" for name in names if name not in {"next.tmp", names[2]})
    assert sorted(recovered.report.unknown) == strangers
    wal.close()
    assert [name for name in names if not image.exists(f"{HOME}/{name}")] == ["next.tmp"]
