"""Asking a cluster for a long while: what a node refuses for now, or does not answer, is asked for again elsewhere.

For work of many requests that is to outlive an election or a node. `Patience` is over when nothing has succeeded for
its time; between attempts it pauses, longer each time, with jitter.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence

from kvnode.client.endpoints import RetryPolicy
from kvnode.client.http import Answer, Caller
from kvnode.errors import KvnodeError, NoSpace, TryAgain, Unknown

REQUEST_MS = 5_000
"""One attempt takes no longer, so that there is time to ask another node."""

Query = Mapping[str, str | bytes]

_POLICY = RetryPolicy()


class Patience:
    """How long to go on. `sleep` takes seconds; `now_ms` is monotonic."""

    def __init__(
        self,
        timeout_ms: int,
        *,
        sleep: Callable[[float], object] = time.sleep,
        now_ms: Callable[[], int] = lambda: time.monotonic_ns() // 1_000_000,
        rng: random.Random | None = None,
    ) -> None:
        self._timeout_ms = timeout_ms
        self._sleep = sleep
        self._now_ms = now_ms
        self._rng = rng or random.Random()
        self.renew()

    def renew(self) -> None:
        """Something has succeeded."""
        self._attempt = 0
        self._until_ms = self._now_ms() + self._timeout_ms

    def pause(self, error: KvnodeError) -> None:
        """Before trying again after `error`. Raises: that error when patience is over, or trying again is no use."""
        self._attempt += 1
        wanted = error.detail.get("retry_after_ms", 0)
        pause_ms = max(_POLICY.delay_ms(self._attempt, self._rng), wanted if isinstance(wanted, int) else 0)
        if isinstance(error, NoSpace) or self._now_ms() + pause_ms >= self._until_ms:
            raise error
        self._sleep(pause_ms / 1000)


class PatientCaller:
    """Sends requests to the node that answered last, and to the next one after a failure. For several threads."""

    def __init__(
        self, endpoints: Sequence[str], timeout_ms: int, *, sleep: Callable[[float], object] = time.sleep
    ) -> None:
        self._endpoints = list(endpoints)
        self._first = 0
        self._timeout_ms = timeout_ms
        self._sleep = sleep

    def patience(self) -> Patience:
        """For work that begins now."""
        return Patience(self._timeout_ms, sleep=self._sleep)

    def read(self, method: str, path: str, query: Query | None = None, body: bytes | None = None) -> Answer:
        """A request without an effect, until it is answered. Raises: a `KvnodeError`."""
        patience = self.patience()
        while True:
            try:
                return self.once(method, path, query, body)
            except (TryAgain, Unknown) as error:
                patience.pause(error)

    def once(self, method: str, path: str, query: Query | None = None, body: bytes | None = None) -> Answer:
        """As `Caller.call`: what may have had an effect is not sent again. Raises: a `KvnodeError`."""
        first = self._first
        order = self._endpoints[first:] + self._endpoints[:first]
        try:
            answer = Caller(order, min(self._timeout_ms, REQUEST_MS)).call(method, path, query, body)
        except (TryAgain, Unknown):
            self._first = (first + 1) % len(self._endpoints)
            raise
        self._first = self._endpoints.index(answer.endpoint)
        return answer
