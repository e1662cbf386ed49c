"""The replicated log as the core sees it: the term of every entry, and the newest entries themselves.

Terms are kept for the whole log, as runs of equal terms (few, as there is one run for each leader). Entries are
kept from `first_in_memory` on; older ones are read back from disk by the shell. `_ends[i]` is the number of bytes
up to and including the i-th entry in memory, counted from the start of the process, so the size of any range is
one subtraction and the end of a message is one bisection: nothing here looks at entries one by one but `extend`.

Invariants: base.index ≤ first_in_memory − 1 ≤ last_index; terms never fall along the log; an index is never
appended twice without a truncation between. Only a proven conflict truncates, and never a leader (traps S17, S18).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from kvnode.ids import Index, Term
from kvnode.raft.membership import Membership
from kvnode.raft.messages import ENTRY_OVERHEAD_BYTES, Configuration, Entry, EntryKind, LogPosition

_CONFIGURATION = EntryKind.CONFIGURATION.value
_FIRST = Index(0)


class RaftLog:
    """Term lookup, append, truncation, and slices of the entries in memory."""

    __slots__ = (
        "_ends",
        "_entries",
        "_evicted_bytes",
        "_run_firsts",
        "_run_terms",
        "_time_before",
        "base",
        "first_in_memory",
        "last_index",
        "membership",
    )

    def __init__(
        self,
        *,
        base: LogPosition,
        term_runs: Sequence[tuple[Index, Term]],
        last_index: Index,
        tail: Sequence[Entry],
        configuration: Configuration,
        configuration_index: Index = _FIRST,
        time_before: int = 0,
    ) -> None:
        """`time_before`: the hybrid timestamp of the entry before `tail`, where that is not in memory.

        `tail` may begin before `configuration_index`: the configurations up to there are history.
        """
        self.base = base
        self._time_before = time_before
        self.membership = Membership(configuration, configuration_index)
        before_tail = Index(last_index - len(tail))
        assert base.index <= before_tail, (base, last_index, len(tail))
        self._run_firsts = [first for first, _ in term_runs if first <= before_tail]
        self._run_terms = [term for first, term in term_runs if first <= before_tail]
        assert before_tail == base.index or self._run_firsts[:1] == [base.index + 1], (base, term_runs)
        self.last_index = before_tail
        self.first_in_memory = Index(before_tail + 1)
        self._entries: list[Entry] = []
        self._ends: list[int] = []
        self._evicted_bytes = 0
        self.extend(tail)

    # ── terms ───────────────────────────────────────────────────────────────────────────────────────

    @property
    def last_term(self) -> Term:
        return self._run_terms[-1] if self._run_terms else self.base.term

    @property
    def last_position(self) -> LogPosition:
        return LogPosition(self.last_term, self.last_index)

    def term_at(self, index: Index) -> Term | None:
        """Term of the entry at `index`; None if the log does not reach there or begins after it."""
        if index > self.last_index:
            return None
        firsts = self._run_firsts
        if firsts and index >= firsts[-1]:
            return self._run_terms[-1]
        if index <= self.base.index:
            return self.base.term if index == self.base.index else None
        return self._run_terms[bisect_right(firsts, index) - 1]

    def first_of_term_at(self, index: Index) -> Index:
        """First index this log holds of the term that stands at `index`."""
        assert self.base.index < index <= self.last_index, (self.base.index, index, self.last_index)
        return self._run_firsts[bisect_right(self._run_firsts, index) - 1]

    def last_with_term_at_most(self, term: Term, limit: Index) -> Index:
        """The last index ≤ `limit` whose term is ≤ `term`; the base's if there is none."""
        run = bisect_right(self._run_terms, term)
        end = self._run_firsts[run] - 1 if run < len(self._run_firsts) else self.last_index
        return Index(max(min(end, limit), self.base.index))

    # ── hybrid timestamps ───────────────────────────────────────────────────────────────────────────

    @property
    def last_time(self) -> int:
        """Of the last entry; 0 if there is none."""
        return self.time_at(self.last_index)

    def time_at(self, index: Index) -> int:
        """Of the entry at `index`, which is in memory or the last one before those that are."""
        position = index - self.first_in_memory
        assert -1 <= position < len(self._entries), (index, self.first_in_memory, self.last_index)
        return self._entries[position].time if position >= 0 else self._time_before

    # ── change ──────────────────────────────────────────────────────────────────────────────────────

    def extend(self, entries: Sequence[Entry]) -> None:
        """Append entries that follow `last_index` without a gap."""
        if not entries:
            return
        index = self.last_index
        term = self._run_terms[-1] if self._run_terms else Term(0)
        end = self._ends[-1] if self._ends else self._evicted_bytes
        add_end = self._ends.append
        for entry in entries:
            assert entry.index == index + 1, (entry.index, index)
            index = entry.index
            if entry.term != term:
                assert entry.term > term, (entry.term, term)
                term = entry.term
                self._run_firsts.append(index)
                self._run_terms.append(term)
            end += len(entry.payload) + ENTRY_OVERHEAD_BYTES
            add_end(end)
            if entry.kind == _CONFIGURATION:
                self.membership.on_appended(index, entry.payload)
        self._entries.extend(entries)
        self.last_index = index

    def truncate_from(self, first: Index) -> None:
        """Drop every entry at or above `first`. The caller has proved a conflict and that none is committed."""
        assert self.first_in_memory <= first <= self.last_index, (self.first_in_memory, first, self.last_index)
        keep = first - self.first_in_memory
        del self._entries[keep:]
        del self._ends[keep:]
        while self._run_firsts and self._run_firsts[-1] >= first:
            self._run_firsts.pop()
            self._run_terms.pop()
        self.last_index = Index(first - 1)
        self.membership.on_truncated(first)

    def drop_prefix(self, base: LogPosition) -> None:
        """Entries up to `base` are not there any more. The configuration in force at it stays known."""
        assert self.term_at(base.index) == base.term, (base, self.term_at(base.index))
        count = base.index + 1 - self.first_in_memory
        if count > 0:
            self._forget_oldest(count)
        run = bisect_right(self._run_firsts, base.index)
        if base.index < self.last_index and self.term_at(Index(base.index + 1)) == base.term and run:
            run -= 1  # the run goes on behind the base
            self._run_firsts[run] = Index(base.index + 1)
        del self._run_firsts[:run]
        del self._run_terms[:run]
        self.base = base
        self.membership.on_trimmed(base.index)

    def reset(
        self, base: LogPosition, time: int, configuration: Configuration, configuration_index: Index = _FIRST
    ) -> None:
        """All of it goes, configurations too; what is known now is the state at `base`, whose entry has that `time`."""
        self.base = base
        self._time_before = time
        self.membership = Membership(configuration, configuration_index)
        self._run_firsts.clear()
        self._run_terms.clear()
        self._entries.clear()
        self._ends.clear()
        self._evicted_bytes = 0
        self.last_index = base.index
        self.first_in_memory = Index(base.index + 1)

    # ── slices and sizes ────────────────────────────────────────────────────────────────────────────

    def slice(self, first: Index, last: Index, bytes_max: int) -> tuple[Entry, ...] | None:
        """Entries first..last as far as `bytes_max` allows, at least one; None if `first` is not in memory."""
        start = first - self.first_in_memory
        if start < 0:
            return None
        stop = min(last, self.last_index) - self.first_in_memory + 1
        if start >= stop:
            return ()
        before = self._ends[start - 1] if start else self._evicted_bytes
        if self._ends[stop - 1] - before > bytes_max:
            stop = max(bisect_right(self._ends, before + bytes_max, start, stop), start + 1)
        return tuple(self._entries[start:stop])

    def tail(self, first: Index) -> tuple[Entry, ...]:
        """Every entry from `first` on; all of them are in memory."""
        assert first >= self.first_in_memory, (first, self.first_in_memory)
        return tuple(self._entries[first - self.first_in_memory :])

    def bytes_between(self, after: Index, last: Index) -> int:
        """Bytes of the entries in (after, last]; those no longer in memory count nothing."""
        return self._end_of(last) - self._end_of(after)

    def _end_of(self, index: Index) -> int:
        position = index - self.first_in_memory
        return self._ends[position] if position >= 0 else self._evicted_bytes

    @property
    def bytes_in_memory(self) -> int:
        return self._ends[-1] - self._evicted_bytes if self._ends else 0

    def evict(self, up_to: Index, bytes_kept: int) -> None:
        """Forget the oldest entries, none above `up_to`, until at most `bytes_kept` remain."""
        excess = self.bytes_in_memory - bytes_kept
        if excess <= 0:
            return
        count = bisect_left(self._ends, self._evicted_bytes + excess) + 1
        count = min(count, up_to - self.first_in_memory + 1)
        if count <= 0:
            return
        self._forget_oldest(count)

    def _forget_oldest(self, count: int) -> None:
        self._evicted_bytes = self._ends[count - 1]
        self._time_before = self._entries[count - 1].time
        del self._entries[:count]
        del self._ends[:count]
        self.first_in_memory = Index(self.first_in_memory + count)
