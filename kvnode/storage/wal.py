"""Write-ahead log: every change of term, vote and entries is durable here before anything that depends on it leaves.

A log is a directory of segments (format: ``segment.py``). One thread writes: all records of a batch with one pwrite
and one fdatasync, the next batch not before that returned, so at most one write is in doubt at any time and
recovery (``wal_recovery.py``) can tell a torn write from damage. A suffix is cut by a record, never in place.
When a segment is full the next one, made ready ahead, is begun and the old one sealed. After a snapshot the log begins
anew, with a segment that makes all before it void. Another thread may read durable entries meanwhile.

After any error the object is dead: after a failed fsync nobody knows what the disk holds, and a second fsync
would report success over lost pages. Only a fresh start, which reads and verifies everything, may go on.

Preallocating a segment was measured (ext4, 2 cores): append and fdatasync of 200 bytes take 0.08 ms at the median in
a preallocated file, 0.12 ms in a growing one. Writing real zeros ahead gained nothing more and costs 30 to 170 ms a
segment, so it is not done.

Source: "Write-Ahead Log" and "Segmented Log", Patterns of Distributed Systems; Raft thesis §3.8.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import msgspec

from kvnode import perturb
from kvnode.errors import LogCorrupted, StorageFailed
from kvnode.ids import Index, Term
from kvnode.raft.messages import Entry, HardState, LogPosition
from kvnode.raft.output import Persist
from kvnode.storage.log_index import SegmentIndex
from kvnode.storage.log_place import LogPlace
from kvnode.storage.log_state import LogState
from kvnode.storage.quarantine import Quarantine, note_of, read_note, remove_note, write_note
from kvnode.storage.segment import HEAD_BYTES, MARK, SECTOR_BYTES, SNAPSHOT_MARKER, Stamp, append_record
from kvnode.storage.segment_writer import SegmentWriter
from kvnode.storage.vote_copy import VoteCopy
from kvnode.storage.wal_batch import encode_batch
from kvnode.storage.wal_read import read_entries
from kvnode.storage.wal_recovery import Found, RecoveryReport, TornTail, corrupted, find_log, is_superseded
from kvnode.storage.wal_repair import clear_unused, make_durable, save_copy, sweep
from kvnode.storage.wal_scrub import Scrubber, is_dropped

__all__ = ["Recovered", "RecoveryReport", "Stamp", "TornTail", "Wal"]


class Recovered(msgspec.Struct, frozen=True):
    """What a start found in the log."""

    hard_state: HardState
    base: LogPosition  # the position just before the first entry that is there
    term_runs: tuple[tuple[Index, Term], ...]  # (first index, term) of each run of one term, ascending
    last_index: Index
    tail: tuple[Entry, ...]  # the entries above `applied_index`, contiguous up to `last_index`
    last_time: int  # greatest hybrid timestamp of any entry, 0 if there is none
    report: RecoveryReport
    committed: Index  # what is known to be committed of the entries that are there
    quarantine: Quarantine | None = None  # entries that were acknowledged are missing

    @property
    def is_quarantined(self) -> bool:
        """See `quarantine`."""
        return self.quarantine is not None


def examine(
    place: LogPlace, applied_index: Index, votes: VoteCopy, installed: LogPosition | None
) -> tuple[Found, Quarantine | None, Index]:
    """The log that must be there, the note of what it has lost, and the last entry known to be committed.

    Changes nothing on disk. Raises: LogCorrupted (also for damage that was noted and not set aside yet),
    IdentityRefused, OSError.
    """
    directory = place.directory
    note = read_note(place.disk, directory)
    if note is not None and not note.is_set_aside:
        raise LogCorrupted(note.what, repairable=True, file=note.file, offset=note.offset)
    # Of a log that lost entries only what was committed before the damage is known to stand as it was applied.
    committed = Index(min(applied_index, note.commit)) if note else applied_index
    found = find_log(
        place.disk, directory, place.stamp, committed, is_quarantined=note is not None, installed=installed
    )
    if found is None:
        raise LogCorrupted(
            f"{directory} holds no log, but this node has been part of a cluster. Remove this member and add "
            f"it again with an empty data directory",
            what=f"{directory} holds no log",
            repairable=True,
            file=directory,
            offset=0,
        )
    if votes.is_ahead_of(found.state.hard_state):
        raise corrupted(
            found.last_path,
            found.end,
            f"the log ends with term {found.state.hard_state.term} and vote {found.state.hard_state.vote}, but the "
            f"copy of them shows that it once held term {votes.term} and vote {votes.vote}",
        )
    return found, note, committed


class _Final:
    """Any error inside makes the log unusable for good; those of the disk become StorageFailed."""

    __slots__ = ("_wal",)

    def __init__(self, wal: Wal) -> None:
        self._wal = wal

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None:
            return
        self._wal.die(error)
        if isinstance(error, OSError):
            raise StorageFailed(f"writing the log failed: {error}") from error


class Wal:
    """The log of one node; satisfies `kvnode.node.ports.LogStore`. `open` is the only way to make one."""

    def __init__(self, place: LogPlace, state: LogState, writer: SegmentWriter, votes: VoteCopy) -> None:
        self._disk = place.disk
        self._directory = place.directory
        self._stamp = place.stamp
        self._state = state
        self._writer = writer
        self._lock = threading.Lock()  # guards the index of `_state` between `write` and `read`
        self._votes = votes
        self._note_lock = threading.Lock()  # guards the note of a quarantine
        self._scrubber = Scrubber(place.disk)
        self._marked_seq = 0  # the last record is a mark if this is its seq
        self._failure = ""
        self._final = _Final(self)

    @classmethod
    def open(
        cls,
        place: LogPlace,
        *,
        applied_index: Index,
        create: bool,
        installed: LogPosition | None = None,
        installed_time: int = 0,
    ) -> tuple[Wal, Recovered]:
        """Open the log, or make it if `create`; everything returned is durable.

        `create` says that this node has never answered anybody: a log without terms and entries, as a crash
        during an earlier creation leaves it, is made anew then. Without it a missing log is an error, never an
        empty voter.

        `installed`: the store is a snapshot that ends there, at hybrid `installed_time`, and has applied nothing since.
        Where the log does not hold that entry, the install is finished: the log begins anew.

        Raises: LogCorrupted, IdentityRefused, StorageFailed.
        """
        try:
            place.disk.fsync_dir(place.directory)  # the names seen below must not go away again
            votes = VoteCopy(place.disk, place.directory, place.stamp)
            found, note, committed = None, None, applied_index
            if not create:
                found, note, committed = examine(place, applied_index, votes, installed)
            if found is None:
                clear_unused(place.disk, place.directory, place.stamp, installed)
            state = found.state if found else LogState.empty(applied_index)
            wal = cls(place, state, SegmentWriter(place), votes)
            report = wal._go_on(found, note is not None, installed) if found else wal._begin_log()
            votes.renew(state.hard_state)
            if installed is not None and is_superseded(state.index, installed):
                wal.reset(installed, installed_time)
                state = wal._state
                report = msgspec.structs.replace(report, began_anew=installed)
        except OSError as error:
            raise StorageFailed(f"opening the log in {place.directory} failed: {error}") from error
        recovered = Recovered(
            hard_state=state.hard_state,
            base=state.index.base,
            term_runs=state.index.runs(),
            last_index=Index(state.index.last_index),
            tail=tuple(state.tail),
            last_time=state.last_time,
            report=report,
            committed=max(committed, state.index.base.index),
            quarantine=note,
        )
        state.tail.clear()
        return wal, recovered

    # Writing

    def write(self, batch: Sequence[Persist]) -> None:
        """Append all writes in order and make them durable with one fdatasync before returning.

        Raises: StorageFailed; the log is dead then.
        """
        with self._final:
            writer = self._usable()
            encoded = encode_batch(batch, self._state, writer.crc_start, writer.offset)
            length = len(encoded.buffer)
            if not length:
                return
            if not writer.fits(length) or perturb.at("segment-full"):
                self._roll(length)
                encoded = encode_batch(batch, self._state, writer.crc_start, writer.offset)
            writer.put(encoded.buffer)
            self._votes.keep(encoded.hard_state)
            with self._lock:
                encoded.accept(self._state)
            writer.prepare_ahead()

    def mark(self) -> None:
        """Write an idle mark: proof for a later recovery that everything before it was durable.

        Raises: StorageFailed; the log is dead then.
        """
        with self._final:
            writer, state = self._usable(), self._state
            if self._marked_seq == state.seq:
                return
            if not writer.fits(2 * HEAD_BYTES + SECTOR_BYTES):
                self._roll(2 * HEAD_BYTES + SECTOR_BYTES)
            # The first mark fills its sector: no single lost sector takes both the last records and all proof.
            filler = bytes(-(writer.offset + HEAD_BYTES) % SECTOR_BYTES)
            buffer, seq = bytearray(), state.seq
            crc = append_record(buffer, writer.crc_start, MARK, state.crc, seq + 1, 0, 0, seq, filler)
            crc = append_record(buffer, writer.crc_start, MARK, crc, seq + 2, 0, 0, seq, b"")
            writer.put(buffer)
            state.seq, state.crc = seq + 2, crc
            self._marked_seq = state.seq

    def drop_prefix(self, index: Index) -> None:
        """Low-water mark: entries up to `index` are not needed any more; remove segments that hold nothing else.

        The mark is durable before the first file goes, the oldest goes first. Called by the writing thread; the
        caller has made durable elsewhere whatever a restart needs of these entries.

        Raises: StorageFailed; the log is dead then.
        """
        with self._final:
            writer, state = self._usable(), self._state
            assert index <= state.index.last_index, (index, state.index.last_index)
            if not state.index.droppable(index):
                return
            if not writer.fits(HEAD_BYTES):
                self._roll(HEAD_BYTES)
            low_water = LogPosition(Term(state.index.term_at(index)), index)
            buffer, seq = bytearray(), state.seq + 1
            crc = append_record(
                buffer, writer.crc_start, SNAPSHOT_MARKER, state.crc, seq, low_water.term, index, state.seq, b""
            )
            writer.put(buffer)
            state.seq, state.crc, state.low_water = seq, crc, low_water
            count = state.index.droppable(index)
            with self._lock:
                dropped = state.index.segments[:count]
                state.index.drop(count)
            for segment in dropped:
                self._disk.unlink(segment.path)
            self._disk.fsync_dir(self._directory)

    def trim(self, applied_index: Index, bytes_kept: int) -> LogPosition:
        """Remove the oldest segments that nobody needs; returns the position before the first entry left.

        Whole segments, never the newest, of entries that the store has durably applied and the log knows to be
        committed. What is left takes `bytes_kept` at least, for followers that are slow. Called by the writing thread.

        Raises: StorageFailed; the log is dead then.
        """
        log = self._state.index
        known = Index(min(applied_index, self._state.hard_state.commit, log.last_index))
        count = log.droppable_beyond(bytes_kept, known)
        if count:
            self.drop_prefix(Index(log.segments[count].first_index - 1))
        return self._state.index.base

    def reset(self, position: LogPosition, time: int) -> None:
        """A snapshot that ends with `position`, at hybrid `time`, stands for the log so far: it begins anew behind it.

        Every entry goes; term and vote stay. The new segment is durable before the first file goes. The caller has
        made the snapshot durable as this node's store. Called by the writing thread.

        Raises: StorageFailed; the log is dead then.
        """
        with self._final:
            writer, before = self._usable(), self._state
            assert position.index >= before.hard_state.commit, (position, before.hard_state)
            state = before.anew(position, time)
            state.index.begin(writer.begin(state, begins_anew=True))
            self._votes.keep(state.hard_state)
            with self._lock:
                self._state = state
            for segment in before.index.segments:
                self._disk.unlink(segment.path)
            self._disk.fsync_dir(self._directory)

    def note_damage(self, damage: LogCorrupted) -> None:
        """Make it durable that this log is damaged: the next start goes through all of it, and into quarantine.

        May be called from any thread; the log is dead from here on, and no quarantine is lifted behind it.
        Raises: StorageFailed.
        """
        self.die(damage)
        try:
            with self._note_lock:
                write_note(self._disk, self._directory, note_of(damage))
        except OSError as error:
            raise StorageFailed(f"noting the damage in {self._directory} failed: {error}") from error

    def lift_quarantine(self) -> None:
        """Everything that was lost is there again, durably. Raises: StorageFailed; the log is dead then."""
        with self._final, self._note_lock:
            self._usable()
            remove_note(self._disk, self._directory)

    def close(self) -> None:
        """Write a final mark and close the files. After a failure: only close."""
        if not self._failure:
            self.mark()
        self._failure = self._failure or "it is closed"
        with self._final:
            self._writer.close()

    # Reading

    def read(self, first: Index, last: Index, bytes_max: int) -> list[Entry]:
        """Durable entries from `first` to at most `last`, checksums verified; at least one, unless none is there.

        May be called from another thread than `write`. Raises: LogCorrupted, StorageFailed.
        """
        if self._failure:
            raise StorageFailed(f"the log in {self._directory} cannot be read: {self._failure}")
        with self._lock:
            log = self._state.index
            if first <= log.base.index:
                return []
            stretches = log.stretches(first, min(last, log.last_index))
        try:
            return read_entries(self._disk, stretches, bytes_max)
        except OSError as error:
            with self._lock:
                is_gone = log is not self._state.index or first <= log.base.index
            if is_gone:  # meanwhile
                return []
            raise StorageFailed(f"reading the log in {self._directory} failed: {error}") from error

    def scrub(self, bytes_max: int) -> bool:
        """Verify the next part of the segments before the newest; True at the end of them, the next call begins anew.

        May be called from another thread than `write`. Raises: LogCorrupted, StorageFailed.
        """
        try:
            return self._scrubber.step(self._segments(), bytes_max)
        except FileNotFoundError as error:
            if is_dropped(self._segments(), error):
                return False
            raise corrupted(str(error.filename), 0, "the segment is gone") from error
        except OSError as error:
            raise StorageFailed(f"reading the log in {self._directory} failed: {error}") from error

    def _segments(self) -> list[SegmentIndex]:
        with self._lock:
            return list(self._state.index.segments)

    @property
    def bytes_used(self) -> int:
        """Bytes of all segments on disk."""
        with self._lock:
            return sum(segment.size for segment in self._state.index.segments)

    @property
    def first_index(self) -> Index:
        """The first entry that is there, or will be."""
        return Index(self._state.index.base.index + 1)

    @property
    def last_index(self) -> Index:
        """The last durable entry; one less than `first_index` if there is none."""
        return Index(self._state.index.last_index)

    # Opening

    def _begin_log(self) -> RecoveryReport:
        self._state.index.begin(self._writer.begin(self._state))
        return RecoveryReport(segments=1, segments_scanned=0)

    def _go_on(self, found: Found, is_quarantined: bool, installed: LogPosition | None) -> RecoveryReport:
        """Make what was found durable, cut a torn tail, and stand ready to append."""
        disk, state = self._disk, self._state
        make_durable(disk, found)
        sweep(disk, self._directory, found)
        file = disk.open(found.last_path)
        whole = self._writer.resume(file, found.last, found.end)
        torn = found.torn
        if whole and torn is None:
            return found.report(None)
        if torn is not None:
            torn = save_copy(disk, self._directory, file, found.last.sequence, torn)
        state.index.begin(self._writer.begin(state))
        again = find_log(
            disk,
            self._directory,
            self._stamp,
            Index(state.applied_index),
            is_quarantined=is_quarantined,
            installed=installed,
        )
        assert again is not None
        same = (again.state.seq, again.state.crc, again.state.index.last_index, again.torn)
        if same != (state.seq, state.crc, state.index.last_index, None):
            raise corrupted(found.last_path, found.end, "the log reads differently after its torn end was cut")
        return found.report(torn)

    def die(self, error: BaseException) -> None:
        """Remember that the log must not be used any more."""
        self._failure = self._failure or f"{type(error).__name__}: {error}"

    def _usable(self) -> SegmentWriter:
        if self._failure:
            raise StorageFailed(f"the log in {self._directory} cannot be used any more: {self._failure}")
        return self._writer

    def _roll(self, need: int) -> None:
        segment = self._writer.roll(self._state, need)
        with self._lock:
            self._state.index.begin(segment)
