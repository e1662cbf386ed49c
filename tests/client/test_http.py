"""The one-shot caller's parsing, and the error an answer stands for."""

from __future__ import annotations

import json
from urllib.parse import unquote_to_bytes

import pytest

from kvnode import errors
from kvnode.client.http import error_from, key_path, parse_duration_ms, parse_endpoints


def test_endpoints():
    assert parse_endpoints("a:1, http://b:2/ ,[::1]:7401") == ["a:1", "b:2", "[::1]:7401"]
    for bad in ("", "a", "a:b", "a:99999", "a:1/path", "u@a:1", "https://a:1"):
        with pytest.raises(errors.BadRequest):
            parse_endpoints(bad)


def test_durations():
    assert [parse_duration_ms(text) for text in ("500ms", "30s", "5m", "1h")] == [500, 30_000, 300_000, 3_600_000]
    for bad in ("", "5", "s", "-1s", "1.5s", "1d"):
        with pytest.raises(ValueError, match="duration"):
            parse_duration_ms(bad)


@pytest.mark.parametrize("key", [b"a", b"a/b", b".", b"..", b"a/./b", b"%zz", b"?#", bytes(range(1, 256))])
def test_the_path_of_a_key_is_the_key(key: bytes):
    path = key_path(key)
    assert unquote_to_bytes(path.removeprefix("/v1/kv/")) == key
    assert path.isascii()
    assert not {".", ".."} & set(path.split("/"))


def answer(code: str, **extra: object) -> bytes:
    return json.dumps({"error": {"code": code, "message": "words", "detail": {"self": 1}}, **extra}).encode()


def test_every_error_is_found_again_by_its_code():
    for code, cls in errors.by_code().items():
        found = error_from(400, "unknown" if cls.may_have_applied else "not-applied", answer(code), write=True)
        assert isinstance(found, cls)
        assert found.message == "words"
        assert found.detail == {"self": 1}


@pytest.mark.parametrize(
    ("status", "header", "body", "family"),
    [
        (504, "not-applied", answer("timeout"), errors.TryAgain),
        (504, "", answer("timeout", outcome="not-applied"), errors.TryAgain),
        (504, "unknown", answer("timeout"), errors.Timeout),
        (500, "unknown", answer("internal"), errors.Unknown),
        (503, "unknown", answer("no_leader"), errors.Unknown),
        (418, "", answer("teapot"), errors.Rejected),
        (599, "", answer("teapot"), errors.Unknown),
        (502, "", b"<html>bad gateway</html>", errors.Unknown),
        (503, "", b"", errors.Unknown),  # a proxy's word, not the node's
        (503, "not-applied", b"", errors.TryAgain),
        (500, "", b'{"error": "text"}', errors.Unknown),
        (500, "", b"[1]", errors.Unknown),
    ],
)
def test_the_outcome_is_believed_before_the_code(status: int, header: str, body: bytes, family: type[Exception]):
    assert isinstance(error_from(status, header, body, write=True), family)


def test_a_read_that_timed_out_is_a_timeout():
    assert isinstance(error_from(504, "", answer("timeout", outcome="not-applied"), write=False), errors.Timeout)
