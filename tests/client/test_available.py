"""What needs no quorum, by the client, over the real front door: it is what the node itself would say."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest

from kvnode import errors
from kvnode.client import available
from kvnode.client.client import Client
from kvnode.client.endpoints import RetryPolicy
from kvnode.embedded import EmbeddedNode
from kvnode.kv.available import ApRead, Available, Seen, follow_events, seen_also
from kvnode.kv.available_calls import EventPost, EventsRead
from tests.api.fake_available import INCARNATION, FakeAvailable
from tests.client.local_node import LocalNode, served

AWKWARD = [b"plain", b"a/b//c", b".", b"a/../b", b"%2F", b"a b+c", b"\xff\x00", b"?q=1&x#y", b"\n"]


@pytest.fixture
async def node() -> LocalNode:
    return LocalNode()


@pytest.fixture
def plane(node: LocalNode) -> FakeAvailable:
    return node.plane


@pytest.fixture
async def client(node: LocalNode) -> AsyncIterator[Client]:
    async with served(node) as address, Client(address, retry=RetryPolicy(base_ms=1, cap_ms=4)) as found:
        yield found


async def test_it_is_the_same_interface_as_a_node(client: Client) -> None:
    assert isinstance(client, Available)


@pytest.mark.parametrize("key", AWKWARD)
async def test_keys_and_values_as_a_node_has_them(client: Client, plane: FakeAvailable, key: bytes) -> None:
    assert await client.ap_get(key) == await plane.ap_get(key) == ApRead(key, (), (), "")
    written = await client.ap_put(key, b"\x00\xff")
    assert await client.ap_get(key) == await plane.ap_get(key)
    assert written.token_dot == (1, INCARNATION, 1)
    await client.ap_put(key, key)
    both = await client.ap_get(key)
    assert both == await plane.ap_get(key)
    assert both.values == tuple(sorted((b"\x00\xff", key)))
    assert await client.ap_get(key, resolve="max") == await plane.ap_get(key, resolve="max")
    assert (await client.ap_list()).items == (await plane.ap_list()).items
    gone = await client.ap_delete(key, context=both.context)
    assert gone.token_dot == (1, INCARNATION, 3)
    missing = await client.ap_get(key)
    assert missing == await plane.ap_get(key)
    assert missing.context == gone.context
    again = await client.ap_put(key, b"new", context=missing.context)
    assert (await client.ap_get(key)).context == again.context
    assert (await client.ap_get(key)).values == (b"new",)


async def test_pages(client: Client, plane: FakeAvailable) -> None:
    for key in ("a/1", "a/2", "a/3", "b"):
        await client.ap_put(key, "v")
    first = await client.ap_list("a/", limit=2)
    assert ([item.key for item in first.items], first.more) == ([b"a/1", b"a/2"], True)
    rest = await client.ap_list("a/", after=first.items[-1].key)
    assert ([item.key for item in rest.items], rest.more) == ([b"a/3"], False)
    assert plane.asked[-1][:4] == ("list", b"a/", b"a/2", 1_000)


async def test_what_was_seen_goes_along(client: Client, plane: FakeAvailable) -> None:
    written = await client.ap_put("k", "v", timeout_ms=777)
    assert written.token_dot is not None
    seen = seen_also(Seen(), 5, (written.token_dot,))
    read = await client.ap_get("k", seen=seen)
    assert plane.asked[-1][3] == seen
    assert read.dots == seen.dots
    elsewhere = Seen(5, ((2, 0xB2, 9),))
    with pytest.raises(errors.NotReady):
        await client.ap_get("k", seen=elsewhere, timeout_ms=30)
    written = await client.ap_put("k", "w", seen=elsewhere)
    assert written.token_dot == (1, INCARNATION, 2), "that of the write, whatever else the token says"
    assert plane.asked[-1][4] == elsewhere
    assert (await client.post_event(b"{}", seen=Seen(99))).lamport == 100
    assert await client.ap_delete("none", seen=elsewhere) == await plane.ap_delete(b"none", seen=elsewhere)
    assert (await client.ap_delete("none")).token_dot is None


async def test_refusals_are_the_classes_of_the_tree(client: Client) -> None:
    with pytest.raises(errors.BadContext):
        await client.ap_put("k", "v", context="OTk5")
    with pytest.raises(errors.TooLarge):
        await client.ap_put("k", bytes(65_537))
    with pytest.raises(errors.BadEncoding):
        await client.events("x")
    with pytest.raises(errors.BadRequest):
        await client.post_event(b"[]")
    for _ in range(32):
        await client.ap_put("k", "v")
    with pytest.raises(errors.Conflict) as refused:
        await client.ap_put("k", "v")
    await client.ap_put("k", "v", context=refused.value.detail["context"])
    assert (await client.ap_get("k")).values == (b"v",)


async def test_reads_are_tried_again_and_writes_only_if_nothing_happened(client: Client, plane: FakeAvailable) -> None:
    plane.fail_next = errors.NotReady("not yet")
    await client.ap_put("k", "v")
    assert (await client.ap_get("k")).values == (b"v",)
    plane.fail_next = errors.Timeout("no answer")
    assert (await client.ap_get("k")).values == (b"v",)
    for again in (client.ap_put("k", "w"), client.ap_delete("k"), client.post_event(b"{}")):
        plane.fail_next = errors.Timeout("not durable in time")
        with pytest.raises(errors.Unknown):
            await again
    assert not available.is_repeatable(EventPost(b"{}", Seen()))
    assert available.is_repeatable(EventsRead("", False, False, 1, 0))


async def test_events_as_a_node_tells_them(client: Client, plane: FakeAvailable) -> None:
    await plane.happen("member.dead", b'{"id":3,"x":[1.5,"y"]}', late=True, gap=3)
    posted = await client.post_event(json.dumps({"deploy": "web"}).encode())
    page = await client.events()
    assert page == await plane.events()
    assert page.events[1] == posted
    plane.watermark = 1
    assert await client.events(stable=True, limit=5) == await plane.events(stable=True, limit=5)
    await client.events("c1", allow_late=True, limit=9)
    assert plane.asked[-1] == ("events", "c1", False, True, 9, 0)
    assert (await client.events(page.cursor, wait_ms=20)).events == ()
    assert plane.waited == [20]


async def test_following(client: Client, plane: FakeAvailable) -> None:
    for kind in "abc":
        await plane.happen(kind)
    kinds = []
    async for page in follow_events(client, limit=2):
        kinds += [event.kind for event in page.events]
        if kinds[-1] == "d":
            break
        if kinds[-1] == "c":
            await plane.happen("d")
    assert kinds == ["a", "b", "c", "d"]


async def test_an_embedded_node_offers_the_same() -> None:
    plane = FakeAvailable()
    running = SimpleNamespace(available=plane)
    node = EmbeddedNode(running, lambda make: make())  # type: ignore[arg-type]
    assert isinstance(node, Available)
    written = await node.ap_put("k", "v")
    assert written.token_dot is not None
    assert (await node.ap_get("k", resolve="lww", seen=Seen(0, (written.token_dot,)))).values == (b"v",)
    assert [item.key for item in (await node.ap_list("k")).items] == [b"k"]
    await node.ap_delete("k", context=written.context)
    assert (await node.ap_get("k")).values == ()
    posted = await node.post_event(b"{}", seen=Seen(7))
    assert (posted.lamport, (await node.events()).events) == (8, (posted,))
    assert await node.alive_members() == ()


async def test_members_carry_what_gossip_says(client: Client) -> None:
    [one] = (await client.members()).members
    assert one.status == "unknown"
