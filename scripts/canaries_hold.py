"""Canaries of what the holder of a lock may believe, and of those who hold it for a command."""

from __future__ import annotations

from canary import Canary

CANARIES = (
    Canary(
        "held-from-the-answer",
        "a holder counts its TTL from the answer to a renewal, not from its sending",
        "kvnode/recipes/kept_lease.py",
        "            self._sent_ms = sent_ms\n            self._has_failed = False\n",
        "            self._sent_ms = now_ms\n            self._has_failed = False\n",
        ("tests/recipes",),
    ),
    Canary(
        "lost-taken-back",
        "a holder whose TTL has passed believes again when a late answer comes",
        "kvnode/recipes/kept_lease.py",
        "        if self.standing(now_ms) is not Standing.LOST:\n            self._sent_ms",
        "        if True:\n            self._sent_ms",
        ("tests/recipes",),
    ),
    Canary(
        "held-from-before-the-wait",
        "who has waited for a lock counts its TTL from when it began to wait, and does not renew first",
        "kvnode/recipes/hold.py",
        "        if now_ms() - sent_ms >= ttl_ms // 3:",
        "        if False:",
        ("tests/recipes",),
    ),
    Canary(
        "loss-not-told",
        "a block is left as if the lock had been held all along",
        "kvnode/recipes/hold.py",
        "    if is_lost or not was_held:",
        "    if False:",
        ("tests/recipes", "tests/client/test_leases.py"),
    ),
    Canary(
        "held-by-one-who-left",
        "whoever left while waiting holds the lock when its turn comes",
        "kvnode/recipes/lock.py",
        "            if len(queue.waiting) == 1 and is_wanted():",
        "            if len(queue.waiting) == 1:",
        ("tests/api/test_leases_and_locks.py",),
    ),
    Canary(
        "command-outlives-its-lock",
        "the command of `kvnode lock` goes on when the lock is lost",
        "kvnode/cli/keeping.py",
        "                await self._end_group()\n",
        "",
        ("tests/cli/test_lock.py",),
    ),
    Canary(
        "resent-by-the-library",
        "aiohttp sends a PUT or DELETE again when its connection dies",
        "kvnode/client/client.py",
        "self._session._retry_connection = False",
        "self._session._retry_connection = True",
        ("tests/client/test_leases.py",),
    ),
)
