"""Many writes handed over at once: each on its own, in order, answered as `execute` would have."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kvnode.errors import CompareFailed, KvnodeError, NoLeader, Overloaded, Timeout, TooLarge
from kvnode.kv.interface import KV, Options
from kvnode.kv.requests import Delete, DeleteReply, Put, PutReply, Range, RangeReply
from kvnode.raft.messages import Proposed
from kvnode.sim.runtime.cluster import Cluster
from tests.node.scenario import simulate


@pytest.mark.parametrize("on_leader", [True, False])
def test_each_gets_its_own_answer_in_order(on_leader: bool) -> None:
    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.elect()
        node = leader if on_leader else cluster.kv(next(member for member in cluster.ids if member != leader.id))
        found = await node.execute_all(
            [
                Put(b"a", b"1"),
                Put(b"a", b"2", if_revision=0),
                Put(b"big", bytes(2 << 20)),
                Put(b"a", b"3"),
                Delete(b"a"),
                Delete(b"a"),
            ]
        )
        first, refused, too_large, second, deleted, nothing = found
        assert isinstance(first, PutReply)
        assert isinstance(second, PutReply)
        assert (first.created, second.version, second.revision) == (True, 2, first.revision + 1)
        assert isinstance(refused, CompareFailed)
        assert isinstance(too_large, TooLarge)
        assert isinstance(deleted, DeleteReply)
        assert deleted == DeleteReply(second.revision + 1, 1)
        assert nothing == DeleteReply(second.revision + 1, 0)
        assert await node.execute_all([]) == []
        await cluster.settle()

    simulate(scenario)


def test_reads_among_them_are_answered_too() -> None:
    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.elect()
        found = await leader.execute_all([Put(b"a", b"1"), Range(b"none"), Range(b"")])
        assert isinstance(found[0], PutReply)
        assert isinstance(found[1], RangeReply)
        assert isinstance(found[2], KvnodeError)

    simulate(scenario)


def _with_queue(node: KV, wrap: Any) -> None:
    queue = node._driver.queue  # type: ignore[attr-defined]
    queue.put_proposal = wrap(queue.put_proposal)


def test_what_no_log_had_is_proposed_again_and_the_rest_is_not() -> None:
    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.elect()
        seen: list[bytes] = []

        def wrap(put_proposal: Any) -> Any:
            def refusing(proposal: Proposed) -> None:
                seen.append(proposal.payload)
                if len(seen) in {2, 4}:
                    leader._waiting.refused(proposal.id, NoLeader("deposed"))  # type: ignore[attr-defined]
                elif len(seen) == 3:
                    raise Overloaded("full")
                else:
                    put_proposal(proposal)

            return refusing

        _with_queue(leader, wrap)
        found = await leader.execute_all([Put(b"%d" % number, b"") for number in range(4)])
        assert isinstance(found[2], Overloaded)
        assert [reply.revision for reply in found if isinstance(reply, PutReply)] == [2, 3, 4]
        assert seen[4:] == [seen[1], seen[3]]
        assert leader._path.proposals_failed == 1  # type: ignore[attr-defined]

    simulate(scenario)


def test_without_a_leader_all_are_refused_and_certainly_not_applied() -> None:
    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.elect()
        for member in cluster.ids:
            if member != leader.id:
                cluster.kill(member)
        await cluster.until(lambda: leader.status().role != "leader")
        found = await leader.execute_all([Put(b"a", b""), Put(b"", b""), Put(b"c", b"")])
        assert [type(error).__name__ for error in found] == ["NoLeader", "BadKey", "NoLeader"]
        assert not any(error.may_have_applied for error in found if isinstance(error, KvnodeError))

    simulate(scenario)


def test_a_deadline_and_a_caller_that_goes_away_leave_nobody_waiting() -> None:
    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.elect()
        cluster.network.isolate(leader.id)
        puts = [Put(b"%d" % number, b"") for number in range(3)]
        late = await leader.execute_all(puts, Options(timeout_ms=200))
        assert all(isinstance(error, Timeout) for error in late)
        waiting = asyncio.ensure_future(leader.execute_all(puts))
        await asyncio.sleep(0.01)
        assert leader.counters()["kvnode_proposals_pending"] == 3
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert leader.counters()["kvnode_proposals_pending"] == 0
        cluster.network.heal()
        await cluster.settle()

    simulate(scenario)
