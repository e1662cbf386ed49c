"""Gather the facts about a live cluster: a few GETs to each member, side by side, each with its time limit.

Statuses are asked for several times: state hashes can be compared only where two answers stand at one applied index,
and an election may be under way. The `Date` header has whole seconds; asked for at spread moments it bounds a clock
much closer: an answer with `D`, asked at `t0` and received at `t1`, puts the offset between `D - t1` and
`D + 1 s - t0`, and the bounds of all answers hold at once.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from math import inf
from typing import TypeVar

import msgspec

from kvnode.client.http import Answer, fetch, parse_endpoints
from kvnode.doctor.cluster_facts import ClockOffset, ClusterFacts, MemberFacts, MemberTold, SyncSpeed, Told
from kvnode.errors import BadRequest, KvnodeError
from kvnode.version import __version__

ROUNDS = 3
CLOCK_SAMPLES = 11
CLOCK_SAMPLE_S = 0.1
MEMBERS_MAX = 64
"""Endpoints asked at most; a cluster has a handful of members."""

T = TypeVar("T")


class _Listing(msgspec.Struct):
    members: tuple[MemberTold, ...] = ()


def gather(endpoints: Sequence[str], *, timeout_ms: int, only: bool = False) -> ClusterFacts:
    """Facts about the members at `endpoints` and, unless `only` these, those that they name. Raises nothing."""
    found: dict[str, MemberFacts] = {}
    listed: dict[int, MemberTold] = {}
    waiting = list(dict.fromkeys(endpoints))
    while waiting:
        asked = _at_once(lambda endpoint: _ask(endpoint, timeout_ms), waiting)
        found |= {member.endpoint: member for member in asked}
        answering = [member for member in asked if member.told]
        listed |= {
            one.id: one for members in _at_once(lambda m: _list(m.endpoint, timeout_ms), answering) for one in members
        }
        if only:
            break
        seen = {member.told.id for member in found.values() if member.told}
        named = [one for member in answering if member.told for one in member.told.members]
        urls = [one.client_url for one in (*named, *listed.values()) if one.client_url and one.id not in seen]
        waiting = [endpoint for endpoint in _endpoints(urls) if endpoint not in found][
            : max(0, MEMBERS_MAX - len(found))
        ]
    up = [member for member in found.values() if member.told]
    up = _at_once(lambda member: _look_closer(member, timeout_ms), up)  # an election may have ended when it is done
    for _ in range(ROUNDS - 1):
        up = _at_once(lambda member: _ask_again(member, timeout_ms), up)
    found |= {member.endpoint: member for member in up}
    return ClusterFacts(
        members=tuple(
            sorted(found.values(), key=lambda member: (member.told.id if member.told else 1 << 63, member.endpoint))
        ),
        wall_ms=_wall_ms(),
        version=__version__,
        is_partial=only,
        listed=tuple(listed[member] for member in sorted(listed)),
    )


def _at_once(work: Callable[..., T], items: Iterable[object]) -> list[T]:
    items = list(items)
    if not items:
        return []
    with ThreadPoolExecutor(min(len(items), MEMBERS_MAX)) as pool:
        return list(pool.map(work, items))


def _endpoints(urls: Iterable[str]) -> list[str]:
    found = []
    for url in urls:
        try:
            found += parse_endpoints(url)
        except BadRequest:  # https, or nonsense: not an address that this command can ask
            continue
    return list(dict.fromkeys(found))


def _ask(endpoint: str, timeout_ms: int) -> MemberFacts:
    try:
        answer = fetch(endpoint, "/v1/status", timeout_ms)
    except KvnodeError as error:
        return MemberFacts(endpoint, why=error.message)
    try:
        told = msgspec.json.decode(answer.body, type=Told)
    except msgspec.MsgspecError as error:
        return MemberFacts(
            endpoint, why=f"{endpoint}: the answer {answer.status} is not kvnode's (a peer port? a proxy?): {error}"
        )
    return MemberFacts(endpoint, told, hashes={told.applied_index: told.state_hash} if told.state_hash else {})


def _list(endpoint: str, timeout_ms: int) -> tuple[MemberTold, ...]:
    """Members as `/v1/members` lists them; nothing where there is no such route."""
    try:
        answer = fetch(endpoint, "/v1/members", timeout_ms)
        return msgspec.json.decode(answer.body, type=_Listing).members if answer.status == 200 else ()
    except (KvnodeError, msgspec.MsgspecError):  # the status says as much, or says why
        return ()


def _ask_again(member: MemberFacts, timeout_ms: int) -> MemberFacts:
    """The newest answer counts; one that does not come leaves the last."""
    again = _ask(member.endpoint, timeout_ms)
    if again.told is None:
        return member
    return msgspec.structs.replace(member, told=again.told, hashes=member.hashes | again.hashes)


def _look_closer(member: MemberFacts, timeout_ms: int) -> MemberFacts:
    return msgspec.structs.replace(
        member, clock=_clock(member.endpoint, timeout_ms), sync=_sync_speed(member.endpoint, timeout_ms)
    )


# ── clocks ──────────────────────────────────────────────────────────────────────────────────────────


def _clock(endpoint: str, timeout_ms: int) -> ClockOffset | None:
    offset: ClockOffset | None = None
    for sample in range(CLOCK_SAMPLES):
        if sample:
            time.sleep(CLOCK_SAMPLE_S)
        asked_ms = _wall_ms()
        try:
            answer = fetch(endpoint, "/livez", timeout_ms)
        except KvnodeError:  # one that answered a moment ago: what is known by now will do
            break
        bounds = clock_bounds(answer.headers.get("Date", ""), asked_ms, _wall_ms())
        offset = narrowed(offset, bounds) if bounds else offset
    return offset


def clock_bounds(date: str, asked_ms: float, answered_ms: float) -> ClockOffset | None:
    """What one answer with the header `Date: date` says; None: nothing."""
    try:
        second_ms = parsedate_to_datetime(date).timestamp() * 1e3
    except ValueError:
        return None
    return ClockOffset(second_ms - answered_ms, second_ms + 1e3 - asked_ms)


def narrowed(known: ClockOffset | None, bounds: ClockOffset) -> ClockOffset:
    """Both hold. Where they contradict each other a clock was set in between, and the newer one counts."""
    if known is None:
        return bounds
    both = ClockOffset(max(known.least_ms, bounds.least_ms), min(known.most_ms, bounds.most_ms))
    return both if both.least_ms <= both.most_ms else bounds


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


# ── metrics ─────────────────────────────────────────────────────────────────────────────────────────

_BUCKET = re.compile(rb'^kvnode_wal_fsync_seconds_bucket\{le="(\d[\d.e-]*|\+Inf)"\} (\d[\d.e+]*)$', re.MULTILINE)


def _sync_speed(endpoint: str, timeout_ms: int) -> SyncSpeed | None:
    try:
        answer = fetch(endpoint, "/metrics", timeout_ms)
    except KvnodeError:
        return None
    return sync_speed(answer)


def sync_speed(answer: Answer) -> SyncSpeed | None:
    """From the histogram in the text of `/metrics`; None: there is none, or it is empty.

    Within a bucket durations are taken to lie evenly, beyond the last bound to lie on it.
    """
    buckets = [(float(bound), float(count)) for bound, count in _BUCKET.findall(answer.body)]
    total = buckets[-1][1] if buckets else 0
    if answer.status != 200 or not total or len(buckets) < 2:
        return None

    def quantile_ms(share: float) -> float:
        lower, below = 0.0, 0.0
        for bound, count in buckets:
            if count >= share * total:
                upper = lower if bound == inf else bound
                return (lower + (upper - lower) * (share * total - below) / (count - below)) * 1e3
            lower, below = bound, count
        raise AssertionError(buckets)  # the last bucket counts all

    return SyncSpeed(int(total), quantile_ms(0.5), quantile_ms(0.99))
