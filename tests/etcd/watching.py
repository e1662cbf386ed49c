"""What a watch is asked for, and its messages read back."""

from __future__ import annotations

from typing import Any

from tests.etcd.connection import Stream
from tests.etcd.target import Target
from tests.etcd.websocket import WebSocketStream
from tests.etcd.words import unb64


def create(bounds: dict[str, Any], **more: Any) -> dict[str, Any]:
    """`bounds`: a `key`, perhaps a `range_end`."""
    return {"create_request": {**bounds, **more}}


def watching(target: Target, bounds: dict[str, Any], **more: Any) -> Stream:
    """A stream with one watch, created.

    A watch begins after what its member has applied, so a member that lags would tell what others wrote before.
    """
    target.revision()  # linearizable
    stream = target.stream("watch", create(bounds, **more))
    assert_created(stream.result())
    return stream


def assert_created(result: dict[str, Any], watch_id: int = 0) -> None:
    """Nothing but a header and the id."""
    assert result["created"] is True, result
    assert set(result) == {"header", "created"} | ({"watch_id"} if watch_id else set()), result
    assert int(result.get("watch_id", "0")) == watch_id


def events_until(stream: Stream | WebSocketStream, key: bytes) -> list[dict[str, Any]]:
    """All events up to the first about `key`, however they are spread over messages."""
    found: list[dict[str, Any]] = []
    while not any(unb64(event["kv"]["key"]) == key for event in found):
        found += stream.result()["events"]
    return found


def seen(events: list[dict[str, Any]]) -> list[tuple[str, bytes]]:
    """Types and keys."""
    return [(event.get("type", "PUT"), unb64(event["kv"]["key"])) for event in events]


def open_watches(target: Target) -> int:
    """As the target counts them on its `/metrics`."""
    lines = target.http("GET", "/metrics").body.decode().splitlines()
    [value] = [line.split()[1] for line in lines if line.startswith("etcd_debugging_mvcc_watcher_total ")]
    return int(float(value))
