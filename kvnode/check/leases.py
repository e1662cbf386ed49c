"""Leases: nothing goes away too early, everything goes away in the end, all keys of a lease together (I24, I25).

Judged from what clients did and saw, by the true clock of a run: the simulator's, or one that all clients share. The
servers' clocks may drift; by how much at most is an argument.

    early        a key was gone before TTL × (1 − drift) had passed since the call of a renewal that was acknowledged
    late         a key was there when TTL and slack had long passed, with the cluster healthy
    torn         one expiry removed the keys of a lease at several revisions
    resurrected  a key was there, or a renewal was acknowledged, after the lease was seen gone or revoked
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import msgspec

from kvnode.check.verdict import Problem


class LeaseEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request about a lease, or one look at its keys. One JSON object a line in a file; times in nanoseconds.

    grant      `ttl_ms`
    keepalive  a renewal
    revoke     by a client; from its call on the lease may go at any time
    present    `key`, held by the lease, was read
    gone       `key` was read, and not there; `revision` of its deletion if a watcher knows it. The recorder writes it
               only for keys that no client deletes or overwrites
    """

    kind: Literal["grant", "keepalive", "revoke", "present", "gone"]
    lease: int
    call: int
    ret: int | None = None  # None: no answer
    status: Literal["ok", "fail", "info"] = "ok"
    ttl_ms: int = 0
    key: str = ""
    revision: int = 0


def check(
    events: Iterable[LeaseEvent], *, drift: float = 0.0, healthy_from: int = 0, slack_ms: int = 0, flight_ms: int = 0
) -> list[Problem]:
    """`healthy_from`: from this time on the cluster had a quorum that could talk; before it nothing is late.
    `slack_ms`: an election and what else may come on top of the TTL. `flight_ms`: how long after its call a renewal
    without an answer may still have arrived.
    """
    leases: dict[int, list[LeaseEvent]] = {}
    for event in events:
        leases.setdefault(event.lease, []).append(event)
    problems: list[Problem] = []
    for lease, own in sorted(leases.items()):
        own.sort(key=lambda event: event.call)
        grant = next((event for event in own if event.kind == "grant"), None)
        if grant is None:
            continue  # its TTL is not known: another recorder's lease
        rules = (
            _early(own, grant.ttl_ms, drift),
            _late(own, grant.ttl_ms, healthy_from, slack_ms, flight_ms),
            _torn(own),
            _resurrected(own),
        )
        for found in rules:
            problems += [Problem(rule, f"lease {lease}: {message}") for rule, message in found]
    return problems


def _early(events: list[LeaseEvent], ttl_ms: int, drift: float) -> Iterator[tuple[str, str]]:
    lives_ns = int(ttl_ms * 1_000_000 * (1 - drift))
    for gone in events:
        if gone.kind != "gone" or gone.status != "ok" or gone.ret is None or _revoked(events, gone.ret):
            continue
        renewals = [event.call for event in _renewals(events) if event.call <= gone.ret]
        if renewals and gone.ret < max(renewals) + lives_ns:
            after = (gone.ret - max(renewals)) / 1e6
            yield "early", f"{gone.key} was gone {after:.1f} ms after a renewal was called that was acknowledged"


def _late(
    events: list[LeaseEvent], ttl_ms: int, healthy_from: int, slack_ms: int, flight_ms: int
) -> Iterator[tuple[str, str]]:
    alive = healthy_from
    for event in events:
        if event.kind in {"grant", "keepalive"} and event.status != "fail":
            alive = max(alive, event.call + flight_ms * 1_000_000 if event.ret is None else event.ret)
    deadline = alive + (ttl_ms + slack_ms) * 1_000_000
    for event in events:
        if event.kind == "present" and event.status == "ok" and event.call > deadline:
            over = (event.call - deadline) / 1e6
            yield "late", f"{event.key} was there {over:.1f} ms after it had to be gone"


def _torn(events: list[LeaseEvent]) -> Iterator[tuple[str, str]]:
    revisions = {event.revision: event.key for event in events if event.kind == "gone" and event.revision}
    if len(revisions) > 1:
        words = ", ".join(f"{key} at revision {revision}" for revision, key in sorted(revisions.items()))
        yield "torn", f"its keys went at different revisions: {words}"


def _resurrected(events: list[LeaseEvent]) -> Iterator[tuple[str, str]]:
    ends = [
        (event.ret, f"{event.key} had been seen gone" if event.kind == "gone" else "it had been revoked")
        for event in events
        if event.kind in {"gone", "revoke"} and event.status == "ok" and event.ret is not None
    ]
    if not ends:
        return
    end, why = min(ends)
    for event in events:
        if event.kind in {"present", "keepalive"} and event.status == "ok" and event.call > end:
            what = f"{event.key} was there" if event.kind == "present" else "it was renewed"
            yield "resurrected", f"{what} after {why}"
            return


def _renewals(events: Iterable[LeaseEvent]) -> Iterator[LeaseEvent]:
    return (event for event in events if event.kind in {"grant", "keepalive"} and event.status == "ok")


def _revoked(events: Iterable[LeaseEvent], time: int) -> bool:
    return any(event.kind == "revoke" and event.status != "fail" and event.call <= time for event in events)
