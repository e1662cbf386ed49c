"""Watch over WebSocket: a client asks and hears at the same time on one stream."""

from __future__ import annotations

import itertools
from typing import Any

from tests.etcd.connection import LIMIT_S
from tests.etcd.holding import wait_until
from tests.etcd.operations import put
from tests.etcd.target import Target
from tests.etcd.watching import assert_created, create, events_until, open_watches, seen
from tests.etcd.websocket import WebSocketStream
from tests.etcd.words import b64, prefix, revision_of


def opened(target: Target, path: str = "/v3/watch") -> WebSocketStream:
    return WebSocketStream(target.connect(), path)


def progress_of(socket: WebSocketStream) -> dict[str, Any]:
    """Ask until answered: a stream that has something to tell may leave a request for progress unanswered."""
    for _ in range(100):
        socket.send({"progress_request": {}})
        try:
            return socket.result(LIMIT_S / 100)
        except TimeoutError:
            continue
    raise TimeoutError("no progress was told")


def test_a_watch_is_created_while_the_stream_is_open(target: Target, own: bytes) -> None:
    with opened(target) as socket:
        socket.send(create({"key": b64(own)}))
        created = socket.result()
        assert_created(created)
        assert revision_of(created) == target.revision()
        revision = revision_of(target.put(b64(own), b64("1")))
        message = socket.result()
        assert revision_of(message) == revision
        assert seen(message["events"]) == [("PUT", own)]
        socket.send(create(prefix(own)))
        assert_created(socket.result(), 1)
        target.put(b64(own + b"a"))
        message = socket.result()
        assert message["watch_id"] == "1"
        assert seen(message["events"]) == [("PUT", own + b"a")]


def test_the_older_prefix(target: Target, own: bytes) -> None:
    with opened(target, "/v3beta/watch") as socket:
        socket.send(create({"key": b64(own)}))
        assert_created(socket.result())


def test_cancel_and_nothing_follows(target: Target, own: bytes) -> None:
    with opened(target) as socket:
        for watch_id in range(2):
            socket.send(create(prefix(own)))
            assert_created(socket.result(), watch_id)
        socket.send({"cancel_request": {"watch_id": "1"}})
        canceled = socket.result()
        assert "cluster_id" in canceled.pop("header")
        assert canceled == {"watch_id": "1", "canceled": True}
        for number in range(3):
            target.put(b64(own + b"%d" % number))
            message = socket.result()
            assert "watch_id" not in message
            assert seen(message["events"]) == [("PUT", own + b"%d" % number)]
        socket.send({"cancelRequest": {"watchId": 0}})
        canceled = socket.result()
        canceled.pop("header")
        assert canceled == {"canceled": True}
        target.put(b64(own))
        socket.send({"cancel_request": {"watch_id": 0}})  # unknown by now: no answer
        socket.send(create({"key": b64(own)}, watch_id=9))
        assert_created(socket.result(), 9)


def test_a_canceled_id_may_be_used_again(target: Target, own: bytes) -> None:
    with opened(target) as socket:
        for _ in range(2):
            socket.send(create({"key": b64(own)}, watch_id=5))
            assert_created(socket.result(), 5)
            socket.send({"cancel_request": {"watch_id": 5}})
            assert socket.result()["canceled"] is True


def test_progress_is_told_when_asked_for(target: Target, own: bytes) -> None:
    with opened(target) as socket:
        socket.send({"progress_request": {}})
        idle = socket.result()
        assert (idle["watch_id"], set(idle)) == ("-1", {"header", "watch_id"})
        socket.send(create({"key": b64(own)}))
        assert_created(socket.result())
        revision = revision_of(target.put(b64(own + b"another")))
        for _ in range(100):
            progress = progress_of(socket)
            assert (progress["watch_id"], set(progress)) == ("-1", {"header", "watch_id"})
            if revision_of(progress) >= revision:
                return
        raise AssertionError(progress)


def test_progress_never_passes_an_event(target: Target, own: bytes) -> None:
    """What progress says has been told has been told, also while changes go on."""
    with opened(target) as socket:
        socket.send(create(prefix(own)))
        assert_created(socket.result())
        told = progressed = 0
        for number in range(20):
            target.put(b64(own + b"%d" % number))
            socket.send({"progress_request": {}})
        while told < 20:
            message = socket.result()
            if "events" in message:
                told += len(message["events"])
                assert int(message["events"][0]["kv"]["mod_revision"]) > progressed
            else:
                progressed = revision_of(message)


def test_a_large_history_is_whole_and_the_live_changes_follow(target: Target, own: bytes) -> None:
    first = target.revision() + 1
    for number in range(5):
        target.txn(success=[put(own + b"%d/%d" % (number, part)) for part in range(100)])
    with opened(target) as socket:
        socket.send(create(prefix(own), start_revision=first))
        assert_created(socket.result())
        target.put(b64(own + b"end"))
        keys = [key for _, key in seen(events_until(socket, own + b"end"))]
    expected = [own + b"%d/%d" % place for place in itertools.product(range(5), range(100))]
    assert keys == [*expected, own + b"end"]


def test_a_frame_that_is_no_json_ends_the_stream(target: Target) -> None:
    with opened(target) as socket:
        socket.send(b"nonsense")
        socket.assert_end()


def test_two_streams_do_not_share_ids(target: Target, own: bytes) -> None:
    with opened(target) as one, opened(target) as other:
        for socket in (one, other):
            socket.send(create({"key": b64(own)}))
            assert_created(socket.result())
        target.put(b64(own))
        for socket in (one, other):
            assert seen(socket.result()["events"]) == [("PUT", own)]


def test_a_watch_is_freed_when_its_client_goes_away(target: Target, own: bytes) -> None:
    wait_until(lambda: open_watches(target) == 0, "those of other tests are freed")
    with opened(target) as socket:
        socket.send(create({"key": b64(own)}))
        assert_created(socket.result())
        assert open_watches(target) == 1
    wait_until(lambda: open_watches(target) == 0, "it is freed")
