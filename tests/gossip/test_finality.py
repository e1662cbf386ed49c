"""The watermark: over configured voters, counted when the events are held, with newcomers, lost stores and removals."""

from __future__ import annotations

from kvnode.clocks.version_vector import Origin, VersionVector
from kvnode.gossip.event import Event
from kvnode.gossip.finality import CLOSED, Electorate, Report
from kvnode.gossip.timeline import Timeline
from kvnode.gossip.timeline_rows import EventsDelta
from kvnode.ids import NodeId
from tests.gossip.timeline_world import Node, Reader, World, event_id

A, B, C = (Origin(NodeId(n), 10 + n) for n in (1, 2, 3))
M1, M2, M3 = NodeId(1), NodeId(2), NodeId(3)
THREE = Electorate(5, (M1, M2, M3), (M1, M2, M3))


def node_of(origin: Origin, *, is_founder: bool = True, boot: int = 1) -> Timeline:
    line = Timeline(origin, boot, is_founder=is_founder)
    line.take_changes()
    line.on_durable()
    return line


def event(origin: Origin, seq: int, lamport: int, *, is_ranked: bool = True) -> Event:
    return Event(*origin, 1, seq, lamport, 0, "user", b"{}", is_ranked)


def reports(*given: Report) -> EventsDelta:
    return EventsDelta(reports=given)


def promised(line: Timeline, lamport: int, electorate: Electorate) -> tuple[Report, ...]:
    """What is new of it, but for reports up to time 0, which promise nothing."""
    return tuple(report for report in line.promise(lamport, electorate) if report.lamport)


def final(line: Timeline) -> list[int]:
    page = line.page(VersionVector.EMPTY, limit=1000, is_stable=True)
    return [shown.event.lamport for shown in page.events]


def test_it_is_the_least_report_of_all_configured_voters() -> None:
    line = node_of(A)
    line.promise(30, THREE)
    line.merge(reports(Report(*B, 20, 0, 5)), time=99)
    assert line.watermark(THREE) == 0  # a voter that cannot be reached stops it
    line.merge(reports(Report(*C, 10, 0, 5)), time=99)
    assert line.watermark(THREE) == 10
    assert line.watermark(Electorate(6, (M1, M2), (M1, M2, M3))) == 20
    assert line.watermark(THREE) == 20  # it never falls


def test_a_report_counts_once_everything_up_to_its_number_is_held() -> None:
    line = node_of(A)
    line.promise(30, THREE)
    line.merge(reports(Report(*B, 20, 2, 5), Report(*C, 20, 0, 5)), time=99)
    assert line.watermark(THREE) == 0
    line.merge(EventsDelta((event(B, 1, 7),)), time=99)
    assert line.watermark(THREE) == 0
    line.merge(EventsDelta((event(B, 2, 8),)), time=99)
    assert (line.watermark(THREE), final(line)) == (20, [7, 8])


def test_a_report_of_a_newer_configuration_waits_for_it() -> None:
    line = node_of(A)
    line.promise(30, THREE)
    line.merge(reports(Report(*B, 20, 0, 5), Report(*C, 20, 0, 6)), time=99)
    assert line.watermark(THREE) == 0
    assert line.watermark(Electorate(6, THREE.voters, THREE.members)) == 20


def test_reports_come_with_the_last_page_only() -> None:
    source = node_of(A)
    source.promise(1, THREE)
    for lamport in range(2, 9):
        source.record("user", b"{}", lamport=lamport, wall_ms=0)
    source.take_changes()
    source.on_durable()
    source.promise(9, THREE)
    first = source.delta(VersionVector.EMPTY, 250)
    assert (first.more, first.reports) == (True, ())
    assert source.delta(VersionVector({A: 6}), 250).reports == (Report(*A, 9, 7, 5),)


def test_the_watermark_survives_a_restart() -> None:
    line = node_of(A)
    line.promise(30, THREE)
    line.merge(reports(Report(*B, 20, 0, 5), Report(*C, 20, 0, 5)), time=99)
    line.watermark(THREE)
    again = Timeline(A, 2, is_founder=True, rows=line.take_changes()[0])
    assert again.page(VersionVector.EMPTY, limit=1).watermark == 20
    assert again.watermark(THREE) == 20


def test_a_learner_promises_nothing_and_its_events_are_not_ranked() -> None:
    line = node_of(C)
    two = Electorate(5, (M1, M2), (M1, M2, M3))
    assert line.promise(9, two) == ()
    assert not line.record("user", b"{}", lamport=10, wall_ms=0).is_ranked


def test_a_newcomer_promises_once_another_voter_knows_of_it() -> None:
    line = node_of(C, is_founder=False)
    assert promised(line, 50, THREE) == ()
    line.merge(reports(Report(*A, 40, 0, 4)), time=99)
    assert promised(line, 50, THREE) == ()  # made before A knew of it
    line.merge(reports(Report(*A, 60, 0, 5)), time=99)
    assert promised(line, 50, THREE) == ()  # its clock is behind
    assert promised(line, 60, THREE) == (Report(*C, 60, 0, 5),)
    assert line.record("user", b"{}", lamport=61, wall_ms=0).is_ranked


def saved(line: Timeline) -> None:
    line.take_changes()
    line.on_durable()


def test_a_newcomer_that_has_started_before_has_to_be_known_to_every_voter() -> None:
    """Whose machine joins has a start behind it when its plane begins: to itself it looks like a lost store."""
    line = node_of(C, is_founder=False, boot=2)
    assert line.promise(50, THREE) == (Report(*C, 0, 0, 5),)  # up to time 0 anybody may
    line.heard(M1, 45)
    line.heard(M2, 48)
    saved(line)
    assert line.promise(50, THREE) == ()
    line.merge(reports(Report(*A, 40, 0, 5), Report(*B, 40, 0, 4)), time=99)
    saved(line)
    assert line.promise(50, THREE) == ()  # by B's configuration something may be final that is later than all this
    line.merge(reports(Report(*B, 41, 0, 5)), time=99)
    saved(line)
    assert line.promise(50, THREE) == (Report(*C, 50, 0, 5),)


def test_voters_that_have_all_joined_and_lost_their_stores_do_not_wait_for_each_other() -> None:
    two = Electorate(5, (M2, M3), (M2, M3))
    lines = [node_of(origin, is_founder=False, boot=2) for origin in (B, C)]
    for line, other in zip(lines, (M3, M2), strict=True):
        line.promise(50, two)
        line.heard(other, 50)
    for line, other in zip(lines, reversed(lines), strict=True):
        line.merge(other.delta(line.vector, 1 << 20), time=99)
        saved(line)
        line.promise(50, two)
    for line, other in zip(lines, reversed(lines), strict=True):
        line.merge(other.delta(line.vector, 1 << 20), time=99)
        assert line.watermark(two) == 50


def test_a_lost_store_promises_when_it_has_heard_everybody_and_closes_what_was() -> None:
    former = Origin(M1, 7)
    line = node_of(A, boot=2)
    assert line.unheard(THREE) == (M2, M3)
    assert promised(line, 50, THREE) == ()
    line.merge(EventsDelta((event(former, 1, 5), event(former, 2, 6)), reports=(Report(*former, 40, 3, 5),)), time=99)
    line.heard(M2, 45)
    assert promised(line, 50, THREE) == ()
    line.heard(M3, 48)
    assert promised(line, 47, THREE) == ()
    assert promised(line, 50, THREE) == ()  # what it merged is not durable yet
    line.take_changes()
    line.on_durable()
    made = promised(line, 50, THREE)
    assert made == (Report(*former, CLOSED, 2, 5), Report(*A, 50, 0, 5))
    other = node_of(B)
    other.promise(50, THREE)
    other.merge(reports(Report(*C, 50, 0, 5), Report(*former, 40, 3, 5)), time=99)
    assert other.watermark(THREE) == 0
    other.merge(EventsDelta((event(former, 1, 5), event(former, 2, 6)), reports=made), time=99)
    assert (other.watermark(THREE), final(other)) == (50, [5, 6])
    other.merge(EventsDelta((event(former, 3, 60),)), time=99)  # from nowhere, after the closing
    assert other.page(VersionVector({former: 2}), limit=9).events[0].is_late


def test_a_lost_store_of_which_nobody_else_heard_the_old_origin_stops_the_watermark_until_it_is_closed() -> None:
    line = node_of(B)
    line.promise(50, THREE)
    line.merge(
        EventsDelta((event(Origin(M1, 7), 1, 5),), reports=(Report(*C, 50, 0, 5), Report(*A, 50, 0, 5))), time=99
    )
    assert line.watermark(THREE) == 0  # events of member 1 under an incarnation that promises nothing


def test_a_removed_voter_keeps_its_place_with_what_is_held_and_the_rest_is_late() -> None:
    left = Electorate(6, (M1, M2), (M1, M2))
    here, there = node_of(A), node_of(B)
    for line in (here, there):
        line.merge(EventsDelta((event(C, 1, 5),), reports=(Report(*C, 6, 1, 5),)), time=99)
    here.merge(EventsDelta((event(C, 2, 7),), reports=(Report(*C, 8, 2, 5),)), time=99)
    for line, other in ((here, B), (there, A)):
        line.promise(20, left)
        line.merge(reports(Report(*other, 20, 0, 6)), time=99)
        assert line.watermark(left) == 20
    assert (final(here), final(there)) == ([5, 7], [5])
    there.merge(here.delta(there.vector, 1000), time=99)
    assert [shown.is_late for shown in there.page(VersionVector.EMPTY, limit=9).events] == [False, True]
    assert final(there) == [5]


# -- in small worlds -------------------------------------------------------------------------------------------------


def world_of(founders: int) -> tuple[World, list[Node]]:
    world = World(1, founders=founders)
    for node in world.nodes:
        node.flush()
    return world, world.nodes


def everybody_pulls(world: World) -> None:
    for node in world.nodes:
        for sender in world.nodes:
            world.pull(node, sender)
            while world.under_way:
                world.deliver(world.under_way.pop())
    for node in world.nodes:
        node.flush()
        world.check(node)


def test_a_partition_stops_the_watermark_and_its_end_lets_it_go_on() -> None:
    world, (one, two, three) = world_of(3)
    world.cut = {frozenset({1, 3}), frozenset({2, 3})}
    for node in (one, two, three):
        node.record()
        node.flush()
    for _ in range(5):
        everybody_pulls(world)
    assert [len(node.final.given) for node in world.nodes] == [0, 0, 0]
    assert [len(node.timeline.vector) for node in world.nodes] == [2, 2, 1]
    world.cut.clear()
    for _ in range(5):
        everybody_pulls(world)
    assert [len(node.final.given) for node in world.nodes] == [3, 3, 3]


def test_after_a_kill_no_event_sorts_before_an_older_own_event() -> None:
    _, (node, _) = world_of(2)
    issued = []
    for _ in range(20):
        for _ in range(3):
            made = node.record()
            assert made
            node.flush()
            issued.append(made)
        node.record()  # never becomes durable
        node.crash()
        node.flush()
    assert [made.seq for made in issued] == list(range(1, 61))
    assert sorted(made.lamport for made in issued) == [made.lamport for made in issued]
    assert sorted(made.boot for made in issued) == [made.boot for made in issued]


def test_a_cursor_goes_on_at_another_node_across_a_partition_and_a_restart() -> None:
    world, (one, two) = world_of(2)
    reader = Reader()
    made = []
    world.cut = {frozenset({1, 2})}
    for node in (one, two, one, two):
        recorded = node.record()
        assert recorded
        made.append(event_id(recorded))
        node.flush()
        reader.read(one.timeline)
    world.cut.clear()
    everybody_pulls(world)
    two.crash()
    reader.read(two.timeline)
    reader.read(one.timeline)
    assert (sorted(reader.given), reader.gaps) == (sorted(made), 0)
