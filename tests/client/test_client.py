"""The client over the real front door: every request and reply survives the trip, every failure keeps its meaning."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

import kvnode
from kvnode import errors
from kvnode.client.client import Client
from kvnode.client.endpoints import RetryPolicy
from kvnode.kv.interface import Options
from kvnode.kv.keys import TO_THE_END, prefix_end
from kvnode.kv.requests import MUST_EXIST, Compare, Delete, History, Put, Range, Txn
from tests.client.local_node import LocalNode, served

AWKWARD = [
    b"plain",
    b"a/b//c",
    b".",
    b"..",
    b"a/../b",
    b"%2F",
    b"a b+c",
    b"\xff\x00",
    "héllo".encode(),
    b"?q=1&x#y",
    b"\n",
]
FAST = RetryPolicy(base_ms=1, cap_ms=4)


@pytest.fixture
async def node() -> LocalNode:
    return LocalNode()


@pytest.fixture
async def kv(node: LocalNode) -> AsyncIterator[Client]:
    async with served(node) as address, Client(address, retry=FAST) as client:
        yield client


async def test_it_is_the_same_interface_as_a_node(kv: Client):
    put = await kv.put("greeting", "hello", expect_revision=0)
    assert (put.revision, put.created, put.create_revision, put.version) == (2, True, 2, 1)
    item = await kv.get("greeting")
    assert item is not None
    assert (item.key, item.value, item.mod_revision, item.version) == (b"greeting", b"hello", 2, 1)
    assert item.time == put.time > 0
    assert (await kv.delete("greeting")).deleted == 1
    assert (await kv.delete("greeting")).deleted == 0
    assert await kv.get("greeting") is None


async def test_the_past_is_the_same_as_a_nodes_own(node: LocalNode, kv: Client):
    for key in AWKWARD[:3]:
        for value in (b"one", bytes(range(256))):
            await kv.put(key, value)
    await kv.delete(AWKWARD[0])
    for revision in range(1, 9):
        assert await kv.get(AWKWARD[0], revision=revision) == await node.get(AWKWARD[0], revision=revision)
        for request in (Range(b"", TO_THE_END, revision=revision), History(AWKWARD[0], revision=revision)):
            assert await kv.execute(request) == await node.execute(request), request
    for kv_ in (await node.history(AWKWARD[0])).items:
        at_time = Options(at_time=kv_.time)
        for past in (Range(AWKWARD[0]), Range(b"", TO_THE_END), History(AWKWARD[0])):
            assert await kv.execute(past, at_time) == await node.execute(past, at_time)
    page = await kv.history(AWKWARD[0], limit=2)
    assert ([kv.version for kv in page.items], page.more) == ([0, 2], True)
    rest = await kv.history(AWKWARD[0], before=page.items[-1].mod_revision)
    assert ([kv.value for kv in rest.items], rest.more) == ([b"one"], False)
    assert (await kv.history("missing")).items == ()
    with pytest.raises(errors.FutureRevision):
        await kv.get("k", revision=99)


async def test_waiting_for_a_newer_version(kv: Client):
    put = await kv.put("k", bytes(range(256)))
    found = await kv.wait("k", after_revision=put.revision - 1)
    assert found == await kv.get("k")
    assert await kv.wait("k", after_revision=put.revision, wait_ms=1) is None
    assert await kv.wait("k", wait_ms=1) is None
    await kv.delete("k")
    gone = await kv.wait("k", after_revision=put.revision)
    assert gone is not None
    assert (gone.version, gone.mod_revision) == (0, put.revision + 1)
    assert await kv.wait("never", after_revision=0, wait_ms=1) is None


async def test_replies_equal_the_nodes_own(node: LocalNode, kv: Client):
    for position, key in enumerate(AWKWARD):
        await kv.put(key, key * position)
    for request in [
        Range(b"", TO_THE_END),
        Range(b"", prefix_end(b"a"), limit=1),
        Range(b"a", TO_THE_END, descending=True, keys_only=True),
        Range(b"plain", keys_only=True),
        Range(b"\xff", prefix_end(b"\xff")),
        Range(b"", TO_THE_END, count_only=True),
        *map(Range, AWKWARD),
    ]:
        got, own = await kv.execute(request), node.machine.range(request)
        if request.keys_only:
            assert [item.key for item in got.items] == [item.key for item in own.items]
        else:
            assert got == own, request
    missing = await kv.execute(Range(b"missing"))
    assert (missing.revision, missing.items, missing.count) == (node.revision, (), 0)


@pytest.mark.parametrize("value", [b"", b"\x00" * 1000, b"\xff" * 1000, "ü".encode(), b'"\\', bytes(range(256))])
async def test_values_are_bytes(kv: Client, value: bytes):
    await kv.put(b"k", value)
    item = await kv.get(b"k")
    assert item is not None
    assert item.value == value


async def test_a_value_at_the_limit_fits_however_it_is_written(kv: Client):
    for value in (b"a" * (1 << 20), b"\x00" * (1 << 20), b"\xff" * (1 << 20)):
        assert (await kv.put("big", value)).revision
    with pytest.raises(errors.TooLarge):
        await kv.put("big", b"a" * ((1 << 20) + 1))


async def test_transactions(kv: Client):
    await kv.put("a", "1")
    reply = await kv.txn(
        [Compare(b"a", "value", "=", b"1"), Compare(b"b", "exists", "=", 0), Compare(b"a", "version", ">", 0)],
        [Put(b"b", b"\xff", return_previous=True), Range(b"a"), Delete(b"a", return_previous=True)],
        [Put(b"c", b"")],
    )
    assert reply.succeeded
    put, read, deleted = reply.results
    assert (put.revision, put.created, put.previous) == (3, True, None)
    assert read.items[0].value == b"1"
    assert (deleted.deleted, deleted.previous[0].value) == (1, b"1")
    other = await kv.txn([Compare(b"b", "mod_revision", "=", 99)], [], [Range(b"b")])
    assert not other.succeeded
    assert other.results[0].items[0].value == b"\xff"


async def test_conditions(kv: Client):
    await kv.put("a", "1", expect_revision=0)
    with pytest.raises(errors.CompareFailed) as refused:
        await kv.put("a", "2", expect_revision=0)
    assert refused.value.detail["revision"] == 2
    with pytest.raises(errors.CompareFailed):
        await kv.delete("a", expect_revision=77)
    with pytest.raises(errors.CompareFailed):
        await kv.execute(Put(b"absent", b"", if_revision=MUST_EXIST))
    assert (await kv.execute(Put(b"a", b"3", if_revision=MUST_EXIST))).version == 2
    with pytest.raises(errors.BadRequest):
        await kv.execute(Txn((), (Put(b"a", b"", if_revision=1),)))


async def test_delete_prefix_returns_what_was_there(kv: Client):
    for key in (b"p/1", b"p/2", b"q"):
        await kv.put(key, b"v")
    reply = await kv.execute(Delete(b"p/", prefix_end(b"p/"), return_previous=True))
    assert [item.key for item in reply.previous] == [b"p/1", b"p/2"]
    assert [item.key for item in (await kv.range_prefix("")).items] == [b"q"]


async def test_options_travel(node: LocalNode, kv: Client):
    await kv.execute(Range(b"a"), Options(consistency="stale", timeout_ms=700, request_id="r-7", forward=False))
    assert node.options[-1].consistency == "stale"
    assert node.options[-1].timeout_ms <= 700
    assert node.options[-1].request_id == "r-7"
    assert node.options[-1].forward is False


# -- failures ---------------------------------------------------------------------------------------------------------


async def test_what_had_no_effect_is_tried_again(node: LocalNode, kv: Client):
    node.refuse_next(
        errors.NoLeader("no leader"), errors.Overloaded("full", retry_after_ms=1), errors.NotApplied("replaced")
    )
    assert (await kv.put("k", "v")).revision == 2
    assert len(node.executed) == 1


async def test_an_unknown_outcome_of_a_write_is_reported_and_never_retried(node: LocalNode, kv: Client):
    for failure in (errors.Timeout("late"), errors.LeadershipLost("lost")):
        node.refuse_next(failure)
        with pytest.raises(type(failure)) as raised:
            await kv.put("k", "v")
        assert raised.value.may_have_applied
    assert node.executed == []
    node.refuse_next(errors.KvnodeError("a bug"))
    with pytest.raises(errors.Unknown):
        await kv.txn([], [Put(b"k", b"v")])


async def test_a_read_is_tried_again_whatever_happened(node: LocalNode, kv: Client):
    node.refuse_next(errors.Timeout("late"), errors.LeadershipLost("lost"))
    assert await kv.get("k") is None
    node.refuse_next(errors.Timeout("late"))
    assert (await kv.txn([], [Range(b"k")])).succeeded


async def test_refusals_are_not_retried(node: LocalNode, kv: Client):
    node.refuse_next(errors.TooLarge("too large", limit=5))
    with pytest.raises(errors.TooLarge) as refused:
        await kv.put("k", "v")
    assert refused.value.detail["limit"] == 5
    node.refuse_next(errors.NoSpace("full"))
    with pytest.raises(errors.NoSpace):
        await kv.put("k", "v")


async def test_the_deadline_is_the_only_budget(node: LocalNode, kv: Client):
    node.refuse_next(*[errors.NoLeader("no leader")] * 10_000)
    began = asyncio.get_running_loop().time()
    with pytest.raises(errors.TryAgain):
        await kv.execute(Put(b"k", b"v"), Options(timeout_ms=100))
    assert asyncio.get_running_loop().time() - began < 2
    assert 3 < len(node.options) < 200


async def test_retrying_can_be_turned_off(node: LocalNode):
    async with served(node) as address, Client(address, retry=None) as client:
        node.refuse_next(errors.Timeout("late"))
        with pytest.raises(TimeoutError):
            await client.get("k")
        node.refuse_next(errors.NoLeader("no leader"))
        with pytest.raises(errors.NoLeader):
            await client.get("k")


async def test_a_dead_node_is_passed_over(node: LocalNode):
    async with served(LocalNode()) as dead:
        pass
    async with served(node) as alive, Client([dead, alive], retry=FAST) as client:
        for number in range(5):
            await client.put("k", str(number))
    assert len(node.executed) == 5


async def test_no_node_at_all_is_certainly_not_applied():
    async with served(LocalNode()) as dead:
        pass
    async with Client(dead, retry=FAST) as client:
        with pytest.raises(errors.NotReady):
            await client.execute(Put(b"k", b"v"), Options(timeout_ms=50))


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def raw_server(handler: Handler) -> AsyncIterator[str]:
    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    try:
        yield f"{host}:{port}"
    finally:
        server.close()


async def read_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            await reader.readexactly(int(line.split(b":")[1]))
    return head


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", b"HTTP/1.1 200 OK\r\n"])
async def test_a_write_without_a_complete_answer_is_unknown_and_sent_once(answer: bytes):
    requests = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await read_request(reader))
        writer.write(answer)
        await writer.drain()
        writer.close()

    async with raw_server(handler) as address, Client(address, retry=FAST) as client:
        for call in (client.put("k", "v"), client.delete("k"), client.txn([], [Put(b"k", b"v")])):
            with pytest.raises(errors.ConnectionLost):
                await call
    assert [head.split()[0] for head in requests] == [b"POST"] * 3


async def test_a_reused_connection_that_dies_does_not_double_a_write():
    """The aiohttp client resends a PUT or DELETE by itself here; a POST it must not (ecosystem §4.3)."""
    requests = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            requests.append(await read_request(reader))
            if len(requests) == 2:
                writer.close()  # after the second request on this connection was read: it may have been applied
                return
            body = b'{"results":[{"status":200,"revision":2,"deleted":1}]}'
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            await writer.drain()

    async with raw_server(handler) as address, Client(address, retry=FAST) as client:
        assert (await client.delete("k")).deleted == 1
        with pytest.raises(errors.Unknown):
            await client.delete("k")
    assert len(requests) == 2


async def test_a_node_that_never_answers_ends_with_the_deadline():
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with raw_server(handler) as address, Client(address, retry=FAST) as client:
        began = asyncio.get_running_loop().time()
        with pytest.raises(errors.Timeout):
            await client.execute(Put(b"k", b"v"), Options(timeout_ms=50))
        assert asyncio.get_running_loop().time() - began < 4


async def test_a_leader_hint_is_followed(node: LocalNode):
    async with served(node) as leader:

        async def redirect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            writer.write(
                b"HTTP/1.1 307 Temporary Redirect\r\nKv-Outcome: not-applied\r\nContent-Length: 0\r\n"
                b"Location: http://%s/v1/batch\r\n\r\n" % leader.encode()
            )
            await writer.drain()
            writer.close()

        async with raw_server(redirect) as follower, Client([follower, leader], retry=FAST) as client:
            client._endpoints.on_leader_hint(follower, 0)
            assert (await client.execute(Put(b"k", b"v"), Options(forward=False))).created


async def test_nothing_happens_before_the_first_call_and_nothing_after_close():
    client = kvnode.connect("127.0.0.1:1, http://127.0.0.1:2/")
    assert repr(client) == "<kvnode.Client 127.0.0.1:1,127.0.0.1:2 new>"
    await client.close()
    with pytest.raises(errors.NotReady):
        await client.get("k")
    with pytest.raises(errors.BadRequest):
        Client("nonsense")
