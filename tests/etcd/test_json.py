"""The rules of the JSON mapping: names, numbers, enums, bytes, what is left out."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from tests.etcd.target import INVALID_ARGUMENT, Target
from tests.etcd.words import b64, interval, keys_of, pairs_of, prefix, values_of

INT64_MAX, INT64_MIN = (1 << 63) - 1, -(1 << 63)


@pytest.fixture
def three(target: Target, own: bytes) -> bytes:
    """A prefix under which a=3, b=1, c=2 were put in this order."""
    for name, value in ((b"a", "3"), (b"b", "1"), (b"c", "2")):
        target.put(b64(own + name), b64(value))
    return own


# ── names ───────────────────────────────────────────────────────────────────────────────────────────


def test_proto_names_and_camel_case_are_read(target: Target, three: bytes) -> None:
    snake = target.range(**prefix(three), sort_order="DESCEND", sort_target="VALUE", keys_only=True)
    bounds = prefix(three)
    camel = target.range(
        key=bounds["key"], rangeEnd=bounds["range_end"], sortOrder="DESCEND", sortTarget="VALUE", keysOnly=True
    )
    assert snake["kvs"] == camel["kvs"]
    assert [key[-1:] for key in keys_of(camel)] == [b"a", b"c", b"b"]
    assert "value" not in camel["kvs"][0]
    first = int(camel["kvs"][2]["mod_revision"])
    for names in ({"min_mod_revision": first + 1}, {"minModRevision": first + 1}):
        assert len(target.range(**prefix(three), **names)["kvs"]) == 1


def test_camel_case_in_a_txn(target: Target, own: bytes) -> None:
    key = b64(own)
    found = target.txn(
        compare=[{"key": key, "target": "CREATE", "createRevision": 0}],
        success=[{"requestPut": {"key": key, "value": b64("1"), "prevKv": True}}, {"requestRange": {"key": key}}],
    )
    assert found["succeeded"] is True
    assert set(found["responses"][0]) == {"response_put"}
    revision = found["responses"][1]["response_range"]["kvs"][0]["mod_revision"]
    found = target.txn(
        compare=[{"key": key, "target": "MOD", "modRevision": revision, "rangeEnd": b64(own + b"\0")}],
        success=[{"requestTxn": {"success": [{"requestDeleteRange": {"key": key, "prevKv": True}}]}}],
    )
    [nested] = found["responses"]
    [deletion] = nested["response_txn"]["responses"]
    assert values_of(deletion["response_delete_range"], "prev_kvs") == [b"1"]


def test_output_has_the_proto_names_only(target: Target, own: bytes) -> None:
    key = b64(own)
    target.put(key, b64("1"))
    found = target.put(key, b64("2"), prev_kv=True)
    assert set(found) == {"header", "prev_kv"}
    assert set(found["prev_kv"]) == {"key", "create_revision", "mod_revision", "version", "value"}
    assert set(target.delete(key=key, prev_kv=True)) == {"header", "deleted", "prev_kvs"}


def test_unknown_fields_are_ignored(target: Target, three: bytes) -> None:
    key = b64(three + b"a")
    unknown: list[dict[str, Any]] = [{"nope": 1}, {"nope": {"deep": [1, {"x": None}]}}, {"": ""}, {"kvs": []}]
    for more in (*unknown, {"KEY": "!"}, {"nope": "é\0"}):
        assert target.range(key=key, **more)["count"] == "1"
    assert target.txn(success=[{"request_range": {"key": key, "nope": 1}}], nope=[])["succeeded"] is True


def test_null_means_not_set(target: Target, three: bytes) -> None:
    found = target.range(
        key=b64(three + b"a"),
        **dict.fromkeys(("range_end", "limit", "revision", "sort_order", "sort_target", "serializable", "keys_only")),
        **dict.fromkeys(("count_only", "min_mod_revision", "max_mod_revision", "min_create_revision")),
    )
    assert pairs_of(found) == [(three + b"a", b"3")]
    target.refused("kv/range", {"key": None}, INVALID_ARGUMENT, "etcdserver: key is not provided")
    assert target.txn(compare=None, success=None, failure=None)["succeeded"] is True


# ── numbers ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("limit", [2, "2"])
def test_integers_are_read_as_numbers_and_as_strings(target: Target, three: bytes, limit: Any) -> None:
    assert len(target.range(**prefix(three), limit=limit)["kvs"]) == 2


@pytest.mark.parametrize("limit", [INT64_MAX, str(INT64_MAX), INT64_MIN, str(INT64_MIN), -1, "-1", 0, "0"])
def test_the_whole_of_int64_is_read(target: Target, three: bytes, limit: Any) -> None:
    assert len(target.range(**prefix(three), limit=limit)["kvs"]) == 3


def test_large_integers_keep_every_digit(target: Target, own: bytes) -> None:
    """Clients send lease IDs above 2^53, as numbers and as strings."""
    lease = (1 << 62) + len(own) * 1_000_003 + int(own[1:-1])
    granted = target.ok("lease/grant", {"TTL": 60, "ID": lease})
    assert granted["ID"] == str(lease)
    for written in (lease, str(lease)):
        target.put(b64(own), lease=written)
        assert target.range(key=b64(own))["kvs"][0]["lease"] == str(lease)
    target.ok("lease/revoke", {"ID": lease})


def test_64_bit_integers_are_written_as_strings(target: Target, own: bytes) -> None:
    for _ in range(2):
        target.put(b64(own), b64("1"))
    found = target.range(key=b64(own))
    assert found["count"] == "1"
    assert found["kvs"][0]["version"] == "2"
    assert all(isinstance(found["kvs"][0][name], str) for name in ("create_revision", "mod_revision"))
    assert target.delete(key=b64(own))["deleted"] == "1"


NO_INT64 = [
    *("1.5", '"1.5"', '"x"', '""', '"+1"', "true", "[]", "[1]", "{}", '"0x1"', '"1,000"', "1e400", "-1e400"),
    *("9223372036854775808", '"9223372036854775808"', "-9223372036854775809", '"-9223372036854775809"'),
    *("9" * 400, f'"{"9" * 400}"', "01", "+1", ".5", "1.", "0x10", "NaN", "Infinity", '"NaN"', '"1 2"', "0.1e0"),
]


def test_other_numbers_are_refused(target: Target) -> None:
    for limit in NO_INT64:
        target.refused("kv/range", f'{{"key":"YQ==","limit":{limit}}}'.encode(), INVALID_ARGUMENT)


@pytest.mark.parametrize("limit", ["1.0", "1e0", "10e-1"])
def test_integral_floats_are_read_or_refused(target: Target, three: bytes, limit: str) -> None:
    """Refused up to 3.5, read from 3.6 on."""
    bounds = json.dumps(prefix(three))[:-1]
    answer = target.post("kv/range", f'{bounds},"limit":{limit}}}'.encode())
    if answer.status == 200:
        assert len(answer.json()["kvs"]) == 1
    else:
        assert target.refusal(answer).code == INVALID_ARGUMENT


# ── enums and booleans ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("order", "sort_target", "expected"),
    [
        ("ASCEND", "VALUE", b"bca"),
        (1, 4, b"bca"),
        ("DESCEND", 0, b"cba"),
        (2, "KEY", b"cba"),
        (0, "VALUE", b"bca"),
        ("NONE", "KEY", b"abc"),
        (None, None, b"abc"),
    ],
)
def test_enums_are_read_by_name_and_by_number(
    target: Target, three: bytes, order: Any, sort_target: Any, expected: bytes
) -> None:
    found = target.range(**prefix(three), sort_order=order, sort_target=sort_target)
    assert b"".join(key[-1:] for key in keys_of(found)) == expected


NO_ORDER = ['"ascend"', '"Ascend"', '"1"', '""', '"NOPE"', '" ASCEND"', "1.5", "true", "[]", "{}", "99999999999"]


def test_other_enum_values_are_refused(target: Target) -> None:
    for order in NO_ORDER:
        target.refused("kv/range", f'{{"key":"YQ==","sort_order":{order}}}'.encode(), INVALID_ARGUMENT)


@pytest.mark.parametrize("field", ["sort_order", "sort_target"])
@pytest.mark.parametrize("number", [5, 7, -1])
def test_an_unknown_enum_number_is_ignored_or_refused(target: Target, field: str, number: int) -> None:
    """3.6: "invalid sort option". Before, an order is ignored, and a sort target ends the process of some builds."""
    if field == "sort_target" and not target.is_kvnode and target.version < (3, 6):
        pytest.skip("etcd 3.4 ends itself when it is asked to sort by something unknown")
    answer = target.post("kv/range", {"key": "YQ==", field: number})
    if answer.status != 200:
        assert target.refusal(answer).code == INVALID_ARGUMENT
        assert answer.json()["message"] == "etcdserver: invalid sort option"


NO_BOOLEAN = ['"true"', '"false"', "1", "0", '""', "[]", "{}", '"TRUE"', "True"]


def test_booleans_are_booleans(target: Target) -> None:
    for field, value in itertools.product(("serializable", "keys_only", "count_only"), NO_BOOLEAN):
        target.refused("kv/range", f'{{"key":"YQ==","{field}":{value}}}'.encode(), INVALID_ARGUMENT)


# ── bytes ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "value", [b"", b"\0", b"\xff\xfe", b"\xfb\xff\xbf", bytes(range(256)), "é✓".encode(), b"a" * 3000]
)
def test_bytes_come_back_as_they_were(target: Target, own: bytes, value: bytes) -> None:
    key = own + value
    target.put(b64(key), b64(value))
    [kv] = target.range(key=b64(key))["kvs"]
    assert kv["key"] == b64(key)
    assert kv.get("value", "") == b64(value)


def test_base64_may_be_escaped_as_json_allows(target: Target, own: bytes) -> None:
    key, value = b64(own), b64(b"\xfb\xff")
    assert "/" in value
    written = value.replace("/", "\\/").replace("+", "\\u002b")
    assert target.post("kv/put", f'{{"key":"{key}","value":"{written}"}}'.encode()).status == 200
    assert values_of(target.range(key=key)) == [b"\xfb\xff"]


@pytest.mark.parametrize("key", ["a", "a===", "YQ=a", "Y", "!!!!", "YQ==YQ==", "=", "Y Q=", "é", "YWJ.", "\0\0\0\0"])
def test_what_is_not_base64_is_refused(target: Target, key: str) -> None:
    target.refused("kv/range", {"key": key}, INVALID_ARGUMENT)
    target.refused("kv/put", {"key": "YQ==", "value": key}, INVALID_ARGUMENT)


@pytest.mark.parametrize(
    ("value", "content"), [("YQ", b"a"), ("YWI", b"ab"), ("-_8=", b"\xfb\xff"), ("-_8", b"\xfb\xff")]
)
def test_other_kinds_of_base64_are_read_or_refused(target: Target, own: bytes, value: str, content: bytes) -> None:
    """Without padding, or of the URL's alphabet: refused up to 3.5, read from 3.6 on."""
    answer = target.post("kv/put", {"key": b64(own), "value": value})
    if answer.status == 200:
        assert values_of(target.range(key=b64(own))) == [content]
    else:
        assert target.refusal(answer).code == INVALID_ARGUMENT
        assert set(target.range(key=b64(own))) == {"header"}


@pytest.mark.parametrize("key", ["1", "true", "{}", "1.5", '{"a":1}', '["a"]'])
def test_bytes_are_a_string(target: Target, key: str) -> None:
    target.refused("kv/range", b'{"key":%b}' % key.encode(), INVALID_ARGUMENT)


# ── what is left out ────────────────────────────────────────────────────────────────────────────────


def test_defaults_are_left_out(target: Target, own: bytes) -> None:
    key = b64(own)
    assert set(target.range(key=key)) == {"header"}
    assert set(target.range(**prefix(own), count_only=True)) == {"header"}
    assert set(target.range(**interval(own, own))) == {"header"}
    assert set(target.delete(key=key, prev_kv=True)) == {"header"}
    assert set(target.put(key, prev_kv=True)) == {"header"}
    found = target.range(key=key)
    assert set(found) == {"header", "kvs", "count"}
    assert set(found["kvs"][0]) == {"key", "create_revision", "mod_revision", "version"}
    assert set(target.delete(key=key)) == {"header", "deleted"}
    assert set(target.txn()) == {"header", "succeeded"}
    failing = [{"key": key, "target": "VERSION", "version": 1}]
    assert set(target.txn(compare=failing)) == {"header"}
    found = target.txn(
        compare=failing,
        failure=[{"request_range": {"key": key}}, {"request_delete_range": {"key": key}}, {"request_txn": {}}],
    )
    assert set(found) == {"header", "responses"}
    [shown, deleted, nested] = found["responses"]
    assert set(shown["response_range"]) == {"header"}
    assert set(deleted["response_delete_range"]) == {"header"}
    assert set(nested["response_txn"]) == {"header", "succeeded"}


def test_null_is_never_written(target: Target, own: bytes) -> None:
    key = b64(own)
    bodies = [
        target.post("kv/put", {"key": key, "prev_kv": True}).body,
        target.post("kv/range", {"key": key}).body,
        target.post("kv/txn", {"success": [{"request_range": {"key": key}}, {"request_txn": {}}]}).body,
        target.post("kv/range", {}).body,
    ]
    assert not any(b"null" in body for body in bodies)
