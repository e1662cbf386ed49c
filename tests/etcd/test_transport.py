"""HTTP around the API: paths, prefixes, methods, content types, bodies, what an answer looks like."""

from __future__ import annotations

import json

import pytest

from tests.etcd.connection import Answer
from tests.etcd.target import INVALID_ARGUMENT, NOT_FOUND, UNIMPLEMENTED, Target
from tests.etcd.words import b64

UNARY = [
    *("kv/range", "kv/put", "kv/deleterange", "kv/txn", "kv/compaction"),
    *("lease/grant", "lease/revoke", "lease/timetolive", "lease/leases"),
    *("kv/lease/revoke", "kv/lease/timetolive", "kv/lease/leases"),
    *("cluster/member/add", "cluster/member/remove", "cluster/member/update"),
    *("cluster/member/list", "cluster/member/promote"),
    *("maintenance/alarm", "maintenance/status", "maintenance/defragment", "maintenance/hash"),
    "maintenance/transfer-leadership",
    *("auth/enable", "auth/disable", "auth/authenticate"),
    *("auth/user/add", "auth/user/get", "auth/user/list", "auth/user/delete"),
    *("auth/user/changepw", "auth/user/grant", "auth/user/revoke"),
    *("auth/role/add", "auth/role/get", "auth/role/list", "auth/role/delete", "auth/role/grant", "auth/role/revoke"),
    *("lock/lock", "lock/unlock"),
    *("election/campaign", "election/proclaim", "election/leader", "election/resign"),
]
STREAMS = ["watch", "lease/keepalive", "maintenance/snapshot", "election/observe"]
LATER = ["maintenance/hashkv", "maintenance/downgrade", "auth/status"]
"""Not in every version."""


def assert_not_found(target: Target, method: str, path: str) -> None:
    answer = target.http(method, path, b"{}")
    assert answer.status == 404, answer
    if answer.headers["content-type"].startswith("text/plain"):  # up to 3.5, also with "404 page not found"
        assert b"not found" in answer.body.lower(), answer
    else:
        assert target.refusal(answer).code == NOT_FOUND
        assert answer.json()["message"] == "Not Found"


def is_refused_method(answer: Answer) -> bool:
    if answer.headers["content-type"].startswith("text/plain"):  # up to 3.5
        return (answer.status, answer.body) == (405, b"Method Not Allowed\n")
    body = answer.json()
    known = (body["code"], body["message"]) == (UNIMPLEMENTED, "Method Not Allowed")
    return known and answer.status in {405, 501}


def test_every_path_is_for_post_only(target: Target) -> None:
    wrong = {}
    for path in UNARY + STREAMS + LATER:
        for method in ("GET", "PUT", "DELETE"):
            answer = target.http(method, f"/v3/{path}")
            is_unknown = path in LATER and answer.status == 404 and not target.is_kvnode
            if not is_unknown and not is_refused_method(answer):
                wrong[path] = answer
    assert not wrong


@pytest.mark.parametrize(
    "path",
    [
        *("/v3/kv/nope", "/v3/kv", "/v3/kv/", "/v3/", "/v3/nope"),
        *("/v3/kv/range/", "/v3/KV/RANGE", "/v3/kv/put/more", "/v3/kv/lease/grant"),
    ],
)
def test_an_unknown_path(target: Target, path: str) -> None:
    assert_not_found(target, "POST", path)
    assert_not_found(target, "GET", path)


def test_the_older_prefix_is_served_too(target: Target, own: bytes) -> None:
    key = b64(own)
    assert target.post("kv/put", {"key": key, "value": b64("1")}, under="/v3beta/").status == 200
    [kv] = target.post("kv/range", {"key": key}, under="/v3beta/").json()["kvs"]
    assert kv["value"] == b64("1")
    assert target.range(key=key)["kvs"] == [kv]


def test_the_oldest_prefix_is_served_or_unknown(target: Target, own: bytes) -> None:
    answer = target.post("kv/range", {"key": b64(own)}, under="/v3alpha/")
    assert answer.status in {200, 404}, answer
    assert answer.status == 200 or not target.is_kvnode


def test_an_unknown_prefix(target: Target) -> None:
    for prefix in ("/v2/", "/v4/", "/v3gamma/", "/v3lock/"):
        assert target.post("kv/range", {"key": "YQ=="}, under=prefix).status == 404


@pytest.mark.parametrize(
    "content_type",
    [
        *("application/json", "application/x-www-form-urlencoded", "text/plain", "application/octet-stream"),
        *("application/json; charset=utf-8", "multipart/form-data; boundary=x", "nonsense", ""),
    ],
)
def test_the_content_type_of_a_request_does_not_matter(target: Target, own: bytes, content_type: str) -> None:
    body = json.dumps({"key": b64(own), "value": b64(content_type)}).encode()
    answer = target.http("POST", "/v3/kv/put", body, {"Content-Type": content_type})
    assert answer.status == 200, answer
    assert target.range(key=b64(own))["kvs"][0].get("value", "") == b64(content_type)


def test_a_request_without_content_type(target: Target, own: bytes) -> None:
    assert target.http("POST", "/v3/kv/put", json.dumps({"key": b64(own)}).encode()).status == 200
    assert target.range(key=b64(own))["count"] == "1"


@pytest.mark.parametrize("accept", ["*/*", "application/json", "text/html", "application/grpc"])
def test_the_answer_is_json_whatever_is_accepted(target: Target, accept: str) -> None:
    answer = target.http("POST", "/v3/kv/range", b'{"key":"YQ=="}', {"Accept": accept})
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")


def test_an_empty_body_is_an_empty_request(target: Target) -> None:
    for body in (b"", b"{}", b" \n"):
        target.refused("kv/range", body, INVALID_ARGUMENT, "etcdserver: key is not provided")
        assert set(target.ok("kv/txn", body)) == {"header", "succeeded"}


def test_space_around_a_request_does_not_matter(target: Target) -> None:
    assert target.post("kv/range", b' \r\n\t{ "key" :\n"YQ==" }\n\n').status == 200


def test_an_answer_is_one_object_and_nothing_else(target: Target, own: bytes) -> None:
    target.put(b64(own), b64("1"))
    body = target.post("kv/range", {"key": b64(own)}).body
    assert body.startswith(b"{")
    assert body.endswith(b"}"), "no newline after it"


def test_a_query_after_the_path_is_ignored(target: Target) -> None:
    assert target.http("POST", "/v3/kv/range?x=1", b'{"key":"YQ=="}').status == 200


def test_a_chunked_request(target: Target, own: bytes) -> None:
    body = json.dumps({"key": b64(own), "value": b64("in pieces")}).encode()
    pieces = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (body[:5], body[5:])) + b"0\r\n\r\n"
    connection = target.connect()
    connection.send_raw(
        b"POST /v3/kv/put HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n" + pieces,
    )
    assert connection.answer().status == 200
    connection.close()
    assert target.range(key=b64(own))["kvs"][0]["value"] == b64("in pieces")


def test_a_client_that_asks_before_it_sends_its_body(target: Target, own: bytes) -> None:
    """As curl does with a large one."""
    body = json.dumps({"key": b64(own), "value": b64("x" * 2000)}).encode()
    connection = target.connect()
    connection.send_raw(
        b"POST /v3/kv/put HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
        b"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: %d\r\n\r\n" % len(body)
    )
    assert connection.head().status == 100
    connection.send_raw(body)
    assert connection.answer().status == 200
    connection.close()
    assert target.range(key=b64(own))["count"] == "1"


def test_who_asks_for_a_leader_is_served_where_there_is_one(target: Target) -> None:
    for value in ("true", "false"):
        headers = {"Grpc-Metadata-hasleader": value}
        assert target.http("POST", "/v3/kv/range", b'{"key":"YQ=="}', headers).status == 200


def test_one_connection_serves_many_calls_also_after_refusals(target: Target, own: bytes) -> None:
    connection = target.connect()
    for body, status in ((b'{"key":"YQ=="}', 200), (b"{}", 400), (b"nonsense", 400), (b'{"key":"YQ=="}', 200)):
        connection.send("POST", "/v3/kv/range", body)
        assert connection.answer().status == status
    connection.send("POST", "/v3/nope", b"{}")
    assert connection.answer().status == 404
    connection.send("GET", "/v3/kv/range")
    assert connection.answer().status in {405, 501}
    connection.send("POST", "/v3/kv/range", b'{"key":"YQ=="}')
    assert connection.answer().status == 200
    connection.close()


def test_a_client_that_goes_away_does_not_undo_its_call(target: Target, own: bytes) -> None:
    connection = target.connect()
    connection.send("POST", "/v3/kv/put", json.dumps({"key": b64(own), "value": b64("1")}).encode())
    assert connection.has_more(10.0), "it is carried out"
    connection.close()
    assert target.range(key=b64(own))["count"] == "1"
