"""What no request may do to a server: requests that are broken in every way are refused with etcd's codes, never a 5xx.

The exception is etcd's own: what is broken at the start of a stream it refuses with code 2.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator

import pytest

from tests.etcd.target import INVALID_ARGUMENT, UNKNOWN, Target
from tests.etcd.test_transport import LATER, STREAMS, UNARY
from tests.etcd.words import b64

DEEP = 20_000


@pytest.fixture(autouse=True)
def lives_on(target: Target) -> Iterator[None]:
    """Whatever it was sent, it serves the next request and has written nothing."""
    before = target.revision()
    yield
    assert target.revision() == before


NOT_AN_OBJECT = [
    *(b"[]", b"[{}]", b'"key"', b"1", b"-1.5e3", b"true", b"false", b'[{"key":"YQ=="}]', b'""', b"0"),
]
NOT_JSON = [
    *(b"{", b"}", b"[", b'{"', b'{"key', b'{"key"', b'{"key":', b'{"key":"', b'{"key":"YQ==', b'{"key":"YQ=="'),
    *(b'{"key":"YQ==",', b'{"key":"YQ==",}', b'{"key" "YQ=="}', b'{"key"="YQ=="}', b"{key:1}", b"{'key':1}", b"{1:2}"),
    *(b"nul", b"nonsense", b"tru", b"NaN", b"{,}", b"<xml/>", b"key=YQ%3D%3D", b"--boundary", b"\0", b"\xff"),
    *(b"\xef\xbb\xbf{}", b"\xff\xfe{\0}\0", b'{"key":"\x01"}', b'{"key":"\n"}', b'{"key":"\\x41"}', b'{"key":"\\u12"}'),
    *(b'{"key":"YQ==" /* no */}', b"// no\n{}", b'{"key":"YQ==";}', b'{"key":}', b'{:"YQ=="}', b'{"key":"YQ==""}'),
    *(b"[" * DEEP, b'{"a":' * DEEP, b"[" * DEEP + b"]" * DEEP),
]


@pytest.mark.parametrize("path", ["kv/range", "kv/put", "kv/txn"])
def test_a_body_that_is_no_object(target: Target, path: str) -> None:
    for body in NOT_AN_OBJECT + NOT_JSON:
        target.refused(path, body, INVALID_ARGUMENT)


def test_no_unary_call_takes_what_is_no_object(target: Target) -> None:
    for path, body in itertools.product(UNARY, (b"[]", b'{"key":', b"nonsense", b'"x"')):
        target.refused(path, body, INVALID_ARGUMENT)


def test_no_call_of_some_versions_does(target: Target) -> None:
    for path, body in itertools.product(LATER, (b"[]", b'{"key":', b"nonsense")):
        answer = target.post(path, body)
        assert answer.status == 400 or (answer.status == 404 and not target.is_kvnode), answer


@pytest.mark.parametrize("path", STREAMS)
def test_no_stream_begins_with_what_is_no_object(target: Target, path: str) -> None:
    """In whichever shape: the body of a unary error or a stream's."""
    for body in (b"[]", b'{"key":', b"nonsense", b'"x"', b"1", b'{"a":' * DEEP):
        answer = target.post(path, body)
        assert answer.status in {400, 500}, (body, answer)
        error = answer.json().get("error")
        found = target.stream_refusal(error) if isinstance(error, dict) else target.refusal(answer)
        assert found.code in {INVALID_ARGUMENT, UNKNOWN}, (body, answer)


OF_A_RANGE = [
    *('"key":[256]', '"key":["YQ=="]', '"key":{}', '"key":1', '"key":true', '"key":"YQ==="', '"key":"\\ud800"'),
    *('"range_end":false', '"range_end":{"a":1}', '"rangeEnd":"!"', '"range_end":"\\u0000"'),
    *('"limit":{}', '"limit":[1]', '"limit":"ten"', '"limit":1e999', '"limit":-0.5'),
    *('"revision":18446744073709551616', '"revision":"18446744073709551615"', '"revision":"１"'),
    *('"min_mod_revision":"1 "x', '"min_mod_revision":"--1"', '"max_mod_revision":"1e3x"', '"revision":"0b1"'),
    *('"sort_order":{}', '"sort_order":"ASCEND "', '"sort_order":1e10', '"sort_target":"key"', '"sort_target":[0]'),
    *('"sort_target":99999999999999999999', '"serializable":"yes"', '"keys_only":0', '"count_only":[true]'),
]


def test_a_range_with_a_field_of_another_kind(target: Target) -> None:
    for field in OF_A_RANGE:
        target.refused("kv/range", f'{{"key":"YQ==",{field}}}'.encode(), INVALID_ARGUMENT)


OF_A_PUT = [
    *('"value":1', '"value":{}', '"value":[[]]', '"value":"a"', '"value":true', '"lease":"x"', '"lease":1.5'),
    *('"lease":9223372036854775808', '"lease":[]', '"lease":"0x7"', '"prev_kv":1', '"prevKv":"true"'),
    *('"ignore_value":"false"', '"ignore_lease":{}', '"ignoreLease":[]'),
]


def test_a_put_with_a_field_of_another_kind(target: Target, own: bytes) -> None:
    for field in OF_A_PUT:
        target.refused("kv/put", f'{{"key":"{b64(own)}",{field}}}'.encode(), INVALID_ARGUMENT)


OF_A_TXN = [
    *('"compare":{}', '"compare":"x"', '"compare":[1]', '"compare":["x"]', '"compare":[[]]', '"compare":true'),
    *('"success":{}', '"success":1', '"success":[1]', '"success":[[]]', '"success":["request_put"]'),
    *('"success":[{"request_put":1}]', '"success":[{"request_put":[]}]', '"success":[{"request_put":"x"}]'),
    *('"failure":[{"request_range":[]}]', '"failure":[{"request_delete_range":"x"}]', '"failure":"none"'),
    *('"success":[{"request_txn":[]}]', '"success":[{"request_txn":{"success":{}}}]', '"success":true'),
    *('"success":[{"request_put":{"key":1}}]', '"success":[{"request_range":{"key":"YQ==","limit":"x"}}]'),
    *('"success":[{"request_delete_range":{"key":"YQ==","prev_kv":"x"}}]', '"compare":[{"key":"a"}]'),
]


def test_a_txn_with_parts_of_another_kind(target: Target) -> None:
    for body in OF_A_TXN:
        target.refused("kv/txn", f"{{{body}}}".encode(), INVALID_ARGUMENT)


OF_A_COMPACTION = ['"revision":"x"', '"revision":1.5', '"physical":"yes"', '"physical":1', '"revision":[]']


def test_a_compaction_with_a_field_of_another_kind(target: Target) -> None:
    for body in OF_A_COMPACTION:
        target.refused("kv/compaction", f"{{{body}}}".encode(), INVALID_ARGUMENT)


FIELDS = {
    "lease/grant": ("TTL", "ID"),
    "lease/revoke": ("ID",),
    "kv/lease/revoke": ("ID",),
    "lease/timetolive": ("ID", "keys"),
    "kv/lease/timetolive": ("ID", "keys"),
    "cluster/member/add": ("peerURLs", "isLearner"),
    "cluster/member/remove": ("ID",),
    "cluster/member/update": ("ID", "peerURLs"),
    "cluster/member/promote": ("ID",),
    "maintenance/alarm": ("action", "memberID", "alarm"),
    "maintenance/transfer-leadership": ("targetID",),
    "auth/authenticate": ("name", "password"),
    "auth/user/add": ("name", "password"),
    "auth/user/get": ("name",),
    "auth/user/delete": ("name",),
    "auth/user/changepw": ("name", "password"),
    "auth/user/grant": ("user", "role"),
    "auth/user/revoke": ("name", "role"),
    "auth/role/add": ("name",),
    "auth/role/get": ("role",),
    "auth/role/delete": ("role",),
    "auth/role/grant": ("name", "perm"),
    "auth/role/revoke": ("role", "key", "range_end"),
    "lock/lock": ("name", "lease"),
    "lock/unlock": ("key",),
    "election/campaign": ("name", "lease", "value"),
    "election/proclaim": ("leader", "value"),
    "election/leader": ("name",),
    "election/resign": ("leader",),
}


def test_other_calls_with_a_field_of_another_kind(target: Target) -> None:
    for path, fields in FIELDS.items():
        for field, value in itertools.product(fields, ("1.5", "[[]]")):  # neither is of any kind that a field has
            target.refused(path, f'{{"{field}":{value}}}'.encode(), INVALID_ARGUMENT)


def test_fields_that_are_ignored_are_read_as_json_all_the_same(target: Target) -> None:
    target.refused("kv/range", b'{"key":"YQ==","nope":[}', INVALID_ARGUMENT)
    target.refused("kv/range", b'{"key":"YQ==","nope":' + b"[" * DEEP + b"]" * DEEP + b"}", INVALID_ARGUMENT)
    assert target.post("kv/range", b'{"key":"YQ==","nope":' + b"[" * 50 + b"]" * 50 + b"}").status == 200
    for number in (b"1e999", b"-" + b"9" * 5000):  # more than a reader need hold
        assert target.post("kv/range", b'{"key":"YQ==","nope":' + number + b"}").status in {200, 400}


def test_a_txn_nested_beyond_every_limit(target: Target) -> None:
    """etcd allows as many levels as a txn may have operations; before that its reader's own depth may be reached."""
    body = b'{"success":[{"request_txn":' * 300 + b"{}" + b"}]}" * 300
    target.refused("kv/txn", body, INVALID_ARGUMENT)
    deep: dict[str, object] = {}
    for _ in range(129):
        deep = {"success": [{"request_txn": deep}]}
    target.refused("kv/txn", json.dumps(deep).encode(), INVALID_ARGUMENT)


def test_a_key_twice_in_one_object(target: Target, own: bytes) -> None:
    """Not refused: the last one counts, or the first."""
    assert target.post("kv/range", f'{{"key":"{b64(own)}","key":"{b64(own)}"}}'.encode()).status == 200


def test_half_a_body(target: Target) -> None:
    """A client that goes away within its request has asked for nothing."""
    connection = target.connect()
    connection.send_raw(b'POST /v3/kv/put HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"key":"YQ==","val')
    connection.close()
