"""What holds a lock or an election: keys under a name, each named after its lease."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator

from tests.etcd.connection import Connection
from tests.etcd.target import Target
from tests.etcd.words import b64, keys_of, prefix

_ids = itertools.count(880_001)


def granted(target: Target, ttl_s: int = 60) -> int:
    """A new lease."""
    lease = next(_ids)
    target.ok("lease/grant", {"TTL": ttl_s, "ID": lease})
    return lease


def revoke_all(target: Target) -> Iterator[None]:
    """The body of a fixture: leases that the test has left behind are revoked."""
    yield
    for each in target.ok("lease/leases", {}).get("leases", []):
        target.post("lease/revoke", each)


def key_of(name: bytes, lease: int) -> bytes:
    """The key of `lease` in the queue for `name`."""
    return name + b"/%x" % (lease % (1 << 64))


def queue(target: Target, name: bytes) -> list[bytes]:
    """The keys under `name`, first come first."""
    return keys_of(target.range(**prefix(name + b"/"), sort_target="CREATE", sort_order="ASCEND"))


def wait_until(is_so: Callable[[], bool], what: str, limit_s: float = 15.0) -> None:
    deadline = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < deadline, f"it does not happen: {what}"
        time.sleep(0.01)


def waiting(target: Target, path: str, name: bytes, lease: int, **more: str) -> Connection:
    """A call that waits behind others; when this returns it stands in the queue."""
    connection = target.connect()
    body = json.dumps({"name": b64(name), "lease": lease, **more}).encode()
    connection.send("POST", f"/v3/{path}", body)
    wait_until(lambda: key_of(name, lease) in queue(target, name), f"{lease} queues")
    return connection
