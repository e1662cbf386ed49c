"""The core's view of the log: traps S17, S18, C4."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from kvnode.ids import Index, NodeId, Term
from kvnode.raft.log import RaftLog
from kvnode.raft.messages import Configuration, Entry, LogPosition, entry_bytes
from tests.raft.cluster import made_entry

CONFIGURATION = Configuration((NodeId(1),))


def log_of(*terms: int, base: tuple[int, int] = (0, 0), in_memory: int | None = None) -> RaftLog:
    first = base[1] + 1
    entries = [made_entry(term, first + i) for i, term in enumerate(terms)]
    runs = [(entries[0].index, entries[0].term)] if entries else []
    runs += [(b.index, b.term) for a, b in pairwise(entries) if a.term != b.term]
    tail = entries if in_memory is None else entries[len(entries) - in_memory :]
    return RaftLog(
        base=LogPosition(Term(base[0]), Index(base[1])),
        term_runs=runs,
        last_index=Index(base[1] + len(terms)),
        tail=tail,
        configuration=CONFIGURATION,
    )


def test_index_zero_is_the_empty_sentinel() -> None:
    """Traps S17, C4: an empty log still has a position to compare with, and nothing beyond it."""
    log = log_of()
    assert log.last_position == LogPosition(Term(0), Index(0))
    assert log.term_at(Index(0)) == 0
    assert log.term_at(Index(1)) is None


@pytest.mark.parametrize("in_memory", [7, 3, 1, 0])
def test_terms_are_known_for_the_whole_log(in_memory: int) -> None:
    log = log_of(1, 1, 2, 2, 2, 5, 5, in_memory=in_memory)
    assert [log.term_at(Index(i)) for i in range(9)] == [0, 1, 1, 2, 2, 2, 5, 5, None]
    assert [log.first_of_term_at(Index(i)) for i in range(1, 8)] == [1, 1, 3, 3, 3, 6, 6]
    assert [log.last_with_term_at_most(Term(t), Index(6)) for t in range(7)] == [0, 2, 5, 5, 5, 6, 6]


@pytest.mark.parametrize("in_memory", [3, 1, 0])
def test_a_log_that_begins_after_its_base(in_memory: int) -> None:
    """The first entry may have the very term the base has."""
    log = log_of(3, 3, 4, base=(3, 10), in_memory=in_memory)
    assert [log.term_at(Index(i)) for i in (9, 10, 11, 12, 13, 14)] == [None, 3, 3, 3, 4, None]
    assert log.last_with_term_at_most(Term(2), Index(13)) == 10


def test_a_gap_is_a_bug() -> None:
    """Trap S18."""
    log = log_of(1, 1)
    with pytest.raises(AssertionError):
        log.extend([made_entry(1, 4)])
    with pytest.raises(AssertionError):
        log.extend([made_entry(1, 2)])


def test_terms_never_fall_along_the_log() -> None:
    log = log_of(1, 3)
    with pytest.raises(AssertionError):
        log.extend([made_entry(2, 3)])


def test_a_slice_is_bounded_by_bytes_but_never_empty() -> None:
    """RP5: at least one entry, however large."""
    log = log_of(1)
    log.extend([made_entry(1, 2, b"x" * 500), made_entry(1, 3, b"y"), made_entry(1, 4, b"z")])
    size = entry_bytes(made_entry(1, 2, b"x" * 500))
    assert [e.index for e in log.slice(Index(2), Index(4), 10) or ()] == [2]
    assert [e.index for e in log.slice(Index(2), Index(4), size) or ()] == [2]
    assert [e.index for e in log.slice(Index(2), Index(4), size + 65) or ()] == [2, 3]
    assert [e.index for e in log.slice(Index(2), Index(3), 10_000) or ()] == [2, 3]
    assert log.slice(Index(5), Index(9), 10_000) == ()


def test_evicted_entries_keep_their_terms() -> None:
    log = log_of(1, 1, 2, 2, 3)
    log.evict(Index(3), 0)
    assert log.first_in_memory == 4
    assert log.slice(Index(3), Index(5), 1_000) is None
    assert [log.term_at(Index(i)) for i in range(1, 6)] == [1, 1, 2, 2, 3]
    assert log.bytes_in_memory == sum(entry_bytes(e) for e in log.tail(Index(4)))


def test_random_operations_agree_with_a_plain_list() -> None:
    rng = random.Random(3)
    for _ in range(150):
        log, model, first = log_of(), list[Entry](), 1
        for _ in range(40):
            term = model[-1].term if model else 1
            match rng.choice("aaatse"):
                case "a":
                    fresh = [made_entry(term + rng.randint(0, 1), len(model) + 1, b"x" * rng.randint(0, 90))]
                    fresh.append(made_entry(fresh[0].term, len(model) + 2))
                    log.extend(fresh)
                    model += fresh
                case "t" if len(model) >= first:
                    cut = rng.randint(first, len(model))
                    log.truncate_from(Index(cut))
                    del model[cut - 1 :]
                case "e" if model:
                    log.evict(Index(rng.randint(1, len(model))), rng.randint(0, 400))
                    first = log.first_in_memory
                case "s" if len(model) >= first:
                    a, b = rng.randint(first, len(model)), rng.randint(first, len(model))
                    assert log.slice(Index(a), Index(b), 1 << 20) == tuple(model[a - 1 : b])
                    assert log.bytes_between(Index(a), Index(b)) == (
                        sum(map(entry_bytes, model[a:b])) if a <= b else -sum(map(entry_bytes, model[b:a]))
                    )
                case _:
                    pass
            assert log.last_index == len(model)
            assert [log.term_at(Index(i + 1)) for i in range(len(model))] == [e.term for e in model]
