"""etcd's fronts: gRPC, and its JSON gateway, where bytes are base64 and 64-bit numbers text.

The client chooses a lease's number, so no answer needs to be read. A gRPC talk has a connection of its own; its
requests name their method by its place among those the connection was made for.
"""

from __future__ import annotations

import base64
import functools
import json
import re
from collections.abc import Sequence

from kvnode.bench import h2, http1
from kvnode.bench.fronts import LEASE_S, Call, Front, Lines, Talk, Talks, Watching, after_prefix
from kvnode.bench.load import Address, Connect


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _json(path: str, address: Address, **body: object) -> bytes:
    return http1.request("POST", path, address, json.dumps(body).encode())


def _json_put(address: Address, key: bytes, content: bytes) -> bytes:
    return _json("/v3/kv/put", address, key=_base64(key), value=_base64(content))


def _json_get(address: Address, key: bytes) -> bytes:
    return _json("/v3/kv/range", address, key=_base64(key))


def _json_range(address: Address, prefix: bytes, limit: int) -> bytes:
    return _json(
        "/v3/kv/range", address, key=_base64(prefix), range_end=_base64(after_prefix(prefix)), limit=str(limit)
    )


def _json_get_past(address: Address, key: bytes, point: str) -> bytes:
    return _json("/v3/kv/range", address, key=_base64(key), revision=point)


async def _etcd_now(address: Address) -> str:
    """The revision of the store."""
    _, body = await http1.ask("POST", "/v3/kv/range", address, json.dumps({"key": _base64(b"point")}).encode())
    found: str = json.loads(body)["header"]["revision"]
    return found


def _json_grant(address: Address, client: int) -> bytes:
    return _json("/v3/lease/grant", address, TTL=str(LEASE_S), ID=str(client))


def _json_lease(address: Address, client: int) -> Talk:
    grant = _json_grant(address, client)
    revoke = _json("/v3/lease/revoke", address, ID=str(client))
    while True:
        yield grant, False
        yield revoke, True


def _json_keepalive(address: Address, client: int) -> Talk:
    yield _json_grant(address, client), False
    renewal = _json("/v3/lease/keepalive", address, ID=str(client))
    while True:
        yield renewal, True


def _etcd_lock_key(client: int) -> tuple[bytes, bytes]:
    """(name of a lock, the key by which a client's lease holds it)."""
    name = b"bench-%d" % client
    return name, name + b"/%x" % client


def _json_lock(address: Address, client: int) -> Talk:
    """One lease for all it takes, as etcd's own clients have one for a session."""
    name, key = _etcd_lock_key(client)
    yield _json_grant(address, client), False
    take = _json("/v3/lock/lock", address, name=_base64(name), lease=str(client))
    release = _json("/v3/lock/unlock", address, key=_base64(key))
    while True:
        yield take, False
        yield release, True


def _json_watch(address: Address, prefix: bytes) -> bytes:
    return _json(
        "/v3/watch",
        address,
        create_request={"key": _base64(prefix), "range_end": _base64(after_prefix(prefix))},
    )


ETCD_JSON = Front(
    "json",
    multiplexed=False,
    calls={
        "put": Call(_json_put, http1.connect),
        "get": Call(_json_get, http1.connect),
        "range": Call(_json_range, http1.connect),
        "get_past": Call(_json_get_past, http1.connect),
    },
    now=_etcd_now,
    talks={
        "lease": Talks(_json_lease, http1.connect),
        "keepalive": Talks(_json_keepalive, http1.connect),
        "lock": Talks(_json_lock, http1.connect),
    },
    watching=Watching(
        _json_watch, Lines, b'"created":true', re.compile(rb'"key":"([^"]+)"'), lambda key: _base64(key).encode()
    ),
)

KVNODE_AS_ETCD = Front(
    "json",
    multiplexed=False,
    calls={kind: ETCD_JSON.calls[kind] for kind in ("put", "get", "range")},
    now=_etcd_now,
)
"""kvnode, asked in the words of etcd's JSON gateway."""


def _grpc(*methods: str) -> Connect:
    return functools.partial(h2.connect, tuple(f"/etcdserverpb.{method}" for method in methods))


def _grpc_txn(_: Address, items: Sequence[tuple[bytes, bytes]]) -> bytes:
    """A put of each (key, value), without a comparison."""
    puts = (h2.encoded(b"", h2.encoded(key, content)) for key, content in items)
    return h2.prefixed(b"".join(h2.encoded(b"", put) for put in puts))


def _grpc_lease(_: Address, client: int) -> Talk:
    grant, revoke = h2.message(LEASE_S, client), h2.message(client, method=1)
    while True:
        yield grant, False
        yield revoke, True


def _grpc_keepalive(_: Address, client: int) -> Talk:
    yield h2.message(LEASE_S, client), False
    renewal = h2.message(client, method=1)
    while True:
        yield renewal, True


def _grpc_lock(_: Address, client: int) -> Talk:
    name, key = _etcd_lock_key(client)
    yield h2.message(LEASE_S, client), False
    take, release = h2.message(name, client, method=1), h2.message(key, method=2)
    while True:
        yield take, False
        yield release, True


def _grpc_watch(address: Address, prefix: bytes) -> bytes:
    """A connection of its own for each watcher: they stand for as many programs."""
    create = h2.encoded(prefix, after_prefix(prefix))
    return h2.open_call("/etcdserverpb.Watch/Watch", address, h2.message(create))


ETCD_GRPC = Front(
    "grpc",
    multiplexed=True,
    calls={
        "put": Call(lambda _, key, content: h2.message(key, content), _grpc("KV/Put")),
        "txn": Call(_grpc_txn, _grpc("KV/Txn")),
        "get": Call(lambda _, key: h2.message(key), _grpc("KV/Range")),
        "range": Call(
            lambda _, prefix, limit: h2.message(prefix, after_prefix(prefix), limit),
            _grpc("KV/Range"),
        ),
        "get_past": Call(lambda _, key, point: h2.message(key, b"", 0, int(point)), _grpc("KV/Range")),
    },
    now=_etcd_now,
    talks={
        "lease": Talks(_grpc_lease, _grpc("Lease/LeaseGrant", "Lease/LeaseRevoke")),
        "keepalive": Talks(_grpc_keepalive, _grpc("Lease/LeaseGrant", "Lease/LeaseKeepAlive")),
        "lock": Talks(
            _grpc_lock,
            functools.partial(
                h2.connect, ("/etcdserverpb.Lease/LeaseGrant", "/v3lockpb.Lock/Lock", "/v3lockpb.Lock/Unlock")
            ),
        ),
    },
    watching=Watching(_grpc_watch, h2.Messages, b"", re.compile(rb"(watch\d+/[a-z]+\d{6})"), lambda key: key),
)
