"""Watching through the client: the same parts as on a node, over as many connections as it takes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from typing import Any

import pytest

from kvnode.client.client import Client
from kvnode.client.endpoints import RetryPolicy
from kvnode.client.watch import Lines
from kvnode.errors import BadRequest, Compacted, NoLeader, NotReady
from kvnode.kv.events import Cancelled, Changes, ChangeSet, Event, Listed, Progress, Started, Synced, WatchPart
from kvnode.kv.interface import Options, WatchStream
from kvnode.kv.keys import TO_THE_END
from kvnode.kv.requests import Delete, KeyValue, Put, Txn, Watch
from tests.client.local_node import LocalNode, served
from tests.machine.floor import give_up_below

FAST = RetryPolicy(base_ms=1, cap_ms=4)


@pytest.fixture
def node() -> LocalNode:
    return LocalNode()


@pytest.fixture
async def kv(node: LocalNode) -> AsyncIterator[Client]:
    async with served(node) as address, Client(address, retry=FAST) as client:
        yield client


async def take(stream: WatchStream, count: int) -> list[WatchPart]:
    async with asyncio.timeout(5):
        return [await anext(stream) for _ in range(count)]


async def events(stream: WatchStream, count: int) -> list[Event]:
    found: list[Event] = []
    async with asyncio.timeout(5):
        while len(found) < count:
            part = await anext(stream)
            assert isinstance(part, Changes), part
            found += part.events
    return found


async def test_it_is_the_same_stream_as_a_nodes_own(node: LocalNode, kv: Client) -> None:
    await kv.put("k0", "old")
    asked = Watch(b"", TO_THE_END, previous=True)
    async with aclosing(kv.watch(asked)) as theirs, aclosing(node.watch(asked)) as own:
        assert await take(theirs, 1) == await take(own, 1) == [Started(2, 3)]
        await node.execute(Txn((), (Put(b"k0", b"\xff"), Put(b"\xfe", b"text"))))
        await node.execute(Delete(b"", TO_THE_END))
        assert await events(theirs, 4) == await events(own, 4)


async def test_a_list_and_what_comes_after_it(node: LocalNode, kv: Client) -> None:
    await kv.put("a", "1")
    await kv.put("b", "2")
    async with aclosing(kv.watch_prefix("", list_first=True, progress_ms=100)) as stream:
        started, listed, synced = await take(stream, 3)
        assert started == Started(3, 4)
        assert isinstance(listed, Listed)
        assert [kv_.value for kv_ in listed.items] == [b"1", b"2"]
        assert synced == Synced(3)
        assert await take(stream, 1) == [Progress(3)]
        await kv.put("c", "3")
        assert [event.kv.key for event in await events(stream, 1)] == [b"c"]


async def test_from_the_past_only_some_kinds_of_one_key(node: LocalNode, kv: Client) -> None:
    for value in ("1", "2"):
        await kv.put("k", value)
        await kv.put("other", value)
    await kv.delete("k")
    async with aclosing(kv.watch_key("k", from_revision=3, puts=False)) as stream:
        assert await take(stream, 1) == [Started(6, 3)]
        [event] = await events(stream, 1)
        assert (event.kv.mod_revision, event.kv.version) == (6, 0)


async def test_it_goes_on_when_its_node_stops_and_shows_each_revision_once(node: LocalNode) -> None:
    """The node stops three times, in words and without, and is served again elsewhere."""
    async with AsyncExitStack() as stack:
        addresses = [await stack.enter_async_context(served(node)) for _ in range(2)]
        client = await stack.enter_async_context(Client(",".join(addresses), retry=FAST))
        stream = client.watch_prefix("k")
        await take(stream, 1)
        seen: list[int] = []
        for number in range(12):
            await node.execute(Put(b"k%d" % number, b""))
            if number % 4 == 1:
                seen += [event.kv.mod_revision for event in await events(stream, 2)]
                node.watches.close()
                node._watches = None  # another life
            elif number % 4 == 3:
                seen += [event.kv.mod_revision for event in await events(stream, 2)]
                stream._connection.close()  # type: ignore[union-attr] # nobody says a word
        assert seen == list(range(2, 14))
        await stream.aclose()


async def test_a_session_watches_as_its_client_does(node: LocalNode, kv: Client) -> None:
    async with kv.session() as session, aclosing(session.watch_key("k")) as stream:
        assert await take(stream, 1) == [Started(1, 2)]
        await node.execute(Put(b"k", b"1"))
        assert [event.kv.value for event in await events(stream, 1)] == [b"1"]


async def test_refusals_at_the_start_are_errors(node: LocalNode, kv: Client) -> None:
    with pytest.raises(BadRequest):
        await anext(kv.watch(Watch(b"k", progress_ms=1)))
    give_up_below(node.machine, 5)
    with pytest.raises(Compacted):
        await anext(stream := kv.watch_key("k", from_revision=4))
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    node.refuse_next(NoLeader("none yet"))
    stream = kv.watch_key("k")
    assert isinstance((await take(stream, 1))[0], Started)
    await stream.aclose()


async def test_compacted_on_the_way_ends_it_aloud(node: LocalNode, kv: Client) -> None:
    for _ in range(4):
        await kv.put("k", "v")
    stream = kv.watch_key("k")
    await take(stream, 1)
    stream._disconnect()
    for _ in range(4):
        await kv.put("k", "v")
    give_up_below(node.machine, 8)
    assert await take(stream, 1) == [Cancelled("compacted", 8, 8)]
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_nobody_to_resume_at_is_an_error_after_the_timeout(node: LocalNode) -> None:
    async with Client("127.0.0.1:1", retry=FAST) as client:
        with pytest.raises(NotReady):
            await anext(client.watch(Watch(b"k"), Options(timeout_ms=100)))
    async with Client("127.0.0.1:1", retry=None) as client:
        with pytest.raises(NotReady):
            await anext(client.watch(Watch(b"k"), Options(timeout_ms=60_000)))


def line(kind: str, revision: int, key: str = "k", **more: Any) -> str:
    shared = {"key": key, "time": "2026-11-22T10:00:00.123Z.0000"} if kind in {"put", "delete"} else {}
    return json.dumps({"type": kind, "revision": revision, **shared, **more}) + "\n"


def test_a_revision_that_came_in_part_comes_again_whole() -> None:
    lines = Lines(Watch(b"", TO_THE_END))
    assert lines.begin(5) == Started(5, 6)
    text = line("put", 6) + line("put", 7, "a", more=True) + line("put", 7, "b")
    first, second = text[: len(text) - 40].encode(), text.encode()
    [part] = lines.feed(first)
    assert isinstance(part, Changes)
    assert [each.revision for each in part.sets] == [6]
    assert lines.next == 7
    assert lines.begin(9) is None, "it resumes"
    [part] = lines.feed(second[len(line("put", 6)) :])
    assert isinstance(part, Changes)
    assert [(each.revision, len(each.events)) for each in part.sets] == [(7, 2)]
    assert lines.next == 8
    assert lines.feed(line("progress", 11).encode()) == [Progress(11)]
    assert lines.next == 12


def test_a_list_that_broke_off_begins_again() -> None:
    lines = Lines(Watch(b"", TO_THE_END, list_first=True))
    lines.begin(5)
    assert isinstance(lines.feed(line("put", 3).encode())[0], Listed)
    assert lines.is_listing
    assert lines.begin(8) == Started(8, 9)
    listed, synced = lines.feed((line("put", 3) + line("synced", 8)).encode())
    assert isinstance(listed, Listed)
    assert (synced, lines.next, lines.is_listing) == (Synced(8), 9, False)


@pytest.mark.parametrize("cut", range(1, 60))
def test_lines_may_come_in_any_pieces(cut: int) -> None:
    lines = Lines(Watch(b"", TO_THE_END, 2))
    lines.begin(1)
    text = "".join(line("put", revision, value="é\u2028") for revision in range(2, 8)).encode()
    found: list[ChangeSet] = []
    for first in range(0, len(text), cut):
        for part in lines.feed(text[first : first + cut]):
            assert isinstance(part, Changes)
            found += part.sets
    assert [each.revision for each in found] == [2, 3, 4, 5, 6, 7]
    assert found[0].events[0].kv == KeyValue(b"k", "é\u2028".encode(), 0, 2, 0, 0, found[0].events[0].kv.time)
