"""How long a suspect has, by the number of members and of those who agree."""

from __future__ import annotations

import pytest

from kvnode.gossip.settings import GossipSettings
from kvnode.gossip.suspicion import Suspicion, suspicion_ms_min
from kvnode.ids import NodeId

SETTINGS = GossipSettings()


@pytest.mark.parametrize(("members", "ms"), [(1, 4_000), (3, 4_000), (10, 4_000), (100, 8_000), (1_000, 12_000)])
def test_the_least_time_grows_with_the_logarithm(members: int, ms: int):
    assert suspicion_ms_min(members, SETTINGS) == ms


@pytest.mark.parametrize("members", [2, 3])
def test_where_nobody_can_agree_the_least_time_applies_at_once(members: int):
    suspicion = Suspicion(NodeId(2), members, SETTINGS, 1_000)
    assert suspicion.deadline_ms == 5_000
    assert not suspicion.confirm(NodeId(3))
    assert suspicion.deadline_ms == 5_000


def test_a_lone_accuser_waits_six_times_as_long_and_each_that_agrees_shortens_it():
    suspicion = Suspicion(NodeId(2), 5, SETTINGS, 0)
    deadlines = [suspicion.deadline_ms]
    assert not suspicion.confirm(NodeId(2))  # the same again agrees with nobody
    for by in (3, 4):
        assert suspicion.confirm(NodeId(by))
        deadlines.append(suspicion.deadline_ms)
    assert deadlines[0] == 24_000
    assert 4_000 < deadlines[1] < 24_000
    assert deadlines[2] == 4_000
    assert not suspicion.confirm(NodeId(5))  # no more are wanted
