"""What etcd serves beside its API, as monitoring asks for it: `/health`, and its forms of `/livez` and `/readyz`.

`/livez` and `/readyz` alone are kvnode's own (`kvnode.api.http.node`). With `verbose` or `exclude` in the query, and at
the path of a single check, they are etcd's: a line of text for each check, and `ok`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import msgspec

from kvnode.api.answer import KIND_PLAIN, Answer
from kvnode.api.call import Call
from kvnode.api.etcd.alarms import AlarmType, raised
from kvnode.api.etcd.errors import translated
from kvnode.errors import KvnodeError, NotFound
from kvnode.kv.interface import Consistency, Options
from kvnode.kv.keys import ONE_KEY
from kvnode.kv.requests import Range

PROBED_KEY = b"health"


class Health(msgspec.Struct):
    """`health` is text: "true" or "false"."""

    health: str
    reason: str


async def show_health(call: Call) -> Answer:
    reason = await _why_not_healthy(call)
    call.app.etcd.count_health(is_good=not reason)
    found = Health("false" if reason else "true", reason)
    body = msgspec.json.encode(found) + (b"\n" if reason else b"")
    return call.answer(503 if reason else 200, body, kind=KIND_PLAIN)


async def _why_not_healthy(call: Call) -> str:
    """ "" if this node is healthy."""
    status = call.app.admin.status()
    excluded = call.parameters.get("exclude", b"").decode("ascii", "replace")
    for alarm in raised(status):
        if alarm.name != excluded:
            return f"ALARM {alarm.name}"
    is_local = call.flag("serializable")
    if not is_local and status.leader is None:
        return "RAFT NO LEADER"
    failure = await _read(call, "stale" if is_local else "linearizable")
    return f"RANGE ERROR:{failure}" if failure else ""


# ── livez and readyz ────────────────────────────────────────────────────────────────────────────────

Check = Callable[[Call], Awaitable[str]]
"""What is wrong; "" if nothing."""


async def _read(call: Call, consistency: Consistency) -> str:
    options = Options(call.app.config.limits.timeout_ms, consistency, call.request_id)
    try:
        await call.app.kv.execute(Range(PROBED_KEY, ONE_KEY, count_only=True), options)
    except KvnodeError as error:
        return translated(error).message
    return ""


async def _serializable_read(call: Call) -> str:
    return await _read(call, "stale")


async def _linearizable_read(call: Call) -> str:
    return await _read(call, "linearizable")


async def _data_corruption(call: Call) -> str:
    return "alarm activated: CORRUPT" if AlarmType.CORRUPT in raised(call.app.admin.status()) else ""


async def _non_learner(call: Call) -> str:
    return "the local member is a learner" if call.app.admin.status().role == "learner" else ""


LIVE_CHECKS: Mapping[str, Check] = {"serializable_read": _serializable_read}
READY_CHECKS: Mapping[str, Check] = {
    "data_corruption": _data_corruption,
    "serializable_read": _serializable_read,
    "linearizable_read": _linearizable_read,
    "non_learner": _non_learner,
}


def is_asked_for(call: Call) -> bool:
    """Whether `/livez` or `/readyz` is to be answered in etcd's form."""
    return bool({"verbose", "exclude"} & call.parameters.keys())


async def show_live(call: Call) -> Answer:
    return await _show(call, "livez", LIVE_CHECKS)


async def show_ready(call: Call) -> Answer:
    return await _show(call, "readyz", READY_CHECKS)


async def show_live_check(call: Call) -> Answer:
    return await _show(call, "livez", _only(call.rest, LIVE_CHECKS))


async def show_ready_check(call: Call) -> Answer:
    return await _show(call, "readyz", _only(call.rest, READY_CHECKS))


def _only(name: str, checks: Mapping[str, Check]) -> Mapping[str, Check]:
    if name not in checks:
        raise NotFound(f"there is no such check; there are: {', '.join(checks)}")
    return {name: checks[name]}


async def _show(call: Call, page: str, checks: Mapping[str, Check]) -> Answer:
    excluded = call.parameters.get("exclude", b"").decode("ascii", "replace")
    lines = []
    is_good = True
    for name, check in checks.items():
        if name == excluded:
            lines.append(f"[+]{name} excluded: ok\n")
            continue
        failure = await check(call)
        is_good = is_good and not failure
        lines.append(f"[-]{name} failed: {failure}\n" if failure else f"[+]{name} ok\n")
    if not is_good:
        return call.answer(503, f"{''.join(lines)}{page} check failed\n".encode(), kind=KIND_PLAIN)
    told = "".join(lines) if "verbose" in call.parameters else ""
    return call.answer(200, f"{told}ok\n".encode(), kind=KIND_PLAIN)
