"""Tiny clusters in every order: nothing that two or three cores can meet within a few events breaks an invariant."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kvnode.ids import Index, NodeId
from kvnode.raft import election
from kvnode.raft.messages import AppendReply
from kvnode.raft.state import RaftState
from kvnode.sim.core.small import Budget, SmallWorld, explore


def fresh(size: int, budget: Budget) -> Callable[[], SmallWorld]:
    return lambda: SmallWorld(size, budget)


def led(size: int, budget: Budget) -> Callable[[], SmallWorld]:
    """Node 1 leads, and its first entry is committed and known to be."""

    def make() -> SmallWorld:
        world = SmallWorld(size, Budget(timeouts=0, is_disk_instant=True))
        world.time_out(NodeId(1))
        while world.messages:
            world.deliver(world.messages[0])
        assert [node.raft.commit_index for node in world.nodes.values()] == [1] * size
        world.allow(budget)
        return world

    return make


WORLDS = {
    "two nodes elect, write and crash": (fresh(2, Budget(proposals=1, crashes=1, timeouts=2)), 11),
    "three nodes elect and write": (fresh(3, Budget(proposals=1, timeouts=2, is_disk_instant=True)), 7),
    "a leader of three is followed by another": (
        led(3, Budget(proposals=1, reads=1, timeouts=2, is_disk_instant=True)),
        4,
    ),
    "three nodes write and crash": (led(3, Budget(proposals=1, crashes=1, timeouts=1)), 4),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WORLDS)
def test_every_order_of_events_keeps_the_invariants(name: str) -> None:
    make, depth = WORLDS[name]
    explored = explore(make, depth)
    print(f"{name}, {depth} events deep: {explored.states} states, {explored.runs} runs")
    assert explored.states > 50


def test_a_state_met_again_is_not_explored_again() -> None:
    """Three messages in any order: eight sets of what has arrived, not six orders of four states each."""

    def make() -> SmallWorld:
        world = SmallWorld(2, Budget(proposals=0, timeouts=0))
        for round_ in range(3):
            reply = AppendReply(world.nodes[NodeId(1)].raft.term, NodeId(2), accepted=False, index=Index(round_))
            world.messages.append((NodeId(1), reply))  # to one who does not lead: each is dropped
        return world

    assert explore(make, 3).states < 16


@pytest.mark.slow
def test_a_second_vote_in_a_term_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def may_grant(state: RaftState, message: object) -> bool:
        state.vote = NodeId(0)
        return original(state, message)  # type: ignore[arg-type]

    original = election._may_grant
    monkeypatch.setattr(election, "_may_grant", may_grant)
    with pytest.raises(AssertionError) as found:
        explore(fresh(3, Budget(proposals=0, timeouts=2, is_disk_instant=True)), 8)
    assert any("choices" in note for note in found.value.__notes__)


def test_an_acknowledgement_before_the_disk_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def send(self: RaftState, to: NodeId, message: object, *, holds: int = 0) -> None:
        original(self, to, message)  # type: ignore[arg-type]

    original = RaftState.send
    monkeypatch.setattr(RaftState, "send", send)
    with pytest.raises(AssertionError, match="I9"):
        explore(led(2, Budget(proposals=1, timeouts=0)), 4)
