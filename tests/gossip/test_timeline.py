"""The timeline by itself: pages, rings and their gaps, what is refused, what is late, what a restart brings back."""

from __future__ import annotations

import msgspec
import pytest

from kvnode.clocks.lamport import JUMP_MAX, TIME_MAX
from kvnode.clocks.version_vector import Origin, VersionVector
from kvnode.gossip.event import Event, TimelineLimits
from kvnode.gossip.finality import Electorate, Report
from kvnode.gossip.timeline import Timeline
from kvnode.gossip.timeline_rows import EventsDelta, decode_delta, encode_delta
from kvnode.ids import NodeId

A, B, C = (Origin(NodeId(n), 0xFFFF_FFFF_0000_0000 + n) for n in (1, 2, 3))
TWO = Electorate(1, (NodeId(1), NodeId(2)), (NodeId(1), NodeId(2)))
ALL = 1 << 20


def timeline(origin: Origin = A, **options: object) -> Timeline:
    return Timeline(origin, 1, **{"is_founder": True, **options})  # type: ignore[arg-type]


def event(origin: Origin, seq: int, lamport: int, *, boot: int = 1, fields: bytes = b"{}") -> Event:
    return Event(*origin, boot, seq, lamport, 0, "user", fields, True)


def recorded(line: Timeline, *times: int, fields: bytes = b"{}") -> None:
    for lamport in times:
        line.record("user", fields, lamport=lamport, wall_ms=0)
    line.take_changes()
    line.on_durable()


def copied(source: Timeline, to: Timeline, time: int = 1000) -> None:
    while True:
        delta = source.delta(to.vector, 1000)
        assert to.merge(delta, time=time).refused == 0
        if not delta.more:
            return


def times(line: Timeline, **options: bool) -> list[int]:
    return [shown.event.lamport for shown in line.page(VersionVector.EMPTY, limit=ALL, **options).events]


# -- own events ------------------------------------------------------------------------------------------------------


def test_an_own_event_is_shown_once_it_is_durable() -> None:
    line = timeline()
    line.record("user", b"{}", lamport=3, wall_ms=0)
    line.take_changes()
    line.record("user", b"{}", lamport=4, wall_ms=0)
    assert times(line) == []
    assert line.delta(VersionVector.EMPTY, ALL).events == ()
    assert [event.lamport for event in line.on_durable()] == [3]
    assert times(line) == [3]


def test_no_promise_covers_an_event_that_is_not_shown_yet() -> None:
    line = timeline()
    line.record("user", b"{}", lamport=3, wall_ms=0)
    assert line.promise(7, TWO) == (Report(*A, 2, 0, 1),)
    line.take_changes()
    line.on_durable()
    assert line.promise(7, TWO) == (Report(*A, 7, 1, 1),)


@pytest.mark.parametrize("fields", [b"", b"[]", b"1", b"{", b'{"a":"' + b"x" * 4096 + b'"}', b"\xff"])
def test_what_is_no_small_json_object_is_refused(fields: bytes) -> None:
    with pytest.raises(ValueError):
        timeline().record("user", fields, lamport=1, wall_ms=0)


# -- one order -------------------------------------------------------------------------------------------------------


def test_equal_times_are_ordered_by_member_then_incarnation() -> None:
    line = timeline(C)
    recorded(line, 5)
    younger = Origin(A.member, A.incarnation + 1)
    line.merge(EventsDelta((event(B, 1, 5), event(younger, 1, 5), event(A, 1, 5))), time=9)
    shown = line.page(VersionVector.EMPTY, limit=ALL).events
    assert [item.event.origin for item in shown] == [A, younger, B, C]


def test_a_cursor_gets_what_arrives_late_with_a_smaller_time() -> None:
    line = timeline(C)
    line.merge(EventsDelta((event(A, 1, 50),)), time=99)
    page = line.page(VersionVector.EMPTY, limit=ALL)
    line.merge(EventsDelta((event(B, 1, 7),)), time=99)
    after = line.page(page.cursor, limit=ALL)
    assert [item.event.lamport for item in after.events] == [7]
    assert line.page(after.cursor, limit=ALL).events == ()


def test_pages_of_readers_end_at_the_limit() -> None:
    line = timeline()
    recorded(line, 1, 2, 3)
    page = line.page(VersionVector.EMPTY, limit=2)
    assert (len(page.events), page.more) == (2, True)
    page = line.page(page.cursor, limit=2)
    assert (len(page.events), page.more) == (1, False)


# -- rings -----------------------------------------------------------------------------------------------------------

SMALL = TimelineLimits(events_per_origin=3)


def test_a_ring_drops_the_oldest_and_every_reader_is_told_how_many() -> None:
    line = timeline(limits=SMALL)
    recorded(line, 1, 2)
    early = line.page(VersionVector.EMPTY, limit=ALL).cursor
    recorded(line, 3, 4, 5, 6, 7)
    assert [(item.event.seq, item.gap) for item in line.page(early, limit=ALL).events] == [(5, 2), (6, 0), (7, 0)]
    first = line.page(VersionVector.EMPTY, limit=1)
    assert [(item.event.seq, item.gap) for item in first.events] == [(5, 4)]
    assert [(item.event.seq, item.gap) for item in line.page(first.cursor, limit=ALL).events] == [(6, 0), (7, 0)]


def test_a_ring_is_bounded_in_bytes() -> None:
    line = timeline(limits=TimelineLimits(bytes_per_origin=1000))
    recorded(line, *range(1, 20), fields=b'{"a":"' + b"x" * 200 + b'"}')
    assert len(line.page(VersionVector.EMPTY, limit=ALL).events) == 3


def test_a_gap_travels_to_nodes_that_come_too_late_and_back_from_their_stores() -> None:
    line, other = timeline(limits=SMALL), timeline(B, limits=SMALL)
    recorded(line, 1)
    copied(line, other)
    recorded(line, 2, 3, 4, 5, 6)
    copied(line, other)
    assert other.vector == line.vector
    rows = dict(other.take_changes()[0])
    again = timeline(B, limits=SMALL, rows=rows.items())
    for node in (other, again):
        page = node.page(VersionVector.EMPTY, limit=ALL)
        assert [(item.event.seq, item.gap) for item in page.events] == [(4, 3), (5, 0), (6, 0)]


def test_dropped_rows_leave_the_store() -> None:
    line = timeline(limits=SMALL)
    rows: dict[bytes, bytes] = {}
    for lamport in range(1, 10):
        line.record("user", b"{}", lamport=lamport, wall_ms=0)
        written, removed = line.take_changes()
        rows = {key: value for key, value in {**rows, **dict(written)}.items() if key not in removed}
        line.on_durable()
    written, removed = line.take_changes()
    rows = {key: value for key, value in {**rows, **dict(written)}.items() if key not in removed}
    assert len([key for key in rows if key.startswith(b"te")]) == 3
    assert times(timeline(limits=SMALL, rows=rows.items())) == [7, 8, 9]


def test_a_store_read_under_smaller_bounds_fits_again_the_next_time() -> None:
    line = timeline()
    for lamport in range(1, 10):
        line.record("user", b"{}", lamport=lamport, wall_ms=0)
    rows = dict(line.take_changes()[0])
    smaller = timeline(limits=SMALL, rows=rows.items())
    for key in smaller.take_changes()[1]:
        del rows[key]
    assert times(timeline(limits=SMALL, rows=rows.items())) == [7, 8, 9]


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [
        event(B, 3, 6),  # a number is left out
        event(B, 2, 5),  # its time does not grow
        event(B, 2, 100 + JUMP_MAX + 1),
        event(B, 2, 6, boot=0),
    ],
)
def test_what_does_not_fit_is_left_out_with_what_follows_of_its_origin(bad: Event) -> None:
    line = timeline()
    line.merge(EventsDelta((event(B, 1, 5),)), time=100)
    follows = event(B, bad.seq + 1, TIME_MAX)
    merged = line.merge(EventsDelta((bad, event(C, 1, 8), follows)), time=100)
    assert (merged.refused, [e.origin for e in merged.events], merged.lamport) == (2, [C], 8)
    assert line.vector == VersionVector({B: 1, C: 1})


def test_the_farthest_allowed_jump_is_merged() -> None:
    assert timeline().merge(EventsDelta((event(B, 1, 100 + JUMP_MAX),)), time=100).refused == 0


def test_an_origin_too_many_is_refused() -> None:
    line = timeline(limits=TimelineLimits(origins=1))
    assert line.merge(EventsDelta((event(B, 1, 1), event(C, 1, 2))), time=9).refused == 1


def test_own_events_that_it_does_not_know_tell_that_its_store_is_an_old_copy() -> None:
    line = timeline()
    recorded(line, 1)
    assert not line.merge(EventsDelta((event(A, 1, 1),)), time=9).is_behind_itself
    assert line.merge(EventsDelta((event(A, 2, 2),)), time=9).is_behind_itself
    assert line.vector.get(A) == 1


@pytest.mark.parametrize(
    "delta",
    [
        EventsDelta((event(B, 0, 1),)),
        EventsDelta((event(B, 1, TIME_MAX + 1),)),
        EventsDelta((event(B, 1, 1, fields=b"[]"),)),
        EventsDelta((event(B, 1, 1, fields=b'{"a":"' + b"x" * 4096 + b'"}'),)),
        EventsDelta(starts=((2, 1, 1), (1, 1, 1))),
        EventsDelta(reports=(Report(NodeId(1), 1, -1, 0, 1),)),
        EventsDelta(reports=(Report(NodeId(0), 1, 1, 0, 1),)),
    ],
)
def test_pages_out_of_range_are_refused(delta: EventsDelta) -> None:
    with pytest.raises(ValueError):
        decode_delta(encode_delta(delta), TimelineLimits())


@pytest.mark.parametrize("data", [b"", b"\x90\x90", b"\xc1", b"\x91\x91\x01", b"\x91" * 3000])
def test_bytes_that_are_no_page_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        decode_delta(data, TimelineLimits())


def test_stored_events_that_do_not_follow_each_other_are_refused() -> None:
    line = timeline()
    for lamport in (1, 2, 3):
        line.record("user", b"{}", lamport=lamport, wall_ms=0)
    rows = dict(line.take_changes()[0])
    del rows[sorted(rows)[1]]
    with pytest.raises(ValueError):
        timeline(rows=rows.items())
    with pytest.raises(ValueError):
        timeline(rows=[(b"tx", msgspec.msgpack.encode(1))])


# -- late ------------------------------------------------------------------------------------------------------------


def test_what_comes_below_the_watermark_is_late_for_good_and_not_part_of_the_final_order() -> None:
    line = timeline()
    line.merge(EventsDelta((event(B, 1, 10),), reports=(Report(*B, 20, 1, 1),)), time=99)
    line.promise(20, TWO)
    assert line.watermark(TWO) == 20
    line.merge(EventsDelta((event(C, 1, 15), event(C, 2, 21))), time=99)
    again = timeline(rows=line.take_changes()[0])
    for node in (line, again):
        shown = node.page(VersionVector.EMPTY, limit=ALL).events
        assert [(item.event.lamport, item.is_late) for item in shown] == [(10, False), (15, True), (21, False)]
        assert times(node, is_stable=True) == [10]
        assert times(node, is_stable=True, allow_late=True) == [10, 15]


def test_the_cursor_of_a_final_order_passes_what_it_never_shows() -> None:
    """Else a follower looks through all a learner has ever recorded whenever something happens."""
    line = timeline()
    unranked = [msgspec.structs.replace(event(C, seq, seq), is_ranked=False) for seq in range(1, 6)]
    line.merge(EventsDelta(tuple(unranked)), time=9)
    alone = Electorate(1, (A.member,), (A.member,))
    line.promise(8, alone)
    line.watermark(alone)
    page = line.page(VersionVector.EMPTY, limit=ALL, is_stable=True)
    assert (page.events, page.cursor) == ((), VersionVector({C: 5}))
    late = line.page(VersionVector.EMPTY, limit=ALL, is_stable=True, allow_late=True)
    assert [shown.event.seq for shown in late.events] == [1, 2, 3, 4, 5]


def test_the_cursor_of_a_final_order_passes_no_gap_that_was_not_told() -> None:
    line = timeline()
    unranked = msgspec.structs.replace(event(C, 4, 4), is_ranked=False)
    line.merge(EventsDelta((unranked, event(C, 5, 5)), VersionVector({C: 4}).to_row()), time=9)
    alone = Electorate(1, (A.member,), (A.member,))
    line.promise(4, alone)
    line.watermark(alone)
    page = line.page(VersionVector.EMPTY, limit=ALL, is_stable=True)
    assert page.cursor == VersionVector.EMPTY
    line.promise(5, alone)
    line.watermark(alone)
    page = line.page(page.cursor, limit=ALL, is_stable=True)
    assert [(shown.event.seq, shown.gap) for shown in page.events] == [(5, 3)]
