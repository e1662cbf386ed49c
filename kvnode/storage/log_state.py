"""What the records of the log add up to: folded record by record, at recovery as at writing time."""

from __future__ import annotations

from dataclasses import dataclass, field

from kvnode.ids import Index, NodeId, Term
from kvnode.raft.messages import Entry, HardState, LogPosition
from kvnode.storage import segment
from kvnode.storage.log_index import LogIndex
from kvnode.storage.segment import VOTE, FormatError, Record, SegmentEnd, SegmentHeader, UnknownVersion
from kvnode.storage.segment_reader import entry_of


@dataclass(slots=True)
class LogState:
    """The log up to and including record `seq`."""

    index: LogIndex
    applied_index: int  # entries above it are kept in `tail`
    seq: int
    crc: int  # checksum of record `seq`, which the next record links to
    hard_state: HardState
    low_water: LogPosition  # entries at or below it may be gone
    last_time: int
    tail: list[Entry] = field(default_factory=list)
    sealed: bool = False  # the last record was a segment-end
    undecoded: Record | None = None  # the newest applied entry: its time is still to be looked at

    @classmethod
    def before(cls, header: SegmentHeader, applied_index: int) -> LogState:
        """The log as it stood when the segment was begun; the oldest one is where folding starts."""
        base = LogPosition(Term(header.first_term), Index(header.first_index - 1))
        return cls(
            index=LogIndex(base),
            applied_index=applied_index,
            seq=header.previous_seq,
            crc=header.previous_crc,
            hard_state=header.hard_state,
            low_water=header.base,
            last_time=header.last_time,
        )

    def anew(self, position: LogPosition, time: int) -> LogState:
        """The log as it goes on after a snapshot up to `position`: no entry, term and vote as they were.

        The term is at least that of the snapshot's last entry. This node has not voted in it if it is news.
        """
        state = self.hard_state
        if position.term > state.term:
            state = HardState(position.term, NodeId(0))
        state = HardState(state.term, state.vote, Index(max(state.commit, position.index)))
        last_time = max(self.last_time, time)
        return LogState(LogIndex(position), self.applied_index, self.seq, self.crc, state, position, last_time)

    @classmethod
    def empty(cls, applied_index: int) -> LogState:
        """No record yet."""
        zero = LogPosition(Term(0), Index(0))
        return cls(LogIndex(zero), applied_index, 0, 0, HardState(Term(0)), zero, 0)

    def follows(self, record: Record) -> bool:
        """`record` is the one that comes next."""
        return record.seq == self.seq + 1 and record.previous_crc == self.crc and record.durable_seq < record.seq

    def take(self, record: Record) -> None:
        """Fold one intact record in. Raises: FormatError if it contradicts what came before."""
        if self.sealed:
            raise FormatError("a record follows the segment-end")
        match record.type:
            case segment.ENTRY:
                self._take_entry(record)
            case segment.HARD_STATE:
                self._take_hard_state(record)
            case segment.TRUNCATE:
                self._take_truncate(record)
            case segment.SNAPSHOT_MARKER:
                self.low_water = LogPosition(Term(record.term), Index(record.index))
            case segment.MARK:
                pass
            case segment.SEGMENT_END:
                self.sealed = True
            case unknown:
                raise UnknownVersion(f"record type {unknown} is unknown: written by a newer version")
        self.seq, self.crc = record.seq, record.crc

    def take_summary(self, record: Record, end: SegmentEnd) -> None:
        """Fold a whole segment in by its segment-end."""
        self.index.take_summary(end)
        self.hard_state, self.low_water = end.hard_state, end.base
        self.last_time = max(self.last_time, end.last_time)
        self._cut_tail(end.first_index)
        self.seq, self.crc = record.seq, record.crc

    def settle_time(self) -> None:
        """Bring `last_time` up to date. Raises: FormatError."""
        if self.undecoded is not None:
            self.last_time = max(self.last_time, entry_of(self.undecoded).time)
            self.undecoded = None

    def _take_entry(self, record: Record) -> None:
        if record.index != self.index.last_index + 1:
            raise FormatError(f"entry {record.index} follows entry {self.index.last_index}")
        if record.term < self.index.last_term:
            raise FormatError(f"entry {record.index} has term {record.term}, below {self.index.last_term}")
        self.index.append(record.index, record.term, record.offset)
        if record.index > self.applied_index:
            entry = entry_of(record)
            self.last_time = max(self.last_time, entry.time)
            self.tail.append(entry)
        else:
            self.undecoded = record  # times rise along the log: the last one is enough

    def _take_hard_state(self, record: Record) -> None:
        if len(record.payload) != VOTE.size or record.term < self.hard_state.term:
            raise FormatError(f"hard state of term {record.term} follows term {self.hard_state.term}")
        (vote,) = VOTE.unpack(record.payload)
        self.hard_state = HardState(Term(record.term), NodeId(vote), Index(record.index))

    def _take_truncate(self, record: Record) -> None:
        index = record.index
        if not 0 < index <= self.index.last_index:
            raise FormatError(f"truncation from {index} of a log that ends at {self.index.last_index}")
        if index <= self.hard_state.commit:
            raise FormatError(f"truncation from {index}, but {self.hard_state.commit} is committed")
        self.settle_time()
        self.index.cut(index, record.term)
        self._cut_tail(index)

    def _cut_tail(self, index: int) -> None:
        if self.tail and index <= self.tail[-1].index:
            del self.tail[max(0, index - self.tail[0].index) :]
