"""Transactions and batches: every field, every refusal, and that a refusal reaches no store."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from kvnode.api.http.operations import items_max
from kvnode.config import LimitsSection
from kvnode.errors import CompareFailed, Overloaded, Timeout
from kvnode.kv.keys import TO_THE_END
from kvnode.kv.requests import Compare, Delete, Put, Range, Txn
from tests.api.fake import FakeKV
from tests.api.raw import Door

PUT_K = {"put": {"key": "k", "value": "v"}}


async def test_a_transaction_runs_one_branch(door: Door) -> None:
    body = {
        "compare": [{"key": "k", "target": "exists", "op": "=", "value": False}],
        "success": [PUT_K, {"get": {"key": "k"}}],
        "failure": [{"get": {"prefix": "k"}}, {"delete": {"key": "k", "prev": True}}],
    }
    first = await door.ask("POST", "/v1/txn", body)
    assert first.json["revision"] == 2
    assert first.json["succeeded"] is True
    put, got = first.json["results"]
    assert put == {
        "revision": 2,
        "created": True,
        "create_revision": 2,
        "version": 1,
        "time": "2026-11-22T10:00:00.002Z.0000",
    }
    assert (got["count"], got["more"], got["items"][0]["value"]) == (1, False, "v")
    second = await door.ask("POST", "/v1/txn", body)
    assert second.json["succeeded"] is False
    assert second.json["results"][1] == {"revision": 3, "deleted": 1, "prev": got["items"][0]}
    assert "kv-outcome" not in second.headers


async def test_every_field_reaches_the_request(door: Door, kv: FakeKV) -> None:
    body = {
        "compare": [
            {
                "key": "AA==",
                "key_encoding": "base64",
                "target": "value",
                "op": "!=",
                "value": "/w==",
                "encoding": "base64",
            },
            {"key": "k", "target": "version", "op": "<", "value": 3},
            {"key": "k", "target": "create_revision", "op": ">", "value": 0},
            {"key": "k", "target": "mod_revision", "value": 0},
            {"key": "k", "target": "lease", "op": "=", "value": 0},
            {"key": "k", "target": "exists"},
        ],
        "success": [
            {"put": {"key": "a", "value": "", "prev": True}},
            {"get": {"prefix": "/w==", "key_encoding": "base64", "limit": 5, "order": "desc", "keys_only": True}},
            {"get": {"start": "a", "end": "b", "count_only": True}},
            {"get": {"start": "a"}},
            {"delete": {"prefix": "x", "prev": True}},
        ],
    }
    assert (await door.ask("POST", "/v1/txn", body)).status == 200
    assert kv.seen[-1][0] == Txn(
        (
            Compare(b"\x00", "value", "!=", b"\xff"),
            Compare(b"k", "version", "<", 3),
            Compare(b"k", "create_revision", ">", 0),
            Compare(b"k", "mod_revision", "=", 0),
            Compare(b"k", "lease", "=", 0),
            Compare(b"k", "exists", "=", 1),
        ),
        (
            Put(b"a", b"", return_previous=True),
            Range(b"\xff", TO_THE_END, limit=5, descending=True, keys_only=True),
            Range(b"a", b"b", limit=1000, count_only=True),
            Range(b"a", TO_THE_END, limit=1000),
            Delete(b"x", b"y", return_previous=True),
        ),
    )


BAD_TXN: list[tuple[Any, int, str]] = [
    (b"", 400, "bad_request"),
    (b"null", 400, "bad_request"),
    (b"[]", 400, "bad_request"),
    (b"{", 400, "bad_request"),
    (b'{"success": []}x', 400, "bad_request"),
    (b"\xef\xbb\xbf{}", 400, "bad_request"),
    ('{"success": []}'.encode("utf-16"), 400, "bad_encoding"),
    ('{"success": []}'.encode("utf-16-le"), 400, "bad_request"),
    (b'{"success": ["\xff"]}', 400, "bad_encoding"),
    (b'{"success": [], "success": []}', 400, "bad_request"),
    (b'{"success": [{"put": {"key": "a", "key": "b", "value": ""}}]}', 400, "bad_request"),
    (b'{"compare": [{"key": "k", "target": "version", "op": "=", "value": NaN}]}', 400, "bad_request"),
    (b'{"compare": [{"key": "k", "target": "version", "op": "=", "value": Infinity}]}', 400, "bad_request"),
    (b'{"compare": [{"key": "k", "target": "version", "op": "=", "value": -Infinity}]}', 400, "bad_request"),
    (b'{"compare": [{"key": "k", "target": "version", "op": "=", "value": 1.0}]}', 400, "bad_request"),
    (b'{"compare": [{"key": "k", "target": "version", "op": "=", "value": 1e3}]}', 400, "bad_request"),
    (b'{"compare": [{"key": "k", "target": "version", "op": "=", "value": true}]}', 400, "bad_request"),
    (b'{"compare": [{"key": "k", "target": "version", "op": "=", "value": -1}]}', 400, "bad_request"),
    (b'{"compare": [{"key": "k", "target": "version", "op": "=", "value": 9223372036854775808}]}', 400, "bad_request"),
    (b'{"compare": [{"key": "k", "target": "version", "op": "=", "value": ' + b"9" * 5000 + b"}]}", 400, "bad_request"),
    (b'{"success": [{"put": {"key": "\\ud800", "value": ""}}]}', 400, "bad_encoding"),
    (b'{"success": [{"put": {"key": "k", "value": "\\udc00"}}]}', 400, "bad_encoding"),
    (b'{"\\ud800": 1}', 400, "unknown_parameter"),
    (b"[" * 33 + b"]" * 33, 400, "bad_request"),
    (b'{"success": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400, "bad_request"),
    (b'{"success": [' + b"{}," * 50_000 + b"{}]}", 413, "too_large"),
    (b'"' + b'\\"' * 400_000, 400, "bad_request"),
    ({"succes": []}, 400, "unknown_parameter"),
    ({"success": {}}, 400, "bad_request"),
    ({"success": [[]]}, 400, "bad_request"),
    ({"success": [{}]}, 400, "bad_request"),
    ({"success": [{"put": {"key": "k", "value": "v"}, "get": {"key": "k"}}]}, 400, "bad_request"),
    ({"success": [{"patch": {}}]}, 400, "unknown_parameter"),
    ({"success": [{"put": None}]}, 400, "bad_request"),
    ({"success": [{"put": {"key": "k"}}]}, 400, "bad_request"),
    ({"success": [{"put": {"value": "v"}}]}, 400, "bad_request"),
    ({"success": [{"put": {"key": "", "value": "v"}}]}, 400, "bad_key"),
    ({"success": [{"put": {"key": "k" * 4097, "value": "v"}}]}, 413, "too_large"),
    ({"success": [{"put": {"key": "k", "value": "v" * ((1 << 20) + 1)}}]}, 413, "too_large"),
    ({"success": [{"put": {"key": "k", "value": 1}}]}, 400, "bad_request"),
    ({"success": [{"put": {"key": 1, "value": "v"}}]}, 400, "bad_request"),
    ({"success": [{"put": {"key": "k", "value": "v", "prev": 1}}]}, 400, "bad_request"),
    ({"success": [{"put": {"key": "k", "value": "v", "lease": 0}}]}, 400, "bad_request"),
    ({"success": [{"put": {"key": "k", "value": "v", "lease": "1"}}]}, 400, "bad_request"),
    ({"success": [{"put": {"key": "k", "value": "v", "ttl_ms": 1}}]}, 400, "unknown_parameter"),
    ({"success": [{"put": {"key": "k", "value": "v", "if_rev": 1}}]}, 400, "unknown_parameter"),
    ({"success": [{"put": {"key": "k", "value": "Q", "encoding": "base64"}}]}, 400, "bad_encoding"),
    ({"success": [{"put": {"key": "k", "value": "QR==", "encoding": "base64"}}]}, 400, "bad_encoding"),
    ({"success": [{"put": {"key": "k", "value": "Q Q==", "encoding": "base64"}}]}, 400, "bad_encoding"),
    ({"success": [{"put": {"key": "k", "value": "_w==", "encoding": "base64"}}]}, 400, "bad_encoding"),
    ({"success": [{"put": {"key": "k", "value": "QQ==\n", "encoding": "base64"}}]}, 400, "bad_encoding"),
    ({"success": [{"put": {"key": "k", "value": "é", "encoding": "base64"}}]}, 400, "bad_encoding"),
    ({"success": [{"put": {"key": "k", "value": "v", "encoding": "latin-1"}}]}, 400, "bad_encoding"),
    ({"success": [{"put": {"key": "", "key_encoding": "base64", "value": "v"}}]}, 400, "bad_key"),
    ({"success": [{"get": {}}]}, 400, "bad_request"),
    ({"success": [{"get": {"key": "k", "prefix": "k"}}]}, 400, "bad_request"),
    ({"success": [{"get": {"prefix": "k", "end": "k"}}]}, 400, "bad_request"),
    ({"success": [{"get": {"start": "k", "end": ""}}]}, 400, "bad_request"),
    ({"success": [{"get": {"prefix": "k", "limit": 0}}]}, 400, "bad_request"),
    ({"success": [{"get": {"prefix": "k", "limit": 10_001}}]}, 400, "bad_request"),
    ({"success": [{"get": {"prefix": "k", "order": "up"}}]}, 400, "bad_request"),
    ({"success": [{"get": {"prefix": "k", "at_rev": 2}}]}, 400, "unknown_parameter"),
    ({"compare": [{"key": "k", "target": "value", "op": "=="}]}, 400, "bad_request"),
    ({"compare": [{"key": "k", "target": "size", "op": "=", "value": 1}]}, 400, "bad_request"),
    ({"compare": [{"key": "k", "target": "value", "op": "="}]}, 400, "bad_request"),
    ({"compare": [{"key": "k", "target": "value", "op": "=", "value": 1}]}, 400, "bad_request"),
    ({"compare": [{"key": "k", "target": "version", "op": "=", "value": 1, "encoding": "utf-8"}]}, 400, "bad_request"),
    ({"compare": [{"key": "k", "target": "version", "op": "="}]}, 400, "bad_request"),
    ({"compare": [{"key": "k", "target": "exists", "op": "<", "value": True}]}, 400, "bad_request"),
    ({"compare": [{"key": "k", "target": "exists", "op": "=", "value": 1}]}, 400, "bad_request"),
    ({"compare": [{"key": "k", "op": "=", "value": 1}]}, 400, "bad_request"),
    ({"success": [PUT_K] * 129}, 413, "too_large"),
    ({"failure": [PUT_K] * 129}, 413, "too_large"),
    ({"compare": [{"key": "k", "target": "exists"}] * 129}, 413, "too_large"),
]


@pytest.mark.parametrize(("body", "status", "code"), BAD_TXN, ids=range(len(BAD_TXN)))
async def test_bad_transactions_are_refused(door: Door, kv: FakeKV, body: Any, status: int, code: str) -> None:
    refused = await door.ask("POST", "/v1/txn", body)
    assert (refused.status, refused.code) == (status, code), refused.body[:300]
    assert refused.outcome == refused.json["outcome"] == "not-applied"
    assert not kv.seen


@pytest.mark.parametrize(
    "body",
    [
        {},
        {
            "success": [{"put": {"key": f"k{n}", "value": "v"}} for n in range(128)],
            "compare": [{"key": "k", "target": "exists"}],
        },
        {"success": [{"put": {"key": "k" * 4096, "value": "v" * (1 << 20)}}]},
        {"success": [{"put": {"key": '"[{\\', "value": "[[[[" * 1000}}]},
        {"success": [{"put": {"key": "\u0000é😀", "value": "x", "encoding": "utf-8"}}]},
    ],
)
async def test_transactions_at_their_limits_pass(door: Door, body: Any) -> None:
    reply = await door.ask("POST", "/v1/txn", json.dumps(body, ensure_ascii=False).encode())
    assert reply.status == 200, reply.body[:300]


async def test_a_transaction_that_only_reads_is_never_in_doubt(door: Door, kv: FakeKV) -> None:
    kv.fail = Timeout("no answer in time")
    reading = await door.ask("POST", "/v1/txn", {"success": [{"get": {"key": "k"}}]})
    assert (reading.status, reading.outcome) == (504, "not-applied")
    writing = await door.ask("POST", "/v1/txn", {"success": [], "failure": [PUT_K]})
    assert (writing.status, writing.outcome) == (504, "unknown")


async def test_a_batch_answers_each_operation(door: Door, kv: FakeKV) -> None:
    kv.fail_if = lambda request: Overloaded("full") if getattr(request, "key", b"") == b"full" else None
    body = [
        PUT_K,
        {"put": {"key": "k", "value": "w", "if_rev": 0}},
        {"put": {"key": "full", "value": "w"}},
        {"get": {"key": "k"}},
        {"get": {"key": "none"}},
        {"delete": {"key": "k", "if_rev": 2, "prev": True}},
        {"delete": {"prefix": "none/"}},
    ]
    reply = await door.ask("POST", "/v1/batch", body)
    assert reply.status == 200
    results = reply.json["results"]
    assert [result["status"] for result in results] == [200, 412, 429, 200, 200, 200, 200]
    assert results[0]["created"] is True
    assert (results[1]["error"]["code"], results[1]["outcome"]) == ("compare_failed", "not-applied")
    assert results[2]["error"]["code"] == "overloaded"
    assert (results[3]["items"][0]["value"], results[4]["items"]) == ("v", [])
    assert results[5] == {"status": 200, "revision": 3, "deleted": 1, "prev": results[3]["items"][0]}
    assert results[6]["deleted"] == 0


async def test_a_batch_is_handed_over_whole_and_in_order(door: Door, kv: FakeKV) -> None:
    kv.gate = asyncio.Event()
    body = [{"put": {"key": f"k{n}", "value": ""}} for n in range(1024)]
    asking = asyncio.create_task(door.ask("POST", "/v1/batch", body))
    while len(kv.seen) < 1024:
        await asyncio.sleep(0)
    assert [request.key for request, _ in kv.seen] == [f"k{n}".encode() for n in range(1024)]
    kv.gate.set()
    assert [result["revision"] for result in (await asking).json["results"]] == list(range(2, 1026))


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{}", 400, "bad_request"),
        ([PUT_K] * 1025, 413, "too_large"),
        ([{"txn": {}}], 400, "unknown_parameter"),
        ([PUT_K, {"put": {"key": "", "value": ""}}], 400, "bad_key"),
        ([{"delete": {"prefix": "k", "if_rev": 1}}], 400, "bad_request"),
    ],
)
async def test_bad_batches_are_refused_whole(door: Door, kv: FakeKV, body: Any, status: int, code: str) -> None:
    refused = await door.ask("POST", "/v1/batch", body)
    assert (refused.status, refused.code, refused.outcome) == (status, code, "not-applied")
    assert not kv.seen


async def test_a_batch_tells_doubt_from_certainty(door: Door, kv: FakeKV) -> None:
    kv.fail_if = lambda request: (
        Timeout("late") if isinstance(request, Put | Range) else CompareFailed("no", revision=1)
    )
    reply = await door.ask("POST", "/v1/batch", [PUT_K, {"get": {"key": "k"}}, {"delete": {"key": "k"}}])
    outcomes = [(result["status"], result["outcome"]) for result in reply.json["results"]]
    assert outcomes == [(504, "unknown"), (504, "not-applied"), (412, "not-applied")]


def test_no_body_within_its_limits_is_over_the_value_limit() -> None:
    """The bound that protects the parser must never bite a legal body."""
    limits = LimitsSection()
    fields_max = 9
    assert items_max(limits) > limits.batch_operations_max * (fields_max + 3)
    assert items_max(limits) > 3 * limits.txn_operations_max * (fields_max + 3)


async def test_a_get_in_a_batch_sees_the_puts_before_it_and_none_after_it(door: Door, kv: FakeKV) -> None:
    """The fake takes effect at once; the gate shows that the node is not asked for the read before the put is done."""
    kv.gate = asyncio.Event()
    get = {"get": {"key": "k"}}
    asking = asyncio.create_task(door.ask("POST", "/v1/batch", [get, get, PUT_K, PUT_K, get]))
    for wanted in (2, 4, 5):
        while len(kv.seen) < wanted:
            await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(kv.seen) == wanted
        kv.gate.set()
        kv.gate = asyncio.Event()
    kv.gate.set()
    results = (await asking).json["results"]
    assert [result.get("count") for result in results] == [0, 0, None, None, 1]
