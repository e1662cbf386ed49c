"""The side of Patroni: its own driver for etcd v3, one for each member of a Patroni cluster, all in this process.

A driver keeps a thread that watches its cluster's keys for ever; here it ends with its test. What a driver finds wrong
with a server (a term that goes back, another cluster's id) it only logs: `complaints` are these lines.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from time import monotonic, time
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import urllib3.util.connection
from patroni.dcs import etcd, etcd3, get_dcs
from patroni.dcs.etcd3 import Etcd3, KVCache

RETRY_S = 10
"""Patroni's own default for `retry_timeout`: how long one call goes on trying."""

_STALE, _STRANGE = "Old known term", "Etcd Cluster ID changed"


def _no_waiting(_: float) -> None:
    raise AssertionError("no node answers as a driver of Patroni needs it")


_impatient = SimpleNamespace(time=time, sleep=_no_waiting)
"""For the making of a driver, which waits for ever where nobody answers."""


class Patronis:
    """Drivers of the members of one Patroni cluster."""

    def __init__(self, scope: str, ports: Iterable[int]) -> None:
        self.scope = scope
        self.drivers: list[Etcd3] = []
        self.settled_s = 0.0  # by the clock of the log: from then on all nodes are of one term
        self._hosts = [f"127.0.0.1:{port}" for port in ports]

    def __call__(self, name: str, *, ttl: int = 30, retry_s: int = RETRY_S, ctl: bool = False, hosts: int = 3) -> Etcd3:
        """The driver of member `name`, made as Patroni makes it. The second of a name is that member after a restart.

        `ctl`: that of `patronictl`, which watches nothing and has no lease. `hosts`: how many it is told.
        """
        config = {"scope": self.scope, "namespace": "service", "name": name, "patronictl": ctl}
        config |= {"ttl": ttl, "loop_wait": 10, "retry_timeout": retry_s, "etcd3": {"hosts": self._hosts[:hosts]}}
        with patch.object(etcd, "time", _impatient), patch.object(etcd3, "time", _impatient):
            driver: Any = get_dcs(config)
        self.drivers.append(driver)
        return driver

    def end(self) -> None:
        for driver in self.drivers:
            _end_watcher(driver)
            driver._client.http.clear()


def _end_watcher(driver: Etcd3) -> None:
    cache = driver._client._kv_cache
    if cache is None:
        return

    def end() -> None:
        raise SystemExit  # the one thing that its loop does not survive

    cache._build_cache = end
    until = monotonic() + 2 * RETRY_S
    while cache.is_alive():  # a stream that it is about to open is not there to be ended yet
        assert monotonic() < until, f"the watcher of {driver._name} still runs"
        cache.kill_stream()
        cache.join(0.02)


_watch = KVCache.run


def _watch_until_ended(cache: KVCache) -> None:
    with contextlib.suppress(SystemExit):
        _watch(cache)


@contextlib.contextmanager
def patronis(scope: str, ports: Iterable[int]) -> Iterator[Patronis]:
    """A driver replaces the way in which all of urllib3 connects; afterwards that is as it was."""
    made = Patronis(scope, ports)
    connect = urllib3.util.connection.create_connection
    with (
        patch.object(urllib3.util.connection, "create_connection", connect),
        patch.object(KVCache, "run", _watch_until_ended),
    ):
        try:
            yield made
        finally:
            made.end()


def complaints(records: Sequence[logging.LogRecord], settled_s: float = 0.0) -> list[str]:
    """`settled_s`: until then a node may have been of an earlier term than another one, for there was an election."""
    stale = [record.getMessage() for record in records if record.created >= settled_s and _STALE in record.getMessage()]
    return stale + [record.getMessage() for record in records if _STRANGE in record.getMessage()]
