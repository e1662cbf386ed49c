"""v3election: a candidate is a place in the queue for a name; the oldest leads, and its value is what it has to say.

What is proclaimed or resigned is bound to the create revision of the leader's key, so who has lost the lead changes
nothing of its successor's.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import msgspec

from kvnode.api.etcd import queues
from kvnode.api.etcd.context import Context
from kvnode.api.etcd.errors import KEY_NOT_PROVIDED, Code, EtcdError, invalid
from kvnode.api.etcd.kv_messages import KeyValue, key_value
from kvnode.api.etcd.method import Method, Stream, Unary
from kvnode.api.etcd.proto_json import Request, Response, decimal
from kvnode.kv import requests
from kvnode.kv.events import Cancelled, Changes
from kvnode.kv.interface import LOCALLY
from kvnode.kv.keys import prefix_end
from kvnode.kv.requests import Delete, Put, Watch

NO_LEADER = "election: no leader"
NOT_LEADER = "election: not leader"
NO_LEADER_GIVEN = '"leader" field must be provided'


class LeaderKey(Request):
    """As a campaign was answered."""

    name: bytes = b""
    key: bytes = b""
    rev: int = 0
    lease: int = 0


class LeaderKeyShown(Response):
    name: bytes = b""
    key: bytes = b""
    rev: str = "0"
    lease: str = "0"


class CampaignRequest(Request):
    name: bytes = b""
    lease: int = 0
    value: bytes = b""


class CampaignResponse(Response):
    header: msgspec.Raw = msgspec.Raw(b"")
    leader: LeaderKeyShown | None = None


class ProclaimRequest(Request):
    leader: LeaderKey | None = None
    value: bytes = b""


class ProclaimResponse(Response):
    header: msgspec.Raw = msgspec.Raw(b"")


class ResignRequest(Request):
    leader: LeaderKey | None = None


class ResignResponse(Response):
    header: msgspec.Raw = msgspec.Raw(b"")


class LeaderRequest(Request):
    name: bytes = b""


class LeaderResponse(Response):
    header: msgspec.Raw = msgspec.Raw(b"")
    kv: KeyValue | None = None


@queues.unknown_to_etcd
async def campaign(context: Context, request: CampaignRequest) -> CampaignResponse:
    """Waits as long as its client does. Who stands already, under the same lease, changes its value."""
    place = await queues.enter(context, request.name, request.lease, request.value)
    try:
        if place.value != request.value:
            await _proclaim(context, place.key, place.token, place.lease, request.value)
        await queues.turn(context, place, EtcdError(Code.UNKNOWN, NOT_LEADER))
    except BaseException:
        if place.is_new:
            await queues.give_up(context, place)
        raise
    leader = LeaderKeyShown(name=place.name, key=place.key, rev=decimal(place.token), lease=decimal(place.lease))
    return CampaignResponse(header=context.header_at(place.revision), leader=leader)


@queues.unknown_to_etcd
async def proclaim(context: Context, request: ProclaimRequest) -> ProclaimResponse:
    leader = _given(request.leader)
    revision = await _proclaim(context, leader.key, leader.rev, leader.lease, request.value)
    return ProclaimResponse(header=context.header_at(revision))


async def _proclaim(context: Context, key: bytes, token: int, lease: int, value: bytes) -> int:
    """Who names no lease leaves the key on the one that it has."""
    put = Put(key, value, lease, keep_lease=not lease)
    reply = await queues.guarded(context, key, token, put)
    if not reply.succeeded:
        raise EtcdError(Code.UNKNOWN, NOT_LEADER)
    return reply.revision


@queues.unknown_to_etcd
async def resign(context: Context, request: ResignRequest) -> ResignResponse:
    """Who does not lead any more has nothing to resign from: no error."""
    leader = _given(request.leader)
    reply = await queues.guarded(context, leader.key, leader.rev, Delete(leader.key))
    return ResignResponse(header=context.header_at(reply.revision))


def _given(leader: LeaderKey | None) -> LeaderKey:
    if leader is None:
        raise EtcdError(Code.UNKNOWN, NO_LEADER_GIVEN)
    if not leader.key:
        raise invalid(KEY_NOT_PROVIDED)
    return leader


@queues.unknown_to_etcd
async def leader_of(context: Context, request: LeaderRequest) -> LeaderResponse:
    kv, revision = await queues.holder(context, request.name, context.options())
    if kv is None:
        raise EtcdError(Code.UNKNOWN, NO_LEADER)
    return LeaderResponse(header=context.header_at(revision), kv=key_value(kv))


async def observe(
    context: Context, requests: AsyncIterator[LeaderRequest]
) -> AsyncGenerator[LeaderResponse | None, None]:
    """The present leader, then each change of its value, and each new leader."""
    asked = await anext(requests, None)
    name = b"" if asked is None else asked.name
    below = name + b"/"
    kv, revision = await queues.holder(context, name, context.options())
    yield None if kv is None else _seen(context, kv, revision)
    while True:
        watch = Watch(below, prefix_end(below), from_revision=revision + 1)
        async with aclosing(context.kv.watch(watch, LOCALLY)) as stream:
            async for part in stream:
                if isinstance(part, Cancelled):
                    break
                for change in part.sets if isinstance(part, Changes) else ():
                    if change.revision <= revision:
                        continue
                    revision = change.revision
                    for event in change.events:
                        if kv is not None and event.kv.key != kv.key:
                            continue
                        if event.kv.version:
                            kv = event.kv
                            yield _seen(context, kv, revision)
                        elif kv is not None:
                            kv, revision = await queues.holder(context, name, LOCALLY)
                            if kv is not None:
                                yield _seen(context, kv, revision)
                            break  # the rest of the revision is in that
        # The watch was cut off: what has happened since is not told one by one.
        before = kv
        kv, revision = await queues.holder(context, name, context.options())
        if kv is not None and kv != before:
            yield _seen(context, kv, revision)


def _seen(context: Context, kv: requests.KeyValue, revision: int) -> LeaderResponse:
    return LeaderResponse(header=context.header_at(revision), kv=key_value(kv))


METHODS: dict[str, Method] = {
    "election/campaign": Unary(CampaignRequest, campaign, waits=True),
    "election/proclaim": Unary(ProclaimRequest, proclaim),
    "election/resign": Unary(ResignRequest, resign),
    "election/leader": Unary(LeaderRequest, leader_of),
    "election/observe": Stream(LeaderRequest, observe),
}
