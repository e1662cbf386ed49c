"""Fences: a write passes only while the lock is held under exactly its token; a repeat is answered as before."""

from __future__ import annotations

import pytest

from kvnode.kv.keys import prefix_end
from kvnode.kv.requests import Campaign, Command, Delete, Fence, LeaseGrant, LeaseRevoke, Put, PutReply, Refusal, Txn
from kvnode.storage.memory_backend import MemoryBackend
from tests.machine.harness import Store

WRITES = [
    Put(b"k", b"v"),
    Delete(b"k"),
    Delete(b"k", prefix_end(b"k")),
    Txn((), (Put(b"k", b"v"),)),
    LeaseGrant(5_000, put=Put(b"k", b"v")),
]


@pytest.fixture
def store() -> Store:
    return Store(MemoryBackend)


@pytest.mark.parametrize("write", WRITES, ids=lambda write: type(write).__name__)
def test_any_write_passes_only_under_the_holders_token(store: Store, write: object) -> None:
    def attempt(token: int, name: bytes = b"n") -> object:
        return store.apply(Command(write, fence=Fence(name, token))).result

    store.put(b"k", b"before")
    refused = attempt(store.machine.revision)
    assert isinstance(refused, Refusal)
    assert refused.code == "fenced", "nobody holds it"
    first = store.apply(Campaign(b"n", 5_000)).result
    second = store.apply(Campaign(b"n", 5_000)).result
    tokens = [first.put.create_revision, second.put.create_revision]
    digest, revision = store.machine.digest, store.machine.revision
    for token in (tokens[0] - 1, tokens[1], tokens[1] + 1):
        assert attempt(token).code == "fenced"
    assert attempt(tokens[0], b"m").code == "fenced"
    assert store.machine.revision == revision
    assert store.machine.digest != digest, "refusals are answers, and part of the state"
    assert not isinstance(attempt(tokens[0]), Refusal)
    store.put(b"k", b"again")
    store.apply(LeaseRevoke(first.id))
    assert attempt(tokens[0]).code == "fenced", "it has held it once"
    assert not isinstance(attempt(tokens[1]), Refusal)


def test_a_name_may_hold_colons_and_slashes_and_be_anything(store: Store) -> None:
    for name in (b"a/b", b"a:1", b"\xff\x00", b"/"):
        token = store.apply(Campaign(name, 5_000)).result.put.create_revision
        assert isinstance(store.apply(Command(Put(b"k", b"v"), fence=Fence(name, token))).result, PutReply)


def test_a_repeat_is_answered_as_the_first_time_even_if_the_lock_has_gone(store: Store) -> None:
    held = store.apply(Campaign(b"n", 5_000)).result
    fence = Fence(b"n", held.put.create_revision)
    command = Command(Put(b"k", b"v"), key=b"once", fence=fence)
    first = store.apply(command).result
    store.apply(LeaseRevoke(held.id))
    assert store.apply(command).result == first
    late = Command(Put(b"k", b"w"), key=b"late", fence=fence)
    refused = store.apply(late).result
    assert refused.code == "fenced"
    assert store.apply(late).result == refused
    assert store.get(b"k").value == b"v"


def test_the_fence_is_part_of_what_is_asked(store: Store) -> None:
    """Under one key another fence is another request."""
    held = store.apply(Campaign(b"n", 5_000)).result
    token = held.put.create_revision
    store.apply(Command(Put(b"k", b"v"), key=b"once", fence=Fence(b"n", token)))
    assert store.apply(Command(Put(b"k", b"v"), key=b"once")).result.code == "conflict"
