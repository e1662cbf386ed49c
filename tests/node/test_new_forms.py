"""Writes that an older version would misread are refused before they are proposed, until no member can be one (S92)."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from kvnode.config import LimitsSection
from kvnode.errors import BadRequest, KeyNotFound, LeaseNotFound, NotReady, TooLarge
from kvnode.kv.requests import (
    TXN_DEPTH_MAX,
    Command,
    Compare,
    LeaseGrant,
    LeaseKeepAlive,
    LeaseRead,
    Put,
    PutReply,
    Range,
    RangeReply,
    Txn,
    TxnReply,
    WriteRequest,
)
from kvnode.kv.stored import NESTED_LEVEL
from kvnode.node import admission
from kvnode.raft.messages import KeepAlive
from kvnode.sim.runtime.cluster import Cluster
from tests.node.scenario import simulate

NEW: list[WriteRequest] = [
    Put(b"a", b"", keep_value=True),
    Put(b"a", b"2", keep_lease=True),
    Txn((Compare(b"a", "version", ">", 0, b"b"),), ()),
    Txn((), (Range(b"a", b"b", counted=True),)),
    Txn((), (), (Txn((), ()),)),
    Command(Txn((), (Txn((), ()),)), key=b"once"),
    LeaseGrant(5_000, put=Put(b"a", b"", keep_value=True)),
]


def old(level: int) -> dict[str, Any]:
    return {"cluster__feature_level_max": level, "limits__no_leader_ms": 100}


@pytest.mark.parametrize("level", [1, NESTED_LEVEL - 1])
def test_what_an_older_member_would_misread_is_not_proposed(level: int) -> None:
    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.elect()
        await leader.put(b"a", b"1")
        await cluster.until(lambda: cluster.configuration.feature_level == level or level == 1)
        await cluster.settle()
        steps = len(cluster.applied.steps)
        for member in cluster.ids:
            node = cluster.kv(member)
            for request in NEW:
                with pytest.raises(NotReady, match=f"needs feature level {NESTED_LEVEL}, and the cluster uses {level}"):
                    await node.execute(request)
            refused, taken = await node.execute_all([NEW[0], Put(b"b", b"")])
            assert isinstance(refused, NotReady)
            assert isinstance(taken, PutReply)
            read = await node.execute(Range(b"a", b"c", 1, counted=True))
            assert (read.count, read.more) == (2, True), "what only reads is nobody else's business"
        await cluster.settle()
        assert len(cluster.applied.steps) == steps + len(cluster.ids), "only the plain puts are in the log"

    simulate(scenario, **old(level))


def test_a_leader_of_an_older_version_is_asked_for_no_lease_with_a_negative_id() -> None:
    """It takes that for damage, and cuts the connection that brought it; asked again, it would do so again."""

    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.elect()
        await cluster.settle()
        follower = cluster.kv(next(member for member in cluster.ids if member != leader.id))
        sent: list[Any] = []
        send = follower._transport.send
        follower._transport.send = lambda to, message: (sent.append(message), send(to, message))[1]
        for request in (LeaseKeepAlive(-5), LeaseRead(-5)):
            with pytest.raises(NotReady, match=f"needs feature level {NESTED_LEVEL}"):
                await follower.execute(request)
        assert not any(isinstance(message, KeepAlive) for message in sent)
        with pytest.raises(LeaseNotFound):
            await follower.execute(LeaseKeepAlive(5))
        assert any(isinstance(message, KeepAlive) for message in sent), "others are asked for there"

    simulate(scenario, **old(3))


def test_they_are_proposed_as_soon_as_all_members_claim_the_level() -> None:
    """The last one is started anew; who asks meanwhile is told to come again, or waits a moment."""

    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.elect()
        await leader.put(b"a", b"1")
        older = next(member for member in cluster.ids if member != leader.id)
        for member in cluster.ids:
            if member != older:
                cluster.kill(member)
                cluster.configs[member] = cluster.reconfigured(member, {"cluster.feature_level_max": 0})
                await cluster.start(member)
                await cluster.elect()
        with pytest.raises(NotReady):
            await cluster.kv(older).execute(NEW[0])
        cluster.kill(older)
        cluster.configs[older] = cluster.reconfigured(older, {"cluster.feature_level_max": 0})
        await cluster.start(older)
        await cluster.until(lambda: cluster.configuration.feature_level == NESTED_LEVEL)
        await cluster.settle()
        for request in NEW:
            await cluster.kv(older).execute(request)
        await cluster.settle()

    simulate(scenario, **old(3))


def test_a_cluster_that_has_just_begun_makes_nobody_ask_twice() -> None:
    async def scenario(cluster: Cluster) -> None:
        assert cluster.configuration.feature_level < NESTED_LEVEL
        for request in [Put(b"a", b"1"), *NEW]:
            await cluster.kv(1).execute(request)
        await cluster.settle()

    simulate(scenario, cluster__feature_level_max=0)


class Uncommitted:
    """A core whose newest configuration is in force, and may be taken back."""

    def __init__(self, raft: Any) -> None:
        self._raft = raft

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raft, name)

    @property
    def committed_configuration(self) -> Any:
        index, configuration = self._raft.committed_configuration
        return index, replace(configuration, feature_level=NESTED_LEVEL - 1)


def test_a_level_that_may_be_taken_back_does_not_count() -> None:
    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.elect()
        await cluster.until(lambda: leader._raft.configuration.feature_level == NESTED_LEVEL)
        leader._path._raft = Uncommitted(leader._raft)  # type: ignore[assignment]
        with pytest.raises(NotReady):
            await leader.execute(NEW[2])

    simulate(scenario, cluster__feature_level_max=0, limits__no_leader_ms=100)


def test_their_answers_come_back_whole() -> None:
    async def scenario(cluster: Cluster) -> None:
        node = cluster.kv(2)
        await node.execute(Txn((), (Txn((), (Put(b"a", b"1"), Put(b"b", b"2"))),)))
        inner = Txn((Compare(b"a", "version", "=", 1, b"c"),), (Range(b"a", b"c", 1, counted=True),))
        request = Txn((), (Put(b"c", b"3"), Txn((), (inner,))))
        for _ in range(2):
            reply = await node.execute(Command(request, key=b"once"))  # the second time from what is stored
            assert isinstance(reply, TxnReply)
            put, nested = reply.results
            assert isinstance(put, PutReply)
            assert isinstance(nested, TxnReply)
            assert isinstance(nested.results[0], TxnReply)
            page = nested.results[0].results[0]
            assert isinstance(page, RangeReply)
            assert (page.count, page.more, len(page.items)) == (2, True, 1)
            assert reply.revision == put.revision == 3
        with pytest.raises(KeyNotFound):
            await node.execute(Txn((), (Put(b"x", b""), Put(b"none", b"", keep_value=True))))
        await cluster.settle()

    simulate(scenario, cluster__feature_level_max=0)


def deep(depth: int) -> Txn:
    found = Txn((), ())
    for _ in range(depth - 1):
        found = Txn((), (found,))
    return found


@pytest.mark.parametrize(
    ("error", "request_"),
    [
        (BadRequest, Put(b"a", b"v", keep_value=True)),
        (BadRequest, Put(b"a", b"", 7, keep_lease=True)),
        (BadRequest, Txn((), (Txn((), (), (Put(b"a", b"", 7, keep_lease=True),)),))),
        (BadRequest, LeaseGrant(5_000, put=Put(b"a", b"", keep_lease=True))),
        (BadRequest, Txn((Compare(b"a", "value", "=", 1, b"b"),), ())),
        (TooLarge, Txn((Compare(b"k" * 5_000, "version", "=", 1, b"b"),), ())),
        (TooLarge, Txn((), (Txn((), (Put(b"a", bytes(2 << 20)),)),))),
        (TooLarge, Txn((), tuple(Txn((), (Put(b"%d" % n, bytes(900_000)),)) for n in range(2)))),
        (TooLarge, deep(TXN_DEPTH_MAX + 1)),
        (TooLarge, Txn((), (Range(b"a"),) * 60, (Txn((), (Range(b"a"),) * 69),))),
    ],
)
def test_what_is_wrong_by_itself_is_refused_at_the_door(error: type[Exception], request_: WriteRequest) -> None:
    limits = LimitsSection()
    with pytest.raises(error):
        admission.check_write(request_, limits)
    with pytest.raises(TooLarge):
        admission.check_write(deep(3_000), limits)
    admission.check_write(deep(TXN_DEPTH_MAX), limits)
    compares, reads = (Compare(b"a", "exists", "=", 1),) * 128, (Range(b"a"),) * 128
    admission.check_write(Txn(compares, reads, reads), limits)


def test_puts_further_inside_need_room_as_well() -> None:
    assert admission._grows(Txn((), (Txn((), (), (Txn((), (Put(b"a", b""),)),)),)))
    assert not admission._grows(Txn((), (Txn((), (Range(b"a"), Txn((), ()))),)))
