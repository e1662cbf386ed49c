"""How much one request may hold: 1.5 MiB as etcd encodes it, of which the value may be nearly all."""

from __future__ import annotations

from tests.etcd.operations import put
from tests.etcd.target import INVALID_ARGUMENT, RESOURCE_EXHAUSTED, Target
from tests.etcd.words import b64, prefix, unb64

REQUEST_BYTES = 3 << 19
TOO_LARGE = "etcdserver: request is too large"


def test_a_value_that_nearly_fills_a_request(target: Target, own: bytes) -> None:
    value = bytes(range(256)) * (1_000_000 // 256)
    target.put(b64(own), b64(value))
    [kv] = target.range(key=b64(own))["kvs"]
    assert unb64(kv["value"]) == value
    previous = target.delete(key=b64(own), prev_kv=True)["prev_kvs"]
    assert unb64(previous[0]["value"]) == value


def test_a_request_that_is_too_large(target: Target, own: bytes) -> None:
    before = target.revision()
    body = {"key": b64(own), "value": b64(b"x" * REQUEST_BYTES)}
    target.refused("kv/put", body, INVALID_ARGUMENT, TOO_LARGE)
    values = b"x" * (REQUEST_BYTES // 20)
    many = [put(own + b"%d" % number, values) for number in range(21)]
    target.refused("kv/txn", {"success": many}, INVALID_ARGUMENT, TOO_LARGE)
    assert target.revision() == before


def test_a_request_that_is_far_too_large(target: Target, own: bytes) -> None:
    """Whoever looks first refuses it: etcd's gateway with a code of its own."""
    before = target.revision()
    for size in (3 << 20, 8 << 20):
        answer = target.post("kv/put", {"key": b64(own), "value": b64(b"x" * size)})
        assert target.refusal(answer).code in {INVALID_ARGUMENT, RESOURCE_EXHAUSTED}, answer
    assert target.revision() == before
    assert set(target.range(key=b64(own))) == {"header"}


def test_a_long_key(target: Target, own: bytes) -> None:
    key = own + b"k" * (4_096 - len(own))
    target.put(b64(key), b64("1"))
    assert target.range(key=b64(key))["count"] == "1"
    assert target.range(**prefix(key[:-1]))["count"] == "1"
    assert target.delete(key=b64(key))["deleted"] == "1"


def test_the_shortest_keys(target: Target) -> None:
    for key in (b"\0", b"\xff", b" "):
        target.put(b64(key), b64("1"))
        assert target.range(key=b64(key))["count"] == "1"
        assert target.delete(key=b64(key))["deleted"] == "1"
