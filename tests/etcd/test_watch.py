"""Watch over chunked HTTP: the body holds the requests, every chunk of the answer is one message."""

from __future__ import annotations

import json

import pytest

from tests.etcd.holding import wait_until
from tests.etcd.operations import delete, put
from tests.etcd.target import OUT_OF_RANGE, UNKNOWN, Target
from tests.etcd.watching import assert_created, create, events_until, open_watches, seen, watching
from tests.etcd.words import b64, interval, prefix, revision_of


def test_the_first_message_says_created_at_the_current_revision(target: Target, own: bytes) -> None:
    revision = revision_of(target.put(b64(own), b64("1")))
    with target.stream("watch", create({"key": b64(own)})) as stream:
        result = stream.result()
        assert_created(result)
        assert revision_of(result) == revision  # who answers a write has applied it
        head = stream.head()
        assert (head.status, head.headers["content-type"]) == (200, "application/json")
        assert set(result["header"]) == {"cluster_id", "member_id", "revision", "raft_term"}


def test_a_put_and_a_delete_are_told(target: Target, own: bytes) -> None:
    with watching(target, {"key": b64(own)}) as stream:
        revision = revision_of(target.put(b64(own), b64("1")))
        message = stream.result()
        assert set(message) == {"header", "events"}
        assert revision_of(message) == revision
        kv = {"key": b64(own), "create_revision": str(revision), "mod_revision": str(revision), "version": "1"}
        assert message["events"] == [{"kv": {**kv, "value": b64("1")}}]
        target.delete(key=b64(own))
        message = stream.result()
        assert revision_of(message) == revision + 1
        assert message["events"] == [
            {"type": "DELETE", "kv": {"key": b64(own), "mod_revision": str(revision + 1)}},
        ]


def test_other_keys_are_not_told(target: Target, own: bytes) -> None:
    with watching(target, {"key": b64(own + b"a")}) as single, watching(target, prefix(own + b"a")) as several:
        for key in (b"", b"b", b"aa", b"a"):
            target.put(b64(own + key))
        assert seen(events_until(single, own + b"a")) == [("PUT", own + b"a")]
        assert seen(events_until(several, own + b"a")) == [("PUT", own + b"aa"), ("PUT", own + b"a")]


def test_an_interval_ends_before_its_end(target: Target, own: bytes) -> None:
    with watching(target, interval(own + b"b", own + b"d")) as stream:
        for key in (b"a", b"d", b"b", b"c"):
            target.put(b64(own + key))
        assert seen(events_until(stream, own + b"c")) == [("PUT", own + b"b"), ("PUT", own + b"c")]


def test_every_key_from_one_on(target: Target, own: bytes) -> None:
    with watching(target, {"key": b64(own + b"b"), "range_end": "AA=="}) as stream:
        target.put(b64(own + b"a"))
        target.put(b64(b"u" + own))
        assert seen(stream.result()["events"]) == [("PUT", b"u" + own)]


def test_a_missing_key_means_the_byte_0(target: Target, own: bytes) -> None:
    with watching(target, {}) as single, watching(target, {"range_end": "AA=="}) as everything:
        target.put(b64(own))
        target.put("AA==", b64("1"))
        assert seen(single.result()["events"]) == [("PUT", b"\0")]
        assert seen(events_until(everything, b"\0")) == [("PUT", own), ("PUT", b"\0")]
        target.delete(key="AA==")
        assert seen(single.result()["events"]) == [("DELETE", b"\0")]


def test_both_spellings_of_a_field(target: Target, own: bytes) -> None:
    revision = revision_of(target.put(b64(own), b64("1")))
    request = {"createRequest": {**prefix(own), "startRevision": revision, "prevKv": True, "unheard": 1}}
    request["createRequest"]["rangeEnd"] = request["createRequest"].pop("range_end")
    with target.stream("watch", request) as stream:
        assert_created(stream.result())
        assert seen(stream.result()["events"]) == [("PUT", own)]


@pytest.mark.parametrize("as_text", [True, False])
def test_a_start_revision_is_inclusive(target: Target, own: bytes, as_text: bool) -> None:
    revision = revision_of(target.put(b64(own + b"1")))
    for name in (b"2", b"3"):
        target.put(b64(own + name))
    start = str(revision + 1) if as_text else revision + 1
    with target.stream("watch", create(prefix(own), start_revision=start)) as stream:
        created = stream.result()
        assert_created(created)
        assert revision_of(created) == revision + 2
        target.put(b64(own + b"4"))
        assert seen(events_until(stream, own + b"4")) == [("PUT", own + name) for name in (b"2", b"3", b"4")]


def test_the_current_revision_as_start_tells_its_event_again(target: Target, own: bytes) -> None:
    revision = revision_of(target.put(b64(own), b64("1")))
    with watching(target, {"key": b64(own)}, start_revision=revision) as stream:
        message = stream.result()
        assert seen(message["events"]) == [("PUT", own)]
        assert revision_of(message) == revision


def test_a_future_start_revision_is_silent_until_then(target: Target, own: bytes) -> None:
    revision = revision_of(target.put(b64(own)))
    with watching(target, prefix(own), start_revision=revision + 3) as stream:
        for name in (b"1", b"2", b"3", b"4"):
            target.put(b64(own + name))
        events = events_until(stream, own + b"4")
        assert seen(events) == [("PUT", own + b"3"), ("PUT", own + b"4")]


def test_a_compacted_start_revision_is_created_then_canceled(target: Target, own: bytes) -> None:
    old = revision_of(target.put(b64(own), b64("1")))
    target.put(b64(own), b64("2"))
    kept = revision_of(target.put(b64(own), b64("3")))
    target.ok("kv/compaction", {"revision": kept})
    with target.stream("watch", create({"key": b64(own)}, start_revision=old)) as stream:
        assert_created(stream.result())
        canceled = stream.result()
        assert canceled.pop("canceled") is True
        assert canceled.pop("compact_revision") == str(kept)
        assert "revision" not in canceled.pop("header")
        assert set(canceled) <= {"cancel_reason"}
    target.refused("kv/range", {"key": b64(own), "revision": old}, OUT_OF_RANGE)
    with watching(target, {"key": b64(own)}, start_revision=kept) as stream:
        assert seen(stream.result()["events"]) == [("PUT", own)]


def test_prev_kv(target: Target, own: bytes) -> None:
    with watching(target, {"key": b64(own)}, prev_kv=True) as stream:
        target.put(b64(own), b64("1"))
        [created] = stream.result()["events"]
        assert set(created) == {"kv"}
        target.put(b64(own), b64("2"))
        [changed] = stream.result()["events"]
        assert changed["prev_kv"] == created["kv"]
        target.delete(key=b64(own))
        [deleted] = stream.result()["events"]
        assert deleted["prev_kv"] == changed["kv"]
        assert deleted["type"] == "DELETE"
        target.put(b64(own), b64("3"))
        [again] = stream.result()["events"]
        assert set(again) == {"kv"}


def test_prev_kv_of_history(target: Target, own: bytes) -> None:
    revision = revision_of(target.put(b64(own), b64("1")))
    target.put(b64(own), b64("2"))
    target.delete(key=b64(own))
    with watching(target, {"key": b64(own)}, prev_kv=True, start_revision=revision) as stream:
        events = stream.result()["events"]
        while len(events) < 3:
            events += stream.result()["events"]
        assert [event.get("prev_kv", {}).get("value") for event in events] == [None, b64("1"), b64("2")]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (["NOPUT"], ["DELETE"]),
        ([0], ["DELETE"]),
        (["NODELETE"], ["PUT", "PUT"]),
        ([1], ["PUT", "PUT"]),
        ([], ["PUT", "DELETE", "PUT"]),
        (["NOPUT", "NODELETE"], []),
    ],
)
def test_filters(target: Target, own: bytes, filters: list[str | int], expected: list[str]) -> None:
    """A second watch of the same stream shows the end."""
    both = [create({"key": b64(own)}, filters=filters), create({"key": b64(own + b"end")})]
    with target.stream("watch", *both) as stream:
        assert_created(stream.result())
        assert_created(stream.result(), 1)
        target.put(b64(own))
        target.delete(key=b64(own))
        target.put(b64(own))
        target.put(b64(own + b"end"))
        told: list[str] = []
        is_ended = False
        while not is_ended or len(told) < len(expected):
            message = stream.result()
            if message.get("watch_id") == "1":
                is_ended = True
            else:
                assert message["events"], "a message left empty is not sent"
                told += [event.get("type", "PUT") for event in message["events"]]
        assert told == expected


def test_the_events_of_one_revision_come_together_in_the_order_of_the_changes(target: Target, own: bytes) -> None:
    target.put(b64(own + b"gone"))
    with watching(target, prefix(own)) as stream:
        operations = [put(own + b"z"), delete(own + b"gone"), put(own + b"a"), put(own + b"m")]
        revision = revision_of(target.txn(success=operations))
        message = stream.result()
        assert revision_of(message) == revision
        assert seen(message["events"]) == [
            *(("PUT", own + b"z"), ("DELETE", own + b"gone"), ("PUT", own + b"a"), ("PUT", own + b"m")),
        ]
        assert {event["kv"]["mod_revision"] for event in message["events"]} == {str(revision)}


def test_a_range_delete_is_one_revision_in_key_order(target: Target, own: bytes) -> None:
    names = [b"c", b"a", b"b"]
    target.txn(success=[put(own + name) for name in names])
    with watching(target, prefix(own)) as stream:
        revision = revision_of(target.delete(**prefix(own)))
        message = stream.result()
        assert seen(message["events"]) == [("DELETE", own + name) for name in sorted(names)]
        assert {event["kv"]["mod_revision"] for event in message["events"]} == {str(revision)}


def test_live_changes_come_one_revision_a_message(target: Target, own: bytes) -> None:
    with watching(target, prefix(own)) as stream:
        for number in range(5):
            revision = revision_of(target.put(b64(own + b"%d" % number)))
            message = stream.result()
            assert revision_of(message) == revision
            assert seen(message["events"]) == [("PUT", own + b"%d" % number)]


def test_a_long_history_is_whole(target: Target, own: bytes) -> None:
    first = target.revision() + 1
    for number in range(12):
        target.txn(success=[put(own + b"%d/%d" % (number, part)) for part in range(100)])
    with watching(target, prefix(own), start_revision=first) as stream:
        events = events_until(stream, own + b"11/99")
    expected = [own + b"%d/%d" % (number, part) for number in range(12) for part in range(100)]
    assert [key for _, key in seen(events)] == expected
    revisions = [int(event["kv"]["mod_revision"]) for event in events]
    assert revisions == sorted(revisions)
    assert set(revisions) == set(range(first, first + 12))


def test_several_watches_on_one_stream(target: Target, own: bytes) -> None:
    requests = [create({"key": b64(own + name)}) for name in (b"a", b"b")]
    with target.stream("watch", *requests, create(prefix(own))) as stream:
        for watch_id in range(3):
            assert_created(stream.result(), watch_id)
        target.put(b64(own + b"b"))
        told = sorted(int(stream.result().get("watch_id", "0")) for _ in range(2))
        assert told == [1, 2]
        target.put(b64(own + b"a"))
        told = sorted(int(stream.result().get("watch_id", "0")) for _ in range(2))
        assert told == [0, 2]


def test_requests_may_be_apart_or_not(target: Target, own: bytes) -> None:
    request = json.dumps(create({"key": b64(own)})).encode()
    with target.stream("watch", request, request, b"\n \t", request, b"\n") as stream:
        for watch_id in range(3):
            assert_created(stream.result(), watch_id)


def test_a_watch_id_of_ones_own(target: Target, own: bytes) -> None:
    with target.stream("watch", create({"key": b64(own)}, watch_id=7), create({"key": b64(own)})) as stream:
        assert_created(stream.result(), 7)
        assert_created(stream.result(), 0)
        target.put(b64(own))
        assert {int(stream.result().get("watch_id", "0")) for _ in range(2)} == {0, 7}


def test_automatic_ids_pass_those_in_use(target: Target, own: bytes) -> None:
    requests = [create({"key": b64(own)}, watch_id=watch_id) for watch_id in (1, 0, 0, 0)]
    with target.stream("watch", *requests) as stream:
        for watch_id in (1, 0, 2, 3):
            assert_created(stream.result(), watch_id)


def test_a_duplicate_watch_id_is_refused_and_the_stream_goes_on(target: Target, own: bytes) -> None:
    request = create({"key": b64(own)}, watch_id=7)
    with target.stream("watch", request, request) as stream:
        assert_created(stream.result(), 7)
        refused = stream.result()
        refused.pop("header")
        assert refused == {
            "watch_id": "-1",
            "created": True,
            "canceled": True,
            "cancel_reason": "mvcc: duplicate watch ID provided on the WatchStream",
        }
        target.put(b64(own))
        assert stream.result()["watch_id"] == "7"


@pytest.mark.parametrize("end", [b"a", b"b"])
def test_an_empty_range_is_refused_and_the_stream_goes_on(target: Target, own: bytes, end: bytes) -> None:
    requests = [create(interval(own + b"b", own + end)), create(prefix(own))]
    with target.stream("watch", *requests) as stream:
        refused = stream.result()
        refused.pop("header")
        assert refused.pop("cancel_reason", "mvcc: watcher range is empty") == "mvcc: watcher range is empty"
        assert refused == {"watch_id": "-1", "created": True, "canceled": True}
        created = stream.result()
        assert_created(created)
        target.put(b64(own))
        assert seen(stream.result()["events"]) == [("PUT", own)]


def test_cancel(target: Target, own: bytes) -> None:
    """The body's requests are taken in order, also over HTTP: the second watch is gone, and nothing follows for it."""
    requests = [create(prefix(own)), create(prefix(own)), {"cancel_request": {"watch_id": "1"}}]
    with target.stream("watch", *requests) as stream:
        assert_created(stream.result())
        assert_created(stream.result(), 1)
        canceled = stream.result()
        assert set(canceled.pop("header")) >= {"cluster_id", "member_id", "raft_term"}
        assert canceled == {"watch_id": "1", "canceled": True}
        for number in range(3):
            target.put(b64(own + b"%d" % number))
        for number in range(3):
            message = stream.result()
            assert "watch_id" not in message
            assert seen(message["events"]) == [("PUT", own + b"%d" % number)]


def test_cancel_of_the_first_watch_leaves_its_id_out(target: Target, own: bytes) -> None:
    with target.stream("watch", create(prefix(own)), {"cancel_request": {}}) as stream:
        assert_created(stream.result())
        canceled = stream.result()
        canceled.pop("header")
        assert canceled == {"canceled": True}


def test_cancel_of_an_unknown_id_gets_no_answer(target: Target, own: bytes) -> None:
    with target.stream("watch", {"cancel_request": {"watch_id": 99}}, create({"key": b64(own)})) as stream:
        assert_created(stream.result())


def test_an_idle_stream_tells_its_progress_when_asked(target: Target, own: bytes) -> None:
    revision = revision_of(target.put(b64(own)))
    with target.stream("watch", {"progress_request": {}}) as stream:
        progress = stream.result()
        assert revision_of(progress) == revision
        assert set(progress) == {"header", "watch_id"}
        assert progress["watch_id"] == "-1"


def test_a_request_that_is_no_json_ends_the_stream(target: Target) -> None:
    answer = target.post("watch", b"nonsense")
    assert answer.status == 500
    assert target.refusal(answer).code == UNKNOWN


def test_lease_revocation_is_one_revision(target: Target, own: bytes) -> None:
    lease = target.ok("lease/grant", {"TTL": 60})["ID"]
    for name in (b"c", b"a", b"b"):
        target.put(b64(own + name), lease=lease)
    with watching(target, prefix(own), prev_kv=True) as stream:
        revision = revision_of(target.ok("lease/revoke", {"ID": lease}))
        message = stream.result()
        assert revision_of(message) == revision
        assert seen(message["events"]) == [("DELETE", own + name) for name in (b"a", b"b", b"c")]
        assert {event["kv"]["mod_revision"] for event in message["events"]} == {str(revision)}
        assert {event["prev_kv"]["lease"] for event in message["events"]} == {lease}


def test_fragment_of_a_small_revision_changes_nothing(target: Target, own: bytes) -> None:
    with watching(target, prefix(own), fragment=True) as stream:
        target.txn(success=[put(own + b"%d" % number, b"v") for number in range(10)])
        message = stream.result()
        assert "fragment" not in message
        assert len(message["events"]) == 10


def test_a_large_message_is_cut_where_fragments_are_asked_for(target: Target, own: bytes) -> None:
    """With prev_kv a revision is more than the largest request."""
    size = 120_000
    operations = [put(own + b"%d" % number, b"x" * size) for number in range(9)]
    target.txn(success=operations)
    with (
        watching(target, prefix(own), fragment=True, prev_kv=True) as cut,
        watching(target, prefix(own), prev_kv=True) as whole,
    ):
        target.txn(success=operations)
        parts = [cut.result()]
        while "fragment" in parts[-1]:
            parts.append(cut.result())
        assert len(parts) > 1
        assert all(part["fragment"] is True for part in parts[:-1])
        events = [event for part in parts for event in part["events"]]
        message = whole.result()
        assert "fragment" not in message
        assert events == message["events"], "the same, in parts"
        assert seen(events) == [("PUT", own + b"%d" % number) for number in range(9)]


def test_a_stream_that_creates_nothing_stays_open(target: Target) -> None:
    with target.stream("watch", {}) as stream:
        connection = stream.connection
        if target.is_kvnode:  # etcd sends the headers with the first message only
            assert stream.head().status == 200
        assert not connection.has_more(0.05)


def test_a_watch_is_freed_when_its_client_goes_away(target: Target, own: bytes) -> None:
    streams = [target.stream("watch", *[create({"key": b64(own)})] * 3) for _ in range(4)]
    for stream in streams:
        for watch_id in range(3):
            assert_created(stream.result(), watch_id)
    assert open_watches(target) >= 12
    for stream in streams:
        stream.close()
    # Those of the tests before are closed too: nobody else watches here.
    wait_until(lambda: open_watches(target) == 0, "all watches are freed")


def test_a_canceled_watch_is_freed(target: Target, own: bytes) -> None:
    wait_until(lambda: open_watches(target) == 0, "all watches are freed")
    cancel = {"cancel_request": {"watch_id": 0}}
    with target.stream("watch", create({"key": b64(own)}), create({"key": b64(own)}), cancel) as stream:
        while not stream.result().get("canceled"):
            pass
        wait_until(lambda: open_watches(target) == 1, "one is left")


def test_a_member_tells_its_writers_nothing_old(target: Target, own: bytes) -> None:
    """It has applied a write before it answers: a watch after it begins after it, a serializable read shows it."""
    for number in range(20):
        revision = revision_of(target.put(b64(own), b64(f"{number}")))
        [kv] = target.range(key=b64(own), serializable=True)["kvs"]
        assert (kv["mod_revision"], kv["value"]) == (str(revision), b64(f"{number}"))
        with target.stream("watch", create({"key": b64(own)})) as stream:
            assert revision_of(stream.result()) == revision
