"""Long work in slices: the same outcome whatever the slice length, bounded slices, nothing to see in between."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from kvnode.config import LimitsSection
from kvnode.ids import Index, Term
from kvnode.kv.keys import TO_THE_END
from kvnode.kv.requests import Delete, History, Put, Range, RangeReply, ReadRequest, Refusal, Txn, WriteRequest
from kvnode.machine.machine import Applied, StateMachine
from kvnode.machine.pace import Pace, Work, in_one_go
from kvnode.storage.memory_backend import MemoryBackend
from tests.machine.harness import opener, some_keys
from tests.machine.test_digest import workload

EVERYTHING = Range(b"", TO_THE_END)
DELETE_ALL = Delete(b"", TO_THE_END)


def machine_of(keys: int, *, slice_steps: int = 1_000, **limits: int) -> StateMachine:
    machine = StateMachine(MemoryBackend(), LimitsSection(**limits), slice_steps=slice_steps)
    for number in range(keys):
        apply(machine, Put(b"k%05d" % number, b"v"))
    return machine


def apply(machine: StateMachine, request: WriteRequest) -> Applied:
    index = Index(machine.applied_index + 1)
    return machine.apply(index, index * 10, request)


def begin(machine: StateMachine, request: WriteRequest) -> Applied | None:
    index = Index(machine.applied_index + 1)
    return machine.begin(index, index * 10, request)


def flush(machine: StateMachine) -> bool:
    cut = machine.cut(Term(1))
    if cut is None:
        return False
    machine.backend.commit(cut)
    machine.evict(cut)
    return True


def big_workload() -> list[WriteRequest]:
    """Ranges of hundreds of keys deleted, by themselves and in transactions, one over the limit."""
    found: list[WriteRequest] = [Put(b"b%04d" % number, b"v%d" % number) for number in range(600)]
    found += workload(11, 150)
    first = Delete(b"b0100", b"b0400", return_previous=True)
    count = Range(b"b", b"c", count_only=True)
    found += [Txn((), (Put(b"a", b"1"), first, count, Delete(b"b", b"c"))), Delete(b"b", b"c")]
    found += [Put(b"c%04d" % number, b"v%d" % number) for number in range(701)]
    found += [Delete(b"c", b"d"), Txn((), (Put(b"a", b"2"), Delete(b"c", b"d"))), Delete(b"c", b"c0650")]
    found += [Delete(b"c", b"d", return_previous=True), Delete(b"c", b"d")]
    return found


BIG_WORKLOAD_DIGEST = "0e3b75799ed9105e705a3f54926f4cee"
"""What a state machine makes that does all of this in one go and takes its digest in one call."""


@pytest.mark.parametrize("slice_steps", [1, 7, 256, 1_000, 10**9])
def test_the_length_of_slices_does_not_show(slice_steps: int) -> None:
    machine = StateMachine(MemoryBackend(), LimitsSection(delete_keys_max=700), slice_steps=slice_steps)
    for request in big_workload():
        apply(machine, request)
    assert machine.hash_at() == BIG_WORKLOAD_DIGEST


@pytest.mark.parametrize("seed", range(6))
def test_flushes_between_slices_do_not_show(seed: int, tmp_path: Path) -> None:
    """Hard keys, both directions, old revisions: read in tiny slices while the store changes, is cut and evicted."""
    chance = random.Random(seed)
    keys = some_keys(chance, 60)
    machine = StateMachine(opener("lmdb", tmp_path)(), LimitsSection())
    for _ in range(200):
        apply(machine, Put(chance.choice(keys), chance.randbytes(3)))
        if chance.random() < 0.1:
            apply(machine, Delete(*sorted(chance.sample(keys, 2))))
        if chance.random() < 0.05:
            flush(machine)
    for _ in range(25):
        start, end = sorted(chance.sample([*keys, b""], 2))
        request = Range(
            start,
            chance.choice([end, TO_THE_END]),
            revision=chance.choice([machine.revision, chance.randrange(1, machine.revision)]),
            descending=chance.random() < 0.5,
            count_only=chance.random() < 0.3,
        )
        expected = machine.range(request)
        assert read_while_changing(machine, request, keys, chance) == expected, request
    for _ in range(10):
        history = History(chance.choice(keys), revision=chance.choice([machine.revision, machine.revision // 2]))
        expected = in_one_go(machine.read(history, pace := Pace()), pace)
        assert read_while_changing(machine, history, keys, chance) == expected, history
    machine.backend.close()


def read_while_changing(
    machine: StateMachine, request: ReadRequest, keys: list[bytes], chance: random.Random
) -> RangeReply:
    def change(slices: int) -> None:
        # A read takes new keys into the index as well: changes at every slice could keep the shortest from ending.
        if chance.random() < 0.2:
            apply(machine, chance.choice([Put(chance.choice(keys), b"new"), Delete(chance.choice(keys))]))
        if chance.random() < 0.3:
            flush(machine)

    pace = Pace(chance.choice([1, 2, 5]))
    return driven(machine.read(request, pace), pace, change)[0]


def driven(work: Work[RangeReply], pace: Pace, between: Callable[[int], None]) -> tuple[RangeReply, list[int]]:
    """The answer, and the steps that each slice took."""
    spent: list[int] = []
    while True:
        pace.renew()
        try:
            next(work)
        except StopIteration as end:
            return end.value, [*spent, pace.steps - pace.left]
        spent.append(pace.steps - pace.left)
        between(len(spent))


def nothing(slices: int) -> None:
    """Between two slices."""


def test_a_slice_is_bounded_by_its_steps() -> None:
    machine = machine_of(2_000, slice_steps=100)
    pace = Pace(100)
    for request in (Range(b"", TO_THE_END, count_only=True), Range(b"", TO_THE_END, limit=2_000)):
        reply, spent = driven(machine.read(request, pace), pace, nothing)
        assert reply.count == 2_000
        assert len(spent) >= 2_000 // 100
        assert max(spent) <= 102
    slices = 1
    applied = begin(machine, DELETE_ALL)
    while applied is None:
        applied = machine.resume()
        slices += 1
    assert slices > 2 * 2_000 // 100 + 2_000 // 256, "found, buried and taken into the digest in slices"
    reply, spent = driven(machine.read(Range(b"", TO_THE_END), pace), pace, nothing)
    assert reply.count == 0
    assert len(spent) >= 2_000 // 100, "tombstones count like keys"
    assert max(spent) <= 102


def test_big_values_make_shorter_slices() -> None:
    machine = StateMachine(MemoryBackend(), LimitsSection())
    for number in range(100):
        apply(machine, Put(b"k%d" % number, bytes(1 << 20)))
    assert flush(machine)
    pace = Pace()
    work = machine.read(Range(b"", TO_THE_END, count_only=True), pace)
    next(work)
    assert pace.left > -(1 << 20) // (4 << 10) - 2, "at most one value too many"
    assert in_one_go(work, pace).count == 100


@pytest.mark.parametrize("request_", [DELETE_ALL, Txn((), (Put(b"z", b""), Delete(b"a", b"y")))])
def test_nothing_moves_before_the_last_slice(request_: WriteRequest) -> None:
    machine = machine_of(1_000, slice_steps=50)
    before = machine.revision, machine.applied_index, machine.hash_at(), machine.logical_bytes
    page = machine.range(EVERYTHING)
    applied = begin(machine, request_)
    slices = 0
    while applied is None:
        assert (machine.revision, machine.applied_index, machine.hash_at(), machine.logical_bytes) == before
        assert machine.cut(Term(1)) is None
        assert machine.range(Range(b"k00500")).count == 1
        if slices % 10 == 0:
            assert machine.range(EVERYTHING) == page
            assert machine.range(Range(b"", TO_THE_END, revision=machine.revision)) == page
        with pytest.raises(AssertionError):
            machine.skip(Index(machine.applied_index + 1), machine.applied_time)
        applied = machine.resume()
        slices += 1
    assert slices > 20
    assert machine.revision == before[0] + 1
    assert machine.range(Range(b"a", b"y")).count == 0
    assert machine.range(Range(b"a", b"y", revision=before[0], limit=1_000)).count == 1_000
    assert flush(machine)
    assert machine.range(Range(b"a", b"y")).count == 0


def test_a_cut_made_before_a_big_delete_may_be_evicted_during_it() -> None:
    machine = machine_of(1_000, slice_steps=50)
    cut = machine.cut(Term(1))
    assert cut is not None
    applied = begin(machine, DELETE_ALL)
    for _ in range(8):
        assert machine.resume() is None
    machine.backend.commit(cut)
    machine.evict(cut)
    while applied is None:
        applied = machine.resume()
    assert applied.result.deleted == 1_000  # type: ignore[union-attr]
    assert len(applied.events) == 1_000


def test_an_unfinished_delete_leaves_nothing_in_the_store() -> None:
    """The process dies between two slices: the log has the entry, the store has nothing of it."""
    machine = machine_of(500, slice_steps=20)
    assert flush(machine)
    assert begin(machine, DELETE_ALL) is None
    for _ in range(40):
        assert machine.resume() is None
    again = StateMachine(machine.backend, LimitsSection())
    assert again.range(EVERYTHING).count == 500
    apply(again, DELETE_ALL)
    while machine.resume() is None:
        pass
    assert again.hash_at() == machine.hash_at()


def test_the_deletes_of_one_transaction_share_the_limit() -> None:
    machine = machine_of(100, delete_keys_max=60)
    halves = Txn((), (Delete(b"k00000", b"k00050"), Delete(b"k00050", b"k00100")))
    refusal = apply(machine, halves).result
    assert isinstance(refusal, Refusal)
    assert refusal.code == "too_large"
    assert machine.range(EVERYTHING).count == 100


def test_many_long_keys_of_one_stem_are_read_in_slices() -> None:
    machine = StateMachine(MemoryBackend(), LimitsSection(), slice_steps=50)
    stem = b"s" * 480
    for number in range(500):
        apply(machine, Put(stem + b"%d" % number, b""))
        if number == 250:
            flush(machine)

    def flush_once(slices: int) -> None:
        if slices == 7:
            flush(machine)
            apply(machine, Put(stem + b"new", b""))

    for descending in (False, True):
        expected = sorted(machine.range(Range(b"a", TO_THE_END)).items, key=lambda kv: kv.key, reverse=descending)
        pace = Pace(50)
        work = machine.read(Range(b"a", TO_THE_END, descending=descending), pace)
        reply, spent = driven(work, pace, flush_once)
        assert list(reply.items) == expected
        assert len(spent) >= 20, "names and then versions"
        assert max(spent) < 55
