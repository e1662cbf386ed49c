"""One core, told by hand what others say."""

from __future__ import annotations

import random

import pytest

from kvnode.gossip.core import Gossip
from kvnode.gossip.messages import (
    NUMBER_MAX,
    Ack,
    Nack,
    Packet,
    Ping,
    PingReq,
    Rumor,
    Status,
    Summary,
    SwimMessage,
)
from kvnode.gossip.output import (
    Answered,
    DatagramsBlocked,
    GossipOutput,
    MemberAlive,
    MemberDead,
    MemberForgotten,
    MemberLearned,
    MemberSuspected,
    Received,
    Refuted,
    StoodStill,
)
from kvnode.gossip.settings import GossipSettings
from kvnode.ids import NodeId

OWN_NUMBER = 3 << 20
NO_SUMMARY = Summary()


class Bench:
    """Node 1 of as many as are wanted, and the time."""

    def __init__(self, size: int = 3, *, learn: bool = False, settings: GossipSettings | None = None) -> None:
        self.now = 5_000
        self.gossip = Gossip(
            node=NodeId(1),
            number=OWN_NUMBER,
            incarnation=11,
            address="10.0.0.1:7501",
            settings=settings or GossipSettings(),
            rng=random.Random(1),
            now_ms=self.now,
            learn=learn,
        )
        self.gossip.set_members({NodeId(id_): f"10.0.0.{id_}:7501" for id_ in range(1, size + 1)}, self.now)
        self.out = GossipOutput()

    def hear(self, sender: int, *messages: SwimMessage, summary: Summary = NO_SUMMARY) -> GossipOutput:
        self.gossip.step(self.now, Received(NodeId(sender), Packet(summary, messages)))
        return self.gossip.take_output()

    def alive(self, *ids: int) -> None:
        for id_ in ids:
            self.hear(id_, alive(id_))

    def tick_until(self, wanted: type, limit_ms: int = 60_000) -> GossipOutput:
        """Let time pass, timer by timer, until a packet holds such a message, or such a fact is there."""
        end = self.now + limit_ms
        while self.now < end:
            self.now = max(self.gossip.next_deadline_ms(), self.now)
            self.gossip.on_tick(self.now)
            out = self.gossip.take_output()
            sent = [message for send in out.packets for message in send.packet.messages]
            if any(isinstance(thing, wanted) for thing in [*sent, *out.facts]):
                return out
        raise AssertionError(f"no {wanted.__name__} within {limit_ms} ms")

    def status(self, member: int) -> Status:
        state = self.gossip.member(NodeId(member))
        assert state is not None
        return state.status

    @property
    def number(self) -> int:
        return self.gossip.own.number


def alive(member: int, number: int = 1 << 20) -> Rumor:
    return Rumor(NodeId(member), number, Status.ALIVE, address=f"10.0.0.{member}:7501", beat=number)


def accused(member: int, by: int, number: int = 1 << 20, status: Status = Status.SUSPECT) -> Rumor:
    return Rumor(NodeId(member), number, status, NodeId(by))


def sent(out: GossipOutput, kind: type) -> list[tuple[int, SwimMessage]]:
    return [(send.to, message) for send in out.packets for message in send.packet.messages if isinstance(message, kind)]


# ── probing ─────────────────────────────────────────────────────────────────────────────────────────


def test_each_member_is_probed_once_in_a_round():
    bench = Bench(6)
    for _ in range(3):
        targets = []
        for _ in range(5):
            to, ping = sent(bench.tick_until(Ping), Ping)[0]
            targets.append(to)
            assert isinstance(ping, Ping)
            bench.now += 1
            bench.hear(to, Ack(ping.target, ping.seq), alive(to))
        assert sorted(targets) == [2, 3, 4, 5, 6]


def test_a_member_is_not_suspect_before_its_first_probe_has_failed():
    bench = Bench(2)
    assert bench.status(2) == Status.UNKNOWN
    bench.tick_until(Ping)
    began = bench.now
    out = bench.tick_until(MemberSuspected)
    assert bench.now - began == 1_000
    assert out.facts == [MemberSuspected(NodeId(2), 0, NodeId(1))]


def test_without_an_answer_helpers_are_asked_and_an_exchange_is_tried():
    bench = Bench(6)
    bench.alive(2, 3, 4, 5, 6)
    (target, ping), *_ = sent(bench.tick_until(Ping), Ping)
    began = bench.now
    out = bench.tick_until(PingReq)
    assert bench.now - began == 500
    asked = sent(out, PingReq)
    assert len(asked) == 3
    assert target not in [to for to, _ in asked]
    assert [(send.to, send.packet.messages[0]) for send in out.fallbacks] == [(target, ping)]


@pytest.mark.parametrize("how", ["late", "helper", "fallback"])
def test_an_answer_by_any_way_ends_the_probe(how: str):
    bench = Bench()
    bench.alive(2, 3)
    (target, ping), *_ = sent(bench.tick_until(Ping), Ping)
    assert isinstance(ping, Ping)
    bench.tick_until(PingReq)
    ack = Ack(ping.target, ping.seq)
    out = GossipOutput()
    match how:
        case "late":
            bench.hear(target, ack)
        case "helper":
            bench.hear(5 - target, ack)
        case _:
            bench.gossip.step(bench.now, Answered(NodeId(target), Packet(NO_SUMMARY, (ack,))))
            out = bench.gossip.take_output()
    bench.tick_until(Ping)
    assert bench.status(target) == Status.ALIVE
    assert out.facts == ([DatagramsBlocked(NodeId(target))] if how == "fallback" else [])


def test_an_answer_of_another_probe_or_member_answers_nothing():
    bench = Bench()
    bench.alive(2, 3)
    (target, ping), *_ = sent(bench.tick_until(Ping), Ping)
    assert isinstance(ping, Ping)
    bench.hear(target, Ack(NodeId(target), ping.seq + 1), Ack(NodeId(5 - target), ping.seq))
    bench.tick_until(MemberSuspected)
    assert bench.status(target) == Status.SUSPECT


def test_missing_nacks_count_against_oneself_and_stretch_the_next_probe():
    bench = Bench(4)
    bench.alive(2, 3, 4)
    bench.tick_until(PingReq)
    bench.tick_until(MemberSuspected)  # and the next probe has begun
    assert bench.gossip.health_score == 2
    began = bench.now
    bench.tick_until(PingReq)
    assert bench.now - began == 1_500


def test_a_nack_tells_that_it_is_the_other_who_is_silent():
    bench = Bench()
    bench.alive(2, 3)
    (helper, request), *_ = sent(bench.tick_until(PingReq), PingReq)
    assert isinstance(request, PingReq)
    bench.hear(helper, Nack(request.target, request.seq))
    bench.tick_until(MemberSuspected)
    assert bench.gossip.health_score == 0


def test_an_accusation_holds_against_the_life_that_was_probed_only():
    bench = Bench()
    bench.alive(2, 3)
    (target, _), *_ = sent(bench.tick_until(Ping), Ping)
    bench.hear(5 - target, alive(target, (1 << 20) + 1))
    bench.tick_until(Ping)
    assert bench.status(target) == Status.ALIVE


# ── for others ──────────────────────────────────────────────────────────────────────────────────────


def test_a_ping_is_answered_by_its_target_only():
    bench = Bench()
    assert sent(bench.hear(2, alive(2), Ping(NodeId(1), 7)), Ack) == [(2, Ack(NodeId(1), 7))]
    assert sent(bench.hear(2, Ping(NodeId(3), 8)), Ack) == []
    assert bench.hear(9, Ping(NodeId(1), 9)).packets == []  # nobody's


def test_a_ping_by_an_exchange_is_answered_in_it():
    bench = Bench()
    packet = bench.gossip.answer(bench.now, NodeId(2), Packet(NO_SUMMARY, (Ping(NodeId(1), 7), alive(2))))
    assert packet.messages[:2] == (Ack(NodeId(1), 7), bench.gossip.own)
    assert sent(bench.gossip.take_output(), Ack) == []
    assert bench.gossip.answer(bench.now, NodeId(2), Packet(NO_SUMMARY)) == Packet(NO_SUMMARY)


def test_a_helper_passes_the_answer_on():
    bench = Bench()
    bench.alive(2, 3)
    (to, ping), *_ = sent(bench.hear(2, PingReq(NodeId(3), 70)), Ping)
    assert to == 3
    assert isinstance(ping, Ping)
    assert sent(bench.hear(3, Ack(NodeId(3), ping.seq)), Ack) == [(2, Ack(NodeId(3), 70))]
    assert sent(bench.hear(3, Ack(NodeId(3), ping.seq)), Ack) == []  # once


def test_a_helper_without_an_answer_says_so_in_time():
    bench = Bench()
    bench.alive(2, 3)
    bench.hear(2, PingReq(NodeId(3), 70))
    began = bench.now
    assert sent(bench.tick_until(Nack), Nack) == [(2, Nack(NodeId(3), 70))]
    assert bench.now - began == 400


# ── what is said of this node ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("status", [Status.SUSPECT, Status.DEAD, Status.LEFT])
def test_an_accusation_is_refuted_with_a_higher_number(status: Status):
    bench = Bench()
    bench.alive(2, 3)
    out = bench.hear(2, accused(1, 2, OWN_NUMBER, status))
    assert out.facts == [Refuted(OWN_NUMBER + 1, status, NodeId(2))]
    assert (bench.gossip.own.number, bench.gossip.own.status) == (OWN_NUMBER + 1, Status.ALIVE)
    assert bench.gossip.health_score == 1
    told = [rumor for _, rumor in sent(bench.tick_until(Rumor), Rumor)]
    assert bench.gossip.own in told


def test_an_old_accusation_is_answered_but_needs_no_new_number():
    bench = Bench()
    bench.alive(2)
    assert bench.hear(2, accused(1, 2, OWN_NUMBER - 1)).facts == []
    assert bench.gossip.own.number == OWN_NUMBER


def test_a_number_of_ours_that_we_do_not_know_is_exceeded():
    bench = Bench()
    bench.alive(2)
    bench.hear(2, alive(1, OWN_NUMBER + 5))
    assert bench.gossip.own.number == OWN_NUMBER + 6
    bench.hear(2, accused(1, 2, NUMBER_MAX))
    assert bench.gossip.own.number == OWN_NUMBER + 6


# ── what is said of others ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("standing", [Status.SUSPECT, Status.DEAD, Status.LEFT])
@pytest.mark.parametrize("accusation", [Status.SUSPECT, Status.DEAD])
def test_the_accused_and_the_gone_accuse_nobody(standing: Status, accusation: Status):
    bench = Bench(5)
    bench.alive(2, 3, 4, 5)
    bench.hear(4, Rumor(NodeId(2), 1 << 20, standing, NodeId(4 if standing != Status.LEFT else 0)))
    bench.hear(4, accused(3, 2, status=accusation))
    assert bench.status(3) == Status.ALIVE
    bench.hear(4, accused(3, 5, status=accusation))
    assert bench.status(3) == accusation


@pytest.mark.parametrize("by", [0, 3, 99])
def test_an_accuser_is_a_member_and_not_the_accused(by: int):
    bench = Bench(4)
    bench.alive(2, 3, 4)
    bench.hear(4, accused(3, by))
    assert bench.status(3) == Status.ALIVE


def test_a_suspect_is_dead_after_its_time_and_comes_back_with_a_higher_number_only():
    bench = Bench()
    bench.alive(2, 3)
    bench.hear(3, accused(2, 3))
    began = bench.now
    bench.tick_until(MemberDead)
    assert bench.now - began == 4_000
    bench.hear(2, alive(2))
    assert bench.status(2) == Status.DEAD
    assert bench.hear(2, alive(2, (1 << 20) + 1)).facts == [MemberAlive(NodeId(2), (1 << 20) + 1, Status.DEAD)]


def test_others_that_agree_shorten_the_wait_and_are_told_on():
    bench = Bench(6)
    bench.alive(2, 3, 4, 5, 6)
    bench.hear(3, accused(2, 3))
    began = bench.now
    bench.hear(4, accused(2, 4))
    bench.hear(5, accused(2, 5))
    told = [rumor for _, rumor in sent(bench.tick_until(Rumor), Rumor)]
    assert accused(2, 5) in told
    while bench.status(2) != Status.DEAD:
        bench.tick_until(object)
    assert bench.now - began == 4_000


def test_whoever_is_accused_hears_it_with_every_packet():
    bench = Bench()
    bench.alive(2, 3)
    bench.hear(3, accused(2, 3))
    for seq in range(20):
        out = bench.hear(2, Ping(NodeId(1), seq))
        assert out.packets[0].packet.messages[0] == accused(2, 3)


def test_the_dead_hear_gossip_for_a_while_and_are_pinged_for_ever():
    bench = Bench(2, settings=GossipSettings(dead_gossip_ms=30_000))
    bench.alive(2)
    bench.tick_until(MemberDead)
    died = bench.now
    bench.gossip.describe(role="learner")
    assert [send.to for send in bench.tick_until(Rumor).packets] == [2]
    assert bench.now - died <= 400  # by gossip, before the rare ping
    while bench.now < died + 40_000:
        bench.tick_until(object)
    bench.gossip.describe(role="voter")
    began = bench.now
    assert sent(bench.tick_until(Ping, 6_000), Ping)[0][0] == 2
    assert bench.now - began > 100  # by the rare ping, not by gossip


def test_the_members_gone_from_the_configuration_are_forgotten_whole():
    bench = Bench()
    bench.alive(2, 3)
    bench.hear(3, accused(2, 3))
    bench.gossip.set_members({NodeId(1): "a:1", NodeId(3): "b:1"}, bench.now)
    bench.hear(3, alive(2, 5 << 20))
    assert bench.gossip.member(NodeId(2)) is None
    for _ in range(50):
        bench.now = bench.gossip.next_deadline_ms()
        bench.gossip.on_tick(bench.now)
        assert 2 not in [send.to for send in bench.gossip.take_output().packets]


# ── time ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_node_that_stood_still_holds_it_against_nobody():
    bench = Bench()
    bench.alive(2, 3)
    (target, ping), *_ = sent(bench.tick_until(Ping), Ping)
    assert isinstance(ping, Ping)
    bench.hear(5 - target, accused(target, 5 - target))
    bench.now += 60_000
    bench.gossip.on_tick(bench.now)
    out = bench.gossip.take_output()
    assert isinstance(out.facts[0], StoodStill)
    assert bench.status(target) == Status.SUSPECT
    bench.hear(target, Ack(NodeId(target), ping.seq), alive(target, (1 << 20) + 1))
    bench.tick_until(Ping)
    assert bench.status(target) == Status.ALIVE


def test_an_idle_node_sleeps_from_probe_to_probe():
    bench = Bench(1)
    wakes = 0
    end = bench.now + 100_000
    while bench.now < end:
        bench.now = bench.gossip.next_deadline_ms()
        bench.gossip.on_tick(bench.now)
        assert bench.gossip.take_output() == GossipOutput()
        wakes += 1
    assert wakes < 130 + 5  # a probe a second, and now and then a look at the dead and the tables


# ── tables, seeds, changes ──────────────────────────────────────────────────────────────────────────


def test_a_table_from_one_seed_brings_the_others():
    bench = Bench(2, learn=True)
    bench.gossip.merge_table([alive(2), alive(8), accused(9, 8), accused(8, 2)], bench.now)
    out = bench.gossip.take_output()
    assert MemberLearned(NodeId(8), "10.0.0.8:7501") in out.facts
    assert (bench.status(8), bench.gossip.member(NodeId(9))) == (Status.SUSPECT, None)
    assert {rumor.member for rumor in bench.gossip.rumors()} == {1, 2, 8}


def test_the_learnt_are_forgotten_when_they_are_long_dead():
    bench = Bench(2, learn=True, settings=GossipSettings(forget_ms=50_000))
    bench.gossip.merge_table([alive(2), alive(8)], bench.now)
    while bench.status(8) != Status.DEAD:
        bench.tick_until(MemberDead)
    began = bench.now
    bench.tick_until(MemberForgotten)
    assert 50_000 <= bench.now - began <= 58_500


def test_a_change_is_told_soon_to_those_who_do_not_have_it():
    bench = Bench(4)
    new = Summary(5, 0)
    bench.alive(2, 3, 4)
    while len(bench.gossip._hearsay.queue):
        bench.tick_until(object)
    bench.hear(2, summary=new)
    bench.gossip.set_summary(new)
    bench.gossip.changed(bench.now)
    assert bench.gossip.next_deadline_ms() <= bench.now + 50
    bench.now = bench.gossip.next_deadline_ms()
    bench.gossip.on_tick(bench.now)
    out = bench.gossip.take_output()
    assert {send.to for send in out.packets} >= {3, 4}
    assert all(send.packet.summary == new for send in out.packets)


def test_another_summary_makes_a_pull():
    bench = Bench()
    bench.alive(2)
    (pull,) = bench.hear(2, summary=Summary(0, 9)).pulls
    assert (pull.to, pull.want_keyspace, pull.want_events, pull.members) == (2, False, True, ())
    assert bench.hear(2, summary=Summary(0, 10)).pulls == []  # one at a time
    bench.gossip.pulled(NodeId(2), True, bench.now, summary=Summary(0, 9))
    bench.now += 60
    bench.gossip.on_tick(bench.now)
    assert bench.gossip.take_output().pulls == []
    assert bench.hear(2, summary=Summary(0, 9)).pulls == []  # all of that has come
    (again,) = bench.hear(2, summary=Summary(0, 10)).pulls
    assert (again.to, again.want_keyspace, again.want_events) == (2, False, True)


def test_texts_that_would_not_fit_are_refused():
    bench = Bench()
    bench.hear(2, Rumor(NodeId(2), 1 << 20, Status.ALIVE, address="x" * 701, beat=1))
    assert bench.status(2) == Status.UNKNOWN
    with pytest.raises(ValueError, match="700 bytes"):
        bench.gossip.describe(client_url="x" * 701)
