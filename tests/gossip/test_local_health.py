from __future__ import annotations

from kvnode.gossip.local_health import LocalHealth


def test_the_score_stretches_and_stays_within_its_bounds():
    health = LocalHealth(8)
    assert health.stretch(500) == 500
    health.change(-1)
    assert health.score == 0
    health.change(2)
    assert health.stretch(500) == 1_500
    health.change(100)
    assert (health.score, health.stretch(1_000)) == (7, 8_000)
