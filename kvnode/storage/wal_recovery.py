"""Recovery: what the segments on disk amount to, and whether a damaged end is a torn tail or damage.

The log ends at the first invalid place, where record h should stand. It is *damage* if anything shows that h had
been durable, for then it may have been acknowledged:

1. a valid record behind it says so (its durable seq is h or more);
2. a later segment was begun, which happens only after everything before its seal was durable;
3. the store has applied, or the hard state counts as committed, an index the log no longer holds;
4. what is there instead is longer than the longest single write, so at least one write followed h's;
5. the file is shorter than it was made, and h may have stood where it ends;
6. the disk cannot read that place, or one behind it (EIO): a write under way may be torn, but it can be read.

Damage is never cut: LogCorrupted names file and offset. Without any of it, h belongs to the one write that was
under way at the crash, whose sectors a disk may keep in any combination. Nobody was told of it, and it is cut:
the log goes on in a new segment that names h-1 as the last record that counts, so that remnants of the torn
write never come back, and a copy of the remnants is kept for whoever wants to look.

What is left open: the last write before a crash, if it was acknowledged and then rotted, looks like a torn one. So
an idle log writes a mark, and closing does.

Everything a start relies on is made durable first, even if it can be read already: after ``kill -9`` the last write
may stand in memory only, and after a failed fsync the kernel may believe it clean. So the last two writes are
written again, byte for byte, and synced.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import msgspec

from kvnode.errors import IdentityRefused, LogCorrupted
from kvnode.ids import Index
from kvnode.raft.messages import LogPosition
from kvnode.storage import quarantine, vote_copy
from kvnode.storage.disk import Disk, DiskFile
from kvnode.storage.log_index import LogIndex, SegmentIndex
from kvnode.storage.log_state import LogState
from kvnode.storage.segment import (
    HEAD_BYTES,
    HEADER_BYTES,
    SEGMENT_END,
    TEMPORARY,
    FormatError,
    SegmentHeader,
    Stamp,
    UnknownVersion,
    decode_segment_end,
    parse_name,
)
from kvnode.storage.segment_reader import SegmentReader, read_header

TORN_PREFIX = "torn-"
DAMAGED_PREFIX = "damaged-"
_OTHER_NAMES = frozenset({vote_copy.NAME, *quarantine.NAMES})


class TornTail(msgspec.Struct, frozen=True):
    """What was cut at a start: the write that was under way at the crash."""

    file: str
    offset: int
    bytes_cut: int
    saved: str = ""  # where a copy of the first MiB of it lies


class RecoveryReport(msgspec.Struct, frozen=True):
    """What a start found, for the operator's log."""

    segments: int
    segments_scanned: int  # the others were taken from their segment-end
    torn: TornTail | None = None
    stale: tuple[str, ...] = ()  # segments below the low-water mark that had come back; removed
    unknown: tuple[str, ...] = ()  # files that are not the log's; left alone
    began_anew: LogPosition | None = None  # an install that was cut short is finished: the log goes on after it


class Stretch(NamedTuple):
    """The end of a segment that is written once more at a start: its last two writes."""

    path: str
    start: int
    end: int


class Found(msgspec.Struct):
    """The log as it stands on disk."""

    state: LogState
    last: SegmentHeader
    last_path: str
    end: int  # offset in the last segment behind the last record that counts
    doubtful: tuple[Stretch, ...]
    torn: TornTail | None
    empty_successor: str  # path of a segment that was begun when its predecessor was not sealed yet, "" if none
    segments: int
    scanned: int
    stale: tuple[str, ...]
    temporary: tuple[str, ...]
    unknown: tuple[str, ...]

    def report(self, torn: TornTail | None) -> RecoveryReport:
        return RecoveryReport(self.segments, self.scanned, torn, self.stale, self.unknown)


class _Segment(msgspec.Struct):
    path: str
    header: SegmentHeader


def corrupted(path: str, offset: int, what: str, *, repairable: bool = True) -> LogCorrupted:
    """The refusal: where, what, and what to do. `repairable`: see `LogCorrupted`."""
    return LogCorrupted(
        f"{path}, offset {offset}: {what}. This log may have acknowledged what stood there, so nothing was cut and the "
        f"node does not start. Keep the directory for diagnosis; remove this member from the cluster and add it again "
        f"with an empty data directory, or restore all nodes from one backup",
        what=f"{path}, offset {offset}: {what}",
        repairable=repairable,
        file=path,
        offset=offset,
    )


def contradiction(path: str, offset: int, error: FormatError) -> LogCorrupted:
    """Intact records that cannot stand there: a bug or another version, not damage that peers could make good."""
    return corrupted(path, offset, str(error), repairable=False)


def find_log(
    disk: Disk,
    directory: str,
    stamp: Stamp,
    applied_index: Index,
    *,
    is_quarantined: bool = False,
    installed: LogPosition | None = None,
) -> Found | None:
    """Read the log. Changes nothing on disk. None: there is no segment at all.

    `is_quarantined`: it is known that the log ends before what the store has applied; `applied_index` is then what is
    known to be committed of it, and may lie below where the log begins.

    `installed`: the store is a snapshot that ends there and has applied nothing since. A log that does not hold that
    entry is the one before the install, which was cut short; `is_superseded` tells.

    Raises: LogCorrupted, IdentityRefused, OSError.
    """
    segments, void, temporary, unknown = _list(disk, directory, stamp)
    if not segments:
        return None
    segments, stale = _newest_run(segments)
    stale = [*void, *stale]
    older = _fold_older(disk, segments, applied_index)
    empty_successor = ""
    if older is None:
        empty_successor = segments.pop().path
        older = _fold_older(disk, segments, applied_index)
        assert older is not None
    state, scanned, before = older
    last = segments[-1]
    end, doubtful, torn = _scan_last(disk, last, state)
    is_cut_short = installed is not None and is_superseded(state.index, installed)
    if is_cut_short:
        assert installed is not None
        _check_superseded(last.path, end, state, installed)
    _check_whole(last.path, end, state, bool(stale), store_may_be_ahead=is_quarantined or is_cut_short)
    return Found(
        state=state,
        last=last.header,
        last_path=last.path,
        end=end,
        doubtful=(*([before] if before else []), Stretch(last.path, doubtful, end)),
        torn=torn,
        empty_successor=empty_successor,
        segments=len(segments),
        scanned=scanned + 1,
        stale=tuple(stale),
        temporary=temporary,
        unknown=unknown,
    )


def _fold_older(
    disk: Disk, segments: list[_Segment], applied_index: Index
) -> tuple[LogState, int, Stretch | None] | None:
    """Fold all but the newest segment. Returns (state, segments scanned, end of the last one folded).

    None: the newest was begun and never written to, and the seal before it is missing. Then it does not count.
    """
    state = LogState.before(segments[0].header, applied_index)
    scanned, stretch = 0, None
    for segment, successor in itertools.pairwise(segments):
        stretch = _take_summary(disk, segment, successor.header, state)
        if stretch is None:
            scanned += 1
            stretch = _scan_to_successor(disk, segment, successor, state)
        if stretch is None:
            if successor is segments[-1] and _is_blank(disk, successor.path):
                return None
            raise corrupted(
                segment.path,
                successor.header.previous_end,
                f"no valid record {successor.header.previous_seq} here, but the segment after it was in use",
            )
    return state, scanned, stretch


def _list(
    disk: Disk, directory: str, stamp: Stamp
) -> tuple[list[_Segment], list[str], tuple[str, ...], tuple[str, ...]]:
    """Segments, oldest first; those that a later one makes void, whose content does not matter; other files."""
    segments: list[_Segment] = []
    void: list[str] = []
    temporary: list[str] = []
    unknown: list[str] = []
    for name in reversed(disk.listdir(directory)):  # segments newest first
        path = f"{directory}/{name}"
        place = parse_name(name)
        if place is not None and segments and segments[-1].header.begins_anew:
            void.append(path)
        elif place is not None:
            segments.append(_Segment(path, _header(disk, path, place, stamp)))
        elif name == TEMPORARY:
            temporary.append(path)
        elif not (name.startswith((TORN_PREFIX, DAMAGED_PREFIX)) or name in _OTHER_NAMES):
            unknown.append(path)
    segments.sort(key=lambda segment: segment.header.sequence)
    for one, other in itertools.pairwise(segments):
        if one.header.sequence == other.header.sequence:
            raise corrupted(other.path, 0, f"two segments carry number {other.header.sequence}")
    return segments, void[::-1], tuple(temporary), tuple(unknown[::-1])


def header_of(disk: Disk, path: str) -> SegmentHeader:
    """The header of a segment. Raises: LogCorrupted (repairable unless it is another version), OSError."""
    file = disk.open(path)
    try:
        return read_header(file)
    except FormatError as error:
        raise corrupted(path, 0, str(error), repairable=not isinstance(error, UnknownVersion)) from error
    finally:
        file.close()


def _header(disk: Disk, path: str, place: tuple[int, int], stamp: Stamp) -> SegmentHeader:
    header = header_of(disk, path)
    if (header.sequence, header.first_index) != place:
        raise corrupted(path, 0, "the file's name and its header name different segments")
    if header.stamp != stamp:
        raise IdentityRefused(
            f"{path} was written by member {header.stamp.member}, incarnation {header.stamp.incarnation:016x}, of "
            f"cluster {header.stamp.cluster_id:016x}; this node is member {stamp.member}, incarnation "
            f"{stamp.incarnation:016x}, of cluster {stamp.cluster_id:016x}",
            file=path,
        )
    return header


def _newest_run(segments: list[_Segment]) -> tuple[list[_Segment], list[str]]:
    """The segments without a gap in their numbers up to the newest, and those before such a gap."""
    at = len(segments) - 1
    while at > 0 and segments[at - 1].header.sequence == segments[at].header.sequence - 1:
        at -= 1
    return segments[at:], [segment.path for segment in segments[:at]]


def _enter(disk: Disk, segment: _Segment, state: LogState) -> DiskFile:
    """Open the segment and begin it in the index. The caller closes the file."""
    header, log = segment.header, state.index
    expected = (log.last_index + 1, log.last_term, state.seq, state.crc)
    named = (header.first_index, header.first_term, header.previous_seq, header.previous_crc)
    if expected != named:
        raise corrupted(segment.path, 0, f"the header continues {named}, the segment before it ends with {expected}")
    file = disk.open(segment.path)
    log.begin(SegmentIndex(segment.path, header, file.size()))
    state.sealed = False
    return file


def _take_summary(disk: Disk, segment: _Segment, successor: SegmentHeader, state: LogState) -> Stretch | None:
    """Take a sealed segment from its segment-end alone, if everything in it has been applied; else None."""
    if not successor.previous_end or successor.first_index - 1 > state.applied_index:
        return None
    file = disk.open(segment.path)
    try:
        record = SegmentReader(file, segment.header.crc_start, HEAD_BYTES).record_at(successor.previous_end)
    finally:
        file.close()
    named = (SEGMENT_END, successor.previous_seq, successor.previous_crc)
    if record is None or (record.type, record.seq, record.crc) != named:
        return None  # the scan will tell what is wrong, and where
    try:
        end = decode_segment_end(record.payload)
    except msgspec.MsgspecError as error:
        raise corrupted(segment.path, record.offset, f"the segment-end cannot be decoded ({error})") from error
    _enter(disk, segment, state).close()
    state.take_summary(record, end)
    return Stretch(segment.path, record.offset, record.end)


def _scan_to_successor(disk: Disk, segment: _Segment, successor: _Segment, state: LogState) -> Stretch | None:
    """Fold a segment that has a successor. None: everything is there but the seal."""
    file = _enter(disk, segment, state)
    try:
        reader = SegmentReader(file, segment.header.crc_start)
        until = successor.header.previous_seq
        end, doubtful = _fold(segment.path, reader, state, until)
    finally:
        file.close()
    if state.seq == until and state.crc == successor.header.previous_crc:
        return Stretch(segment.path, doubtful, end)
    if state.seq == until - 1 and end == successor.header.previous_end:
        return None
    raise _unreadable(segment.path, reader) or corrupted(
        segment.path, end, f"no valid record {state.seq + 1} here, but a later segment shows that there was one"
    )


def _is_blank(disk: Disk, path: str) -> bool:
    file = disk.open(path)
    try:
        return SegmentReader(file, 0).last_nonzero(HEADER_BYTES) == HEADER_BYTES
    finally:
        file.close()


def _fold(path: str, reader: SegmentReader, state: LogState, until: int) -> tuple[int, int]:
    """Fold records until the first invalid place or record `until`. Returns (offset behind them, doubtful offset)."""
    offset = HEADER_BYTES
    durable_seq, starts = 0, (HEADER_BYTES, HEADER_BYTES)  # first offsets of the last two writes
    while state.seq < until:
        record = reader.record_at(offset)
        if record is None or not state.follows(record):
            break
        if record.durable_seq > durable_seq:
            durable_seq, starts = record.durable_seq, (starts[1], offset)
        try:
            state.take(record)
        except FormatError as error:
            raise contradiction(path, offset, error) from error
        offset = record.end
    try:
        state.settle_time()
    except FormatError as error:
        raise contradiction(path, offset, error) from error
    return offset, starts[0]


def _unreadable(path: str, reader: SegmentReader) -> LogCorrupted | None:
    """What to raise if the disk could not read a place that was looked at."""
    if reader.unreadable is None:
        return None
    return corrupted(path, reader.unreadable, "the disk cannot read this place (input/output error)")


def _scan_last(disk: Disk, segment: _Segment, state: LogState) -> tuple[int, int, TornTail | None]:
    file = _enter(disk, segment, state)
    try:
        reader = SegmentReader(file, segment.header.crc_start)
        end, doubtful = _fold(segment.path, reader, state, 1 << 64)
        behind = reader.last_nonzero(end)
        if damage := _unreadable(segment.path, reader):
            raise damage
        if reader.size < segment.header.size and behind + HEAD_BYTES > reader.size:
            raise corrupted(
                segment.path,
                end,
                f"the file ends at {reader.size} bytes, but was made {segment.header.size} bytes long before its use",
            )
        if state.sealed:
            raise corrupted(segment.path, end, "the segment is sealed, but the one after it is missing")
        if behind == end:
            return end, doubtful, None
        if behind - end > segment.header.unsynced_max:
            raise corrupted(
                segment.path,
                end,
                f"no valid record {state.seq + 1} here, and {behind - end} bytes follow, more than one write may leave",
            )
        proof = reader.find_later(end, behind, state.seq + 1)
        if proof is not None:
            raise corrupted(
                segment.path,
                end,
                f"no valid record {state.seq + 1} here, but record {proof.seq} at offset {proof.offset} shows that "
                f"everything up to record {proof.durable_seq} was durable",
            )
        return end, doubtful, TornTail(segment.path, end, behind - end)
    finally:
        file.close()


def is_superseded(log: LogIndex, installed: LogPosition) -> bool:
    """The log does not hold the entry `installed`: it is to begin anew after it."""
    if log.base.index > installed.index:
        return False  # entries after the snapshot are missing: damage
    return log.last_index < installed.index or log.term_at(installed.index) != installed.term


def _check_superseded(path: str, end: int, state: LogState, installed: LogPosition) -> None:
    """Nothing that the log knows to be committed stands against the snapshot."""
    known = max(state.hard_state.commit, state.low_water.index)
    if state.index.last_index >= installed.index and known >= installed.index:
        raise corrupted(
            path,
            end,
            f"the store is a snapshot that ends with entry {installed.index} of term {installed.term}, but the log has "
            f"committed another entry there: the two are not of one cluster",
            repairable=False,
        )


def _check_whole(path: str, end: int, state: LogState, below_lost: bool, *, store_may_be_ahead: bool) -> None:
    """What else has to be there: nothing committed or applied is missing, at the end or at the beginning."""
    log = state.index
    applied = 0 if store_may_be_ahead else state.applied_index
    for index, who in ((applied, "the store has applied"), (state.hard_state.commit, "the log committed")):
        if index > log.last_index:
            raise corrupted(path, end, f"the log ends at index {log.last_index}, but {who} index {index}")
    base = log.base
    oldest = log.segments[0].path
    if base.index > state.low_water.index:
        gap = " (segments between it and older ones are missing)" if below_lost else ""
        raise corrupted(
            oldest,
            0,
            f"the log begins behind index {base.index}, only entries up to {state.low_water.index} may be gone{gap}",
        )
    if base.index > state.applied_index and not store_may_be_ahead:
        raise corrupted(
            oldest, 0, f"the log begins behind index {base.index}, the store stands at {state.applied_index}"
        )
    if state.hard_state.term < log.last_term:
        raise corrupted(
            path, end, f"the last entry has term {log.last_term}, the hard state only term {state.hard_state.term}"
        )
