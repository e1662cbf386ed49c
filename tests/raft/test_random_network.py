"""The core under random networks, disks and crashes: all invariants after each step, and recovery in the end.

`make sim SEEDS=1000` tries more seeds, `make sim TIER=core SEED=7` replays one; see docs/simulation.md.
"""

from __future__ import annotations

import pytest

from kvnode.sim.core.chaos import Chaos
from kvnode.sim.core.faults import FAULTS
from kvnode.sim.core.run import MARKS, run_seed
from kvnode.sim.core.script import KNOBS, PROPOSE, READ, Script, draw_script
from kvnode.sim.core.shape import draw_shape
from kvnode.sim.summary import Tally, failure_text, summary_text

SEEDS = 12


@pytest.mark.slow
def test_invariants_hold_after_every_step_and_peace_brings_recovery() -> None:
    """Scenarios S3, S18, S29; invariants I1–I13, I18, I29–I31."""
    tally = Tally("core", MARKS)
    for seed in range(SEEDS):
        tally.add(run_seed(seed))
    print(summary_text([tally], 0.0, is_interrupted=False))
    assert tally.failures == [], "\n".join(map(failure_text, tally.failures))
    assert tally.counts["commands done"] > 10 * SEEDS
    assert tally.counts["reads done"] > 10 * SEEDS
    assert len(tally.useless) <= 1


@pytest.mark.slow
def test_without_faults_nobody_is_elected_twice() -> None:
    """I31: slow disks and slow links within reason are no fault; the first leader stays, and serves everybody."""
    for seed in range(6):
        drawn = draw_script(seed, draw_shape(seed, tuple(FAULTS)))
        clients_only = tuple(event for event in drawn.events if event.kind in (PROPOSE, READ))
        chaos = Chaos(seed, given=Script(seed, clients_only, off=KNOBS))
        chaos.set_up()
        chaos.run_for(chaos.shape.duration_ms)
        assert len(chaos.ghost.leaders) == 1, seed
        assert chaos.ghost.reads_answered > 0, seed
