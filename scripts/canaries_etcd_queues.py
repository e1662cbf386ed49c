"""Canaries of the locks, elections and leases of the etcd API."""

from __future__ import annotations

from canary import Canary

_QUEUES = ("tests/api/etcd/test_leases_and_locks.py",)

CANARIES = (
    Canary(
        "etcd-lock-held-by-two",
        "who is first among the places of a queue holds the lock, though an older key below the name is there",
        "kvnode/api/etcd/queues.py",
        "    older = (kv for kv in found.items if kv.create_revision < place.token)\n",
        "    older = (kv for kv in found.items if kv.create_revision < place.token and kv.lease)\n",
        _QUEUES,
    ),
    Canary(
        "etcd-lock-without-its-lease",
        "who waits does not look after its own key, and holds the lock or waits on after its lease has ended",
        "kvnode/api/etcd/queues.py",
        "            await _change(context, before, own)\n",
        "            await _change(context, before)\n",
        _QUEUES,
    ),
    Canary(
        "etcd-lock-place-left-behind",
        "a lock's waiting key stays when its client has gone, and holds the lock for nobody when its turn comes",
        "kvnode/api/etcd/door.py",
        "await (while_connected(call.request, answering) if method.waits else answering)",
        "await answering",
        _QUEUES,
    ),
    Canary(
        "etcd-lock-given-up-by-another-call",
        "a call for a name that its lease holds already gives it up when its client leaves",
        "kvnode/api/etcd/locks.py",
        "        if place.is_new:\n            await",
        "        if place:\n            await",
        _QUEUES,
    ),
    Canary(
        "etcd-election-unguarded",
        "a proclamation or resignation does not ask whether the key is still the one that was elected",
        "kvnode/api/etcd/queues.py",
        '    condition = Compare(key, "create_revision", "=", token)\n    return',
        '    condition = Compare(key, "create_revision", ">" if token else "=", 0)\n    return',
        _QUEUES,
    ),
    Canary(
        "etcd-lease-at-another-place",
        "a negative id of a lease is stored as its absolute value, and comes back from disk as another lease",
        "kvnode/machine/keycode.py",
        '    return (lease & (1 << 64) - 1).to_bytes(8, "big")\n',
        '    return abs(lease).to_bytes(8, "big")\n',
        ("tests/machine/test_keycode.py",),
    ),
)
