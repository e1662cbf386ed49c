"""Damage to a log at rest: the same log, or a refusal that names file and offset. Never a shorter log.

Scenarios S65 and S66 of the reliability list, faults F17 to F21; each rule of ``wal_recovery.py`` on its own.
"""

from __future__ import annotations

import pytest

from kvnode.errors import IdentityRefused, LogCorrupted
from kvnode.ids import Index
from kvnode.sim.disk import FakeDisk
from kvnode.storage.segment import (
    ENTRY,
    HARD_STATE,
    HEADER_BYTES,
    MARK,
    TRUNCATE,
    append_record,
    encode_payload,
    unpack_header,
)
from kvnode.storage.wal import Stamp
from tests.storage.wal_world import (
    HOME,
    Expected,
    LogView,
    Step,
    entry,
    made,
    new_disk,
    open_wal,
    persist,
    reopened,
    run,
    segments,
)

LOG: list[Step] = [
    [persist(1, state=(1, 2))],
    [persist(2, entry(1), entry(2))],
    [persist(3, entry(3), commit=2)],
    [persist(4, entry(3, 2), entry(4, 2), cut=3, state=(2, 1), commit=2)],
    "close",
]

LONG: list[Step] = [
    [persist(1, state=(1, 2))],
    *[[persist(i + 1, entry(i, text=bytes([60 + i]) * 900), commit=i - 1)] for i in range(1, 13)],
    "close",
]


def same_or_refused(disk: FakeDisk, before: LogView, path: str, what: str) -> str:
    """ "same" or "refused"; anything else fails."""
    found = reopened(disk)
    if isinstance(found, LogCorrupted):
        assert found.detail["file"].startswith(HOME), what
        assert isinstance(found.detail["offset"], int), what
        assert found.detail["file"] in found.message, what
        assert f"offset {found.detail['offset']}" in found.message, what
        return "refused"
    if isinstance(found, IdentityRefused):
        assert found.detail["file"] == path
        return "refused"
    assert found == before, what
    return "same"


def written_end(disk: FakeDisk, path: str) -> int:
    end = len(disk.content(path).rstrip(b"\0"))
    return end + -end % 8


@pytest.mark.slow
def test_a_flip_of_any_byte_is_harmless_or_refused() -> None:
    image, before = made(LOG)
    (path,) = segments(image)
    end = written_end(image, path)
    refused = 0
    for offset in [*range(160), *range(160, HEADER_BYTES, 97), *range(HEADER_BYTES - 4, end + 64)]:
        for bit in (0, 7) if offset % 2 else (3,):
            disk = image.kill()
            disk.flip_bit(path, offset, bit)
            refused += same_or_refused(disk, before, path, f"flip {offset}.{bit}") == "refused"
    assert refused > 300


def test_a_flip_in_a_sealed_segment_is_refused() -> None:
    image, before = made(LONG)
    first, *_ = paths = segments(image)
    assert len(paths) >= 3
    for offset in range(HEADER_BYTES, written_end(image, first), 13):
        disk = image.kill()
        disk.flip_bit(first, offset)
        assert same_or_refused(disk, before, first, f"flip {offset}") == "refused"


@pytest.mark.parametrize("steps", [LOG, LONG], ids=["log", "long"])
def test_a_zeroed_stale_or_swapped_sector_is_harmless_or_refused(steps: list[Step]) -> None:
    image, before = made(steps)
    for path in segments(image):
        used = written_end(image, path) // 512 + 2
        for sector in range(min(used, len(image.content(path)) // 512)):
            disk = image.kill()
            disk.zero_sector(path, sector)
            same_or_refused(disk, before, path, f"zero sector {sector} of {path}")
            disk = image.kill()
            if disk.stale_sector(path, sector):
                same_or_refused(disk, before, path, f"stale sector {sector} of {path}")
            for other in range(sector + 1, min(used, sector + 4)):
                disk = image.kill()
                disk.swap_sectors(path, sector, other)
                same_or_refused(disk, before, path, f"swap sectors {sector} and {other} of {path}")


def cut(image: FakeDisk, path: str, size: int) -> FakeDisk:
    disk = image.kill()
    file = disk.open(path)
    file.truncate(size)
    file.fsync()
    file.close()
    return disk.kill()


def test_the_last_segment_cut_at_any_byte_is_the_same_log_or_refused() -> None:
    unmarked, _ = made(LOG[:-1])
    image, before = made(LOG)
    (path,) = segments(image)
    entries_end, end = written_end(unmarked, path), written_end(image, path)
    for size in [*range(0, HEADER_BYTES, 128), *range(HEADER_BYTES, end + 200)]:
        outcome = same_or_refused(cut(image, path, size), before, path, f"cut at {size}")
        assert outcome == "refused" or size > entries_end, size
        assert outcome == "same" or size < end + 48, size


def test_a_sealed_segment_cut_short_is_refused() -> None:
    image, before = made(LONG)
    first = segments(image)[0]
    for size in range(0, written_end(image, first), 501):
        assert same_or_refused(cut(image, first, size), before, first, f"cut at {size}") == "refused"


def test_a_last_write_lost_whole_or_torn_anywhere_keeps_everything_before_it() -> None:
    """The disk shows any beginning of the last write and zeros behind it: the records wholly there survive."""
    disk, expected = new_disk(), Expected()
    run(disk, LOG[:-1], expected)
    (path,) = segments(disk)
    start = written_end(disk, path)
    wal, _ = open_wal(disk)
    batch = [persist(9, entry(5, 2, b"five"), entry(6, 2, b"six" * 50), commit=4)]
    expected.begin(batch)
    wal.write(batch)
    image = disk.kill()
    content = image.content(path)
    end = written_end(image, path) + 8
    for size in range(start, end):
        torn = image.kill()
        torn.damage(path, size, bytes(end - size))
        found = reopened(torn)
        assert found in expected.allowed, size
        assert torn.content(path)[:start] == content[:start]


def test_a_missing_or_empty_file_is_refused_by_name() -> None:
    image, _ = made(LONG)
    for path in segments(image):
        disk = image.kill()
        disk.unlink(path)
        found = reopened(disk)
        assert isinstance(found, LogCorrupted), path
        found = reopened(cut(image, path, 0))
        assert isinstance(found, LogCorrupted)
        assert found.detail["file"] == path


def test_an_empty_directory_is_never_an_empty_voter() -> None:
    assert isinstance(reopened(new_disk()), LogCorrupted)


def test_two_segments_of_one_number_are_refused() -> None:
    image, _ = made(LOG)
    (path,) = segments(image)
    twin = image.open(path.replace("-00000000000000000001", "-00000000000000000009"), create=True)
    twin.pwrite(0, image.content(path))
    assert isinstance(reopened(image), LogCorrupted)


@pytest.mark.parametrize("stamp", [Stamp(1, 2, 0x1234), Stamp(0xC1, 3, 0x1234), Stamp(0xC1, 2, 9)])
def test_the_log_of_another_node_is_refused(stamp: Stamp) -> None:
    image, _ = made(LOG)
    with pytest.raises(IdentityRefused, match="written by member 2"):
        open_wal(image, stamp=stamp)


# The rules of recovery, one by one


def torn_batch(**options: int) -> tuple[FakeDisk, str, int, LogView]:
    """A log whose last write, three entries, is not proven by anything. Returns its offset too."""
    disk, expected = new_disk(), Expected()
    run(disk, LOG[:-1], expected, **options)
    (path,) = segments(disk)
    start = written_end(disk, path)
    wal, _ = open_wal(disk, **options)
    wal.write([persist(9, entry(5, 2), entry(6, 2), entry(7, 2))])
    return disk, path, start, expected.view


def test_a_hole_in_the_last_write_is_torn_although_valid_records_follow() -> None:
    disk, path, start, before = torn_batch()
    image = disk.kill()
    image.flip_bit(path, start + 10)
    content = image.content(path)
    _, found = open_wal(image)
    assert (found.tail, found.hard_state.term) == (before[0], before[1])
    torn = found.report.torn
    assert torn is not None
    assert (torn.file, torn.offset) == (path, start)
    assert image.content(torn.saved) == content[start : start + torn.bytes_cut]


def test_rule_1_a_later_mark_proves_the_write_was_durable() -> None:
    disk, path, start, _ = torn_batch()
    wal, _ = open_wal(disk)
    wal.mark()
    image = disk.kill()
    image.flip_bit(path, start + 10)
    refusal = reopened(image)
    assert isinstance(refusal, LogCorrupted)
    assert (refusal.detail["file"], refusal.detail["offset"]) == (path, start)
    assert "was durable" in refusal.message


def test_rule_3_the_applied_index_proves_it() -> None:
    disk, path, start, before = torn_batch()
    image = disk.kill()
    image.flip_bit(path, start + 10)
    assert open_wal(image.kill(), applied=4)[1].last_index == 4
    refusal = reopened(image, applied=5)
    assert isinstance(refusal, LogCorrupted)
    assert "the store has applied index 5" in refusal.message
    assert len(before[0]) == 4


def test_rule_4_more_than_one_write_of_rubbish_is_damage() -> None:
    disk, path, start, _ = torn_batch()
    image = disk.kill()
    image.flip_bit(path, start + 10)
    far = image.kill()
    far.damage(path, 8100, b"\x01")
    assert not isinstance(reopened(far), LogCorrupted)  # within one write of twice 4096 bytes
    disk, path, start, _ = torn_batch(segment_bytes=16384)
    far = disk.kill()
    far.flip_bit(path, start + 10)
    far.damage(path, start + 8192, b"\x01")
    refusal = reopened(far, segment_bytes=16384)
    assert isinstance(refusal, LogCorrupted)
    assert "more than one write may leave" in refusal.message


def test_the_limit_of_one_write_is_the_one_the_segment_was_written_under() -> None:
    """A smaller batch_bytes_max at the next start must not turn a torn write into damage."""
    disk, expected = new_disk(), Expected()
    run(disk, LOG[:-1], expected, segment_bytes=32768, batch_bytes_max=16384)
    (path,) = segments(disk)
    start = written_end(disk, path)
    wal, _ = open_wal(disk, segment_bytes=32768, batch_bytes_max=4096)
    wal.write([persist(9, entry(5, 2, b"x" * 12_000))])
    image = disk.kill()
    image.flip_bit(path, start + 10)
    assert reopened(image) == expected.view


def with_record(type_: int, previous_crc_change: int = 0, term: int = 0, index: int = 0) -> tuple[FakeDisk, int]:
    """A log with one more record, written behind the log's back; and where."""
    disk = new_disk()
    run(disk, LOG[:2], Expected())
    (path,) = segments(disk)
    wal, _ = open_wal(disk)
    image, state = disk.kill(), wal._state
    header = unpack_header(image.content(path)[:HEADER_BYTES])
    buffer, crc = bytearray(), state.crc ^ previous_crc_change
    payload = encode_payload((1, 2, 0, 0, b"")) if type_ == ENTRY else b""
    append_record(buffer, header.crc_start, type_, crc, state.seq + 1, term, index, state.seq, payload)
    offset = written_end(image, path)
    image.damage(path, offset, bytes(buffer))
    return image, offset


def test_a_record_of_an_unknown_type_is_refused() -> None:
    assert open_wal(with_record(MARK)[0])[1].report.torn is None
    refusal = reopened(with_record(7)[0])
    assert isinstance(refusal, LogCorrupted)
    assert "type 7 is unknown" in refusal.message


@pytest.mark.parametrize(
    ("type_", "term", "index", "says"),
    [
        (ENTRY, 1, 4, "entry 4 follows entry 2"),
        (ENTRY, 0, 3, "entry 3 has term 0, below 1"),
        (ENTRY, 9, 3, "the last entry has term 9, the hard state only term 1"),
        (HARD_STATE, 0, 0, "hard state of term 0"),
        (TRUNCATE, 0, 3, "truncation from 3 of a log that ends at 2"),
    ],
)
def test_a_valid_record_that_contradicts_the_log_is_refused(type_: int, term: int, index: int, says: str) -> None:
    refusal = reopened(with_record(type_, term=term, index=index)[0])
    assert isinstance(refusal, LogCorrupted)
    assert says in refusal.message


def test_a_record_that_continues_another_record_does_not_count() -> None:
    """F20: right checksum, right number, but written after something else than what stands before it."""
    image, offset = with_record(MARK, 1)
    _, found = open_wal(image)
    assert found.report.torn is not None
    assert found.report.torn.offset == offset


def test_reading_back_a_damaged_entry_is_refused_and_the_others_are_served() -> None:
    disk, _ = new_disk(), None
    run(disk, LONG[:-1], Expected())
    wal, _ = open_wal(disk)
    path = segments(disk)[1]
    first = int(path.rsplit("-", 1)[1].removesuffix(".wal"))
    disk.flip_bit(path, HEADER_BYTES + 60)
    assert len(wal.read(Index(1), Index(first - 1), 1 << 20)) == first - 1
    with pytest.raises(LogCorrupted) as refusal:
        wal.read(Index(1), Index(12), 1 << 20)
    assert refusal.value.detail["file"] == path
