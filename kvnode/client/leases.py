"""Leases over HTTP: the requests about them as calls of ``/v1/leases``, and a put with a lease of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from kvnode.client import bodies
from kvnode.client.http import key_path
from kvnode.clocks import hybrid
from kvnode.errors import BadRequest
from kvnode.kv.requests import (
    ANY_REVISION,
    LeaseEnded,
    LeaseGrant,
    LeaseKeepAlive,
    LeaseList,
    LeaseListReply,
    LeaseRead,
    LeaseReadReply,
    LeaseReply,
    LeaseRevoke,
    LeaseView,
    Put,
    PutReply,
)

LeaseRequest = LeaseGrant | LeaseRevoke | LeaseKeepAlive | LeaseRead | LeaseList

_Reply = LeaseReply | LeaseEnded | LeaseReadReply | LeaseListReply


class Send(Protocol):
    """One request at one node → status, headers, body. Raises: KvnodeError.

    The answer may take as long as the deadline of the call, and `wait_ms`, and `grace_ms`.
    """

    async def __call__(
        self,
        method: str,
        path: str,
        query: Mapping[str, bytes],
        body: bytes | None = None,
        *,
        wait_ms: int = 0,
        grace_ms: int = ...,
    ) -> tuple[int, Mapping[str, str], bytes]: ...


async def execute(send: Send, request: LeaseRequest) -> _Reply:
    match request:
        case LeaseGrant(put=None):
            _refuse_number(request)
            status, headers, body = await send("POST", "/v1/leases", {"ttl": b"%dms" % request.ttl_ms})
            answer = bodies.json_of(status, body)
            return LeaseReply(answer["id"], answer["ttl_ms"], int(headers["Kv-Revision"]))
        case LeaseGrant():
            _refuse_number(request)
            assert request.put is not None
            return await _put(send, request.put, request.ttl_ms)
        case LeaseKeepAlive():
            status, headers, body = await send("POST", f"/v1/leases/{request.id}/keepalive", {}, grace_ms=0)
            answer = bodies.json_of(status, body)
            return LeaseReply(answer["id"], answer["ttl_ms"], int(headers["Kv-Revision"]))
        case LeaseRevoke():
            status, _, body = await send("DELETE", f"/v1/leases/{request.id}", {})
            answer = bodies.json_of(status, body)
            return LeaseEnded(answer["revision"], (request.id,), answer["deleted"])
        case LeaseRead():
            status, headers, body = await send("GET", f"/v1/leases/{request.id}", {})
            answer = bodies.json_of(status, body)
            keys = tuple(bodies.key_of(key) for key in answer["keys"])
            revision = int(headers["Kv-Revision"])
            return LeaseReadReply(
                answer["id"], answer["ttl_ms"], answer["remaining_ms"], revision, keys, answer["count"]
            )
        case LeaseList():
            given = {"after": request.after, "limit": request.limit}
            query = {name: b"%d" % number for name, number in given.items() if number}
            status, _, body = await send("GET", "/v1/leases", query)
            return _listing(bodies.json_of(status, body))


async def _put(send: Send, put: Put, ttl_ms: int) -> LeaseReply:
    if put.if_revision < ANY_REVISION or put.lease:
        raise BadRequest("a put with a lease of its own takes if_revision of a number, and no other lease")
    query = {"ttl": b"%dms" % ttl_ms}
    if put.if_revision != ANY_REVISION:
        query["if_rev"] = b"%d" % put.if_revision
    if put.return_previous:
        query["prev"] = b"1"
    status, headers, body = await send("PUT", key_path(put.key), query, put.value)
    answer = bodies.json_of(status, body)
    reply = PutReply(
        revision=answer["revision"],
        created=answer["created"],
        create_revision=int(headers["Kv-Create-Revision"]),
        version=int(headers["Kv-Version"]),
        time=hybrid.from_text(headers["Kv-Time"]),
        previous=None if answer.get("prev") is None else bodies.key_value(answer["prev"]),
    )
    return LeaseReply(int(headers["Kv-Lease"]), ttl_ms, reply.revision, reply)


def _listing(answer: Any) -> LeaseListReply:
    views = tuple(LeaseView(lease["id"], lease["ttl_ms"], lease["count"]) for lease in answer["leases"])
    return LeaseListReply(answer["revision"], views, answer["more"])


def _refuse_number(request: LeaseGrant) -> None:
    if request.id:
        raise BadRequest("over HTTP the cluster gives leases their numbers")
