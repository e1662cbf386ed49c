"""The core under random networks, disks and crashes: all invariants after each step, and recovery in the end.

`make sim SEEDS=1000` tries more seeds, `make sim SEED=7` replays one. A seed that has failed once stays in FAILED_ONCE.
"""

from __future__ import annotations

import os
import time

import pytest

from kvnode.sim.core.chaos import Chaos

SEEDS = int(os.environ.get("KVNODE_SIM_SEEDS") or 40)
ONE_SEED = os.environ.get("KVNODE_SIM_SEED")
FAILED_ONCE: dict[int, str] = {
    11366: "a command appended and cut off within one output is placed where no disk ever saw it (the check was wrong)",
    322: "a follower far behind a leader without a cache catches up one disk read an entry (the bound was too short)",
}
"""Seed → what it found, since put right."""


def run_seed(seed: int) -> Chaos:
    network = Chaos(seed)
    try:
        network.run()
    except Exception as error:
        error.add_note(f"seed {seed} failed at {network.now_ms} ms, step {network.steps}; replay: make sim SEED={seed}")
        raise
    return network


@pytest.mark.slow
def test_invariants_hold_after_every_step_and_peace_brings_recovery() -> None:
    """Scenarios S3, S18, S29; invariants I1–I13, I18, I29–I31."""
    began = time.perf_counter()
    seeds = [int(ONE_SEED)] if ONE_SEED else [*FAILED_ONCE, *range(SEEDS)]
    networks = [run_seed(seed) for seed in seeds]
    took = time.perf_counter() - began
    steps = sum(network.steps for network in networks)
    committed = sum(len(network.ghost.committed) for network in networks)
    reads = sum(network.ghost.reads_answered for network in networks)
    terms = sum(len(network.ghost.leaders) for network in networks)
    print(
        f"{len(seeds)} seeds, {len(seeds) / took:.1f} seeds/s, {steps / took:.0f} steps/s; "
        f"{committed} commits, {reads} reads, {terms} leaders"
    )
    assert committed > 0


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
