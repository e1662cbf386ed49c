"""``/v1/ap`` over a fake plane: statuses, contexts, siblings, limits, and that no leader is needed."""

from __future__ import annotations

import pytest

from kvnode.api.http import eventual
from kvnode.errors import KvnodeError, NoLeader, NoSpace, NotReady, Overloaded, Timeout
from kvnode.kv.available import VALUE_BYTES_MAX
from tests.api.fake import FakeAdmin, FakeKV
from tests.api.fake_available import FakeAvailable
from tests.api.raw import Door


async def test_one_value_comes_back_as_it_went(door: Door) -> None:
    value = bytes(range(256))
    wrote = await door.ask("PUT", "/v1/ap/a/b%00", value)
    assert (wrote.status, wrote.body) == (204, b"")
    assert "content-length" not in wrote.headers
    read = await door.ask("GET", "/v1/ap/a%2Fb%00")
    assert (read.status, read.body) == (200, value)
    assert read.headers["content-type"] == "application/octet-stream"
    assert read.headers["kv-context"] == wrote.headers["kv-context"]
    assert read.headers["kv-time"] == wrote.headers["kv-time"] == "2026-11-22T10:00:00.001Z.0000"
    head = await door.ask("HEAD", "/v1/ap/a/b%00")
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", "256")
    assert head.headers["kv-context"] == read.headers["kv-context"]


async def test_siblings_and_their_end(door: Door) -> None:
    first = await door.ask("PUT", "/v1/ap/k", b"b")
    await door.ask("PUT", "/v1/ap/k", b"a\xff")
    both = await door.ask("GET", "/v1/ap/k")
    assert both.status == 300
    assert both.json == {
        "key": "k",
        "context": both.headers["kv-context"],
        "siblings": [
            {"value": "Yf8=", "encoding": "base64", "time": "2026-11-22T10:00:00.002Z.0000"},
            {"value": "b", "time": "2026-11-22T10:00:00.001Z.0000"},
        ],
    }
    stale = await door.ask("PUT", "/v1/ap/k", b"c", Kv_Context=first.headers["kv-context"])
    assert stale.status == 204
    assert [each["value"] for each in (await door.ask("GET", "/v1/ap/k")).json["siblings"]] == ["Yf8=", "c"]
    context = (await door.ask("HEAD", "/v1/ap/k")).headers["kv-context"]
    await door.ask("PUT", "/v1/ap/k", b"one", Kv_Context=context)
    assert (await door.ask("GET", "/v1/ap/k")).body == b"one"


async def test_a_deleted_key_has_a_context_to_write_with(door: Door) -> None:
    never = await door.ask("GET", "/v1/ap/k")
    assert (never.status, never.code) == (404, "key_not_found")
    assert "kv-context" not in never.headers
    await door.ask("PUT", "/v1/ap/k", b"v")
    gone = await door.ask("DELETE", "/v1/ap/k")
    assert gone.status == 204
    missing = await door.ask("GET", "/v1/ap/k")
    assert (missing.status, missing.headers["kv-context"]) == (404, gone.headers["kv-context"])
    assert (await door.ask("HEAD", "/v1/ap/k")).headers["kv-context"] == gone.headers["kv-context"]
    again = await door.ask("PUT", "/v1/ap/k", b"new", Kv_Context=missing.headers["kv-context"])
    assert again.status == 204
    assert (await door.ask("DELETE", "/v1/ap/none")).status == 204


async def test_a_delete_with_a_context_leaves_what_it_did_not_know(door: Door) -> None:
    seen = await door.ask("PUT", "/v1/ap/k", b"old")
    await door.ask("PUT", "/v1/ap/k", b"new")
    await door.ask("DELETE", "/v1/ap/k", Kv_Context=seen.headers["kv-context"])
    assert (await door.ask("GET", "/v1/ap/k")).body == b"new"


@pytest.mark.parametrize(("resolve", "value"), [("lww", b'["a"]'), ("max", b'["b"]'), ("union", b'["a", "b"]')])
async def test_resolved(door: Door, resolve: str, value: bytes) -> None:
    await door.ask("PUT", "/v1/ap/k", b'["b"]')
    await door.ask("PUT", "/v1/ap/k", b'["a"]')
    both = await door.ask("GET", "/v1/ap/k")
    one = await door.ask("GET", f"/v1/ap/k?resolve={resolve}")
    assert (one.status, one.body) == (200, value)
    assert one.headers["kv-context"] == both.headers["kv-context"], "a write of it ends the siblings"
    assert (await door.ask("GET", f"/v1/ap/none?resolve={resolve}")).status == 404
    item = (await door.ask("GET", f"/v1/ap/k?resolve={resolve}&meta=1")).json
    assert (item["value"], item["context"]) == (value.decode(), both.headers["kv-context"])
    assert "siblings" not in item


async def test_a_union_of_what_is_no_array(door: Door) -> None:
    await door.ask("PUT", "/v1/ap/k", b"x")
    refused = await door.ask("GET", "/v1/ap/k?resolve=union")
    assert (refused.status, refused.code) == (409, "conflict")


async def test_pages(door: Door, plane: FakeAvailable) -> None:
    for key in ("b%FF", "a", "b", "bb", "c"):
        await door.ask("PUT", f"/v1/ap/{key}", b"v")
    await door.ask("PUT", "/v1/ap/b", b"w")
    await door.ask("DELETE", "/v1/ap/bb")
    whole = (await door.ask("GET", "/v1/ap")).json
    assert (whole["more"], whole["cursor"]) == (False, None)
    assert [item["key"] for item in whole["items"]] == ["a", "b", "Yv8=", "c"]
    assert whole["items"][0]["value"] == "v"
    assert {each["value"] for each in whole["items"][1]["siblings"]} == {"v", "w"}
    assert whole["items"][2]["key_encoding"] == "base64"
    assert all(item["context"] for item in whole["items"])
    first = (await door.ask("GET", "/v1/ap?prefix=b&limit=1")).json
    assert (len(first["items"]), first["more"]) == (1, True)
    second = (await door.ask("GET", f"/v1/ap?prefix=b&limit=1&cursor={first['cursor']}")).json
    assert ([item["key"] for item in second["items"]], second["more"]) == (["Yv8="], False)
    foreign = await door.ask("GET", f"/v1/ap?prefix=c&cursor={first['cursor']}")
    assert (foreign.status, foreign.code) == (400, "bad_encoding")
    assert plane.asked[-1][:4] == ("list", b"b", b"b", 1)


async def test_a_page_ends_before_it_grows_too_large(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eventual, "PAGE_BYTES_MAX", 25)
    for key in "abc":
        await door.ask("PUT", f"/v1/ap/{key}", b"v" * 9)
    await door.ask("PUT", "/v1/ap/bb", b"v" * 100)
    found, cursor = [], ""
    for _ in range(4):
        page = (await door.ask("GET", f"/v1/ap?prefix={cursor}")).json
        found.append([item["key"] for item in page["items"]])
        if not page["more"]:
            break
        cursor = f"&cursor={page['cursor']}"
    assert found == [["a", "b"], ["bb"], ["c"]]


async def test_many_keys_on_a_page(door: Door) -> None:
    for n in range(600):
        await door.ask("PUT", f"/v1/ap/{n:04}", b"v")
    whole = (await door.ask("GET", "/v1/ap")).json
    assert [item["key"] for item in whole["items"]] == [f"{n:04}" for n in range(600)]
    assert (await door.ask("GET", "/v1/ap?prefix=none")).json == {"more": False, "cursor": None, "items": []}


async def test_limits(door: Door, plane: FakeAvailable) -> None:
    large = await door.ask("PUT", "/v1/ap/k", bytes(VALUE_BYTES_MAX + 1))
    assert (large.status, large.code, large.outcome) == (413, "too_large", "not-applied")
    assert (await door.ask("PUT", "/v1/ap/k", bytes(VALUE_BYTES_MAX))).status == 204
    long = await door.ask("PUT", f"/v1/ap/{'k' * 4_097}", b"v")
    assert (long.status, long.code) == (413, "too_large")
    for _ in range(31):
        assert (await door.ask("PUT", "/v1/ap/k", b"v")).status == 204
    beyond = await door.ask("PUT", "/v1/ap/k", b"v")
    assert (beyond.status, beyond.code, beyond.outcome) == (409, "conflict", "not-applied")
    context = beyond.json["error"]["detail"]["context"]
    assert (await door.ask("PUT", "/v1/ap/k", b"v", Kv_Context=context)).status == 204
    assert (await door.ask("GET", "/v1/ap/k")).status == 200
    asked = len(plane.asked)
    assert (await door.ask("GET", f"/v1/ap?prefix={'p' * 4_097}")).status == 413
    assert len(plane.asked) == asked


@pytest.mark.parametrize(
    ("method", "target", "headers", "code"),
    [
        ("GET", "/v1/ap/", {}, "bad_key"),
        ("GET", "/v1/ap/%zz", {}, "bad_encoding"),
        ("GET", "/v1/ap/k?resolve=newest", {}, "bad_request"),
        ("GET", "/v1/ap/k?consistency=stale", {}, "unknown_parameter"),
        ("GET", "/v1/ap?limit=0", {}, "bad_request"),
        ("GET", "/v1/ap?limit=10001", {}, "bad_request"),
        ("GET", "/v1/ap?cursor=x", {}, "bad_encoding"),
        ("PUT", "/v1/ap/k?if_rev=0", {}, "unknown_parameter"),
        ("PUT", "/v1/ap/k", {"If_None_Match": "*"}, "bad_request"),
        ("DELETE", "/v1/ap/k", {"If_Match": "*"}, "bad_request"),
        ("PUT", "/v1/ap/k", {"Idempotency_Key": "x"}, "bad_request"),
        ("PUT", "/v1/ap/k", {"Kv_Context": "###"}, "bad_encoding"),
        ("PUT", "/v1/ap/k", {"Kv_Context": "OTk5"}, "bad_context"),
        ("DELETE", "/v1/ap/k", {"Kv_Context": "OTk5"}, "bad_context"),
    ],
)
async def test_bad_requests(door: Door, method: str, target: str, headers: dict[str, str], code: str) -> None:
    refused = await door.ask(method, target, **headers)
    assert (refused.status, refused.code) == (400, code)
    assert refused.outcome == (None if method == "GET" else "not-applied")


async def test_one_context_and_no_more(door: Door) -> None:
    twice = await door.send(
        b"PUT /v1/ap/k HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n",
        b"Kv-Context: MQ==\r\nKv-Context: MQ==\r\n\r\nv",
    )
    assert b"400" in twice.partition(b"\r\n")[0]
    empty = await door.ask("PUT", "/v1/ap/k", b"v", Kv_Context="")
    assert empty.status == 204


async def test_no_leader_is_needed(door: Door, kv: FakeKV, admin: FakeAdmin) -> None:
    kv.fail = NoLeader("nobody leads")
    admin.ready = False
    assert (await door.ask("GET", "/v1/kv/k")).status == 503
    assert (await door.ask("PUT", "/v1/ap/k", b"v")).status == 204
    assert (await door.ask("GET", "/v1/ap/k")).status == 200
    assert (await door.ask("GET", "/v1/ap")).status == 200
    assert (await door.ask("GET", "/v1/members")).status == 200
    assert (await door.ask("GET", "/v1/events")).status == 200
    assert (await door.ask("POST", "/v1/events", b"{}")).status == 201


@pytest.mark.parametrize(
    ("error", "status", "outcome"),
    [
        (NotReady("the store of this plane is not open yet"), 503, "not-applied"),
        (Overloaded("too much at once", retry_after_ms=1), 429, "not-applied"),
        (NoSpace("the disk is full"), 507, "not-applied"),
        (Timeout("not durable in time"), 504, "unknown"),
    ],
)
async def test_failures_tell_the_outcome(
    door: Door, plane: FakeAvailable, error: KvnodeError, status: int, outcome: str
) -> None:
    plane.fail = error
    for method, path, body in [("PUT", "/v1/ap/k", b"v"), ("DELETE", "/v1/ap/k", None), ("POST", "/v1/events", b"{}")]:
        refused = await door.ask(method, path, body)
        assert (refused.status, refused.code, refused.outcome) == (status, error.code, outcome)
    read = await door.ask("GET", "/v1/ap/k")
    assert (read.status, read.outcome) == (status, None)
