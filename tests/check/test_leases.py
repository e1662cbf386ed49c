"""Leases by the true clock: never early, not late for ever, all keys at once."""

from __future__ import annotations

from typing import Any

import pytest

from kvnode.check.leases import LeaseEvent, check

SECOND = 1_000_000_000


def event(kind: str, call: float, ret: float | None = None, **more: Any) -> LeaseEvent:
    end = None if more.get("status") == "info" else int((call + 0.1 if ret is None else ret) * SECOND)
    return LeaseEvent(kind=kind, lease=7, call=int(call * SECOND), ret=end, **more)


GRANT = event("grant", 0, ttl_ms=10_000)

LEGAL = {
    "expires after its time": [GRANT, event("present", 5, key="k"), event("gone", 10.0, key="k")],
    "renewed": [GRANT, event("keepalive", 8), event("present", 17, key="k"), event("gone", 18, key="k")],
    "a renewal without an answer promises nothing": [
        GRANT,
        event("keepalive", 8, status="info"),
        event("gone", 10, key="k"),
    ],
    "a refused renewal promises nothing": [GRANT, event("keepalive", 9, status="fail"), event("gone", 10, key="k")],
    "revoked": [GRANT, event("revoke", 2), event("gone", 3, key="k")],
    "perhaps revoked": [GRANT, event("revoke", 2, status="info"), event("gone", 3, key="k")],
    "all keys at one revision": [
        GRANT,
        event("gone", 11, key="k", revision=9),
        event("gone", 11, key="m", revision=9),
    ],
    "there until the slack is over": [GRANT, event("present", 12, key="k")],
    "a renewal that may still have been under way": [
        GRANT,
        event("keepalive", 9, status="info"),
        event("present", 21.5, key="k"),
    ],
    "a lease of somebody else": [event("gone", 1, key="k")],
}

ILLEGAL = {
    "early": ("early", [GRANT, event("gone", 9, key="k")]),
    "early after a renewal": ("early", [GRANT, event("keepalive", 8), event("gone", 17, key="k")]),
    "early, seen while the renewal was under way": (
        "early",
        [GRANT, event("keepalive", 8, 9.9), event("gone", 9.5, key="k")],
    ),
    "a refused revocation explains nothing": (
        "early",
        [GRANT, event("revoke", 2, status="fail"), event("gone", 3, key="k")],
    ),
    "late": ("late", [GRANT, event("present", 13, key="k")]),
    "torn": (
        "torn",
        [GRANT, event("gone", 11, key="k", revision=9), event("gone", 11, key="m", revision=10)],
    ),
    "back again": ("resurrected", [GRANT, event("gone", 10.5, key="k"), event("present", 11, key="k")]),
    "renewed after it was gone": ("resurrected", [GRANT, event("gone", 10.5, key="k"), event("keepalive", 11)]),
    "there after its revocation": ("resurrected", [GRANT, event("revoke", 2), event("present", 3, key="k")]),
}


@pytest.mark.parametrize("name", LEGAL)
def test_a_legal_history_passes(name: str):
    assert check(LEGAL[name], slack_ms=2_000, flight_ms=1_000) == []


@pytest.mark.parametrize("name", ILLEGAL)
def test_an_illegal_history_is_told_by_its_rule(name: str):
    rule, events = ILLEGAL[name]
    problems = check(events, slack_ms=2_000, flight_ms=1_000)
    assert [problem.rule for problem in problems] == [rule], problems
    assert problems[0].message.startswith("lease 7: ")


def test_clocks_that_may_drift_may_expire_it_sooner():
    events = [GRANT, event("gone", 9.5, key="k")]
    assert [problem.rule for problem in check(events)] == ["early"]
    assert check(events, drift=0.05) == []
    assert [problem.rule for problem in check([GRANT, event("gone", 9.2, key="k")], drift=0.05)] == ["early"]


def test_nothing_is_late_before_the_cluster_was_healthy():
    events = [GRANT, event("present", 60, key="k")]
    assert [problem.rule for problem in check(events)] == ["late"]
    assert check(events, healthy_from=55 * SECOND) == []
    assert [problem.rule for problem in check(events, healthy_from=49 * SECOND)] == ["late"]
