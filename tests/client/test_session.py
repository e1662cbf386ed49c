"""Named writes over the real front door: a lost answer is asked for again elsewhere and is the first one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from kvnode import errors
from kvnode.client.client import Client
from kvnode.client.endpoints import RetryPolicy
from kvnode.kv.interface import Options
from kvnode.kv.requests import (
    MUST_EXIST,
    Command,
    Compare,
    Delete,
    LeaseRevoke,
    Put,
    Range,
    SessionEnd,
    SessionOpen,
    SessionReply,
    Txn,
)
from tests.client.local_node import LocalNode, served

FAST = RetryPolicy(base_ms=1, cap_ms=4)


class LossyNode(LocalNode):
    """Executes the next `lost` writes and loses their answers."""

    lost = 0

    async def execute(self, request: Any, options: Options = Options()) -> Any:  # noqa: B008
        reply = await super().execute(request, options)
        if self.lost and isinstance(request, Command):
            self.lost -= 1
            raise errors.ConnectionLost("the answer is lost")
        return reply


@pytest.fixture
async def nodes() -> list[LossyNode]:
    one, two = LossyNode(), LossyNode()
    two.machine, two.clock = one.machine, one.clock
    return [one, two]


@pytest.fixture
async def client(nodes: list[LossyNode]) -> AsyncIterator[Client]:
    async with served(nodes[0]) as one, served(nodes[1]) as two, Client([one, two], retry=FAST) as found:
        yield found


async def test_a_lost_answer_is_asked_for_again_and_the_write_has_one_effect(
    nodes: list[LossyNode], client: Client
) -> None:
    machine = nodes[0].machine
    async with client.session() as kv:
        assert kv.id == 0
        for number in range(5):
            for node in nodes:
                node.lost = 1
            reply = await kv.put("counter", str(number), expect_revision=number + 1 if number else 0)
            assert (reply.revision, reply.version) == (number + 2, number + 1)
        assert machine.revision == 6
        assert machine.exactly_once.repeats >= 5
        found = machine.exactly_once.sessions.get(kv.id)
        assert found is not None
        assert list(found.answers) == [5], "what was acknowledged is gone"
        item = await kv.get("counter")
        assert item is not None
        assert item.version == 5
        assert await kv.wait("counter", after_revision=5, wait_ms=100) == item
    assert len(machine.exactly_once.sessions) == 0


async def test_every_write_travels_and_refusals_keep_their_meaning(client: Client) -> None:
    async with client.session() as kv:
        assert (await kv.execute(Put(b"a/b c+%\xff", b"\xff", return_previous=True))).previous is None
        with pytest.raises(errors.CompareFailed) as refusal:
            await kv.put(b"a/b c+%\xff", b"w", expect_revision=0)
        assert refusal.value.detail == {"revision": 2}
        put = await kv.execute(Put(b"a/b c+%\xff", b"two", if_revision=MUST_EXIST, return_previous=True))
        assert (put.created, put.previous.value, put.version) == (False, b"\xff", 2)
        with pytest.raises(errors.CompareFailed):
            await kv.execute(Delete(b"missing", if_revision=MUST_EXIST))
        gone = await kv.execute(Delete(b"a/b c+%\xff", return_previous=True))
        assert (gone.deleted, gone.previous[0].value) == (1, b"two")
        txn = await kv.txn([Compare(b"x", "exists", "=", 0)], [Put(b"x", b"1"), Put(b"y", b"2"), Range(b"x")])
        assert txn.succeeded
        assert txn.results[2].items[0].value == b"1"
        assert (await kv.delete_prefix("")).deleted == 2
        with pytest.raises(errors.BadRequest):
            await kv.execute(SessionOpen(5_000))


async def test_a_key_names_a_single_write(nodes: list[LossyNode], client: Client) -> None:
    nodes[0].lost = nodes[1].lost = 1
    command = Command(Put(b"k", b"v", if_revision=0), key="order é".encode())
    first = await client.execute(command)
    assert await client.execute(command) == first
    with pytest.raises(errors.Conflict):
        await client.execute(Command(Put(b"k", b"w"), key="order é".encode()))
    assert nodes[0].machine.revision == 2


async def test_a_session_that_is_gone_before_the_first_sending_is_opened_again(
    nodes: list[LossyNode], client: Client
) -> None:
    async with client.session() as kv:
        await kv.put("a", "1")
        gone = kv.id
        await nodes[0].execute(SessionEnd(((gone, 0),)))
        await asyncio.gather(*(kv.put(f"b{number}", "2") for number in range(8)))
        assert kv.id > gone
        assert len(nodes[0].machine.exactly_once.sessions) == 1
    assert nodes[0].machine.revision == 10


async def test_a_session_that_is_gone_after_a_lost_answer_leaves_the_outcome_unknown(
    nodes: list[LossyNode], client: Client
) -> None:
    async with client.session() as kv:
        await kv.put("a", "1")
        session = kv.id

        async def lose_and_forget(self: LossyNode, request: Any, options: Options = Options()) -> Any:  # noqa: B008
            reply = await LocalNode.execute(self, request, options)
            if isinstance(request, Command):
                await LocalNode.execute(self, SessionEnd(((session, 0),)))
                raise errors.ConnectionLost("the answer is lost")
            return reply

        for node in nodes:
            node.execute = lose_and_forget.__get__(node)  # type: ignore[method-assign]
        with pytest.raises(errors.ConnectionLost):
            await kv.put("a", "2")
        assert nodes[0].machine.revision == 3, "it had been executed"


async def test_a_deadline_ends_the_asking(nodes: list[LossyNode], client: Client) -> None:
    for node in nodes:
        node.lost = 1_000_000
    async with client.session() as kv:
        with pytest.raises(errors.Unknown):
            await kv.execute(Put(b"k", b"v"), Options(timeout_ms=200))
    assert nodes[0].machine.revision == 2


async def test_a_plain_write_is_still_never_sent_twice(nodes: list[LossyNode], client: Client) -> None:
    for node in nodes:
        node.refuse_next(errors.ConnectionLost("lost"))
    with pytest.raises(errors.ConnectionLost):
        await client.put("k", "v")
    assert sum(len(node.refusals) for node in nodes) == 1


async def test_opening_is_tried_again(nodes: list[LossyNode], client: Client) -> None:
    for node in nodes:
        node.refuse_next(errors.Timeout("late"))
    reply = await client.execute(SessionOpen(5_000))
    assert isinstance(reply, SessionReply)
    assert (reply.session, reply.ttl_ms) == (1, 5_000)
    assert (await client.execute(SessionEnd(((1, 0),)))).sessions == 1
    assert (await client.execute(SessionEnd(((1, 0),)))).sessions == 0
    assert (await client.execute(Txn((), (Range(b"k"),)))).succeeded


async def test_what_cannot_be_named_is_refused_before_it_is_sent() -> None:
    async with Client("127.0.0.1:9") as client:
        with pytest.raises(errors.BadRequest):
            await client.execute(Command(LeaseRevoke(1), key=b"once"))
