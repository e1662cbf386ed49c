"""Reading protocol buffers' JSON form, and leaving defaults out of what is written."""

from __future__ import annotations

import asyncio
import base64
import json
from enum import IntEnum
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnode.api.etcd.errors import Code, EtcdError, UnreadableRequest
from kvnode.api.etcd.proto_json import (
    AT_ONCE,
    DEPTH_MAX,
    Int32,
    Request,
    Response,
    UInt64,
    check_extent,
    decimal,
    decode,
    decode_all,
    decode_stream,
    in_turns,
)


class Colour(IntEnum):
    RED = 0
    BLUE = 1


class Inner(Request):
    key: bytes = b""
    inner: Inner | None = None


class Outer(Request):
    range_end: bytes = b""
    number: int = 0
    unsigned: UInt64 = 0
    small: Int32 = 0
    flag: bool = False
    text: str = ""
    colour: Colour = Colour.RED
    inner: Inner | None = None
    several: list[Inner] = msgspec.field(default_factory=list)
    colours: list[Colour] = msgspec.field(default_factory=list)
    ID: int = 0
    peerURLs: list[str] = msgspec.field(default_factory=list)


def read(value: Any) -> Outer:
    return decode(Outer, json.dumps(value).encode())


@pytest.mark.parametrize("body", [b"", b" \r\n\t", b"{}", b'{"unknown":{"deep":[1,null]},"number":null}'])
def test_what_is_not_set_has_its_default(body: bytes) -> None:
    assert decode(Outer, body) == Outer()


@pytest.mark.parametrize("name", ["range_end", "rangeEnd"])
def test_a_field_has_two_names(name: str) -> None:
    assert read({name: "YQ=="}).range_end == b"a"
    assert read({"ID": 3, "peerURLs": ["a"]}) == Outer(ID=3, peerURLs=["a"])


@pytest.mark.parametrize("given_", [-12, "-12", -12.0])
def test_integers_come_as_numbers_or_text(given_: object) -> None:
    assert read({"number": given_}).number == -12


def test_the_greatest_integers_are_read_exactly() -> None:
    assert read({"number": 2**63 - 1}).number == read({"number": str(2**63 - 1)}).number == 2**63 - 1
    assert read({"unsigned": 2**64 - 1}).unsigned == 2**64 - 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("number", True),
        ("number", "0x1"),
        ("number", ""),
        ("number", " 1"),
        ("number", "1_0"),
        ("number", 1.5),
        ("number", 1e300),
        ("number", 2**63),
        ("number", str(-(2**63) - 1)),
        ("number", 10**400),
        ("number", [1]),
        ("number", {}),
        ("unsigned", -1),
        ("unsigned", 2**64),
        ("small", 2**31),
        ("flag", "true"),
        ("flag", 1),
        ("text", 1),
        ("range_end", 1),
        ("range_end", "a"),
        ("range_end", "YQ!="),
        ("range_end", "="),
        ("range_end", "YQ="),
        ("range_end", "YQ==="),
        ("range_end", "===="),
        ("range_end", "Y Q="),
        ("range_end", "Y\nQ="),
        ("range_end", "äöü="),
        ("colour", "blue"),
        ("colour", "1"),
        ("colour", "GREEN"),
        ("colour", 1.5),
        ("inner", []),
        ("inner", "x"),
        ("several", {}),
        ("several", [1]),
        ("several", [None]),
        ("colours", "RED"),
        ("peerURLs", [1]),
    ],
)
def test_what_is_of_another_kind_is_refused(field: str, value: object) -> None:
    with pytest.raises(EtcdError) as refused:
        read({field: value})
    assert refused.value.code == Code.INVALID_ARGUMENT
    assert len(refused.value.message) < 200


@pytest.mark.parametrize(
    "body",
    [
        b"x",
        b"[]",
        b"1",
        b'"a"',
        b"null",
        b"{",
        b'{"number":1',
        b'{"number":NaN}',
        b"\xff",
        b'{"text":"\xff"}',
        b"[" * 9_999,
        b'{"inner":' * 5_000,
    ],
)
def test_what_is_no_object_of_json_is_refused(body: bytes) -> None:
    for reader in (decode, lambda kind, text: list(decode_all(kind, text))):
        with pytest.raises(EtcdError):
            reader(Outer, body)


def test_depth_is_bounded() -> None:
    def nested(depth: int) -> bytes:
        return b'{"inner":' * depth + b"{}" + b"}" * depth

    assert decode(Inner, nested(DEPTH_MAX)).inner is not None
    with pytest.raises(EtcdError, match="nested deeper"):
        decode(Inner, nested(DEPTH_MAX + 1))


def test_enums_come_by_name_or_number() -> None:
    assert read({"colour": "BLUE"}).colour is read({"colour": 1}).colour is Colour.BLUE
    assert read({"colours": ["BLUE", 0]}).colours == [Colour.BLUE, Colour.RED]
    unknown = read({"colour": 7}).colour
    assert unknown == 7
    assert type(unknown) is not Colour


def test_the_place_of_what_is_wrong_is_named() -> None:
    with pytest.raises(EtcdError, match=r"several\[1\]\.inner\.key"):
        read({"several": [{}, {"inner": {"key": 1}}]})


@given(st.binary(max_size=40), st.booleans(), st.booleans())
def test_base64_of_either_alphabet_padded_or_not(value: bytes, url_safe: bool, padded: bool) -> None:
    text = (base64.urlsafe_b64encode if url_safe else base64.b64encode)(value).decode()
    assert read({"range_end": text if padded else text.rstrip("=")}).range_end == value


@pytest.mark.parametrize("between", [b"", b"\n", b"  \r\n\t "])
def test_a_stream_holds_one_request_after_another(between: bytes) -> None:
    body = between.join([b"", b'{"number":1}', b'{"number":"2"}', b"{}", b""])
    assert [request.number for request in decode_all(Outer, body)] == [1, 2, 0]


def test_requests_before_a_broken_one_are_read() -> None:
    found = decode_all(Outer, b'{"number":1}{"number":')
    assert next(found).number == 1
    with pytest.raises(EtcdError):
        next(found)


class Answer(Response):
    count: str = "0"
    more: bool = False
    blob: bytes = b""
    several: tuple[int, ...] = ()
    header: msgspec.Raw = msgspec.Raw(b"")


@pytest.mark.parametrize("zero", [0, int("0"), 5 - 5])
def test_defaults_are_left_out(zero: int) -> None:
    answer = Answer(count=decimal(zero), more=bool(zero), blob=bytes(zero), several=tuple([1] * zero))
    assert msgspec.json.encode(answer) == b"{}"


def test_integers_are_text_and_bytes_are_padded_base64() -> None:
    answer = Answer(count=decimal(-(2**63)), blob=b"\xff\xfe", header=msgspec.Raw(b'{"a":1}'))
    assert json.loads(msgspec.json.encode(answer)) == {"count": str(-(2**63)), "blob": "//4=", "header": {"a": 1}}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"nonsense", "invalid character 'o' in literal null (expecting 'u')"),
        (b" tru3", "invalid character '3' in literal true (expecting 'e')"),
        (b'{"number": x}', "invalid character 'x' looking for beginning of value"),
        (b'{"number": ', "unexpected EOF"),
        (b"fal", "unexpected EOF"),
    ],
)
def test_what_is_no_value_is_told_as_etcds_decoder_tells_it(body: bytes, words: str) -> None:
    for decoder in (lambda: decode(Outer, body), lambda: list(decode_all(Outer, body))):
        with pytest.raises(EtcdError) as refused:
            decoder()
        assert refused.value.message == words


def test_a_stream_is_read_up_to_what_cannot_be() -> None:
    assert list(decode_stream(Outer, b'{"number":1} {"number":2}\n')) == [Outer(number=1), Outer(number=2)]
    assert list(decode_stream(Outer, b'{"number":1}{"number":"x"}{"number":3}')) == [Outer(number=1)]
    assert list(decode_stream(Outer, b" ")) == []
    for body in (b"x", b"\xff", b'{"number":"x"}{}'):
        with pytest.raises(UnreadableRequest) as refused:
            decode_stream(Outer, body)
        assert (refused.value.code, refused.value.status) == (Code.UNKNOWN, 500)


def test_the_requests_of_a_stream_are_read_one_at_a_time() -> None:
    """A body of 3 MiB holds 390 000 renewals: reading them all at first held every other client up for seconds."""
    requests = decode_stream(Outer, b'{"number":1}{"number":2}{"number":3}')
    assert [next(requests).number, next(requests).number] == [1, 2]
    assert [request.number for request in requests] == [3]


async def test_others_have_their_turn_between_the_requests_of_a_stream() -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    count = 4 * AT_ONCE
    assert [request.number async for request in in_turns(decode_stream(Outer, b'{"number":7}' * count))] == [7] * count
    task.cancel()
    assert turns >= 4


@pytest.mark.parametrize(
    ("objects_max", "body"),
    [
        (10, b'{"list":[' + b",".join([b"{}"] * 10) + b"]}"),
        (10, b'{"unknown":[' + b",".join([b"1"] * 200) + b"]}"),
        (0, b'{"unknown":[' + b",".join([b"1"] * 70_000) + b"]}"),
    ],
)
def test_a_body_of_too_many_values_is_refused_before_it_is_read(objects_max: int, body: bytes) -> None:
    with pytest.raises(EtcdError) as refused:
        check_extent(body, objects_max)
    assert refused.value.code is Code.INVALID_ARGUMENT


def test_any_number_of_short_requests_makes_a_stream() -> None:
    check_extent(b'{"number":1}' * 100_000, 0)


def test_a_list_of_values_has_a_bound() -> None:
    with pytest.raises(EtcdError, match="colours: a list holds at most 1000 values"):
        read({"colours": [0] * 1_001})
