"""Progress and its window: traps R3, S53–S56; scenarios S22, S30."""

from __future__ import annotations

import random

from kvnode.ids import Index
from kvnode.raft.progress import Progress


def replicating(match: int, next_index: int = 0) -> Progress:
    progress = Progress(Index(match + 1), contact_ms=0)
    progress.on_accepted(Index(match), 0, Index(match))
    assert progress.state == "replicate"
    for last in range(match + 1, next_index):
        progress.on_sent(Index(last), 10, 0)
    return progress


def test_replicate_runs_ahead_and_a_probe_waits() -> None:
    """RP2."""
    progress = Progress(Index(5), contact_ms=0)
    progress.on_sent(Index(9), 100, 0)
    assert (progress.next_index, progress.is_paused, progress.in_flight) == (5, True, 0)
    progress.on_accepted(Index(9), 1, Index(20))
    assert (progress.state, progress.next_index, progress.match_index) == ("replicate", 10, 9)
    progress.on_sent(Index(12), 100, 2)
    progress.on_sent(Index(15), 100, 2)
    assert (progress.next_index, progress.in_flight, progress.window_bytes) == (16, 2, 200)


def test_the_window_is_freed_by_acknowledged_index() -> None:
    """Traps S54, S55: one answer lost, one duplicated; nothing shifts and nothing leaks."""
    progress = replicating(0, 6)
    progress.on_accepted(Index(3), 1, Index(5))
    assert (progress.in_flight, progress.window_bytes) == (2, 20)
    progress.on_accepted(Index(3), 1, Index(5))
    progress.on_accepted(Index(1), 1, Index(5))
    assert (progress.in_flight, progress.match_index) == (2, 3)
    progress.on_accepted(Index(5), 1, Index(5))
    assert (progress.in_flight, progress.window_bytes) == (0, 0)


def test_a_connection_that_comes_before_any_answer_does_not_send_the_probe_to_the_beginning() -> None:
    """A leader whose log is cut would take it for one that needs a snapshot."""
    progress = Progress(Index(1018), contact_ms=0)
    progress.become_probe()
    assert (progress.state, progress.next_index) == ("probe", 1018)
    assert progress.on_rejected(Index(1017), Index(1000))
    progress.become_probe()
    assert progress.next_index == 1001, "nor to the end again"
    progress.become_snapshot()
    assert (progress.state, progress.next_index) == ("snapshot", 1001)
    progress.on_snapshot_over(Index(0))
    assert (progress.state, progress.next_index) == ("probe", 1)
    progress.on_accepted(Index(7), 0, Index(1020))
    progress.become_probe()
    assert progress.next_index == 8


def test_stale_rejections_are_ignored() -> None:
    """Trap R3: at or below match; in a probe, not the one we asked about; beyond what was sent."""
    progress = replicating(3, 6)
    assert not progress.on_rejected(Index(3), Index(0))
    assert not progress.on_rejected(Index(9), Index(4))
    assert progress.on_rejected(Index(5), Index(4))
    assert (progress.state, progress.next_index, progress.in_flight) == ("probe", 5, 0)
    assert not progress.on_rejected(Index(5), Index(1))
    assert progress.on_rejected(Index(4), Index(0))
    assert progress.next_index == 4, "never at or below match"


def test_a_probe_hears_only_the_answer_to_its_own_question() -> None:
    """Trap R3: refusals of appends sent before the logs were known to part."""
    progress = Progress(Index(9), contact_ms=0)
    assert not progress.on_rejected(Index(6), Index(2))
    assert progress.next_index == 9
    assert progress.on_rejected(Index(8), Index(2))
    assert progress.next_index == 3


def test_a_rejection_always_moves_the_probe_down() -> None:
    progress = Progress(Index(9), contact_ms=0)
    assert progress.on_rejected(Index(8), Index(8))
    assert progress.next_index == 8


def test_a_heartbeat_answer_does_not_end_a_probe_that_has_entries_to_prove() -> None:
    """The data connection may be losing messages while heartbeats pass."""
    progress = Progress(Index(5), contact_ms=0, match_index=Index(4))
    progress.on_sent(Index(9), 100, 0)
    progress.on_accepted(Index(4), 1, Index(9))
    assert progress.state == "probe"


def test_lost_messages_are_noticed() -> None:
    """Trap S55: no acknowledgement, and the follower's log does not reach what was sent."""
    progress = replicating(0, 3)
    assert not progress.is_stuck(299, 300)
    assert progress.is_stuck(300, 300)
    assert progress.is_lost(Index(0))
    assert not progress.is_lost(Index(1)), "received, only not durable yet"
    progress.become_probe()
    assert (progress.next_index, progress.in_flight, progress.window_bytes) == (1, 0, 0)
    assert not progress.is_stuck(9_999, 300)


def test_match_never_falls_whatever_arrives() -> None:
    """Scenario S22: match only grows, next > match, window consistent, for random reorderings."""
    rng = random.Random(5)
    for _ in range(300):
        progress = Progress(Index(rng.randint(1, 10)), contact_ms=0)
        best = 0
        for now in range(60):
            index = Index(rng.randint(0, progress.next_index - 1))
            match rng.choice("aarsrp"):
                case "a":
                    progress.on_accepted(index, now, Index(30))
                    best = max(best, index)
                case "r":
                    progress.on_rejected(index, Index(rng.randint(0, 12)))
                case "s" if progress.next_index <= 30 and not progress.is_paused:
                    progress.on_sent(Index(rng.randint(progress.next_index, 30)), 7, now)
                case _:
                    progress.become_probe()
            assert progress.match_index == best < progress.next_index
            assert progress.window_bytes == 7 * progress.in_flight
            assert all(last > best for last, _ in progress.window)
