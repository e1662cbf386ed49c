"""Every seed that has failed once passes now."""

from __future__ import annotations

import tomllib
from pathlib import Path

import msgspec
import pytest

from kvnode.sim.report import Tier
from kvnode.sim.summary import failure_text
from kvnode.sim.worker import Job, run_job


class Regression(msgspec.Struct, forbid_unknown_fields=True):
    tier: Tier
    seed: int
    found: str


class Listed(msgspec.Struct, forbid_unknown_fields=True):
    seed: list[Regression]


LISTED = msgspec.convert(
    tomllib.loads(Path(__file__).with_name("regressions.toml").read_text(encoding="utf-8")), Listed
)


@pytest.mark.parametrize("regression", LISTED.seed, ids=lambda one: f"{one.tier}-{one.seed}")
def test_a_seed_that_has_failed_passes(regression: Regression) -> None:
    report = run_job(Job(regression.tier, regression.seed, cpu_limit_s=120)).report
    assert report.verdict != "failed", f"{regression.found}\n{failure_text(report)}"
