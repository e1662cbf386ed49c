"""Apply is a function of the entries: equal digests whatever the backend, the flushes, the hash seed (R7, I21)."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from kvnode.config import LimitsSection
from kvnode.ids import Index
from kvnode.kv.requests import Compare, Delete, Put, Range, Refusal, Txn, WriteRequest
from kvnode.machine.digest import advance
from kvnode.machine.machine import StateMachine
from kvnode.storage.memory_backend import MemoryBackend
from tests.machine.harness import BACKENDS, MODES, Store, opener


def workload(seed: int, count: int) -> list[WriteRequest]:
    chance = random.Random(seed)
    keys = [b"k%d" % number for number in range(30)]
    found: list[WriteRequest] = []
    for _ in range(count):
        key, other = chance.sample(keys, 2)
        put = Put(key, chance.randbytes(5), if_revision=chance.choice([-1, -1, -1, 0, 5, -2]), return_previous=True)
        compare = Compare(key, "version", "<", chance.randrange(4))
        found.append(
            chance.choice(
                [
                    put,
                    put,
                    Delete(key, return_previous=True),
                    Delete(key, other),
                    Txn((compare,), (put, Range(other), Delete(other)), (Put(other, b""), put)),
                ]
            )
        )
    return found


def digests(store: Store, requests: list[WriteRequest], settle_every: int) -> list[str]:
    found = []
    for step, request in enumerate(requests):
        store.apply(request)
        found.append(store.machine.hash_at())
        if step % settle_every == 0:
            store.settle()
    return found


def test_flushes_and_backends_do_not_show(tmp_path: Path) -> None:
    requests = workload(1, 200)
    expected = digests(Store(opener("memory", tmp_path)), requests, 1)
    assert len(set(expected)) == len(requests)
    for backend in BACKENDS:
        for mode in MODES:
            for settle_every in (7, 50):
                store = Store(opener(backend, tmp_path / f"{mode}{settle_every}"), mode)
                assert digests(store, requests, settle_every) == expected, (backend, mode, settle_every)
                store.machine.backend.close()


@pytest.mark.slow
def test_hash_seeds_do_not_show() -> None:
    """Two processes that iterate sets and dicts of strings differently reach the same state (trap R7)."""
    found = set()
    for seed in ("0", "1", "4242"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        finished = subprocess.run(
            [sys.executable, "-m", "tests.machine.test_digest"],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
            cwd=Path(__file__).parents[2],
        )
        found.add(finished.stdout)
    assert len(found) == 1
    assert len(found.pop().strip()) == 32


def test_everything_that_matters_is_in_it() -> None:
    start = bytes(16)
    machine = StateMachine(MemoryBackend(), LimitsSection())
    changes = [event.kv for event in machine.apply(Index(1), 1, Put(b"k", b"v")).events]
    result = machine.apply(Index(2), 2, Delete(b"absent")).result
    base = advance(start, Index(1), 5, changes, result)
    assert base == advance(start, Index(1), 5, changes, result)
    assert len(base) == 16
    others = [
        advance(base, Index(1), 5, changes, result),
        advance(start, Index(2), 5, changes, result),
        advance(start, Index(1), 6, changes, result),
        advance(start, Index(1), 5, [], result),
        advance(start, Index(1), 5, changes, None),
    ]
    assert len({base, *others}) == 6


def test_golden_digest() -> None:
    """Changes when apply or the digest changes: nodes of two such versions cannot share a cluster's comparison."""
    store = Store(MemoryBackend)
    store.apply(Put(b"k", b"v"), time=10)
    store.apply(Txn((), (Put(b"a", b"1"), Delete(b"k"))), time=20)
    store.machine.skip(Index(3), 30)
    assert store.machine.hash_at() == "c5ae65be443e4cf89e78fd9f13357394"


if __name__ == "__main__":
    final = Store(MemoryBackend)
    digests(final, workload(2, 2_000), 1)
    print(final.machine.hash_at())


def test_the_words_of_a_refusal_do_not_count_its_code_and_numbers_do() -> None:
    said = Refusal("compare_failed", "the key exists, at revision 2", 2, 2)
    before = advance(bytes(16), Index(1), 1, (), said)
    assert advance(bytes(16), Index(1), 1, (), msgspec.structs.replace(said, message="no")) == before
    assert advance(bytes(16), Index(1), 1, (), msgspec.structs.replace(said, found=3)) != before
    assert advance(bytes(16), Index(1), 1, (), msgspec.structs.replace(said, code="too_large")) != before
