"""Tier 1's own parts: scripts that can be shortened, faults that strike, marks that are met, peace after trouble."""

from __future__ import annotations

import random

import msgspec
import pytest

from kvnode.ids import Index, NodeId, Term, WriteNumber
from kvnode.raft import election
from kvnode.raft.messages import AppendReply, Entry, EntryKind, ForwardProposals, PeerMessage, VoteReply, VoteRequest
from kvnode.raft.output import Persist, Send
from kvnode.sim.core import liveness
from kvnode.sim.core import shrink as shrinking
from kvnode.sim.core.chaos import Chaos
from kvnode.sim.core.faults import FAULTS
from kvnode.sim.core.links import Links
from kvnode.sim.core.machine import EXACT, Machine
from kvnode.sim.core.marks import MARKS, RARE_MARKS
from kvnode.sim.core.run import run_seed
from kvnode.sim.core.script import KNOBS, PROPOSE, READ, Event, Script, draw_script
from kvnode.sim.core.shape import draw_shape
from kvnode.sim.core.shrink import shrink, signature
from kvnode.sim.report import SeedReport


def quiet(seed: int, events: tuple[Event, ...] = ()) -> Chaos:
    """A world of which nothing is wrong but `events`; all nodes are up."""
    chaos = Chaos(seed, given=Script(seed, events, off=KNOBS))
    chaos.set_up()
    return chaos


def three_voters() -> int:
    """A seed whose cluster has three voters, and keeps them."""
    shapes = ((seed, draw_shape(seed, tuple(FAULTS))) for seed in range(100))
    return next(seed for seed, shape in shapes if len(shape.configuration.voters) == 3 and not shape.churn_every_ms)


def test_a_script_is_drawn_from_its_seed_alone() -> None:
    for seed in range(5):
        shape = draw_shape(seed, tuple(FAULTS))
        assert draw_script(seed, shape) == draw_script(seed, draw_shape(seed, tuple(FAULTS)))
        times = [event.at_ms for event in draw_script(seed, shape).events]
        assert times == sorted(times)


def test_shapes_differ_and_stay_within_what_settings_allow() -> None:
    shapes = [draw_shape(seed, tuple(FAULTS)) for seed in range(200)]
    assert {len(shape.configuration.voters) for shape in shapes} == {1, 2, 3, 4, 5, 7}
    assert {len(shape.configuration.learners) for shape in shapes} == {0, 1, 2}
    for fraction, most in (("drop", 0.3), ("duplicate", 0.5), ("bury", 0.5), ("straggle", 0.2)):
        drawn = [getattr(shape, fraction) for shape in shapes]
        assert 0.0 in drawn
        assert most / 2 < max(drawn) <= most
    assert all(any(kind in shape.faults for shape in shapes) for kind in FAULTS)


@pytest.mark.parametrize("kind", FAULTS)
def test_every_fault_strikes_a_living_cluster_and_is_survived(kind: str) -> None:
    seed = three_voters()
    timeout = draw_shape(seed, tuple(FAULTS)).timeout
    struck = tuple(Event(5 * timeout + turn, kind, turn) for turn in range(3))
    clients = tuple(Event(at, (PROPOSE, READ)[at % 2], at) for at in range(0, 12 * timeout, timeout // 5))
    report = run_seed(
        seed, script=Script(seed, tuple(sorted(clients + struck, key=lambda event: event.at_ms)), off=("ambush",))
    )
    assert report.verdict != "failed", report.failure
    assert report.counts["commands done"] > 0


def test_equal_seeds_give_equal_traces_and_reports() -> None:
    one, other = run_seed(3), run_seed(3)
    assert one == other
    assert one.trace != run_seed(4).trace


def test_a_clock_that_runs_fast_or_slow_never_goes_back_and_wakes_in_time() -> None:
    machine = Machine(NodeId(1), random.Random(0))
    machine.set_rate(EXACT * 9 // 10, 0)
    before = 0
    for now in range(0, 5_000, 7):
        if now == 2_100:
            machine.set_rate(EXACT * 3 // 2, now)
        local = machine.local_ms(now)
        assert local >= before
        before = local
        due = machine.when_ms(local + 50)
        assert machine.local_ms(due) >= local + 50 > machine.local_ms(due - 1)


def test_links_cut_one_direction_and_let_late_messages_go() -> None:
    chaos = quiet(three_voters())
    arrived: list[tuple[NodeId, PeerMessage]] = []
    links = Links(
        random.Random(0), chaos.shape, lambda _ms, event: event(), lambda *put: arrived.append(put), chaos.counts
    )
    one, two = NodeId(1), NodeId(2)
    message = AppendReply(Term(1), one, accepted=True, index=Index(0))
    links.cut([(one, two)])
    links.send(one, two, message)
    links.send(two, one, message)
    assert arrived == [(one, message)]
    links.mend([(one, two)])
    links.clog([(one, two)])
    links.send(one, two, message)
    assert len(arrived) == 1
    links.unclog([(one, two)])
    assert arrived[1:] == [(two, message)]


def test_proposals_are_never_delivered_twice() -> None:
    chaos = quiet(three_voters())
    arrived: list[object] = []
    links = Links(
        random.Random(0), chaos.shape, lambda _ms, event: event(), lambda *put: arrived.append(put), chaos.counts
    )
    links.duplicate = links.bury = 1.0
    links.send(NodeId(1), NodeId(2), ForwardProposals(Term(1), NodeId(1), ()))
    links.resurrect(10)
    assert len(arrived) == 1


def test_a_stuck_disk_is_reported_and_ends_a_reign() -> None:
    chaos = quiet(three_voters())
    chaos.run_for(5 * chaos.timeout)
    leader = chaos.leaders()[0]
    chaos.disks.stick(leader.machine, chaos.now_ms + 8 * chaos.timeout)
    chaos.propose(leader.node, 1)
    chaos.run_for(6 * chaos.timeout)
    assert chaos.observer.marks["leader_with_stuck_disk"] == 1
    assert chaos.leaders()[0].node != leader.node
    chaos.run_for(4 * chaos.timeout)
    assert not leader.is_stalled


def test_a_core_is_a_quorum_and_the_others_stay_broken() -> None:
    for seed in range(30):
        chaos = quiet(seed)
        chaos.run_for(5 * chaos.timeout)
        rng = random.Random(seed)
        core = liveness.choose_core(chaos, rng)
        voters = [id_ for id_ in core if id_ in chaos.shape.configuration.voters]
        assert len(voters) > len(chaos.shape.configuration.voters) // 2
        liveness.make_peace(chaos, core, rng)
        for outsider in (id_ for id_ in chaos.ids if id_ not in core):
            process, cuts = chaos.machines[outsider].process, chaos.links.cuts
            is_cut = all((outsider, id_) in cuts for id_ in core) or all((id_, outsider) in cuts for id_ in core)
            is_stuck = chaos.machines[outsider].disk_stuck_until > chaos.now_ms
            assert process is None or process.is_paused or is_cut or is_stuck


def test_marks_are_what_the_observer_counts() -> None:
    assert set(RARE_MARKS) <= set(MARKS)
    met: dict[str, int] = {}
    for seed in range(6):
        met.update(run_seed(seed).marks)
    assert set(met) <= set(MARKS)
    assert len(met) > len(MARKS) / 2


# ── the harness finds what is broken on purpose ─────────────────────────────────────────────────────


def first_failure(seeds: range) -> SeedReport | None:
    return next((report for report in map(run_seed, seeds) if report.verdict == "failed"), None)


def test_a_vote_for_an_old_log_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(election, "_is_log_complete", lambda *_: True)
    assert first_failure(range(40)) is not None


def test_a_failing_seed_is_shrunk_to_less_that_fails_in_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(election, "_is_log_complete", lambda *_: True)
    monkeypatch.setattr(shrinking, "RUNS_MAX", 40)
    failed = first_failure(range(60))
    assert failed is not None
    shrunk = shrink(failed.seed)
    assert shrunk is not None
    assert len(shrunk.script.events) < shrunk.events_before
    assert signature(shrunk.report.failure) == signature(failed.failure)
    assert "still fail" in shrunk.text()


def test_a_seed_that_passes_is_not_shrunk() -> None:
    assert shrink(1) is None


def test_what_is_not_needed_is_left_out() -> None:
    """The run is played: it fails if two certain events are there, and only with links that drop."""
    script = draw_script(5, draw_shape(5, tuple(FAULTS)))
    needed = {script.events[3], script.events[-2]}

    def run(script: Script) -> SeedReport:
        is_failed = needed <= set(script.events) and "drop" not in script.off
        verdict = "failed" if is_failed else "passed"
        return SeedReport(tier="core", seed=5, verdict=verdict, virtual_ms=0, failure="('I5', 1)" if is_failed else "")  # type: ignore[arg-type]

    shrunk = shrink(5, run)
    assert shrunk is not None
    assert set(shrunk.script.events) == needed
    assert shrunk.script.off == tuple(knob for knob in KNOBS if knob != "drop")


# ── logs that lose their end ────────────────────────────────────────────────────────────────────────


def entry(index: int, term: int) -> Entry:
    payload = b"%d.%d" % (index, term)
    return Entry(term=Term(term), index=Index(index), time=index, kind=EntryKind.COMMAND, payload=payload)


def write(number: int, *entries: Entry, cut: int = 0, commit: int = 0) -> Persist:
    return Persist(WriteNumber(number), Index(cut), entries, None, Index(commit))


def test_lost_records_bring_back_what_they_had_cut_off_and_commits_that_they_told_of_are_forgotten() -> None:
    machine = Machine(NodeId(1), random.Random(0))
    machine.records = [
        write(1, entry(1, 1), entry(2, 1)),
        write(2, entry(3, 1), commit=1),
        write(3, entry(2, 2), cut=2, commit=1),
        write(4, entry(3, 2), commit=2),
    ]
    machine.disk.entries = [entry(1, 1), entry(2, 2), entry(3, 2)]
    machine.stored = Index(2)
    machine.lose_records(2)
    assert machine.disk.entries == [entry(1, 1), entry(2, 1), entry(3, 1)]
    assert (machine.stored, machine.is_quarantined) == (1, True)


def test_never_more_than_a_minority_of_voters_loses_its_log() -> None:
    chaos = quiet(three_voters())
    chaos.run_for(10 * chaos.timeout)
    for turn in range(20):
        FAULTS["rot"](chaos, random.Random(turn))
        assert sum(chaos.machines[voter].is_quarantined for voter in chaos.shape.configuration.voters) == 1
    assert chaos.counts["logs damaged"] >= 1


def test_who_leaves_quarantine_without_what_is_committed_is_found() -> None:
    chaos = quiet(three_voters())
    chaos.run_for(10 * chaos.timeout)
    for node in chaos.ids:
        chaos.propose(node, 2)
    chaos.run_for(10 * chaos.timeout)
    victim = next(voter for voter in chaos.shape.configuration.voters if voter != chaos.leaders()[0].node)
    chaos.rot(victim, 0)
    assert chaos.ghost.committed
    assert not chaos.machines[victim].disk.entries
    ghost = chaos.ghost
    before = chaos.machines[chaos.leaders()[0].node].disk.entries
    ghost.on_whole(victim)  # the other two hold what is of the last term
    ghost.on_lost(victim, before)
    ghost.lost[victim].term = Term(ghost.lost[victim].term + 1)
    with pytest.raises(AssertionError, match="I12: left quarantine without"):
        ghost.on_whole(victim)
    ghost.on_lost(victim, before)
    other = [msgspec.structs.replace(entry, term=Term(99)) for entry in before]
    chaos.machines[victim].disk.entries = other
    ghost.on_whole(victim)  # others than were committed, and the two hold those
    chaos.machines[victim].disk.entries = []
    ghost.on_lost(victim, before)
    chaos.machines[chaos.leaders()[0].node].disk.entries.pop()
    with pytest.raises(AssertionError, match="I12: left quarantine too early"):
        ghost.on_whole(victim)


def test_a_vote_from_quarantine_is_found() -> None:
    chaos = quiet(three_voters())
    chaos.run_for(10 * chaos.timeout)
    voter = chaos.shape.configuration.voters[0]
    chaos.rot(voter, 0)
    reply = VoteReply(chaos.machines[voter].disk.hard_state.term, voter, granted=True, pre=True)
    chaos.ghost.on_left(voter, Send(NodeId(2), msgspec.structs.replace(reply, granted=False)))
    with pytest.raises(AssertionError, match="I16"):
        chaos.ghost.on_left(voter, Send(NodeId(2), reply))
    request = VoteRequest(reply.term, voter, last_index=Index(0), last_term=Term(0), pre=True)
    with pytest.raises(AssertionError, match="I16"):
        chaos.ghost.on_left(voter, Send(NodeId(2), request))
