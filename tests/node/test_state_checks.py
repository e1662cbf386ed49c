"""State checks: who differs from a majority ends, nobody else does, whatever comes late, twice, early or never."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from kvnode.config import StorageSection
from kvnode.errors import StateDiverged
from kvnode.ids import Index, NodeId, Term
from kvnode.kv.requests import StateCheck, StateCheckReply
from kvnode.node.state_checks import KEPT_MAX, StateChecks
from kvnode.raft.messages import Configuration, StateHash
from kvnode.sim.runtime.cluster import Cluster
from tests.node.scenario import simulate

GOOD, BAD, WORSE = b"g" * 16, b"b" * 16, b"w" * 16


class Member:
    """Member 1 of some, and what it was made to do."""

    def __init__(self, voters: int = 3, *, learners: tuple[int, ...] = (), level: int = 2, every_s: int = 60) -> None:
        self.configure(tuple(range(1, voters + 1)), learners, level)
        self.sent: list[tuple[int, StateHash]] = []
        self.ended: list[str] = []
        self.checks = StateChecks(
            node=NodeId(1),
            settings=StorageSection(check_every_s=every_s),
            configuration=lambda: self.configuration,
            term=lambda: Term(4),
            send=lambda to, message: self.sent.append((to, message)),
            on_diverged=self.ended.append,
        )

    def configure(self, voters: tuple[int, ...], learners: tuple[int, ...] = (), level: int = 2) -> None:
        def ids(numbers: tuple[int, ...]) -> tuple[NodeId, ...]:
            return tuple(map(NodeId, numbers))

        self.configuration = Configuration(ids(voters), ids(learners), feature_level=level)

    def applies(self, index: int, digest: bytes = GOOD) -> None:
        self.checks.applied(StateCheckReply(9, index, digest))

    def hears(self, sender: int, index: int, digest: bytes = GOOD) -> None:
        self.checks.on_message(StateHash(Term(4), NodeId(sender), Index(index), digest))


# ── the duty ────────────────────────────────────────────────────────────────────────────────────────


def test_the_leader_asks_once_in_a_while() -> None:
    checks = Member().checks
    checks.begin(1_000)
    asked = [now_ms for now_ms in range(1_000, 200_000, 500) if checks.decide(now_ms) == StateCheck()]
    assert asked == [61_000, 121_000, 181_000]
    checks.end()
    checks.begin(200_000)
    assert checks.decide(250_000) is None, "an earlier leader may have asked just before"


def test_it_asks_nothing_that_a_member_may_not_know_and_nothing_if_it_shall_not() -> None:
    member = Member(level=1)
    member.checks.begin(0)
    assert member.checks.decide(100_000) is None
    member.configure((1, 2, 3), level=2)
    assert member.checks.decide(100_000) == StateCheck()
    never = Member(every_s=0).checks
    never.begin(0)
    assert never.decide(10_000_000) is None


# ── telling and judging ─────────────────────────────────────────────────────────────────────────────


def test_what_was_applied_is_told_to_every_other_member() -> None:
    member = Member(learners=(7,))
    member.applies(30)
    assert [to for to, _ in member.sent] == [2, 3, 7]
    assert {message for _, message in member.sent} == {StateHash(Term(4), NodeId(1), Index(30), GOOD)}


def test_agreement_is_nothing_to_speak_of() -> None:
    member = Member()
    member.applies(30)
    member.hears(2, 30)
    member.hears(3, 30)
    assert (member.ended, member.checks.alarm) == ([], "")


@pytest.mark.parametrize("is_early", [False, True])
def test_who_differs_from_a_majority_ends_once(is_early: bool) -> None:
    """Whether the others tell before or after it has applied the check itself."""
    member = Member()
    if is_early:
        member.hears(2, 30)
        member.hears(3, 30)
        assert member.ended == []
        member.applies(30, BAD)
    else:
        member.applies(30, BAD)
        member.hears(2, 30)
        assert member.ended == [], "one other is no majority of three"
        member.hears(3, 30)
    assert member.ended == ["this node's state at entry 30 is not the cluster's: 2 of 3 voters agree on another"]
    member.applies(31, BAD)
    member.hears(2, 31)
    member.hears(3, 31)
    assert len(member.ended) == 1


def test_a_majority_with_this_node_only_raises_an_alarm() -> None:
    member = Member()
    member.applies(30)
    member.hears(2, 30)
    member.hears(3, 30, BAD)
    assert member.ended == []
    assert member.checks.alarm == "the state of member 3 differs from the majority's"


def test_without_a_majority_nobody_ends_and_all_raise_an_alarm() -> None:
    pair = Member(voters=2)
    pair.applies(30)
    pair.hears(2, 30, BAD)
    assert (pair.ended, pair.checks.alarm) == ([], "no majority agrees on the state: 1 | 2")
    four = Member(voters=4)
    four.applies(30)
    four.hears(2, 30)
    four.hears(3, 30, BAD)
    assert four.checks.alarm == "", "the fourth may still decide it"
    four.hears(4, 30, BAD)
    assert (four.ended, four.checks.alarm) == ([], "no majority agrees on the state: 1 2 | 3 4")
    three = Member()
    three.applies(30)
    three.hears(2, 30, BAD)
    three.hears(3, 30, WORSE)
    assert (three.ended, three.checks.alarm) == ([], "no majority agrees on the state: 1 | 2 | 3")


def test_the_alarm_goes_when_all_voters_are_heard_to_agree() -> None:
    member = Member()
    member.applies(30)
    member.hears(2, 30)
    member.hears(3, 30, BAD)
    member.applies(40)
    member.hears(2, 40)
    assert member.checks.alarm, "member 3 has not been heard"
    member.configure((1, 2, 4))
    member.hears(4, 40)
    assert member.checks.alarm == ""


def test_what_is_late_twice_missing_or_old_changes_nothing() -> None:
    member = Member(voters=5)
    member.applies(30, BAD)
    for _ in range(9):
        member.hears(2, 30)  # twice is not two
    assert member.ended == []
    member.applies(40)
    member.hears(3, 40)
    member.hears(4, 40)
    assert (member.ended, member.checks.alarm) == ([], "")
    member.hears(3, 30)
    assert member.ended == []
    member.hears(4, 30)  # late, but it is the third
    assert len(member.ended) == 1
    old = Member()
    for index in range(1, 2 + KEPT_MAX):
        old.applies(index, BAD if index == 1 else GOOD)
    old.hears(2, 1)
    old.hears(3, 1)
    assert old.ended == [], "the first is not remembered any more"


def test_a_vote_is_needed_to_be_counted() -> None:
    member = Member(learners=(7,))
    member.applies(30, BAD)
    for stranger in (7, 8, 9):
        member.hears(stranger, 30)
    assert (member.ended, member.checks.alarm) == ([], "")


def test_a_learner_that_differs_ends_and_one_that_does_not_stays() -> None:
    for digest, count in ((BAD, 1), (GOOD, 0)):
        learner = Member()
        learner.configure((2, 3, 4), (1,))
        learner.applies(30, digest)
        learner.hears(2, 30)
        assert learner.ended == []
        learner.hears(3, 30)
        assert len(learner.ended) == count


def test_alone_there_is_nobody_to_differ_from() -> None:
    member = Member(voters=1)
    member.applies(30, BAD)
    assert (member.ended, member.checks.alarm, member.sent) == ([], "", [])


def test_what_was_noted_of_a_store_that_a_snapshot_replaced_is_void() -> None:
    member = Member()
    member.applies(30, BAD)
    member.checks.on_store_replaced()
    member.hears(2, 30)
    member.hears(3, 30)
    assert member.ended == []


def test_the_tables_are_bounded_and_one_that_floods_harms_itself_alone() -> None:
    member = Member()
    member.applies(30, BAD)
    member.hears(2, 30)
    for index in range(1_000, 3_000):
        member.hears(3, index)
        member.hears(99, index)
    checks = member.checks
    assert {sender: len(heard) for sender, heard in checks._heard.items()} == {2: 1, 3: KEPT_MAX}
    member.hears(3, 30)
    assert len(member.ended) == 1
    member.configure((1, 2))
    member.hears(2, 4_000)
    assert 3 not in checks._heard
    for index in range(5_000, 5_100):
        member.applies(index)
    assert len(checks._own) == KEPT_MAX


# ── in a cluster ────────────────────────────────────────────────────────────────────────────────────


def test_a_cluster_loses_the_member_that_differs_and_serves_on() -> None:
    async def scenario(cluster: Cluster) -> None:
        members = [cluster.members[number] for number in cluster.ids]
        for member in members:
            raft, checks = member.node._raft, member.node._state_checks
            checks._configuration = lambda raft=raft: replace(raft.configuration, feature_level=2)
        await cluster.kv(1).put("k", "v")
        await asyncio.sleep(25)
        assert [member.node._state_checks.alarm for member in members] == ["", "", ""]
        assert all(len(member.node._state_checks._own) >= 2 for member in members)
        other = next(member for member in members if member.node._raft.role != "leader")
        noted = other.node._state_checks.applied
        other.node._state_checks.applied = lambda result: noted(replace(result, digest=BAD))  # type: ignore[method-assign]
        await asyncio.sleep(25)
        assert isinstance(cluster.failures.pop(other.id), StateDiverged)
        left = [member for member in members if member is not other]
        assert await cluster.kv(left[0].id).put("k", "w")
        for member in left:
            assert member.node.status().alarms[-1] == f"the state of member {other.id} differs from the majority's"

    simulate(scenario, storage__check_every_s=10)
