"""A machine with something of everything, and all that can be observed of one."""

from __future__ import annotations

from typing import Any

from kvnode.ids import Index
from kvnode.kv import keys
from kvnode.kv.requests import (
    Campaign,
    Command,
    Compact,
    Delete,
    Fence,
    LeaseGrant,
    LeaseList,
    LeaseRenew,
    LeaseRevoke,
    LeaseUpkeep,
    Put,
    QueueRead,
    Range,
    SessionEnd,
    SessionOpen,
    Sweep,
    Txn,
    WriteRequest,
)
from kvnode.machine.changelog import ChangesAsked
from kvnode.machine.machine import StateMachine
from kvnode.machine.pace import Pace, in_one_go
from tests.machine.harness import Store

LONG = b"k" * 480


def rich_requests() -> list[WriteRequest]:
    """Entry numbers, from 1, are ids: sessions 5 and 6, leases 10 (with a checkpoint), 11 (renewed), 12, 13 and 14."""
    return [
        Put(b"plain", b"1"),
        Put(b"plain", b"2"),
        Put(b"gone", b"x"),
        Txn((), (Put(LONG + b"a", b"long"), Put(LONG + b"b", b"long"), Put(b"n\x00l", b"nul"))),
        SessionOpen(60_000),
        SessionOpen(90_000),
        Command(Put(b"once", b"1"), session=5, sequence=1),
        Command(Put(b"once", b"2", if_revision=99), session=5, sequence=2),  # a refusal is an answer
        Command(Put(b"named", b"1"), key=b"idempotent"),
        LeaseGrant(30_000),
        LeaseGrant(40_000),
        LeaseGrant(50_000, put=Put(b"own", b"1")),
        Campaign(b"lock", 30_000, b"first"),
        Campaign(b"lock", 30_000, b"second"),
        Put(b"leased", b"1", lease=10),
        LeaseUpkeep((), ((10, 10, 12_000), (11, 11, 5_000))),
        LeaseRenew(11),
        Delete(b"gone"),
        Put(b"plain", b"3"),
        Compact(8),
        Sweep(6, 3),
        Command(Put(b"later", b"1"), session=5, sequence=4, acknowledged=1),
    ]


def further_requests(token: int) -> list[WriteRequest]:
    """What asks for everything that must have travelled."""
    return [
        Command(Put(b"once", b"2", if_revision=99), session=5, sequence=2),  # repeated
        Command(Put(b"once", b"1"), session=5, sequence=1),  # acknowledged: too old
        Command(Put(b"named", b"1"), key=b"idempotent"),  # repeated
        Command(Put(b"named", b"other"), key=b"idempotent"),  # conflict
        Command(Put(b"fenced", b"1"), fence=Fence(b"lock", token)),
        Command(Put(b"fenced", b"2"), fence=Fence(b"lock", token + 1)),
        LeaseUpkeep(((10, 10), (11, 11)), ()),  # 11 was renewed: it stays
        LeaseRevoke(13),
        Command(Put(b"fenced", b"3"), fence=Fence(b"lock", token)),
        Delete(b"own"),
        Sweep(8, 2),
        Compact(12),
        Sweep(12, 100),
        Delete(b"", keys.TO_THE_END, return_previous=True),
        SessionEnd(((6, 0),), 9),
        LeaseGrant(30_000),
        Put(b"last", b"1"),
    ]


def rich_store(store: Store) -> Store:
    for request in rich_requests():
        store.apply(request)
    index = Index(store.machine.applied_index + 1)
    store.machine.configure(index, index * 10, b"members")
    return store


def observed(machine: StateMachine) -> dict[str, Any]:
    """Everything a client, a duty or a later entry can see of a machine."""
    leases, once = machine.leases, machine.exactly_once
    first = max(machine.compact_revision, 2)
    everything = ChangesAsked(b"", keys.TO_THE_END, first, machine.revision, previous=True)
    sessions = {id_: once.sessions.get(id_) for id_ in once.sessions.ids()}
    return {
        "applied": (machine.applied_index, machine.applied_time, machine.digest),
        "configuration": (machine.configuration, machine.configuration_index),
        "revision": (machine.revision, machine.compact_revision, machine.swept_revision),
        "bytes": (machine.logical_bytes, machine.live_bytes, machine.history_bytes),
        "shown": [
            machine.range(Range(b"", keys.TO_THE_END, revision=revision))
            for revision in range(max(machine.compact_revision, 1), machine.revision + 1)
        ],
        "changes": in_one_go(machine.changes(everything, pace := Pace()), pace),
        # below the floor: some revision that cannot be read any more
        "times": [max(machine.revision_at(time), first - 1) for time in range(0, machine.applied_time + 20, 5)],
        "leases": {id_: (lease.row(), lease.keys) for id_ in leases.ids() if (lease := leases.get(id_)) is not None},
        "lease list": machine.look_up(LeaseList()),
        "queue": machine.look_up(QueueRead(b"lock")),
        "holder": leases.holder(b"lock"),
        "sessions": [
            (id_, each.ttl_ms, each.used, each.floor, each.answers, each.bytes)
            for id_, each in sessions.items()
            if each is not None
        ],
        "session bytes": once.sessions.bytes_used,
        "keys": (once.keys._kept, once.keys.bytes_used, once.keys.oldest),
    }
