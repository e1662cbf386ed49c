"""Leases, locks and elections by the client, over the real front door: what it tells is what the node did."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from kvnode import errors
from kvnode.client.client import Client
from kvnode.client.endpoints import RetryPolicy
from kvnode.client.locks import Acquire
from kvnode.kv.requests import (
    MUST_EXIST,
    Campaign,
    LeaseGrant,
    LeaseKeepAlive,
    LeaseList,
    LeaseRead,
    LeaseRenew,
    LeaseRevoke,
    LeaseUpkeep,
    Put,
    QueueRead,
    Request,
)
from kvnode.recipes.kept_lease import Standing
from tests.client.local_node import LocalNode, served

AWKWARD = [b"plain", b"a/b//c", b"..", b"%2F", b"a b+c", b"\xff\x00", "héllo".encode(), b"?q=1&x#y"]


@pytest.fixture
async def node() -> LocalNode:
    return LocalNode()


@pytest.fixture
async def kv(node: LocalNode) -> AsyncIterator[Client]:
    async with served(node) as address, Client(address, retry=RetryPolicy(base_ms=1, cap_ms=4)) as client:
        yield client


async def test_a_lease_from_its_grant_to_its_end(node: LocalNode, kv: Client) -> None:
    granted = await kv.grant(30_000)
    assert (granted.ttl_ms, granted.revision) == (30_000, 1)
    for key in AWKWARD:
        await kv.put(key, b"v", lease=granted.id)
    item = await kv.get("plain")
    assert item is not None
    assert item.lease == granted.id
    assert await kv.keep_alive(granted.id) == await node.keep_alive(granted.id)
    for request in (LeaseRead(granted.id), LeaseList()):
        assert await kv.execute(request) == await node.execute(request)
    other = await kv.grant(60_000)
    for listing in (LeaseList(limit=1), LeaseList(after=granted.id), LeaseList(after=other.id)):
        assert await kv.execute(listing) == await node.execute(listing)
    ended = await kv.revoke(granted.id)
    assert (ended.leases, ended.deleted) == ((granted.id,), len(AWKWARD))
    assert await kv.get("plain") is None
    for gone in (LeaseRead(granted.id), LeaseKeepAlive(granted.id), LeaseRevoke(granted.id)):
        with pytest.raises(errors.LeaseNotFound):
            await kv.execute(gone)


async def test_a_put_with_a_lease_of_its_own(node: LocalNode, kv: Client) -> None:
    for key in AWKWARD:
        put = await kv.put(key, bytes(range(256)), ttl_ms=30_000)
        item = await kv.get(key)
        assert item == await node.get(key)
        assert item is not None
        assert (item.mod_revision, item.create_revision, item.time) == (put.revision, put.create_revision, put.time)
        assert item.value == bytes(range(256))
        assert node.machine.leases.get(item.lease) is not None
    with pytest.raises(errors.CompareFailed):
        await kv.put(AWKWARD[0], b"", ttl_ms=30_000, expect_revision=0)
    replaced = await kv.execute(LeaseGrant(30_000, put=Put(AWKWARD[0], b"new", return_previous=True)))
    assert replaced.put is not None
    assert replaced.put.previous is not None
    assert (replaced.put.previous.value, replaced.put.version) == (bytes(range(256)), 2)
    assert node.machine.leases.get(replaced.id) is not None


@pytest.mark.parametrize(
    "request_",
    [
        Campaign(b"n", 30_000),
        QueueRead(b"n"),
        LeaseRenew(1),
        LeaseUpkeep(()),
        LeaseGrant(30_000, id=7),
        LeaseGrant(30_000, put=Put(b"k", b"", if_revision=MUST_EXIST)),
        LeaseGrant(30_000, put=Put(b"k", b"", lease=3)),
    ],
)
async def test_what_has_no_form_over_http_is_refused_here(node: LocalNode, kv: Client, request_: Request) -> None:
    with pytest.raises(errors.BadRequest):
        await kv.execute(request_)  # type: ignore[call-overload]
    assert node.options == [], "nothing was sent"


async def test_what_may_have_taken_effect_is_not_sent_again_and_a_renewal_is(node: LocalNode, kv: Client) -> None:
    lease = (await kv.grant(30_000)).id
    sent = len(node.options)
    for write in (LeaseGrant(30_000), LeaseGrant(30_000, put=Put(b"k", b"")), LeaseRevoke(lease)):
        node.refuse_next(errors.Timeout("who knows"))
        with pytest.raises(errors.Unknown):
            await kv.execute(write)
        sent += 1
        assert len(node.options) == sent
    node.refuse_next(errors.Timeout("who knows"), errors.NoLeader("not now"))
    assert (await kv.keep_alive(lease)).id == lease
    node.refuse_next(errors.NoLeader("not now"))
    await kv.revoke(lease)


@pytest.mark.parametrize("write", [LeaseRevoke(7), LeaseGrant(30_000, put=Put(b"k", b"v")), LeaseGrant(30_000)])
async def test_a_request_whose_connection_dies_was_sent_once(write: Request) -> None:
    """aiohttp by itself would send a PUT or DELETE again."""
    heard: list[bytes] = []

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        heard.append(head.split(b" ")[0])
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    async with Client(f"{host}:{port}") as client:
        with pytest.raises(errors.ConnectionLost):
            await client.execute(write)  # type: ignore[call-overload]
    server.close()
    assert len(heard) == 1


@pytest.mark.parametrize("name", AWKWARD)
async def test_a_lock_is_held_while_the_block_runs(node: LocalNode, kv: Client, name: bytes) -> None:
    async with kv.lock(name, ttl_ms=30_000, owner="ann") as held:
        assert (held.name, held.value, held.ttl_ms, held.standing) == (name, b"ann", 30_000, Standing.SURE)
        queue = await node.execute(QueueRead(name))
        assert [(kv_.create_revision, kv_.lease, kv_.value) for kv_ in queue.waiting] == [
            (held.token, held.lease, b"ann")
        ]
        with pytest.raises(errors.LockHeld) as refused:
            await kv.lock(name, owner="bob").__aenter__()
        assert refused.value.detail["owner"] == "ann"
    assert len(node.machine.leases) == 0


async def test_waiting_hands_it_on_in_order_and_ends_in_time(node: LocalNode, kv: Client) -> None:
    order: list[str] = []

    async def stand(name: str) -> None:
        async with kv.elect("boss", ttl_ms=30_000, wait_ms=20_000, value=name):
            order.append(name)

    async with kv.elect("boss", ttl_ms=30_000, value="ann"):
        waiting = []
        for number, name in enumerate(("bob", "cid", "dot"), start=2):
            waiting.append(asyncio.ensure_future(stand(name)))
            while len(node.machine.leases) < number:
                await asyncio.sleep(0.005)
        with pytest.raises(errors.LockHeld):
            await kv.acquire(Acquire("elections", b"boss", 30_000, wait_ms=30))
        assert order == []
    await asyncio.gather(*waiting)
    assert order == ["bob", "cid", "dot"]
    assert len(node.machine.leases) == 0


async def test_it_is_renewed_and_a_refused_renewal_is_a_loss(node: LocalNode, kv: Client) -> None:
    with pytest.raises(errors.Fenced, match="'deploy' was lost"):  # noqa: PT012  the block is what is looked at
        async with kv.lock("deploy", ttl_ms=1_000) as held:
            while sum(isinstance(request, LeaseKeepAlive) for request in node.executed) < 4:
                await asyncio.sleep(0.01)
            assert held.standing is not Standing.LOST
            await node.revoke(held.lease)
            await asyncio.wait_for(held.lost(), 1)


async def test_without_answers_it_is_in_doubt_and_then_lost(node: LocalNode, kv: Client) -> None:
    with pytest.raises(errors.Fenced, match="no renewal was answered"):  # noqa: PT012
        async with kv.lock("deploy", ttl_ms=1_000) as held:
            node.refusals.extend([errors.NoLeader("none")] * 1_000)
            while held.standing is Standing.SURE:
                await asyncio.sleep(0.01)
            assert held.standing is Standing.IN_DOUBT
            await asyncio.wait_for(held.lost(), 1)
            node.refusals.clear()
    assert len(node.machine.leases) == 0, "it was let go all the same"


async def test_waiting_goes_on_at_another_node_and_an_unknown_outcome_is_told(node: LocalNode, kv: Client) -> None:
    node.refuse_next(errors.NoLeader("none"))
    async with kv.lock("deploy"):
        node.refuse_next(*[errors.NotReady("stopping")] * 3)
        with pytest.raises(errors.LockHeld):
            await kv.lock("deploy", wait_ms=100).__aenter__()
        sent = len(node.options)
        node.refuse_next(errors.Timeout("who knows"))
        with pytest.raises(errors.Unknown):
            await kv.lock("deploy", wait_ms=5_000).__aenter__()
        assert len(node.options) == sent + 1
    await kv.close()
    with pytest.raises(errors.ConnectionLost):
        await kv.lock("deploy", wait_ms=60_000).__aenter__()
