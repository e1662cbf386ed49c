"""The node about itself: status, liveness, readiness, metrics, version, and handing leadership over, compaction."""

from __future__ import annotations

import asyncio

import msgspec

from kvnode.api import query
from kvnode.api.answer import KIND_TEXT, Answer
from kvnode.api.call import Call
from kvnode.api.etcd import plain
from kvnode.api.http.alive import unheard, with_health
from kvnode.errors import BadRequest, NotReady, Timeout
from kvnode.ids import NOBODY, NodeId
from kvnode.kv.requests import Compact
from kvnode.observe import metrics
from kvnode.observe.etcd_metrics import render_as_etcd
from kvnode.version import ETCD_CLUSTER_VERSION, ETCD_SERVER_VERSION, __version__


class Live(msgspec.Struct):
    live: bool


class Ready(msgspec.Struct):
    ready: bool


class Version(msgspec.Struct):
    """The names that clients of etcd look for hold the version of etcd's API, in numbers and dots."""

    version: str
    etcdserver: str
    etcdcluster: str


class Transferred(msgspec.Struct):
    """Who leads now."""

    leader: int


class Compacted(msgspec.Struct):
    """The oldest revision that can be read now."""

    revision: int
    compact_revision: int


async def show_status(call: Call) -> Answer:
    call.options()  # checked like everywhere; the answer waits for nothing
    found = call.app.admin.status()
    return call.json(200, msgspec.structs.replace(found, members=with_health(found.members, call.app.available)))


async def show_live(call: Call) -> Answer:
    """That the loop runs this far is the whole proof."""
    if plain.is_asked_for(call):
        return await plain.show_live(call)
    return call.json(200, Live(live=True))


async def show_ready(call: Call) -> Answer:
    if plain.is_asked_for(call):
        return await plain.show_ready(call)
    if not call.app.admin.is_ready():
        status = call.app.admin.status()
        why = "is in quarantine: see alarms" if status.quarantined else "has no leader or has not caught up with it yet"
        raise NotReady(f"this node {why}", alarms=status.alarms, unheard=unheard(call.app.available))
    return call.json(200, Ready(ready=True))


async def show_metrics(call: Call) -> Answer:
    values = call.app.admin.counters() | call.app.counters() | call.app.available.available_counters()
    # Rendering takes milliseconds of pure Python: not on the loop.
    text = await asyncio.to_thread(metrics.render, values)
    text += await asyncio.to_thread(render_as_etcd, values, call.app.etcd.numbers())
    text += await asyncio.to_thread(metrics.render_process)
    return call.answer(200, text, kind=KIND_TEXT)


async def show_version(call: Call) -> Answer:
    return call.json(200, Version(__version__, ETCD_SERVER_VERSION, ETCD_CLUSTER_VERSION))


async def show_openapi(call: Call) -> Answer:
    return call.answer(200, call.app.openapi)


async def compact(call: Call) -> Answer:
    options = call.options()
    call.refuse_body()
    if "rev" not in call.parameters:
        raise BadRequest("rev= names the oldest revision to keep", parameter="rev")
    reply = await call.app.kv.execute(Compact(query.parse_integer(call.parameters["rev"], "rev", least=1)), options)
    return call.json(200, Compacted(reply.revision, reply.compact_revision), revision=reply.revision)


async def show_hash(call: Call) -> Answer:
    options = call.options()
    revision = query.parse_integer(call.parameters["rev"], "rev", least=1) if "rev" in call.parameters else 0
    found = await call.app.admin.state_hash(revision, options)
    return call.json(200, found, revision=found.revision)


async def transfer_leadership(call: Call) -> Answer:
    options = call.options()
    call.needs_leader = True
    call.refuse_body()
    to = NOBODY
    if "to" in call.parameters:
        to = NodeId(query.parse_integer(call.parameters["to"], "to", least=1))
    try:
        async with asyncio.timeout(options.timeout_ms / 1_000):
            leader = await call.app.admin.transfer_leadership(to)
    except TimeoutError as error:  # ours or the node's own
        raise Timeout("leadership did not change hands in time") from error
    return call.json(200, Transferred(leader=leader))
