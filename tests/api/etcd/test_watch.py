"""``/v3/watch`` over HTTP: how watches begin, what their messages hold, how they and their stream end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from kvnode.api.app import ClientServer
from kvnode.api.etcd import watch, watch_messages
from kvnode.errors import BadKey, Compacted, KvnodeError, NoLeader, Timeout
from kvnode.ids import NodeId
from kvnode.kv.events import Cancelled, Changes, ChangeSet, Event, Started, WatchPart
from kvnode.kv.interface import DEFAULT_OPTIONS, Options, WatchStream
from kvnode.kv.requests import Delete, KeyValue, LeaseGrant, LeaseRevoke, Put, Txn, Watch
from tests.api.etcd.local_door import LIMITS, door_of, serving
from tests.api.etcd.streams import PROGRESS, b64, cancel, create, put, seen, settled, watching
from tests.api.raw import Door
from tests.client.local_node import LocalNode
from tests.machine.floor import give_up_below


@pytest.fixture
def node() -> LocalNode:
    return LocalNode()


@pytest.fixture
async def server(node: LocalNode) -> AsyncIterator[ClientServer]:
    async with serving(node) as server:
        yield server


@pytest.fixture
async def door(server: ClientServer) -> AsyncIterator[Door]:
    async with door_of(server) as door:
        yield door


HEADER = {"cluster_id": str(0xAA), "member_id": "1", "raft_term": "1"}


def header(revision: int) -> dict[str, str]:
    return {**HEADER, "revision": str(revision)}


# ── how a watch begins ──────────────────────────────────────────────────────────────────────────────


async def test_created_first_then_a_message_for_each_revision(door: Door, node: LocalNode) -> None:
    await put(node, b"app/a", b"before")
    async with watching(door, create(b"app/", b"app0")) as messages:
        assert await messages.next() == {"header": header(2), "created": True}
        await put(node, b"app/a", b"now")
        await put(node, b"other")
        await node.execute(Delete(b"app/a"))
        kv = {"key": b64(b"app/a"), "create_revision": "2", "mod_revision": "3", "version": "2", "value": b64(b"now")}
        assert await messages.next() == {"header": header(3), "events": [{"kv": kv}]}
        gone = {"key": b64(b"app/a"), "mod_revision": "5"}
        assert await messages.next() == {"header": header(5), "events": [{"type": "DELETE", "kv": gone}]}


@pytest.mark.parametrize("path", ["/v3/watch", "/v3beta/watch", "/v3alpha/watch"])
async def test_it_is_served_under_all_prefixes(door: Door, path: str) -> None:
    async with asyncio.timeout(3), door.session.post(f"http://{door.address}{path}", json=create(b"k")) as response:
        assert response.headers["Transfer-Encoding"] == "chunked"
        assert response.headers["Content-Type"] == "application/json"
        assert "created" in json.loads(await response.content.readline())["result"]


async def test_history_is_replayed_in_one_message_under_the_current_revision(door: Door, node: LocalNode) -> None:
    for number in range(5):
        await put(node, b"k%d" % number)
    async with watching(door, create(b"k", b"l", start_revision="4")) as messages:
        assert (await messages.next())["header"] == header(6)
        replayed = await messages.next()
        assert seen(replayed) == [("PUT", "k2", 4), ("PUT", "k3", 5), ("PUT", "k4", 6)]
        assert replayed["header"] == header(6)
        await put(node, b"k", b"live")
        live = await messages.next()
        assert (seen(live), live["header"]) == ([("PUT", "k", 7)], header(7))


async def test_a_start_in_the_future_is_silent_until_then(door: Door, node: LocalNode) -> None:
    async with watching(door, create(b"k", start_revision=4)) as messages:
        assert await messages.next() == {"header": header(1), "created": True}
        for _ in range(4):
            await put(node, b"k")
        assert [seen(message) for message in await messages.some(2)] == [[("PUT", "k", 4)], [("PUT", "k", 5)]]


async def test_a_start_below_the_compacted_revision(door: Door, node: LocalNode) -> None:
    for _ in range(6):
        await put(node, b"k")
    give_up_below(node.machine, 5)
    async with watching(door, create(b"k", start_revision=4), create(b"k", start_revision=5)) as messages:
        assert await messages.next() == {"header": header(7), "created": True}
        assert await messages.next() == {"header": HEADER, "canceled": True, "compact_revision": "5"}
        assert await messages.next() == {"header": header(7), "watch_id": "1", "created": True}
        assert [revision for *_, revision in seen(await messages.next())] == [5, 6, 7]
    await settled(node, 0)


async def test_a_negative_start_is_the_beginning(door: Door, node: LocalNode) -> None:
    await put(node, b"k")
    async with watching(door, create(b"k", start_revision="-3")) as messages:
        await messages.next()
        assert seen(await messages.next()) == [("PUT", "k", 2)]


async def test_ids_are_numbers_from_0_or_those_given(door: Door, node: LocalNode) -> None:
    asked = [create(b"k"), create(b"k", watch_id=1), create(b"k"), create(b"k", watch_id="1"), create(b"k")]
    async with watching(door, *asked) as messages:
        found = await messages.some(5)
        assert [message.get("watch_id") for message in found] == [None, "1", "2", "-1", "3"]
        refusal = {
            "header": header(1),
            "watch_id": "-1",
            "created": True,
            "canceled": True,
            "cancel_reason": "mvcc: duplicate watch ID provided on the WatchStream",
        }
        assert found[3] == refusal
        await settled(node, 4)
        await put(node, b"k")
        assert sorted(message.get("watch_id", "0") for message in await messages.some(4)) == ["0", "1", "2", "3"]


async def test_an_empty_range_is_refused_and_the_stream_goes_on(door: Door, node: LocalNode) -> None:
    async with watching(door, create(b"b", b"a"), create(b"b", b"b"), create(b"b")) as messages:
        for _ in range(2):
            message = await messages.next()
            assert (message["watch_id"], message["created"], message["canceled"]) == ("-1", True, True)
            assert message["cancel_reason"] == "mvcc: watcher range is empty"
        assert await messages.next() == {"header": header(1), "created": True}
        assert node.watches.open == 1


async def test_a_missing_key_is_the_byte_0(door: Door, node: LocalNode) -> None:
    async with watching(door, {"create_request": {}}, {"create_request": {"range_end": "AA=="}}) as messages:
        await messages.some(2)
        await put(node, b"k")
        await put(node, b"\x00")
        found = await messages.some(3)
    assert sorted((message.get("watch_id", "0"), seen(message)[0][1]) for message in found) == [
        ("0", "\x00"),
        ("1", "\x00"),
        ("1", "k"),
    ]


async def test_a_key_that_is_too_long_is_refused_in_grpcs_words(door: Door, node: LocalNode) -> None:
    node.refuse_next(BadKey("the key has 10000 bytes, more than 4096"))
    async with watching(door, create(b"k" * 10_000), create(b"k")) as messages:
        message = await messages.next()
        assert (message["watch_id"], message["created"], message["canceled"]) == ("-1", True, True)
        assert message["cancel_reason"].startswith("rpc error: code = InvalidArgument desc = etcdserver: ")
        assert "watch_id" not in await messages.next()
    await settled(node, 0)


async def test_nothing_asked_is_an_open_stream(door: Door) -> None:
    async with watching(door, {}) as messages:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await messages.next()


@pytest.mark.parametrize("body", [b"nope", b"[]", b'{"create_request":7}', b'{"create_request":{"filters":["NO"]}}'])
async def test_a_first_request_that_cannot_be_read_is_refused_as_if_unary(door: Door, body: bytes) -> None:
    answer = await door.ask("POST", "/v3/watch", body)
    assert (answer.status, answer.json["code"]) == (500, 2)
    assert answer.json["error"] == answer.json["message"]


async def test_what_cannot_be_read_later_is_not_heard(door: Door, node: LocalNode) -> None:
    url = f"http://{door.address}/v3/watch"
    body = json.dumps(create(b"k")) + "nope" + json.dumps(create(b"k"))
    async with asyncio.timeout(3), door.session.post(url, data=body) as response:
        await response.content.readline()
        await put(node, b"k")
        assert b"events" in await response.content.readline()
        assert node.watches.open == 1


# ── what is told ────────────────────────────────────────────────────────────────────────────────────


async def test_the_events_of_one_revision_are_one_message_in_their_order(door: Door, node: LocalNode) -> None:
    async with watching(door, create(b"k", b"l")) as messages:
        await messages.next()
        await node.execute(Txn((), (Put(b"k2", b""), Put(b"x", b""), Put(b"k1", b""))))
        lease = (await node.execute(LeaseGrant(60_000))).id
        for key in (b"k2", b"k1"):
            await node.execute(Put(key, b"", lease))
        await node.execute(LeaseRevoke(lease))
        assert seen(await messages.next()) == [("PUT", "k2", 2), ("PUT", "k1", 2)]
        await messages.some(2)
        assert seen(await messages.next()) == [("DELETE", "k1", 5), ("DELETE", "k2", 5)]


async def test_previous_versions_if_asked_for(door: Door, node: LocalNode) -> None:
    async with watching(door, create(b"k", prev_kv=True)) as messages, watching(door, create(b"k")) as plain:
        await messages.next()
        await plain.next()
        for value in (b"1", b"2"):
            await put(node, b"k", value)
        await node.execute(Delete(b"k"))
        events = [message["events"][0] for message in await messages.some(3)]
        assert "prev_kv" not in events[0]
        assert events[1]["prev_kv"] == {
            "key": b64(b"k"), "create_revision": "2", "mod_revision": "2", "version": "1", "value": b64(b"1"),
        }  # fmt: skip
        assert events[2]["prev_kv"]["value"] == b64(b"2")
        assert all("prev_kv" not in message["events"][0] for message in await plain.some(3))


async def test_filters(door: Door, node: LocalNode) -> None:
    no_puts, no_deletes = create(b"", b"\x00", filters=["NOPUT"]), create(b"", b"\x00", filters=[1])
    neither = create(b"", b"\x00", filters=["NOPUT", "NODELETE"])
    async with watching(door, no_puts, no_deletes, neither) as messages:
        await messages.some(3)
        await put(node, b"a")
        assert await messages.next() == {
            "header": header(2),
            "watch_id": "1",
            "events": [{"kv": {"key": b64(b"a"), "create_revision": "2", "mod_revision": "2", "version": "1",
                               "value": b64(b"v")}}],
        }  # fmt: skip
        await node.execute(Txn((), (Put(b"b", b""), Delete(b"a"))))
        both = await messages.some(2)
        assert {message.get("watch_id", "0"): seen(message) for message in both} == {
            "0": [("DELETE", "a", 3)],
            "1": [("PUT", "b", 3)],
        }


async def test_a_long_history_comes_whole_and_in_order(door: Door, node: LocalNode) -> None:
    for number in range(3_000):
        await put(node, b"k%d" % (number % 7))
    async with watching(door, create(b"k", b"l", start_revision=2)) as messages:
        await messages.next()
        found: list[int] = []
        while len(found) < 3_000:
            told = [revision for *_, revision in seen(await messages.next())]
            assert len(told) <= 1_000
            found += told
    assert found == list(range(2, 3_002))


async def test_a_fragmented_watch_gets_a_big_revision_in_parts(door: Door, node: LocalNode) -> None:
    """The limit is 1 MiB a request here."""
    for number in range(5):
        await put(node, b"k%d" % number, b"x" * 400_000)
    asked = create(b"k", b"l", prev_kv=True, fragment=True), create(b"k", b"l", prev_kv=True)
    async with watching(door, *asked) as messages:
        await messages.some(2)
        await node.execute(Delete(b"k", b"l"))
        by_watch: dict[str, list[dict[str, Any]]] = {}
        for message in await messages.some(4):
            by_watch.setdefault(message.get("watch_id", "0"), []).append(message)
    [whole] = by_watch["1"]
    assert [message.get("fragment") for message in by_watch["0"]] == [True, True, None]
    assert [len(message["events"]) for message in by_watch["0"]] == [2, 2, 1]
    assert [event for message in by_watch["0"] for event in message["events"]] == whole["events"]
    assert "fragment" not in whole
    assert {message["header"]["revision"] for message in by_watch["0"]} == {"7"}


async def test_watchers_of_the_same_share_one_rendering(
    door: Door, node: LocalNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered = 0
    encoded = watch_messages._encoded

    def counting(events: Any, *, previous: bool) -> bytes:
        nonlocal rendered
        rendered += 1
        return encoded(events, previous=previous)

    monkeypatch.setattr(watch_messages, "_encoded", counting)
    async with watching(door, *[create(b"k")] * 20, *[create(b"k", prev_kv=True)] * 5) as messages:
        await messages.some(25)
        await put(node, b"k")
        await messages.some(25)
    assert rendered == 2, "once with what was replaced, and once without"


# ── progress ────────────────────────────────────────────────────────────────────────────────────────


async def test_a_quiet_watch_tells_its_progress_if_asked_to(
    door: Door, node: LocalNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "PROGRESS_MS", 100)
    async with watching(door, create(b"k", progress_notify=True), create(b"k")) as messages:
        await messages.some(2)
        await put(node, b"other")
        assert await messages.some(2) == [{"header": header(2)}] * 2


async def test_progress_that_is_asked_for_comes_when_all_watches_are_level(door: Door, node: LocalNode) -> None:
    for _ in range(600):
        await put(node, b"k")
    asked = create(b"k", start_revision=2), create(b"x"), PROGRESS, PROGRESS
    async with watching(door, *asked) as messages:
        found: list[dict[str, Any]] = []
        while len(found) < 2 or "watch_id" not in found[-2]:
            found.append(await messages.next())
            if found[-1].get("watch_id") == "1":
                assert found.pop()["created"]
    *before, first, second = found
    assert first == second == {"header": header(601), "watch_id": "-1"}
    assert [revision for message in before[1:] for *_, revision in seen(message)] == list(range(2, 602))


async def test_progress_of_a_stream_without_watches_comes_at_once(door: Door, node: LocalNode) -> None:
    async with watching(door, PROGRESS, PROGRESS) as messages:
        assert await messages.some(2) == [{"header": header(1), "watch_id": "-1"}] * 2


async def test_progress_is_not_claimed_while_a_watch_is_behind(
    door: Door, node: LocalNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "LOOKS_MAX", 3)
    node.watch = lambda request, options=DEFAULT_OPTIONS: Script(node)  # type: ignore[method-assign]
    async with watching(door, create(b"k"), PROGRESS, cancel(0), PROGRESS) as messages:
        assert "created" in await messages.next()
        found = await messages.some(2)
    assert found[0] == {"header": header(1), "canceled": True}, "the first went unanswered, or was answered later"
    assert found[1] == {"header": header(1), "watch_id": "-1"}


# ── how a watch ends ────────────────────────────────────────────────────────────────────────────────


async def test_a_cancelled_watch_says_so_and_then_nothing(door: Door, node: LocalNode) -> None:
    asked = create(b"k", watch_id=7), create(b"k"), cancel(7), cancel(99), cancel(7)
    async with watching(door, *asked) as messages:
        assert [message.get("watch_id") for message in await messages.some(2)] == ["7", None]
        assert await messages.next() == {"header": header(1), "watch_id": "7", "canceled": True}
        await settled(node, 1)
        await put(node, b"k")
        await put(node, b"k")
        assert [message.get("watch_id") for message in await messages.some(2)] == [None, None]


class Script(WatchStream):
    """A stream that says what it is told to, and then nothing."""

    def __init__(self, node: LocalNode, *parts: WatchPart | Exception) -> None:
        self._parts = [Started(node.machine.revision, node.machine.revision + 1), *parts]
        self.is_closed = False

    async def __anext__(self) -> WatchPart:
        if not self._parts:
            await asyncio.Event().wait()
        part = self._parts.pop(0)
        if isinstance(part, Exception):
            raise part
        return part

    async def aclose(self) -> None:
        self.is_closed = True


def change(revision: int) -> Changes:
    return Changes((ChangeSet(revision, (Event(KeyValue(b"k", b"v", 2, revision, revision - 1)),)),))


async def test_a_stream_that_the_store_gave_up_as_slow_is_resumed_where_it_was(door: Door, node: LocalNode) -> None:
    """Nothing twice, nothing left out, and the client does not hear of it."""
    scripts = [
        Script(node, change(2), change(3), Cancelled("slow", 4)),
        Script(node, change(4), Cancelled("slow", 6)),
        Script(node, change(6)),
    ]
    asked: list[Watch] = []

    def watch_(request: Watch, options: Options = DEFAULT_OPTIONS) -> Script:
        asked.append(request)
        return scripts[len(asked) - 1]

    node.watch = watch_  # type: ignore[method-assign, assignment]
    async with watching(door, create(b"k", prev_kv=True, filters=["NODELETE"])) as messages:
        await messages.next()
        found = [seen(message)[0][2] for message in await messages.some(4)]
    assert found == [2, 3, 4, 6]
    assert [request.from_revision for request in asked] == [0, 4, 6]
    assert {msgspec.structs.replace(request, from_revision=0) for request in asked} == {
        Watch(b"k", previous=True, deletes=False)
    }


@pytest.mark.parametrize("is_late", [False, True])
async def test_a_compaction_that_overtakes_a_watch_ends_it(door: Door, node: LocalNode, is_late: bool) -> None:
    gone: list[WatchPart | Exception] = [Cancelled("compacted", 9, 9)]
    late = Compacted("the changes of revision 2 are dropped", compact_revision=9)
    scripts = [Script(node, Cancelled("slow", 3)), _refusing(node, late)] if is_late else [Script(node, *gone)]
    node.watch = lambda request, options=DEFAULT_OPTIONS: scripts.pop(0)  # type: ignore[method-assign]
    async with watching(door, create(b"k"), PROGRESS) as messages:
        await messages.next()
        assert await messages.next() == {"header": HEADER, "canceled": True, "compact_revision": "9"}
        assert await messages.next() == {"header": header(1), "watch_id": "-1"}, "the stream goes on"


def _refusing(node: LocalNode, error: Exception) -> Script:
    script = Script(node, error)
    script._parts.pop(0)
    return script


# ── how a stream ends ───────────────────────────────────────────────────────────────────────────────


async def test_a_client_that_leaves_frees_everything(door: Door, node: LocalNode, server: ClientServer) -> None:
    async with watching(door, *[create(b"k")] * 10) as messages:
        await messages.some(10)
        assert node.watches.open == 10
        assert len(server._app.etcd.gateway.open_streams) == 1
    await settled(node, 0)
    assert not node.watches.is_watched
    assert not server._app.etcd.gateway.open_streams


async def test_a_client_that_leaves_while_its_watch_opens_frees_it(door: Door, node: LocalNode) -> None:
    opening, go_on = asyncio.Event(), asyncio.Event()
    watches = node.watches
    enter = watches.enter

    async def slowly(request: Watch, reach: Any) -> Any:
        opening.set()
        await go_on.wait()
        return await enter(request, reach)

    watches.enter = slowly  # type: ignore[method-assign]
    host, port = door.address.rsplit(":", 1)
    _, writer = await asyncio.open_connection(host, int(port))
    body = json.dumps(create(b"k")).encode()
    writer.write(b"POST /v3/watch HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    await opening.wait()
    writer.transport.abort()
    await asyncio.sleep(0.05)
    go_on.set()
    await asyncio.sleep(0.05)
    await settled(node, 0)


async def test_a_client_that_does_not_read_is_cut_off_and_nobody_else_waits(door: Door, node: LocalNode) -> None:
    host, port = door.address.rsplit(":", 1)
    _, writer = await asyncio.open_connection(host, int(port), limit=1 << 10)
    body = json.dumps(create(b"k")).encode() * 3
    writer.write(b"POST /v3/watch HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    await settled(node, 3)
    written = 0
    async with watching(door, create(b"k")) as healthy, asyncio.timeout(20):
        await healthy.next()
        while node.watches.open == 4:
            revision = await put(node, b"k", b"x" * 20_000)
            written += 1
            assert seen(await healthy.next()) == [("PUT", "k", revision)]
            if written > 1_000:
                await asyncio.sleep(0.3)
        assert node.watches.open == 1
    writer.close()


async def test_beyond_the_limit_of_watches_it_is_429(door: Door, node: LocalNode) -> None:
    node.watches_max = 2
    async with watching(door, create(b"k"), create(b"k"), create(b"k")) as messages:
        await messages.some(2)
        words = (await messages.any())["error"]
        assert (words["code"], words["grpc_code"], words["http_code"]) == (8, 8, 429)
        assert words["message"] == "etcdserver: too many requests"
        assert await messages.rest() == b""
    await settled(node, 0)
    async with watching(door, create(b"k"), create(b"k")) as messages:
        await messages.some(2)
        answer = await door.ask("POST", "/v3/watch", create(b"k"))
        assert (answer.status, answer.json["error"]["grpc_code"]) == (429, 8)


async def test_a_node_that_stops_ends_all_streams(door: Door, node: LocalNode, server: ClientServer) -> None:
    async with watching(door, create(b"k")) as messages, watching(door, {}) as idle:
        await messages.next()
        await server.drain()
        for stream in (messages, idle):
            words = (await stream.any())["error"]
            assert (words["code"], words["message"]) == (14, "etcdserver: server stopped")
            assert await stream.rest() == b""
    await settled(node, 0)


async def test_a_store_that_stops_ends_the_stream(door: Door, node: LocalNode) -> None:
    async with watching(door, create(b"k")) as messages:
        await messages.next()
        node.watches.close()
        words = (await messages.any())["error"]
        assert (words["code"], words["http_status"]) == (14, "Service Unavailable")
        assert await messages.rest() == b""


# ── without a leader ────────────────────────────────────────────────────────────────────────────────


def lead(node: LocalNode, leader: int | None) -> None:
    node.configuration = msgspec.structs.replace(node.configuration, leader=None if leader is None else NodeId(leader))


async def test_streams_that_need_a_leader_end_without_one(door: Door, node: LocalNode, server: ClientServer) -> None:
    loss = server._app.etcd.gateway.leader_loss
    async with (
        watching(door, create(b"k"), Grpc_Metadata_hasleader="true") as needing,
        watching(door, create(b"k"), Grpc_Metadata_hasleader="true") as left,
        watching(door, create(b"k")) as patient,
    ):
        for stream in (needing, left, patient):
            await stream.next()
        left.response.close()
        await settled(node, 2)
        lead(node, None)
        words = (await needing.any())["error"]
        assert (words["code"], words["http_code"], words["message"]) == (14, 503, "etcdserver: no leader")
        assert await needing.rest() == b""
        await put(node, b"k")
        assert seen(await patient.next()) == [("PUT", "k", 2)]
        assert loss._timer is None, "nobody asks any more"
        answer = await door.ask("POST", "/v3/watch", create(b"k"), Grpc_Metadata_hasleader="true")
        assert (answer.status, answer.json["error"]["message"]) == (503, "etcdserver: no leader")


async def test_a_watch_begins_after_all_that_was_acknowledged_or_at_the_revision_given(
    door: Door, node: LocalNode
) -> None:
    async with watching(door, create(b"k"), create(b"k", start_revision=1)) as messages:
        await messages.some(2)
    assert [(options.consistency, options.timeout_ms) for options in node.options] == [
        ("linearizable", LIMITS.no_leader_ms),
        ("stale", LIMITS.timeout_ms),
    ]


@pytest.mark.parametrize("refusal", [None, NoLeader("no leader"), Timeout("the read was not confirmed")])
async def test_a_watch_opens_where_there_is_no_leader(door: Door, node: LocalNode, refusal: KvnodeError | None) -> None:
    if refusal is None:
        lead(node, None)
    else:
        node.refuse_next(refusal)
    async with watching(door, create(b"k")) as messages:
        assert await messages.next() == {"header": header(1), "created": True}
        assert node.options[-1].consistency == "stale"
        assert node.watches.open == 1
