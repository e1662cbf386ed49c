"""The core under random networks, disks and crashes: all invariants after each step, and recovery in the end.

`make sim SEEDS=1000` tries more seeds, `make sim TIER=core SEED=7` replays one; see docs/simulation.md.
"""

from __future__ import annotations

import pytest

from kvnode.sim.core.chaos import Chaos
from kvnode.sim.core.run import run_seed
from kvnode.sim.summary import Tally, failure_text, summary_text

SEEDS = 40


@pytest.mark.slow
def test_invariants_hold_after_every_step_and_peace_brings_recovery() -> None:
    """Scenarios S3, S18, S29; invariants I1–I13, I18, I29–I31."""
    tally = Tally("core", {})
    for seed in range(SEEDS):
        tally.add(run_seed(seed))
    print(summary_text([tally], 0.0, is_interrupted=False))
    assert tally.failures == [], "\n".join(map(failure_text, tally.failures))
    assert tally.counts["commits"] > SEEDS
    assert tally.counts["reads"] > SEEDS


@pytest.mark.slow
def test_without_faults_nobody_is_elected_twice() -> None:
    """I31: slow disks and slow links within reason are no fault; the first leader stays, and serves everybody."""
    for seed in range(6):
        network = Chaos(seed)
        network.ambush = network.drop = network.duplicate = network.straggle = network.bury = 0.0
        network.chaos = ["heal"]
        network.run()
        assert len(network.ghost.leaders) == 1, seed
        assert network.ghost.reads_answered > 0, seed
