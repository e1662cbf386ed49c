"""Lease: the store's leases in seconds. Source: etcd's `LeaseServer` and `lessor`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence

import msgspec

from kvnode.api.etcd.context import Context
from kvnode.api.etcd.errors import LEASE_NOT_FOUND, Code, EtcdError
from kvnode.api.etcd.method import Method, Stream, Unary
from kvnode.api.etcd.proto_json import Request, Response, decimal
from kvnode.config import RaftSection
from kvnode.errors import Conflict, LeaseNotFound
from kvnode.kv.interface import LOCALLY
from kvnode.kv.requests import LeaseGrant, LeaseKeepAlive, LeaseList, LeaseRead, LeaseReadReply, LeaseRevoke, LeaseView

TTL_S_MIN = 2
"""What etcd's default timing makes it. A cluster that takes longer to elect raises it further."""

TTL_S_MAX = 9_000_000_000

AT_ONCE = 4_096
"""Leases shown without letting others have their turn."""

EXISTS = "etcdserver: lease already exists"
TOO_LARGE = "etcdserver: too large lease TTL"
GONE_TTL = "-1"


class LeaseGrantRequest(Request):
    TTL: int = 0
    ID: int = 0


class LeaseGrantResponse(Response):
    header: msgspec.Raw = msgspec.Raw(b"")
    ID: str = "0"
    TTL: str = "0"


class LeaseRequest(Request):
    ID: int = 0


class LeaseRevokeResponse(Response):
    header: msgspec.Raw = msgspec.Raw(b"")


class LeaseKeepAliveResponse(Response):
    """Without a TTL: there is no such lease any more."""

    header: msgspec.Raw = msgspec.Raw(b"")
    ID: str = "0"
    TTL: str = "0"


class LeaseTimeToLiveRequest(Request):
    ID: int = 0
    keys: bool = False


class LeaseTimeToLiveResponse(Response):
    header: msgspec.Raw = msgspec.Raw(b"")
    ID: str = "0"
    TTL: str = "0"
    grantedTTL: str = "0"
    keys: Sequence[bytes] = ()


class LeaseLeasesRequest(Request):
    pass


class LeaseStatus(Response):
    ID: str = "0"


class LeaseLeasesResponse(Response):
    header: msgspec.Raw = msgspec.Raw(b"")
    leases: Sequence[LeaseStatus] = ()


def ttl_s_min(raft: RaftSection) -> int:
    """A lease outlives an election: one and a half times its timeout, in whole seconds."""
    return max(TTL_S_MIN, -(-3 * raft.election_timeout_ms // 2_000))


async def grant(context: Context, request: LeaseGrantRequest) -> LeaseGrantResponse:
    if request.TTL > TTL_S_MAX:
        raise EtcdError(Code.OUT_OF_RANGE, TOO_LARGE)
    ttl_s = max(request.TTL, ttl_s_min(context.config.raft))
    try:
        reply = await context.kv.execute(LeaseGrant(ttl_s * 1_000, request.ID), context.options())
    except Conflict as error:
        raise EtcdError(Code.FAILED_PRECONDITION, EXISTS) from error
    return LeaseGrantResponse(header=context.header(reply.revision), ID=decimal(reply.id), TTL=decimal(ttl_s))


async def revoke(context: Context, request: LeaseRequest) -> LeaseRevokeResponse:
    if not request.ID:
        raise EtcdError(Code.NOT_FOUND, LEASE_NOT_FOUND)
    reply = await context.kv.execute(LeaseRevoke(request.ID), context.options())
    return LeaseRevokeResponse(header=context.header(reply.revision))


async def keep_alive(
    context: Context, requests: AsyncIterator[LeaseRequest]
) -> AsyncGenerator[LeaseKeepAliveResponse, None]:
    """Each request is answered once, in order. A lease that has ended is no error."""
    async for request in requests:
        header, ttl = context.header(), "0"
        if request.ID:
            try:
                reply = await context.kv.execute(LeaseKeepAlive(request.ID), context.options())
            except LeaseNotFound:
                pass
            else:
                ttl = decimal(reply.ttl_ms // 1_000)
        yield LeaseKeepAliveResponse(header=header, ID=decimal(request.ID), TTL=ttl)


async def time_to_live(context: Context, request: LeaseTimeToLiveRequest) -> LeaseTimeToLiveResponse:
    lease = await _read(context, request)
    if lease is None:
        return LeaseTimeToLiveResponse(header=context.header(), ID=decimal(request.ID), TTL=GONE_TTL)
    keys = list(lease.keys)
    while request.keys and len(keys) < lease.count:
        page = await _read(context, request, after=keys[-1])
        if page is None or not page.keys:
            break  # the rest has gone meanwhile
        keys += page.keys
    return LeaseTimeToLiveResponse(
        header=context.header(lease.revision),
        ID=decimal(request.ID),
        TTL=decimal(lease.remaining_ms // 1_000),
        grantedTTL=decimal(lease.ttl_ms // 1_000),
        keys=keys or (),
    )


async def _read(context: Context, request: LeaseTimeToLiveRequest, after: bytes = b"") -> LeaseReadReply | None:
    if not request.ID:
        return None
    try:
        return await context.kv.execute(LeaseRead(request.ID, after, count_only=not request.keys), context.options())
    except LeaseNotFound:
        return None


async def leases(context: Context, request: LeaseLeasesRequest) -> LeaseLeasesResponse:
    """Those that end soonest come first, at the leader; elsewhere nobody knows, and they come by their ids."""
    limit = context.config.limits.page_items_max
    reply = await context.kv.execute(LeaseList(limit=limit), context.options())
    revision, found = reply.revision, list(reply.leases)
    while reply.more:
        reply = await context.kv.execute(LeaseList(found[-1].id, limit), LOCALLY)
        found += reply.leases
    found.sort(key=_remaining)
    shown: list[LeaseStatus] = []
    for first in range(0, len(found), AT_ONCE):
        shown += [LeaseStatus(ID=decimal(view.id)) for view in found[first : first + AT_ONCE]]
        await asyncio.sleep(0)
    return LeaseLeasesResponse(header=context.header(revision), leases=shown or ())


def _remaining(view: LeaseView) -> int:
    return view.remaining_ms


_REVOKE = Unary(LeaseRequest, revoke)
_TIME_TO_LIVE = Unary(LeaseTimeToLiveRequest, time_to_live)
_LEASES = Unary(LeaseLeasesRequest, leases)

METHODS: dict[str, Method] = {
    "lease/grant": Unary(LeaseGrantRequest, grant),
    "lease/revoke": _REVOKE,
    "lease/keepalive": Stream(LeaseRequest, keep_alive),
    "lease/timetolive": _TIME_TO_LIVE,
    "lease/leases": _LEASES,
    # as etcd had them before 3.4; some clients still use these
    "kv/lease/revoke": _REVOKE,
    "kv/lease/timetolive": _TIME_TO_LIVE,
    "kv/lease/leases": _LEASES,
}
