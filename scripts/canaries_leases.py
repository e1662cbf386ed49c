"""Canaries of leases and of the queues behind locks and elections."""

from __future__ import annotations

from canary import Canary

_RUNTIME = ("runtime", 150)

CANARIES: tuple[Canary, ...] = (
    Canary(
        "expiry-without-the-count",
        "a lease ends although a renewal was logged after that had been decided",
        "kvnode/machine/lease_commands.py",
        "if lease is not None and lease.renewals == renewals]",
        "if lease is not None]",
        ("tests/node/test_lessor.py",),
        number=29,
    ),
    Canary(
        "checkpoint-not-taken-back",
        "a renewal after a checkpoint is answered and not logged: the next leader goes by the checkpoint",
        "kvnode/node/leases.py",
        "        elif held.decided_at == lease.renewals:",
        "        elif False:",
        ("tests/node/test_lessor.py", "tests/sim/test_lease_scenarios.py"),
        number=30,
    ),
    Canary(
        "expiry-by-an-old-leader",
        "what a leader has decided is carried out in a later term, or forwarded to the next leader",
        "kvnode/raft/core.py",
        "forwarding.on_leader_proposals(state, cause)",
        "forwarding.on_proposals(state, cause.batch)",
        ("tests/raft/test_forwarding.py",),
        number=42,
    ),
    Canary(
        "renewal-without-a-confirmation",
        "a renewal is answered by who only believes to lead",
        "kvnode/node/leases.py",
        "        confirmed.add_done_callback(on_confirmed)",
        "        self._confirmed(lease_id, arrived_ms, answer, renew=renew)",
        ("tests/node/test_lessor.py",),
    ),
    Canary(
        "new-leader-gives-half",
        "a new leader counts as if the leases it takes over had not been renewed lately",
        "kvnode/node/leases.py",
        "(lease.remaining_ms or lease.ttl_ms)",
        "(lease.remaining_ms or lease.ttl_ms // 2)",
        ("tests/node/test_lessor.py", "tests/sim/test_lease_scenarios.py"),
        _RUNTIME,
    ),
    Canary(
        "held-by-the-second",
        "who waits in a queue is told that it holds the name",
        "kvnode/recipes/lock.py",
        "            if len(queue.waiting) == 1 and is_wanted():",
        "            if queue.waiting and is_wanted():",
        ("tests/api/test_leases_and_locks.py",),
        _RUNTIME,
    ),
    Canary(
        "any-earlier-token-passes",
        "a write passes the fence of a lock that its writer has held once",
        "kvnode/machine/machine.py",
        "holder[0] == fence.token:",
        "holder[0] >= fence.token:",
        ("tests/machine/test_fence.py",),
        ("runtime", 40),
    ),
    Canary(
        "held-by-hearsay",
        "who asks again for a place is told that it holds the name by a node that is behind",
        "kvnode/recipes/lock.py",
        "    if is_new:\n",
        "    if True:\n",
        ("tests/recipes/test_lock.py",),
    ),
    Canary(
        "keys-of-leases-not-stored",
        "after a restart a lease has lost its keys",
        "kvnode/machine/leases.py",
        "                row = LeaseKeyRow(kv.key, kv.create_revision)\n",
        "                continue\n",
        ("tests/machine/test_leases.py",),
    ),
    Canary(
        "queue-by-lease-and-not-by-age",
        "a queue is ordered by the number of the lease: whoever chose a low one comes first",
        "kvnode/machine/leases.py",
        "SortedList()).add((create_revision, lease.id))",
        "SortedList(key=lambda place: place[1])).add((create_revision, lease.id))",
        ("tests/machine/test_leases.py",),
    ),
)
