"""Duties: only the leader's, from its term's first applied entry to the term's end, one proposal at a time."""

from __future__ import annotations

import asyncio

from kvnode.errors import Timeout
from kvnode.kv.requests import Put, WriteRequest
from kvnode.node.duties import PROPOSAL_MS
from kvnode.sim.runtime.cluster import Cluster
from tests.node.scenario import simulate


class Noted:
    """A duty that writes down when it is called, and writes a key each time."""

    def __init__(self, name: int) -> None:
        self.name = name
        self.calls: list[str] = []

    def begin(self, now_ms: int) -> None:
        self.calls.append("begin")

    def end(self) -> None:
        self.calls.append("end")

    def decide(self, now_ms: int) -> WriteRequest | None:
        self.calls.append("decide")
        return Put(b"decided", b"%d" % self.name)


def test_duties_follow_the_leadership_and_propose_one_at_a_time() -> None:
    async def scenario(cluster: Cluster) -> None:
        noted = {member: Noted(member) for member in cluster.ids}
        for member, duty in noted.items():
            cluster.members[member].node._duties.add(duty)
        leader = (await cluster.elect()).id
        cluster.members[leader].node._duties._end()  # begin anew, now that there is a duty
        await asyncio.sleep(1.0)
        assert noted[leader].calls[:2] == ["begin", "decide"]
        found = await cluster.kv(leader).get("decided")
        assert found is not None
        assert found.version == noted[leader].calls.count("decide") >= 5
        others = [member for member in cluster.ids if member != leader]
        assert all(noted[member].calls == [] for member in others)

        cluster.network.isolate(leader)
        await asyncio.sleep(2.0)
        decided = noted[leader].calls.count("decide")
        assert noted[leader].calls[-1] == "end", "it has lost its quorum"
        (new,) = [member for member in others if noted[member].calls]
        assert noted[new].calls[0] == "begin"
        cluster.network.heal()
        await asyncio.sleep(2.0)
        assert noted[leader].calls.count("decide") == decided
        found = await cluster.kv(leader).get("decided")
        assert found is not None
        assert found.value == b"%d" % new, "what the old leader had decided did not happen after it"

    simulate(scenario)


def test_what_was_proposed_in_vain_is_given_up_though_nobody_else_writes_here() -> None:
    async def scenario(cluster: Cluster) -> None:
        leader = (await cluster.elect()).id
        node = cluster.members[leader].node
        node._duties.look()
        cluster.network.isolate(leader)
        fate = node._duties.propose(Put(b"k", b"v"))
        await asyncio.sleep(PROPOSAL_MS / 1e3 + 1)
        assert fate.done()
        assert isinstance(fate.exception(), Timeout)
        assert len(node._waiting) == 0

    simulate(scenario)
