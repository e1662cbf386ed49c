"""The error table is whole, and every failure says truthfully whether the write may have happened."""

from __future__ import annotations

import pytest

from kvnode import errors
from kvnode.api.app import App
from kvnode.api.call import Call
from kvnode.api.errors import STATUS
from tests.api.fake import FakeKV
from tests.api.raw import Door


def test_every_error_has_a_status_and_every_status_an_error() -> None:
    assert STATUS.keys() == errors.by_code().keys()


def test_the_statuses_the_contract_names() -> None:
    by_status = {
        400: {
            "bad_request",
            "bad_key",
            "bad_encoding",
            "bad_context",
            "unknown_parameter",
            "future_revision",
            "clock_drift",
            "snapshot_refused",
            "rejected",
        },
        403: {"permission_denied"},
        404: {"not_found", "key_not_found", "lease_not_found", "member_not_found"},
        409: {"conflict", "lock_held", "sequence_too_old"},
        410: {"compacted", "session_expired"},
        412: {"compare_failed", "fenced"},
        413: {"too_large"},
        429: {"overloaded"},
        503: {"no_leader", "not_ready", "stale_bound_unmet", "not_applied", "try_again"},
        504: {"timeout", "leadership_lost", "connection_lost", "unknown"},
        507: {"no_space"},
    }
    for status, codes in by_status.items():
        assert {code for code, found in STATUS.items() if found == status} == codes


@pytest.mark.parametrize("code", sorted(errors.by_code()))
async def test_outcome_of_every_error(door: Door, kv: FakeKV, code: str) -> None:
    """429, 503 and 507 are always not-applied; what a bug or a dying disk leaves behind is unknown."""
    kv.fail = errors.by_code()[code]("why")
    certain = issubclass(type(kv.fail), errors.Rejected | errors.TryAgain)
    wrote = await door.ask("PUT", "/v1/kv/k", b"v")
    assert wrote.status == STATUS[code]
    assert wrote.json["error"] == {"code": code, "message": "why", "detail": {}}
    assert wrote.outcome == wrote.json["outcome"] == ("not-applied" if certain else "unknown")
    if wrote.status in {429, 503, 507}:
        assert wrote.outcome == "not-applied"
    assert ("retry-after" in wrote.headers) == (wrote.status in {429, 503, 507})
    read = await door.ask("GET", "/v1/kv/k")
    assert (read.status, read.outcome, read.json["outcome"]) == (wrote.status, None, "not-applied")


async def test_a_bug_is_a_500_that_claims_nothing(door: Door, kv: FakeKV, caplog: pytest.LogCaptureFixture) -> None:
    kv.fail = ZeroDivisionError("secret of the house")
    reply = await door.ask("PUT", "/v1/kv/k", b"v", X_Request_Id="find-me")
    assert (reply.status, reply.code, reply.outcome) == (500, "internal", "unknown")
    assert b"secret" not in reply.body
    assert "find-me" in caplog.text


async def test_details_and_retry_after_are_passed_on(door: Door, kv: FakeKV) -> None:
    kv.fail = errors.Overloaded("full", retry_after_ms=2_500)
    assert (await door.ask("PUT", "/v1/kv/k", b"v")).headers["retry-after"] == "3"
    kv.fail = errors.Compacted("gone", compact_revision=17)
    assert (await door.ask("GET", "/v1/kv?prefix=")).json["error"]["detail"] == {"compact_revision": 17}
    kv.fail = errors.KeyNotFound("\ud800", name="\udfff", raw=b"\xff")
    assert (await door.ask("GET", "/v1/kv/k")).code == "key_not_found"


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
@pytest.mark.parametrize("address", ["http://127.0.0.1:7402", "http://127.0.0.1:7402/", "127.0.0.1:7402"])
async def test_no_forward_points_at_the_leader(door: Door, kv: FakeKV, method: str, address: str) -> None:
    kv.fail = errors.NoLeader("node 2 leads", leader_url=address)
    target = "/v1/kv/a%2Fb%FF?timeout=1s"
    reply = await door.ask(method, target, b"v" if method == "PUT" else None, Kv_No_Forward="1")
    assert reply.status == 307
    assert reply.headers["location"] == f"http://127.0.0.1:7402{target}"
    assert kv.seen[-1][1].forward is False
    assert reply.outcome == ("not-applied" if method in {"PUT", "DELETE"} else None)


async def test_without_no_forward_there_is_no_redirect(door: Door, kv: FakeKV) -> None:
    kv.fail = errors.NoLeader("searching", leader_url="http://127.0.0.1:7402")
    reply = await door.ask("PUT", "/v1/kv/k", b"v")
    assert (reply.status, "location" in reply.headers) == (503, False)
    kv.fail = errors.NoLeader("searching")
    assert (await door.ask("PUT", "/v1/kv/k", b"v", Kv_No_Forward="1")).status == 503
    kv.fail = None
    assert (await door.ask("PUT", "/v1/kv/k", b"v", Kv_No_Forward="yes")).code == "bad_request"


async def test_an_answer_that_cannot_be_made_claims_nothing(
    door: Door, app: App, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Call, "refuse", lambda self, error: 1 / 0)
    reply = await door.ask("PUT", "/v1/kv/k?nonsense=1", b"v")
    assert (reply.status, reply.code, reply.outcome) == (500, "internal", "unknown")
    assert "request.failed" in caplog.text
    assert app.malformed == 0
