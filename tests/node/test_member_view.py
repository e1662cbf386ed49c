"""What nodes say about the members, on the simulated runtime: who is met, how far each is, what is worth an alarm."""

from __future__ import annotations

import asyncio

import pytest

from kvnode.errors import Conflict, MemberNotFound, NoLeader
from kvnode.ids import NOBODY, Index, NodeId
from kvnode.kv.members import AddMember, RaiseFeatureLevel, RemoveMember
from kvnode.kv.requests import ConfigurationReply
from kvnode.node.member_alarms import CHANGE_MS, LOOK_MS, UNREACHABLE_MS, MemberAlarms
from kvnode.raft.messages import Configuration, Member
from kvnode.sim.runtime.cluster import Cluster
from kvnode.version import __version__
from kvnode.wire.codec import encode_configuration
from tests.node.scenario import simulate

GRACE_S = (UNREACHABLE_MS + 2 * LOOK_MS) / 1e3


def configuration(voters: str, learners: str = "", *members: Member) -> Configuration:
    """`configuration("123", "4")`; those not described live at a:ID."""
    described = {member.id: member for member in members}
    ids = [NodeId(int(digit)) for digit in voters + learners]
    everybody = tuple(described.get(id_) or Member(id_, id_, f"a:{id_}") for id_ in sorted(ids))
    split = len(voters)
    return Configuration(tuple(ids[:split]), tuple(ids[split:]), everybody, max(ids))


class _Core:
    """As much of the core as the alarms look at."""

    def __init__(self, configuration: Configuration) -> None:
        self.node = NodeId(1)
        self.configuration = configuration


def alarms_of(configuration: Configuration, *, after_ms: int) -> list[str]:
    """What node 1 says after so long in that configuration, with nobody connected."""

    class Transport:
        def links(self) -> dict[NodeId, object]:
            return {}

    alarms = MemberAlarms(
        raft=_Core(configuration),  # type: ignore[arg-type]
        transport=Transport(),  # type: ignore[arg-type]
        loop=None,  # type: ignore[arg-type]
        clock=None,  # type: ignore[arg-type]
        on_failed=None,  # type: ignore[arg-type]
    )
    assert not [alarm for alarm in alarms._find(1_000) if "there are" not in alarm], "nothing has lasted yet"
    return [alarm for alarm in alarms._find(1_000 + after_ms) if "cannot be reached" not in alarm]


def test_the_leader_shows_how_far_everybody_is() -> None:
    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.elect()
        await cluster.kv(leader.id).put("k", "v")
        await asyncio.sleep(1.0)
        found = leader.members()
        assert (found.leader, found.last_id) == (leader.id, 3)
        assert found.configuration_index == leader._raft.configuration_index
        assert [member.role for member in found.members] == ["voter"] * 3
        assert {member.match_index for member in found.members} == {leader._raft.last_index}
        assert all(member.connected and member.lag == 0 for member in found.members)
        own = found.members[leader.id - 1]
        assert (own.version, own.progress) == (__version__, None)
        assert own.client_url
        follower = next(member for member in cluster.ids if member != leader.id)
        others = cluster.members[follower].node.members()
        assert all(member.match_index is None and member.lag is None for member in others.members)
        assert others.members[follower - 1].connected

    simulate(scenario)


def test_who_is_down_for_long_is_an_alarm_until_it_is_back() -> None:
    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.elect()
        follower = next(member for member in cluster.ids if member != leader.id)
        assert leader.status().alarms == ()
        cluster.network.isolate(follower)
        await asyncio.sleep(GRACE_S)
        (alarm,) = leader.status().alarms
        assert alarm.startswith(f"voter {follower} (")
        assert not leader.members().members[follower - 1].connected
        cluster.network.heal()
        await asyncio.sleep(GRACE_S)
        assert leader.status().alarms == ()

    simulate(scenario)


def test_a_learner_that_does_not_catch_up_is_an_alarm() -> None:
    waiting = configuration("123", "4", Member(NodeId(4), 4, "a:4", "four", wants_vote=True))
    assert alarms_of(waiting, after_ms=CHANGE_MS - 1) == []
    (alarm,) = alarms_of(waiting, after_ms=CHANGE_MS)
    assert "learner 4 (four, a:4)" in alarm
    assert alarms_of(configuration("123", "4"), after_ms=10 * CHANGE_MS) == [], "it was not to vote"


def test_a_replaced_member_that_stays_is_an_alarm() -> None:
    replaced = configuration("1234", "", Member(NodeId(4), 4, "a:4", replaces=NodeId(3)))
    assert alarms_of(replaced, after_ms=CHANGE_MS - 1) == []
    (alarm,) = alarms_of(replaced, after_ms=CHANGE_MS)
    assert "member 4 has replaced member 3 (a:3)" in alarm
    done = configuration("124", "", Member(NodeId(4), 4, "a:4", replaces=NodeId(3)))
    assert alarms_of(done, after_ms=CHANGE_MS) == []


@pytest.mark.parametrize(("voters", "says"), [("1", False), ("12", True), ("123", False), ("1234", True)])
def test_an_even_number_of_voters_is_an_alarm(voters: str, *, says: bool) -> None:
    assert [f"there are {len(voters)} voters" in alarm for alarm in alarms_of(configuration(voters), after_ms=0)] == [
        True
    ] * says


def test_what_a_change_led_to_is_shown_by_its_own_configuration() -> None:
    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.elect()
        view = leader._view
        added = configuration("123", "4", Member(NodeId(4), 0xAB, "n4:7501", "four", wants_vote=True))
        applied = ConfigurationReply(1, 7, encode_configuration(added))
        found = view.changed(AddMember("n4:7501"), applied)
        assert (found.id, found.configuration_index, found.last_id) == (4, Index(7), 4)
        assert found.members[3].incarnation == "00000000000000ab"
        assert found.members[3].role == "learner"
        assert view.changed(RemoveMember(NodeId(9)), applied).id == 9
        assert view.changed(RaiseFeatureLevel(2), applied).id == NOBODY

    simulate(scenario)


def test_leadership_goes_to_the_best_voter_when_nobody_is_named() -> None:
    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.elect()
        follower = next(member for member in cluster.ids if member != leader.id)
        with pytest.raises(NoLeader):
            await cluster.members[follower].node.transfer_leadership()
        with pytest.raises(MemberNotFound):
            await leader.transfer_leadership(NodeId(9))
        assert await leader.transfer_leadership(leader.id) == leader.id
        new = await leader.transfer_leadership()
        assert new != leader.id
        assert cluster.members[new].raft.role == "leader"
        assert await cluster.members[new].node.transfer_leadership(leader.id) == leader.id

    simulate(scenario)


def test_there_is_nobody_to_hand_over_to_in_a_cluster_of_one() -> None:
    async def scenario(cluster: Cluster) -> None:
        leader = await cluster.elect()
        with pytest.raises(Conflict, match="no other voter"):
            await leader.transfer_leadership()

    simulate(scenario, size=1)
