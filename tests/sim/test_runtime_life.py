"""Tier 2 as a whole: seeds pass, equal seeds are equal runs in every process, and runs meet what they are for."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from kvnode.sim.report import SeedReport
from kvnode.sim.runtime.faults import FAULTS
from kvnode.sim.runtime.life import Life
from kvnode.sim.runtime.run import run_seed

SEEDS = range(8)


@pytest.fixture(scope="module")
def reports() -> list[SeedReport]:
    return [run_seed(seed) for seed in SEEDS]


def test_seeds_pass_and_did_work(reports: list[SeedReport]) -> None:
    for report in reports:
        assert report.verdict == "passed", f"seed {report.seed}: {report.failure}\n{report.detail}"
        assert report.counts["operations_ok"] >= 10
        assert report.steps > 100


def test_a_few_runs_meet_elections_restarts_losses_and_torn_ends(reports: list[SeedReport]) -> None:
    counts = {name: sum(report.counts.get(name, 0) for report in reports) for name in reports[0].counts}
    assert counts["leader_changes"] > len(reports)
    assert counts["starts"] > 5 * len(reports)
    marks = [name for report in reports for name in report.marks]
    assert "torn_tail_cut" in marks
    assert "read_round_lost" in marks


def test_equal_seeds_are_equal_runs_whatever_the_hash_seed() -> None:
    script = "from kvnode.sim.runtime.run import run_seed\nr = run_seed(2)\nprint(r.trace, sorted(r.counts.items()))"
    found = [
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert found[0] == found[1]


def test_every_fault_is_on_in_some_world() -> None:
    on = {kind for seed in range(40) for kind in Life(seed).world.faults}
    assert on == set(FAULTS)
