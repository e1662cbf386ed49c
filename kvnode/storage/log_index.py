"""Where the entries of the log stand: in memory, sparse, rebuilt at every start.

Each segment owns the entries from its `first_index` up to the one before the next segment's; the newest owns
the rest. Cutting a suffix lowers `first_index` of the segments behind the cut. A checkpoint (index, offset) is kept
every 64 entries and at the first entry after each cut, so that from one checkpoint to the next the segment holds
consecutive entries of the live log, with only records of other types between them.

Not thread-safe: `Wal` holds a lock around changes and lookups.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from typing import NamedTuple

from kvnode.ids import Index, Term
from kvnode.raft.messages import LogPosition
from kvnode.storage.segment import SegmentEnd, SegmentHeader

CHECK_EVERY = 64


class SegmentIndex:
    """One segment's share of the live log."""

    __slots__ = ("crc_start", "first_index", "fresh", "indexes", "offsets", "path", "sequence", "size")

    def __init__(self, path: str, header: SegmentHeader, size: int) -> None:
        self.path = path
        self.sequence = header.sequence
        self.crc_start = header.crc_start
        self.first_index = header.first_index
        self.size = size
        self.fresh = True  # the next entry gets a checkpoint whatever its index
        self.indexes: array[int] = array("Q")
        self.offsets: array[int] = array("Q")

    def cut(self, index: int) -> None:
        """Forget entries from `index` on."""
        keep = bisect_left(self.indexes, index)
        del self.indexes[keep:]
        del self.offsets[keep:]
        self.first_index = min(self.first_index, index)
        self.fresh = True


class Stretch(NamedTuple):
    """Consecutive entries of one segment and the checkpoints to find them by."""

    path: str
    crc_start: int
    first: int
    last: int
    checkpoints: list[tuple[int, int]]  # ascending; the first one is at or before `first`


class LogIndex:
    """The live log: its base, its runs of one term, its segments."""

    __slots__ = ("base", "last_index", "last_term", "run_indexes", "run_terms", "segments")

    def __init__(self, base: LogPosition) -> None:
        self.base = base  # the position just before the first entry that is here
        self.last_index: int = base.index
        self.last_term: int = base.term
        self.run_indexes: list[int] = []
        self.run_terms: list[int] = []
        self.segments: list[SegmentIndex] = []

    def begin(self, segment: SegmentIndex) -> None:
        """Entries go to `segment` from now on."""
        assert segment.first_index == self.last_index + 1, (segment.first_index, self.last_index)
        self.segments.append(segment)

    def append(self, index: int, term: int, offset: int) -> None:
        segment = self.segments[-1]
        if segment.fresh or not index % CHECK_EVERY:
            segment.indexes.append(index)
            segment.offsets.append(offset)
            segment.fresh = False
        if term != self.last_term or not self.run_terms:
            self.run_indexes.append(index)
            self.run_terms.append(term)
            self.last_term = term
        self.last_index = index

    def cut(self, index: int, head_term: int) -> None:
        """Forget entries from `index` on; the one before it has `head_term`."""
        for segment in reversed(self.segments):
            was_first = segment.first_index
            segment.cut(index)
            if was_first <= index:
                break
        keep = bisect_left(self.run_indexes, index)
        del self.run_indexes[keep:]
        del self.run_terms[keep:]
        if index <= self.base.index:  # what stood before was dropped; the cut tells where the log begins
            self.base = LogPosition(Term(head_term), Index(index - 1))
        self.last_index, self.last_term = index - 1, head_term

    def term_at(self, index: int) -> int:
        """Term of a live entry, or of the base."""
        assert self.base.index <= index <= self.last_index, (self.base, index, self.last_index)
        if index == self.base.index:
            return self.base.term
        return self.run_terms[bisect_right(self.run_indexes, index) - 1]

    def runs(self) -> tuple[tuple[Index, Term], ...]:
        """(first index, term) of each run, ascending."""
        return tuple((Index(at), Term(term)) for at, term in zip(self.run_indexes, self.run_terms, strict=True))

    def runs_of_newest(self) -> tuple[list[int], list[int]]:
        """The runs within the newest segment; the first may have begun in an older one."""
        first = self.segments[-1].first_index
        if first > self.last_index:
            return [], []
        at = bisect_right(self.run_indexes, first) - 1
        return [first, *self.run_indexes[at + 1 :]], self.run_terms[at:]

    def take_summary(self, end: SegmentEnd) -> None:
        """As if the newest, still empty segment had been scanned."""
        segment = self.segments[-1]
        if end.first_index <= self.last_index:
            self.cut(end.first_index, end.first_term)
        for index, term in zip(end.run_indexes, end.run_terms, strict=True):
            if term != self.last_term or not self.run_terms:
                self.run_indexes.append(index)
                self.run_terms.append(term)
                self.last_term = term
        self.last_index = end.last_index
        segment.indexes.extend(end.check_indexes)
        segment.offsets.extend(end.check_offsets)

    def droppable(self, index: int) -> int:
        """How many of the oldest segments hold only entries at or below `index`; never the newest one."""
        firsts = [segment.first_index for segment in self.segments]
        return max(0, bisect_right(firsts, index + 1) - 1)

    def droppable_beyond(self, bytes_kept: int, index: int) -> int:
        """As `droppable`, but what is left of the segments takes at least `bytes_kept`. The newest counts as empty."""
        count, left = 0, sum(segment.size for segment in self.segments[:-1])
        for segment in self.segments[: self.droppable(index)]:
            left -= segment.size
            if left < bytes_kept:
                break
            count += 1
        return count

    def drop(self, count: int) -> None:
        """Forget the `count` oldest segments."""
        if not count:
            return
        first = self.segments[count].first_index
        self.base = LogPosition(Term(self.term_at(first - 1)), Index(first - 1))
        del self.segments[:count]
        at = bisect_right(self.run_indexes, first) - 1
        if first > self.last_index:
            self.run_indexes.clear()
            self.run_terms.clear()
        elif at >= 0:
            del self.run_indexes[:at]
            del self.run_terms[:at]
            self.run_indexes[0] = first

    def stretches(self, first: int, last: int) -> list[Stretch]:
        """Where to read entries `first` to `last`, both live."""
        found: list[Stretch] = []
        firsts = [segment.first_index for segment in self.segments]
        at = bisect_right(firsts, first) - 1
        while at < len(self.segments) and first <= last:
            segment = self.segments[at]
            end = self.last_index if at + 1 == len(self.segments) else self.segments[at + 1].first_index - 1
            end = min(end, last)
            if first <= end:
                low = bisect_right(segment.indexes, first) - 1
                high = bisect_right(segment.indexes, end)
                checks = list(zip(segment.indexes[low:high], segment.offsets[low:high], strict=True))
                found.append(Stretch(segment.path, segment.crc_start, first, end, checks))
                first = end + 1
            at += 1
        return found
