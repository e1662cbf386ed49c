"""Sessions at the front door: headers become commands, and are refused wherever they cannot be kept."""

from __future__ import annotations

import pytest

from kvnode import errors
from kvnode.api.http.sessions import NAMING_HEADERS
from kvnode.kv.requests import Command, Delete, LeaseGrant, LeaseRevoke, Put, SessionEnd, SessionOpen, Txn
from tests.api.fake import FakeKV
from tests.api.raw import Door

NAMED = {"Kv_Session": "42", "Kv_Sequence": "7"}


async def test_a_session_is_opened_and_ended(door: Door, kv: FakeKV) -> None:
    reply = await door.ask("POST", "/v1/sessions?ttl=90s")
    assert (reply.status, reply.json) == (200, {"session": 42, "ttl_ms": 90_000})
    assert (await door.ask("POST", "/v1/sessions")).json["ttl_ms"] == 3_600_000
    assert (await door.ask("DELETE", "/v1/sessions/42")).json == {"session": 42, "ended": 1}
    assert [request for request, _ in kv.seen] == [
        SessionOpen(90_000),
        SessionOpen(3_600_000),
        SessionEnd(((42, 0),)),
    ]
    for target in ("/v1/sessions/", "/v1/sessions/x", "/v1/sessions/0", "/v1/sessions/1/2"):
        assert (await door.ask("DELETE", target)).status == 400
    assert (await door.ask("GET", "/v1/sessions/1")).status == 405
    assert (await door.ask("POST", "/v1/sessions?ttl=400d")).code == "bad_request"


async def test_every_write_can_be_named(door: Door, kv: FakeKV) -> None:
    await door.ask("PUT", "/v1/kv/k?if_rev=0", b"v", **NAMED, Kv_Acknowledged="6")
    await door.ask("DELETE", "/v1/kv/k", **NAMED)
    await door.ask("DELETE", "/v1/kv?prefix=k", **NAMED)
    await door.ask("POST", "/v1/txn", {"success": [{"delete": {"key": "k"}}]}, **NAMED)
    await door.ask("PUT", "/v1/kv/k?ttl=5s", b"v", **NAMED)
    await door.ask("POST", "/v1/leases?ttl=5s", **NAMED)
    await door.ask("DELETE", "/v1/leases/9", **NAMED)
    await door.ask("PUT", "/v1/kv/k", b"v", Idempotency_Key="order 17, \u00e9")
    await door.ask("PUT", "/v1/kv/k", b"v")
    assert [request for request, _ in kv.seen] == [
        Command(Put(b"k", b"v", if_revision=0), 42, 7, 6),
        Command(Delete(b"k"), 42, 7),
        Command(Delete(b"k", b"l"), 42, 7),
        Command(Txn((), (Delete(b"k"),)), 42, 7),
        Command(LeaseGrant(5_000, put=Put(b"k", b"v")), 42, 7),
        Command(LeaseGrant(5_000), 42, 7),
        Command(LeaseRevoke(9), 42, 7),
        Command(Put(b"k", b"v"), key="order 17, \u00e9".encode()),
        Put(b"k", b"v"),
    ]


@pytest.mark.parametrize("header", NAMING_HEADERS)
@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/v1/kv/k"),
        ("HEAD", "/v1/kv/k"),
        ("GET", "/v1/kv"),
        ("POST", "/v1/batch"),
        ("POST", "/v1/sessions"),
        ("POST", "/v1/admin/transfer"),
    ],
)
async def test_names_are_refused_where_no_answer_is_kept(
    door: Door, kv: FakeKV, method: str, target: str, header: str
) -> None:
    reply = await door.ask(method, target, **{header: "7"})
    assert reply.status == 400
    assert not kv.seen


@pytest.mark.parametrize(
    "headers",
    [
        {"Kv_Session": "42"},
        {"Kv_Sequence": "7"},
        {"Kv_Acknowledged": "7"},
        {**NAMED, "Idempotency_Key": "x"},
        {"Idempotency_Key": ""},
        {"Kv_Session": "0", "Kv_Sequence": "7"},
        {"Kv_Session": "42", "Kv_Sequence": "0"},
        {"Kv_Session": "42", "Kv_Sequence": "-1"},
        {"Kv_Session": "42", "Kv_Sequence": "seven"},
        {"Kv_Session": "42", "Kv_Sequence": str(1 << 63)},
        {**NAMED, "Kv_Acknowledged": "x"},
    ],
)
async def test_half_a_name_is_refused(door: Door, kv: FakeKV, headers: dict[str, str]) -> None:
    reply = await door.ask("PUT", "/v1/kv/k", b"v", **headers)
    assert (reply.status, reply.code, reply.outcome) == (400, "bad_request", "not-applied")
    assert not kv.seen


async def test_a_name_given_twice_is_refused(door: Door, kv: FakeKV) -> None:
    twice = b"PUT /v1/kv/k HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nKv-Session: 1\r\n"
    twice += b"Kv-Sequence: 1\r\nKv-Sequence: 2\r\n\r\nv"
    assert (await door.send(twice)).startswith(b"HTTP/1.1 400 ")
    assert not kv.seen


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.SequenceTooOld("gone"), 409),
        (errors.Conflict("another"), 409),
        (errors.SessionExpired("gone"), 410),
        (errors.Overloaded("full"), 429),
    ],
)
async def test_its_refusals_had_no_effect(door: Door, kv: FakeKV, error: errors.KvnodeError, status: int) -> None:
    kv.fail = error
    reply = await door.ask("PUT", "/v1/kv/k", b"v", **NAMED)
    assert (reply.status, reply.code, reply.outcome) == (status, error.code, "not-applied")
