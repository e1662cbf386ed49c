"""The fast way of reading plain puts says what the general one says, or nothing."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnode.api import strict_json
from kvnode.api.http.operations import OperationParser, items_max
from kvnode.api.http.plain_puts import puts_of_batch, puts_of_transaction
from kvnode.api.http.txn import parse_txn
from kvnode.config import LimitsSection
from kvnode.errors import KvnodeError
from kvnode.kv.requests import Put

LIMITS = LimitsSection(key_bytes_max=8, value_bytes_max=64, request_bytes_max=1024, batch_operations_max=3)
PARSER = OperationParser(LIMITS, conditions=True)


def _loads(body: bytes) -> Any:
    return strict_json.loads(body, depth_max=LIMITS.json_depth_max, items_max=items_max(LIMITS))


def _batch(body: bytes) -> Any:
    operations = strict_json.expect_list(_loads(body), "the body", LIMITS.batch_operations_max)
    return [PARSER.parse(operation, "") for operation in operations]


def _transaction(body: bytes) -> Any:
    txn = parse_txn(_loads(body), LIMITS)
    assert not txn.compare
    assert not txn.failure
    return list(txn.success)


def _agrees(found: list[Put] | None, general: Any, body: bytes) -> None:
    if found is not None:
        assert found == general(body), body


PLAIN = {"put": {"key": "k", "value": "v"}}
BINARY = {"put": {"key": "ü", "value": base64.b64encode(b"\xff\x00").decode(), "encoding": "base64"}}


@pytest.mark.parametrize("operations", [[], [PLAIN], [PLAIN, BINARY, PLAIN]])
def test_plain_puts_are_read(operations: list[Any]) -> None:
    for text in (json.dumps(operations, ensure_ascii=False), json.dumps(operations, ensure_ascii=False, indent=2)):
        assert puts_of_batch(text.encode(), PARSER) == _batch(text.encode())
        body = f'{{"success": {text}}}'.encode()
        assert puts_of_transaction(body, PARSER) == _transaction(body)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[1]",
        b'[{"get": {"key": "k"}}]',
        b'[{"put": {"key": "k"}}]',
        b'[{"put": {"key": "k", "value": 1}}]',
        b'[{"put": {"key": "k", "value": "v", "lease": 1}}]',
        b'[{"put": {"key": "k", "value": "v", "key": "k"}}]',  # a name twice
        b'[{"put": {"key": "k", "value": "v"}, "put": {"key": "k", "value": "v"}}]',
        b'[{"put": {"key": "k", "value": "v", "encoding": "utf-8", "encoding": "utf-8"}}]',
        b'[{"put": {"key": "", "value": "v"}}]',
        b'[{"put": {"key": "123456789", "value": "v"}}]',
        b'[{"put": {"key": "k", "value": "%s"}}]' % (65 * b"v"),
        b'[{"put": {"key": "k", "value": "dg", "encoding": "base64"}}]',  # not canonical
        b'[{"put": {"key": "k", "value": "dg==", "encoding": "base32"}}]',
        b'[{"put": {"key": "k", "value": "\\u0041"}}]',
        b'[{"put": {"key": "k", "value": "\xff"}}]',
        b'[{"put": {"key": "k", "value": "a\nb"}}]',
        b"\xef\xbb\xbf[]",
        json.dumps([PLAIN] * 4).encode(),
    ],
)
def test_the_rest_is_left_to_who_knows_what_to_say(body: bytes) -> None:
    assert puts_of_batch(body, PARSER) is None
    assert puts_of_transaction(b'{"success": %b}' % body, PARSER) is None or body == json.dumps([PLAIN] * 4).encode()


def test_comparisons_are_not_lost() -> None:
    compare = b'{"success": [], "compare": [{"key": "k", "target": "exists"}]}'
    assert puts_of_transaction(compare, PARSER) is None
    twice = b'{"success": [{"put": {"key": "k", "value": "v"}}], "success": []}'
    assert puts_of_transaction(twice, PARSER) is None


_TEXTS = st.one_of(
    st.text(max_size=9), st.binary(max_size=9).map(lambda raw: base64.b64encode(raw).decode()), st.just("base64")
)
_NAMES = st.sampled_from(["key", "value", "encoding", "put", "lease", "key_encoding"])
_OBJECTS = st.lists(st.tuples(_NAMES, _TEXTS), max_size=5)


def _spelled(pairs: list[tuple[str, str]], escaped: bool) -> str:
    return "{" + ",".join(f'"{name}": {json.dumps(text, ensure_ascii=escaped)}' for name, text in pairs) + "}"


@given(st.lists(_OBJECTS, max_size=4), st.booleans())
def test_both_ways_agree(objects: list[list[tuple[str, str]]], escaped: bool) -> None:
    """Names may stand twice, texts may hold anything."""
    operations = ",".join(f'{{"put": {_spelled(pairs, escaped)}}}' for pairs in objects)
    body = f"[{operations}]".encode("utf-8", errors="surrogatepass")
    _agrees(puts_of_batch(body, PARSER), _batch, body)
    whole = b'{"success": %b}' % body
    _agrees(puts_of_transaction(whole, PARSER), _transaction, whole)
    try:
        general = _batch(body)
    except KvnodeError:
        return
    if b"\\" not in body and all({name for name, _ in pairs} <= {"key", "value", "encoding"} for pairs in objects):
        assert puts_of_batch(body, PARSER) == general
