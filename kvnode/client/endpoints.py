"""Which node to ask next: health, rotation, the leader hint and backoff with jitter. Decides; does no input or output.

Time and chance are given: `now_ms` is monotonic, `rng` a `random.Random`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import msgspec

NOT_MEASURED_MS = -1.0
SMOOTHING = 8
EXPLORES = 32


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
    __slots__ = ("failures", "paused_until_ms", "round_trip_ms")

    def __init__(self) -> None:
        self.failures = 0  # since its last answer
        self.paused_until_ms = 0
        self.round_trip_ms = NOT_MEASURED_MS  # moving average over what it answered by itself


class Endpoints:
    """The known nodes. One is preferred: the last that answered, or the leader if somebody named it.

    Requests that a node answers by itself go to the nearest one (FR6 of the pattern catalogue): the lowest moving
    average of answer times, smoothed as TCP smooths its round trips (RFC 6298). One in `EXPLORES` goes to any, so that
    a node that has come nearer is noticed.
    """

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

    def choose_nearest(self, now_ms: int) -> str:
        """The healthy node that answers soonest; one that was never measured comes first."""
        healthy = [address for address, each in self._known.items() if each.paused_until_ms <= now_ms]
        if not healthy:
            return self.choose(now_ms)
        unknown = [address for address in healthy if self._known[address].round_trip_ms == NOT_MEASURED_MS]
        if unknown:
            return self._rng.choice(unknown)
        if self._rng.random() * EXPLORES < 1:
            return self._rng.choice(healthy)
        return min(healthy, key=lambda address: self._known[address].round_trip_ms)

    def on_round_trip(self, address: str, took_ms: float) -> None:
        """How long it took to answer by itself."""
        endpoint = self._known[address]
        if endpoint.round_trip_ms == NOT_MEASURED_MS:
            endpoint.round_trip_ms = took_ms
        else:
            endpoint.round_trip_ms += (took_ms - endpoint.round_trip_ms) / SMOOTHING

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

    def on_hearsay(self, address: str, now_ms: int) -> None:
        """A member says that the node there does not live: others are asked first for a while, unless it answers."""
        endpoint = self._known.get(address)
        if endpoint is not None:
            endpoint.paused_until_ms = max(endpoint.paused_until_ms, now_ms + self._policy.cap_ms)

    def on_leader_hint(self, address: str, now_ms: int) -> None:
        """Somebody named the leader. Only a node we were told of is asked, unless it failed lately."""
        endpoint = self._known.get(address)
        if endpoint is not None and endpoint.paused_until_ms <= now_ms:
            self._preferred = address
