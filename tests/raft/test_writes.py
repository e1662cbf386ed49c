"""Writes are matched by number: traps R1, R2 (I10), S3."""

from __future__ import annotations

from kvnode.ids import Index, NodeId, Term, WriteNumber
from kvnode.raft.log import RaftLog
from kvnode.raft.messages import Configuration, HardState, LogPosition
from kvnode.raft.writes import Writes
from tests.raft.cluster import made_entry

HARD_STATE = HardState(Term(1), NodeId(1))


def empty_log() -> RaftLog:
    return RaftLog(
        base=LogPosition(Term(0), Index(0)),
        term_runs=(),
        last_index=Index(0),
        tail=(),
        configuration=Configuration((NodeId(1),)),
    )


def test_numbers_are_consecutive_and_nothing_is_written_for_nothing() -> None:
    log, writes = empty_log(), Writes(Index(0))
    assert writes.take(log, HARD_STATE) is None
    log.extend([made_entry(1, 1)])
    first = writes.take(log, HARD_STATE)
    assert first is not None
    assert (first.number, first.hard_state, [e.index for e in first.entries]) == (1, None, [1])
    writes.on_hard_state_changed()
    second = writes.take(log, HARD_STATE)
    assert second is not None
    assert (second.number, second.hard_state, second.entries) == (2, HARD_STATE, ())
    assert writes.take(log, HARD_STATE) is None


def test_a_message_waits_for_exactly_the_write_it_depends_on() -> None:
    log, writes = empty_log(), Writes(Index(0))
    log.extend([made_entry(1, 1)])
    assert writes.after(Index(1)) == 1
    writes.take(log, HARD_STATE)
    log.extend([made_entry(1, 2)])
    assert writes.after(Index(1)) == 1, "in flight: its own number, not the next one"
    assert writes.after(Index(2)) == 2
    assert writes.after() == 0
    writes.on_hard_state_changed()
    assert writes.after() == 2, "whatever mentions the new term waits for it"
    writes.take(log, HARD_STATE)
    writes.on_persisted(WriteNumber(1))
    assert writes.durable_index == 1
    assert writes.after(Index(1)) == 2
    writes.on_persisted(WriteNumber(2))
    assert writes.after(Index(2)) == 0
    assert writes.is_hard_state_durable


def test_a_late_completion_does_not_prove_a_rewritten_entry() -> None:
    """Trap R2: (2, term 1) is written, cut, and written again; the first write's completion is not the second's."""
    log, writes = empty_log(), Writes(Index(0))
    log.extend([made_entry(1, 1), made_entry(1, 2)])
    writes.take(log, HARD_STATE)
    log.truncate_from(Index(2))
    writes.on_truncated(Index(2))
    log.extend([made_entry(2, 2)])
    cut = writes.take(log, HARD_STATE)
    assert cut is not None
    assert (cut.truncate_from, [e.term for e in cut.entries]) == (2, [2])
    log.truncate_from(Index(2))
    writes.on_truncated(Index(2))
    log.extend([made_entry(3, 2)])
    writes.take(log, HARD_STATE)
    writes.on_persisted(WriteNumber(1))
    assert writes.durable_index == 1
    assert writes.after(Index(2)) == 3
    writes.on_persisted(WriteNumber(2))
    assert writes.durable_index == 1
    writes.on_persisted(WriteNumber(3))
    assert writes.durable_index == 2


def test_cut_before_it_was_handed_out_leaves_no_trace() -> None:
    log, writes = empty_log(), Writes(Index(0))
    log.extend([made_entry(1, 1), made_entry(1, 2)])
    log.truncate_from(Index(2))
    writes.on_truncated(Index(2))
    persist = writes.take(log, HARD_STATE)
    assert persist is not None
    assert [e.index for e in persist.entries] == [1]


def test_two_cuts_in_one_write_keep_the_lower_one() -> None:
    log, writes = empty_log(), Writes(Index(0))
    log.extend([made_entry(1, i) for i in (1, 2, 3)])
    writes.take(log, HARD_STATE)
    for first, term in ((2, 2), (3, 3)):
        log.truncate_from(Index(first)) if log.last_index >= first else None
        writes.on_truncated(Index(first))
        log.extend([made_entry(term, first), made_entry(term, first + 1)])
    persist = writes.take(log, HARD_STATE)
    assert persist is not None
    assert persist.truncate_from == 2
    assert [(e.term, e.index) for e in persist.entries] == [(2, 2), (3, 3), (3, 4)]


def test_duplicate_and_older_completions_change_nothing() -> None:
    log, writes = empty_log(), Writes(Index(0))
    for index in (1, 2):
        log.extend([made_entry(1, index)])
        writes.take(log, HARD_STATE)
    writes.on_persisted(WriteNumber(2))
    writes.on_persisted(WriteNumber(1))
    writes.on_persisted(WriteNumber(2))
    assert (writes.durable_index, writes.durable_number) == (2, 2)
