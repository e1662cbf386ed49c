"""Leases: ``POST GET /v1/leases``, ``GET DELETE /v1/leases/{id}``, ``POST /v1/leases/{id}/keepalive``."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from kvnode.api import query, shapes
from kvnode.api.answer import Answer
from kvnode.api.call import Call
from kvnode.api.http.sessions import once
from kvnode.errors import BadRequest
from kvnode.kv.requests import TTL_MS_MAX, LeaseGrant, LeaseKeepAlive, LeaseList, LeaseRead, LeaseRevoke


class LeaseAnswer(msgspec.Struct, frozen=True):
    """A lease that has begun, or was renewed."""

    id: int
    ttl_ms: int


class LeaseShown(msgspec.Struct, frozen=True, kw_only=True):
    """A lease; in a list without what is left of it and without its keys' names."""

    id: int
    ttl_ms: int
    remaining_ms: int | UnsetType = UNSET  # by the leader's clock, when it answered
    count: int  # of its keys
    keys: list[shapes.KeyName] | UnsetType = UNSET


class LeaseListing(msgspec.Struct, frozen=True):
    """One page of leases, by id; negative ones, which only clients of etcd choose, last."""

    revision: int
    more: bool
    leases: list[LeaseShown]


class LeaseEndedAnswer(msgspec.Struct, frozen=True):
    revision: int
    deleted: int  # its keys, all at that revision


async def grant(call: Call) -> Answer:
    ttl_ms = ttl_of(call)
    options = call.options()
    call.refuse_body()
    reply = await call.app.kv.execute(once(call, LeaseGrant(ttl_ms)), options)
    return call.json(200, LeaseAnswer(reply.id, reply.ttl_ms), revision=reply.revision)


async def keep_alive(call: Call) -> Answer:
    lease = lease_id(call)
    options = call.options()
    call.refuse_body()
    reply = await call.app.kv.execute(LeaseKeepAlive(lease), options)
    return call.json(200, LeaseAnswer(reply.id, reply.ttl_ms))


async def show(call: Call) -> Answer:
    lease = lease_id(call)
    options = call.options()
    call.refuse_body()
    reply = await call.app.kv.execute(LeaseRead(lease), options)
    keys = [shapes.key_name(key) for key in reply.keys]
    answer = LeaseShown(id=lease, ttl_ms=reply.ttl_ms, remaining_ms=reply.remaining_ms, count=reply.count, keys=keys)
    return call.json(200, answer, revision=reply.revision)


async def list_all(call: Call) -> Answer:
    given = call.parameters
    after = query.parse_lease(given["after"], "after") if given.get("after", b"0") != b"0" else 0
    limit = 0
    if "limit" in given:
        limit = query.parse_integer(given["limit"], "limit", least=1, most=call.app.config.limits.page_items_max)
    options = call.options()
    call.refuse_body()
    reply = await call.app.kv.execute(LeaseList(after, limit), options)
    leases = [LeaseShown(id=view.id, ttl_ms=view.ttl_ms, count=view.keys) for view in reply.leases]
    return call.json(200, LeaseListing(reply.revision, reply.more, leases), revision=reply.revision)


async def revoke(call: Call) -> Answer:
    lease = lease_id(call)
    options = call.options()
    call.refuse_body()
    reply = await call.app.kv.execute(once(call, LeaseRevoke(lease)), options)
    return call.json(200, LeaseEndedAnswer(reply.revision, reply.deleted), revision=reply.revision)


def lease_id(call: Call) -> int:
    """The number in the path."""
    return query.parse_lease(query.percent_decode(call.rest), "the lease in the path")


def ttl_of(call: Call, default_ms: int = 0) -> int:
    value = call.parameters.get("ttl")
    if value is None:
        if not default_ms:
            raise BadRequest("ttl=30s says how long the lease lives without being renewed", parameter="ttl")
        return default_ms
    return query.parse_duration_ms(value, "ttl", most_ms=TTL_MS_MAX)
