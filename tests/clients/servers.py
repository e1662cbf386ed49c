"""Three nodes as blocking programs see them: their addresses, who leads, the death of one and its return.

The clients of this package are made for etcd: their calls block, so a test may have threads, and no event loop.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic, sleep
from typing import Any, TypeVar

from kvnode.bench import http1
from kvnode.bench.cluster import Cluster

LIMIT_S = 30.0
"""How long anything may take that has to happen."""

Found = TypeVar("Found")


class Servers:
    """A cluster that runs. Its nodes die and return within a test; between tests all of them run."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def leader(self) -> int:
        """Who leads, once all that run agree on it."""
        return asyncio.run(self._cluster.wait_ready())

    def followers(self) -> list[int]:
        leader = self.leader()
        return [node for node in self._cluster.running() if node != leader]

    def port(self, node: int) -> int:
        return self._cluster.clients[node][1]

    def ports(self) -> list[int]:
        return [port for _, port in self._cluster.clients.values()]

    def url(self, node: int, scheme: str = "http", options: str = "") -> str:
        return f"{scheme}://127.0.0.1:{self.port(node)}{options}"

    def metric(self, node: int, name: str) -> float:
        return asyncio.run(self._cluster.metric(node, name.encode()))

    def kill(self, node: int) -> None:
        """kill -9."""
        self._cluster.processes[node].kill()

    def restart(self, node: int) -> None:
        """On the same ports; it serves, and all agree on a leader, when this returns."""
        self._cluster.start(node)
        self.leader()

    def tidy(self) -> None:
        """All nodes run, and no lease is left that would end, and write, in the middle of the next test."""
        if dead := set(self._cluster.ids) - set(self._cluster.running()):
            for node in dead:
                self._cluster.start(node)
            self.leader()
        asyncio.run(self._revoke_all())

    async def _revoke_all(self) -> None:
        node = self._cluster.clients[1]
        _, body = await http1.ask("POST", "/v3/lease/leases", node)
        for lease in json.loads(body).get("leases", ()):
            await http1.ask("POST", "/v3/lease/revoke", node, json.dumps(lease).encode())


def eventually(happens: Callable[[], Found]) -> Found:
    """What it answers once that is true; looked at again and again, for these clients tell nobody what they learn."""
    until = monotonic() + LIMIT_S
    while not (found := happens()):
        assert monotonic() < until, f"not within {LIMIT_S} s"
        sleep(0.02)
    return found


def insist(call: Callable[[], Found], *refusals: type[Exception]) -> Found:
    """Call until it is not refused: what a program does while its cluster elects. The last refusal is raised."""
    until = monotonic() + LIMIT_S
    while True:
        try:
            return call()
        except refusals:
            if monotonic() > until:
                raise
            sleep(0.02)


@contextmanager
def watching(watch: Callable[..., Any], key: str, **options: Any) -> Iterator[Iterator[Any]]:
    """The events that a `watch` of etcd3gw tells, as long as the block runs; they end after `LIMIT_S` at the latest."""
    events, cancel = watch(key, **options)
    limit = threading.Timer(LIMIT_S, cancel)
    limit.start()
    try:
        yield events
    finally:
        limit.cancel()
        cancel()
