"""The streams of the etcd API end without their connection: clients use it on, or hold on to its socket."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import msgspec
import pytest

from kvnode.api.etcd import door as etcd_door
from kvnode.api.etcd.method import Stream
from kvnode.api.etcd.proto_json import Response
from tests.api.etcd.local_door import door_of, serving
from tests.api.raw import Door
from tests.client.local_node import LocalNode


class Nothing(msgspec.Struct):
    pass


class Said(Response):
    word: str


async def say_two(_context: Any, _requests: Any) -> AsyncGenerator[Said, None]:
    yield Said("one")
    yield Said("two")


@pytest.fixture
def two_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcd_door, "METHODS", {"words": Stream(Nothing, say_two)})


def asked(door: Door, version: str = "1.1", headers: str = "") -> bytes:
    head = f"POST /v3/words HTTP/{version}\r\nHost: {door.address}\r\n{headers}Content-Length: 2\r\n\r\n"
    return head.encode() + b"{}"


CHUNKS = b'1a\r\n{"result":{"word":"one"}}\n\r\n1a\r\n{"result":{"word":"two"}}\n\r\n0\r\n\r\n'


@pytest.mark.usefixtures("two_words")
async def test_the_next_request_is_served(door: Door) -> None:
    answers = await door.send(asked(door) * 3)
    assert answers.count(b"HTTP/1.1 200 OK\r\n") == answers.count(b"\r\n\r\n" + CHUNKS) == 3
    assert b"\r\nconnection:" not in answers.lower()


@pytest.mark.usefixtures("two_words")
@pytest.mark.parametrize(("version", "headers"), [("1.1", "Connection: close\r\n"), ("1.0", "")])
async def test_a_client_may_want_nothing_more(door: Door, version: str, headers: str) -> None:
    answer = await door.send(asked(door, version, headers))
    assert b"\r\nConnection: close\r\n" in answer
    body = CHUNKS if version == "1.1" else b'{"result":{"word":"one"}}\n{"result":{"word":"two"}}\n'
    assert answer.endswith(b"\r\n\r\n" + body)


async def test_a_watch_leaves_its_socket_to_its_client() -> None:
    body = b'{"create_request":{"key":"YQ=="}}'
    async with serving(LocalNode()) as server, door_of(server) as door:
        head = f"POST /v3/watch HTTP/1.1\r\nHost: {door.address}\r\nContent-Length: {len(body)}\r\n\r\n"
        answer = await door.send(head.encode() + body)
    assert b'"created":true' in answer
    assert b"\r\nconnection:" not in answer.lower()
