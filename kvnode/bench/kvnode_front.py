"""kvnode's front: plain HTTP."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence

import msgspec

from kvnode.bench import http1
from kvnode.bench.fronts import LEASE_S, Call, Front, Lines, Talk, Talks, Watching
from kvnode.bench.load import Address


def _http_put(address: Address, key: bytes, content: bytes) -> bytes:
    return http1.request("PUT", f"/v1/kv/{key.decode()}", address, content)


def _http_ap_put(address: Address, key: bytes, content: bytes) -> bytes:
    return http1.request("PUT", f"/v1/ap/{key.decode()}", address, content)


def _operations(items: Sequence[tuple[bytes, bytes]]) -> list[dict[str, dict[str, str]]]:
    """A put of each (key, value); values are any bytes."""
    return [
        {"put": {"key": key.decode(), "value": base64.b64encode(content).decode(), "encoding": "base64"}}
        for key, content in items
    ]


def _http_batch(address: Address, items: Sequence[tuple[bytes, bytes]]) -> bytes:
    return http1.request("POST", "/v1/batch", address, msgspec.json.encode(_operations(items)))


def _http_txn(address: Address, items: Sequence[tuple[bytes, bytes]]) -> bytes:
    return http1.request("POST", "/v1/txn", address, msgspec.json.encode({"success": _operations(items)}))


def _http_get(address: Address, key: bytes) -> bytes:
    return http1.request("GET", f"/v1/kv/{key.decode()}", address)


def _http_range(address: Address, prefix: bytes, limit: int) -> bytes:
    return http1.request("GET", f"/v1/kv?prefix={prefix.decode()}&limit={limit}", address)


def _http_get_past(address: Address, key: bytes, point: str) -> bytes:
    return http1.request("GET", f"/v1/kv/{key.decode()}?at_time={point}", address)


async def _http_now(address: Address) -> str:
    """The hybrid time of a write made now."""
    await http1.ask("PUT", "/v1/kv/point", address, b"now")
    _, body = await http1.ask("GET", "/v1/kv?prefix=point", address)
    found: str = json.loads(body)["items"][0]["time"]
    return found


def _number(name: bytes, answer: bytes) -> int:
    """The integer field of that name in a JSON answer."""
    found = re.search(rb'"%b": ?(\d+)' % name, answer)
    if found is None:
        raise ValueError(f"no {name!r} in {answer!r}")
    return int(found[1])


def _http_grant(address: Address) -> bytes:
    return http1.request("POST", f"/v1/leases?ttl={LEASE_S}s", address)


def _http_lease(address: Address, _: int) -> Talk:
    while True:
        lease = _number(b"id", (yield _http_grant(address), False))
        yield http1.request("DELETE", f"/v1/leases/{lease}", address), True


def _http_keepalive(address: Address, _: int) -> Talk:
    lease = _number(b"id", (yield _http_grant(address), False))
    renewal = http1.request("POST", f"/v1/leases/{lease}/keepalive", address)
    while True:
        yield renewal, True


def _http_lock(address: Address, client: int) -> Talk:
    path = f"/v1/locks/bench-{client}"
    take = http1.request("POST", f"{path}?ttl={LEASE_S}s", address)
    while True:
        token = _number(b"token", (yield take, False))
        yield http1.request("DELETE", f"{path}?token={token}", address), True


def _http_watch(address: Address, prefix: bytes) -> bytes:
    return http1.request("GET", f"/v1/watch?prefix={prefix.decode()}", address)


KVNODE_HTTP = Front(
    "http",
    multiplexed=False,
    calls={
        "put": Call(_http_put, http1.connect),
        "ap_put": Call(_http_ap_put, http1.connect),
        "batch": Call(_http_batch, http1.connect),
        "txn": Call(_http_txn, http1.connect),
        "get": Call(_http_get, http1.connect),
        "range": Call(_http_range, http1.connect),
        "get_past": Call(_http_get_past, http1.connect),
    },
    now=_http_now,
    talks={
        "lease": Talks(_http_lease, http1.connect),
        "keepalive": Talks(_http_keepalive, http1.connect),
        "lock": Talks(_http_lock, http1.connect),
    },
    watching=Watching(_http_watch, Lines, b"\r\n\r\n", re.compile(rb'"key":"([^"]+)"'), lambda key: key),
)
