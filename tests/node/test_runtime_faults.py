"""Faults of the runtime around the core: lives that end and begin again, and requests nobody could apply."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, cast

import pytest

from kvnode.errors import BadRequest, StorageFailed, TooLarge
from kvnode.ids import NodeId, RequestId, Term
from kvnode.kv.requests import Compare, Delete, Put, Txn
from kvnode.raft.messages import AppendEntries, EntryKind, ForwardProposals, PeerMessage, Proposed
from kvnode.sim.loop import run_virtual
from kvnode.sim.runtime.cluster import Cluster
from kvnode.sim.runtime.transport import VirtualTransport
from kvnode.wire.codec import CodecError, decode_message, encode_message


def simulate(
    scenario: Callable[[Cluster], Awaitable[None]], *, seed: int = 1, size: int = 3, **settings: object
) -> None:
    async def main() -> None:
        cluster = Cluster(seed, size, {name.replace("__", "."): value for name, value in settings.items()})
        await scenario(cluster)
        assert not cluster.failures, cluster.failures

    run_virtual(main())


@contextmanager
def real_seconds_at_most(seconds: int) -> Iterator[None]:
    """A loop that never yields cannot be ended by a timeout of its own."""

    stuck = False

    def end(_number: int, _frame: FrameType | None) -> None:
        nonlocal stuck
        stuck = True
        raise AssertionError("the loop is stuck")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert not stuck


def test_a_node_that_fails_before_it_was_ready_does_not_spin() -> None:
    """Who waits to be caught up is refused at once then, again and again: the loop has to go on to the exit."""

    async def scenario(cluster: Cluster) -> None:
        member = await cluster.start(cluster.ids[0])  # alone: nobody leads, it is not ready
        await asyncio.sleep(0.1)
        member.node._fail(StorageFailed("fdatasync: Input/output error"))
        await asyncio.sleep(0.1)
        assert isinstance(cluster.failures.pop(member.id), StorageFailed)
        await member.node.stop()

    with real_seconds_at_most(10):
        simulate(scenario)


def test_thousands_who_wait_for_a_leader_leave_the_loop_to_the_election() -> None:
    """Asking each of them again every few milliseconds took half a second of work a time: no heartbeat was on time."""

    async def scenario(cluster: Cluster) -> None:
        member = await cluster.start(cluster.ids[0])
        waits = 0
        wait = member.node._facts.leader_changed

        async def count(within_ms: int) -> None:
            nonlocal waits
            waits += 1
            await wait(within_ms)

        member.node._facts.leader_changed = count  # type: ignore[method-assign]
        puts = [asyncio.ensure_future(member.node.put(f"k{number}", "v")) for number in range(1_000)]
        await asyncio.sleep(1.0)
        assert waits < 1_100
        for other in cluster.ids[1:]:
            await cluster.start(other)
        await cluster.elect()
        await asyncio.gather(*puts)

    simulate(scenario)


@pytest.mark.parametrize(
    "request_",
    [
        Txn((Compare(b"k", "version", "=", -(1 << 63) - 1),), (Put(b"k", b"v"),)),
        Txn((Compare(b"k", "version", "=", 1 << 63),), (Put(b"k", b"v"),)),
        Txn((Compare(b"k", "version", "=", 1 << 70),), (Put(b"k", b"v"),)),
        Txn((Compare(b"k", "version", cast(Any, "=="), 1),), (Put(b"k", b"v"),)),
        Txn((Compare(b"k", cast(Any, "colour"), "=", 1),), (Put(b"k", b"v"),)),
        Put(cast(Any, "k"), b"v"),
        Put(b"k", cast(Any, "v")),
        Put(b"k", b"v", if_revision=cast(Any, 1.5)),
        Put(b"k", b"v", return_previous=cast(Any, 1)),
        Delete(b"k", cast(Any, "z")),
    ],
    ids=repr,
)
def test_what_no_node_could_read_back_never_reaches_a_log(request_: Any) -> None:
    """One such entry would end every node that applies it, and again at each restart: the whole cluster, for good."""

    async def scenario(cluster: Cluster) -> None:
        await cluster.start_all()
        leader = await cluster.elect()
        for member in cluster.ids:
            with pytest.raises(BadRequest):
                await cluster.kv(member).execute(request_)
        await leader.put("k", "v")
        assert leader.status().last_index == 2, "the no-op and one put"

    simulate(scenario)


def test_a_transaction_too_large_for_a_peer_message_is_refused_at_the_door() -> None:
    """Compared values count as well: an entry that fits no frame would stop replication for ever."""

    async def scenario(cluster: Cluster) -> None:
        await cluster.start_all()
        leader = await cluster.elect()
        compares = tuple(Compare(b"k%d" % number, "value", "=", bytes(1 << 20)) for number in range(8))
        with pytest.raises(TooLarge):
            await leader.execute(Txn(compares, (Put(b"k", b"v"),)))
        await leader.put("k", "v")

    simulate(scenario)


@pytest.mark.parametrize(
    "proposed",
    [
        Proposed(RequestId(1), b"\xff not a request"),
        Proposed(RequestId(1), b"", kind=EntryKind.CONFIGURATION.value),
        Proposed(RequestId(1), b"\x92\x91\x01\x90", kind=EntryKind.CONFIGURATION.value),
        Proposed(RequestId(1), b"1", kind=EntryKind.NOOP.value),
    ],
    ids=repr,
)
def test_a_peer_can_forward_only_what_can_be_applied(proposed: Proposed) -> None:
    with pytest.raises(CodecError):
        decode_message(encode_message(ForwardProposals(Term(1), NodeId(2), (proposed,))))


def test_an_answer_to_an_earlier_life_confirms_no_read_of_this_one() -> None:
    """The leader holds a read round of a follower that died. Reborn, it completes that round by its first reply.

    Were numbers used again by the next life, the old answer, whose index lies before an acknowledged write, would
    let the new life's first read pass: a stale read (trap R4 across a restart).
    """

    async def scenario(cluster: Cluster) -> None:
        cluster.network.delay_s = (0.001, 0.001)
        cluster.disk_delay_s = 0.005
        await cluster.start_all()
        leader = await cluster.elect()
        await leader.put("k", "old")
        await cluster.settle()
        follower, other = (member for member in cluster.ids if member != leader.id)
        cluster.kill(follower)
        carry = cluster.network.carry

        def without_heartbeats(sender: VirtualTransport, to: NodeId, message: PeerMessage) -> None:
            is_heartbeat = isinstance(message, AppendEntries) and not message.entries
            if not (is_heartbeat and sender.node == leader.id and to == other):
                carry(sender, to, message)

        cluster.network.carry = without_heartbeats  # type: ignore[method-assign]  # the control lane to `other` stalls
        await cluster.start(follower)
        await asyncio.sleep(0.001)
        write = asyncio.ensure_future(leader.put("k", "new"))
        await asyncio.sleep(0.0015)  # the follower's question is there, its echo is not
        state = cluster.members[leader.id].raft.state
        assert state.leadership is not None
        assert [reads for round_ in state.leadership.read_rounds for reads in round_.reads]
        cluster.kill(follower)
        await write
        reborn = await cluster.start(follower)
        found = await reborn.node.get("k")
        assert found is not None
        assert found.value == b"new"

    simulate(scenario)
