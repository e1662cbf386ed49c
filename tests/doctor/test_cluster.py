"""Asking members: the real front door, one that answers nonsense, and what is read from headers and metrics."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgspec
import pytest

from kvnode.client.http import Answer
from kvnode.doctor import cluster
from kvnode.doctor.cluster import clock_bounds, gather, narrowed, sync_speed
from kvnode.doctor.cluster_facts import ClockOffset, MemberTold
from kvnode.observe import metrics
from kvnode.observe.metrics import Histogram
from tests.cli.cluster import serving


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "CLOCK_SAMPLE_S", 0)


@contextmanager
def answering(bodies: dict[str, bytes]) -> Iterator[str]:
    """A server with these answers by path; 404 for everything else."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = bodies.get(self.path)
            self.send_response(404 if body is None else 200)
            self.end_headers()
            self.wfile.write(body or b'{"error": {"code": "not_found"}}')

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_real_node_is_understood():
    with serving() as served:
        facts = gather([served.endpoint], timeout_ms=2_000)
    (member,) = facts.members
    assert member.told is not None
    assert (member.told.id, member.told.role, member.told.cluster_id) == (1, "leader", "00000000000000aa")
    assert (member.told.state_hash, member.hashes) == ("", {})
    assert member.clock is not None
    assert member.clock.least_ms < 0 < member.clock.most_ms


def test_members_that_are_named_are_asked_too():
    with answering({"/v1/status": b'{"id": 2, "state_hash": "aa", "applied_index": 3, "novel": [1]}'}) as other:
        named = [MemberTold(2, "", f"http://{other}"), MemberTold(3, "", "https://elsewhere.example")]
        status = msgspec.json.encode({"id": 1, "role": "leader", "members": named})
        with answering({"/v1/status": status}) as first:
            found = gather([first], timeout_ms=2_000).members
            assert [member.endpoint for member in found] == [first, other]
            assert found[1].hashes == {3: "aa"}
            assert [member.endpoint for member in gather([first], timeout_ms=2_000, only=True).members] == [first]


def test_the_list_of_members_is_taken_where_there_is_one():
    listing = msgspec.json.encode({"members": [{"id": 9, "peer_address": "h:1", "voter": False, "name": "new"}]})
    with answering({"/v1/status": b'{"id": 1}', "/v1/members": listing}) as endpoint:
        assert gather([endpoint], timeout_ms=2_000).listed == (MemberTold(9, "h:1", "", voter=False),)
    with answering({"/v1/status": b'{"id": 1}', "/v1/members": b"nonsense"}) as endpoint:
        assert gather([endpoint], timeout_ms=2_000).listed == ()


def test_what_is_not_kvnode_is_told_and_what_is_down():
    with answering({"/v1/status": b"<html>"}) as page, answering({}) as nothing:
        pass_by = gather([page, nothing, "127.0.0.1:9"], timeout_ms=2_000)
    whys = {member.endpoint: member.why for member in pass_by.members}
    assert "is not kvnode's" in whys[page]
    assert "404 is not kvnode's" in whys[nothing]
    assert "cannot connect" in whys["127.0.0.1:9"]
    assert all(member.told is None for member in pass_by.members)


def test_clock_bounds_hold_the_truth_and_narrow():
    """A clock 300 ms ahead, asked at moments spread over a second, with 20 ms on the way."""
    known: ClockOffset | None = None
    for asked_ms in range(1_795_341_600_000, 1_795_341_601_100, 100):
        second = (asked_ms + 10 + 300) // 1_000
        bounds = clock_bounds(formatdate(second, usegmt=True), asked_ms, asked_ms + 20)
        assert bounds is not None
        assert bounds.least_ms <= 300 <= bounds.most_ms
        known = narrowed(known, bounds)
    assert known is not None
    assert known.most_ms - known.least_ms <= 140
    assert clock_bounds("rubbish", 0, 1) is None


def test_a_clock_set_in_between_is_believed_as_it_is_now():
    assert narrowed(ClockOffset(0, 10), ClockOffset(5_000, 6_000)) == ClockOffset(5_000, 6_000)


def test_the_speed_of_syncs_comes_from_the_histogram():
    histogram = Histogram()
    for _ in range(98):
        histogram.observe(0.0009)
    histogram.observe(0.09)
    histogram.observe(1e9)

    def answer(values: dict[str, metrics.Value]) -> Answer:
        return Answer("h:1", 200, Message(), metrics.render(values))

    speed = sync_speed(answer({"kvnode_wal_fsync_seconds": histogram}))
    assert speed is not None
    assert speed.count == 100
    assert 0.5 < speed.p50_ms <= 1
    assert 50 < speed.p99_ms <= 100
    for _ in range(900):
        histogram.observe(1e9)
    assert sync_speed(answer({"kvnode_wal_fsync_seconds": histogram})).p99_ms == 10_000  # type: ignore[union-attr]
    assert sync_speed(answer({"kvnode_wal_fsync_seconds": Histogram()})) is None
    assert sync_speed(answer({})) is None
    nonsense = b'kvnode_wal_fsync_seconds_bucket{le="x"} 1\nkvnode_wal_fsync_seconds_bucket{le="+Inf"} nan\n'
    assert sync_speed(Answer("h:1", 200, Message(), nonsense)) is None
