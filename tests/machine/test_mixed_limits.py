"""Limits that differ between nodes, or between two starts of one (S92, the part on mixed limits; F60, I21).

An entry is applied on every node at a time of its own, and again after a restart. What decides its outcome besides
the entry and the state must therefore be equal everywhere and stay as it was.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import msgspec
import pytest

import kvnode.machine
from kvnode.config import Config, LimitsSection, load
from kvnode.errors import ConfigInvalid
from kvnode.kv.requests import Command, Delete, LeaseGrant, Put, Range, SessionOpen, Txn, WriteRequest
from kvnode.open_storage import APPLIED_LIMITS, check_applied_limits
from kvnode.sim.disk import FakeDisk
from kvnode.storage.datadir import DataDir
from kvnode.storage.memory_backend import MemoryBackend
from tests.machine.harness import Store
from tests.transport.cluster import Directory, addresses

MEMBERS = addresses(1, 2, 3)


def config(**limits: int) -> Config:
    return load(None, environment={}, overrides={f"limits.{name}": value for name, value in limits.items()})


def test_s92_every_limit_that_applying_looks_at_is_kept_with_the_log() -> None:
    """Whoever makes apply depend on one more limit has to name it, or a restart under another one diverges."""
    looked_at: dict[str, str] = {}
    for file in sorted(Path(kvnode.machine.__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in LimitsSection.__struct_fields__:
                looked_at[node.attr] = file.name
    assert sorted(looked_at) == sorted(APPLIED_LIMITS)


WORK: dict[str, list[WriteRequest]] = {
    "delete_keys_max": [*(Put(b"k%d" % i, b"v") for i in range(9)), Delete(b"k", b"l")],
    "lease_keys_max": [LeaseGrant(9_000), *(Put(b"k%d" % i, b"v", 1) for i in range(9))],
    "leases_max": [LeaseGrant(9_000) for _ in range(9)],
    "page_bytes_max": [*(Put(b"k%d" % i, bytes(20_000)) for i in range(5)), Txn((), (Range(b"k", b"l"),))],
    "page_items": [*(Put(b"k%d" % i, b"v") for i in range(9)), Txn((), (Range(b"k", b"l"),))],
    "page_items_max": [*(Put(b"k%d" % i, b"v") for i in range(9)), Txn((), (Range(b"k", b"l", limit=8),))],
    "sessions_max": [*(SessionOpen(1_000) for _ in range(9)), Command(Put(b"k", b"v"), session=1, sequence=1)],
    "session_answers_max": [SessionOpen(1_000), *(Command(Put(b"k", b"v"), 1, n + 1) for n in range(9))],
    "idempotency_keys_max": [Command(Put(b"k", b"v"), key=b"%d" % n) for n in range(9)],
    "answers_bytes_max": [SessionOpen(1_000), *(Command(Put(b"k", b"v"), 1, n + 1) for n in range(9))],
    "txn_operations_max": [Txn((), tuple(Put(b"k%d" % i, b"v") for i in range(9)))],
}


@pytest.mark.parametrize("name", APPLIED_LIMITS)
def test_s92_two_nodes_under_different_limits_would_diverge(name: str) -> None:
    """What the rules below are for: the same entries, two states."""
    changed = {name: 64 << 10 if name == "page_bytes_max" else 4}
    if name == "page_items_max":
        changed["page_items"] = 4  # never above the other; it does not matter to a range that asks for a number
    hashes = []
    for limits in ({}, changed, {}):
        store = Store(MemoryBackend, **limits)
        for request in WORK[name]:
            store.apply(request)
        hashes.append(store.machine.hash_at())
    assert hashes[0] == hashes[2] != hashes[1]


@pytest.mark.parametrize("name", sorted(config().cluster_scope()))
def test_s92_a_member_with_another_cluster_setting_is_refused_by_its_key(name: str) -> None:
    ours = config().cluster_scope()
    other: Any = "other" if isinstance(ours[name], str) else ours[name] + 1
    one, two = Directory(1), Directory(2)
    one.start()
    two.start()
    judge = one.roster(MEMBERS, scope=ours)
    refusal = judge.judge(two.roster(MEMBERS, scope={**ours, name: other}).hello("control", link=1, nonce=bytes(32)))
    assert refusal is not None
    assert refusal.code == "setting_differs"
    assert refusal.sentence.startswith(f"{name} differs: ")
    assert judge.judge(two.roster(MEMBERS, scope=ours).hello("control", link=1, nonce=bytes(32))) is None


def directory() -> DataDir:
    return DataDir.open(
        FakeDisk(), "/data/n1", member=1, cluster_name="local", random_u64=lambda: 5, allow_unsafe_filesystem=False
    )


@pytest.mark.parametrize("name", APPLIED_LIMITS)
def test_s92_a_start_under_another_limit_than_the_log_was_written_under_is_refused(name: str) -> None:
    data = directory()
    fixed = check_applied_limits(config(), data)
    assert sorted(fixed) == sorted(APPLIED_LIMITS)
    data.save_identity(msgspec.structs.replace(data.identity, has_log=True, applied_limits=fixed))
    assert check_applied_limits(config(), data) == fixed
    with pytest.raises(ConfigInvalid, match=rf"limits\.{name} is {fixed[name] + 1}, but .* set it back"):
        check_applied_limits(config(**{name: fixed[name] + 1}), data)


def test_s92_limits_at_the_door_may_change_between_starts() -> None:
    data = directory()
    fixed = check_applied_limits(config(), data)
    data.save_identity(msgspec.structs.replace(data.identity, has_log=True, applied_limits=fixed))
    for name in sorted(set(LimitsSection.__struct_fields__) - set(APPLIED_LIMITS)):
        value = getattr(config().limits, name)
        if isinstance(value, int) and value > 1 and name not in {"json_depth_max"}:
            check_applied_limits(config(**{name: value + 1}), data)
