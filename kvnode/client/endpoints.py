"""Which node to ask next: health, rotation, the leader hint and backoff with jitter. Decides; does no input or output.

Time and chance are given: `now_ms` is monotonic, `rng` a `random.Random`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import msgspec


class RetryPolicy(msgspec.Struct, frozen=True):
    """How long to wait before attempt n: drawn from [0, min(cap, base · 2ⁿ)], so that clients do not march in step."""

    base_ms: int = 20
    cap_ms: int = 1_000

    def __post_init__(self) -> None:
        if not 0 < self.base_ms <= self.cap_ms:
            raise ValueError(f"0 < base_ms ({self.base_ms}) ≤ cap_ms ({self.cap_ms}) must hold")

    def delay_ms(self, attempt: int, rng: random.Random) -> int:
        """Before attempt number `attempt` (1 is the first repetition)."""
        return rng.randint(0, min(self.cap_ms, self.base_ms << min(attempt, 16)))


class _Endpoint:
    __slots__ = ("failures", "paused_until_ms")

    def __init__(self) -> None:
        self.failures = 0  # since its last answer
        self.paused_until_ms = 0


class Endpoints:
    """The known nodes. One is preferred: the last that answered, or the leader if somebody named it."""

    def __init__(self, addresses: Sequence[str], rng: random.Random, policy: RetryPolicy) -> None:
        assert addresses, "no endpoints"
        self._rng = rng
        self._policy = policy
        self._known = {address: _Endpoint() for address in addresses}
        self._preferred = rng.choice(list(self._known))  # spread the clients over the nodes

    @property
    def addresses(self) -> list[str]:
        return list(self._known)

    def choose(self, now_ms: int) -> str:
        """The preferred node unless it failed lately, else the next healthy one, else the first to end its pause."""
        order = list(self._known)
        start = order.index(self._preferred)
        order = order[start:] + order[:start]
        for address in order:
            if self._known[address].paused_until_ms <= now_ms:
                self._preferred = address
                return address
        return min(order, key=lambda address: self._known[address].paused_until_ms)

    def on_answer(self, address: str) -> None:
        """It answered, whatever the answer: it is alive."""
        endpoint = self._known[address]
        endpoint.failures = 0
        endpoint.paused_until_ms = 0

    def on_failure(self, address: str, now_ms: int) -> None:
        """It did not answer, or cannot serve now: ask others for a while, longer each time."""
        endpoint = self._known[address]
        endpoint.failures += 1
        ceiling = min(self._policy.cap_ms, self._policy.base_ms << min(endpoint.failures, 16))
        endpoint.paused_until_ms = now_ms + self._rng.randint(ceiling // 2, ceiling)

    def on_leader_hint(self, address: str, now_ms: int) -> None:
        """Somebody named the leader. Only a node we were told of is asked, unless it failed lately."""
        endpoint = self._known.get(address)
        if endpoint is not None and endpoint.paused_until_ms <= now_ms:
            self._preferred = address
