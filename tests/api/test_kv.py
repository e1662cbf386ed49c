"""One key over HTTP: values, versions, conditions and headers as the contract names them."""

from __future__ import annotations

import asyncio
import re

import pytest

from kvnode.kv.requests import Put
from tests.api.fake import FakeAdmin, FakeKV
from tests.api.raw import Door


async def test_put_then_get_is_what_the_readme_shows(door: Door) -> None:
    put = await door.ask("PUT", "/v1/kv/greeting", b"hello")
    assert (put.status, put.body) == (200, b'{"revision": 2, "created": true}\n')
    got = await door.ask("GET", "/v1/kv/greeting")
    assert (got.status, got.body) == (200, b"hello")
    assert got.headers["content-type"] == "application/octet-stream"
    assert got.headers["x-content-type-options"] == "nosniff"
    assert got.headers["content-security-policy"].startswith("sandbox")


async def test_every_header_of_the_ground_rules(door: Door) -> None:
    await door.ask("PUT", "/v1/kv/k", b"1")
    put = await door.ask("PUT", "/v1/kv/k", b"2")
    for reply in (put, await door.ask("GET", "/v1/kv/k"), await door.ask("HEAD", "/v1/kv/k")):
        headers = reply.headers
        assert headers["kv-node"] == "1"
        assert headers["kv-term"] == "3"
        assert headers["kv-revision"] == "3"
        assert headers["etag"] == '"3"'
        assert headers["kv-mod-revision"] == "3"
        assert headers["kv-create-revision"] == "2"
        assert headers["kv-version"] == "2"
        assert headers["kv-time"] == "2026-11-22T10:00:00.003Z.0000"
        assert re.fullmatch(r"[\w-]{24}", headers["kv-token"])
        assert "x-request-id" in headers
        assert "kv-lease" not in headers


async def test_head_has_the_headers_of_get_and_no_body(door: Door) -> None:
    await door.ask("PUT", "/v1/kv/k", b"value")
    got = await door.ask("GET", "/v1/kv/k", X_Request_Id="r")
    head = await door.ask("HEAD", "/v1/kv/k", X_Request_Id="r")
    assert head.body == b""
    assert head.headers.keys() == got.headers.keys()
    assert head.headers["content-length"] == "5"
    missing = await door.ask("HEAD", "/v1/kv/none")
    assert (missing.status, missing.body) == (404, b"")


async def test_meta_answers_a_json_item(door: Door) -> None:
    await door.ask("PUT", "/v1/kv/k", b"\xff\x00")
    got = await door.ask("GET", "/v1/kv/k?meta=1")
    assert got.json == {
        "key": "k",
        "value": "/wA=",
        "encoding": "base64",
        "create_revision": 2,
        "mod_revision": 2,
        "version": 1,
        "lease": 0,
        "time": "2026-11-22T10:00:00.002Z.0000",
    }


async def test_prev_shows_what_stood_there(door: Door) -> None:
    first = await door.ask("PUT", "/v1/kv/k?prev=1", b"a")
    assert first.json == {"revision": 2, "created": True, "prev": None}
    second = await door.ask("PUT", "/v1/kv/k?prev=1", b"b")
    assert second.json["prev"]["value"] == "a"
    gone = await door.ask("DELETE", "/v1/kv/k?prev=1")
    assert (gone.json["deleted"], gone.json["prev"]["value"]) == (1, "b")
    again = await door.ask("DELETE", "/v1/kv/k?prev=1")
    assert again.json == {"revision": 4, "deleted": 0, "prev": None}
    assert (await door.ask("DELETE", "/v1/kv/k")).body == b'{"revision": 4, "deleted": 0}\n'


@pytest.mark.parametrize(
    ("target", "key"),
    [
        ("/v1/kv/app/db/url", b"app/db/url"),
        ("/v1/kv/a%2Fb", b"a/b"),
        ("/v1/kv//", b"/"),
        ("/v1/kv/a//b/", b"a//b/"),
        ("/v1/kv/../x/./y", b"../x/./y"),
        ("/v1/kv/%FF%fe", b"\xff\xfe"),
        ("/v1/kv/%00", b"\x00"),
        ("/v1/kv/%0A%0D", b"\n\r"),
        ("/v1/kv/a+b", b"a+b"),
        ("/v1/kv/%2B", b"+"),
        ("/v1/kv/%25zz", b"%zz"),
        ("/v1/kv/%23%3F", b"#?"),
        ("/v1/kv/k?", b"k"),
        ("/v1/kv/%C3%A9", "é".encode()),
    ],
)
async def test_keys_are_the_bytes_of_the_raw_path(door: Door, kv: FakeKV, target: str, key: bytes) -> None:
    assert (await door.ask("PUT", target, b"v")).status == 200
    request, _ = kv.seen[-1]
    assert isinstance(request, Put)
    assert request.key == key


async def test_raw_bytes_in_the_path_are_the_same_key(door: Door, kv: FakeKV) -> None:
    await door.send(b"PUT /v1/kv/\xc3\xa9 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\nv")
    assert not kv.seen or kv.seen[-1][0].key == "é".encode()  # taken as bytes or refused, never misread


async def test_values_are_any_bytes_up_to_the_limit(door: Door) -> None:
    value = bytes(range(256)) * 4096
    assert (await door.ask("PUT", "/v1/kv/big", value)).status == 200
    assert (await door.ask("GET", "/v1/kv/big")).body == value
    assert (await door.ask("PUT", "/v1/kv/empty", b"")).status == 200
    assert (await door.ask("GET", "/v1/kv/empty")).body == b""


async def test_chunked_bodies_are_taken(door: Door, kv: FakeKV) -> None:
    head = b"PUT /v1/kv/k HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    answer = await door.send(head, b"3\r\nabc\r\n", b"2\r\nde\r\n0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert kv.seen[-1][0].value == b"abcde"


@pytest.mark.parametrize(
    ("query", "headers", "status"),
    [
        ("?if_rev=2", {}, 200),
        ("?if_rev=3", {}, 412),
        ("?if_rev=0", {}, 412),
        ("", {"If_Match": '"2"'}, 200),
        ("", {"If_Match": '"3"'}, 412),
        ("", {"If_Match": "*"}, 200),
        ("", {"If_None_Match": "*"}, 412),
        ("", {"If_Match": 'W/"2"'}, 400),
        ("", {"If_Match": "2"}, 400),
        ("", {"If_Match": '"0"'}, 400),
        ("", {"If_Match": '"1", "2"'}, 400),
        ("", {"If_None_Match": '"2"'}, 400),
        ("?if_rev=2", {"If_Match": '"2"'}, 400),
        ("?if_rev=-1", {}, 400),
        ("?if_rev=9223372036854775808", {}, 400),
        ("?if_rev=%D9%A2", {}, 400),
    ],
)
@pytest.mark.parametrize("method", ["PUT", "DELETE"])
async def test_conditional_writes(
    door: Door, kv: FakeKV, method: str, query: str, headers: dict[str, str], status: int
) -> None:
    await door.ask("PUT", "/v1/kv/k", b"v")
    reply = await door.ask(method, f"/v1/kv/k{query}", b"w" if method == "PUT" else None, **headers)
    assert reply.status == status
    if status == 412:
        assert reply.code == "compare_failed"
        assert reply.json["error"]["detail"]["revision"] == 2
    assert (kv.revision == 2) == (status != 200)
    assert reply.outcome == (None if status == 200 else "not-applied")


async def test_if_match_star_needs_the_key_and_if_rev_zero_needs_its_absence(door: Door) -> None:
    assert (await door.ask("PUT", "/v1/kv/k", b"v", If_Match="*")).status == 412
    assert (await door.ask("PUT", "/v1/kv/k?if_rev=0", b"v")).status == 200
    assert (await door.ask("PUT", "/v1/kv/l", b"v", If_None_Match="*")).status == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"If_None_Match": '"2"'}, 304),
        ({"If_None_Match": 'W/"2"'}, 304),
        ({"If_None_Match": '"1", "2"'}, 304),
        ({"If_None_Match": "*"}, 304),
        ({"If_None_Match": '"3"'}, 200),
        ({"If_None_Match": "2"}, 400),
        ({"If_Match": '"2"'}, 200),
        ({"If_Match": '"3"'}, 412),
    ],
)
async def test_conditional_reads(door: Door, headers: dict[str, str], status: int) -> None:
    await door.ask("PUT", "/v1/kv/k", b"v")
    reply = await door.ask("GET", "/v1/kv/k", **headers)
    assert reply.status == status
    if status == 304:
        assert reply.body == b""
        assert reply.headers["etag"] == '"2"'
        assert "content-length" not in reply.headers


async def test_every_stale_answer_says_how_stale(door: Door) -> None:
    await door.ask("PUT", "/v1/kv/k", b"v")
    tag = (await door.ask("GET", "/v1/kv/k")).headers["etag"]
    found = await door.ask("GET", "/v1/kv/k?consistency=stale")
    missing = await door.ask("GET", "/v1/kv/none?consistency=stale")
    known = await door.ask("GET", "/v1/kv/k?consistency=stale", If_None_Match=tag)
    unwanted = await door.ask("GET", "/v1/kv/k?consistency=stale", If_Match='"99"')
    assert [reply.status for reply in (found, missing, known, unwanted)] == [200, 404, 304, 412]
    for reply in (found, missing, known, unwanted):
        assert int(reply.headers["kv-staleness-ms"]) >= 0, reply.status


@pytest.mark.parametrize("path", ["/v1/kv/k?", "/v1/kv?prefix=&", "/v1/history/k?"])
async def test_bounded_and_causal_reads_say_what_they_want(door: Door, kv: FakeKV, path: str) -> None:
    written = await door.ask("PUT", "/v1/kv/k", b"v")
    bounded = await door.ask("GET", f"{path}consistency=bounded&max_staleness=500ms")
    options = kv.seen[-1][1]
    assert (bounded.status, options.consistency, options.max_staleness_ms) == (200, "bounded", 500)
    assert int(bounded.headers["kv-staleness-ms"]) >= 0
    causal = await door.ask("GET", f"{path}consistency=causal", Kv_Token=written.headers["kv-token"])
    options = kv.seen[-1][1]
    assert (causal.status, options.consistency, options.least_revision) == (200, "causal", 2)
    assert "kv-staleness-ms" not in causal.headers


async def test_staleness_is_the_least_that_is_known(door: Door, admin: FakeAdmin) -> None:
    await door.ask("PUT", "/v1/kv/k", b"v")
    admin.staleness = 7
    found = await door.ask("GET", "/v1/kv/k?consistency=stale")
    assert int(found.headers["kv-staleness-ms"]) <= 7


@pytest.mark.parametrize(
    ("query", "token"),
    [
        ("consistency=bounded", ""),
        ("max_staleness=1s", ""),
        ("consistency=stale&max_staleness=1s", ""),
        ("consistency=bounded&max_staleness=0ms", ""),
        ("consistency=bounded&max_staleness=61m", ""),
        ("consistency=bounded&max_staleness=fast", ""),
        ("consistency=causal", ""),
        ("consistency=causal", "AAAA"),
        ("consistency=Causal", ""),
    ],
)
async def test_half_said_consistencies_are_refused(door: Door, kv: FakeKV, query: str, token: str) -> None:
    headers = {"Kv_Token": token} if token else {}
    answer = await door.ask("GET", f"/v1/kv/k?{query}", **headers)
    assert answer.status == 400, answer.body
    assert kv.seen == []


async def test_reads_choose_consistency_and_deadline(door: Door, kv: FakeKV) -> None:
    await door.ask("PUT", "/v1/kv/k", b"v")
    stale = await door.ask("GET", "/v1/kv/k?consistency=stale&timeout=750ms")
    assert int(stale.headers["kv-staleness-ms"]) >= 0
    options = kv.seen[-1][1]
    assert (options.consistency, options.timeout_ms, options.forward) == ("stale", 750, True)
    plain = await door.ask("GET", "/v1/kv/k")
    assert "kv-staleness-ms" not in plain.headers
    assert kv.seen[-1][1].timeout_ms == 5_000


@pytest.mark.parametrize(
    ("text", "timeout_ms"), [("1ms", 1), ("30s", 30_000), ("1m", 60_000), ("60s", 60_000), ("007s", 7_000)]
)
async def test_durations(door: Door, kv: FakeKV, text: str, timeout_ms: int) -> None:
    await door.ask("PUT", f"/v1/kv/k?timeout={text}", b"v")
    assert kv.seen[-1][1].timeout_ms == timeout_ms


@pytest.mark.parametrize("text", ["61s", "1h", "0s", "5", "1.5s", "-1s", "5 s", "", "s", "1d", "99999999999999s"])
async def test_durations_that_are_none(door: Door, kv: FakeKV, text: str) -> None:
    reply = await door.ask("GET", f"/v1/kv/k?timeout={text.replace(' ', '%20')}")
    assert (reply.status, reply.code) == (400, "bad_request")
    assert not kv.seen


@pytest.mark.parametrize("given", ["a", "deploy-7.1", "x" * 64, "4bf92f3577b34da6/00f0"])
async def test_request_ids_are_echoed(door: Door, kv: FakeKV, given: str) -> None:
    reply = await door.ask("PUT", "/v1/kv/k", b"v", X_Request_Id=given)
    assert reply.headers["x-request-id"] == given
    assert kv.seen[-1][1].request_id == given


@pytest.mark.parametrize("given", ["", "x" * 65, "two words", "caf\u00e9", "<script>", '"'])
async def test_other_request_ids_are_replaced(door: Door, given: str) -> None:
    reply = await door.ask("GET", "/v1/kv/k", X_Request_Id=given)
    assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]+", reply.headers["x-request-id"])


async def test_expect_100_continue(door: Door, kv: FakeKV) -> None:
    head = b"PUT /v1/kv/k HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n"
    host, port = door.address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(head + b"Expect: 100-continue\r\n\r\n")
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"value")
    assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    writer.close()
    assert kv.seen[-1][0].value == b"value"
    too_big = head.replace(b"Length: 5", b"Length: 99999999") + b"Expect: 100-continue\r\n\r\n"
    assert (await door.send(too_big)).startswith(b"HTTP/1.1 413 ")
    assert (await door.send(head + b"Expect: miracles\r\n\r\n")).startswith(b"HTTP/1.1 400 ")


async def test_a_write_goes_on_when_its_client_leaves(door: Door, kv: FakeKV) -> None:
    """F88: a proposal, once handed over, completes; nothing of it is cancelled."""
    kv.gate = asyncio.Event()
    await door.send(b"PUT /v1/kv/k HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\nv")
    assert kv.revision == 2
    kv.gate.set()
    assert (await door.ask("GET", "/v1/kv/k")).body == b"v"


async def test_a_missing_key_is_missing_at_the_revision_that_was_read(door: Door, kv: FakeKV) -> None:
    """Kv-Revision is what the answer reflects, not what the node has applied since."""
    kv.gate = asyncio.Event()
    asking = asyncio.create_task(door.ask("GET", "/v1/kv/none"))
    while not kv.seen:
        await asyncio.sleep(0)
    kv.revision = 9
    kv.gate.set()
    assert (await asking).headers["kv-revision"] == "1"
    kv.states[9] = {}
