"""From whom is pulled, when, and when not: one at a time, with pauses, and not for what is known to be covered."""

from __future__ import annotations

import random

from kvnode.gossip.messages import Summary
from kvnode.gossip.pulls import Pulls
from kvnode.gossip.settings import GossipSettings
from kvnode.ids import NodeId

SETTINGS = GossipSettings(pulls_max=2, pull_gap_ms=50, pull_retry_ms=200, pull_retry_ms_max=1_000, pull_stall_ms=9_000)
OWN = Summary(1, 1)
THEIRS = Summary(2, 1)
A, B, C = NodeId(2), NodeId(3), NodeId(4)


def pulls() -> Pulls:
    return Pulls(SETTINGS, random.Random(1))


def test_equal_digests_ask_for_nothing():
    p = pulls()
    assert not p.on_summary(A, Summary(1, 1, lamport=99), OWN)
    assert p.take_due(OWN, 0) == []
    assert p.knows_all(A, OWN)
    assert p.deadline_ms() is None


def test_what_differs_is_asked_for_once_at_a_time():
    p = pulls()
    p.on_summary(A, THEIRS, OWN)
    assert p.take_due(OWN, 0) == [(A, True, False, False)]
    p.on_summary(A, Summary(3, 5), OWN)
    assert p.take_due(OWN, 10) == []  # one is under way
    p.pulled(A, True, 20, summary=THEIRS)
    p.on_summary(A, Summary(3, 5), OWN)
    assert p.take_due(OWN, 30) == []  # the pause
    assert p.deadline_ms() == 70
    assert p.take_due(OWN, 70) == [(A, True, True, False)]


def test_a_further_page_needs_no_pause():
    p = pulls()
    p.on_summary(A, THEIRS, OWN)
    p.take_due(OWN, 0)
    p.pulled(A, True, 20, summary=THEIRS, more=True)
    assert p.take_due(OWN, 20) == [(A, True, False, False)]


def test_what_was_pulled_whole_means_that_the_other_is_behind():
    p = pulls()
    p.on_summary(A, THEIRS, OWN)
    p.take_due(OWN, 0)
    p.pulled(A, True, 5, summary=THEIRS)
    assert p.take_due(OWN, 1_000) == []  # ours holds theirs and more
    assert p.on_summary(A, THEIRS, OWN)
    assert not p.on_summary(A, Summary(7, 1), OWN)
    assert p.take_due(OWN, 1_000) == [(A, True, False, False)]


def test_so_many_in_all_and_none_for_what_another_has_brought():
    p = pulls()
    for member in (A, B, C):
        p.on_summary(member, THEIRS, OWN)
    assert [due[0] for due in p.take_due(OWN, 0)] == [A, B]
    p.pulled(A, True, 5, summary=THEIRS)
    p.pulled(B, True, 5, summary=THEIRS)
    assert p.take_due(THEIRS, 5) == []
    assert p.deadline_ms() is None


def test_failures_wait_longer_and_longer():
    p = pulls()
    p.on_summary(A, THEIRS, OWN)
    waits, now = [], 0
    for _ in range(6):
        assert p.take_due(OWN, now) == [(A, True, False, False)]
        p.pulled(A, False, now)
        deadline = p.deadline_ms()
        assert deadline is not None
        waits.append(deadline - now)
        now = deadline
    assert 100 <= waits[0] <= 200
    assert 200 <= waits[1] <= 400
    assert all(500 <= wait <= 1_000 for wait in waits[3:])


def test_a_pull_of_which_nothing_is_heard_is_over_some_day():
    p = pulls()
    p.on_summary(A, THEIRS, OWN)
    p.take_due(OWN, 0)
    assert p.deadline_ms() == 9_000
    p.take_due(OWN, 9_000)
    assert p.take_due(OWN, 9_300) == [(A, True, False, False)]


def test_tables_take_the_same_way_and_a_failure_goes_elsewhere():
    p = pulls()
    p.want_table(A)
    assert p.take_due(OWN, 0) == [(A, False, False, True)]
    assert p.pulled(A, False, 5) == (True, 1)
    assert p.take_due(OWN, 9_999) == []
    p.want_table(B)
    assert p.take_due(OWN, 9_999) == [(B, False, False, True)]
    assert p.pulled(B, True, 10_000) == (True, 0)


def test_who_is_gone_is_not_asked():
    p = pulls()
    p.on_summary(A, THEIRS, OWN)
    p.take_due(OWN, 0)
    p.forget(A)
    assert p.pulled(A, True, 5) == (False, 0)
    assert p.take_due(OWN, 99) == []
