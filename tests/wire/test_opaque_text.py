"""Opaque text: round trips, one form for each content, and the bound of its size."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnode.errors import BadEncoding
from kvnode.wire.opaque_text import decode_checked, decode_text, encode_checked, encode_text


@given(st.binary(min_size=1))
def test_it_comes_back_as_it_was(raw: bytes) -> None:
    assert decode_text(encode_text(raw), "thing") == raw
    assert decode_checked(encode_checked(raw).encode(), "thing", bytes_max=len(raw)) == raw


@given(st.binary(min_size=2))
def test_one_byte_more_than_the_bound_is_refused(raw: bytes) -> None:
    for encode, decode in ((encode_text, decode_text), (encode_checked, decode_checked)):
        with pytest.raises(BadEncoding, match="the thing is longer"):
            decode(encode(raw), "thing", bytes_max=len(raw) - 1)


@given(st.text("AQgw-_", min_size=1, max_size=8))
def test_no_two_texts_say_the_same(text: str) -> None:
    with suppress(BadEncoding):
        assert encode_text(decode_text(text, "thing")) == text


@pytest.mark.parametrize("text", ["", "A", "AAAAA", "AB", "A+==", "é", "\ud800", "AA A", "AA=="])
def test_what_is_no_base64url_is_refused(text: str) -> None:
    with pytest.raises(BadEncoding, match="base64url"):
        decode_text(text, "thing")


@pytest.mark.parametrize("raw", [b"\0", b"\0" * 3, b"\0" * 5, b"whole but for this"])
def test_without_its_checksum_it_is_not_ours(raw: bytes) -> None:
    with pytest.raises(BadEncoding, match="the thing is not one of ours"):
        decode_checked(encode_text(raw), "thing")
