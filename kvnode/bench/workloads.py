"""Workloads: which requests, how many in flight, through which door of which system.

A *front* is one way to talk to a system: kvnode's plain HTTP, etcd's gRPC and etcd's JSON gateway. It knows how to
write a put and a get as bytes and how to connect; the load generator knows nothing else. HTTP/1.1 fronts hold one
request per connection in flight, gRPC multiplexes over a few connections, as its clients do.
"""

from __future__ import annotations

import base64
import functools
import itertools
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kvnode.bench import h2, http1
from kvnode.bench.load import Address, Connect

VALUE_BYTES = 256
KEYS = 100_000
_PREPARED = 16_384  # requests prepared per measurement and sent in turn
GRPC_CONNECTIONS_MAX = 4


@dataclass(frozen=True)
class Front:
    """`put` and `get` write a request; `connect_put` and `connect_get` open a connection that can carry it."""

    name: str
    put: Callable[[Address, bytes, bytes], bytes]
    get: Callable[[Address, bytes], bytes]
    connect_put: Connect
    connect_get: Connect
    multiplexed: bool

    def connections(self, in_flight: int) -> tuple[int, int]:
        """(connections, requests in flight on each)."""
        if not self.multiplexed:
            return in_flight, 1
        connections = min(in_flight, GRPC_CONNECTIONS_MAX)
        return connections, in_flight // connections


@dataclass(frozen=True)
class Workload:
    """One row of the table."""

    name: str
    kind: str  # "put" or "get"
    in_flight: int
    title: str
    compact_every_s: float = 0.0  # all history is given up so often meanwhile; 0: never

    def requests(self, front: Front, address: Address, keys: int, rng: random.Random) -> Iterator[bytes]:
        """Endless: random keys below `keys`, random values."""
        if self.kind == "put":
            prepared = [front.put(address, key(rng.randrange(keys)), value(rng)) for _ in range(_PREPARED)]
        else:
            prepared = [front.get(address, key(rng.randrange(keys))) for _ in range(_PREPARED)]
        return itertools.cycle(prepared)


WORKLOADS = (
    Workload("put1", "put", 1, "put, 1 in flight"),
    Workload("put64", "put", 64, "put, 64 in flight"),
    Workload("compact64", "put", 64, "put, 64 in flight, history given up every half second", compact_every_s=0.5),
    Workload("put256", "put", 256, "put, 256 in flight"),
    Workload("get64", "get", 64, "linearizable get, 64 in flight"),
)


def key(number: int) -> bytes:
    return b"bench/%06d" % number


def value(rng: random.Random) -> bytes:
    return rng.randbytes(VALUE_BYTES)


def _http_put(address: Address, name: bytes, content: bytes) -> bytes:
    return http1.request("PUT", f"/v1/kv/{name.decode()}", address, content)


def _http_get(address: Address, name: bytes) -> bytes:
    return http1.request("GET", f"/v1/kv/{name.decode()}", address)


def _json_put(address: Address, name: bytes, content: bytes) -> bytes:
    body = {"key": base64.b64encode(name).decode(), "value": base64.b64encode(content).decode()}
    return http1.request("POST", "/v3/kv/put", address, json.dumps(body).encode())


def _json_get(address: Address, name: bytes) -> bytes:
    body = {"key": base64.b64encode(name).decode()}
    return http1.request("POST", "/v3/kv/range", address, json.dumps(body).encode())


KVNODE_HTTP = Front("http", _http_put, _http_get, http1.connect, http1.connect, multiplexed=False)
ETCD_GRPC = Front(
    "grpc",
    lambda _, name, content: h2.message(name, content),
    lambda _, name: h2.message(name),
    functools.partial(h2.connect, "/etcdserverpb.KV/Put"),
    functools.partial(h2.connect, "/etcdserverpb.KV/Range"),
    multiplexed=True,
)
ETCD_JSON = Front("json", _json_put, _json_get, http1.connect, http1.connect, multiplexed=False)
