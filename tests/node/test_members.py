"""The leader's duties about members: what is due, in which order, and how often it is tried."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import pytest

from kvnode.ids import NodeId
from kvnode.kv.members import MemberChange, PromoteMember, RaiseFeatureLevel, RemoveMember
from kvnode.node.members import AGAIN_MS_MAX, AGAIN_MS_MIN, MemberDuty
from kvnode.node.ports import LinkInfo
from kvnode.raft.messages import Configuration, EntryKind, LeaderProposals, Member
from kvnode.sim.runtime.cluster import Cluster
from kvnode.wire.codec import encode_change
from tests.node.scenario import simulate


class Core:
    """Member 1 leads; as much of the core as the duty looks at."""

    node = NodeId(1)
    commit_index = 5_000
    configuration_index = 10

    def __init__(self, *members: Member, voters: int = 3, level: int = 1) -> None:
        """Members 1 up to `voters`, and whom `members` describe: learners, unless they stand among the voters."""
        described = {member.id: member for member in members}
        ids = sorted({*range(1, voters + 1), *described})
        everybody = tuple(described.get(NodeId(i), Member(NodeId(i), i, f"a:{i}")) for i in ids)
        learners = tuple(member.id for member in everybody if member.id > voters)
        self.configuration = Configuration(
            tuple(member.id for member in everybody if member.id <= voters), learners, everybody, NodeId(ids[-1]), level
        )
        self.caught_up = {member.id for member in everybody}
        self.links = {id_: LinkInfo(id_, True, 1, "", feature_level=1) for id_ in self.caught_up if id_ != 1}

    def is_caught_up(self, peer: NodeId) -> bool:
        return peer in self.caught_up


def duty_of(core: Any, level: int = 1) -> MemberDuty:
    duty = MemberDuty(raft=core, links=lambda: core.links, feature_level=level)
    duty.begin(0)
    return duty


def learner(id_: int = 4, replaces: int = 0) -> Member:
    return Member(NodeId(id_), id_, f"a:{id_}", wants_vote=True, replaces=NodeId(replaces))


def test_there_is_nothing_to_do_for_a_settled_cluster() -> None:
    assert duty_of(Core()).decide(0) is None
    assert duty_of(Core(Member(NodeId(4), 4, "a:4"))).decide(0) is None, "a learner that wants no vote stays one"


def test_a_learner_is_promoted_once_it_has_caught_up() -> None:
    core = Core(learner())
    duty = duty_of(core)
    core.caught_up.clear()
    assert duty.decide(0) is None
    core.caught_up.add(NodeId(4))
    assert duty.decide(0) == PromoteMember(NodeId(4))


def test_whom_it_replaces_goes_only_when_it_votes() -> None:
    assert duty_of(Core(learner(replaces=3))).decide(0) == PromoteMember(NodeId(4))
    behind = Core(learner(replaces=3))
    behind.caught_up.clear()
    assert duty_of(behind).decide(0) is None
    voter = Member(NodeId(4), 4, "a:4", replaces=NodeId(3))
    assert duty_of(Core(voter, voters=4)).decide(0) == RemoveMember(NodeId(3))
    gone = Member(NodeId(4), 4, "a:4", replaces=NodeId(9))
    assert duty_of(Core(gone, voters=4)).decide(0) is None
    leader = Member(NodeId(4), 4, "a:4", replaces=NodeId(1))
    assert duty_of(Core(leader, voters=4)).decide(0) == RemoveMember(NodeId(1)), "the leader may be replaced, too"


def test_nothing_is_proposed_while_a_change_is_not_committed() -> None:
    core = Core(learner())
    core.configuration_index = core.commit_index + 1
    assert duty_of(core).decide(0) is None


def test_the_feature_level_is_raised_to_what_all_members_claim() -> None:
    core = Core(Member(NodeId(4), 4, "a:4"))
    duty = duty_of(core, level=3)

    def claims(peer: int, level: int, *, connected: bool = True) -> None:
        core.links[NodeId(peer)] = LinkInfo(NodeId(peer), connected, 1, "", feature_level=level)

    assert duty.decide(0) is None
    for peer in (2, 3):
        claims(peer, 3)
    assert duty.decide(0) is None, "a learner applies entries, too"
    claims(4, 2)
    claims(3, 3, connected=False)
    assert duty.decide(0) is None, "it may come back as an older version"
    claims(3, 3)
    assert duty.decide(0) == RaiseFeatureLevel(2)
    del core.links[NodeId(4)]
    assert duty.decide(AGAIN_MS_MAX) is None
    assert duty_of(Core(voters=1), level=2).decide(0) == RaiseFeatureLevel(2)


def test_what_was_refused_is_tried_again_more_and_more_rarely() -> None:
    duty = duty_of(Core(learner()))
    tried = [now_ms for now_ms in range(0, 200_000, 100) if duty.decide(now_ms)]
    pauses = [after - before for before, after in pairwise(tried)]
    assert pauses[:5] == [AGAIN_MS_MIN << times for times in range(5)]
    assert set(pauses[5:]) == {AGAIN_MS_MAX}


def test_one_that_is_refused_does_not_keep_another_waiting() -> None:
    core = Core(learner(5), Member(NodeId(4), 4, "a:4", replaces=NodeId(3)), voters=4)
    duty = duty_of(core)
    decided = {duty.decide(0), duty.decide(100)}
    assert decided == {PromoteMember(NodeId(5)), RemoveMember(NodeId(3))}
    assert duty.decide(200) is None
    core.caught_up.remove(NodeId(5))
    assert duty.decide(300) is None
    core.caught_up.add(NodeId(5))
    assert duty.decide(400) == PromoteMember(NodeId(5)), "that it was not due meanwhile begins its pauses anew"


def test_a_new_leader_begins_anew() -> None:
    duty = duty_of(Core(learner()))
    assert duty.decide(0) is not None
    assert duty.decide(1) is None
    duty.end()
    duty.begin(2)
    assert duty.decide(2) is not None


@pytest.mark.parametrize("change", [PromoteMember(NodeId(4)), RemoveMember(NodeId(3)), RaiseFeatureLevel(2)])
def test_changes_are_proposed_as_such_and_never_forwarded(change: MemberChange) -> None:
    async def scenario(cluster: Cluster) -> None:
        node = await cluster.elect()
        node._duties.look()
        seen: list[object] = []
        node._driver.queue.put_control = seen.append  # type: ignore[method-assign]
        fate = node._duties.propose(change)
        (proposals,) = [cause for cause in seen if isinstance(cause, LeaderProposals)]
        assert proposals.term == node.term
        (proposed,) = proposals.batch
        assert (proposed.kind, proposed.payload) == (EntryKind.CONFIGURATION, encode_change(change))
        fate.cancel()
        await asyncio.sleep(0)
        del node._driver.queue.put_control

    simulate(scenario)
