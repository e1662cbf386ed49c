"""Writes that are named, so that they take effect once, or fenced. Pure but for `send`.

Named ones travel as the plain ``PUT``, ``DELETE`` and ``POST /v1/txn``, not as a batch: each has one answer of its own.
That aiohttp may resend a PUT by itself does no harm here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import Any, Protocol

from kvnode.client import bodies
from kvnode.client.http import error_from, key_path
from kvnode.clocks import hybrid
from kvnode.errors import BadRequest, ConnectionLost
from kvnode.kv.keys import ONE_KEY, TO_THE_END
from kvnode.kv.requests import ANY_REVISION, MUST_EXIST, Command, Delete, DeleteReply, Put, PutReply, Reply, Txn

Headers = dict[str, str]
Query = dict[str, bytes]


class Send(Protocol):
    """One request at one node: method, path, query, body, headers → status, headers, body. Raises: KvnodeError."""

    def __call__(
        self, method: str, path: str, query: Query, body: bytes | None, headers: Headers
    ) -> Awaitable[tuple[int, Mapping[str, str], bytes]]: ...


async def execute(send: Send, command: Command) -> Reply:
    """Send a command and read its answer."""
    headers = _names(command)
    request = command.request
    fence: Query = {}
    if command.fence is not None:
        fence = {"fence": b"%b:%d" % (command.fence.name, command.fence.token)}
    if isinstance(request, Txn):
        status, _, body = await send("POST", "/v1/txn", fence, bodies.encode(bodies.txn_body(request)), headers)
        return bodies.txn_reply(request, _json(status, body))
    if not isinstance(request, Put | Delete):
        raise BadRequest(f"a client names puts, deletes and transactions, not a {type(request).__name__}")
    if not headers:
        return await _unnamed(send, request, fence)
    query = _condition(request, headers) | fence
    if isinstance(request, Put):
        bodies.check_put(request)
        status, found, body = await send("PUT", key_path(request.key), query, request.value, headers)
        return _put_reply(_json(status, body), found)
    if request.end == ONE_KEY:
        status, _, body = await send("DELETE", key_path(request.start), query, None, headers)
    else:
        query |= {"start": request.start} | ({} if request.end == TO_THE_END else {"end": request.end})
        status, _, body = await send("DELETE", "/v1/kv", query, None, headers)
    reply = bodies.operation_reply(request, _json(status, body))
    assert isinstance(reply, DeleteReply)
    return reply


async def _unnamed(send: Send, request: Put | Delete, fence: Query) -> Reply:
    """As a batch of one, since a PUT might be sent twice."""
    operation = bodies.encode([bodies.operation_body(request, condition=True)])
    status, _, body = await send("POST", "/v1/batch", fence, operation, {})
    [result] = _json(status, body)["results"]
    if "error" in result:
        raise error_from(result["status"], result.get("outcome", ""), bodies.encode(result), write=True)
    return bodies.operation_reply(request, result)


def _names(command: Command) -> Headers:
    if command.key:
        return {"Idempotency-Key": command.key.decode("utf-8", "surrogateescape")}
    if not command.session:
        return {}
    headers = {"Kv-Session": str(command.session), "Kv-Sequence": str(command.sequence)}
    if command.acknowledged:
        headers["Kv-Acknowledged"] = str(command.acknowledged)
    return headers


def _condition(request: Put | Delete, headers: Headers) -> Query:
    query = {"prev": b"1"} if request.return_previous else {}
    if isinstance(request, Put) and request.lease:
        query["lease"] = b"%d" % request.lease
    if request.if_revision == MUST_EXIST:
        headers["If-Match"] = "*"
    elif request.if_revision != ANY_REVISION:
        query["if_rev"] = b"%d" % request.if_revision
    return query


def _put_reply(answer: Any, headers: Mapping[str, str]) -> PutReply:
    return PutReply(
        revision=answer["revision"],
        created=answer["created"],
        create_revision=int(headers["Kv-Create-Revision"]),
        version=int(headers["Kv-Version"]),
        time=hybrid.from_text(headers["Kv-Time"]),
        previous=None if answer.get("prev") is None else bodies.key_value(answer["prev"]),
    )


def _json(status: int, body: bytes) -> Any:
    try:
        return bodies.decode(body)
    except ValueError as error:
        raise ConnectionLost(f"answer {status} is not JSON: {body[:200]!r}") from error
