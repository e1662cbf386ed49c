"""The parsers alone, on arbitrary input: one meaning or a refusal, never another exception."""

from __future__ import annotations

import contextlib
import json
from typing import Any
from urllib.parse import quote_from_bytes

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvnode.api import query, shapes, strict_json
from kvnode.api.http.operations import items_max
from kvnode.api.http.txn import parse_txn
from kvnode.clocks import hybrid
from kvnode.config import LimitsSection
from kvnode.errors import BadRequest, Rejected

LIMITS = LimitsSection()
quick = settings(deadline=None, derandomize=True, max_examples=150)

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=20,
)


def loads(body: bytes, depth_max: int = 32, items_max: int = 10_000) -> Any:
    return strict_json.loads(body, depth_max=depth_max, items_max=items_max)


def depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth, value), default=0)
    return 0


@quick
@given(VALUES, st.integers(0, 5))
def test_good_json_is_read_up_to_exactly_its_depth(value: Any, spare: int) -> None:
    body = json.dumps(value, ensure_ascii=bool(spare % 2)).encode()
    assert loads(body, depth_max=depth(value) + spare) == value
    if depth(value):
        with pytest.raises(Rejected):
            loads(body, depth_max=depth(value) - 1)


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"a":', b"[1,"])
def test_what_is_too_deep_is_called_so_even_when_it_is_too_much(opening: bytes) -> None:
    with pytest.raises(BadRequest, match="nested deeper than 32"):
        loads(opening * 15_000)


@quick
@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_json_with_one_meaning_or_refused(body: bytes) -> None:
    try:
        value = loads(body)
    except Rejected:
        return
    assert json.loads(body) == value


TEMPLATE = json.dumps(
    {
        "compare": [{"key": "k", "target": "value", "op": "=", "value": "dg==", "encoding": "base64"}],
        "success": [{"put": {"key": "k", "value": "v", "prev": True}}, {"get": {"prefix": "k", "limit": 3}}],
        "failure": [{"delete": {"start": "a", "end": "b"}}],
    }
).encode()


@settings(quick, max_examples=400)
@given(st.lists(st.tuples(st.integers(0, len(TEMPLATE) - 1), st.binary(max_size=3)), min_size=1, max_size=3))
def test_a_mangled_transaction_is_a_transaction_or_a_refusal(edits: list[tuple[int, bytes]]) -> None:
    body = TEMPLATE
    for at, piece in edits:
        body = body[:at] + piece + body[at + 1 :]
    with contextlib.suppress(Rejected):  # any other exception fails the test
        parse_txn(loads(body, items_max=items_max(LIMITS)), LIMITS)


@quick
@given(st.binary(max_size=64))
def test_every_key_survives_percent_encoding(key: bytes) -> None:
    assert query.percent_decode(quote_from_bytes(key, safe="")) == key
    assert query.percent_decode(quote_from_bytes(key)) == key


@quick
@given(st.text(max_size=40))
def test_arbitrary_queries_are_parsed_or_refused(text: str) -> None:
    try:
        found = query.parse(text, {"prefix", "limit"})
    except Rejected:
        return
    except UnicodeEncodeError:
        assert any(
            "\ud800" <= sign <= "\udb7f" or "\udc00" <= sign <= "\udc7f" for sign in text
        )  # no parser makes these
        return
    assert found.keys() <= {"prefix", "limit"}


@quick
@given(st.binary(max_size=40))
def test_bytes_come_back_from_json_as_they_went(raw: bytes) -> None:
    text, encoding = shapes.as_text(raw)
    assert strict_json.expect_bytes(text, encoding if encoding == "base64" else None, "value") == raw


@quick
@given(st.integers(0, 1 << 57))
def test_times_are_rendered_as_the_clock_does(stamp: int) -> None:
    assert shapes.time_text(stamp) == hybrid.to_text(stamp)


@pytest.mark.parametrize("body", [b'"' + b"\\" * 1_000_001, b'"\\"' * 400_000, b"[" * 1_500_000, b'{"a":' * 300_000])
def test_big_bad_bodies_are_refused_in_linear_time(body: bytes) -> None:
    with pytest.raises(Rejected):
        loads(body)
