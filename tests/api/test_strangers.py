"""What a tidy client never sends: limits, smuggling, rebinding, forgery, slow bodies, noise (F80–F84, F88)."""

from __future__ import annotations

import asyncio
import json
import random
import socket

import pytest

from kvnode.api import answer as answers
from kvnode.api.app import App, ClientServer, build_app
from kvnode.config import ClientSection, Config
from tests.api.fake import FakeAdmin, FakeKV
from tests.api.fake_available import FakeAvailable
from tests.api.raw import Door

HOST = b"Host: localhost\r\n"
PUT = b"PUT /v1/kv/k HTTP/1.1\r\n" + HOST


@pytest.mark.parametrize(
    ("method", "target", "status", "code"),
    [
        ("PUT", "/v1/kv/", 400, "bad_key"),
        ("GET", "/v1/kv/", 400, "bad_key"),
        ("HEAD", "/v1/kv/", 400, None),
        ("DELETE", "/v1/kv/", 400, "bad_key"),
        ("PUT", "/v1/kv/%zz", 400, "bad_encoding"),
        ("PUT", "/v1/kv/a%2", 400, "bad_encoding"),
        ("PUT", "/v1/kv/a%", 400, "bad_encoding"),
        ("GET", "/v1/kv?prefix=%g0", 400, "bad_encoding"),
        ("GET", "/v1/kv?prefix=%", 400, "bad_encoding"),
        ("PUT", "/v1/kv/" + "k" * 4097, 413, "too_large"),
        ("PUT", "/v1/kv/" + "%FF" * 4097, 413, "too_large"),
        ("GET", "/v1/kv?prefix=" + "k" * 4097, 413, "too_large"),
        ("PUT", "/v1/kv/k?lease=0", 400, "bad_request"),
        ("PUT", "/v1/kv/k?lease=1&ttl=30s", 400, "bad_request"),
        ("PUT", "/v1/kv/k?ttl=30", 400, "bad_request"),
        ("PUT", "/v1/kv/k?ttl=367d", 400, "bad_request"),
        ("POST", "/v1/leases", 400, "bad_request"),
        ("POST", "/v1/leases/x/keepalive", 400, "bad_request"),
        ("GET", "/v1/leases/0", 400, "bad_request"),
        ("POST", "/v1/leases/1", 405, "method_not_allowed"),
        ("POST", "/v1/locks/", 400, "bad_key"),
        ("POST", "/v1/locks/a?owner=b&value=c", 400, "unknown_parameter"),
        ("DELETE", "/v1/locks/a", 400, "bad_request"),
        ("DELETE", "/v1/elections/a?token=x", 400, "bad_request"),
        ("PUT", "/v1/kv/k?fence=a", 400, "bad_request"),
        ("PUT", "/v1/kv/k?meta=1", 400, "unknown_parameter"),
        ("GET", "/v1/kv/k?Meta=1", 400, "unknown_parameter"),
        ("GET", "/v1/kv/k?meta=1&meta=1", 400, "bad_request"),
        ("GET", "/v1/kv/k?meta=2", 400, "bad_request"),
        ("GET", "/v1/kv/k?=1", 400, "unknown_parameter"),
        ("POST", "/v1/txn?prev=1", 400, "unknown_parameter"),
        ("POST", "/v1/kv/k", 405, "method_not_allowed"),
        ("PATCH", "/v1/kv", 405, "method_not_allowed"),
        ("PUT", "/v1/status", 405, "method_not_allowed"),
        ("GET", "/v1/txn", 405, "method_not_allowed"),
        ("OPTIONS", "/v1/kv/k", 405, "method_not_allowed"),
        ("GET", "/", 404, "not_found"),
        ("GET", "/v1", 404, "not_found"),
        ("GET", "/v1/KV/k", 404, "not_found"),
        ("GET", "/v1/kvx", 404, "not_found"),
        ("GET", "//v1/kv/k", 404, "not_found"),
        ("GET", "/v1/%6bv/k", 404, "not_found"),
        ("GET", "/v1/watches?prefix=a", 404, "not_found"),
        ("GET", "/status/../v1/kv/k", 404, "not_found"),
        ("GET", "/v1/kv/none", 404, "key_not_found"),
    ],
)
async def test_the_callers_mistakes(
    door: Door, kv: FakeKV, method: str, target: str, status: int, code: str | None
) -> None:
    reply = await door.ask(method, target, b"v" if method == "PUT" else None)
    assert reply.status == status
    assert reply.headers["content-type"] == "application/json"
    if code is not None:
        assert reply.code == code
    if status == 405:
        assert reply.headers["allow"]
    if method not in {"GET", "HEAD"}:
        assert reply.outcome == reply.json["outcome"] == "not-applied"
    assert kv.revision == 1


async def test_sizes_at_their_limits_pass(door: Door) -> None:
    assert (await door.ask("PUT", "/v1/kv/" + "%FF" * 4096, b"v" * (1 << 20))).status == 200
    over = await door.ask("PUT", "/v1/kv/k", b"v" * ((1 << 20) + 1))
    assert (over.status, over.code, over.outcome) == (413, "too_large", "not-applied")
    assert over.json["error"]["detail"] == {"limit": 1 << 20}


async def test_a_chunked_body_is_counted_too(door: Door, kv: FakeKV) -> None:
    chunk = b"%x\r\n" % (1 << 19) + b"v" * (1 << 19) + b"\r\n"
    reply = await door.send(PUT + b"Transfer-Encoding: chunked\r\n\r\n", chunk, chunk, chunk)
    assert reply.startswith(b"HTTP/1.1 413 ")
    assert not kv.seen


async def test_a_slow_body_is_given_up(door: Door, kv: FakeKV) -> None:
    host, port = door.address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(PUT + b"Content-Length: 10\r\n\r\nv")
    answer = await reader.readuntil(b"\r\n\r\n")  # body_timeout_ms is 300 here
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"Connection: close" in answer
    writer.close()
    assert not kv.seen


async def test_calls_that_take_no_body_refuse_one(door: Door, kv: FakeKV) -> None:
    for method in ("GET", "DELETE"):
        assert (await door.ask(method, "/v1/kv/k", b"v")).code == "bad_request"
    assert not kv.seen


async def test_compressed_bodies_are_refused(door: Door, kv: FakeKV) -> None:
    for encoding in ("gzip", "deflate", "br", "identity"):
        reply = await door.ask("PUT", "/v1/kv/k", b"v", Content_Encoding=encoding)
        assert (reply.status, reply.code, reply.outcome) == (415, "unsupported_media_type", "not-applied")
    assert not kv.seen


SMUGGLED = [
    PUT + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nvv",
    PUT + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\nv",
    PUT + b"Content-Length: 1, 1\r\n\r\nv",
    PUT + b"Content-Length: +1\r\n\r\nv",
    PUT + b"Content-Length: -1\r\n\r\nv",
    PUT + b"Content-Length: 0x1\r\n\r\nv",
    PUT + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    PUT + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    PUT + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    PUT + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
    PUT + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    b"PUT /v1/kv/k HTTP/1.1\r\nContent-Length: 1\r\n\r\nv",
    b"PUT /v1/kv/k HTTP/1.1\r\n" + HOST + HOST + b"Content-Length: 1\r\n\r\nv",
    b"PUT http://localhost/v1/kv/k HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\n\r\nv",
    b"PUT v1/kv/k HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\n\r\nv",
    b"PUT * HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\n\r\nv",
    b"PUT /v1/kv/k#f HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\n\r\nv",
    b"CONNECT localhost:80 HTTP/1.1\r\n" + HOST + b"\r\n",
    b"PUT /v1/kv/k HTTP/9.9\r\n" + HOST + b"Content-Length: 1\r\n\r\nv",
    b"PUT /v1/kv/k\r\n\r\n",
    b"PUT /v1/kv/a b HTTP/1.1\r\n" + HOST + b"\r\n",
    PUT + b"X\x00Y: 1\r\nContent-Length: 1\r\n\r\nv",
    PUT + b"X: a\x00b\r\nContent-Length: 1\r\n\r\nv",
    PUT + b" folded: 1\r\nContent-Length: 1\r\n\r\nv",
    PUT + b"X: " + b"a" * 9000 + b"\r\nContent-Length: 1\r\n\r\nv",
    PUT + b"".join(b"X%d: 1\r\n" % n for n in range(80)) + b"Content-Length: 1\r\n\r\nv",
    b"PUT /v1/kv/" + b"k" * 40_000 + b" HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\n\r\nv",
    PUT + b"Upgrade: websocket\r\nConnection: Upgrade\r\nContent-Length: 1\r\n\r\nv",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"\x00" * 100 + b"\r\n\r\n",
]


@pytest.mark.parametrize("request_bytes", SMUGGLED, ids=range(len(SMUGGLED)))
async def test_ambiguous_requests_never_reach_the_store(
    door: Door, kv: FakeKV, request_bytes: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await door.send(request_bytes)
    assert answer.startswith(b"HTTP/1.1 4"), answer
    assert answer.count(b"HTTP/1.1 ") == 1, answer
    assert not kv.seen
    head, body = answer.split(b"\r\n\r\n", 1)
    assert b"Kv-Outcome: not-applied" in head
    assert json.loads(body)["outcome"] == "not-applied"
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("key_bytes", [4_097, 32_000, 40_000, 200_000])
@pytest.mark.parametrize("method", [b"PUT", b"GET"])
async def test_a_key_is_too_large_however_large_it_is(door: Door, kv: FakeKV, method: bytes, key_bytes: int) -> None:
    body = b"Content-Length: 1\r\n\r\nv" if method == b"PUT" else b"\r\n"
    answer = await door.send(method + b" /v1/kv/" + b"k" * key_bytes + b" HTTP/1.1\r\n" + HOST + body)
    assert answer.startswith(b"HTTP/1.1 413 "), answer
    assert b'"code":"too_large"' in answer
    assert not kv.seen


async def test_malformed_requests_make_one_line_not_many(
    door: Door, app: App, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(20):
        await door.send(b"\x00\r\n\r\n", eof=True)
    assert app.malformed == 20
    assert caplog.text.count("request.malformed") == 1


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:7401", "127.0.0.1:1", "[::1]:7401", "10.1.2.3", "kv.example:80"]
)
async def test_hosts_that_are_ours(door: Door, host: str) -> None:
    assert (await door.ask("GET", "/livez", Host=host)).status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "a@localhost", "", "1"]
)
async def test_other_hosts_are_refused(door: Door, kv: FakeKV, host: str) -> None:
    answer = await door.send(b"GET /v1/kv/k HTTP/1.1\r\nHost: " + host.encode() + b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert not kv.seen


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:8080"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
)
async def test_foreign_pages_change_nothing(door: Door, kv: FakeKV, headers: dict[str, str]) -> None:
    for method, target in (("PUT", "/v1/kv/k"), ("DELETE", "/v1/kv?prefix="), ("POST", "/v1/admin/transfer?to=2")):
        reply = await door.ask(method, target, **headers)
        assert (reply.status, reply.code, reply.outcome) == (403, "permission_denied", "not-applied")
    assert not kv.seen
    assert (await door.ask("GET", "/livez", **headers)).status == 200


async def test_a_page_of_our_own_may(door: Door) -> None:
    ours = {"Origin": f"http://{door.address}", "Sec_Fetch_Site": "same-origin"}
    assert (await door.ask("PUT", "/v1/kv/k", b"v", **ours)).status == 200


async def test_no_answer_grants_another_origin_anything(door: Door) -> None:
    reply = await door.ask("GET", "/v1/kv?prefix=", Origin="http://evil.example")
    assert not [name for name in reply.headers if name.startswith("access-control")]


async def test_method_overrides_are_refused(door: Door, kv: FakeKV) -> None:
    reply = await door.ask("POST", "/v1/txn", {}, X_HTTP_Method_Override="DELETE")
    assert reply.code == "bad_request"
    assert not kv.seen


async def test_pipelined_requests_are_answered_in_order(door: Door, kv: FakeKV) -> None:
    one = PUT + b"Content-Length: 1\r\nX-Request-Id: r%d\r\n\r\nv"
    answer = await door.send(b"".join(one % n for n in range(5)))
    assert answer.count(b"HTTP/1.1 200 OK") == 5
    assert [line for line in answer.split(b"\r\n") if line.startswith(b"X-Request-Id")] == [
        b"X-Request-Id: r%d" % n for n in range(5)
    ]


async def test_http_1_0_and_connection_close(door: Door) -> None:
    old = await door.send(b"GET /livez HTTP/1.0\r\nHost: localhost\r\n\r\n")
    assert old.startswith(b"HTTP/1.1 200 ")
    assert b"Connection: close" in old
    kept = await door.send(b"GET /livez HTTP/1.0\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n")
    assert b"Connection: keep-alive" in kept
    closing = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    assert (await door.send(closing)).count(b"HTTP/1.1 200 OK") == 1
    assert (await door.send(closing * 2)).count(b"HTTP/1.1 200 OK") <= 1  # what follows a close is refused or unread


async def test_noise_gets_a_4xx_or_a_close_and_harms_nothing(door: Door, kv: FakeKV) -> None:
    rng = random.Random(2)
    good = PUT.replace(b"PUT", b"DELETE") + b"If-Match: *\r\nX-Request-Id: abc\r\n\r\n"
    probes = []
    for _ in range(60):
        mangled = bytearray(good)
        for _ in range(rng.randrange(1, 4)):
            mangled[rng.randrange(len(mangled))] = rng.randrange(256)
        probes.append(door.send(bytes(mangled), eof=True))
    for heard in await asyncio.gather(*probes):
        # A change may leave a request whole and take only its condition away: it then deletes nothing, and says so.
        is_harmless = heard.startswith(b"HTTP/1.1 200") and heard.endswith(b'"deleted": 0}\n')
        assert heard == b"" or heard.startswith(b"HTTP/1.1 4") or is_harmless, heard
        assert b" 500 " not in heard
    assert (await door.ask("GET", "/livez")).status == 200


async def small_server(**settings: int) -> tuple[App, ClientServer, FakeKV]:
    kv = FakeKV()
    config = Config(client=ClientSection(listen="127.0.0.1:0", **settings))
    app = build_app(kv, FakeAdmin(kv), config, FakeAvailable())
    server = ClientServer(app, config)
    await server.start()
    return app, server, kv


async def test_too_many_connections_get_503_and_are_closed(door: Door) -> None:
    app, server, _ = await small_server(connections_max=1)
    host, port = server.address.split(":")
    first_reader, first = await asyncio.open_connection(host, int(port))
    first.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert (await first_reader.readline()).startswith(b"HTTP/1.1 200 ")
    reader, second = await asyncio.open_connection(host, int(port))
    refused = await reader.read()
    assert refused.startswith(b"HTTP/1.1 503 ")
    assert b"Connection: close" in refused
    first.close()
    second.close()
    await server.close()
    assert app.connections == 0


async def test_too_many_requests_get_429(door: Door) -> None:
    _, server, kv = await small_server(in_flight_max=1)
    kv.gate = asyncio.Event()
    there = Door(door.session, server.address)
    slow = asyncio.create_task(there.ask("PUT", "/v1/kv/k", b"v"))
    while not kv.seen:
        await asyncio.sleep(0)
    refused = await there.ask("PUT", "/v1/kv/k", b"v")
    assert (refused.status, refused.code, refused.outcome) == (429, "overloaded", "not-applied")
    assert int(refused.headers["retry-after"]) >= 1
    assert (await there.ask("GET", "/livez")).status == 200
    kv.gate.set()
    assert (await slow).status == 200
    await server.close()


async def test_closing_lets_requests_in_flight_finish(door: Door) -> None:
    _, server, kv = await small_server()
    kv.gate = asyncio.Event()
    there = Door(door.session, server.address)
    slow = asyncio.create_task(there.ask("PUT", "/v1/kv/k", b"v"))
    while not kv.seen:
        await asyncio.sleep(0)
    closing = asyncio.create_task(server.close())
    await asyncio.sleep(0)
    kv.gate.set()
    assert (await slow).status == 200
    await closing


async def test_an_idle_head_is_given_up(door: Door) -> None:
    _, server, _ = await small_server(head_timeout_ms=100)
    host, port = server.address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /livez HT")
    assert await reader.read() == b""
    writer.close()
    await server.close()


async def test_a_bound_socket_can_be_handed_in_and_stops_listening_alone(door: Door) -> None:
    kv = FakeKV()
    config = Config()
    server = ClientServer(build_app(kv, FakeAdmin(kv), config, FakeAvailable()), config)
    await server.start(socket.create_server(("127.0.0.1", 0)))
    there = Door(door.session, server.address)
    assert (await there.ask("PUT", "/v1/kv/k", b"v")).status == 200
    await server.drain()
    assert (await there.ask("PUT", "/v1/kv/k", b"v")).status == 200  # on the connection that was there
    host, port = server.address.split(":")
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(host, int(port))
    await server.close()


async def test_a_client_that_does_not_read_is_cut_off(
    door: Door, app: App, kv: FakeKV, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "WRITE_TIMEOUT_S", 0.1)
    await door.ask("PUT", "/v1/kv/big", b"v" * (1 << 20))
    host, port = door.address.split(":")
    deaf = socket.socket()
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    deaf.connect((host, int(port)))
    deaf.sendall(b"GET /v1/kv/big HTTP/1.1\r\nHost: localhost\r\n\r\n" * 20)
    async with asyncio.timeout(5):
        while len(kv.seen) < 2 or app.connections > 1:  # the tidy client's own stays
            await asyncio.sleep(0.01)
    assert len(kv.seen) < 21  # the rest of the pipeline was not even looked at
    deaf.close()
