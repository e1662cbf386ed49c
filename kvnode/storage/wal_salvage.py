"""Salvage: of a damaged log, keep the intact beginning and set the rest aside, in quarantine.

What is kept is the longest prefix of records that are intact and follow each other from the first one on. Behind it lay
records that may have been acknowledged, so from here on the node does not vote until its peers have given it
everything again (`kvnode.raft.quarantine`). The kept entries are genuine, but a lost record may have cut some of them
off; only those that the kept records call committed, or not needed any more, are taken for that. Term and vote come
from their second copy (`vote_copy`), and without a certain one nothing is salvaged: a forgotten vote cannot be made
good.

Each step may be interrupted and done again, from the top:

1. the note of the quarantine is durable, saying that the damage still stands;
2. the segments behind the kept records are renamed, newest first, so that what is left is always a beginning;
3. a new segment names the last kept record as the one it continues, and begins with the hard state;
4. the note says that the damage is set aside.

The renamed files and a copy of the cut bytes stay for whoever wants to look, the newest few of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial

import msgspec

from kvnode.errors import LogCorrupted, StorageFailed
from kvnode.ids import Index, WriteNumber
from kvnode.raft.messages import HardState, LogPosition
from kvnode.raft.output import Persist
from kvnode.storage.disk import Disk
from kvnode.storage.log_index import SegmentIndex
from kvnode.storage.log_place import LogPlace
from kvnode.storage.log_state import LogState
from kvnode.storage.quarantine import note_of, write_note
from kvnode.storage.segment import (
    HEADER_BYTES,
    TEMPORARY,
    FormatError,
    SegmentHeader,
    Stamp,
    UnknownVersion,
    parse_name,
)
from kvnode.storage.segment_reader import SegmentReader, read_header
from kvnode.storage.segment_writer import SegmentWriter
from kvnode.storage.vote_copy import VoteCopy
from kvnode.storage.wal import Recovered, Wal
from kvnode.storage.wal_batch import encode_batch
from kvnode.storage.wal_recovery import DAMAGED_PREFIX, TornTail, contradiction
from kvnode.storage.wal_repair import save_copy

_SET_ASIDE_MAX = 8
"""Damaged segments kept for diagnosis; the oldest go first."""

_NO_LIMIT = 1 << 64
_SET_ASIDE = re.compile(rf"{DAMAGED_PREFIX}\d{{6}}-.+")


class Salvaged(msgspec.Struct, frozen=True):
    """What was done, for the operator."""

    damage: LogCorrupted
    set_aside: tuple[str, ...]  # files


@dataclass(slots=True)
class _Kept:
    """The intact beginning of a log."""

    state: LogState
    header: SegmentHeader | None = None  # of the segment it ends in; None: not even the first one is intact
    path: str = ""
    end: int = 0  # offset behind the last kept record
    behind: tuple[str, ...] = ()  # segments after that one, oldest first


def open_log(
    place: LogPlace,
    *,
    applied_index: Index,
    create: bool,
    may_salvage: bool,
    installed: LogPosition | None = None,
    installed_time: int = 0,
) -> tuple[Wal, Recovered, Salvaged | None]:
    """As `Wal.open`; a damaged log is salvaged first, if `may_salvage` (there are peers to restore it).

    `installed`: the entry that the store's snapshot ended with, if it began as one. What the store has applied since is
    proof that the log began anew behind it.

    Raises: LogCorrupted, IdentityRefused, StorageFailed.
    """
    if installed is not None and installed.index != applied_index:
        installed = None
    open_wal = partial(
        Wal.open,
        place,
        applied_index=applied_index,
        create=create,
        installed=installed,
        installed_time=installed_time,
    )
    try:
        return *open_wal(), None
    except LogCorrupted as damage:
        if not (may_salvage and damage.repairable):
            raise
        found = damage
    try:
        salvaged = _salvage(place, found, applied_index)
    except OSError as error:
        raise StorageFailed(f"salvaging the log in {place.directory} failed: {error}") from error
    return *open_wal(), salvaged


def _salvage(place: LogPlace, damage: LogCorrupted, applied_index: Index) -> Salvaged:
    disk, directory = place.disk, place.directory
    votes = VoteCopy(disk, directory, place.stamp)
    if not votes.is_certain:
        raise LogCorrupted(
            f"{damage.message}. Peers could restore the entries, but term and vote cannot be proven either: their "
            f"second copy in {directory} is missing or damaged",
            what=damage.what,
            **damage.detail,
        ) from damage
    kept = _keep(place, applied_index)
    state = kept.state
    commit = Index(min(max(state.hard_state.commit, state.low_water.index), state.index.last_index))
    newest = max((state.hard_state.term, state.hard_state.vote), (votes.term, votes.vote))
    hard_state = HardState(*newest, commit)
    note = note_of(damage, commit=commit)
    write_note(disk, directory, note)
    set_aside = _set_aside(disk, directory, kept.behind)
    _continue(place, kept, hard_state)
    write_note(disk, directory, msgspec.structs.replace(note, is_set_aside=True))
    return Salvaged(damage, set_aside)


# ── what is intact ──────────────────────────────────────────────────────────────────────────────────


def _keep(place: LogPlace, applied_index: Index) -> _Kept:
    """Fold records from the oldest segment on for as long as everything is in order. Reads every one of them."""
    disk = place.disk
    names = sorted(filter(parse_name, disk.listdir(place.directory)))
    paths = [f"{place.directory}/{name}" for name in names]
    headers = [_header(disk, path, place.stamp) for path in paths]
    kept = _Kept(LogState.empty(applied_index), behind=tuple(paths))
    anew = [at for at, header in enumerate(headers) if header is not None and header.begins_anew]
    oldest = anew[-1] if anew else 0  # what stands before is void
    first = headers[oldest] if headers else None
    if first is None or first.first_index - 1 > applied_index:
        return kept  # entries before it are missing: no beginning to keep
    nothing, state = kept, LogState.before(first, applied_index)
    for at, path in enumerate(paths[oldest:], oldest):
        header = headers[at]
        if header is None or not _continues(header, state):
            break
        if kept.header is not None and header.sequence != kept.header.sequence + 1:
            break
        state.index.begin(SegmentIndex(path, header, header.size))
        state.sealed = False
        successor = headers[at + 1] if at + 1 < len(paths) else None
        end = _fold(disk, path, header, state, successor.previous_seq if successor else _NO_LIMIT)
        kept = _Kept(state, header, path, end, tuple(paths[at + 1 :]))
    return nothing if state.index.base.index > state.low_water.index else kept


def _header(disk: Disk, path: str, stamp: Stamp) -> SegmentHeader | None:
    """None: it is damaged, unreadable, or not what its name says. Raises: LogCorrupted (another version), OSError."""
    file = disk.open(path)
    try:
        header = read_header(file)
    except UnknownVersion as error:
        raise contradiction(path, 0, error) from error
    except FormatError:
        return None
    finally:
        file.close()
    is_named = parse_name(path.rpartition("/")[2]) == (header.sequence, header.first_index)
    return header if is_named and header.stamp == stamp else None


def _continues(header: SegmentHeader, state: LogState) -> bool:
    log = state.index
    expected = (log.last_index + 1, log.last_term, state.seq, state.crc)
    return (header.first_index, header.first_term, header.previous_seq, header.previous_crc) == expected


def _fold(disk: Disk, path: str, header: SegmentHeader, state: LogState, until: int) -> int:
    """Take intact records up to `until`; returns the offset behind the last one."""
    file = disk.open(path)
    offset = HEADER_BYTES
    try:
        reader = SegmentReader(file, header.crc_start)
        while state.seq < until and not state.sealed:
            record = reader.record_at(offset)
            if record is None or not state.follows(record):
                break
            state.take(record)
            offset = record.end
        state.settle_time()
    except FormatError as error:
        raise contradiction(path, offset, error) from error
    finally:
        file.close()
    return offset


# ── what is changed on disk ─────────────────────────────────────────────────────────────────────────


def _set_aside(disk: Disk, directory: str, paths: tuple[str, ...]) -> tuple[str, ...]:
    """Rename, newest first; returns the new names."""
    older = sorted(filter(_SET_ASIDE.fullmatch, disk.listdir(directory)))
    number = 1 + max((int(name.split("-")[1]) for name in older), default=0)
    moved = []
    for path in reversed(paths):
        aside = f"{directory}/{DAMAGED_PREFIX}{number:06d}-{path.rpartition('/')[2]}"
        disk.rename(path, aside)
        moved.append(aside)
    disk.fsync_dir(directory)
    names = [*older, *sorted(path.rpartition("/")[2] for path in moved)]
    for name in names[: max(0, len(names) - _SET_ASIDE_MAX)]:
        disk.unlink(f"{directory}/{name}")
    disk.fsync_dir(directory)
    return tuple(moved)


def _continue(place: LogPlace, kept: _Kept, hard_state: HardState) -> None:
    """Begin a new segment behind the last kept record."""
    disk, directory, state, writer = place.disk, place.directory, kept.state, SegmentWriter(place)
    if disk.exists(f"{directory}/{TEMPORARY}"):  # after a crash it may be a segment's second name
        disk.unlink(f"{directory}/{TEMPORARY}")
        disk.fsync_dir(directory)
    if kept.header is not None:
        file = disk.open(kept.path)
        rest = SegmentReader(file, kept.header.crc_start).last_nonzero(kept.end) - kept.end
        if rest:
            save_copy(disk, directory, file, kept.header.sequence, TornTail(kept.path, kept.end, rest))
        writer.resume(file, kept.header, kept.end)
    state.index.begin(writer.begin(state))
    proof = Persist(WriteNumber(1), Index(0), (), hard_state, hard_state.commit)
    encoded = encode_batch([proof], state, writer.crc_start, writer.offset)
    if encoded.buffer:
        writer.put(encoded.buffer)
    writer.close()
