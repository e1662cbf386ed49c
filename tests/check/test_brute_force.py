"""The checkers against brute force: thousands of tiny histories, legal ones and spoiled ones, every verdict equal.

`KVNODE_BRUTE_FORCE=100000` tries more, `KVNODE_BRUTE_FORCE_FIRST=5000` others.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from kvnode.check import well_formed
from kvnode.check.claims import account, keys_of
from kvnode.check.describe import describe
from kvnode.check.history import Operation
from kvnode.check.judge import judge
from kvnode.check.linearizability import search
from kvnode.check.partitions import partition
from tests.check import brute_force
from tests.check.histories import Shape, legal
from tests.check.mutations import noise

HISTORIES = int(os.environ.get("KVNODE_BRUTE_FORCE", "3000"))
FIRST = int(os.environ.get("KVNODE_BRUTE_FORCE_FIRST", "0"))
KINDS = ("put", "get", "get", "delete", "cas", "create", "range", "txn")


def tiny(seed: int) -> list[Operation] | None:
    random = Random(f"tiny{seed}")
    shape = Shape(clients=3, keys=random.choice([1, 2]), operations=random.randint(3, 6), unanswered=0.2, kinds=KINDS)
    history = legal(seed, shape)
    for _ in range(random.choice([0, 1, 1, 2])):
        history = noise(random, history)
    try:
        well_formed.check(history.operations)
    except well_formed.MalformedHistory:
        return None
    return history.operations


def histories() -> Iterator[tuple[int, list[Operation]]]:
    for seed in range(FIRST, FIRST + HISTORIES):
        operations = tiny(seed)
        if operations is not None:
            yield seed, operations


def searched(operations: list[Operation]) -> bool:
    keys = keys_of(operations)
    accounts = [account(operation, keys) for operation in operations]
    found = [search(part, 100_000) for part in partition(accounts, keys)]
    assert all(one.result != "unknown" for one in found)
    return all(one.result == "ok" for one in found)


def told(operations: list[Operation]) -> str:
    return "\n".join(describe(operation) for operation in operations)


def test_the_search_finds_an_order_exactly_where_trying_all_finds_one():
    seen: Counter[bool] = Counter()
    for seed, operations in histories():
        expected = brute_force.is_linearizable(operations)
        assert searched(operations) == expected, (seed, told(operations))
        seen[expected] += 1
    assert min(seen[True], seen[False]) > HISTORIES // 10, seen


def test_the_judgement_is_that_of_the_model_with_all_its_revisions():
    """Exactly, where the evidence is whole. Where an unanswered write leaves a gap, it may only be too generous."""
    seen: Counter[tuple[str, bool, bool]] = Counter()
    for seed, operations in histories():
        expected = brute_force.is_exactly_explained(operations)
        verdict = judge(operations)
        gaps = bool(verdict.gaps)
        assert verdict.result != "unknown"
        if expected or not gaps:
            assert (verdict.result == "ok") == expected, (seed, told(operations), verdict)
        seen[verdict.result, expected, gaps] += 1
    generous = seen["ok", False, True]
    assert generous < HISTORIES // 50, seen
    assert min(seen["ok", True, True], seen["failed", False, True]) > HISTORIES // 100, seen


@given(st.integers(0, 2**64))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_the_order_in_a_file_says_nothing(seed: int):
    operations = tiny(seed)
    if operations is None:
        return
    expected = judge(operations)
    Random(seed).shuffle(operations)
    assert judge(operations).result == expected.result


def test_a_part_of_a_legal_history_without_some_reads_is_legal():
    for seed in range(200):
        random = Random(seed)
        operations = legal(seed, Shape(operations=25)).operations
        left = [one for one in operations if one.op not in {"get", "range"} or random.random() < 0.5]
        assert judge(left).result == "ok", seed
