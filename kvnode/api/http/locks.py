"""Locks and elections: ``POST GET DELETE /v1/locks/{name}`` and ``…/keepalive``, the same under ``/v1/elections``.

Both are the queue for a name (`kvnode.recipes.lock`). A lock tells its owner, an election its value. While a request
waits its place is kept; it is given up when the client leaves.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from kvnode.api import query, shapes
from kvnode.api.answer import Answer
from kvnode.api.call import Call
from kvnode.api.http.leases import LeaseAnswer, LeaseEndedAnswer, ttl_of
from kvnode.api.http.sessions import command_of
from kvnode.api.http.watches import KIND_LINES
from kvnode.api.streaming import Outlet, TooSlow
from kvnode.errors import BadKey, BadRequest, NotFound
from kvnode.kv.events import Cancelled, Started
from kvnode.kv.keys import prefix_end
from kvnode.kv.requests import WAIT_MS_MAX, Campaign, Watch
from kvnode.recipes import lock
from kvnode.recipes.lock import Place

TTL_MS_DEFAULT = 30_000


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """A place in a queue, as a lock shows it: `owner`; or an election: `value`."""

    name: str
    name_encoding: str | UnsetType = UNSET
    owner: str | UnsetType = UNSET
    owner_encoding: str | UnsetType = UNSET
    value: str | UnsetType = UNSET
    encoding: str | UnsetType = UNSET
    lease: int
    token: int
    ttl_ms: int | UnsetType = UNSET  # for its holder


class Queue(msgspec.Struct, frozen=True, kw_only=True):
    """Who holds a lock, and who waits for it, first come first."""

    name: str
    name_encoding: str | UnsetType = UNSET
    holder: Holder | None
    queue: list[Holder]
    more: bool


async def acquire(call: Call) -> Answer:
    return await _campaign(call, "owner")


async def campaign(call: Call) -> Answer:
    return await _campaign(call, "value")


async def _campaign(call: Call, field: str) -> Answer:
    given = call.parameters
    name, ttl_ms = _name(call), ttl_of(call, TTL_MS_DEFAULT)
    wait_ms = query.parse_duration_ms(given["wait"], "wait", most_ms=WAIT_MS_MAX, least_ms=0) if "wait" in given else 0
    options = call.options()
    call.refuse_body()
    campaign = Campaign(name, ttl_ms, given.get(field, b""))
    place = await lock.acquire(
        call.app.kv,
        campaign,
        named=command_of(call, campaign),
        wait_ms=wait_ms,
        now_ms=call.app.clock.monotonic_ms,
        options=options,
        is_wanted=lambda: call.request.transport is not None,
    )
    return call.json(200, _shown(place, field, ttl_ms), revision=place.revision)


async def show_lock(call: Call) -> Answer:
    name = _name(call)
    options = call.options()
    call.refuse_body()
    found, queue = await lock.places(call.app.kv, name, options)
    shown = [_shown(place, "owner") for place in found]
    text, encoding = shapes.as_text(name)
    answer = Queue(
        name=text, name_encoding=encoding, holder=shown[0] if shown else None, queue=shown[1:], more=queue.more
    )
    return call.json(200, answer, revision=queue.revision)


async def show_leader(call: Call) -> Answer:
    name = _name(call)
    options = call.options()
    call.refuse_body()
    place = await lock.holder(call.app.kv, name, options)
    if place is None:
        raise NotFound("nobody leads there")
    return call.json(200, _shown(place, "value"), revision=place.revision)


class Observed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A line of `observe`: who leads from now on, that nobody does, or why the stream ends."""

    type: Literal["leader", "nobody", "cancelled"]
    revision: int
    name: str
    name_encoding: str | UnsetType = UNSET
    value: str | UnsetType = UNSET
    encoding: str | UnsetType = UNSET
    lease: int = 0
    token: int = 0
    code: str = ""


async def observe(call: Call) -> Answer:
    name = _name(call)
    options = call.options()
    call.refuse_body()
    below = name + b"/"
    stream = call.app.kv.watch(Watch(below, prefix_end(below)), options)
    try:
        started = await anext(stream)  # what is refused is refused with a status
        assert isinstance(started, Started), started
        if call.is_head:
            await stream.aclose()
            return call.answer(200, b"", kind=KIND_LINES, revision=started.revision, length=False)

        async def produce(outlet: Outlet) -> None:
            try:
                async for seen in lock.observe(stream, call.app.kv, name):
                    await outlet.write(outlet.frame(shapes.encode(_observed(name, seen)) + b"\n"))
                outlet.end()
            except TooSlow:
                words = _observed(name, Cancelled("slow", started.revision))
                outlet.end(outlet.frame(shapes.encode(words) + b"\n"))
                outlet.linger()
            finally:
                await stream.aclose()

        return call.stream(produce, kind=KIND_LINES, revision=started.revision)
    except BaseException:
        await stream.aclose()
        raise


def _observed(name: bytes, seen: Place | Cancelled | int) -> Observed:
    text, name_encoding = shapes.as_text(name)
    match seen:
        case Place():
            value, encoding = shapes.as_text(seen.value)
            return Observed(
                type="leader",
                revision=seen.revision,
                name=text,
                name_encoding=name_encoding,
                value=value,
                encoding=encoding,
                lease=seen.lease,
                token=seen.token,
            )
        case Cancelled():
            return Observed(
                type="cancelled", revision=seen.resume_revision, name=text, name_encoding=name_encoding, code=seen.code
            )
        case _:
            return Observed(type="nobody", revision=seen, name=text, name_encoding=name_encoding)


async def keep_alive(call: Call) -> Answer:
    name, token = _name(call), _token(call)
    options = call.options()
    call.refuse_body()
    reply = await lock.keep(call.app.kv, name, token, options)
    return call.json(200, LeaseAnswer(reply.id, reply.ttl_ms))


async def release(call: Call) -> Answer:
    name, token = _name(call), _token(call)
    options = call.options()
    call.refuse_body()
    revision = await lock.release(call.app.kv, name, token, options)
    return call.json(200, LeaseEndedAnswer(revision, 1), revision=revision)


def _name(call: Call) -> bytes:
    name = query.percent_decode(call.rest)
    if not name:
        raise BadKey("a name has at least one byte")
    return name


def _token(call: Call) -> int:
    value = call.parameters.get("token")
    if value is None:
        raise BadRequest("token= names the place, as the answer to the POST did", parameter="token")
    return query.parse_integer(value, "token", least=1)


def _shown(place: Place, field: str, ttl_ms: int | UnsetType = UNSET) -> Holder:
    name, name_encoding = shapes.as_text(place.name)
    value, encoding = shapes.as_text(place.value)
    shown = Holder(name=name, name_encoding=name_encoding, lease=place.lease, token=place.token, ttl_ms=ttl_ms)
    if field == "owner":
        return msgspec.structs.replace(shown, owner=value, owner_encoding=encoding)
    return msgspec.structs.replace(shown, value=value, encoding=encoding)
